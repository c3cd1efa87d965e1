"""Machine code of NVIDIA GPUs (SASS): instructions, operands and the control codes that order them.

Since Volta an instruction has 128 bits, and the uppermost hold what the hardware is told instead of finding it out: how
many cycles to wait before the next instruction, which of six scoreboards a result or a read operand releases, and
which must be free before it is issued. The layout is that of Jia et al., "Dissecting the NVIDIA Volta GPU Architecture
via Microbenchmarking" (2018), section 2.1; it has stayed since.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from triton import knobs

SCOREBOARDS = 6
NO_SCOREBOARD = 7


@dataclass(frozen=True)
class Operand:
    """One operand, taken apart.

    Attributes:
        kind: "register", "predicate", "number", "constant", "memory" or "other".
        name: of the register or predicate ("R4", "UR4", "P0", "UP0"; zeros and truths are "RZ", "URZ", "PT", "UPT").
        value: the number; of a constant and of memory the offset.
        minus: it is negated: arithmetically, or, of a predicate, logically.
        invert: its bits are (~).
        bank: of a constant.
        parts: of memory, the registers whose sum is the address, with how to read them ("", "64", "U32", "X8").
    """

    kind: str
    name: str = ""
    value: int = 0
    minus: bool = False
    invert: bool = False
    bank: int = 0
    parts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        guard: the predicate under which it acts.
        opcode: its parts, such as ("LDG", "E", "128").
        operands: in order; what is written comes first.
        stall: cycles until the next instruction of the warp may be issued.
        write: the scoreboard that its result releases, `NO_SCOREBOARD` if none.
        read: the scoreboard that is released once its operands are read.
        wait: a mask of the scoreboards that must be free before it is issued.
        text: as the disassembler prints it.
    """

    guard: Operand | None
    opcode: tuple[str, ...]
    operands: tuple[Operand, ...]
    stall: int
    write: int
    read: int
    wait: int
    text: str

    @property
    def name(self) -> str:
        """The first part of the opcode."""
        return self.opcode[0]

    @property
    def access_bytes(self) -> int:
        """What one lane loads or stores."""
        for part in self.opcode[1:]:
            if part in ACCESS_BYTES:
                return ACCESS_BYTES[part]
        return 4


ACCESS_BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}


@dataclass(frozen=True)
class Program:
    """A kernel.

    Attributes:
        instructions: in order.
        labels: the number of the instruction behind each label.
        parameters: where the kernel's parameters start in constant bank 0.
        offsets: of each parameter from there, in order.
    """

    instructions: tuple[Instruction, ...]
    labels: dict[str, int] = field(default_factory=dict)
    parameters: int = 0
    offsets: tuple[int, ...] = ()


@cache
def read(cubin: bytes) -> Program:
    """The kernel in a cubin, by the disassemblers that Triton's wheel carries.

    Raises:
        ValueError: they print something else than expected.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        text = printed(knobs.nvidia.nvdisasm.path, "-c", "-hex", str(path))
        information = printed(knobs.nvidia.cuobjdump.path, "-elf", str(path))
    bank = re.search(r"EIATTR_PARAM_CBANK\s+Format:\s+EIFMT_SVAL\s+Value:\s+0x\w+ 0x(\w+)", information)
    offsets = re.findall(r"Ordinal\s*:\s*0x(\w+)\s+Offset\s*:\s*0x(\w+)", information)
    if bank is None or not offsets:
        raise ValueError("cuobjdump -elf: no parameters of the kernel are told where they were expected")
    found = {int(ordinal, 16): int(offset, 16) for ordinal, offset in offsets}
    instructions, labels = parse(text)
    start = int(bank[1], 16) & 0xFFFF
    return Program(instructions, labels, start, tuple(found[i] for i in range(len(found))))


def printed(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


LINE = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@(!?)(U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;\s*/\* 0x[0-9a-f]{16} \*/")
CONTROL = re.compile(r"\s*/\* 0x([0-9a-f]{16}) \*/")
LABEL = re.compile(r"(\.L_\w+):")


def parse(text: str) -> tuple[tuple[Instruction, ...], dict[str, int]]:
    """Instructions and labels from what `nvdisasm -c -hex` prints."""
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    lines = iter(text.splitlines())
    for line in lines:
        if label := LABEL.match(line):
            labels[label[1]] = len(found)
        elif match := LINE.match(line):
            control = CONTROL.match(next(lines))
            if control is None:
                raise ValueError(f"nvdisasm: no control code follows {line.strip()!r}")
            negated, guard, opcode, operands = match.groups()
            bits = int(control[1], 16) >> 41
            found.append(
                Instruction(
                    Operand("predicate", guard, minus=bool(negated)) if guard else None,
                    tuple(opcode.split(".")),
                    tuple(operand(part) for part in split(operands)),
                    stall=bits & 15, write=bits >> 5 & 7, read=bits >> 8 & 7, wait=bits >> 11 & 63,
                    text=" ".join(f"{opcode} {operands}".split()),
                )
            )  # fmt: skip
    return tuple(found), labels


def split(operands: str) -> list[str]:
    """At commas; in some instructions a space alone separates them."""
    return [part for piece in operands.split(",") for part in piece.split() if part]


CONSTANT = re.compile(r"c\[(\w+)\]\[(?:(U?R\w+)\+?)?(-?0x\w+)?\]|cx\[(\w+)\]\[(\w+)\]")
REGISTER = re.compile(r"(U?R(?:Z|\d+))((?:\.\w+)*)")
PREDICATE = re.compile(r"U?P(?:T|\d)")
MEMORY = re.compile(r"(?:desc\[\w+\])?(?:c\[\w+\])?\[(.*)\]")


@cache
def operand(text: str) -> Operand:
    """One operand from its text."""
    sign, body = re.fullmatch(r"([-!~+]?)(.*)", text).groups()  # type: ignore[union-attr]  # matches anything
    minus, invert = sign in ("-", "!"), sign == "~"
    body = body.strip("|")
    if PREDICATE.fullmatch(body):
        return Operand("predicate", body, minus=minus)
    if match := REGISTER.fullmatch(body):
        return Operand("register", match[1], minus=minus, invert=invert)
    if match := CONSTANT.fullmatch(body):
        if match[2] or match[4]:
            return Operand("constant", match[2] or match[5], int(match[3] or "0", 0), minus, invert, bank=-1)
        return Operand("constant", "", int(match[3], 0), minus, invert, bank=int(match[1], 0))
    if re.fullmatch(r"0x[0-9a-f]+", body):
        value = int(body, 0)
        return Operand("number", value=(-value if minus else value) & 0xFFFFFFFF, invert=invert)
    if match := MEMORY.fullmatch(body):
        parts, offset = [], 0
        for part in re.findall(r"[-+]?[^-+]+", match[1].replace("+-", "-")):
            if register := REGISTER.fullmatch(part.lstrip("+")):
                parts.append((register[1], register[2].replace(".reuse", "").lstrip(".")))
            else:
                offset += int(part, 0)
        return Operand("memory", value=offset, parts=tuple(parts))
    return Operand("other", body, minus=minus)
