"""What SASS computes where it decides branches and addresses: integers, bits and predicates, for all lanes at once.

NVIDIA publishes names of SASS instructions ("CUDA Binary Utilities"), not their meaning; it is known from PTX that
compiles to them one for one. A test executes kernels both ways and compares every access. Where a value is not
known, because it was loaded or is a number that decides nothing here, so is everything computed from it.
"""

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bench.sm.sass import Instruction, Operand
from bench.sm.values import MASK, MAYBE, TRUE, UNKNOWN, Array, Values, applied, signed, truth


def outputs(instruction: Instruction) -> tuple[list[Operand], Operand | None, list[Operand]]:
    """Predicates and register that are written, and what is read. A second predicate mostly is the first's opposite."""
    written: list[Operand] = []
    register, rest = None, list(instruction.operands)
    comparison = "SETP" in instruction.name or "PLOP3" in instruction.name
    while rest:
        if rest[0].kind == "predicate" and not (comparison and len(written) == 2):
            written.append(rest.pop(0))
        elif rest[0].kind == "register" and register is None and not comparison:
            register = rest.pop(0)
        else:
            break
    return written, register, rest


Handler = Callable[[Values, Instruction], None]


def evaluate(values: Values, instruction: Instruction) -> None:
    """Writes what an instruction computes, or that it is not known."""
    name = instruction.name
    handler = HANDLERS.get(name) or HANDLERS.get(name.removeprefix("U"))
    if handler is None:
        unknown(values, instruction)
    else:
        handler(values, instruction)


def unknown(values: Values, instruction: Instruction) -> None:
    """Nothing can be said of its results."""
    predicates, register, _ = outputs(instruction)
    for predicate in predicates:
        values.set_predicate(predicate, MAYBE)
    if register is not None:
        values.set(register, *[UNKNOWN] * result_words(instruction))


def result_words(instruction: Instruction) -> int:
    """Registers that an instruction writes."""
    name, parts = instruction.name, instruction.opcode
    if "MMA" in name and name != "HFMA2":
        return 4 if "F32" in parts or name == "IMMA" else 2
    if name in ("LDSM", "LDMATRIX"):
        return int(parts[-1]) if parts[-1] in ("2", "4") else 1
    if name in ("FADD2", "FMUL2", "FFMA2", "DADD", "DMUL", "DFMA", "DMNMX") or parts[1:2] == ("F64",):
        return 2
    return max(1, instruction.access_bytes // 4)


def sources(values: Values, instruction: Instruction) -> list[Array]:
    """The values of the registers, numbers and constants that are read."""
    return [values.value(o) for o in outputs(instruction)[2] if o.kind in ("register", "number", "constant")]


def trailing(values: Values, instruction: Instruction) -> list[Array]:
    """The predicates that are read."""
    return [values.predicate(o) for o in outputs(instruction)[2] if o.kind == "predicate"]


def write(values: Values, instruction: Instruction, *words: Array) -> None:
    """The result; no predicate goes with it that anything here needs to know."""
    predicates, register, _ = outputs(instruction)
    for predicate in predicates:
        values.set_predicate(predicate, MAYBE)
    if register is not None:
        values.set(register, *words)


def plain(function: Callable[..., Array]) -> Handler:
    """An instruction whose result is a function of its operands."""

    def handler(values: Values, instruction: Instruction) -> None:
        write(values, instruction, applied(function, *sources(values, instruction)))

    return handler


def add(values: Values, instruction: Instruction) -> None:
    """IADD3: a sum of three, with carries in (X) and out."""
    predicates, register, read = outputs(instruction)
    total: Array = np.array([0])
    known = np.array([True])
    for operand in (o for o in read if o.kind != "predicate"):
        value = values.value(Operand(operand.kind, operand.name, operand.value, bank=operand.bank))
        known = known & (value >= 0)
        if operand.minus and operand.kind != "number":
            value = (~value & MASK) + 1
        elif operand.invert:
            value = ~value & MASK
        total = total + value
    if "X" in instruction.opcode:
        for carry in map(truth, trailing(values, instruction)):
            known = known & (carry >= 0)
            total = total + carry
    for least, predicate in enumerate(predicates, 1):
        values.set_predicate(predicate, np.where(known, TRUE * (total >> 32 >= least), MAYBE))
    if register is not None:
        values.set(register, np.where(known, total & MASK, -1))


def multiply(values: Values, instruction: Instruction) -> None:
    """IMAD: a·b + c; the low word of that, with a carry (X), the high one (HI), or both (WIDE)."""
    parts = instruction.opcode
    written, register, read = outputs(instruction)
    a, b, c = (operand for operand in read if operand.kind != "predicate")
    carries = [truth(carry) for carry in trailing(values, instruction)] if "X" in parts else []
    if not {"WIDE", "HI"} & set(parts):
        total = applied(lambda a, b, c, *x: a * b + c + sum(x), *map(values.value, (a, b, c)), *carries)
        return write(values, instruction, total)
    factors, addend = [values.value(a), values.value(b)], [*values.wide(c), *carries]
    known = np.logical_and.reduce(np.broadcast_arrays(*(part >= 0 for part in (*factors, *addend))))
    first, second = factors if "U32" in parts else map(signed, factors)
    low, high, *carry = (part.astype(np.uint64) for part in addend)
    product = first.astype(np.uint64) * second.astype(np.uint64)  # of the same bits, signed or not
    total = product + ((high << np.uint64(32)) | low) + sum(carry)
    for predicate in written:
        values.set_predicate(predicate, np.where(known, TRUE * (total < product), MAYBE))
    words = [(total >> np.uint64(shift) & np.uint64(MASK)).astype(np.int64) for shift in (0, 32)]
    if register is not None:
        values.set(register, *(np.where(known, word, -1) for word in (words[1:] if "HI" in parts else words)))
    return None


def lea(values: Values, instruction: Instruction) -> None:
    """LEA: a shifted and b added; HI: of 64 bits, whose upper word is c (SX32: a's sign), the upper result."""
    parts = instruction.opcode
    predicates, register, read = outputs(instruction)
    carry = [truth(values.predicate(o)) for o in read if o.kind == "predicate"] if "X" in parts else []
    *operands, shift = [o for o in read if o.kind != "predicate"]
    a, b, *c = map(values.value, operands)
    known = (a >= 0) & (b >= 0)
    for other in (*c, *carry):
        known = known & (other >= 0)
    if "HI" in parts:
        upper = (signed(a) >> 31) if "SX32" in parts else c[0] if c else np.array([0])
        total = ((((upper << 32) | a) << shift.value) >> 32 & MASK) + b + (carry[0] if carry else 0)
    else:
        total = (a << shift.value & MASK) + b
    for predicate in predicates:
        values.set_predicate(predicate, np.where(known, TRUE * (total >> 32 > 0), MAYBE))
    if register is not None:
        values.set(register, np.where(known, total & MASK, -1))


def shift(values: Values, instruction: Instruction) -> None:
    """SHF: the pair (c, a), shifted; its low or its high (HI) word."""
    parts = instruction.opcode

    def shifted(a: Array, amount: Array, c: Array) -> Array:
        amount = amount & 31 if "W" in parts else np.minimum(amount, 63)
        pair = ((signed(c) if "S32" in parts or "S64" in parts else c) << 32) | a
        if "L" in parts:
            return (pair << amount) >> 32 if "HI" in parts else pair << amount
        if not ("S32" in parts or "S64" in parts):
            pair = (pair.astype(np.uint64) >> amount.astype(np.uint64)).astype(np.int64)
        else:
            pair = pair >> amount
        return pair >> 32 if "HI" in parts else pair

    write(values, instruction, applied(shifted, *sources(values, instruction)))


def logic(values: Values, instruction: Instruction) -> None:
    """LOP3: any function of three bits, by its table."""
    a, b, c, table = sources(values, instruction)
    written, register, _ = outputs(instruction)
    lut = int(table[0])

    def function(a: Array, b: Array, c: Array) -> Array:
        result = np.zeros_like(a | b | c)
        for i in range(8):
            if lut >> i & 1:
                result |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        return result

    result = applied(function, a, b, c)
    for predicate in written:
        values.set_predicate(predicate, np.where(result < 0, MAYBE, TRUE * (result > 0)))
    if register is not None:
        values.set(register, result)


def predicate_logic(values: Values, instruction: Instruction) -> None:
    """PLOP3: the same of predicates, twice."""
    written, _, read = outputs(instruction)
    a, b, c = (values.predicate(o) for o in read if o.kind == "predicate")
    tables = [o.value for o in read if o.kind == "number"]
    for predicate, table in zip(written, tables, strict=False):
        index = a // TRUE * 4 + b // TRUE * 2 + c // TRUE
        known = (a != MAYBE) & (b != MAYBE) & (c != MAYBE)
        values.set_predicate(predicate, np.where(known, TRUE * (table >> index & 1), MAYBE))


COMPARISONS: dict[str, Callable[[Array, Array], NDArray[np.bool_]]] = {
    "EQ": np.equal, "NE": np.not_equal, "LT": np.less, "LE": np.less_equal, "GT": np.greater, "GE": np.greater_equal,
}  # fmt: skip


def compare(values: Values, instruction: Instruction) -> None:
    """ISETP: a comparison, and another predicate with it; EX: of upper words, whose lower ones are compared."""
    _, how, *parts = instruction.opcode
    (first, second), _, read = outputs(instruction)
    a, b = (values.value(o) for o in read[:2])
    known = (a >= 0) & (b >= 0)
    if "U32" not in parts:
        a, b = signed(a), signed(b)
    given, *lower = (values.predicate(o) for o in read[2:])
    result = np.where(known, TRUE * COMPARISONS[how](a, b), MAYBE)
    if "EX" in parts:
        result = np.where(known & (a == b), lower[0], result)
    for predicate, one in ((first, result), (second, TRUE - result)):
        both = np.minimum(one, given) if "AND" in parts else np.maximum(one, given) if "OR" in parts else MAYBE
        values.set_predicate(predicate, both)


def select(values: Values, instruction: Instruction) -> None:
    """SEL: a where the predicate holds, else b."""
    (a, b), (condition,) = sources(values, instruction), trailing(values, instruction)
    write(values, instruction, np.where(condition == MAYBE, -1, np.where(condition == TRUE, a, b)))


def extreme(values: Values, instruction: Instruction) -> None:
    """IMNMX, VIMNMX: the lower if the predicate holds, else the higher; VIADDMNMX: of a + b and c."""
    unsigned, lower = "U32" in instruction.opcode, trailing(values, instruction)[-1]

    def function(*operands: Array) -> Array:
        *sums, last = operands
        pair: list[Array] = [functools.reduce(np.add, sums) & MASK, last]
        a, b = pair if unsigned else (signed(one) for one in pair)
        return np.where(lower == TRUE, np.minimum(a, b), np.maximum(a, b))

    result = applied(function, *sources(values, instruction))
    write(values, instruction, np.where(lower == MAYBE, -1, result))


def permute(a: Array, selector: Array, c: Array) -> Array:
    """PRMT: four bytes of eight; the selector's eighth bit spreads a byte's sign instead."""
    pair, result = (c << 32) | a, np.zeros_like(a | selector | c)
    for i in range(4):
        chosen = selector >> 4 * i & 15
        byte = pair >> 8 * (chosen & 7) & 255
        result |= np.where(chosen & 8, -(byte >> 7) & 255, byte) << 8 * i
    return result


def extend(values: Values, instruction: Instruction) -> None:
    """SGXT: the lowest bits, with their sign or without."""

    def function(a: Array, bits: Array) -> Array:
        bits = np.clip(bits, 1, 32)
        low = a & ((1 << bits) - 1)
        return low if "U32" in instruction.opcode else low - ((low >> (bits - 1) & 1) << bits)

    write(values, instruction, applied(function, *sources(values, instruction)))


def pack_predicates(values: Values, instruction: Instruction) -> None:
    """P2R: predicates as bits, where the mask has them."""
    a, mask = sources(values, instruction)
    bits: Array = np.array([0])
    for i in range(7):
        one = truth(values.predicate(Operand("predicate", f"P{i}")))
        bits = np.where((one < 0) & (mask >> i & 1 == 1), -1, bits | (np.maximum(one, 0) << i))
    write(values, instruction, applied(lambda a, mask, bits: (a & ~mask) | (bits & mask), a, mask, bits))


def unpack_predicates(values: Values, instruction: Instruction) -> None:
    """R2P: the reverse."""
    a, mask = (values.value(o) for o in instruction.operands if o.kind in ("register", "number"))
    for i in range(7):
        if int(mask[0]) >> i & 1:
            bit = np.where(a < 0, MAYBE, TRUE * (a >> i & 1))
            values.set_predicate(Operand("predicate", f"P{i}"), bit)


def read_special(values: Values, instruction: Instruction) -> None:
    """S2R, CS2R: a special register; CS2R writes two."""
    source = instruction.operands[1].name
    value = np.array([0]) if source == "SRZ" else values.special.get(source, UNKNOWN)
    pair = instruction.name == "CS2R" and "32" not in instruction.opcode
    write(values, instruction, *([value, np.array([0]) if source == "SRZ" else UNKNOWN] if pair else [value]))


def read_constant(values: Values, instruction: Instruction) -> None:
    """LDC: one word of constant memory or several."""
    operand = instruction.operands[1]
    write(values, instruction, *(values.value(operand, i) for i in range(result_words(instruction))))


def move(values: Values, instruction: Instruction) -> None:
    """MOV, R2UR; 64: a pair."""
    operand = next(o for o in outputs(instruction)[2] if o.kind in ("register", "number", "constant"))
    words = values.wide(operand) if "64" in instruction.opcode else (values.value(operand),)
    write(values, instruction, *words)


def half_constant(values: Values, instruction: Instruction) -> None:
    """HFMA2 with zeros: how the compiler writes a number that fits two halves."""
    operands = instruction.operands
    if len(operands) == 5 and operands[1].name == operands[2].name == "RZ":
        halves = [0 if o.kind != "other" else int(np.float16(o.name).view(np.uint16)) for o in operands[3:]]
        if all(o.kind == "other" for o in operands[3:]):
            signs = [0x8000 * o.minus for o in operands[3:]]
            bits = ((halves[0] | signs[0]) << 16) | halves[1] | signs[1]
            return write(values, instruction, np.array([bits]))
    return unknown(values, instruction)


def floats(function: Callable[[Array], NDArray[np.float64]]) -> Handler:
    """An instruction of the quotient of two integers: from a whole number, or a float32, to a float32."""

    def handler(values: Values, instruction: Instruction) -> None:
        def bits(a: Array) -> Array:
            wanted = function(a)
            near = wanted.astype(np.float32)
            if "RP" in instruction.opcode:
                near = np.where(near < wanted, np.nextafter(near, np.float32(np.inf)), near)
            return near.astype(np.float32).view(np.uint32).astype(np.int64)

        write(values, instruction, applied(bits, *sources(values, instruction)))

    return handler


def as_float(bits: Array) -> NDArray[np.float64]:
    """What the bits of a float32 mean."""
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def reciprocal(values: Values, instruction: Instruction) -> None:
    """MUFU.RCP, within a float32's rounding; other functions are not needed."""
    if instruction.opcode != ("MUFU", "RCP"):
        return unknown(values, instruction)
    with np.errstate(all="ignore"):
        return floats(lambda a: np.reciprocal(as_float(a)))(values, instruction)


def whole(values: Values, instruction: Instruction) -> None:
    """F2I of unsigned numbers, truncated."""
    if "U32" not in instruction.opcode or "TRUNC" not in instruction.opcode:
        return unknown(values, instruction)

    def function(a: Array) -> Array:
        return np.clip(np.nan_to_num(np.trunc(as_float(a))), 0, MASK).astype(np.int64)

    return write(values, instruction, applied(function, *sources(values, instruction)))


def from_integer(values: Values, instruction: Instruction) -> None:
    """I2F, I2FP of 32 bits to a float32."""
    parts = instruction.opcode
    if "F64" in parts or "F16" in parts:
        return unknown(values, instruction)
    unsigned = "U32" in parts
    return floats(lambda a: (a if unsigned else signed(a)).astype(np.float64))(values, instruction)


HANDLERS: dict[str, Handler] = {
    "IADD3": add, "VIADD": plain(lambda a, b: a + b), "IMAD": multiply, "LEA": lea, "SHF": shift,
    "LOP3": logic, "PLOP3": predicate_logic, "ISETP": compare, "SEL": select, "SGXT": extend, "PRMT": plain(permute),
    "IMNMX": extreme, "VIMNMX": extreme, "VIADDMNMX": extreme, "IABS": plain(lambda a: np.abs(signed(a))),
    "MOV": move, "R2UR": move, "LDC": read_constant, "LDCU": read_constant, "ULDC": read_constant,
    "S2R": read_special, "S2UR": read_special, "CS2R": read_special, "P2R": pack_predicates, "R2P": unpack_predicates,
    "HFMA2": half_constant, "I2F": from_integer, "I2FP": from_integer, "MUFU": reciprocal, "F2I": whole,
}  # fmt: skip
