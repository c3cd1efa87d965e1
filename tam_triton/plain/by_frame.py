"""For Inductor on the CPU, channels_last: every frame is written out, so that one loop over pixels holds all its taps.

The generated loop has no masks for the clip's ends, reads each frame while its neighbours are in the cache, and is
vectorised. Generated code grows with T·K.
"""

import torch
from torch import Tensor

from tam_triton.plain.views import accumulator, per_row, rows_of_pixels

MAX_FRAMES = 32  # the code for longer clips would take too long to compile


def weighted_sum(
    frames: Tensor, weights: Tensor, offset: Tensor | None, transposed: bool, channels_last: bool
) -> Tensor:
    """As `by_tap.weighted_sum`, in channels_last."""
    assert channels_last
    T, K = weights.shape[-2:]
    rows = rows_of_pixels(frames, T, channels_last)
    # Inductor stores what is stacked. A mere product it would compute again for every pixel, with channels far apart.
    slices = [*weights.unbind(-1), *([] if offset is None else [offset])]
    stored = torch.stack([one.transpose(1, 2) for one in slices])  # (K or K + 1, N, T, C)
    results = []
    for to in range(T):
        terms = [] if offset is None else [per_row(stored[K, :, to], channels_last)]
        for k in range(K):
            shift = k - K // 2
            of = to - shift if transposed else to + shift
            if 0 <= of < T:
                weight = stored[k, :, to if transposed else of]
                terms.append(rows[:, of].type_as(weights) * per_row(weight, channels_last))
        results.append(sum(terms[1:], start=terms[0]).type_as(frames))
    result = torch.stack(results, 1).flatten(0, 1)  # (N·T, P, C)
    return result.unflatten(1, frames.shape[2:]).permute(0, 3, 1, 2)


def band(dy: Tensor, x: Tensor, T: int, K: int, channels_last: bool) -> Tensor:
    """As `by_tap.band`, of channels_last tensors."""
    assert channels_last
    clip, dclip = (rows_of_pixels(t, T, channels_last) for t in (x, dy))
    dtype = accumulator(x)
    outside = x.new_zeros(clip.shape[0], x.shape[1], dtype=dtype)
    sums = []
    for s in range(T):
        for k in range(K):
            t = s - k + K // 2
            inside = 0 <= t < T
            sums.append((dclip[:, t].to(dtype) * clip[:, s].to(dtype)).sum(1) if inside else outside)
    return torch.stack(sums, -1).unflatten(-1, (T, K))
