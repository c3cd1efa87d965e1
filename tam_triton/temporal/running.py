"""Running statistics of BatchNorms whose layers were not called."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def update(norms: Sequence[Any], statistics: Sequence[Tensor]) -> None:
    """Moves each BatchNorm's running mean and variance towards the batch's, and counts the batch, as its forward does.

    Args:
        norms: BatchNorms in training.
        statistics: of each, mean and unbiased variance of its channels, `(2 or more, C)`.
    """
    pairs = [(norm, values) for norm, values in zip(norms, statistics, strict=True) if norm.track_running_stats]
    if pairs:
        torch._foreach_add_([norm.num_batches_tracked for norm, _ in pairs], 1)
    for momentum in dict.fromkeys(norm.momentum for norm, _ in pairs):
        chosen = [(norm, values) for norm, values in pairs if norm.momentum == momentum]
        running = [buffer for norm, _ in chosen for buffer in (norm.running_mean, norm.running_var)]
        batch = [row.to(norm.running_mean.dtype) for norm, values in chosen for row in values.unbind()[:2]]
        if momentum is not None:
            torch._foreach_lerp_(running, batch, momentum)
            continue
        shares = [norm.num_batches_tracked.to(values.dtype).reciprocal() for norm, values in chosen for _ in (0, 1)]
        for buffer, values, share in zip(running, batch, shares, strict=True):
            buffer.lerp_(values, share.to(buffer.dtype))


def frozen(mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """Running statistics as the operators take them, mean, variance and 1/σ `(3, C)`, in the dtype of sums."""
    wide = torch.promote_types(mean.dtype, torch.float32)
    variance = variance.to(wide)
    return torch.stack([mean.to(wide), variance, (variance + eps).rsqrt()])
