"""The operators in plain torch, for the CPU and for any device without Triton.

Shapes: `x`, `dy` `(N·T, C, H, W)`; importance V `(N, C, T)`; kernel Θ `(N, C, K)`. Sums accumulate in float32
(float64 for float64) and are rounded once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tam_triton import layout


def accumulator(x: Tensor) -> torch.dtype:
    """The dtype in which sums over `x` are taken."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def clip_view(x: Tensor, num_segments: int) -> Tensor:
    """`(N·T, C, H, W)` as `(N, T, C, H, W)`, without a copy."""
    return x.unflatten(0, (x.shape[0] // num_segments, num_segments))


def per_pixel(weights: Tensor) -> Tensor:
    """`(N, C, T)` as `(N, T, C, 1, 1)`, to be broadcast over pixels."""
    return weights.transpose(1, 2)[..., None, None]


def squeeze(x: Tensor, num_segments: int) -> Tensor:
    """X̂[n,c,t] = mean over pixels of x; `(N, C, T)` (equation 1)."""
    mean = x.flatten(2).mean(-1, dtype=accumulator(x)).to(x.dtype)
    return clip_view(mean, num_segments).transpose(1, 2).clone(memory_format=torch.contiguous_format)


def taps(length: int, kernel_size: int) -> list[tuple[int, slice, slice]]:
    """For each tap k that reaches inside the clip: (k, frames t, frames t + k − K//2)."""
    shifts = [(k, k - kernel_size // 2) for k in range(kernel_size)]
    return [
        (k, slice(max(0, -d), min(length, length - d)), slice(max(0, d), min(length, length + d)))
        for k, d in shifts
        if abs(d) < length
    ]


def banded_sum(
    frames: Tensor, importance: Tensor, kernel: Tensor, offset: Tensor | None, transposed: bool, channels_last: bool
) -> Tensor:
    """M·frames, or Mᵀ·frames, with the band M[t, t+k−K//2] = Θ[k]·V[t+k−K//2], plus an offset `(N, C, T)`.

    The centre tap reaches every frame: its product is where the sum begins, so nothing is filled with zeros first.
    """
    num_segments, kernel_size = importance.shape[-1], kernel.shape[-1]
    dtype, centre = accumulator(frames), kernel.shape[-1] // 2
    clip, v, theta = clip_view(frames, num_segments).to(dtype), importance.to(dtype), kernel.to(dtype)
    middle = per_pixel(v * theta[..., centre, None])
    total = clip * middle if offset is None else torch.addcmul(per_pixel(offset.to(dtype)), clip, middle)
    for k, target, source in taps(num_segments, kernel_size):
        if k != centre:
            to, of = (source, target) if transposed else (target, source)
            total[:, to].addcmul_(clip[:, of], per_pixel(v[..., source] * theta[..., k, None]))
    return layout.to_layout(total.flatten(0, 1).to(frames.dtype), channels_last)


def aggregate(x: Tensor, importance: Tensor, kernel: Tensor) -> Tensor:
    """Y[t] = Σ_k Θ[k]·V[t+k−K//2]·X[t+k−K//2] (equations 4 and 5)."""
    return banded_sum(x, importance, kernel, None, transposed=False, channels_last=layout.is_channels_last(x))


def weight_gradients(dy: Tensor, x: Tensor, importance: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of V `(N, C, T)` and Θ `(N, C, K)`, both read off the band Σ_p dY[t,p]·X[s,p] of `dY·Xᵀ`."""
    num_segments, kernel_size = importance.shape[-1], kernel.shape[-1]
    dtype = accumulator(x)
    clip, dclip = clip_view(x, num_segments), clip_view(dy, num_segments)
    v, theta = importance.to(dtype), kernel.to(dtype)
    d_importance, d_kernel = torch.zeros_like(v), torch.zeros_like(theta)
    for k, target, source in taps(num_segments, kernel_size):
        band = (dclip[:, target].to(dtype) * clip[:, source].to(dtype)).sum((3, 4)).transpose(1, 2)
        d_importance[..., source] += theta[..., k, None] * band
        d_kernel[..., k] = (v[..., source] * band).sum(-1)
    return d_importance.to(importance.dtype), d_kernel.to(kernel.dtype)


def input_gradient(
    dy: Tensor, importance: Tensor, kernel: Tensor, d_squeezed: Tensor | None, channels_last: bool
) -> Tensor:
    """dX[s] = V[s]·Σ_k Θ[k]·dY[s−k+K//2] + dX̂[s]/P, dense in the given layout."""
    offset = None if d_squeezed is None else d_squeezed.to(accumulator(dy)) / (dy.shape[2] * dy.shape[3])
    return banded_sum(dy, importance, kernel, offset, transposed=True, channels_last=channels_last)


def branches(
    squeezed: Tensor, global_branch: Sequence[Tensor], local_branch: Sequence[Tensor], eps: float, channels_last: bool
) -> tuple[Tensor, Tensor]:
    """V `(N, C, T)` and Θ `(N, C, K)` of X̂ `(N, C, T)` in evaluation (equations 2 and 3).

    Each branch is given as its first weight, BatchNorm's weight, bias, running mean and variance, its second weight,
    with the shapes of the published checkpoints.
    """
    g_first, *g_norm, g_second = (tensor.float() for tensor in global_branch)
    l_first, *l_norm, l_second = (tensor.float() for tensor in local_branch)
    rows = functional.linear(squeezed.float().flatten(0, 1), g_first)
    scores = functional.linear(evaluated_norm(rows, g_norm, eps).relu(), g_second)
    kernel = scores.softmax(-1).unflatten(0, squeezed.shape[:2])
    hidden = functional.conv1d(squeezed.float(), l_first, padding=l_first.shape[-1] // 2)
    importance = functional.conv1d(evaluated_norm(hidden, l_norm, eps).relu(), l_second).sigmoid()
    return (
        layout.dense_weights(importance.to(squeezed.dtype), channels_last),
        layout.dense_weights(kernel.to(squeezed.dtype), channels_last),
    )


def evaluated_norm(x: Tensor, norm: Sequence[Tensor], eps: float) -> Tensor:
    """BatchNorm with its running statistics."""
    weight, bias, mean, variance = norm
    return functional.batch_norm(x, mean, variance, weight, bias, eps=eps)
