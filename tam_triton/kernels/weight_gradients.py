"""Gradients of V and Θ in one pass over X and dY.

Both are sums over the band B[s,k] = Σ_p dY[s−k+K//2,p]·X[s,p] of dY·Xᵀ: dV[s] = Σ_k Θ[k]·B[s,k] and
dΘ[k] = Σ_s V[s]·B[s,k]. A program takes some channels, a part of their pixels, and all frames, or a part of those of
long clips; where that is not all, it writes its share of both sums, and the shares are added in a fixed order; so are
the clips' shares of a Θ that they have in common. Where V stands after the aggregation, X and dY change places and taps
are reversed: ⟨dY, V ⊙ (Θ ⊗ X)⟩ = ⟨X, Θ reversed ⊗ (V ⊙ dY)⟩.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tam_triton import layout
from tam_triton.kernels import launch, metadata
from tam_triton.kernels.frames import load_tile
from tam_triton.kernels.parts import add_parts, room

MOST_FRAMES = 32  # of a program: with the sums of 128 frames, a thread takes up to 211 registers


@triton.jit(launch_metadata=metadata.weight_gradients)
def weight_gradients_kernel(
    dy_ptr, x_ptr, importance_ptr, kernel_ptr, d_importance_ptr, d_kernel_ptr,
    C, P, tiles, pixel_parts, time_parts, frame: tl.int64, rows: tl.int64, kernel_clip: tl.int64,
    T: tl.constexpr, K: tl.constexpr, CHANNELS_LAST: tl.constexpr, REVERSED: tl.constexpr, FRAMES: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, RUN: tl.constexpr, COLUMNS: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = K // 2
    part = tl.program_id(0) % (pixel_parts * time_parts)
    tile = tl.program_id(0) // (pixel_parts * time_parts)
    first = part % time_parts * FRAMES
    end = tl.minimum(first + FRAMES, T)
    c0 = (tile % tiles).to(INDEX) * BLOCK_C
    p0 = (part // time_parts).to(INDEX) * BLOCK_P
    n = (tile // tiles).to(tl.int64)
    c = (c0 + tl.arange(0, BLOCK_C))[:, None]
    present = c < C
    row = n * C + c
    dy_ptr += n * T * frame
    x_ptr += n * T * frame
    # Columns: dV of each frame, then dΘ of each tap. In one matrix, whose elements the threads share: as vectors over
    # channels, every thread would hold as many values of each as it loads channels.
    j = tl.arange(0, COLUMNS)[None, :]
    sums = tl.zeros([BLOCK_C, COLUMNS], ACC)
    if importance_ptr is not None:
        importance_ptr += row * T + tl.zeros([1, COLUMNS], tl.int32)
    kernel_ptr += n * kernel_clip + c * K + tl.zeros([1, COLUMNS], tl.int32)
    d_importance_ptr += (part // time_parts * rows + row) * T
    d_kernel_ptr += (part * rows + row) * K

    window = ()  # frames s − K//2 … s + K//2 − 1 of dY
    for i in tl.static_range(K - 1):
        t = first + i - HALF
        inside = (t >= 0) & (t < T)
        window = window + (
            load_tile(dy_ptr + t * frame, c0, p0, C, P, inside, CHANNELS_LAST, BLOCK_C, BLOCK_P, RUN, INDEX),
        )
    for s in range(first, end):
        t = s + HALF
        x = load_tile(x_ptr + s * frame, c0, p0, C, P, True, CHANNELS_LAST, BLOCK_C, BLOCK_P, RUN, INDEX).to(ACC)
        window = window + (
            load_tile(dy_ptr + t * frame, c0, p0, C, P, t < T, CHANNELS_LAST, BLOCK_C, BLOCK_P, RUN, INDEX),
        )
        for k in tl.static_range(K):
            # + 0 rounds the product. Else it may be fused into the sum over lanes, fma(a, b, shuffled(a·b)): each lane
            # would round another of the two, and hold, and store, other last bits of one sum.
            band = tl.sum(window[K - 1 - k].to(ACC) * x + 0.0, axis=1)[:, None]
            t = s - k + HALF
            there = present & (t >= 0) & (t < T)
            # dV[s] takes Θ[k], dΘ[k] takes V[s]; other columns, and frames outside the clip, must not meet an Inf.
            tap = K - 1 - k if REVERSED else k
            of_frame, of_tap = there & (j == s - first), there & (j == FRAMES + tap)
            weight = tl.load(kernel_ptr + tap, mask=of_frame, other=1.0).to(ACC)
            if importance_ptr is not None:
                weight = tl.where(of_tap, tl.load(importance_ptr + s, mask=of_tap, other=0.0).to(ACC), weight)
            sums = tl.where(of_frame | of_tap, sums + weight * band, sums)
        window = window[1:]
    of_frame = present & (j < FRAMES) & (first + j < T)
    of_tap = present & (j >= FRAMES) & (j < FRAMES + K)
    tl.store(d_importance_ptr + first + j, sums.to(d_importance_ptr.dtype.element_ty), mask=of_frame)
    tl.store(d_kernel_ptr + j - FRAMES, sums.to(d_kernel_ptr.dtype.element_ty), mask=of_tap)


def weight_gradients(
    dy: Tensor, x: Tensor, importance: Tensor | None, kernel: Tensor,
    num_segments: int | None = None, after: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dV `(N, C, T)`, of V = 1 where it is None, and dΘ, shaped as Θ, from dy and x `(N·T, C, H, W)`."""
    T = layout.segments(importance, num_segments)
    channels_last = layout.is_channels_last(x)
    x, dy = layout.to_layout(x, channels_last), layout.to_layout(dy, channels_last)
    if after:
        x, dy = dy, x
    importance, kernel = None if importance is None else importance.contiguous(), kernel.contiguous()
    clips, channels, pixels = x.shape[0] // T, x.shape[1], x.shape[2] * x.shape[3]
    kernel_size, shared = kernel.shape[-1], kernel.dim() == 2
    tile = launch.reduction_tile(channels, pixels, channels_last, x.element_size())
    tiles, pixel_parts = launch.ceil_div(channels, tile.channels), launch.ceil_div(pixels, tile.pixels)
    most = launch.ceil_div(T, launch.ceil_div(T, MOST_FRAMES))
    frames = min(most, launch.frames_of_part(clips * tiles * pixel_parts, T))
    time_parts = launch.ceil_div(T, frames)
    dtype = kernel.dtype if importance is None else importance.dtype
    d_importance, d_kernel = x.new_empty((clips, channels, T), dtype=dtype), torch.empty_like(kernel)
    importance_parts = room(d_importance, pixel_parts)
    kernel_parts = room(d_kernel, pixel_parts * time_parts * (clips if shared else 1))
    with launch.on_device(x):
        weight_gradients_kernel[(clips * tiles * pixel_parts * time_parts,)](
            dy, x, importance, kernel, importance_parts, kernel_parts,
            channels, pixels, tiles, pixel_parts, time_parts, channels * pixels, clips * channels,
            0 if shared else channels * kernel_size,
            T=T, K=kernel_size, CHANNELS_LAST=channels_last, REVERSED=after, FRAMES=frames,
            BLOCK_C=tile.channels, BLOCK_P=tile.pixels, RUN=tile.run,
            COLUMNS=launch.product_size(frames + kernel_size), ACC=launch.accumulator(x.dtype),
            INDEX=launch.offset_dtype(channels * max(pixels, kernel_size), tile.channels * tile.pixels),
            num_warps=launch.warps(tile.threads), **launch.OPTIONS,
            **launch.register_limit(tile, x.dtype, T, kernel_size, excited=importance is not None),
        )  # fmt: skip
        add_parts(importance_parts, d_importance)
        add_parts(kernel_parts, d_kernel)
    return d_importance, d_kernel
