"""For Inductor on the CPU: the whole of a clip moved by a frame for each tap, so that code does not grow with T.

The loop over a result's elements reads K neighbours, masked at the clip's ends. In NCHW it is as fast as frames written
out one by one, at any T compiled as fast as the usual formulation is; in channels_last it takes two to three times as
long as `by_frame`.
"""

import torch
from torch import Tensor
from torch.nn import functional

from tam_triton.plain.views import inside_clip, per_row, rows_of_pixels, widened


def weighted_sum(
    frames: Tensor, weights: Tensor, offset: Tensor | None, transposed: bool, channels_last: bool
) -> Tensor:
    """As `by_tap.weighted_sum`."""
    T, K = weights.shape[-2:]
    rows = rows_of_pixels(frames, T, channels_last)
    reach = [K // 2 - k if transposed else k - K // 2 for k in range(K)]  # from a frame to the one that its tap reads
    slices = []
    for by, weight in zip(reach, weights.transpose(1, 2).unbind(-1), strict=True):  # (N, T, C)
        # Transposed it is the weight of the frame written, else of the one read; 0 where that is outside the clip.
        slices.append(moved(moved(weight, -by), by) if transposed else moved(weight, by))
    if offset is not None:
        slices.append(offset.transpose(1, 2))
    # Inductor stores what is stacked. A mere product it would compute again for every pixel, with channels far apart.
    stored = torch.stack(slices)
    terms = [] if offset is None else [per_row(stored[K], channels_last)]
    for by, weight in zip(reach, stored[:K].unbind(), strict=True):
        terms.append(moved(rows, by).type_as(weights) * per_row(weight, channels_last))
    result = sum(terms[1:], start=terms[0]).type_as(frames).flatten(0, 1)  # (N·T, C, P) or (N·T, P, C)
    if channels_last:
        return result.unflatten(1, frames.shape[2:]).permute(0, 3, 1, 2)
    return result.unflatten(2, frames.shape[2:])


def band(dy: Tensor, x: Tensor, T: int, K: int, channels_last: bool) -> Tensor:
    """As `by_tap.band`."""
    clip, dclip = (rows_of_pixels(t, T, channels_last) for t in (x, dy))
    pixels = 2 if channels_last else 3
    sums = [(widened(moved(dclip, K // 2 - k)) * widened(clip)).sum(pixels) for k in range(K)]
    band = torch.stack([one.transpose(1, 2) for one in sums], -1)
    return torch.where(inside_clip(T, K, x.device), band, 0.0)  # what is not finite times no frame is nothing


def moved(clip: Tensor, by: int) -> Tensor:
    """`(N, T, …)` with frame t + `by` in the place of frame t, and zeros where there is none."""
    if by == 0:
        return clip
    T = clip.shape[1]
    if abs(by) >= T:
        return torch.zeros_like(clip)
    flat = clip.flatten(2)
    padded = functional.pad(flat[:, max(0, by) : T + min(0, by)], (0, 0, max(0, -by), max(0, by)))
    return padded.unflatten(2, clip.shape[2:])
