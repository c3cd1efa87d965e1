"""Excitation and aggregation in one pass (equations 4 and 5): Y[t] = Σ_k Θ[k]·V[t+k−K//2]·X[t+k−K//2]."""

from collections.abc import Sequence

from torch import Tensor

from tam_triton import layout
from tam_triton.kernels import banded


def aggregate(
    x: Tensor, importance: Tensor | None, kernel: Tensor, num_segments: int | None = None, after: bool = False
) -> Tensor:
    """y like x `(N·T, C, H, W)`; V `(N, C, T)` or None, Θ `(N, C, K)` or `(C, K)` as in `plain`."""
    T = layout.segments(importance, num_segments)
    return banded.product(x, importance, kernel, layout.is_channels_last(x), T, transposed=False, after=after)


def activated_aggregate(x: Tensor, norm: Sequence[Tensor], eps: float, importance: Tensor, kernel: Tensor) -> Tensor:
    """`aggregate` of ReLU(BN(x)), which is never written; `norm` is weight, bias, running mean and variance."""
    T, channels_last = importance.shape[-1], layout.is_channels_last(x)
    return banded.product(x, importance, kernel, channels_last, T, transposed=False, norm=norm, eps=eps)


def normalized_aggregate(
    x: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor, importance: Tensor, kernel: Tensor
) -> Tensor:
    """The same in training, with `statistics` `(3, C)` as in `plain`."""
    T, channels_last = importance.shape[-1], layout.is_channels_last(x)
    norm = layout.dense_vectors(weight, bias, statistics)
    return banded.product(x, importance, kernel, channels_last, T, transposed=False, batch_norm=norm)
