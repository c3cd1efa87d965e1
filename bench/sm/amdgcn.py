"""What AMD's machine code shows of a kernel without a model: instructions of its main loop, bytes asked for ahead.

Read from the assembly that LLVM prints. Loads of all tensors count, for nothing here tells which they belong to. Of
memory the counter `vmcnt` says how many operations, the latest, may still be on their way ("AMD Instinct MI300
Instruction Set Architecture", section 4.4).
"""

import re
from collections import Counter
from dataclasses import dataclass

from bench.sm.facts import VECTOR_BYTES, Facts

LANES = 64
LOAD = re.compile(r"(?:buffer|global)_load_(\w+)")
STORE = re.compile(r"(?:buffer|global)_store_\w+")
BYTES = {
    "dwordx4": 16,
    "dwordx3": 12,
    "dwordx2": 8,
    "dword": 4,
    "ushort": 2,
    "sshort": 2,
    "short": 2,
    "ubyte": 1,
    "sbyte": 1,
}
UNITS = {"v_": "VALU", "s_": "SALU", "ds_": "LDS", "buffer_": "VMEM", "global_": "VMEM", "scratch_": "VMEM"}
CONTROL = ("s_waitcnt", "s_nop", "s_barrier", "s_branch", "s_cbranch", "s_endpgm")


@dataclass(frozen=True)
class Line:
    """One instruction: its name, its operands, and bytes of a lane that it loads."""

    name: str
    operands: str
    loaded: int


def parse(text: str) -> tuple[list[Line], dict[str, int]]:
    """Instructions of the kernel, and the number of the one behind each label.

    Raises:
        ValueError: a load is of a form that is not known.
    """
    lines: list[Line] = []
    labels: dict[str, int] = {}
    for row in text.splitlines():
        code = row.split(";")[0].rstrip()
        if label := re.match(r"(\.LBB\w+):", code):
            labels[label[1]] = len(lines)
        elif match := re.match(r"\s+([a-z]\w+)\s*(.*)", code):
            loaded = 0
            if load := LOAD.match(match[1]):
                kind = load[1].replace("_d16_hi", "").replace("_d16", "").removeprefix("lds_")
                if kind not in BYTES:
                    raise ValueError(f"{match[1]}: how many bytes it loads is not known; add it to BYTES in {__file__}")
                loaded = BYTES[kind]
            lines.append(Line(match[1], match[2], loaded))
            if match[1] == "s_endpgm":
                return lines, labels
    return lines, labels


def main_loop(lines: list[Line], labels: dict[str, int]) -> list[Line]:
    """The loop that loads most for its length; all of the kernel where none loads."""
    loops = []
    for i, line in enumerate(lines):
        start = labels.get(line.operands.strip()) if line.name.startswith(("s_cbranch", "s_branch")) else None
        if start is not None and start <= i:
            loops.append(lines[start : i + 1])
    loading = [loop for loop in loops if any(line.loaded for line in loop)]
    return max(loading, key=lambda loop: sum(line.loaded for line in loop) / len(loop)) if loading else lines


def facts(text: str, waves: int) -> Facts:
    """Of a kernel of which so many waves are resident on a compute unit.

    Raises:
        ValueError: as `parse`.
    """
    lines, labels = parse(text)
    body = main_loop(lines, labels)
    vectors = sum(line.loaded for line in body) / VECTOR_BYTES
    names = Counter(line.name for line in body)
    mix: Counter[str] = Counter()
    for name, count in names.items():
        unit = next((unit for prefix, unit in UNITS.items() if name.startswith(prefix)), "other")
        mix["control" if name.startswith(CONTROL) else unit] += count
    shuffles = sum(count for name, count in names.items() if name.endswith("_dpp") or "permute" in name)
    shuffles += sum(count for name, count in names.items() if "swizzle" in name)
    return Facts(
        instructions=len(body) / vectors,
        mix={name: count / vectors for name, count in mix.items()},
        shuffles=shuffles / vectors,
        barriers=names["s_barrier"] / vectors,
        shared=sum(count for name, count in names.items() if name.startswith(("ds_read", "ds_write"))) / vectors,
        in_flight=asked_ahead(body) * LANES * waves,
        ceiling=None,
        sectors=None,
    )


def asked_ahead(body: list[Line]) -> float:
    """Bytes of a lane's loads on their way when one of them is waited for, on average over two rounds of a loop."""
    under_way: list[int] = []
    seen: list[int] = []
    for line in [*body, *body]:
        if line.loaded or STORE.match(line.name):
            under_way.append(line.loaded)
        elif line.name == "s_waitcnt" and (counter := re.search(r"vmcnt\((\d+)\)", line.operands)):
            arrived = max(0, len(under_way) - int(counter[1]))
            if sum(under_way[:arrived]):
                seen.append(sum(under_way))
            under_way = under_way[arrived:]
    return sum(seen) / len(seen) if seen else 0.0
