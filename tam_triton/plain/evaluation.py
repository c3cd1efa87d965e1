"""The operators that only evaluation uses, in plain torch: BatchNorm enters by its running statistics.

`norm` is a BatchNorm's weight, bias, running mean and running variance. Shapes as in `tam_triton.plain`.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from tam_triton import layout
from tam_triton.plain.operators import aggregate, squeeze


def activated_squeeze(x: Tensor, norm: Sequence[Tensor], eps: float, num_segments: int) -> Tensor:
    """X̂ `(N, C, T)` of ReLU(BN(x))."""
    return squeeze(normalise(x, norm, eps).relu(), num_segments)


def activated_aggregate(x: Tensor, norm: Sequence[Tensor], eps: float, importance: Tensor, kernel: Tensor) -> Tensor:
    """Excitation and aggregation of ReLU(BN(x)) (equations 4 and 5)."""
    return aggregate(normalise(x, norm, eps).relu(), importance, kernel)


def branches(
    squeezed: Tensor, global_branch: Sequence[Tensor], local_branch: Sequence[Tensor], eps: float, channels_last: bool
) -> tuple[Tensor, Tensor]:
    """V `(N, C, T)` and Θ `(N, C, K)` of X̂ `(N, C, T)` (equations 2 and 3).

    Each branch is its first weight, BatchNorm's four vectors and its second weight, shaped as in the published
    checkpoints. Stored channels fastest beside a channels_last feature map.
    """
    g_first, *g_norm, g_second = (tensor.float() for tensor in global_branch)
    l_first, *l_norm, l_second = (tensor.float() for tensor in local_branch)
    rows = functional.linear(squeezed.float().flatten(0, 1), g_first)
    scores = functional.linear(normalise(rows, g_norm, eps).relu(), g_second)
    kernel = scores.softmax(-1).unflatten(0, squeezed.shape[:2])
    hidden = functional.conv1d(squeezed.float(), l_first, padding=l_first.shape[-1] // 2)
    importance = functional.conv1d(normalise(hidden, l_norm, eps).relu(), l_second).sigmoid()
    return (
        layout.dense_weights(importance.to(squeezed.dtype), channels_last),
        layout.dense_weights(kernel.to(squeezed.dtype), channels_last),
    )


def normalise(x: Tensor, norm: Sequence[Tensor], eps: float) -> Tensor:
    """BatchNorm with its running statistics."""
    weight, bias, mean, variance = norm
    return functional.batch_norm(x, mean, variance, weight, bias, eps=eps)
