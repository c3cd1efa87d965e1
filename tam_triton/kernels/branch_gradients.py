"""Gradients of both branches in training, in two launches (equations 2 and 3).

The first goes back from V and Θ to what enters the ReLUs, and leaves what BatchNorm has to know of the whole batch:
sums over columns for the local branch, over rows for the global one, in a few parts. In the second every program adds
these up where it needs them. It writes dX̂ from both branches, and both weights of the local branch.

The weights of the global branch are never summed over rows again. With d the gradient of BatchNorm's output and ẑ its
normalized input, dz₁ = γ/σ·(d − Σd/M − ẑ·Σdẑ/M) is linear in d and ẑ, so dW₁ = Σ dz₁·X̂ follows from the sums of d·X̂,
ẑ·X̂ and X̂. These are of X̂ less the mean of its first rows, as Σ dz₁ = 0 allows: a large mean costs no digits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tam_triton import layout
from tam_triton.kernels import launch, metadata
from tam_triton.kernels.branches import OUTPUTS, Blocks
from tam_triton.kernels.frames import relu
from tam_triton.kernels.output_gradients import activate, norm_of, output_gradients_kernel, score_columns, score_rows
from tam_triton.kernels.projections import load_matrix, load_windows, product, project_rows, quotient, sum_of_parts


@triton.jit
def through_norm(d_output, normalized, sum_d, sum_dn, weight, inverse, count, ACC: tl.constexpr):
    """BatchNorm's gradient, from that of its output."""
    total = tl.full([], 0, ACC) + count
    d_centred = d_output - quotient(sum_d[:, None] + normalized * sum_dn[:, None], total)
    return (weight * inverse)[:, None] * d_centred


@triton.jit
def load_norm(norm, sums_ptr, h, HIDDEN, parts, PARTS: tl.constexpr, ACC: tl.constexpr):
    """L's BatchNorm for hidden channels h, and the sums over the batch that its gradient needs."""
    weight, bias, mean, inverse = norm_of(norm, h, HIDDEN, ACC)
    sum_d = sum_of_parts(sums_ptr, h, h < HIDDEN, 2 * HIDDEN, parts, PARTS)
    sum_dn = sum_of_parts(sums_ptr + HIDDEN, h, h < HIDDEN, 2 * HIDDEN, parts, PARTS)
    return weight, bias, mean, inverse, sum_d, sum_dn


@triton.jit
def projection_gradient(d_output, projected, norm, inside, columns, ACC: tl.constexpr):
    """dz₃, and the hidden layer there; zeros where not `inside`."""
    weight, bias, mean, inverse, sum_d, sum_dn = norm
    normalized, output = activate(projected, weight, bias, mean, inverse)
    d_projected = through_norm(d_output, normalized, sum_d, sum_dn, weight, inverse, columns, ACC)
    return tl.where(inside, d_projected, 0.0), tl.where(inside, relu(output), 0.0)


@triton.jit
def squeezed_gradient(
    d_kernel_ptr, squeezed_ptr, kernel_ptr, projected_ptr, d_output_ptr, first_ptr, second_ptr, conv_ptr,
    global_norm, local_norm, local_ptr, global_ptr, dx_ptr, program,
    columns, rows: tl.int64, C, HIDDEN, WIDTH, size, blocks, column_parts, row_parts,
    T: tl.constexpr, K: tl.constexpr, CONV: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, D_CHANNELS_LAST: tl.constexpr, X_CHANNELS_LAST: tl.constexpr,
    FRAMES: tl.constexpr, TAPS: tl.constexpr, WIDE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
    COLUMN_PARTS: tl.constexpr, ROW_PARTS: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """dX̂ of some channels of a clip, by way of V and by way of Θ."""
    n = (program // blocks).to(tl.int64)
    c = (program % blocks).to(INDEX) * BLOCK_C + tl.arange(0, BLOCK_C)
    row, k = n * C + c, tl.arange(0, TAPS)
    present = (c < C)[:, None]
    for t0 in range(0, T, FRAMES):
        t = t0 + tl.arange(0, FRAMES)
        products = tl.zeros([BLOCK_C, BLOCK_K, FRAMES], ACC)
        for h0 in range(0, HIDDEN, BLOCK_K):
            h = (h0 + tl.arange(0, BLOCK_K)).to(INDEX)
            loaded = ()
            for j in tl.static_range(CONV):  # all are asked for before the first is multiplied
                s = t[None, :] - (j - CONV // 2)
                inside = (h < HIDDEN)[:, None] & (s >= 0) & (s < T)
                at = (n * HIDDEN + h[:, None]) * T + s
                conv_at = (h[None, :] * C + c[:, None]) * CONV + j
                loaded = loaded + (
                    (
                        tl.load(d_output_ptr + at, mask=inside, other=0.0),
                        tl.load(projected_ptr + at, mask=inside, other=0.0),
                        tl.load(conv_ptr + conv_at, mask=present & (h < HIDDEN)[None, :], other=0.0),
                        inside,
                    ),
                )
            norm = load_norm(local_norm, local_ptr, h, HIDDEN, column_parts, COLUMN_PARTS, ACC)
            for j in tl.static_range(CONV):
                d_projected, _ = projection_gradient(loaded[j][0], loaded[j][1], norm, loaded[j][3], columns, ACC)
                products += loaded[j][2].to(ACC)[:, :, None] * d_projected[None, :, :]
        total = tl.sum(products, axis=1)
        for w0 in range(0, WIDTH, WIDE):
            w = (w0 + tl.arange(0, WIDE)).to(INDEX)
            first = load_matrix(first_ptr, w, WIDTH, t, T)
            second = load_matrix(second_ptr, k.to(INDEX), K, w, WIDTH)
            scores = score_rows(d_kernel_ptr, kernel_ptr, k, row, rows, C, K, CHANNELS_LAST, D_CHANNELS_LAST, ACC)
            wide = project_rows(squeezed_ptr, first_ptr, w, row, WIDTH, rows, T, FRAMES, tl.zeros([WIDE, BLOCK_C], ACC))
            weight, bias, mean, inverse = norm_of(global_norm, w, WIDTH, ACC)
            sum_d = sum_of_parts(global_ptr + 2 * WIDTH * T, w, w < WIDTH, size, row_parts, ROW_PARTS)
            sum_dn = sum_of_parts(global_ptr + (2 * T + 1) * WIDTH, w, w < WIDTH, size, row_parts, ROW_PARTS)
            normalized, output = activate(wide, weight, bias, mean, inverse)
            d_output = product(tl.trans(second.to(ACC)), scores, tl.zeros([WIDE, BLOCK_C], ACC))
            d_output = tl.where(output <= 0, 0.0, d_output)
            d_wide = through_norm(d_output, normalized, sum_d, sum_dn, weight, inverse, rows, ACC)
            total = product(tl.trans(d_wide), first, total)
        dx = total.to(dx_ptr.dtype.element_ty)
        where = (n * T + t[None, :]) * C + c[:, None] if X_CHANNELS_LAST else row[:, None] * T + t[None, :]
        tl.store(dx_ptr + where, dx, mask=present & (t < T)[None, :])


@triton.jit
def local_weights(
    d_importance_ptr, importance_ptr, squeezed_ptr, projected_ptr, d_output_ptr, norm, sums_ptr,
    d_first_ptr, d_weight_ptr, d_bias_ptr, d_second_ptr, program,
    columns, C, HIDDEN, hidden_blocks, tap_blocks, parts,
    T: tl.constexpr, CONV: tl.constexpr, CHANNELS_LAST: tl.constexpr, D_CHANNELS_LAST: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, PARTS: tl.constexpr, ACC: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    """dW₃ of some hidden channels by channels and taps, or dW₄ of them by channels; one program also dγ and dβ."""
    h = (program % hidden_blocks).to(INDEX) * BLOCK_H + tl.arange(0, BLOCK_H)
    block = program // hidden_blocks
    of_first = block < tap_blocks
    k = tl.where(of_first, block, block - tap_blocks).to(INDEX) * BLOCK_K + tl.arange(0, BLOCK_K)
    norm = load_norm(norm, sums_ptr, h, HIDDEN, parts, PARTS, ACC)
    _, _, _, _, sum_d, sum_dn = norm
    total = tl.zeros([BLOCK_H, BLOCK_K], ACC)
    columns = tl.cast(columns, INDEX)
    for first in range(0, columns, BLOCK_N):
        column = first + tl.arange(0, BLOCK_N)
        n, t = (column // T).to(tl.int64)[None, :], (column % T)[None, :]
        inside = (h < HIDDEN)[:, None] & (column < columns)[None, :]
        at = (n * HIDDEN + h[:, None]) * T + t
        d_output = tl.load(d_output_ptr + at, mask=inside, other=0.0)
        projected = tl.load(projected_ptr + at, mask=inside, other=0.0)
        d_projected, hidden = projection_gradient(d_output, projected, norm, inside, columns, ACC)
        if of_first:
            windows = load_windows(squeezed_ptr, k, column, columns, C, T, CONV)
            total = product(d_projected, tl.trans(windows.to(ACC)), total)
        else:
            scores = score_columns(
                d_importance_ptr, importance_ptr, k, column, columns, C, T, CHANNELS_LAST, D_CHANNELS_LAST, ACC
            )
            total = product(hidden, tl.trans(scores), total)
        if block == 0 and first == 0:
            tl.store(d_weight_ptr + h, sum_dn.to(d_weight_ptr.dtype.element_ty), mask=h < HIDDEN)
            tl.store(d_bias_ptr + h, sum_d.to(d_bias_ptr.dtype.element_ty), mask=h < HIDDEN)
    if of_first:
        known = (h < HIDDEN)[:, None] & (k < tl.cast(C, INDEX) * CONV)[None, :]
        tl.store(d_first_ptr + h[:, None] * C * CONV + k[None, :], total.to(d_first_ptr.dtype.element_ty), mask=known)
    else:
        known = (h < HIDDEN)[:, None] & (k < C)[None, :]
        tl.store(d_second_ptr + k[None, :] * HIDDEN + h[:, None], total.to(d_second_ptr.dtype.element_ty), mask=known)


@triton.jit
def global_weights(
    norm, sums_ptr, d_first_ptr, d_weight_ptr, d_bias_ptr, d_second_ptr, program,
    rows: tl.int64, WIDTH, size, parts,
    T: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr, ACC: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    """A block of dW₁, and of the other gradients of G, from the sums."""
    i = program.to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    w, t, known = i // T, i % T, i < WIDTH * T
    vectors_ptr = sums_ptr + 2 * WIDTH * T
    sum_dx = sum_of_parts(sums_ptr, i, known, size, parts, PARTS)
    sum_nx = sum_of_parts(sums_ptr + WIDTH * T, i, known, size, parts, PARTS)
    sum_d = sum_of_parts(vectors_ptr, w, known, size, parts, PARTS)
    sum_dn = sum_of_parts(vectors_ptr + WIDTH, w, known, size, parts, PARTS)
    sum_x = sum_of_parts(vectors_ptr + (2 + K) * WIDTH, t, known, size, parts, PARTS)
    weight, _, _, inverse = norm_of(norm, w, WIDTH, ACC)
    mean = quotient(sum_d * sum_x + sum_dn * sum_nx, tl.full([], 0, ACC) + rows)
    d_first = weight * inverse * (sum_dx - mean)
    tl.store(d_first_ptr + i, d_first.to(d_first_ptr.dtype.element_ty), mask=known)
    if program * BLOCK < WIDTH:
        sum_d = sum_of_parts(vectors_ptr, i, i < WIDTH, size, parts, PARTS)
        sum_dn = sum_of_parts(vectors_ptr + WIDTH, i, i < WIDTH, size, parts, PARTS)
        tl.store(d_weight_ptr + i, sum_dn.to(d_weight_ptr.dtype.element_ty), mask=i < WIDTH)
        tl.store(d_bias_ptr + i, sum_d.to(d_bias_ptr.dtype.element_ty), mask=i < WIDTH)
    if program * BLOCK < K * WIDTH:
        d_second = sum_of_parts(vectors_ptr + 2 * WIDTH, i, i < K * WIDTH, size, parts, PARTS)
        tl.store(d_second_ptr + i, d_second.to(d_second_ptr.dtype.element_ty), mask=i < K * WIDTH)


@triton.jit(launch_metadata=metadata.input_gradients)
def input_gradients_kernel(
    d_importance_ptr, d_kernel_ptr, squeezed_ptr, importance_ptr, kernel_ptr, projected_ptr, d_output_ptr,
    first_ptr, second_ptr, conv_ptr, global_norm, local_norm, local_ptr, global_ptr,
    dx_ptr, global_gradients, local_gradients,
    columns, rows: tl.int64, C, HIDDEN, WIDTH, size, blocks, clip_blocks, hidden_blocks, tap_blocks, weight_blocks,
    column_parts, row_parts,
    T: tl.constexpr, K: tl.constexpr, CONV: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, D_CHANNELS_LAST: tl.constexpr, X_CHANNELS_LAST: tl.constexpr,
    FRAMES: tl.constexpr, TAPS: tl.constexpr, WIDE: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK: tl.constexpr,
    COLUMN_PARTS: tl.constexpr, ROW_PARTS: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """dX̂ and the gradients of all parameters."""
    program = tl.program_id(0)
    if program < clip_blocks:
        squeezed_gradient(
            d_kernel_ptr, squeezed_ptr, kernel_ptr, projected_ptr, d_output_ptr, first_ptr, second_ptr, conv_ptr,
            global_norm, local_norm, local_ptr, global_ptr, dx_ptr, program,
            columns, rows, C, HIDDEN, WIDTH, size, blocks, column_parts, row_parts,
            T, K, CONV, CHANNELS_LAST, D_CHANNELS_LAST, X_CHANNELS_LAST,
            FRAMES, TAPS, WIDE, BLOCK_C, BLOCK_S, COLUMN_PARTS, ROW_PARTS, ACC, INDEX,
        )  # fmt: skip
    elif program - clip_blocks < weight_blocks:
        local_weights(
            d_importance_ptr, importance_ptr, squeezed_ptr, projected_ptr, d_output_ptr, local_norm, local_ptr,
            local_gradients[0], local_gradients[1], local_gradients[2], local_gradients[3], program - clip_blocks,
            columns, C, HIDDEN, hidden_blocks, tap_blocks, column_parts,
            T, CONV, CHANNELS_LAST, D_CHANNELS_LAST, BLOCK_H, BLOCK_K, BLOCK_N, COLUMN_PARTS, ACC, INDEX,
        )  # fmt: skip
    else:
        global_weights(
            global_norm, global_ptr,
            global_gradients[0], global_gradients[1], global_gradients[2], global_gradients[3],
            program - clip_blocks - weight_blocks,
            rows, WIDTH, size, row_parts, T, K, BLOCK, ROW_PARTS, ACC, INDEX,
        )  # fmt: skip


def branch_gradients(
    d_importance: Tensor, d_kernel: Tensor, squeezed: Tensor, importance: Tensor, kernel: Tensor, projected: Tensor,
    g_first: Tensor, g_weight: Tensor, g_bias: Tensor, g_second: Tensor,
    l_first: Tensor, l_weight: Tensor, l_bias: Tensor, l_second: Tensor,
    g_statistics: Tensor, l_statistics: Tensor, channels_last: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dX̂ and the gradients of both branches' parameters, as in `plain`."""
    parameters = (g_first, g_weight, g_bias, g_second, l_first, l_weight, l_bias, l_second)
    dx = layout.empty_weights(squeezed, squeezed.shape[-1], channels_last)
    gradients = tuple(one.new_empty(one.shape) for one in parameters)
    g_first, g_weight, g_bias, g_second = (one.contiguous() for one in parameters[:4])
    l_first, l_weight, l_bias, l_second = (one.contiguous() for one in parameters[4:])
    (importance, kernel), of_weights = layout.readable_weights((importance, kernel))
    (d_importance, d_kernel), of_gradients = layout.readable_weights((d_importance, d_kernel))
    squeezed, projected = squeezed.contiguous(), projected.contiguous()
    clips, channels, num_segments = squeezed.shape
    hidden, width, kernel_size, taps = l_first.shape[0], g_first.shape[0], g_second.shape[0], l_first.shape[-1]
    blocks = Blocks(clips, channels, num_segments, hidden, width, projected.dtype)
    size = width * (2 * num_segments + 2 + kernel_size) + num_segments  # of the global branch's sums
    d_output = torch.empty_like(projected)
    local, of_global = (
        projected.new_empty((blocks.column_parts, 2, hidden)),
        projected.new_empty((blocks.gradient_parts, size)),
    )
    global_norm, local_norm = (
        (g_weight, g_bias, g_statistics.contiguous()),
        (l_weight, l_bias, l_statistics.contiguous()),
    )
    acc = launch.accumulator(projected.dtype)
    index = blocks.offset_dtype(taps, kernel_size)
    inputs = min(blocks.inputs, 2 * OUTPUTS)  # of the second launch: registers
    tap_blocks = launch.ceil_div(channels * taps, inputs)
    weight_blocks = blocks.hidden_blocks * (tap_blocks + launch.ceil_div(channels, inputs))
    sum_blocks = launch.ceil_div(width * max(num_segments, kernel_size), inputs)
    of_rows = blocks.gradient_parts * blocks.wide_blocks * launch.ceil_div(num_segments, OUTPUTS)
    options = {"num_warps": launch.warps(launch.ROW_THREADS), "num_stages": 1, **launch.OPTIONS}
    with launch.on_device(squeezed):
        output_gradients_kernel[(blocks.hidden_blocks * blocks.column_parts + of_rows,)](
            d_importance, d_kernel, squeezed, importance, kernel, projected,
            g_first, g_second, l_second, global_norm, local_norm, d_output, local, of_global,
            clips * num_segments, clips * channels, channels, hidden, width, size,
            blocks.hidden_blocks, blocks.column_parts, blocks.column_steps,
            blocks.wide_blocks, blocks.gradient_parts, blocks.gradient_steps,
            T=num_segments, K=kernel_size, CHANNELS_LAST=of_weights, D_CHANNELS_LAST=of_gradients,
            FRAMES=OUTPUTS, TAPS=launch.product_size(kernel_size), WIDE=OUTPUTS,
            ROWS=blocks.rows, BLOCK_H=OUTPUTS, BLOCK_N=OUTPUTS, BLOCK_C=blocks.inputs, ACC=acc, INDEX=index, **options,
        )  # fmt: skip
        input_gradients_kernel[(clips * blocks.blocks + weight_blocks + sum_blocks,)](
            d_importance, d_kernel, squeezed, importance, kernel, projected, d_output,
            g_first, g_second, l_first, global_norm, local_norm, local, of_global,
            dx, gradients[:4], gradients[4:],
            clips * num_segments, clips * channels, channels, hidden, width, size, blocks.blocks,
            clips * blocks.blocks, blocks.hidden_blocks, tap_blocks, weight_blocks,
            blocks.column_parts, blocks.gradient_parts,
            T=num_segments, K=kernel_size, CONV=taps,
            CHANNELS_LAST=of_weights, D_CHANNELS_LAST=of_gradients, X_CHANNELS_LAST=channels_last,
            FRAMES=OUTPUTS, TAPS=launch.product_size(kernel_size),
            WIDE=OUTPUTS, BLOCK_H=OUTPUTS, BLOCK_C=OUTPUTS, BLOCK_S=OUTPUTS, BLOCK_K=inputs, BLOCK=inputs,
            BLOCK_N=inputs, COLUMN_PARTS=launch.next_power_of_2(blocks.column_parts),
            ROW_PARTS=launch.next_power_of_2(blocks.gradient_parts), ACC=acc, INDEX=index, **options,
        )  # fmt: skip
    return dx, *gradients  # type: ignore[return-value]
