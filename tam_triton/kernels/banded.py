"""The banded T×T matrix M[t,s] = Θ[s−t+K//2]·V[s] of each clip and channel, times frames: Y = M·X, or dX = Mᵀ·dY.

Forms of it have V[t], of the frame written, or no V, and one Θ for all clips. The transpose of a band is a band with
its taps reversed and V at its other end, so a product is told by these two. What a form lacks is None, which the
compiler knows; a Θ of all clips is one whose clips are 0 apart, which it knows too: as a number it costs registers.

A program walks a block of a clip's elements through time, or through one part of it. K frames stay in registers, in
their own dtype; it reads each frame once and writes each result once: two passes over a tensor of X's size.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from tam_triton import layout
from tam_triton.kernels import launch, metadata
from tam_triton.kernels.frames import folded_norm, relu


@triton.jit(launch_metadata=metadata.banded)
def banded_kernel(
    x_ptr, importance_ptr, kernel_ptr, offset_ptr, y_ptr, norm,
    C, P, blocks, parts, eps: tl.float64, frame: tl.int64,
    T: tl.constexpr, K: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    SHARED: tl.constexpr, REVERSED: tl.constexpr, V_OF_RESULT: tl.constexpr,
    FRAMES: tl.constexpr, SPAN: tl.constexpr, AHEAD: tl.constexpr, VECTORS: tl.constexpr, VECTOR: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = K // 2
    n = (tl.program_id(0) // (blocks * parts)).to(tl.int64)
    first = tl.program_id(0) // blocks % parts * FRAMES
    end = tl.minimum(first + FRAMES, T)
    start = ((tl.program_id(0) % blocks).to(INDEX) * VECTORS + tl.arange(0, VECTORS))[:, None] * VECTOR
    lane = tl.arange(0, VECTOR)[None, :]
    inside = start + lane < frame
    x_ptr += n * T * frame + start + lane
    y_ptr += n * T * frame + start + lane

    # The channel of each vector: with SPAN = 2 that of its first element, and a later one may be of the next channel.
    # Past the end of a frame it is the last, so that weights need no mask of their own.
    if CHANNELS_LAST:
        c = start % C + lane if SPAN == 1 else (start + lane) % C
    else:
        c = tl.minimum(start // P if SPAN > 0 else (start + lane) // P, C - 1)
    own = start + lane < (c + 1) * P
    following = tl.minimum(C - 1 - c, 1)
    # Weights lie as x does: channels fastest, or time.
    step = tl.cast(C, INDEX) if CHANNELS_LAST else 1
    if importance_ptr is not None:
        importance_ptr += n * C * T + (c if CHANNELS_LAST else c * T)
    if offset_ptr is not None:
        offset_ptr += n * C * T + (c if CHANNELS_LAST else c * T)
    kernel_ptr += (0 if SHARED else n * C * K) + (c if CHANNELS_LAST else c * K)
    if norm is not None:
        scale, shift = folded_norm(norm, eps, c, True, ACC)
        if SPAN == 2:
            next_scale, next_shift = folded_norm(norm, eps, c + following, True, ACC)
            scale = tl.where(own, scale, next_scale)
            shift = tl.where(own, shift, next_shift)
    inverse_pixels = tl.full([1, 1], 1.0, ACC) / P

    window = ()  # frames t − K//2 … t + K//2 − 1, then those loaded ahead of their use
    for i in tl.static_range(K - 1 + AHEAD):
        s = first + i - HALF
        present = (s >= 0) & (s < T) & (s < end + HALF)
        window = window + (tl.load(x_ptr + s * frame, mask=inside & present, other=0.0),)
    for t in range(first, first + FRAMES):
        s = t + HALF + AHEAD
        window = window + (tl.load(x_ptr + s * frame, mask=inside & (s < T) & (s < end + HALF), other=0.0),)
        written = t < end
        if V_OF_RESULT:
            v = tl.load(importance_ptr + t * step, mask=written, other=0.0).to(ACC)
            if SPAN == 2:
                next_v = tl.load(importance_ptr + following * T + t * step, mask=written, other=0.0).to(ACC)
                v = tl.where(own, v, next_v)
        y = tl.zeros([VECTORS, VECTOR], ACC)
        for k in tl.static_range(K):
            # Loaded anew for every frame, from the cache: kept, taps of their own for every lane take 24 registers.
            tap_ptr = kernel_ptr + (K - 1 - k if REVERSED else k) * step
            s = t + k - HALF
            present = (s >= 0) & (s < T)  # else weights are 0: not even NaN of Θ is a term
            weight = tl.load(tap_ptr, mask=present, other=0.0).to(ACC)
            z: tl.tensor = window[k].to(ACC)
            if norm is not None:
                z = relu(z * scale + shift)
            if importance_ptr is not None and not V_OF_RESULT:
                v = tl.load(importance_ptr + s * step, mask=present, other=0.0).to(ACC)
                if SPAN == 2:
                    next_v = tl.load(importance_ptr + following * T + s * step, mask=present, other=0.0).to(ACC)
            if SPAN == 2:
                next_weight = tl.load(tap_ptr + following * K, mask=present, other=0.0).to(ACC)
                if importance_ptr is not None and not V_OF_RESULT:
                    next_weight *= next_v
            if importance_ptr is not None and not V_OF_RESULT:
                weight *= v
            if SPAN == 2:
                weight = tl.where(own, weight, next_weight)
            y += weight * z
        if V_OF_RESULT:
            y *= v
        if offset_ptr is not None:
            offset = tl.load(offset_ptr + t * step, mask=written, other=0.0).to(ACC) * inverse_pixels
            if SPAN == 2:
                next_offset = tl.load(offset_ptr + following * T + t * step, mask=written, other=0.0).to(ACC)
                offset = tl.where(own, offset, next_offset * inverse_pixels)
            y += offset
        tl.store(y_ptr + t * frame, y.to(y_ptr.dtype.element_ty), mask=inside & written)
        window = window[1:]


def product(
    x: Tensor, importance: Tensor | None, kernel: Tensor, channels_last: bool, num_segments: int, *,
    transposed: bool, after: bool = False,
    d_squeezed: Tensor | None = None, norm: Sequence[Tensor] | None = None, eps: float = 0.0,
) -> Tensor:  # fmt: skip
    """M·x, or Mᵀ·x where `transposed`, for x `(N·T, C, H, W)`; in the given layout.

    V `(N, C, T)` may be None, Θ is `(N, C, K)` or `(C, K)`. M has V of the frame read, or, with `after`, of the one it
    writes. With `d_squeezed` `(N, C, T)`, d_squeezed/P is added; with `norm` and `eps` it is M·ReLU(BN(x)).
    """
    x = layout.to_layout(x, channels_last)
    y = layout.empty(x, channels_last)
    clips, channels, pixels = x.shape[0] // num_segments, x.shape[1], x.shape[2] * x.shape[3]
    kernel_size, shared = kernel.shape[-1], kernel.dim() == 2
    block = launch.temporal_block(channels, pixels, channels_last, x.element_size())
    blocks = launch.ceil_div(channels * pixels, block.elements)
    frames = launch.frames_of_part(clips * blocks, num_segments)
    parts = launch.ceil_div(num_segments, frames)
    index = launch.offset_dtype(channels * max(pixels, num_segments, kernel_size), block.elements)
    importance, kernel, offset = (
        None if values is None else layout.dense_weights(values, channels_last)
        for values in (importance, kernel, d_squeezed)
    )
    with launch.on_device(x):
        banded_kernel[(clips * parts * blocks,)](
            x, importance, kernel, offset, y, None if norm is None else tuple(norm),
            channels, pixels, blocks, parts, eps, channels * pixels,
            T=num_segments, K=kernel_size, CHANNELS_LAST=channels_last,
            SHARED=shared, REVERSED=transposed, V_OF_RESULT=importance is not None and transposed != after,
            FRAMES=frames, SPAN=block.span, AHEAD=block.ahead, VECTORS=block.vectors, VECTOR=block.vector,
            ACC=launch.accumulator(x.dtype), INDEX=index,
            num_warps=1, **launch.OPTIONS,
        )  # fmt: skip
    return y
