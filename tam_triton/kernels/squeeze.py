"""Spatial squeeze (equation 1): X̂[n,c,t] = mean over pixels of X[n,t,c,·], one pass over X.

Rows are read as they lie in memory, in vectors that divide them, several asked for before the first is used. Where
channels and frames alone make too few programs to fill a device, the pixels are cut into parts whose sums are added in
a fixed order.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from tam_triton import layout
from tam_triton.kernels import launch, metadata
from tam_triton.kernels.frames import centred_norm, folded_norm, relu, within_vectors
from tam_triton.kernels.parts import add_parts, room


@triton.jit(launch_metadata=metadata.squeeze)
def squeeze_kernel(
    x_ptr, squeezed_ptr, sums_ptr, norm, batch_norm,
    vectors, lines, T, tiles, splits, steps, eps: tl.float64, part: tl.int64,
    CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, VECTOR: tl.constexpr,
    UNROLL: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    # As products, so that the compiler sees what divides a row.
    C = tl.cast(vectors, INDEX) * VECTOR if CHANNELS_LAST else lines
    P = lines if CHANNELS_LAST else tl.cast(vectors, INDEX) * VECTOR
    split = tl.program_id(0) % splits
    tile = tl.program_id(0) // splits
    b = (tile // tiles).to(tl.int64)
    x_ptr += b * C * P
    c = ((tile % tiles).to(INDEX) * BLOCK_C + tl.arange(0, BLOCK_C))[:, None]
    p = ((split * steps).to(INDEX) * (UNROLL * BLOCK_P) + tl.arange(0, BLOCK_P))[None, :]
    # Of x or, with `batch_norm`, of m·(x − mean).
    total = tl.zeros([BLOCK_C, BLOCK_P if CHANNELS_LAST else BLOCK_P // VECTOR], ACC)
    if norm is not None:
        scale, shift = folded_norm(norm, eps, c, c < C, ACC)
    if batch_norm is not None:
        mean, scale, shift, inverse = centred_norm(batch_norm, C, c, c < C, ACC)
        passed = tl.zeros_like(total)  # Σ m
    for step in range(steps):
        loaded = ()
        for i in tl.static_range(UNROLL):
            q = p + (step * UNROLL + i) * BLOCK_P
            offset = q * C + c if CHANNELS_LAST else c * P + q
            loaded = loaded + (tl.load(x_ptr + offset, mask=(c < C) & (q < P), other=0.0),)
        for i in tl.static_range(UNROLL):
            x: tl.tensor = loaded[i].to(ACC)
            if norm is not None:
                x = tl.where(p + (step * UNROLL + i) * BLOCK_P < P, relu(x * scale + shift), 0.0)
            if batch_norm is not None:
                x -= mean
                mask = (p + (step * UNROLL + i) * BLOCK_P < P) & ~(x * scale + shift <= 0)  # of NaN, too
                x = tl.where(mask, x, 0.0)
                passed += within_vectors(tl.where(mask, 1.0, tl.zeros_like(x)), CHANNELS_LAST, VECTOR)
            total += within_vectors(x, CHANNELS_LAST, VECTOR)
    result = tl.sum(total, axis=1)[:, None]
    if batch_norm is not None:
        sums_ptr += split * 2 * part + ((b // T) * C + c) * T + b % T
        count = tl.sum(passed, axis=1)[:, None]
        tl.store(sums_ptr, count, mask=(c < C))
        tl.store(sums_ptr + part, result * inverse, mask=(c < C))
        result = result * scale + count * shift  # ΣA
    average = (result / P).to(squeezed_ptr.dtype.element_ty)
    tl.store(squeezed_ptr + split * part + ((b // T) * C + c) * T + b % T, average, mask=c < C)


def squeeze(x: Tensor, num_segments: int, norm: Sequence[Tensor] | None = None, eps: float = 0.0) -> Tensor:
    """X̂ `(N, C, T)` of x `(N·T, C, H, W)`, in x's dtype.

    With `norm` (weight, bias, running mean and variance of a BatchNorm) of ReLU(BN(x)), which is never written.
    """
    return launched(x, num_segments, norm, None, eps)[0]


def activated_squeeze(x: Tensor, norm: Sequence[Tensor], eps: float, num_segments: int) -> Tensor:
    """`squeeze` of ReLU(BN(x)) with running statistics."""
    return squeeze(x, num_segments, norm, eps)


def normalized_squeeze(
    x: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor, num_segments: int
) -> tuple[Tensor, Tensor]:
    """X̂ `(N, C, T)` of A = ReLU(BN(x)), and Σ m and Σ m·x̂ over pixels, `(2, N, C, T)`, as in `plain`."""
    squeezed, sums = launched(x, num_segments, None, layout.dense_vectors(weight, bias, statistics), 0.0)
    assert sums is not None
    return squeezed, sums


def launched(
    x: Tensor, num_segments: int, norm: Sequence[Tensor] | None, batch_norm: tuple[Tensor, ...] | None, eps: float
) -> tuple[Tensor, Tensor | None]:
    """X̂, and with `batch_norm` the sums beside it."""
    channels_last = layout.is_channels_last(x)
    x = layout.to_layout(x, channels_last)
    frames, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    tile = launch.squeeze_tile(frames, channels, pixels, channels_last, x.element_size())
    vectors, lines = layout.vectors_and_lines(channels, pixels, channels_last, tile.vector)
    squeezed = x.new_empty((frames // num_segments, channels, num_segments))
    parts = room(squeezed, tile.parts)
    sums = sums_parts = None
    if batch_norm is not None:
        sums = x.new_empty((2, *squeezed.shape), dtype=launch.partial_dtype(x.dtype))
        sums_parts = room(sums, tile.parts)
    # In channels_last so few that two programs of 16 warps fit a multiprocessor: untold they take 70 to 80.
    registers = 64 if batch_norm is not None and channels_last and x.element_size() < 8 else None
    with launch.on_device(x):
        squeeze_kernel[(frames * tile.count(channels) * tile.parts,)](
            x, parts, sums_parts, None if norm is None else tuple(norm), batch_norm,
            vectors, lines, num_segments, tile.count(channels), tile.parts, tile.steps, eps, frames * channels,
            CHANNELS_LAST=channels_last, BLOCK_C=tile.channels, BLOCK_P=tile.pixels, VECTOR=tile.vector,
            UNROLL=tile.unroll, ACC=launch.accumulator(x.dtype),
            INDEX=launch.offset_dtype(channels * tile.covered, tile.channels * tile.pixels),
            num_warps=tile.warps, **launch.registers(registers), **launch.OPTIONS,
        )  # fmt: skip
        if sums is None or sums_parts is None:
            add_parts((parts, squeezed))
        else:
            add_parts((parts, squeezed), (sums_parts, sums))
    return squeezed, sums
