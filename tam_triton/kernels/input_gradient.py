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
    T: tl.constexpr, K: tl.constexpr, CHANNELS_LAST: tl.constexpr, SQUEEZED: tl.constexpr, STEPS: tl.constexpr,
    BLOCK: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = K // 2
    n = (tl.program_id(0) // blocks).to(tl.int64)
    q = (tl.program_id(0) % blocks).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    inside = q < frame
    row = n * C + channel_of(q, C, P, CHANNELS_LAST)
    dy_ptr += n * T * frame + q
    dx_ptr += n * T * frame + q
    importance_ptr += row * T
    d_squeezed_ptr += row * T

    taps = ()
    for k in tl.static_range(K):
        taps = taps + (tl.load(kernel_ptr + row * K + k, mask=inside, other=0.0).to(ACC),)
    sums = ()  # sums[i] is output t − K//2 + i before frame t of dY is added
    for _ in tl.static_range(K - 1):
        sums = sums + (tl.zeros([BLOCK], ACC),)

    for first in range(0, T + HALF, STEPS):
        frames = ()
        for i in tl.static_range(STEPS):
            t = first + i
            frames = frames + (tl.load(dy_ptr + t * frame, mask=inside & (t < T), other=0.0).to(ACC),)
        for i in tl.static_range(STEPS):
            added = ()
            for k in tl.static_range(K - 1):
                added = added + (sums[k] + taps[k] * frames[i],)
            added = added + (taps[K - 1] * frames[i],)
            s = first + i - HALF
            written = inside & (s >= 0) & (s < T)
            dx = added[0] * tl.load(importance_ptr + s, mask=written, other=0.0).to(ACC)
            if SQUEEZED:
                dx += tl.load(d_squeezed_ptr + s, mask=written, other=0.0).to(ACC) / P
            tl.store(dx_ptr + s * frame, dx.to(dx_ptr.dtype.element_ty), mask=written)
            sums = added[1:]


def input_gradient(
    dy: Tensor, importance: Tensor, kernel: Tensor, d_squeezed: Tensor | None, channels_last: bool
) -> Tensor:
    """dx `(N·T, C, H, W)`, dense in the given layout; `d_squeezed` `(N, C, T)` is the gradient of X̂, if any."""
    dy = layout.to_layout(dy, channels_last)
    dx = layout.empty(dy, channels_last)
    clips, channels, num_segments = importance.shape
    kernel_size, pixels = kernel.shape[-1], dy.shape[2] * dy.shape[3]
    block = launch.temporal_block(dy.element_size())
    blocks = launch.ceil_div(channels * pixels, block.elements)
    importance = importance.contiguous()
    with launch.on_device(dy):
        input_gradient_kernel[(clips * blocks,)](
            dy, importance, kernel.contiguous(), importance if d_squeezed is None else d_squeezed.contiguous(), dx,
            channels, pixels, blocks, channels * pixels,
            T=num_segments, K=kernel_size, CHANNELS_LAST=channels_last, SQUEEZED=d_squeezed is not None,
            STEPS=launch.unrolled(num_segments + kernel_size // 2), BLOCK=block.elements,
            ACC=launch.accumulator(dy.dtype), INDEX=launch.offset_dtype(channels * pixels, block.elements),
            num_warps=block.num_warps, **launch.OPTIONS,
        )  # fmt: skip
    return dx
