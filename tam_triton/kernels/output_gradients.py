"""The first launch of the branches' backward: from V and Θ to what enters the ReLUs (see `branch_gradients`)."""

import triton
import triton.language as tl

from tam_triton.kernels import metadata
from tam_triton.kernels.frames import relu
from tam_triton.kernels.projections import load_columns, load_matrix, load_vector, product, project_rows


@triton.jit
def norm_of(norm, i, size, ACC: tl.constexpr):
    """γ, β, mean and 1/σ of channels i, from weight, bias and `(mean, variance, 1/σ)`; columns follow."""
    mean = load_vector(norm[2], i, size, ACC)
    inverse = load_vector(norm[2] + 2 * size, i, size, ACC)
    return load_vector(norm[0], i, size, ACC), load_vector(norm[1], i, size, ACC), mean, inverse


@triton.jit
def activate(values, weight, bias, mean, inverse):
    """BatchNorm's normalized input, and its output before ReLU, as the forward had it."""
    centred = values - mean[:, None]
    return centred * inverse[:, None], centred * (weight * inverse)[:, None] + bias[:, None]


@triton.jit
def score_columns(
    d_importance_ptr, importance_ptr, c, column, columns, C, T: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, D_CHANNELS_LAST: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradient of what enters the sigmoid, from those of V."""
    v = load_columns(importance_ptr, c, column, columns, C, T, CHANNELS_LAST).to(ACC)
    return load_columns(d_importance_ptr, c, column, columns, C, T, D_CHANNELS_LAST).to(ACC) * v * (1 - v)


@triton.jit
def score_rows(
    d_kernel_ptr, kernel_ptr, k, row, rows, C, K: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, D_CHANNELS_LAST: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradient of what enters the softmax, from those of Θ; taps by rows."""
    theta = load_taps(kernel_ptr, k, row, rows, C, K, CHANNELS_LAST).to(ACC)
    d_theta = load_taps(d_kernel_ptr, k, row, rows, C, K, D_CHANNELS_LAST).to(ACC)
    return theta * (d_theta - tl.sum(theta * d_theta + 0.0, axis=0)[None, :])


@triton.jit
def load_taps(values_ptr, k, row, rows, C, K: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Values `(N, C, K)` of taps by rows, which are int64."""
    inside = (row < rows)[None, :] & (k < K)[:, None]
    if CHANNELS_LAST:
        n = row // C
        at = (n * (K - 1) * C + row)[None, :] + k[:, None].to(tl.int64) * C  # n·K·C + k·C + c
    else:
        at = row[None, :] * K + k[:, None]
    return tl.load(values_ptr + at, mask=inside, other=0.0)


@triton.jit
def local_outputs(
    d_importance_ptr, importance_ptr, projected_ptr, second_ptr, norm, d_output_ptr, sums_ptr, program,
    columns, C, HIDDEN, blocks, parts, steps,
    T: tl.constexpr, CHANNELS_LAST: tl.constexpr, D_CHANNELS_LAST: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """The gradient of the output of L's BatchNorm for some hidden channels in one part of the columns; its sums."""
    h = (program % blocks).to(INDEX) * BLOCK_H + tl.arange(0, BLOCK_H)
    part, columns = (program // blocks).to(INDEX), tl.cast(columns, INDEX)
    weight, bias, mean, inverse = norm_of(norm, h, HIDDEN, ACC)
    sum_d, sum_dn = tl.zeros([BLOCK_H], ACC), tl.zeros([BLOCK_H], ACC)
    for first in range(part * steps * BLOCK_N, tl.minimum((part + 1) * steps * BLOCK_N, columns), BLOCK_N):
        column = first + tl.arange(0, BLOCK_N)
        projected = load_columns(projected_ptr, h, column, columns, HIDDEN, T, False)
        c = tl.arange(0, BLOCK_C).to(INDEX)
        second = load_matrix(second_ptr, c, C, h, HIDDEN)
        scores = score_columns(
            d_importance_ptr, importance_ptr, c, column, columns, C, T, CHANNELS_LAST, D_CHANNELS_LAST, ACC
        )
        total = tl.zeros([BLOCK_H, BLOCK_N], ACC)
        for c0 in range(0, C, BLOCK_C):
            next_c = c + c0 + BLOCK_C
            next_second = load_matrix(second_ptr, next_c, C, h, HIDDEN)
            next_scores = score_columns(
                d_importance_ptr, importance_ptr, next_c, column, columns, C, T, CHANNELS_LAST, D_CHANNELS_LAST, ACC
            )
            total = product(tl.trans(second.to(ACC)), scores, total)
            second, scores = next_second, next_scores
        normalized, output = activate(projected, weight, bias, mean, inverse)
        inside = (h < HIDDEN)[:, None] & (column < columns)[None, :]
        d_output = tl.where(inside & ~(output <= 0), total, 0.0)
        sum_d += tl.sum(d_output, axis=1)
        sum_dn += tl.sum(d_output * normalized + 0.0, axis=1)
        n, t = (column // T).to(tl.int64)[None, :], (column % T)[None, :]
        tl.store(d_output_ptr + (n * HIDDEN + h[:, None]) * T + t, d_output, mask=inside)
    tl.store(sums_ptr + part * 2 * HIDDEN + h, sum_d, mask=h < HIDDEN)
    tl.store(sums_ptr + (part * 2 + 1) * HIDDEN + h, sum_dn, mask=h < HIDDEN)


@triton.jit
def global_outputs(
    d_kernel_ptr, kernel_ptr, squeezed_ptr, first_ptr, second_ptr, norm, sums_ptr, program,
    rows: tl.int64, C, WIDTH, size, blocks, parts, steps,
    T: tl.constexpr, K: tl.constexpr, CHANNELS_LAST: tl.constexpr, D_CHANNELS_LAST: tl.constexpr,
    FRAMES: tl.constexpr, TAPS: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, ACC: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    """The sums of one part of the rows, for some features and frames: of d, dẑ, X̂, d·X̂, ẑ·X̂, and dW₂ (see above)."""
    part, block = program % parts, program // parts
    w = (block % blocks).to(INDEX) * WIDE + tl.arange(0, WIDE)
    t = block // blocks * FRAMES + tl.arange(0, FRAMES)
    k = tl.arange(0, TAPS)
    weight, bias, mean, inverse = norm_of(norm, w, WIDTH, ACC)
    second = load_matrix(second_ptr, k.to(INDEX), K, w, WIDTH).to(ACC)
    leading = tl.arange(0, ROWS)[:, None]
    origin = tl.load(squeezed_ptr + leading * T + t[None, :], mask=(leading < rows) & (t < T)[None, :], other=0.0)
    origin = tl.sum(origin.to(ACC), axis=0) / tl.minimum(rows, ROWS).to(ACC)
    sum_d, sum_dn = tl.zeros([WIDE], ACC), tl.zeros([WIDE], ACC)
    sum_x = tl.zeros([FRAMES], ACC)
    sum_dx, sum_nx = tl.zeros([WIDE, FRAMES], ACC), tl.zeros([WIDE, FRAMES], ACC)
    d_second = tl.zeros([TAPS, WIDE], ACC)
    for step in range(steps):
        first = (part.to(tl.int64) * steps + step) * ROWS
        row = first + tl.arange(0, ROWS)
        there = (row < rows)[:, None]
        squeezed = tl.load(squeezed_ptr + row[:, None] * T + t[None, :], mask=there & (t < T)[None, :], other=0.0)
        shifted = tl.where(there, squeezed.to(ACC) - origin[None, :], 0.0)
        wide = project_rows(squeezed_ptr, first_ptr, w, row, WIDTH, rows, T, FRAMES, tl.zeros([WIDE, ROWS], ACC))
        scores = score_rows(d_kernel_ptr, kernel_ptr, k, row, rows, C, K, CHANNELS_LAST, D_CHANNELS_LAST, ACC)
        normalized, output = activate(wide, weight, bias, mean, inverse)
        normalized = tl.where((row < rows)[None, :], normalized, 0.0)
        d_output = product(tl.trans(second.to(ACC)), scores, tl.zeros([WIDE, ROWS], ACC))
        d_output = tl.where(output <= 0, 0.0, d_output)
        d_second = product(scores, tl.trans(relu(output)), d_second)
        sum_d += tl.sum(d_output, axis=1)
        sum_dn += tl.sum(d_output * normalized + 0.0, axis=1)
        sum_x += tl.sum(shifted, axis=0)
        sum_dx = product(d_output, shifted, sum_dx)
        sum_nx = product(normalized, shifted, sum_nx)
    sums_ptr += part.to(tl.int64) * size
    known, at = (w < WIDTH)[:, None] & (t < T)[None, :], w[:, None] * T + t[None, :]
    tl.store(sums_ptr + at, sum_dx, mask=known)
    tl.store(sums_ptr + WIDTH * T + at, sum_nx, mask=known)
    sums_ptr += 2 * WIDTH * T
    if block // blocks == 0:
        tl.store(sums_ptr + w, sum_d, mask=w < WIDTH)
        tl.store(sums_ptr + WIDTH + w, sum_dn, mask=w < WIDTH)
        of_second = k.to(INDEX)[:, None] * WIDTH + w[None, :]
        tl.store(sums_ptr + 2 * WIDTH + of_second, d_second, mask=(k < K)[:, None] & (w < WIDTH)[None, :])
    if block % blocks == 0:
        tl.store(sums_ptr + (2 + K) * WIDTH + t, sum_x, mask=t < T)


@triton.jit(launch_metadata=metadata.output_gradients)
def output_gradients_kernel(
    d_importance_ptr, d_kernel_ptr, squeezed_ptr, importance_ptr, kernel_ptr, projected_ptr,
    first_ptr, second_ptr, l_second_ptr, global_norm, local_norm, d_output_ptr, local_ptr, global_ptr,
    columns, rows: tl.int64, C, HIDDEN, WIDTH, size, hidden_blocks, column_parts, column_steps, wide_blocks,
    row_parts, row_steps,
    T: tl.constexpr, K: tl.constexpr, CHANNELS_LAST: tl.constexpr, D_CHANNELS_LAST: tl.constexpr,
    FRAMES: tl.constexpr, TAPS: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """From dV and dΘ to the outputs of both BatchNorms, and their sums over the batch."""
    program = tl.program_id(0)
    if program < hidden_blocks * column_parts:
        local_outputs(
            d_importance_ptr, importance_ptr, projected_ptr, l_second_ptr, local_norm, d_output_ptr, local_ptr, program,
            columns, C, HIDDEN, hidden_blocks, column_parts, column_steps,
            T, CHANNELS_LAST, D_CHANNELS_LAST, BLOCK_H, BLOCK_N, BLOCK_C, ACC, INDEX,
        )  # fmt: skip
    else:
        global_outputs(
            d_kernel_ptr, kernel_ptr, squeezed_ptr, first_ptr, second_ptr, global_norm, global_ptr,
            program - hidden_blocks * column_parts,
            rows, C, WIDTH, size, wide_blocks, row_parts, row_steps,
            T, K, CHANNELS_LAST, D_CHANNELS_LAST, FRAMES, TAPS, WIDE, ROWS, ACC, INDEX,
        )  # fmt: skip
