"""Gradient of X in one pass: dX[s] = V[s]·Σ_k Θ[k]·dY[s−k+K//2] + dX̂[s]/P.

The squeeze's gradient is added where dX is written, so that the two gradients of X need no sum of their own.
"""

from torch import Tensor

from tam_triton import layout
from tam_triton.kernels import banded


def input_gradient(
    dy: Tensor,
    importance: Tensor | None,
    kernel: Tensor,
    d_squeezed: Tensor | None,
    channels_last: bool,
    num_segments: int | None = None,
    after: bool = False,
) -> Tensor:
    """dx `(N·T, C, H, W)`, dense in the given layout; `d_squeezed` `(N, C, T)` is the gradient of X̂, if any."""
    T = layout.segments(importance, num_segments)
    return banded.product(dy, importance, kernel, channels_last, T, transposed=True, after=after, d_squeezed=d_squeezed)
