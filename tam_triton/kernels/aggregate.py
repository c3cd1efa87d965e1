"""Excitation and aggregation in one pass (equations 4 and 5): Y[t] = Σ_k Θ[k]·V[t+k−K//2]·X[t+k−K//2].

A program walks one block of a clip's elements through time. It reads each frame once, keeps K−1 unfinished sums in
registers, and writes each frame once: two passes over a tensor of X's size.
"""

import triton
import triton.language as tl
from torch import Tensor

from tam_triton import layout
from tam_triton.kernels import launch
from tam_triton.kernels.frames import channel_of


@triton.jit
def aggregate_kernel(
    x_ptr, importance_ptr, kernel_ptr, y_ptr,
    C, P, blocks, frame: tl.int64,
    T: tl.constexpr, K: tl.constexpr, CHANNELS_LAST: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = K // 2
    n = (tl.program_id(0) // blocks).to(tl.int64)
    q = (tl.program_id(0) % blocks).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    inside = q < frame
    row = n * C + channel_of(q, C, P, CHANNELS_LAST)
    x_ptr += n * T * frame + q
    y_ptr += n * T * frame + q
    importance_ptr += row * T

    taps = ()
    for k in tl.static_range(K):
        taps = taps + (tl.load(kernel_ptr + row * K + k, mask=inside, other=0.0).to(ACC),)
    sums = ()  # sums[i] is output s − K//2 + i before frame s is added
    for _ in tl.static_range(K - 1):
        sums = sums + (tl.zeros([BLOCK], ACC),)

    for first in range(0, T + HALF, STEPS):
        frames = ()
        for i in tl.static_range(STEPS):
            s = first + i
            frames = frames + (tl.load(x_ptr + s * frame, mask=inside & (s < T), other=0.0).to(ACC),)
        for i in tl.static_range(STEPS):
            s = first + i
            z = tl.load(importance_ptr + s, mask=inside & (s < T), other=0.0).to(ACC) * frames[i]
            added = ()
            for k in tl.static_range(K - 1):
                added = added + (sums[k] + taps[K - 1 - k] * z,)
            added = added + (taps[0] * z,)
            t = s - HALF
            tl.store(y_ptr + t * frame, added[0].to(y_ptr.dtype.element_ty), mask=inside & (t >= 0) & (t < T))
            sums = added[1:]


def aggregate(x: Tensor, importance: Tensor, kernel: Tensor) -> Tensor:
    """y like x `(N·T, C, H, W)` from importance V `(N, C, T)` and kernel Θ `(N, C, K)`."""
    channels_last = layout.is_channels_last(x)
    x = layout.to_layout(x, channels_last)
    y = layout.empty_result(x)
    clips, channels, num_segments = importance.shape
    kernel_size, pixels = kernel.shape[-1], x.shape[2] * x.shape[3]
    block = launch.temporal_block(x.element_size())
    blocks = launch.ceil_div(channels * pixels, block.elements)
    with launch.on_device(x):
        aggregate_kernel[(clips * blocks,)](
            x, importance.contiguous(), kernel.contiguous(), y, channels, pixels, blocks, channels * pixels,
            T=num_segments, K=kernel_size, CHANNELS_LAST=channels_last,
            STEPS=launch.unrolled(num_segments + kernel_size // 2), BLOCK=block.elements,
            ACC=launch.accumulator(x.dtype), INDEX=launch.offset_dtype(channels * pixels, block.elements),
            num_warps=block.num_warps, **launch.OPTIONS,
        )  # fmt: skip
    return y
