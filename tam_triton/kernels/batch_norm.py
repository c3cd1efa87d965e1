"""BatchNorm of a feature map in training: the batch's mean and variance in one pass over x, and gradients of γ and β.

A thread adds up x and its square less the mean of the first few values that it reads, for each place of its tile by
itself. That mean is one of n values of k of them, so that what the subtraction cancels is at most n/k of the variance,
whatever x is: no digits are lost to a large mean. Places, and then programs, are put together by the formula of Chan,
Golub and LeVeque, in a fixed order.
"""

import triton
import triton.language as tl
from torch import Tensor

from tam_triton import layout
from tam_triton.kernels import launch, metadata

CHANNELS = 4  # of a program that puts parts together
PARTS = 512  # that it reads at once
ROWS = 64  # frames of clips that a program reads at once, for the gradients of γ and β


@triton.jit(launch_metadata=metadata.moments)
def moments_kernel(
    x_ptr, parts_ptr,
    vectors, lines, tiles_of_frame, parts, steps, frames,
    CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, VECTOR: tl.constexpr,
    UNROLL: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """A value near the mean, the mean less it, and Σ(x − mean)², of each channel in one part: `(3, parts, C)`."""
    # As products, so that the compiler sees what divides a row.
    C = tl.cast(vectors, INDEX) * VECTOR if CHANNELS_LAST else lines
    P = lines if CHANNELS_LAST else tl.cast(vectors, INDEX) * VECTOR
    frame = tl.cast(C, tl.int64) * P
    program = tl.num_programs(0) - 1 - tl.program_id(0)  # the squeeze, next, goes the other way
    part = program % parts
    c = ((program // parts).to(INDEX) * BLOCK_C + tl.arange(0, BLOCK_C))[:, None]
    p = tl.arange(0, BLOCK_P)[None, :]
    first = part.to(COUNT) * (steps * UNROLL)
    start = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    total = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    squares = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    for step in range(steps):
        loaded = ()
        masks = ()
        for i in tl.static_range(UNROLL):
            tile = first + (step * UNROLL + i)
            b = tile // tiles_of_frame
            q = (tile % tiles_of_frame).to(INDEX) * BLOCK_P + p
            mask = (c < C) & (q < P) & (b < frames)
            offset = q * C + c if CHANNELS_LAST else c * P + q
            loaded = loaded + (tl.load(x_ptr + b.to(tl.int64) * frame + offset, mask=mask, other=0.0),)
            masks = masks + (mask,)
        if step == 0:
            count = tl.zeros([BLOCK_C, BLOCK_P], ACC)
            for i in tl.static_range(UNROLL):
                start += loaded[i].to(ACC)
                count += masks[i].to(ACC)
            start /= tl.maximum(count, 1.0)
        for i in tl.static_range(UNROLL):
            less = tl.where(masks[i], loaded[i].to(ACC) - start, 0.0)
            total += less
            squares += less * less
    # All tiles of a part count in each place, but for the last of a frame, which may be narrower.
    ends = tl.minimum((first + steps * UNROLL) // tiles_of_frame, frames) - first // tiles_of_frame
    whole = tl.minimum(first + steps * UNROLL, tl.cast(frames, COUNT) * tiles_of_frame) - first - ends
    last = (tiles_of_frame - 1) * tl.cast(BLOCK_P, INDEX) + p < P
    count = tl.where(c < C, whole.to(ACC) + tl.where(last, ends.to(ACC), 0.0), 0.0)
    less = total / tl.maximum(count, 1.0)
    deviations = tl.maximum(squares - less * total, 0.0)
    near = tl.sum(count * start + 0.0, axis=1) / tl.maximum(tl.sum(count, axis=1), 1.0)
    mean, deviations = together(count, start - near[:, None] + less, deviations)
    parts_ptr += part.to(tl.int64) * C + c
    stride = parts * tl.cast(C, tl.int64)
    tl.store(parts_ptr, near[:, None], mask=c < C)
    tl.store(parts_ptr + stride, mean[:, None], mask=c < C)
    tl.store(parts_ptr + 2 * stride, deviations[:, None], mask=c < C)


@triton.jit
def together(count, mean, deviations):
    """Mean, and sum of squares less it, of the groups in each row, of which these are given.

    Means are less a value near all of them: the mean itself has no digits left for their differences. A product that
    goes into a sum over lanes is rounded before.
    """
    total = tl.sum(count, axis=1)
    result = tl.sum(count * mean + 0.0, axis=1) / tl.maximum(total, 1.0)
    off = mean - result[:, None]
    return result, tl.sum(deviations, axis=1) + tl.sum(count * off * off + 0.0, axis=1)


@triton.jit(launch_metadata=metadata.statistics)
def statistics_kernel(
    parts_ptr, statistics_ptr,
    C, P, tiles_of_frame, parts, tiles_of_part, tiles, values: tl.int64, eps: tl.float64,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, PARTS: tl.constexpr, ACC: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Mean, unbiased variance and 1/σ of each channel, from those of the parts."""
    c = tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    near = tl.load(parts_ptr + c, mask=c < C, other=0.0)  # from here on means are less this
    mean = tl.zeros([BLOCK_C], ACC)
    deviations = tl.zeros([BLOCK_C], ACC)
    done = tl.zeros([BLOCK_C], ACC)
    for first in range(0, parts, PARTS):
        part = (first + tl.arange(0, PARTS)).to(COUNT)
        before = values_before(tl.minimum(part * tiles_of_part, tiles), tiles_of_frame, P, BLOCK_P)
        after = values_before(tl.minimum((part + 1) * tiles_of_part, tiles), tiles_of_frame, P, BLOCK_P)
        mask = (c < C)[:, None] & (part < parts)[None, :]
        offset = part.to(tl.int64)[None, :] * C + c[:, None]
        stride = parts * tl.cast(C, tl.int64)
        means = tl.load(parts_ptr + offset, mask=mask, other=0.0) - near[:, None]
        means += tl.load(parts_ptr + stride + offset, mask=mask, other=0.0)
        within = tl.load(parts_ptr + 2 * stride + offset, mask=mask, other=0.0)
        count = tl.broadcast_to((after - before).to(ACC)[None, :], [BLOCK_C, PARTS])
        new_mean, new_deviations = together(count, means, within)
        new = tl.sum(count, axis=1)
        off = new_mean - mean
        share = new / (done + new)
        mean += off * share
        deviations += new_deviations + off * off * (done * share)
        done += new
    total = tl.cast(values, ACC)
    tl.store(statistics_ptr + c, near + mean, mask=c < C)
    tl.store(statistics_ptr + C + c, deviations / (total - 1), mask=c < C)
    inverse = 1.0 / tl.sqrt(deviations / total + tl.full([], eps, ACC))
    tl.store(statistics_ptr + 2 * tl.cast(C, tl.int64) + c, inverse, mask=c < C)


@triton.jit
def values_before(tile, tiles_of_frame, P, BLOCK_P: tl.constexpr):
    """How many values of a channel come before a tile."""
    return tile // tiles_of_frame * P + tl.minimum(tile % tiles_of_frame * BLOCK_P, P)


def batch_statistics(x: Tensor, eps: float) -> Tensor:
    """Mean, unbiased variance and 1/σ of every channel of x `(N·T, C, H, W)`, `(3, C)` in the dtype of sums."""
    channels_last = layout.is_channels_last(x)
    x = layout.to_layout(x, channels_last)
    frames, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    tile = launch.moments_tile(frames, channels, pixels, channels_last, x.element_size())
    of_frame = launch.ceil_div(pixels, tile.pixels)
    statistics = x.new_empty((3, channels), dtype=launch.partial_dtype(x.dtype))
    parts = statistics.new_empty((3, tile.parts, channels))
    acc = launch.accumulator(x.dtype)
    # Of tiles and values, as far as parts that there are not would be counted.
    count = launch.offset_dtype((tile.parts + PARTS) * tile.steps * tile.unroll * tile.pixels, tile.pixels)
    with launch.on_device(x):
        moments_kernel[(tile.parts * tile.count(channels),)](
            x, parts,
            *layout.vectors_and_lines(channels, pixels, channels_last, tile.vector),
            of_frame, tile.parts, tile.steps, frames,
            CHANNELS_LAST=channels_last, BLOCK_C=tile.channels, BLOCK_P=tile.pixels, VECTOR=tile.vector,
            UNROLL=tile.unroll, ACC=acc,
            INDEX=launch.offset_dtype(channels * of_frame * tile.pixels, tile.channels * tile.pixels), COUNT=count,
            num_warps=tile.warps, **launch.OPTIONS,
        )  # fmt: skip
        statistics_kernel[(launch.ceil_div(channels, CHANNELS),)](
            parts, statistics,
            channels, pixels, of_frame, tile.parts, tile.steps * tile.unroll, frames * of_frame, frames * pixels, eps,
            BLOCK_P=tile.pixels, BLOCK_C=CHANNELS, PARTS=min(PARTS, launch.next_power_of_2(tile.parts)), ACC=acc,
            COUNT=count,
            num_warps=launch.warps(launch.ROW_THREADS), **launch.OPTIONS,
        )  # fmt: skip
    return statistics


@triton.jit(launch_metadata=metadata.norm_gradients)
def norm_gradients_kernel(
    d_sums_ptr, sums_ptr, d_squeezed_ptr, d_weight_ptr, d_bias_ptr,
    C, T, rows: tl.int64, pixels: tl.int64, part: tl.int64,
    BLOCK_C: tl.constexpr, ROWS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sums over clips and frames, of which there are so many rows."""
    c = tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    d_bias = tl.zeros([BLOCK_C, ROWS], ACC)
    d_weight = tl.zeros([BLOCK_C, ROWS], ACC)
    inverse_pixels = tl.full([1, 1], 1.0, ACC) / tl.cast(pixels, ACC)
    for first in range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)[None, :]
        mask = (c < C) & (row < rows)
        offset = ((row // T).to(tl.int64) * C + c) * T + row % T
        spread = tl.load(d_squeezed_ptr + offset, mask=mask, other=0.0).to(ACC) * inverse_pixels
        passed = tl.load(sums_ptr + offset, mask=mask, other=0.0)
        projected = tl.load(sums_ptr + part + offset, mask=mask, other=0.0)
        d_bias += tl.load(d_sums_ptr + offset, mask=mask, other=0.0) + spread * passed
        d_weight += tl.load(d_sums_ptr + part + offset, mask=mask, other=0.0) + spread * projected
    tl.store(d_weight_ptr + c, tl.sum(d_weight, axis=1)[:, None], mask=c < C)
    tl.store(d_bias_ptr + c, tl.sum(d_bias, axis=1)[:, None], mask=c < C)


def batch_norm_gradients(d_sums: Tensor, sums: Tensor, d_squeezed: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
    """dγ and dβ `(C)` in the dtype of sums, from sums `(2, N, C, T)` and dX̂ `(N, C, T)`, as in `plain`."""
    d_sums, sums, d_squeezed = d_sums.contiguous(), sums.contiguous(), d_squeezed.contiguous()
    clips, channels, T = d_squeezed.shape
    d_weight, d_bias = (sums.new_empty(channels) for _ in range(2))
    block = 4
    with launch.on_device(sums):
        norm_gradients_kernel[(launch.ceil_div(channels, block),)](
            d_sums, sums, d_squeezed, d_weight, d_bias,
            channels, T, clips * T, pixels, d_squeezed.numel(),
            BLOCK_C=block, ROWS=min(ROWS, launch.next_power_of_2(clips * T)), ACC=launch.accumulator(sums.dtype),
            num_warps=launch.warps(launch.ROW_THREADS) // 2, **launch.OPTIONS,
        )  # fmt: skip
    return d_weight, d_bias
