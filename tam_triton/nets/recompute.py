"""Activation checkpointing: a block keeps its input alone and computes the rest again in the backward pass."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from tam_triton.temporal.tracing import is_traced


def recompute(blocks: Iterable[nn.Module], enable: bool = True) -> None:
    """Let every block be computed again in the backward pass, in place, or no longer.

    Weights, gradients and BatchNorm's running statistics are what they would be without; so are the state dict's names.
    """
    for block in blocks:
        there = vars(block).get("forward")
        if enable and not isinstance(there, Recomputed):
            _attach(block, there)
        elif not enable and isinstance(there, Recomputed):
            del vars(block)["forward"]
            vars(block).pop("_replicate_for_data_parallel", None)  # none in what an earlier version pickled
            vars(block).update({} if there.own is None else {"forward": there.own})


def _attach(block: nn.Module, own: Callable[..., Any] | None) -> None:
    """Beside the block, so that neither its class nor the state dict sees it."""
    recomputed = Recomputed(block, own)
    vars(block).update(forward=recomputed, _replicate_for_data_parallel=recomputed.replicate)


class Recomputed:
    """The forward of such a block.

    Args:
        block: the block.
        own: its forward, where it had one of its own before.
    """

    def __init__(self, block: nn.Module, own: Callable[..., Any] | None) -> None:
        self.block, self.own = block, own

    def __call__(self, *args: Any, **options: Any) -> Any:
        """What the block gives. Nothing is kept where no gradients are wanted; a compiler decides for itself."""
        if not torch.is_grad_enabled() or torch.compiler.is_compiling() or any(map(is_traced, args)):
            return self._forward(*args, **options)
        return checkpoint(self._forward, *args, use_reentrant=False, context_fn=self._contexts, **options)

    def replicate(self) -> nn.Module:
        """The block with parameters of its own to be, as nn.DataParallel asks for: its forward is its own, too."""
        kind: Any = type(self.block)
        replica: nn.Module = kind._replicate_for_data_parallel(self.block)
        _attach(replica, self.own)
        return replica

    def _forward(self, *args: Any, **options: Any) -> Any:
        return (self.own or type(self.block).forward.__get__(self.block))(*args, **options)

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """For the forward pass, and for its repetitions."""
        return nullcontext(), _StatisticsUntouched(self.block)


class _StatisticsUntouched(AbstractContextManager[None]):
    """Keeps BatchNorm's running statistics: the same batch must not move them a second time.

    It is entered again for every backward through a graph that is retained.
    """

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __enter__(self) -> None:
        norms = [norm for norm in self.block.modules() if isinstance(norm, _BatchNorm) and norm.track_running_stats]
        self.kept = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]

    def __exit__(self, *error: object) -> None:
        with torch.no_grad():
            for buffer, value in self.kept:
                buffer.copy_(value)
        self.kept = []
