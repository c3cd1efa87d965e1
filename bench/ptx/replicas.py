"""Shows that lanes which store to one address store one value, for every shape and every number in the tensors.

Lanes often hold copies of one result and all store it, say of a sum that a butterfly of shuffles left in each of them.
That is harmless as long as the copies agree to the bit. They do where each lane added the same two terms, in whatever
order; they do not where a product was contracted into one lane's side of a sum: `fma(a, b, shuffled(a·b))`.

So a program is executed on symbols: the value of a register in a lane is a term of what was loaded and given. Terms are
equal only if they have the same bits; sums and products commute, whole numbers that are linear are collected. Where
paths meet, lanes stay equal if they are so on both and came the same way; loops are gone through until nothing changes.

Not shown: that terms which differ, as addresses, are different numbers. The machine that executes checks that.
"""

from collections import Counter
from typing import Any

import numpy as np

from bench.ptx import arithmetic
from bench.ptx.arithmetic import Array, as_bits
from bench.ptx.instructions import registers
from bench.ptx.machine import Lanes, Machine, constant, handler
from bench.ptx.memory import WARP, Counts, GlobalMemory, Mask
from bench.ptx.program import Instruction, Operand, Program, parse

Terms = Array
"""The number of each lane's term."""
State = dict[str, Terms]
Linear = tuple[int, dict[int, int]]
"""A constant, and terms with their factors."""

COMMUTE = {"add", "mul", "min", "max", "and", "or", "xor"}
CONTRACTIBLE = {"mul.f32"}
"""Rounded as it pleases ptxas, which may make a product and a sum one `fma`, and choose which product it takes."""
WIDEN = {("cvt", "s64", "s32"), ("cvt", "u64", "u32")}


def disagreements(ptx: str) -> list[str]:
    """The stores of a kernel through which lanes might write different values to one address; none, if all is well.

    Raises:
        KernelError: an instruction is not known.
    """
    return Symbolic(parse(ptx)).explore()


class Symbolic:
    """One program of the grid on symbols. What does not depend on them is computed by the machine."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.thread = np.arange(program.threads)
        self.numbers: dict[tuple[Any, ...], int] = {}
        self.keys: list[tuple[Any, ...]] = []
        self.found: dict[str, None] = {}
        self.time = 0
        self.way = np.zeros(program.threads, np.int64)
        """The same in lanes that take every branch alike."""
        counts = Counts()
        memory, arguments = GlobalMemory([], counts), [0] * len(program.parameters)
        self.machine = Machine(program, (1, 1, 1), arguments, memory, counts, shared_bytes=0, error=0.0)

    def term(self, *key: Any) -> int:
        """The number of a term; those whose value is known are `("is", value)`."""
        if key not in self.numbers:
            self.numbers[key] = len(self.keys)
            self.keys.append(key)
        return self.numbers[key]

    def constant(self, term: int) -> int | None:
        """The value of a term, if it is known."""
        key = self.keys[term]
        return key[1] if key[0] == "is" else None

    def explore(self) -> list[str]:
        """Goes through all paths; what it finds."""
        code, labels = self.program.instructions, self.program.labels
        state: State | None = {}
        arriving: dict[int, State | None] = {}
        heads: dict[int, State] = {}
        step = 0
        while step < len(code):
            state = self.join(step, state, arriving.pop(step, None))
            instruction, step = code[step], step + 1
            if state is None:
                continue
            if step - 1 in labels.values():
                heads[step - 1] = dict(state)
            if instruction.opcode[0] == "bra":
                target = labels[str(instruction.operands[0])]
                ways = np.stack([self.way, self.guard(state, instruction)])
                self.way = np.unique(ways, axis=1, return_inverse=True)[1].reshape(-1)
                if target >= step:
                    arriving[target] = self.join(target, arriving.get(target), dict(state))
                elif not same(joined := self.join(target, heads.get(target), state), heads.get(target)):
                    step, state = target, joined
                    continue
            if instruction.opcode[0] in ("bra", "ret"):
                state = state if instruction.guard else None
            elif instruction.opcode[0] != "bar":
                self.execute(state, instruction)
        return list(self.found)

    def join(self, where: int, one: State | None, other: State | None) -> State | None:
        """Where paths meet, lanes hold one value if they do on both."""
        if one is None or other is None:
            return other if one is None else one
        joined = {}
        for name in one.keys() & other.keys():
            joined[name] = one[name]
            if not np.array_equal(one[name], other[name]):
                _, first, kind = np.unique(
                    np.stack([one[name], other[name], self.way]), axis=1, return_index=True, return_inverse=True
                )
                lanes = first[kind.reshape(-1)]  # each by the first lane that is like it
                joined[name] = np.array([self.term("either", where, name, lanes.tobytes(), lane) for lane in lanes])
        return joined

    def execute(self, state: State, instruction: Instruction) -> None:
        """Anything but a branch."""
        self.time += 1
        handler(instruction.opcode)  # refuses what is not known
        name, target = instruction.opcode[0], instruction.operands[:1]
        guard = self.guard(state, instruction)
        may = np.array([self.constant(term) != 0 for term in guard])
        if name in ("st", "stmatrix", "cp"):
            for address, values, lanes in self.stores(state, instruction, may):
                _, first, group = np.unique(address[lanes], return_index=True, return_inverse=True)
                chosen = values[:, lanes]
                if (chosen != chosen[:, first[group.reshape(-1)]]).any():
                    self.found[str(instruction)] = None
        elif target and "async" not in instruction.opcode:
            names = registers(target[0])
            for register, terms in zip(names, self.results(state, instruction, len(names)), strict=True):
                old = state.get(register, np.full(len(self.thread), self.term("unwritten", register)))
                certain = np.array([self.constant(term) == 1 for term in guard])
                mixed = [
                    new if sure else self.term("guarded", g, new, o) if maybe else o
                    for new, o, g, sure, maybe in zip(terms, old, guard, certain, may, strict=True)
                ]
                state[register] = terms if certain.all() else np.array(mixed)

    def guard(self, state: State, instruction: Instruction) -> Terms:
        """Of each lane what decides whether it takes part."""
        if instruction.guard is None:
            return np.full(len(self.thread), self.term("is", 1))
        terms = self.read(state, instruction.guard.lstrip("!"), "pred")
        return self.map(("not", "pred"), terms) if instruction.guard[0] == "!" else terms

    def read(self, state: State, operand: Operand, kind: str) -> Terms:
        """The terms of a register, or a number."""
        name = str(operand)
        if name in state:
            return state[name]
        if name == "%tid.x":
            return np.array([self.term("is", lane) for lane in self.thread.tolist()])
        if name[0] == "%":
            return np.full(len(self.thread), self.term("unwritten" if name[1:].isalnum() else "special", name))
        return np.full(len(self.thread), self.term("is", signed(constant(name, kind))[0]))

    def results(self, state: State, instruction: Instruction, count: int) -> list[Terms]:
        """The terms that an instruction leaves in each of its registers."""
        name, *_, kind = opcode = instruction.opcode
        if name in ("ld", "ldmatrix"):
            return self.loads(state, instruction, count)
        if name == "shfl":
            return [self.shuffled(state, instruction)]
        source = instruction.operands[1]
        if name == "mov" and count > 1:
            whole = self.read(state, source, kind)
            return [self.map(("part", str(i), str(count)), whole) for i in range(count)]
        if name == "mov" and isinstance(source, tuple):
            return [
                self.map(("pack",), *(self.read(state, part, f"u{int(kind[1:]) // len(source)}") for part in source))
            ]
        kinds = operand_kinds(opcode, len(instruction.operands) - 1)
        operands = [self.read(state, o, k) for o, k in zip(instruction.operands[1:], kinds, strict=True)]
        if kind.endswith("x2") and name != "cvt":
            halves = [[self.map(("part", str(i), "2"), o) for o in operands] for i in (0, 1)]
            return [self.map(("pack",), *(self.map((*opcode[:-1], kind.removesuffix("x2")), *half) for half in halves))]
        return [self.computed(instruction, self.map(opcode, *operands), operands)]

    def computed(self, instruction: Instruction, terms: Terms, operands: list[Terms]) -> Terms:
        """The same with the values of lanes in which all operands are known."""
        constants = [[self.constant(term) for term in operand] for operand in operands]
        known = np.array([None not in values for values in zip(*constants, strict=True)])
        if not known.any():
            return terms
        none = np.zeros(len(self.thread), np.int64)
        lanes = Lanes(none, none, self.thread)
        for operand, values in zip(instruction.operands[1:], constants, strict=True):
            if str(operand)[0] == "%" and str(operand) != "%tid.x":
                numbers = np.array([1 if value is None else value for value in values])
                lanes.registers[str(operand)] = as_bits(numbers, self.program.width(str(operand))), None
        handler(instruction.opcode)(self.machine, lanes, instruction, None)
        result = signed(np.broadcast_to(lanes.registers[str(instruction.operands[0])][0], len(self.thread)))
        return np.array([self.term("is", v) if k else t for v, k, t in zip(result, known, terms, strict=True)])

    def map(self, opcode: tuple[str, ...], *operands: Terms) -> Terms:
        """The terms of an operation, lane by lane."""
        rows, place = np.unique(np.stack(operands), axis=1, return_inverse=True)
        return np.array([self.operation(opcode, *row) for row in rows.T.tolist()])[place.reshape(-1)]

    def operation(self, opcode: tuple[str, ...], *operands: int) -> int:
        """One term from others, in one way where there are several."""
        name, kind = opcode[0], opcode[-1]
        constants = [self.constant(operand) for operand in operands]
        if name == "mov" or opcode in WIDEN:
            return operands[0]
        if name == "part" and self.keys[operands[0]][0] == "pack":
            return int(self.keys[operands[0]][1 + int(opcode[1])])
        if name == "not" and kind == "pred" and constants[0] is not None:
            return self.term("is", 1 - constants[0])
        if name == "selp" and (constants[2] is not None or operands[0] == operands[1]):
            return operands[0] if constants[2] != 0 else operands[1]
        if kind == "pred" and name in ("and", "or") and (0 if name == "and" else 1) in constants:
            return self.term("is", 0 if name == "and" else 1)
        if (kind[0] in "su" and name in ("add", "sub", "mul", "mad", "neg") and "hi" not in opcode) or name == "shl":
            return self.linear(name, *operands)
        products = [operand for operand in operands if self.keys[operand][0] in CONTRACTIBLE]
        if name in COMMUTE and not (name == "add" and "rn" not in opcode and products):
            operands = tuple(sorted(operands))
        elif name == "fma":
            operands = (*sorted(operands[:2]), operands[2])
        return self.term(".".join(opcode), *operands)

    def linear(self, name: str, *operands: int) -> int:
        """Sums and multiples of whole numbers."""
        parts = [self.split(operand) for operand in operands]
        if name in ("mul", "mad", "shl"):
            factor = self.constant(operands[1])
            if factor is None and name != "shl" and self.constant(operands[0]) is not None:
                operands, parts = (operands[1], operands[0], *operands[2:]), [parts[1], parts[0], *parts[2:]]
                factor = self.constant(operands[1])
            if factor is None:
                opaque = self.term(
                    "product" if name != "shl" else name, *(operands[:2] if name == "shl" else sorted(operands[:2]))
                )
                parts = [(0, {opaque: 1}), *parts[2:]]
            else:
                parts = [scaled(parts[0], 1 << factor if name == "shl" else factor), *parts[2:]]
        elif name in ("sub", "neg"):
            parts[-1] = scaled(parts[-1], -1)
        number = sum(part[0] for part in parts)
        factors = Counter[int]()
        for _, terms in parts:
            for term, factor in terms.items():
                factors[term] += factor
        rest = sorted((term, factor) for term, factor in factors.items() if factor)
        if not rest:
            return self.term("is", number)
        return rest[0][0] if (number, len(rest), rest[0][1]) == (0, 1, 1) else self.term("sum", number, *rest)

    def split(self, term: int) -> Linear:
        """A constant, and terms with their factors."""
        key = self.keys[term]
        if key[0] == "is":
            return key[1], {}
        return (key[1], dict(key[2:])) if key[0] == "sum" else (0, {term: 1})

    def address(self, state: State, operand: Operand) -> Terms:
        """In bytes."""
        base, _, offset = str(operand)[1:-1].partition("+")
        terms = self.read(state, base, "s64")
        number = np.full(len(terms), self.term("is", int(offset or "0", 0)))
        return self.map(("add", "s64"), terms, number)

    def loads(self, state: State, instruction: Instruction, count: int) -> list[Terms]:
        """What lies at an address: of tensors always the same, in shared memory what does at the time."""
        name, space = instruction.opcode[:2]
        source = instruction.operands[1]
        if space == "param":
            return [np.full(len(self.thread), self.term("parameter", str(source)))]
        address = self.address(state, source)
        if name == "ld":
            now = 0 if space == "global" else self.time
            return [np.array([self.term("ld", now, i, place) for place in address]) for i in range(count)]
        lane = self.thread % WARP
        results = []
        for i in range(count):
            if "trans" in instruction.opcode:
                halves = [(2 * (lane % 4) + j, lane // 4) for j in (0, 1)]
            else:
                halves = [(lane // 4, 2 * (lane % 4) + j) for j in (0, 1)]
            parts = [
                np.array(
                    [
                        self.term("ld", self.time, c, address[r])
                        for r, c in zip(self.thread - lane + 8 * i + row, column, strict=True)
                    ]
                )
                for row, column in halves
            ]
            results.append(self.map(("pack",), *parts))
        return results

    def shuffled(self, state: State, instruction: Instruction) -> Terms:
        """Another lane's term."""
        _, source, which, *_ = instruction.operands
        terms, numbers = self.read(state, source, "b32"), self.read(state, which, "u32")
        lane = self.thread % WARP
        known = [self.constant(number) for number in numbers]
        if None in known:
            return np.array([self.term("shuffled", self.time, int(t)) for t in self.thread])
        number = np.array(known)
        return terms[self.thread - lane + (lane ^ number if "bfly" in instruction.opcode else number % WARP)]

    def stores(self, state: State, instruction: Instruction, may: Mask) -> list[tuple[Terms, Array, Array]]:
        """Addresses, rows of terms that are stored there, and the lanes that may store."""
        opcode, operands = instruction.opcode, instruction.operands
        if opcode[:2] in (("cp", "async"),) and len(operands) < 3:
            return []
        address = self.address(state, operands[0])
        if opcode[0] == "cp":
            read = [self.address(state, operands[1]), *(self.read(state, size, "u32") for size in operands[3:])]
            return [(address, np.stack(read), may)]
        values = [self.read(state, register, f"u{opcode[-1][1:]}") for register in registers(operands[1])]
        if opcode[0] == "st":
            return [(address, np.stack(values), may)]
        lane = self.thread % WARP
        first, row, column = (self.thread - lane)[:, None], lane[:, None] % 8, np.arange(8)
        if "trans" in opcode:
            row, column = column, row
        halves = [np.stack([self.map(("part", str(i), "2"), value) for i in (0, 1)]) for value in values]
        place = np.broadcast_arrays(column % 2, first + 4 * row + column // 2)
        return [(address, value[*place].T, may & (lane // 8 == i)) for i, value in enumerate(halves)]


def same(one: State | None, other: State | None) -> bool:
    """Whether each register holds the same terms."""
    if one is None or other is None:
        return one is other
    return one.keys() == other.keys() and all(np.array_equal(one[r], other[r]) for r in one)


def signed(bits: Array) -> list[int]:
    """Known values as whole numbers."""
    return [int(v) for v in (bits if bits.dtype == bool else bits.view(f"i{bits.dtype.itemsize}"))]


def scaled(part: Linear, factor: int) -> Linear:
    """A multiple."""
    return part[0] * factor, {term: factor * f for term, f in part[1].items()}


def operand_kinds(opcode: tuple[str, ...], count: int) -> list[str]:
    """The types in which an instruction reads numbers."""
    name, kind = opcode[0], opcode[-1]
    if name == "selp":
        return [kind, kind, "pred"]
    if name in ("shl", "shr"):
        return [kind, "u32"]
    if name == "bfe" or name == "prmt":
        return [kind, *["u32"] * (count - 1)]
    if name == "mad" and "wide" in opcode:
        return [kind, kind, arithmetic.double(kind)]
    return [kind] * count
