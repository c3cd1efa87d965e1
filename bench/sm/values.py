"""Registers and predicates of lanes whose values are known or not.

A register's value that is not known is −1; known ones are bits, from 0 to 2³² − 1. Predicates are FALSE, MAYBE or TRUE.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bench.sm.sass import Operand

Array = NDArray[np.int64]

MASK = 0xFFFFFFFF
UNKNOWN = np.array([-1])  # of registers, whose known values lie in 0 … 2³² − 1
FALSE, MAYBE, TRUE = range(3)  # of predicates: so "and" is the minimum, "or" the maximum


@dataclass
class Values:
    """Registers and predicates of some lanes; an array of one element stands for all.

    Attributes:
        constants: 32-bit words of constant bank 0, by their offset.
        special: what S2R reads, by name.
        registers: by name.
        predicates: by name.
        mask: the lanes that write.
    """

    constants: dict[int, int]
    special: dict[str, Array]
    registers: dict[str, Array] = field(default_factory=dict)
    predicates: dict[str, Array] = field(default_factory=dict)
    mask: NDArray[np.bool_] | None = None

    def value(self, operand: Operand, above: int = 0) -> Array:
        """Bits of a 32-bit operand, or of the register or word `above` it."""
        if operand.kind == "register":
            result = self.register(operand.name, above)
        elif operand.kind == "number":
            result = np.array([operand.value if not above else 0])
        elif operand.kind == "constant" and operand.bank == 0:
            result = np.array([self.constants.get(operand.value + 4 * above, -1)])
        else:
            result = UNKNOWN
        if operand.invert or (operand.minus and operand.kind != "number"):
            result = applied(lambda a: ~a if operand.invert else -a, result)
        return result

    def wide(self, operand: Operand) -> tuple[Array, Array]:
        """The low and the high word of a 64-bit operand; numbers are sign-extended."""
        if operand.kind == "number":
            return np.array([operand.value]), np.array([MASK if operand.value >> 31 else 0])
        return self.value(operand), self.value(operand, 1)

    def register(self, name: str, above: int = 0) -> Array:
        """Its bits."""
        if name.endswith("Z"):
            return np.array([0])
        kind, number = name.rstrip("0123456789"), int(name.lstrip("LUR"))
        return self.registers.get(f"{kind}{number + above}", UNKNOWN)

    def predicate(self, operand: Operand) -> Array:
        """FALSE, MAYBE or TRUE."""
        always = operand.name.endswith("T")
        result = np.array([TRUE]) if always else self.predicates.get(operand.name, np.array([MAYBE]))
        return TRUE - result if operand.minus else result

    def set(self, operand: Operand, *words: Array) -> None:
        """Writes a register, and those above it."""
        if operand.name.endswith("Z"):
            return
        kind, number = operand.name.rstrip("0123456789"), int(operand.name.lstrip("LUR"))
        for i, word in enumerate(words):
            name = f"{kind}{number + i}"
            self.registers[name] = self.merged(word, self.registers.get(name, UNKNOWN))

    def set_predicate(self, operand: Operand, value: Array | int) -> None:
        """Writes a predicate."""
        if not operand.name.endswith("T"):
            old = self.predicates.get(operand.name, np.array([MAYBE]))
            self.predicates[operand.name] = self.merged(np.atleast_1d(value), old)

    def merged(self, new: Array, old: Array) -> Array:
        """The old value in lanes that do not write."""
        return new if self.mask is None else np.where(self.mask, new, old)

    def address(self, operand: Operand) -> Array:
        """The bytes that an operand in brackets points to; negative where they are not known."""
        total, known = np.array([operand.value]), np.array([True])
        for name, how in operand.parts:
            low = self.register(name)
            known = known & (low >= 0)
            if "64" in how or (name.startswith("U") and len(operand.parts) > 1 and "64" in operand.parts[0][1]):
                high = self.register(name, 1)
                known = known & (high >= 0)
                low = low + (signed(high) << 32)
            elif how.startswith("X"):
                low = low * int(how[1:])
            total = total + low
        return np.where(known, total, -1)


def applied(function: Callable[..., Array], *values: Array) -> Array:
    """A function of known values, to 32 bits."""
    known = np.logical_and.reduce(np.broadcast_arrays(*(value >= 0 for value in values)))
    result = function(*values) & MASK
    return result if known.all() else np.where(known, result, -1)


def signed(bits: Array) -> Array:
    """Of 32 bits."""
    return (bits ^ 0x80000000) - 0x80000000


def truth(predicate: Array) -> Array:
    """A predicate as a number: 0, 1, or unknown."""
    return np.where(predicate == MAYBE, -1, predicate // TRUE)
