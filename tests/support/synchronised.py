"""torch's SyncBatchNorm over processes without GPUs: what of it has CUDA kernels alone is computed by plain torch.

The layers stay torch's own, of its class and with its forward, so whatever asks what they are learns just that.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, distributed
from torch.nn.modules import batchnorm


@contextmanager
def on_cpus() -> Iterator[None]:
    """Lets SyncBatchNorms take tensors of the CPU in a process group."""
    with (
        mock.patch.object(batchnorm, "sync_batch_norm", SimpleNamespace(apply=batch_norm)),
        mock.patch.object(torch._C, "_get_privateuse1_backend_name", return_value="cpu"),  # which devices it takes
    ):
        yield


class Sum(torch.autograd.Function):
    """Over processes; every one's gradient is the sum of all their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group, total = group, x.clone()
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return Sum.apply(gradient.contiguous(), ctx.group), None


def batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, eps: float, momentum: float,
    group: Any, world_size: int,
) -> Tensor:  # fmt: skip
    """BatchNorm of x `(N, C, …)` by the statistics of all processes, through which gradients go back to all of them."""
    over, channels = [0, *range(2, x.dim())], [-1, *[1] * (x.dim() - 2)]
    count = Sum.apply(x.new_tensor(x.numel() / x.shape[1]), group)
    mean = Sum.apply(x.sum(over), group) / count
    centred = x - mean.view(channels)
    variance = Sum.apply(centred.square().sum(over), group) / count
    with torch.no_grad():
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance * count / (count - 1), momentum)
    return centred * (weight / (variance + eps).sqrt()).view(channels) + bias.view(channels)
