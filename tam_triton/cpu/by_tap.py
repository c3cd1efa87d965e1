"""The definition: tap by tap, a slice of all frames at once. Differentiable, on any device."""

import torch
from torch import Tensor
from torch.nn import functional

from tam_triton import layout
from tam_triton.cpu.views import accumulator, clip_view, taps


def weighted_sum(
    frames: Tensor, weights: Tensor, offset: Tensor | None, transposed: bool, channels_last: bool
) -> Tensor:
    """M·frames, or Mᵀ·frames, with the band M[t, t+k−K//2] = weights[t+k−K//2, k], plus the offset.

    Args:
        frames: `(N·T, C, H, W)`.
        weights: Θ[k]·V[s] as `(N, C, T, K)`.
        offset: `(N, C, T)`, added at every pixel.
        transposed: Mᵀ instead of M.
        channels_last: the layout of the result.
    """
    T, K = weights.shape[-2:]
    clip = clip_view(frames, T).type_as(weights)
    terms = [] if offset is None else [per_pixel(offset)]
    for k, target, source in taps(T, K):
        to, of = (source, target) if transposed else (target, source)
        term = clip[:, of] * per_pixel(weights[:, :, source, k])
        terms.append(functional.pad(term, (0, 0, 0, 0, 0, 0, to.start, T - to.stop)))
    total = sum(terms[1:], start=terms[0])
    return layout.to_layout(total.flatten(0, 1).type_as(frames), channels_last)


def band(dy: Tensor, x: Tensor, T: int, K: int) -> Tensor:
    """B[s, k] = Σ_p dY[s−k+K//2, p]·X[s, p] as `(N, C, T, K)`; 0 where that frame of dY is outside the clip."""
    clip, dclip = clip_view(x, T), clip_view(dy, T)
    dtype = accumulator(x)
    columns = [x.new_zeros(clip.shape[0], clip.shape[2], T, dtype=dtype)] * K
    for k, target, source in taps(T, K):
        sums = (dclip[:, target].to(dtype) * clip[:, source].to(dtype)).sum((3, 4)).transpose(1, 2)
        columns[k] = functional.pad(sums, (source.start, T - source.stop))
    return torch.stack(columns, -1)


def per_pixel(weights: Tensor) -> Tensor:
    """`(N, C, T)` as `(N, T, C, 1, 1)`, to be broadcast over pixels."""
    return weights.transpose(1, 2)[..., None, None]
