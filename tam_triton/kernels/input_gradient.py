"""Gradient of X in one pass: dX[s] = V[s]·Σ_k Θ[k]·dY[s−k+K//2] + dX̂[s]/P.

The walk of the forward kernel with the taps in reverse order. The squeeze's gradient is added where dX is written, so
that the two gradients of X need no sum of their own: two passes over a tensor of X's size.
"""

import triton
import triton.language as tl
from torch import Tensor

from tam_triton import layout
from tam_triton.kernels import launch
from tam_triton.kernels.frames import channel_of


@triton.jit
def input_gradient_kernel(
    dy_ptr, importance_ptr, kernel_ptr, d_squeezed_ptr, dx_ptr,
    C, P, blocks, frame: tl.int64,
    T: tl.constexpr, K: tl.constexpr, CHANNELS_LAST: tl.constexpr, SQUEEZED: tl.constexpr, SPAN: tl.constexpr,
    AHEAD: tl.constexpr, VECTORS: tl.constexpr, VECTOR: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = K // 2
    n = (tl.program_id(0) // blocks).to(tl.int64)
    start = ((tl.program_id(0) % blocks).to(INDEX) * VECTORS + tl.arange(0, VECTORS))[:, None] * VECTOR
    lane = tl.arange(0, VECTOR)[None, :]
    inside = start + lane < frame
    dy_ptr += n * T * frame + start + lane
    dx_ptr += n * T * frame + start + lane

    c = channel_of(start, lane, C, P, CHANNELS_LAST, SPAN)
    own = start + lane < (c + 1) * P
    present = c < C
    following = c + 1 < C
    step = C if CHANNELS_LAST else 1  # weights lie as dy does: channels fastest, or time
    importance_ptr += n * C * T + (c if CHANNELS_LAST else c * T)
    d_squeezed_ptr += n * C * T + (c if CHANNELS_LAST else c * T)
    kernel_ptr += n * C * K + (c if CHANNELS_LAST else c * K)

    taps = ()
    next_taps = ()
    for k in tl.static_range(K):
        taps = taps + (tl.load(kernel_ptr + k * step, mask=present, other=0.0).to(ACC),)
        if SPAN == 2:
            next_taps = next_taps + (tl.load(kernel_ptr + K + k * step, mask=following, other=0.0).to(ACC),)
    sums = ()  # sums[i] is output t − K//2 + i before frame t of dY is added
    for _ in tl.static_range(K - 1):
        sums = sums + (tl.zeros([VECTORS, VECTOR], ACC),)

    for first in range(0, T + HALF, AHEAD):
        frames = ()
        for i in tl.static_range(AHEAD):
            t = first + i
            frames = frames + (tl.load(dy_ptr + t * frame, mask=inside & (t < T), other=0.0).to(ACC),)
        for i in tl.static_range(AHEAD):
            added = ()
            for k in tl.static_range(K):
                tap = tl.where(own, taps[k], next_taps[k]) if SPAN == 2 else taps[k]
                added = added + (sums[k] + tap * frames[i] if k < K - 1 else tap * frames[i],)
            s = first + i - HALF
            written = (s >= 0) & (s < T)
            v = tl.load(importance_ptr + s * step, mask=present & written, other=0.0).to(ACC)
            if SPAN == 2:
                next_v = tl.load(importance_ptr + T + s * step, mask=following & written, other=0.0).to(ACC)
                v = tl.where(own, v, next_v)
            dx = added[0] * v
            if SQUEEZED:
                offset = tl.load(d_squeezed_ptr + s * step, mask=present & written, other=0.0).to(ACC)
                if SPAN == 2:
                    following_offset = tl.load(d_squeezed_ptr + T + s * step, mask=following & written, other=0.0)
                    offset = tl.where(own, offset, following_offset.to(ACC))
                dx += offset / P
            tl.store(dx_ptr + s * frame, dx.to(dx_ptr.dtype.element_ty), mask=inside & written)
            sums = added[1:]


def input_gradient(
    dy: Tensor, importance: Tensor, kernel: Tensor, d_squeezed: Tensor | None, channels_last: bool
) -> Tensor:
    """dx `(N·T, C, H, W)`, dense in the given layout; `d_squeezed` `(N, C, T)` is the gradient of X̂, if any."""
    dy = layout.to_layout(dy, channels_last)
    dx = layout.empty(dy, channels_last)
    clips, channels, num_segments = importance.shape
    kernel_size, pixels = kernel.shape[-1], dy.shape[2] * dy.shape[3]
    block = launch.temporal_block(channels, pixels, channels_last, dy.element_size())
    blocks = launch.ceil_div(channels * pixels, block.elements)
    importance = layout.dense_weights(importance, channels_last)
    offset = importance if d_squeezed is None else layout.dense_weights(d_squeezed, channels_last)
    with launch.on_device(dy):
        input_gradient_kernel[(clips * blocks,)](
            dy, importance, layout.dense_weights(kernel, channels_last), offset, dx,
            channels, pixels, blocks, channels * pixels,
            T=num_segments, K=kernel_size, CHANNELS_LAST=channels_last, SQUEEZED=d_squeezed is not None,
            SPAN=block.span, AHEAD=block.ahead, VECTORS=block.vectors, VECTOR=block.vector,
            ACC=launch.accumulator(dy.dtype), INDEX=launch.offset_dtype(channels * pixels, block.elements),
            num_warps=1, **launch.OPTIONS,
        )  # fmt: skip
    return dx
