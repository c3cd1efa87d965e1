"""PTX text as instructions."""

import re
from dataclasses import dataclass
from functools import cache

Operand = str | tuple[str, ...]


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        guard: the predicate register before it, `!` before that where it is negated, or None.
        opcode: its parts between dots, such as `("ld", "global", "v4", "b32")`.
        operands: registers, constants and names; vectors as tuples, addresses as `[base+offset]`.
        text: as it stands.
        source: file and line of the kernel that it was compiled from.
    """

    guard: str | None
    opcode: tuple[str, ...]
    operands: tuple[Operand, ...]
    text: str
    source: str

    def __str__(self) -> str:
        return f"{self.text} ({self.source})"


@dataclass(frozen=True)
class Program:
    """One kernel.

    Attributes:
        name: of the kernel.
        parameters: types and names, in order.
        threads: of one program of the grid.
        instructions: in order.
        labels: where each label points to.
        widths: bits of the registers by the letters before their number; predicates have 1.
    """

    name: str
    parameters: tuple[tuple[str, str], ...]
    threads: int
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    widths: dict[str, int]

    def width(self, register: str) -> int:
        """Bits of a register."""
        return self.widths[register.rstrip("0123456789")]


@cache
def parse(ptx: str) -> Program:
    """The one kernel of a module.

    Raises:
        ValueError: the text holds no kernel, or several.
    """
    entries = re.findall(r"\.entry (\w+)\(", ptx)
    if len(entries) != 1:
        raise ValueError(f"PTX: got {len(entries)} kernels, expected one")
    head, _, rest = ptx.partition(".reqntid")
    threads, _, body = rest.partition("{")
    body = HALF_OF_A_PAIR.sub(lambda found: found[1].replace("tmp", "_"), body)
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    source = "?"
    for line in (line.strip() for line in body.splitlines()):
        code, _, comment = line.partition("//")
        if line == "}":
            break
        if code.startswith(".loc"):
            source = comment.split()[0]
        elif label := re.match(r"(\$\w+):", code):
            labels[label[1]] = len(instructions)
        elif code and not code.startswith("."):
            instructions += [instruction(part, source) for part in code.split(";") if part.strip()]
    return Program(
        name=entries[0],
        parameters=tuple(re.findall(r"\.param \.(\w+)[^\n]*?(\w+_param_\d+)", head)),
        threads=int(re.findall(r"\d+", threads)[0]),
        instructions=tuple(instructions),
        labels=labels,
        widths={name: 1 if kind == "pred" else int(kind[1:]) for kind, name in DECLARATIONS.findall(body)},
    )


# As LLVM takes one half of 64 bits.
HALF_OF_A_PAIR = re.compile(r"\{ \.reg \.b32 tmp; (mov\.b64 \{[^}]*\}, [^;]+;) \}")
DECLARATIONS = re.compile(r"\.reg \.(pred|[bfsu]\d+)\s+(%\w+)<")
PARTS = re.compile(r"(?:@(!?%\w+)\s+)?(\S+)\s*(.*)")
UNSIGNED = re.compile(r"\b(0[xX][\da-fA-F]+|\d+)U\b")  # PTX ISA, "Integer Constants"
OPERANDS = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")


def instruction(text: str, source: str) -> Instruction:
    """One instruction from its text, without the semicolon."""
    text = " ".join(text.split())
    guard, opcode, operands = PARTS.fullmatch(text).groups()  # type: ignore[union-attr]  # matches whatever is not empty
    return Instruction(guard, tuple(opcode.split(".")), tuple(map(operand, OPERANDS.findall(operands))), text, source)


def operand(text: str) -> Operand:
    """Vectors are taken apart; spaces within addresses are left out, and the U of an unsigned constant."""
    if text.startswith("{"):
        return tuple(part.strip() for part in text[1:-1].split(","))
    return UNSIGNED.sub(r"\1", text.replace(" ", ""))
