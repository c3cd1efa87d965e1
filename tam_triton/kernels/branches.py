"""Both branches in two launches, in evaluation and in training (equations 2 and 3).

The first computes the local branch's first convolution; the second V from it, and Θ of the same channels from X̂. All of
it is small, `(N, C, T)`: what counts is the number of launches, where the layers of torch take a dozen, and how long a
program waits for memory and for its threads to meet. So it asks for all taps of a block before it multiplies the first,
and products stay apart in threads until a sum's end.

In training BatchNorm needs the statistics of the whole batch. Programs of the first launch leave the mean and variance
of what they went through, of the local branch's columns and, in programs of their own, of the global branch's rows;
every program of the second makes those of the batch from these few parts, in the same order.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from tam_triton import layout
from tam_triton.kernels import launch, metadata
from tam_triton.kernels.projections import (
    add_moments,
    batch_statistics,
    load_columns,
    load_matrix,
    load_vector,
    normalize,
    product,
    project_rows,
    quotient,
)

# Blocks of products, whatever T is: what a product gives, of which it takes 16 at least, and what is summed over.
OUTPUTS = 16
HIDDEN_OUTPUTS = 4  # of the convolution, whose products stay apart until the end
INPUTS = 64
FRAMES = 8  # of V at a time
ROWS = 64
MOST_PARTS = 16  # of a sum over the batch; each program of the next launch adds them up


@triton.jit
def convolve(
    squeezed_ptr, conv_ptr, projected_ptr, moments_ptr, program,
    columns, C, HIDDEN, blocks, parts, steps,
    T: tl.constexpr, TAPS: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """z₃ of some hidden channels in one part of the columns, and its moments."""
    h = (program % blocks).to(INDEX) * BLOCK_H + tl.arange(0, BLOCK_H)
    part = (program // blocks).to(INDEX)
    columns, channels = tl.cast(columns, INDEX), tl.cast(C, INDEX)
    mean, variance, seen = tl.zeros([BLOCK_H], ACC), tl.zeros([BLOCK_H], ACC), tl.full([], 0, ACC)
    for first in range(part * steps * BLOCK_N, tl.minimum((part + 1) * steps * BLOCK_N, columns), BLOCK_N):
        column = first + tl.arange(0, BLOCK_N)
        frame = (column % T)[None, None, :]
        frames_ptr = squeezed_ptr + (column // T).to(tl.int64)[None, None, :] * C * T + frame
        products = tl.zeros([BLOCK_H, BLOCK_C, BLOCK_N], ACC)
        for c0 in range(0, channels, BLOCK_C):
            c = (c0 + tl.arange(0, BLOCK_C))[None, :, None]
            weight_ptr = conv_ptr + (h[:, None, None] * C + c) * TAPS
            loaded = ()
            for j in tl.static_range(TAPS):  # all are asked for before the first is multiplied
                s = frame + (j - TAPS // 2)
                inside = (c < C) & (column < columns)[None, None, :] & (s >= 0) & (s < T)
                weight = tl.load(weight_ptr + j, mask=(h < HIDDEN)[:, None, None] & (c < C), other=0.0)
                x = tl.load(frames_ptr + c * T + (j - TAPS // 2), mask=inside, other=0.0)
                loaded = loaded + ((weight, x),)
            for j in tl.static_range(TAPS):
                products += loaded[j][0].to(ACC) * loaded[j][1].to(ACC)
        total = tl.sum(products, axis=1)
        n, t = (column // T).to(tl.int64)[None, :], (column % T)[None, :]
        inside = (h < HIDDEN)[:, None] & (column < columns)[None, :]
        tl.store(projected_ptr + (n * HIDDEN + h[:, None]) * T + t, total, mask=inside)
        if moments_ptr is not None:
            mean, variance, seen = add_moments(mean, variance, seen, total, column < columns)
    if moments_ptr is not None:
        tl.store(moments_ptr + part * HIDDEN + h, mean, mask=h < HIDDEN)
        tl.store(moments_ptr + (parts + part) * HIDDEN + h, variance, mask=h < HIDDEN)


@triton.jit
def row_moments(
    squeezed_ptr, first_ptr, moments_ptr, program,
    rows: tl.int64, WIDTH, blocks, parts, steps,
    T: tl.constexpr, FRAMES: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """The moments of z₁ in one part of the rows."""
    w = (program % blocks).to(INDEX) * WIDE + tl.arange(0, WIDE)
    part = program // blocks
    mean, variance, seen = tl.zeros([WIDE], ACC), tl.zeros([WIDE], ACC), tl.full([], 0, ACC)
    for step in range(steps):
        first = (part.to(tl.int64) * steps + step) * ROWS
        if first < rows:
            row = first + tl.arange(0, ROWS)
            wide = project_rows(squeezed_ptr, first_ptr, w, row, WIDTH, rows, T, FRAMES, tl.zeros([WIDE, ROWS], ACC))
            mean, variance, seen = add_moments(mean, variance, seen, wide, row < rows)
    tl.store(moments_ptr + part * WIDTH + w, mean, mask=w < WIDTH)
    tl.store(moments_ptr + (parts + part) * WIDTH + w, variance, mask=w < WIDTH)


@triton.jit(launch_metadata=metadata.projections)
def projections_kernel(
    squeezed_ptr, conv_ptr, first_ptr, projected_ptr, local_ptr, global_ptr,
    columns, rows: tl.int64, C, HIDDEN, WIDTH, hidden_blocks, column_parts, column_steps, wide_blocks, row_parts,
    row_steps,
    T: tl.constexpr, TAPS: tl.constexpr, FRAMES: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """z₃[n,h,t] = Σ_{c,j} W₃[h,c,j]·X̂[n,c,t+j−1]; in training its moments and, by other programs, those of z₁."""
    program = tl.program_id(0)
    if program < hidden_blocks * column_parts:
        convolve(
            squeezed_ptr, conv_ptr, projected_ptr, local_ptr, program,
            columns, C, HIDDEN, hidden_blocks, column_parts, column_steps,
            T, TAPS, BLOCK_H, BLOCK_N, BLOCK_C, ACC, INDEX,
        )  # fmt: skip
    elif global_ptr is not None:
        row_moments(
            squeezed_ptr, first_ptr, global_ptr, program - hidden_blocks * column_parts,
            rows, WIDTH, wide_blocks, row_parts, row_steps, T, FRAMES, WIDE, ROWS, ACC, INDEX,
        )  # fmt: skip


@triton.jit
def scale_and_bias(
    norm, moments_ptr, statistics_ptr, first, i, size, parts, of_part, count: tl.int64, eps,
    PARTS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Mean, scale and bias of BatchNorm; in training the first program leaves (mean, unbiased variance, 1/σ).

    Which it does the `first` time: it may come by once for each block of frames.
    """
    scale, bias = load_vector(norm[0], i, size, ACC), load_vector(norm[1], i, size, ACC)
    if moments_ptr is None:
        mean = load_vector(norm[2], i, size, ACC)
        variance = load_vector(norm[3], i, size, ACC)
    else:
        mean, variance = batch_statistics(moments_ptr, i, size, parts, of_part, count, PARTS, ACC)
    inverse = 1 / tl.sqrt(variance + tl.full([], eps, ACC))
    if statistics_ptr is not None:  # noqa: SIM102  # this is known when Triton compiles
        if first & (tl.program_id(0) == 0):
            total = tl.full([], 0, ACC) + count
            tl.store(statistics_ptr + i, mean, mask=i < size)
            tl.store(statistics_ptr + size + i, variance * (total / (total - 1)), mask=i < size)
            tl.store(statistics_ptr + 2 * size + i, inverse, mask=i < size)
    return mean, scale * inverse, bias


@triton.jit(launch_metadata=metadata.weights)
def weights_kernel(
    squeezed_ptr, projected_ptr, conv_ptr, first_ptr, second_ptr, local_norm, global_norm,
    local_ptr, global_ptr, local_statistics_ptr, global_statistics_ptr, importance_ptr, kernel_ptr,
    columns, rows: tl.int64, C, HIDDEN, WIDTH, blocks, column_parts, of_column_part, row_parts, of_row_part,
    eps: tl.float64,
    T: tl.constexpr, K: tl.constexpr, FRAMES: tl.constexpr, WIDE: tl.constexpr, TAPS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_T: tl.constexpr,
    COLUMN_PARTS: tl.constexpr, ROW_PARTS: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """V[n,c,t] = σ(W₄·ReLU(BN(z₃))) and Θ[n,c,:] = softmax(W₂·ReLU(BN(W₁·X̂[n,c,:])))."""
    n = (tl.program_id(0) // blocks).to(tl.int64)
    c = (tl.program_id(0) % blocks).to(INDEX) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = n * C + c
    for t0 in range(0, T, BLOCK_T):
        t = t0 + tl.arange(0, BLOCK_T)
        column = n * T + t
        products = tl.zeros([BLOCK_C, BLOCK_H, BLOCK_T], ACC)
        for h0 in range(0, HIDDEN, BLOCK_H):
            h = (h0 + tl.arange(0, BLOCK_H)).to(INDEX)
            weight = load_matrix(conv_ptr, c, C, h, HIDDEN)
            projected = load_columns(projected_ptr, h, column, columns, HIDDEN, T, False)
            mean, scale, bias = scale_and_bias(
                local_norm, local_ptr, local_statistics_ptr, t0 == 0, h, HIDDEN, column_parts, of_column_part, columns,
                eps, COLUMN_PARTS, ACC,
            )  # fmt: skip
            products += weight.to(ACC)[:, :, None] * normalize(projected, mean, scale, bias)[None, :, :]
        total = tl.sum(products, axis=1)
        where = t[None, :].to(INDEX) * C + c[:, None] if CHANNELS_LAST else c[:, None] * T + t[None, :]
        power = tl.exp(-tl.abs(total))  # the sigmoid by a power that cannot overflow
        importance = quotient(tl.where(total >= 0, 1.0, power), 1 + power).to(importance_ptr.dtype.element_ty)
        tl.store(importance_ptr + n * C * T + where, importance, mask=(c < C)[:, None] & (t < T)[None, :])

    k = tl.arange(0, TAPS)
    scores = tl.zeros([TAPS, BLOCK_C], ACC)
    for w0 in range(0, WIDTH, WIDE):
        w = (w0 + tl.arange(0, WIDE)).to(INDEX)
        second = load_matrix(second_ptr, k.to(INDEX), K, w, WIDTH)
        wide = project_rows(squeezed_ptr, first_ptr, w, row, WIDTH, rows, T, FRAMES, tl.zeros([WIDE, BLOCK_C], ACC))
        mean, scale, bias = scale_and_bias(
            global_norm, global_ptr, global_statistics_ptr, True, w, WIDTH, row_parts, of_row_part, rows, eps,
            ROW_PARTS, ACC,
        )  # fmt: skip
        scores = product(second, normalize(wide, mean, scale, bias), scores)
    scores = tl.where(k[:, None] < K, scores, float("-inf"))
    powers = tl.exp(scores - tl.max(scores, axis=0)[None, :])
    theta = quotient(powers, tl.sum(powers, axis=0)[None, :]).to(kernel_ptr.dtype.element_ty)
    where = k[:, None].to(INDEX) * C + c[None, :] if CHANNELS_LAST else c[None, :] * K + k[:, None]
    tl.store(kernel_ptr + n * C * K + where, theta, mask=(k < K)[:, None] & (c < C)[None, :])


def branches(
    squeezed: Tensor, global_branch: Sequence[Tensor], local_branch: Sequence[Tensor], eps: float, channels_last: bool
) -> tuple[Tensor, Tensor]:
    """importance V `(N, C, T)` and kernel Θ `(N, C, K)` of X̂ `(N, C, T)`, in X̂'s dtype; arguments as in `plain`."""
    return launch_both(squeezed, global_branch, local_branch, eps, channels_last, training=False)[:2]


def training_branches(
    squeezed: Tensor,
    g_first: Tensor, g_weight: Tensor, g_bias: Tensor, g_second: Tensor,
    l_first: Tensor, l_weight: Tensor, l_bias: Tensor, l_second: Tensor,
    eps: float, channels_last: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """V, Θ, z₃ and both branches' statistics, as in `plain`."""
    global_branch, local_branch = (g_first, g_weight, g_bias, g_second), (l_first, l_weight, l_bias, l_second)
    return launch_both(squeezed, global_branch, local_branch, eps, channels_last, training=True)


def launch_both(
    squeezed: Tensor,
    global_branch: Sequence[Tensor],
    local_branch: Sequence[Tensor],
    eps: float,
    channels_last: bool,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """V, Θ, z₃ `(N, C/β, T)` and, in training, the statistics `(3, ·)` of both branches."""
    squeezed = squeezed.contiguous()
    g_first, *g_norm, g_second = (tensor.contiguous() for tensor in global_branch)
    l_first, *l_norm, l_second = (tensor.contiguous() for tensor in local_branch)
    clips, channels, num_segments = squeezed.shape
    hidden, width, kernel_size, taps = l_first.shape[0], g_first.shape[0], g_second.shape[0], l_first.shape[-1]
    acc, dtype = launch.accumulator(squeezed.dtype), launch.partial_dtype(squeezed.dtype)
    blocks = Blocks(clips, channels, num_segments, hidden, width, dtype)
    projected = squeezed.new_empty((clips, hidden, num_segments), dtype=dtype)
    importance = layout.empty_weights(squeezed, num_segments, channels_last)
    kernel = layout.empty_weights(squeezed, kernel_size, channels_last)
    local, of_global, l_statistics, g_statistics = None, None, None, None
    if training:
        local = squeezed.new_empty((2, blocks.column_parts, hidden), dtype=dtype)
        of_global = squeezed.new_empty((2, blocks.row_parts, width), dtype=dtype)
        l_statistics, g_statistics = (squeezed.new_empty((3, size), dtype=dtype) for size in (hidden, width))
    index = blocks.offset_dtype(taps, kernel_size)
    options = {"num_warps": launch.warps(launch.ROW_THREADS), "num_stages": 1, **launch.OPTIONS}
    hidden_blocks = launch.ceil_div(hidden, HIDDEN_OUTPUTS)
    of_rows = blocks.wide_blocks * blocks.row_parts if training else 0
    with launch.on_device(squeezed):
        projections_kernel[(hidden_blocks * blocks.column_parts + of_rows,)](
            squeezed, l_first, g_first, projected, local, of_global,
            clips * num_segments, clips * channels, channels, hidden, width,
            hidden_blocks, blocks.column_parts, blocks.column_steps,
            blocks.wide_blocks, blocks.row_parts, blocks.of_row_part // blocks.moment_rows,
            T=num_segments, TAPS=taps, FRAMES=OUTPUTS, WIDE=OUTPUTS, ROWS=blocks.moment_rows,
            BLOCK_H=HIDDEN_OUTPUTS, BLOCK_N=OUTPUTS, BLOCK_C=INPUTS, ACC=acc, INDEX=index, **options,
        )  # fmt: skip
        weights_kernel[(clips * blocks.blocks,)](
            squeezed, projected, l_second, g_first, g_second, tuple(l_norm), tuple(g_norm),
            local, of_global, l_statistics, g_statistics, importance, kernel,
            clips * num_segments, clips * channels, channels, hidden, width, blocks.blocks,
            blocks.column_parts, blocks.of_column_part, blocks.row_parts, blocks.of_row_part, eps,
            T=num_segments, K=kernel_size, FRAMES=OUTPUTS, WIDE=OUTPUTS, TAPS=launch.product_size(kernel_size),
            CHANNELS_LAST=channels_last, BLOCK_C=OUTPUTS, BLOCK_H=min(blocks.inputs, launch.next_power_of_2(hidden)),
            BLOCK_T=min(FRAMES, launch.next_power_of_2(num_segments)),
            COLUMN_PARTS=launch.next_power_of_2(blocks.column_parts),
            ROW_PARTS=launch.next_power_of_2(blocks.row_parts), ACC=acc, INDEX=index, **options,
        )  # fmt: skip
    return importance, kernel, projected, g_statistics, l_statistics  # type: ignore[return-value]


class Blocks:
    """Into what blocks and parts both branches are cut.

    `column_parts` of `of_column_part` columns are gone through in `column_steps` blocks each. Of rows there are forward
    `row_parts` of `of_row_part`, in blocks of `moment_rows`; backward, where a block has many sums, up to four times as
    many `gradient_parts`, of `gradient_steps` blocks of `rows` each.
    """

    def __init__(
        self, clips: int, channels: int, num_segments: int, hidden: int, width: int, dtype: torch.dtype
    ) -> None:
        double = dtype == torch.float64  # whose products hold all of their terms at once
        self.inputs, self.rows = (OUTPUTS, OUTPUTS) if double else (INPUTS, ROWS)
        self.blocks = launch.ceil_div(channels, OUTPUTS)
        self.hidden_blocks, self.wide_blocks = launch.ceil_div(hidden, OUTPUTS), launch.ceil_div(width, OUTPUTS)
        self.sizes = channels, num_segments, hidden, width
        self.columns = columns = clips * num_segments
        rows = clips * channels
        self.column_steps = launch.ceil_div(launch.ceil_div(columns, OUTPUTS), MOST_PARTS)
        self.of_column_part = self.column_steps * OUTPUTS
        self.column_parts = launch.ceil_div(columns, self.of_column_part)
        self.of_row_part = self.rows * launch.ceil_div(launch.ceil_div(rows, self.rows), MOST_PARTS)
        self.row_parts = launch.ceil_div(rows, self.of_row_part)
        self.moment_rows = min(self.of_row_part & -self.of_row_part, 4 * self.rows)
        self.gradient_steps = launch.ceil_div(launch.ceil_div(rows, self.rows), 4 * MOST_PARTS)
        self.gradient_parts = launch.ceil_div(rows, self.gradient_steps * self.rows)

    def offset_dtype(self, taps: int, kernel_size: int) -> tl.dtype:
        """Of columns, and of offsets in a clip's features and in weights."""
        channels, num_segments, hidden, width = self.sizes
        rows = max(channels, hidden, width, kernel_size)
        largest = max(rows * max(channels * taps, width, num_segments), self.columns)
        return launch.offset_dtype(largest, OUTPUTS * INPUTS)
