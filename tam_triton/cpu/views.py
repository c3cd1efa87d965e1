"""How the forms look at a feature map, and which frames a tap joins."""

import torch
from torch import Tensor

from tam_triton import layout


def accumulator(x: Tensor) -> torch.dtype:
    """The dtype in which sums over `x` are taken."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def widened(x: Tensor) -> Tensor:
    """`x` in the dtype in which sums over it are taken.

    Here and where `type_as` stands in a forward: a program that was exported under autocast runs without it in another
    dtype. It would refuse that after a `Tensor.to`, which torch.export records with the dtype that came.
    """
    return x.type_as(x.new_empty(0, dtype=accumulator(x)))


def clip_view(x: Tensor, num_segments: int) -> Tensor:
    """`(N·T, C, H, W)` as `(N, T, C, H, W)`, without a copy."""
    return x.unflatten(0, (x.shape[0] // num_segments, num_segments))


def rows_of_pixels(x: Tensor, num_segments: int, channels_last: bool) -> Tensor:
    """`x` as `(N, T, C, P)`, or as `(N, T, P, C)` if channels_last: a view if `x` is dense in that layout."""
    dense = layout.to_layout(x, channels_last)
    pixels = dense.permute(0, 2, 3, 1).flatten(1, 2) if channels_last else dense.flatten(2)
    return clip_view(pixels, num_segments)


def taps(length: int, kernel_size: int) -> list[tuple[int, slice, slice]]:
    """For each tap k that reaches inside the clip: (k, frames t, frames t + k − K//2)."""
    shifts = [(k, k - kernel_size // 2) for k in range(kernel_size)]
    return [
        (k, slice(max(0, -d), min(length, length - d)), slice(max(0, d), min(length, length + d)))
        for k, d in shifts
        if abs(d) < length
    ]


def inside_clip(length: int, kernel_size: int, device: torch.device) -> Tensor:
    """Whether frame s − k + K//2 exists, as `(T, K)`."""
    frame = torch.arange(length, device=device)[:, None] - torch.arange(kernel_size, device=device) + kernel_size // 2
    return (frame >= 0) & (frame < length)
