"""What PTX computes, in NumPy, to the bit; and what it only promises within bounds."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray  # of any type; lanes first

TYPES: dict[str, str] = {
    "pred": "?", "f16": "f2", "f32": "f4", "f64": "f8", "f32x2": "f4", "s16x2": "i2", "u16x2": "u2",
    **{f"s{bits}": f"i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"{kind}{bits}": f"u{bits // 8}" for kind in "ub" for bits in (8, 16, 32, 64)},
}  # fmt: skip

# Relative errors that the PTX manual allows approximate functions; to division, 2 units in the last place.
ALLOWED = {"ex2": 2.0**-22, "sqrt": 2.0**-23, "rsqrt": 2.0**-22.9, "rcp": 2.0**-23, "div": 2.0**-22}
SMALLEST_NORMAL = np.float32(2.0**-126)


def typed(bits: Array, kind: str) -> Array:
    """A register's bits as values of a type: cut off where the type is narrower; packed pairs get an axis of two."""
    if kind == "bf16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    dtype = np.dtype(TYPES[kind])
    if kind.endswith("x2"):
        return bits.view(dtype).reshape(-1, 2)
    return bits if kind == "pred" else bits.astype(f"u{dtype.itemsize}", copy=False).view(dtype)


def as_bits(values: Array, width: int) -> Array:
    """The reverse: what a register of so many bits holds. Narrower values are extended by their sign."""
    if width == 1:
        return values.astype(np.bool_, copy=False)
    if values.ndim == 2:
        values = np.ascontiguousarray(values).view(f"u{2 * values.dtype.itemsize}").reshape(-1)
    if values.dtype.kind == "i":
        values = values.astype(f"i{width // 8}", copy=False)
    bits = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
    return bits.astype(f"u{width // 8}", copy=False)


def flushed(values: Array) -> Array:
    """Zero, with its sign, in place of denormals, as `.ftz` asks for."""
    return np.where(np.abs(values) < SMALLEST_NORMAL, np.copysign(np.float32(0), values), values)


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """A sum and what its rounding lost, exactly (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def odd_sum(a: Array, b: Array) -> Array:
    """Of float64 values; where the sum is not exact its last bit is odd, so that rounding it once more does no harm."""
    total, lost = two_sum(a, b)
    bits = np.asarray(total).view(np.int64)
    even = (lost != 0) & (bits & 1 == 0) & np.isfinite(total)
    return (bits + np.where(even, np.where((lost > 0) == (total > 0), 1, -1), 0)).view(np.float64)


def fused(a: Array, b: Array, c: Array) -> Array:
    """a·b + c, rounded once, by sums rounded to odd (Boldo and Melquiond, 2008); in float64 far from its limits."""
    if a.dtype != np.float64:
        return odd_sum(a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)).astype(np.float32)
    high, low = two_product(a, b)
    middle, rest = two_sum(c, low)
    total, lost = two_sum(high, middle)
    return total + odd_sum(rest, lost)


def two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """A product of float64 values and what its rounding lost, exactly (Dekker, Veltkamp)."""

    def halves(x: Array) -> tuple[Array, Array]:
        high = (2.0**27 + 1) * x - ((2.0**27 + 1) * x - x)
        return high, x - high

    total, (a_high, a_low), (b_high, b_low) = a * b, halves(a), halves(b)
    return total, a_low * b_low - (((total - a_high * b_high) - a_low * b_high) - a_high * b_low)


def bfloat16(values: Array) -> Array:
    """The bits of float32 values rounded to the nearest bfloat16, ties to even."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), rounded.astype(np.uint16))


def approximate(name: str, exact: Array, error: float) -> Array:
    """A function's float64 values as the hardware may return them, by a share of the error that is allowed."""
    return (exact * (1 + error * ALLOWED[name])).astype(np.float32)


def quotient(a: Array, b: Array) -> Array:
    """Of integers, towards zero; anything where the divisor is zero."""
    wide_a, wide_b = a.astype(np.int64), b.astype(np.int64)
    magnitude = np.abs(wide_a) // np.maximum(np.abs(wide_b), 1)
    return (magnitude * np.sign(wide_a) * np.sign(wide_b)).astype(a.dtype)


def product(a: Array, b: Array, kind: str, half: str) -> Array:
    """Of integers: the "lo" half, the "hi" one, or all of it, "wide"."""
    if half == "lo":
        return a * b
    if kind[1:] == "64":  # of which NumPy has no double
        return (a.astype(object) * b.astype(object) >> 64).astype(TYPES[kind])
    whole = a.astype(TYPES[double(kind)]) * b.astype(TYPES[double(kind)])
    return whole if half == "wide" else (whole >> int(kind[1:])).astype(TYPES[kind])


def double(kind: str) -> str:
    """The type of twice the width."""
    return f"{kind[0]}{2 * int(kind[1:])}"


def permuted(a: Array, b: Array, selector: Array) -> Array:
    """Four of the eight bytes of b and a, chosen by four digits (`prmt.b32`).

    Raises:
        NotImplementedError: a digit asks for a sign.
    """
    if (selector & 0x8888).any():
        raise NotImplementedError(f"prmt with replicated signs: {selector[selector & 0x8888 > 0][0]:#x}")
    word = b.astype(np.uint64) << np.uint64(32) | a
    chosen = [word >> (selector >> np.uint32(4 * i) & np.uint32(7)).astype(np.uint64) * np.uint64(8) for i in range(4)]
    chosen = [(byte & np.uint64(0xFF)) << np.uint64(8 * i) for i, byte in enumerate(chosen)]
    return (chosen[0] | chosen[1] | chosen[2] | chosen[3]).astype(np.uint32)


def field(a: Array, start: int, length: int) -> Array:
    """`length` bits from `start`, extended by their sign where the type has one (`bfe`)."""
    width = 8 * a.dtype.itemsize
    unsigned = a.view(f"u{a.dtype.itemsize}")
    return (unsigned << unsigned.dtype.type(width - start - length)).view(a.dtype) >> a.dtype.type(width - length)


def shifted(a: Array, amount: Array, left: bool) -> Array:
    """By as many bits; all are shifted out where there are too many, and the sign stays."""
    width = 8 * a.dtype.itemsize
    by = np.minimum(amount, width - 1).astype(a.dtype)
    shifted = a << by if left else a >> by
    return np.where((amount >= width) & (left | (a.dtype.kind == "u")), a.dtype.type(0), shifted)
