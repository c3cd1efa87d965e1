"""Excitation and aggregation in one pass (equations 4 and 5): Y[t] = Σ_k Θ[k]·V[t+k−K//2]·X[t+k−K//2]."""

from collections.abc import Sequence

from torch import Tensor

from tam_triton import layout
from tam_triton.kernels import banded


def aggregate(x: Tensor, importance: Tensor, kernel: Tensor) -> Tensor:
    """y like x `(N·T, C, H, W)` from importance V `(N, C, T)` and kernel Θ `(N, C, K)`."""
    return banded.product(x, importance, kernel, layout.is_channels_last(x), transposed=False)


def activated_aggregate(x: Tensor, norm: Sequence[Tensor], eps: float, importance: Tensor, kernel: Tensor) -> Tensor:
    """`aggregate` of ReLU(BN(x)), which is never written; `norm` is weight, bias, running mean and variance."""
    return banded.product(x, importance, kernel, layout.is_channels_last(x), transposed=False, norm=norm, eps=eps)
