"""The banded T×T matrix M[t,s] = Θ[s−t+K//2]·V[s] of each clip and channel, times frames: Y = M·X, or dX = Mᵀ·dY.

Forms of it have V[t], of the frame written, or no V, and one Θ for all clips. The transpose of a band is a band with
its taps reversed and V at its other end, so a product is told by these two. What a form lacks is None, which the
compiler knows; a Θ of all clips is one whose clips are 0 apart, which it knows too: as a number it costs registers.
Behind a BatchNorm in training, X is x through BatchNorm and ReLU, and dX goes back through both where x is read beside.

A program walks a block of a clip's elements through time, or through one part of it. Each frame is asked for ahead of
its use and added, as it comes, to the K results that it reaches, of which K − 1 are carried; each is read once and each
result is written once: two passes over a tensor of X's size. Programs go from the tensor's end to its beginning: the
kernel that reads the same tensor before goes the other way, and what it read last is still in the cache.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from tam_triton import layout
from tam_triton.kernels import launch, metadata
from tam_triton.kernels.frames import centred_norm, folded_norm, relu

MOST_FRAMES = 16  # of a program, which are written out
AHEAD_SMALL = 2  # frames of V and of dX̂ that are asked for before the one in use


@triton.jit(launch_metadata=metadata.banded)
def banded_kernel(
    x_ptr, importance_ptr, kernel_ptr, offset_ptr, y_ptr, norm, features_ptr, batch_norm, norm_gradients,
    vectors, lines, blocks, parts, eps: tl.float64,
    T: tl.constexpr, K: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    SHARED: tl.constexpr, REVERSED: tl.constexpr, V_OF_RESULT: tl.constexpr,
    FRAMES: tl.constexpr, AHEAD: tl.constexpr, AHEAD_SMALL: tl.constexpr,
    VECTORS: tl.constexpr, VECTOR: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    # As products, so that the compiler sees what divides a row.
    C = tl.cast(vectors, INDEX) * VECTOR if CHANNELS_LAST else lines
    P = lines if CHANNELS_LAST else tl.cast(vectors, INDEX) * VECTOR
    HALF: tl.constexpr = K // 2
    WHOLE: tl.constexpr = FRAMES == T  # frames outside the clip are then known to the compiler
    BEFORE: tl.constexpr = 0 if WHOLE else HALF  # frames read before the first written
    READ: tl.constexpr = FRAMES + 2 * BEFORE
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    n = (program // (blocks * parts)).to(tl.int64)
    first = 0 if WHOLE else program // blocks % parts * FRAMES
    start = ((program % blocks).to(INDEX) * VECTORS + tl.arange(0, VECTORS))[:, None] * VECTOR
    lane = tl.arange(0, VECTOR)[None, :]
    frame = tl.cast(C, tl.int64) * P
    inside = start + lane < frame
    x_ptr += n * T * frame + start + lane
    y_ptr += n * T * frame + start + lane
    if features_ptr is not None:
        features_ptr += n * T * frame + start + lane
    # Weights lie as x does: channels fastest, or time. Past the end of a frame they are those of the last channel, so
    # that they need no mask of their own.
    c = start % C + lane if CHANNELS_LAST else tl.minimum(start // P, C - 1)
    step = C if CHANNELS_LAST else 1
    if importance_ptr is not None:
        importance_ptr += n * C * T + (c if CHANNELS_LAST else c * T)
    if offset_ptr is not None:
        offset_ptr += n * C * T + (c if CHANNELS_LAST else c * T)
    kernel_ptr += (0 if SHARED else n * C * K) + (c if CHANNELS_LAST else c * K)

    window = ()  # frames, V and dX̂ that have been asked for
    for i in tl.static_range(min(AHEAD, READ)):
        window = window + (load_frame(x_ptr, first + i - BEFORE, frame, inside, T, WHOLE),)
    features = ()
    for i in tl.static_range(min(AHEAD, FRAMES)):
        if features_ptr is not None:
            features = features + (load_frame(features_ptr, first + i, frame, inside, T, WHOLE),)
    importances = ()
    offsets = ()
    for i in tl.static_range(AHEAD_SMALL):
        if importance_ptr is not None and i < (FRAMES if V_OF_RESULT else READ):
            t = first + i - (0 if V_OF_RESULT else BEFORE)
            importances = importances + (load_frame(importance_ptr, t, step, True, T, WHOLE),)
        if offset_ptr is not None and i < FRAMES:
            offsets = offsets + (load_frame(offset_ptr, first + i, step, True, T, WHOLE),)
    taps = ()  # of the results t = s − K//2 … s + K//2 that frame s reaches
    for k in tl.static_range(K):
        taps = taps + (tl.load(kernel_ptr + (k if REVERSED else K - 1 - k) * step).to(ACC),)
    if norm is not None:
        scale, shift = folded_norm(norm, eps, c, True, ACC)
    if batch_norm is not None:
        mean, scale, shift, inverse = centred_norm(batch_norm, C, c, True, ACC)
    if norm_gradients is not None:
        d_weight_ptr, d_bias_ptr, count = norm_gradients
        share = scale / tl.cast(count, ACC)
        slope = share * inverse * tl.load(d_weight_ptr + c).to(ACC)
        level = share * tl.load(d_bias_ptr + c).to(ACC)
    inverse_pixels = tl.full([1, 1], 1.0, ACC) / P

    sums = (tl.zeros([VECTORS, VECTOR], ACC),) * (K - 1)  # of results that more frames will reach, earliest first
    for i in tl.static_range(READ + HALF - BEFORE):
        s = first + i - BEFORE
        t = s - HALF  # the result that frame s completes
        if i + AHEAD < READ:
            window = window + (load_frame(x_ptr, s + AHEAD, frame, inside, T, WHOLE),)
        if importance_ptr is not None and not V_OF_RESULT and i + AHEAD_SMALL < READ:
            importances = importances + (load_frame(importance_ptr, s + AHEAD_SMALL, step, True, T, WHOLE),)
        if i >= HALF + BEFORE and i - HALF - BEFORE + AHEAD_SMALL < FRAMES:
            if importance_ptr is not None and V_OF_RESULT:
                importances = importances + (load_frame(importance_ptr, t + AHEAD_SMALL, step, True, T, WHOLE),)
            if offset_ptr is not None:
                offsets = offsets + (load_frame(offset_ptr, t + AHEAD_SMALL, step, True, T, WHOLE),)
        if features_ptr is not None and i >= HALF + BEFORE and i - HALF - BEFORE + AHEAD < FRAMES:
            features = features + (load_frame(features_ptr, t + AHEAD, frame, inside, T, WHOLE),)
        sums = sums + (tl.zeros([VECTORS, VECTOR], ACC),)
        if i < READ:
            z: tl.tensor = window[0].to(ACC)
            window = window[1:]
            if norm is not None:
                z = relu(z * scale + shift)
            if batch_norm is not None and features_ptr is None:
                z = relu((z - mean) * scale + shift)
            if importance_ptr is not None and not V_OF_RESULT:
                z *= importances[0].to(ACC)
                importances = importances[1:]
            reached = ()
            for k in tl.static_range(K):
                total = sums[k] + taps[k] * z
                if not (WHOLE or (i >= BEFORE and i < BEFORE + FRAMES and T % FRAMES == 0)):
                    # A frame outside the clip is no term: not even NaN of Θ may come of it.
                    total = tl.where((s >= 0) & (s < T), total, sums[k])
                reached = reached + (total,)
            sums = reached
        if i >= HALF + BEFORE:
            y = sums[0]
            if importance_ptr is not None and V_OF_RESULT:
                y *= importances[0].to(ACC)
                importances = importances[1:]
            if offset_ptr is not None:
                y += offsets[0].to(ACC) * inverse_pixels
                offsets = offsets[1:]
            if features_ptr is not None:  # through ReLU and BatchNorm
                less: tl.tensor = features[0].to(ACC) - mean
                features = features[1:]
                y = tl.where(less * scale + shift <= 0, 0.0, y * scale)
                if norm_gradients is not None:
                    y -= less * slope + level
            tl.store(y_ptr + t * frame, y.to(y_ptr.dtype.element_ty), mask=inside & (WHOLE | (t < T)))
        sums = sums[1:]


@triton.jit
def load_frame(ptr, t, stride, inside, T: tl.constexpr, WHOLE: tl.constexpr):
    """Of frame t; zeros where there is none, which is not asked where it is known."""
    return tl.load(ptr + t * stride, mask=inside & (WHOLE | ((t >= 0) & (t < T))), other=0.0)


def product(
    x: Tensor, importance: Tensor | None, kernel: Tensor, channels_last: bool, num_segments: int, *,
    transposed: bool, after: bool = False,
    d_squeezed: Tensor | None = None, norm: Sequence[Tensor] | None = None, eps: float = 0.0,
    batch_norm: tuple[Tensor, ...] | None = None, features: Tensor | None = None,
    norm_gradients: tuple[Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """M·x, or Mᵀ·x where `transposed`, for x `(N·T, C, H, W)`; in the given layout.

    V `(N, C, T)` may be None, Θ is `(N, C, K)` or `(C, K)`. M has V of the frame read, or, with `after`, of the one it
    writes. With `d_squeezed` `(N, C, T)`, d_squeezed/P is added; with `norm` and `eps` it is M·ReLU(BN(x)).
    With `batch_norm` (weight, bias, statistics) it is that too, with its own statistics; with the BatchNorm's input as
    `features`, of x's shape, it is Mᵀ·x taken back through ReLU and BatchNorm. `norm_gradients` are dγ and dβ where the
    statistics are the batch's.
    """
    x = layout.to_layout(x, channels_last)
    features = None if features is None else layout.to_layout(features, channels_last)
    y = layout.empty(x, channels_last)
    clips, channels, pixels = x.shape[0] // num_segments, x.shape[1], x.shape[2] * x.shape[3]
    kernel_size, shared = kernel.shape[-1], kernel.dim() == 2
    block = launch.temporal_block(channels, pixels, channels_last, x.element_size())
    blocks = launch.ceil_div(channels * pixels, block.elements)
    frames = launch.frames_of_part(clips * blocks, num_segments, MOST_FRAMES)
    parts = launch.ceil_div(num_segments, frames)
    index = launch.offset_dtype(channels * max(pixels, num_segments, kernel_size), block.elements)
    importance, kernel, offset = (
        None if values is None else layout.dense_weights(values, channels_last)
        for values in (importance, kernel, d_squeezed)
    )
    with launch.on_device(x):
        banded_kernel[(clips * parts * blocks,)](
            x, importance, kernel, offset, y, None if norm is None else tuple(norm), features, batch_norm,
            None if norm_gradients is None else (*layout.dense_vectors(*norm_gradients), x.numel() // channels),
            *layout.vectors_and_lines(channels, pixels, channels_last, block.vector), blocks, parts, eps,
            T=num_segments, K=kernel_size, CHANNELS_LAST=channels_last,
            SHARED=shared, REVERSED=transposed, V_OF_RESULT=importance is not None and transposed != after,
            FRAMES=frames, AHEAD=block.ahead, AHEAD_SMALL=AHEAD_SMALL, VECTORS=block.vectors, VECTOR=block.vector,
            ACC=launch.accumulator(x.dtype), INDEX=index,
            num_warps=1, **launch.OPTIONS,
        )  # fmt: skip
    return y
