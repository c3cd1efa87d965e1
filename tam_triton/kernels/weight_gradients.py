"""Gradients of V and Θ in one pass over X and dY.

Both are sums over the band B[s,k] = Σ_p dY[s−k+K//2,p]·X[s,p] of dY·Xᵀ: dV[s] = Σ_k Θ[k]·B[s,k] and
dΘ[k] = Σ_s V[s]·B[s,k]. A thread keeps B of the pixels that it reads, all frames of them at a time; as both results are
linear in B, threads make their shares of them at the end, and only these are added up among threads. A program takes
some channels, a part of their pixels, and all frames, or a part of those of long clips; where that is not all, it
writes its share of both sums, and the shares are added in a fixed order; so are the clips' shares of a Θ that they have
in common. Where V stands after the aggregation, X and dY change places and taps are reversed:
⟨dY, V ⊙ (Θ ⊗ X)⟩ = ⟨X, Θ reversed ⊗ (V ⊙ dY)⟩.

Behind BatchNorm and ReLU in training, X is A = m·(γ·x̂ + β) with m = [A > 0], and there are two bands: B′ with m in
place of X, and B″ with m·x̂. γ·B″ + β·B′ is that of A; by themselves they give what dY adds to the sums Σ dA·m and
Σ dA·m·x̂, dβ and dγ, which BatchNorm's backward needs before it can write dx.
"""

import triton
import triton.language as tl
from torch import Tensor

from tam_triton import layout
from tam_triton.kernels import launch, metadata
from tam_triton.kernels.frames import centred_norm, within_vectors
from tam_triton.kernels.parts import add_parts, room


@triton.jit(launch_metadata=metadata.weight_gradients)
def weight_gradients_kernel(
    dy_ptr, x_ptr, importance_ptr, kernel_ptr, d_importance_ptr, d_kernel_ptr, d_sums_ptr, batch_norm,
    vectors, lines, tiles, pixel_parts, time_parts, steps, rows: tl.int64, kernel_clip: tl.int64,
    T: tl.constexpr, K: tl.constexpr, CHANNELS_LAST: tl.constexpr, REVERSED: tl.constexpr, FRAMES: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, VECTOR: tl.constexpr,
    GROUPS: tl.constexpr, GROUP: tl.constexpr, LEVELS: tl.constexpr,
    TAP_GROUPS: tl.constexpr, TAP_GROUP: tl.constexpr, TAP_LEVELS: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr,
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
    if batch_norm is not None:
        mean, scale, shift, inverse = centred_norm(batch_norm, C, c, c < C, ACC)
        of_mask = band
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
        mask_sums = ()
        for i in tl.static_range(FRAMES):
            if batch_norm is not None:
                value: tl.tensor = x[i].to(ACC) - mean
                blocked = value * scale + shift <= 0
                value = tl.where(blocked, 0.0, value)
            for k in tl.static_range(K):
                total = band[i * K + k]
                if batch_norm is not None:
                    passed = of_mask[i * K + k]
                if i + HALF + BEFORE >= k and i + HALF + BEFORE - k < READ:  # dY's frame s − k + K//2
                    if batch_norm is None:
                        product: tl.tensor = dy[i + HALF + BEFORE - k].to(ACC) * x[i].to(ACC)
                        total += within_vectors(product, CHANNELS_LAST, VECTOR)
                    else:
                        d: tl.tensor = dy[HALF + BEFORE + i - k].to(ACC)
                        total += within_vectors(d * value, CHANNELS_LAST, VECTOR)
                        passed += within_vectors(tl.where(blocked, 0.0, d), CHANNELS_LAST, VECTOR)
                sums = sums + (total,)
                if batch_norm is not None:
                    mask_sums = mask_sums + (passed,)
        band = sums
        if batch_norm is not None:
            of_mask = mask_sums

    # Columns: dV of each frame, then dΘ of each tap, joined in groups that are added up among threads together. A pair
    # (s, k) whose frame of dY is outside the clip is no term: neither NaN of X nor of a weight may come of it.
    stride = C if CHANNELS_LAST else 1  # weights lie as x does: channels fastest, or time
    kernel_ptr += n * kernel_clip + (c if CHANNELS_LAST else c * K)
    if importance_ptr is not None:
        importance_ptr += n * C * T + (c if CHANNELS_LAST else c * T)
    if batch_norm is not None:
        store_behind_norm(
            band, of_mask, importance_ptr, kernel_ptr, d_importance_ptr, d_kernel_ptr, d_sums_ptr,
            scale, shift, inverse, c, C, n, first, part, part // time_parts, rows, stride,
            T, K, FRAMES, GROUPS, GROUP, LEVELS, TAP_GROUPS, TAP_GROUP, TAP_LEVELS, ACC,
        )  # fmt: skip
    else:
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
            sums = sums_of_columns(columns[group * GROUP : (group + 1) * GROUP], GROUP, LEVELS)
            j = group * GROUP + tl.arange(0, GROUP)[None, :]
            if group * GROUP < FRAMES:
                of_frame = (c < C) & (j < FRAMES) & (first + j < T)
                tl.store(d_importance_ptr + j, sums.to(d_importance_ptr.dtype.element_ty), mask=of_frame)
            if (group + 1) * GROUP > FRAMES:
                of_tap = (c < C) & (j >= FRAMES) & (j < FRAMES + K)
                tl.store(d_kernel_ptr + j, sums.to(d_kernel_ptr.dtype.element_ty), mask=of_tap)


@triton.jit
def store_behind_norm(
    band, of_mask, importance_ptr, kernel_ptr, d_importance_ptr, d_kernel_ptr, d_sums_ptr, scale, shift, inverse,
    c, C, n, first, part, pixel_part, rows, stride,
    T: tl.constexpr, K: tl.constexpr, FRAMES: tl.constexpr,
    GROUPS: tl.constexpr, GROUP: tl.constexpr, LEVELS: tl.constexpr,
    TAP_GROUPS: tl.constexpr, TAP_GROUP: tl.constexpr, TAP_LEVELS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dV, dΘ and the two sums of each frame, from what threads hold of Σ dY·m·(x − mean), `band`, and of B′.

    Both are added up before dV is made of them: A is the one times γ/σ and the other times β.
    """
    HALF: tl.constexpr = K // 2
    columns = ()
    columns_of_mask = ()
    for i in tl.static_range(FRAMES):
        total = tl.zeros_like(band[0])
        passed = tl.zeros_like(band[0])
        for k in tl.static_range(K):
            t = first + i - k + HALF
            tap = tl.load(kernel_ptr + k * stride, mask=c < C, other=0.0).to(ACC)
            total += tl.where((t >= 0) & (t < T), tap * band[i * K + k], 0.0)
            passed += tl.where((t >= 0) & (t < T), tap * of_mask[i * K + k], 0.0)
        columns = columns + (total,)
        columns_of_mask = columns_of_mask + (passed,)
    d_importance_ptr += (pixel_part * rows + n * C + c) * T + first
    d_sums_ptr += (pixel_part * 2 * rows + n * C + c) * T + first
    columns = columns + (tl.zeros_like(band[0]),) * (GROUPS * GROUP - FRAMES)
    columns_of_mask = columns_of_mask + (tl.zeros_like(band[0]),) * (GROUPS * GROUP - FRAMES)
    for group in tl.static_range(GROUPS):
        sums = sums_of_columns(columns[group * GROUP : (group + 1) * GROUP], GROUP, LEVELS)
        passed = sums_of_columns(columns_of_mask[group * GROUP : (group + 1) * GROUP], GROUP, LEVELS)
        j = group * GROUP + tl.arange(0, GROUP)[None, :]
        of_frame = (c < C) & (j < FRAMES) & (first + j < T)
        dv = (sums * scale + passed * shift).to(d_importance_ptr.dtype.element_ty)
        tl.store(d_importance_ptr + j, dv, mask=of_frame)
        v = tl.load(importance_ptr + (first + j) * stride, mask=of_frame, other=0.0).to(ACC)
        tl.store(d_sums_ptr + j, v * passed, mask=of_frame)
        tl.store(d_sums_ptr + rows * T + j, v * (sums * inverse), mask=of_frame)
    columns = ()
    for k in tl.static_range(K):
        total = tl.zeros_like(band[0])
        for i in tl.static_range(FRAMES):
            s = first + i
            t = s - k + HALF
            v = tl.load(importance_ptr + s * stride, mask=(c < C) & (s < T), other=0.0).to(ACC)
            term = (band[i * K + k] * scale + of_mask[i * K + k] * shift) * v
            total += tl.where((s < T) & (t >= 0) & (t < T), term, 0.0)
        columns = columns + (total,)
    columns = columns + (tl.zeros_like(band[0]),) * (TAP_GROUPS * TAP_GROUP - K)
    d_kernel_ptr += (part * rows + n * C + c) * K
    for group in tl.static_range(TAP_GROUPS):
        sums = sums_of_columns(columns[group * TAP_GROUP : (group + 1) * TAP_GROUP], TAP_GROUP, TAP_LEVELS)
        j = group * TAP_GROUP + tl.arange(0, TAP_GROUP)[None, :]
        tl.store(d_kernel_ptr + j, sums.to(d_kernel_ptr.dtype.element_ty), mask=(c < C) & (j < K))


@triton.jit
def sums_of_columns(columns, GROUP: tl.constexpr, LEVELS: tl.constexpr):
    """Of GROUP columns `(BLOCK_C, SUMS)`, joined so that threads add them up together: `(BLOCK_C, GROUP)`."""
    joined = columns
    for level in tl.static_range(LEVELS):
        pairs = ()
        for i in tl.static_range(GROUP >> (level + 1)):
            pairs = pairs + (tl.join(joined[i], joined[i + (GROUP >> (level + 1))]),)
        joined = pairs
    return tl.sum(tl.reshape(joined[0], [columns[0].shape[0], columns[0].shape[1], GROUP]), axis=1)


def weight_gradients(
    dy: Tensor, x: Tensor, importance: Tensor | None, kernel: Tensor,
    num_segments: int | None = None, after: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dV `(N, C, T)`, of V = 1 where it is None, and dΘ, shaped as Θ, from dy and x `(N·T, C, H, W)`."""
    return launched(dy, x, importance, kernel, layout.segments(importance, num_segments), after, None)[:2]


def normalized_gradients(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor, importance: Tensor, kernel: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dV, dΘ, and what dY gives of Σ dA·m and Σ dA·m·x̂ in each frame, `(2, N, C, T)`, as in `plain`."""
    norm = layout.dense_vectors(weight, bias, statistics)
    d_importance, d_kernel, d_sums = launched(dy, x, importance, kernel, importance.shape[-1], False, norm)
    assert d_sums is not None
    return d_importance, d_kernel, d_sums


def launched(
    dy: Tensor, x: Tensor, importance: Tensor | None, kernel: Tensor, T: int, after: bool,
    batch_norm: tuple[Tensor, ...] | None,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """dV, dΘ and, with `batch_norm`, the two sums."""
    channels_last = layout.is_channels_last(x)
    x, dy = layout.to_layout(x, channels_last), layout.to_layout(dy, channels_last)
    if after:
        x, dy = dy, x
    dtype = kernel.dtype if importance is None else importance.dtype
    clips, channels, pixels = x.shape[0] // T, x.shape[1], x.shape[2] * x.shape[3]
    kernel_size, shared = kernel.shape[-1], kernel.dim() == 2
    bands = 1 if batch_norm is None else 2
    frames = launch.band_frames(T, kernel_size, bands)
    time_parts = launch.ceil_div(T, frames)
    tile = launch.band_tile(clips * time_parts, channels, pixels, channels_last, x.element_size(), bands)
    d_importance, d_kernel = x.new_empty((clips, channels, T), dtype=dtype), kernel.new_empty(kernel.shape)
    importance_parts = room(d_importance, tile.parts)
    kernel_parts = room(d_kernel, tile.parts * time_parts * (clips if shared else 1))
    d_sums = sums_parts = None
    if batch_norm is not None:
        d_sums = x.new_empty((2, clips, channels, T), dtype=launch.partial_dtype(x.dtype))
        sums_parts = room(d_sums, tile.parts)
    # Where lanes hold channels, sums of many columns at once would change their places at the price of the kernel.
    widest = 2 if channels_last else 16
    columns = frames if batch_norm is not None else frames + kernel_size  # that are added up together
    group = min(widest, launch.next_power_of_2(columns))
    tap_group = min(widest, launch.next_power_of_2(kernel_size))
    registers = 128 if batch_norm is None else 168
    importance, kernel = (
        None if values is None else layout.dense_weights(values, channels_last) for values in (importance, kernel)
    )
    with launch.on_device(x):
        weight_gradients_kernel[(clips * tile.count(channels) * tile.parts * time_parts,)](
            dy, x, importance, kernel, importance_parts, kernel_parts, sums_parts, batch_norm,
            *layout.vectors_and_lines(channels, pixels, channels_last, tile.vector),
            tile.count(channels), tile.parts, time_parts, tile.steps, clips * channels,
            0 if shared else channels * kernel_size,
            T=T, K=kernel_size, CHANNELS_LAST=channels_last, REVERSED=after, FRAMES=frames,
            BLOCK_C=tile.channels, BLOCK_P=tile.pixels, VECTOR=tile.vector,
            GROUPS=launch.ceil_div(columns, group), GROUP=group, LEVELS=group.bit_length() - 1,
            TAP_GROUPS=launch.ceil_div(kernel_size, tap_group), TAP_GROUP=tap_group,
            TAP_LEVELS=tap_group.bit_length() - 1,
            ACC=launch.accumulator(x.dtype),
            INDEX=launch.offset_dtype(channels * max(tile.covered, kernel_size, T), tile.channels * tile.pixels),
            num_warps=tile.warps, **launch.registers(registers if tile.vector > 1 else None), **launch.OPTIONS,
        )  # fmt: skip
        pairs = [(importance_parts, d_importance), (kernel_parts, d_kernel)]
        if d_sums is not None and sums_parts is not None:
            pairs.append((sums_parts, d_sums))
        add_parts(*pairs)
    return d_importance, d_kernel, d_sums
