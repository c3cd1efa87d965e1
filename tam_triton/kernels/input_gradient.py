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


def normalized_input_gradient(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: Tensor,
    importance: Tensor,
    kernel: Tensor,
    d_squeezed: Tensor,
    d_weight: Tensor | None,
    d_bias: Tensor | None,
) -> Tensor:
    """The gradient of what enters BatchNorm and ReLU, dense in x's layout, as in `plain`; it is written once."""
    of_batch = None if d_weight is None or d_bias is None else (d_weight, d_bias)
    norm = layout.dense_vectors(weight, bias, statistics)
    return banded.product(
        dy, importance, kernel, layout.is_channels_last(x), importance.shape[-1], transposed=True,
        d_squeezed=d_squeezed, batch_norm=norm, features=x, norm_gradients=of_batch,
    )  # fmt: skip
