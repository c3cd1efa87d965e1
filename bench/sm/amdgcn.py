"""What AMD's machine code shows of a kernel without a model: instructions of its main loop, bytes asked for ahead.

Read from the assembly that LLVM prints. Which tensor a load is of is told by its address, which is followed through the
registers from the kernel's arguments. The counter `vmcnt` says how many operations on memory, the latest, may still be
on their way ("AMD Instinct MI300 Instruction Set Architecture", section 4.4).
"""

import re
from collections import Counter
from dataclasses import dataclass, replace

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
NO_RESULT = ("s_cmp", "s_bitcmp", "ds_write", "buffer_store", "global_store", "s_cbranch", "s_branch", "s_waitcnt")
REGISTERS = re.compile(r"\b([sv])(?:\[(\d+):(\d+)\]|(\d+)\b)")
ARGUMENT = re.compile(r"\.offset: +(\d+)\n(?: +\.\w+:.*\n)*? +\.value_kind: +(\w+)")
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


def registers(operands: str) -> list[list[str]]:
    """Of each operand those that it names."""
    found: list[list[str]] = []
    for operand in operands.split(","):
        match = REGISTERS.search(operand)
        if match is None:
            found.append([])
        else:
            first, last = (int(match[4] or match[i]) for i in (2, 3))
            found.append([f"{match[1]}{i}" for i in range(first, last + 1)])
    return found


def origins(lines: list[Line], pointers: dict[int, str]) -> list[set[str]]:
    """The tensors that the address of each instruction, if it loads, leads to.

    Args:
        lines: the kernel, followed twice as it stands, for what loops carry over.
        pointers: names of the arguments that are tensors, by their offsets.
    """
    behind: dict[str, set[str]] = {}
    found: list[set[str]] = []
    for line in [*lines, *lines]:
        written, *read = registers(line.operands) or [[]]
        address = [register for operand in read for register in operand]
        if line.name.startswith("buffer_"):
            address = next((operand[:2] for operand in read if operand and operand[0].startswith("s")), [])
        leads = set[str]().union(*(behind.get(register, set()) for register in address))
        found.append(leads)
        if line.name.startswith("s_load_dword"):
            offset = int(line.operands.split(",")[-1].strip(), 0)
            for i, register in enumerate(written):
                name = pointers.get((offset + 4 * i) // 8 * 8)
                behind[register] = {name} if name else set()
        elif not line.name.startswith(NO_RESULT):
            for register in written:
                behind[register] = set() if line.loaded else leads
    return found[len(lines) :]


def main_loop(lines: list[Line], labels: dict[str, int]) -> list[Line]:
    """The loop that loads most for its length; all of the kernel where none loads."""
    loops = []
    for i, line in enumerate(lines):
        start = labels.get(line.operands.strip()) if line.name.startswith(("s_cbranch", "s_branch")) else None
        if start is not None and start <= i:
            loops.append(lines[start : i + 1])
    loading = [loop for loop in loops if any(line.loaded for line in loop)]
    return max(loading, key=lambda loop: sum(line.loaded for line in loop) / len(loop)) if loading else lines


def facts(text: str, waves: int, arguments: list[str], large: set[str]) -> Facts | None:
    """Of a kernel of which so many waves are resident on a compute unit; None where it loads no large tensor.

    Args:
        text: its assembly.
        waves: resident ones.
        arguments: names of all, in order.
        large: those whose loads count.

    Raises:
        ValueError: as `parse`, or a load leads to no tensor or to several.
    """
    lines, labels = parse(text)
    told = ARGUMENT.findall(text[text.index(".args:") :])
    pairs = zip(told, arguments, strict=False)  # Triton's own follow
    pointers = {int(offset): name for (offset, kind), name in pairs if kind == "global_buffer"}
    for i, (line, leads) in enumerate(zip(lines, origins(lines, pointers), strict=True)):
        if line.loaded and len(leads) != 1:
            raise ValueError(f"{line.name} {line.operands}: it leads to {sorted(leads)}, expected one tensor")
        if not leads & large:
            lines[i] = replace(line, loaded=0)
    if not any(line.loaded for line in lines):
        return None
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
        passes=None,
        in_flight=asked_ahead(body) * LANES * waves,
        ceiling=None,
        sectors=None,
    )


def asked_ahead(body: list[Line]) -> float:
    """Bytes of a lane's loads on their way when one of them is waited for, on average over two rounds of a loop."""
    under_way: list[int] = []
    seen: list[int] = []
    for line in [*body, *body]:
        if line.loaded or STORE.match(line.name) or LOAD.match(line.name):
            under_way.append(line.loaded)
        elif line.name == "s_waitcnt" and (counter := re.search(r"vmcnt\((\d+)\)", line.operands)):
            arrived = max(0, len(under_way) - int(counter[1]))
            if sum(under_way[:arrived]):
                seen.append(sum(under_way))
            under_way = under_way[arrived:]
    return sum(seen) / len(seen) if seen else 0.0
