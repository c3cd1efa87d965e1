"""The machine that executes PTX: each instruction against other arithmetic."""

import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.ptx import KernelError, Region, execute
from bench.ptx.arithmetic import ALLOWED, bfloat16, fused
from bench.ptx.program import parse
from tests.support.ptx import COPY, HEAD, TAIL, THREADS, run

WORDS = st.integers(0, 2**32 - 1)


def computed(instruction: str, *operands: int) -> int:
    """A word, from words."""
    given = "".join(f"mov.u32 %r{10 + i}, {operand};" for i, operand in enumerate(operands))
    return int(run(f"{given}{instruction}; st.global.b32 [%rd5], %r20;")[0])


def signed(word: int) -> int:
    return word - (word >> 31 << 32)


def bits(value: Any) -> int:
    return int(np.float32(value).view(np.uint32))


def number(word: int) -> np.float32:
    return np.uint32(word).view(np.float32)


def towards_zero(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


WHOLE: dict[str, Callable[[int, int, int], int]] = {
    "add.s32 %r20, %r10, %r11": lambda a, b, c: a + b,
    "sub.s32 %r20, %r10, %r11": lambda a, b, c: a - b,
    "add.s16x2 %r20, %r10, %r11": lambda a, b, c: (a + b) % 2**16 | ((a >> 16) + (b >> 16)) % 2**16 << 16,
    "sub.u16x2 %r20, %r10, 0x10003": lambda a, b, c: (a - 3) % 2**16 | ((a >> 16) - 1) % 2**16 << 16,
    "mul.lo.s32 %r20, %r10, %r11": lambda a, b, c: signed(a) * signed(b),
    "mad.lo.s32 %r20, %r10, %r11, %r12": lambda a, b, c: a * b + c,
    "mul.wide.s32 %rd6, %r10, %r11; mov.b64 {_, %r20}, %rd6": lambda a, b, c: signed(a) * signed(b) >> 32,
    "mul.wide.u32 %rd6, %r10, %r11; mov.b64 {_, %r20}, %rd6": lambda a, b, c: a * b >> 32,
    "mul.hi.u32 %r20, %r10, %r11": lambda a, b, c: a * b >> 32,
    "mul.hi.s32 %r20, %r10, %r11": lambda a, b, c: signed(a) * signed(b) >> 32,
    "cvt.u16.u32 %rs1, %r10; cvt.u16.u32 %rs2, %r11; mul.hi.u16 %rs1, %rs1, %rs2; cvt.u32.u16 %r20, %rs1": (
        lambda a, b, c: (a & 0xFFFF) * (b & 0xFFFF) >> 16
    ),
    "mul.wide.s32 %rd6, %r10, %r11; mad.wide.s32 %rd6, %r12, %r10, %rd6; mov.b64 {_, %r20}, %rd6": lambda a, b, c: (
        signed(a) * signed(b) + signed(c) * signed(a) >> 32
    ),
    "mov.b64 %rd6, {%r10, %r11}; mul.hi.u64 %rd6, %rd6, %rd6; cvt.u32.u64 %r20, %rd6": lambda a, b, c: (
        (b << 32 | a) ** 2 >> 64
    ),
    "mov.b64 %rd6, {%r10, %r11}; mul.hi.s64 %rd6, %rd6, %rd6; cvt.u32.u64 %r20, %rd6": lambda a, b, c: (
        (signed(b) << 32 | a) ** 2 >> 64
    ),
    "div.s32 %r20, %r10, %r11": lambda a, b, c: towards_zero(signed(a), signed(b)) if b else 0,
    "rem.s32 %r20, %r10, %r11": lambda a, b, c: signed(a) - signed(b) * towards_zero(signed(a), signed(b)) if b else 0,
    "min.s32 %r20, %r10, %r11": lambda a, b, c: min(signed(a), signed(b)),
    "max.u32 %r20, %r10, %r11": lambda a, b, c: max(a, b),
    "and.b32 %r20, %r10, %r11": lambda a, b, c: a & b,
    "or.b32 %r20, %r10, %r11": lambda a, b, c: a | b,
    "xor.b32 %r20, %r10, %r11": lambda a, b, c: a ^ b,
    "not.b32 %r20, %r10": lambda a, b, c: ~a,
    "neg.s32 %r20, %r10": lambda a, b, c: -a,
    "shl.b32 %r20, %r10, %r11": lambda a, b, c: a << b if b < 32 else 0,
    "shr.u32 %r20, %r10, %r11": lambda a, b, c: a >> min(b, 32),
    "shr.s32 %r20, %r10, %r11": lambda a, b, c: signed(a) >> min(b, 31),
    "bfe.u32 %r20, %r10, 5, 3": lambda a, b, c: a >> 5 & 7,
    "bfe.s32 %r20, %r10, 5, 3": lambda a, b, c: (a >> 5 & 7) - (a >> 7 & 1) * 8,
    "prmt.b32 %r20, %r10, %r11, 0x7701U": lambda a, b, c: a >> 8 & 0xFF | (a & 0xFF) << 8 | (b >> 24) * 0x1010000,
    "and.b32 %r12, %r12, 7; prmt.b32 %r20, %r10, %r11, %r12": lambda a, b, c: (
        ((b << 32 | a) >> 8 * (c & 7) & 0xFF) | (a & 0xFF) * 0x1010100
    ),
    "prmt.b32 %r20, %r10, %r11, 0x5410": lambda a, b, c: a & 0xFFFF | (b & 0xFFFF) << 16,
    "prmt.b32 %r20, %r10, %r11, 0x1054U": lambda a, b, c: b & 0xFFFF | (a & 0xFFFF) << 16,
    "cvt.u16.u32 %rs1, %r10; cvt.u32.u16 %r20, %rs1": lambda a, b, c: a & 0xFFFF,
    "cvt.s64.s32 %rd6, %r10; shr.s64 %rd6, %rd6, 16; cvt.u32.u64 %r20, %rd6": lambda a, b, c: signed(a) >> 16,
    "mov.b64 %rd6, {%r10, %r11}; { .reg .b32 tmp; mov.b64 {tmp, %r20}, %rd6; }": lambda a, b, c: b,
    "mov.b64 %rd6, {%r10, %r11}; { .reg .b32 tmp; mov.b64 {%r20, tmp}, %rd6; }": lambda a, b, c: a,
    "mov.b32 {%rs1, %rs2}, %r10; mov.b32 %r20, {%rs2, %rs1}": lambda a, b, c: a >> 16 | (a & 0xFFFF) << 16,
    "setp.lt.s32 %p1, %r10, %r11; selp.b32 %r20, %r12, 5, %p1": lambda a, b, c: c if signed(a) < signed(b) else 5,
    "setp.gt.u32 %p1, %r10, %r11; @!%p1 mov.u32 %r12, 3; mov.u32 %r20, %r12": lambda a, b, c: c if a > b else 3,
}


@pytest.mark.parametrize("instruction", WHOLE)
@given(st.one_of(WORDS, st.integers(0, 40)), st.one_of(WORDS, st.integers(0, 40)), WORDS)
def test_whole_numbers(instruction: str, a: int, b: int, c: int) -> None:
    if instruction[:3] in ("div", "rem") and b == 0:
        with pytest.raises(KernelError, match="arithmetic: an integer is divided by zero"):
            computed(instruction, a, b, c)
        return
    assert computed(instruction, a, b, c) == WHOLE[instruction](a, b, c) % 2**32


def is_nearest(result: Any, exact: Fraction) -> bool:
    error = abs(Fraction(float(result)) - exact)
    neighbours = (np.nextafter(result, np.array(side, result.dtype)) for side in (np.inf, -np.inf))
    return all(error <= abs(Fraction(float(neighbour)) - exact) for neighbour in neighbours)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_fused_product_is_rounded_once(dtype: Any) -> None:
    """Sums that cancel all but a product's last bits, and sums of any size."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(2000).astype(dtype) for _ in range(2))
    near = -(a * b) * (1 + rng.integers(-3, 4, 2000) * np.finfo(dtype).eps)
    any_size = rng.standard_normal(2000) * 2.0 ** rng.integers(-60, 60, 2000)
    c = np.where(rng.random(2000) < 0.5, near, any_size).astype(dtype)
    for x, y, z, result in zip(a, b, c, fused(a, b, c), strict=True):
        assert is_nearest(result, Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)))
    double_rounding = np.float32(1 + 2**-12), np.float32(1 + 2**-12), np.float32(2**-60)
    assert fused(*(np.array([v]) for v in double_rounding))[0] == np.nextafter(np.float32(1 + 2**-11), np.float32(2))


@given(st.lists(st.floats(width=32), min_size=1))
def test_conversions_are_torchs(values: list[float]) -> None:
    wide = torch.tensor(values, dtype=torch.float32)
    expected = wide.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    same = bfloat16(wide.numpy()) == expected
    assert (same | np.isnan(wide.numpy())).all()


def test_floats() -> None:
    tiny = 1e-40
    assert computed("add.f32 %r20, %r10, %r11", bits(tiny), bits(tiny)) == bits(np.float32(tiny) + np.float32(tiny))
    assert computed("sqrt.approx.ftz.f32 %r20, %r10", bits(tiny)) == 0
    assert computed("sqrt.approx.ftz.f32 %r20, %r10", bits(-tiny)) == bits(-0.0)
    assert computed("max.f32 %r20, %r10, 0f00000000", bits(np.nan)) == 0
    assert np.isnan(number(computed("max.NaN.f32 %r20, %r10, 0f00000000", bits(np.nan))))
    assert computed("setp.gt.f32 %p1, %r10, %r10; selp.b32 %r20, 1, 0, %p1", bits(np.nan)) == 0
    assert computed("setp.gtu.f32 %p1, %r10, %r10; selp.b32 %r20, 1, 0, %p1", bits(np.nan)) == 1
    assert computed("cvt.rn.f16x2.f32 %r20, %r10, %r11", bits(1.0), bits(2.0)) == 0x3C004000
    pair = "mov.b64 %rd6, {%r10, %r11}; fma.rn.f32x2 %rd6, %rd6, %rd6, %rd6; mov.b64 {_, %r20}, %rd6"
    assert number(computed(pair, bits(2.0), bits(3.0))) == 12
    half = "cvt.rn.f16.f32 %rs1, %r10; fma.rn.f32.f16 %r20, %rs1, %rs1, %r11"
    assert number(computed(half, bits(3.0), bits(0.5))) == 9.5


@pytest.mark.parametrize(("kind", "first"), [("f16", 2048.0), ("bf16", 256.0)])
def test_sums_of_halves_are_rounded_once(kind: str, first: float) -> None:
    """Ties to even, from the first number that its next lies two apart from."""
    narrow = f"cvt.rn.{kind}.f32 %rs1, %r10; cvt.rn.{kind}.f32 %rs2, %r11;"
    for name, off, expected in (("add", 1, 0), ("add", 3, 4), ("sub", -3, 4)):
        body = f"{narrow} {name}.{kind} %rs3, %rs1, %rs2; cvt.f32.{kind} %r20, %rs3"
        assert number(computed(body, bits(first), bits(off))) == first + expected, (name, off)


@pytest.mark.parametrize(("name", "exact"), [("ex2", 2**1.3), ("sqrt", 1.3**0.5), ("rcp", 1 / 1.3)])
def test_what_is_approximate_errs_as_told(name: str, exact: float) -> None:
    body = f"mov.b32 %r10, 0f{bits(1.3):08X}; {name}.approx.f32 %r20, %r10; st.global.b32 [%rd5], %r20;"
    exact = {"ex2": np.exp2, "sqrt": np.sqrt, "rcp": np.reciprocal}[name](np.float64(np.float32(1.3)))
    results = [float(number(run(body, error=error)[0])) for error in (-1.0, 0.0, 1.0)]
    assert results == [float(np.float32(exact * (1 + error * ALLOWED[name]))) for error in (-1.0, 0.0, 1.0)]
    assert results[0] < results[1] < results[2]


def backwards(count: int) -> range:
    return range(count)[::-1]


def test_programs_copy() -> None:
    x = np.arange(3 * THREADS, dtype=np.uint32)
    options: dict[str, Any]
    for options in ({}, {"order": lambda n: [2, 0, 1]}, {"batch": 1}, {"warp_order": backwards}):
        assert np.array_equal(run(COPY, x, programs=3, **options), x)


def test_programs_part_at_branches() -> None:
    """Each goes its own way, and meets its own threads at barriers."""
    body = """setp.eq.b32 %p1, %r2, 1;
	@%p1 bra $L1;
	st.shared.b32 [%r4], %r1;
	bra.uni $L2;
$L1:
	mov.u32 %r6, 5;
	st.shared.b32 [%r4], %r6;
$L2:
	bar.sync 0;
	xor.b32 %r7, %r4, 128;
	ld.shared.b32 %r8, [%r7];
	st.global.b32 [%rd5], %r8;"""
    other = np.arange(THREADS) ^ 32
    for order in (None, backwards):
        y = run(body, programs=3, warp_order=order).reshape(3, THREADS)
        assert np.array_equal(y, [other, np.full(THREADS, 5), other])


def test_threads_part_at_branches() -> None:
    """And meet again: each goes through a loop as often as it has to."""
    body = """mov.u32 %r5, 0;
	mov.u32 %r6, 0;
	and.b32 %r7, %r1, 3;
	add.s32 %r7, %r7, %r2;
	setp.eq.s32 %p1, %r2, 1;
	@%p1 bra $L2;
$L1:
	add.s32 %r5, %r5, %r6;
	add.s32 %r6, %r6, 1;
	setp.le.s32 %p2, %r6, %r7;
	@%p2 bra $L1;
$L2:
	bar.sync 0;
	shfl.sync.bfly.b32 %r8, %r5, 1, 31, -1;
	st.global.b32 [%rd5], %r8;"""
    threads = np.arange(THREADS) ^ 1
    for order in (None, backwards):
        y = run(body, programs=3, warp_order=order).reshape(3, THREADS)
        for program, sums in enumerate(y):
            last = threads % 4 + program
            assert np.array_equal(sums, np.zeros(THREADS) if program == 1 else last * (last + 1) // 2)


def test_shuffles() -> None:
    lanes = np.arange(THREADS)
    butterfly = run("shfl.sync.bfly.b32 %r5, %r1, 8, 31, -1; st.global.b32 [%rd5], %r5;")
    assert np.array_equal(butterfly, lanes ^ 8)
    indexed = run("mov.u32 %r6, 3; shfl.sync.idx.b32 %r5, %r1, %r6, 31, -1; st.global.b32 [%rd5], %r5;")
    assert np.array_equal(indexed, lanes // 32 * 32 + 3)


def test_matrices() -> None:
    """What one warp's `stmatrix` writes its `ldmatrix` reads, and transposed as the manual draws it."""
    body = """setp.lt.s32 %p1, %r1, 32;
	mul.lo.s32 %r5, %r1, 16;
	and.b32 %r5, %r5, 127;
	shr.u32 %r6, %r1, 5;
	shl.b32 %r6, %r6, 7;
	add.s32 %r5, %r5, %r6;
	shl.b32 %r7, %r1, 1;
	add.s32 %r8, %r7, 1;
	shl.b32 %r8, %r8, 16;
	or.b32 %r8, %r8, %r7;
	stmatrix.sync.aligned.m8n8.x1{stored}.shared.b16 [%r5], {%r8};
	bar.warp.sync -1;
	ldmatrix.sync.aligned.m8n8.x1{loaded}.shared.b16 {%r9}, [%r5];
	st.global.b32 [%rd5], %r9;"""
    matrix = np.arange(64).reshape(8, 8)
    for stored, loaded in itertools.product(("", ".trans"), repeat=2):
        expected = matrix if stored == loaded else matrix.T
        pairs = run(body.replace("{stored}", stored).replace("{loaded}", loaded))[:32]
        assert np.array_equal(np.stack([pairs & 0xFFFF, pairs >> 16], 1).reshape(8, 8), expected)


def test_asynchronous_copies() -> None:
    """They arrive in the order of their groups; where the source has no bytes, zeros do."""
    body = """mov.u32 %r5, 4;
	cp.async.ca.shared.global [ %r4 + 0 ], [ %rd4 + 0 ], 0x4, %r5;
	cp.async.commit_group;
	cp.async.ca.shared.global [ %r4 + 256 ], [ %rd4 + 0 ], 0x4, 0;
	cp.async.commit_group;
	cp.async.wait_group 1;
	ld.shared.b32 %r6, [%r4];
	cp.async.wait_group 0;
	ld.shared.b32 %r7, [%r4+256];
	add.s32 %r8, %r6, %r7;
	st.global.b32 [%rd5], %r8;"""
    x = np.arange(THREADS, dtype=np.uint32) + 9
    assert np.array_equal(run(body, x, shared=512), x)
    with pytest.raises(KernelError, match="race in shared memory: load of what an asynchronous copy has yet to bring"):
        run(body.replace("wait_group 1", "wait_group 2"), x, shared=512)


def test_halves_of_a_pair_are_known_apart() -> None:
    pair = "mov.b64 %rd6, {%r1, %r9}; add.f32x2 %rd6, %rd6, %rd6; mov.b64 {%r5, %r6}, %rd6; st.global.b32 [%rd5], "
    run(f"{pair}%r5;")
    with pytest.raises(KernelError, match="unwritten: nothing wrote %r6"):
        run(f"{pair}%r6;")


def test_an_inactive_lane_keeps_its_value() -> None:
    y = run("mov.u32 %r5, 1; setp.lt.s32 %p1, %r1, 40; @%p1 add.s32 %r5, %r5, %r1; st.global.b32 [%rd5], %r5;")
    assert np.array_equal(y, np.where(np.arange(THREADS) < 40, np.arange(THREADS) + 1, 1))


def test_counts() -> None:
    x = np.zeros(THREADS, np.uint32)
    regions = [Region("x", 1 << 20, x.view(np.uint8)), Region("y", (1 << 21) + 16, np.zeros(256, np.uint8))]
    body = f"""{COPY}
	shl.b32 %r6, %r1, 7;
	st.shared.b32 [%r6], %r1;
	bar.sync 0;
	ld.shared.b32 %r7, [0];
	bar.sync 0;
	st.shared.b32 [%r4], %r1;"""
    counts = execute(HEAD + body + TAIL, (1,), [*regions, 7], 128 * THREADS)
    load, store = counts.traffic["x", "load"], counts.traffic["y", "store"]
    assert (load.requests, load.sectors, load.bytes) == (2, 8, 256)
    assert (store.requests, store.sectors, store.bytes) == (2, 10, 256)
    assert (counts.shared_requests, counts.shared_wavefronts) == (6, 2 * 32 + 2 + 2)
    assert counts.instructions["ld"] == 2 * 4


def test_one_module_is_one_kernel() -> None:
    with pytest.raises(ValueError, match="PTX: got 0 kernels, expected one"):
        parse("")


def test_tensors_that_overlap_in_part_are_refused() -> None:
    x = np.zeros(64, np.uint8)
    with pytest.raises(NotImplementedError, match="x and y overlap in part"):
        execute(HEAD + TAIL, (1,), [Region("x", 64, x[:40]), Region("y", 80, x[16:]), 7], 0)
