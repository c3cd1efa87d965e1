"""Excitation and aggregation in one pass (equations 4 and 5): Y[t] = Σ_k Θ[k]·V[t+k−K//2]·X[t+k−K//2].

A program walks one block of a clip's elements through time. It reads each frame once, keeps K−1 unfinished sums in
registers, and writes each frame once: two passes over a tensor of X's size.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from tam_triton import layout
from tam_triton.kernels import launch
from tam_triton.kernels.frames import channel_of, folded_norm, relu, weighted


@triton.jit
def aggregate_kernel(
    x_ptr, importance_ptr, kernel_ptr, y_ptr, weight_ptr, bias_ptr, mean_ptr, variance_ptr,
    C, P, blocks, eps, frame: tl.int64,
    T: tl.constexpr, K: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACTIVATED: tl.constexpr,
    SPAN: tl.constexpr, AHEAD: tl.constexpr, VECTORS: tl.constexpr, VECTOR: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = K // 2
    n = (tl.program_id(0) // blocks).to(tl.int64)
    start = ((tl.program_id(0) % blocks).to(INDEX) * VECTORS + tl.arange(0, VECTORS))[:, None] * VECTOR
    lane = tl.arange(0, VECTOR)[None, :]
    inside = start + lane < frame
    x_ptr += n * T * frame + start + lane
    y_ptr += n * T * frame + start + lane

    c = channel_of(start, lane, C, P, CHANNELS_LAST, SPAN)
    own = start + lane < (c + 1) * P
    present = c < C
    following = c + 1 < C
    step = C if CHANNELS_LAST else 1  # weights lie as x does: channels fastest, or time
    importance_ptr += n * C * T + (c if CHANNELS_LAST else c * T)
    kernel_ptr += n * C * K + (c if CHANNELS_LAST else c * K)

    taps = ()
    next_taps = ()
    for k in tl.static_range(K):
        taps = taps + (tl.load(kernel_ptr + k * step, mask=present, other=0.0).to(ACC),)
        if SPAN == 2:
            next_taps = next_taps + (tl.load(kernel_ptr + K + k * step, mask=following, other=0.0).to(ACC),)
        else:
            next_taps = taps
    if ACTIVATED:
        scale, shift = folded_norm(weight_ptr, bias_ptr, mean_ptr, variance_ptr, eps, c, present, ACC)
        if SPAN == 2:
            next_scale, next_shift = folded_norm(
                weight_ptr, bias_ptr, mean_ptr, variance_ptr, eps, c + 1, following, ACC
            )
            scale = tl.where(own, scale, next_scale)
            shift = tl.where(own, shift, next_shift)
    sums = ()  # sums[i] is output s − K//2 + i before frame s is added
    for _ in tl.static_range(K - 1):
        sums = sums + (tl.zeros([VECTORS, VECTOR], ACC),)

    for first in range(0, T + HALF, AHEAD):
        frames = ()
        for i in tl.static_range(AHEAD):
            s = first + i
            frames = frames + (tl.load(x_ptr + s * frame, mask=inside & (s < T), other=0.0).to(ACC),)
        for i in tl.static_range(AHEAD):
            s = first + i
            x = relu(frames[i] * scale + shift) if ACTIVATED else frames[i]
            v = tl.load(importance_ptr + s * step, mask=present & (s < T), other=0.0).to(ACC)
            next_v = v
            if SPAN == 2:
                next_v = tl.load(importance_ptr + T + s * step, mask=following & (s < T), other=0.0).to(ACC)
            added = ()
            for k in tl.static_range(K):
                term = weighted(x, taps[K - 1 - k], v, next_taps[K - 1 - k], next_v, own, SPAN)
                added = added + (sums[k] + term if k < K - 1 else term,)
            t = s - HALF
            tl.store(y_ptr + t * frame, added[0].to(y_ptr.dtype.element_ty), mask=inside & (t >= 0) & (t < T))
            sums = added[1:]


def aggregate(
    x: Tensor, importance: Tensor, kernel: Tensor, norm: Sequence[Tensor] | None = None, eps: float = 0.0
) -> Tensor:
    """y like x `(N·T, C, H, W)` from importance V `(N, C, T)` and kernel Θ `(N, C, K)`.

    With `norm` (weight, bias, running mean and variance of a BatchNorm) of ReLU(BN(x)), which is never written.
    """
    channels_last = layout.is_channels_last(x)
    x = layout.to_layout(x, channels_last)
    y = layout.empty_result(x)
    clips, channels, num_segments = importance.shape
    kernel_size, pixels = kernel.shape[-1], x.shape[2] * x.shape[3]
    block = launch.temporal_block(channels, pixels, channels_last, x.element_size())
    blocks = launch.ceil_div(channels * pixels, block.elements)
    with launch.on_device(x):
        aggregate_kernel[(clips * blocks,)](
            x, layout.dense_weights(importance, channels_last), layout.dense_weights(kernel, channels_last), y,
            *(norm or [x] * 4), channels, pixels, blocks, eps, channels * pixels,
            T=num_segments, K=kernel_size, CHANNELS_LAST=channels_last, ACTIVATED=norm is not None,
            SPAN=block.span, AHEAD=block.ahead,
            VECTORS=block.vectors, VECTOR=block.vector,
            ACC=launch.accumulator(x.dtype), INDEX=launch.offset_dtype(channels * pixels, block.elements),
            num_warps=1, **launch.OPTIONS,
        )  # fmt: skip
    return y


def activated_aggregate(x: Tensor, norm: Sequence[Tensor], eps: float, importance: Tensor, kernel: Tensor) -> Tensor:
    """`aggregate` of ReLU(BN(x)) with running statistics."""
    return aggregate(x, importance, kernel, norm, eps)
