"""Gradients of V and Θ in one pass over X and dY.

Both are sums over the band B[s,k] = Σ_p dY[s−k+K//2,p]·X[s,p] of dY·Xᵀ: dV[s] = Σ_k Θ[k]·B[s,k] and
dΘ[k] = Σ_s V[s]·B[s,k]. A thread keeps B of the pixels that it reads, all frames of them at a time; as both results are
linear in B, threads make their shares of them at the end, and only these are added up among threads. A program takes
some channels, a part of their pixels, and all frames, or a part of those of long clips; where that is not all, it
writes its share of both sums, and the shares are added in a fixed order; so are the clips' shares of a Θ that they have
in common. Where V stands after the aggregation, X and dY change places and taps are reversed:
⟨dY, V ⊙ (Θ ⊗ X)⟩ = ⟨X, Θ reversed ⊗ (V ⊙ dY)⟩.
"""

import triton
import triton.language as tl
from torch import Tensor

from tam_triton import layout
from tam_triton.kernels import launch, metadata
from tam_triton.kernels.parts import add_parts, room


@triton.jit(launch_metadata=metadata.weight_gradients)
def weight_gradients_kernel(
    dy_ptr, x_ptr, importance_ptr, kernel_ptr, d_importance_ptr, d_kernel_ptr,
    vectors, lines, tiles, pixel_parts, time_parts, steps, rows: tl.int64, kernel_clip: tl.int64,
    T: tl.constexpr, K: tl.constexpr, CHANNELS_LAST: tl.constexpr, REVERSED: tl.constexpr, FRAMES: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, VECTOR: tl.constexpr,
    GROUPS: tl.constexpr, GROUP: tl.constexpr, LEVELS: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    # As products, so that the compiler sees what divides a row.
    C = tl.cast(vectors, INDEX) * VECTOR if CHANNELS_LAST else lines
    P = lines if CHANNELS_LAST else tl.cast(vectors, INDEX) * VECTOR
    HALF: tl.constexpr = K // 2
    WHOLE: tl.constexpr = FRAMES == T  # frames outside the clip are then known to the compiler
    BEFORE: tl.constexpr = 0 if WHOLE else HALF  # frames of dY read before the first of X
    READ: tl.constexpr = FRAMES + 2 * BEFORE
    # How many sums of a channel stay apart until the end: a thread adds up within a vector of pixels.
    SUMS: tl.constexpr = BLOCK_P if CHANNELS_LAST else BLOCK_P // VECTOR
    part = tl.program_id(0) % (pixel_parts * time_parts)
    tile = tl.program_id(0) // (pixel_parts * time_parts)
    first = 0 if WHOLE else part % time_parts * FRAMES
    n = (tile // tiles).to(tl.int64)
    frame = tl.cast(C, tl.int64) * P
    dy_ptr += n * T * frame
    x_ptr += n * T * frame
    c = ((tile % tiles).to(INDEX) * BLOCK_C + tl.arange(0, BLOCK_C))[:, None]
    p = ((part // time_parts * steps).to(INDEX) * BLOCK_P + tl.arange(0, BLOCK_P))[None, :]

    band = (tl.zeros([BLOCK_C, SUMS], ACC),) * (FRAMES * K)
    for step in range(steps):
        q = p + step * BLOCK_P
        inside = (c < C) & (q < P)
        offset = q * C + c if CHANNELS_LAST else c * P + q
        dy = ()
        x = ()
        for i in tl.static_range(READ):  # all are asked for before the first is used
            t = first + i - BEFORE
            dy = dy + (tl.load(dy_ptr + t * frame + offset, mask=inside & (WHOLE | ((t >= 0) & (t < T))), other=0.0),)
            if i < FRAMES:
                s = first + i
                x = x + (tl.load(x_ptr + s * frame + offset, mask=inside & (WHOLE | (s < T)), other=0.0),)
        sums = ()
        for i in tl.static_range(FRAMES):
            for k in tl.static_range(K):
                total = band[i * K + k]
                if i + HALF + BEFORE >= k and i + HALF + BEFORE - k < READ:  # dY's frame s − k + K//2
                    product: tl.tensor = dy[i + HALF + BEFORE - k].to(ACC) * x[i].to(ACC)
                    total += product if CHANNELS_LAST else tl.sum(tl.reshape(product, [BLOCK_C, SUMS, VECTOR]), axis=2)
                sums = sums + (total,)
        band = sums

    # Columns: dV of each frame, then dΘ of each tap, joined in groups that are added up among threads together. A pair
    # (s, k) whose frame of dY is outside the clip is no term: neither NaN of X nor of a weight may come of it.
    stride = C if CHANNELS_LAST else 1  # weights lie as x does: channels fastest, or time
    kernel_ptr += n * kernel_clip + (c if CHANNELS_LAST else c * K)
    if importance_ptr is not None:
        importance_ptr += n * C * T + (c if CHANNELS_LAST else c * T)
    columns = ()
    for i in tl.static_range(FRAMES):
        total = tl.zeros([BLOCK_C, SUMS], ACC)
        for k in tl.static_range(K):
            t = first + i - k + HALF
            tap = tl.load(kernel_ptr + (K - 1 - k if REVERSED else k) * stride, mask=c < C, other=0.0)
            total += tl.where((t >= 0) & (t < T), tap.to(ACC) * band[i * K + k], 0.0)
        columns = columns + (total,)
    for k in tl.static_range(K):
        total = tl.zeros([BLOCK_C, SUMS], ACC)
        for i in tl.static_range(FRAMES):
            s = first + i
            t = s + k - HALF if REVERSED else s - k + HALF
            term = band[i * K + (K - 1 - k if REVERSED else k)]
            if importance_ptr is not None:
                term *= tl.load(importance_ptr + s * stride, mask=(c < C) & (s < T), other=0.0).to(ACC)
            total += tl.where((s < T) & (t >= 0) & (t < T), term, 0.0)
        columns = columns + (total,)
    columns = columns + (tl.zeros([BLOCK_C, SUMS], ACC),) * (GROUPS * GROUP - FRAMES - K)
    d_importance_ptr += (part // time_parts * rows + n * C + c) * T + first
    d_kernel_ptr += (part * rows + n * C + c) * K - FRAMES
    for group in tl.static_range(GROUPS):
        joined = columns[group * GROUP : (group + 1) * GROUP]
        for level in tl.static_range(LEVELS):
            pairs = ()
            for i in tl.static_range(GROUP >> (level + 1)):
                pairs = pairs + (tl.join(joined[i], joined[i + (GROUP >> (level + 1))]),)
            joined = pairs
        sums = tl.sum(tl.reshape(joined[0], [BLOCK_C, SUMS, GROUP]), axis=1)
        j = group * GROUP + tl.arange(0, GROUP)[None, :]
        if group * GROUP < FRAMES:
            of_frame = (c < C) & (j < FRAMES) & (first + j < T)
            tl.store(d_importance_ptr + j, sums.to(d_importance_ptr.dtype.element_ty), mask=of_frame)
        if (group + 1) * GROUP > FRAMES:
            of_tap = (c < C) & (j >= FRAMES) & (j < FRAMES + K)
            tl.store(d_kernel_ptr + j, sums.to(d_kernel_ptr.dtype.element_ty), mask=of_tap)


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
    dtype = kernel.dtype if importance is None else importance.dtype
    clips, channels, pixels = x.shape[0] // T, x.shape[1], x.shape[2] * x.shape[3]
    kernel_size, shared = kernel.shape[-1], kernel.dim() == 2
    time_parts = launch.ceil_div(T, launch.band_frames(kernel_size))
    frames = launch.ceil_div(T, time_parts)
    time_parts = launch.ceil_div(T, frames)
    tile = launch.band_tile(clips * time_parts, channels, pixels, channels_last, x.element_size())
    d_importance, d_kernel = x.new_empty((clips, channels, T), dtype=dtype), kernel.new_empty(kernel.shape)
    importance_parts = room(d_importance, tile.parts)
    kernel_parts = room(d_kernel, tile.parts * time_parts * (clips if shared else 1))
    # Where lanes hold channels, sums of many columns at once would change their places at the price of the kernel.
    group = min(2 if channels_last else 16, launch.next_power_of_2(frames + kernel_size))
    importance, kernel = (
        None if values is None else layout.dense_weights(values, channels_last) for values in (importance, kernel)
    )
    with launch.on_device(x):
        weight_gradients_kernel[(clips * tile.count(channels) * tile.parts * time_parts,)](
            dy, x, importance, kernel, importance_parts, kernel_parts,
            *layout.vectors_and_lines(channels, pixels, channels_last, tile.vector),
            tile.count(channels), tile.parts, time_parts, tile.steps, clips * channels,
            0 if shared else channels * kernel_size,
            T=T, K=kernel_size, CHANNELS_LAST=channels_last, REVERSED=after, FRAMES=frames,
            BLOCK_C=tile.channels, BLOCK_P=tile.pixels, VECTOR=tile.vector,
            GROUPS=launch.ceil_div(frames + kernel_size, group), GROUP=group, LEVELS=group.bit_length() - 1,
            ACC=launch.accumulator(x.dtype),
            INDEX=launch.offset_dtype(channels * max(tile.covered, kernel_size, T), tile.channels * tile.pixels),
            num_warps=tile.warps, **launch.registers(128 if tile.vector > 1 else None), **launch.OPTIONS,
        )  # fmt: skip
        add_parts((importance_parts, d_importance), (kernel_parts, d_kernel))
    return d_importance, d_kernel
