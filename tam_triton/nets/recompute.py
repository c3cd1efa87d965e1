"""Activation checkpointing: a block keeps its input alone and computes the rest again in the backward pass."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
            vars(block)["forward"] = Recomputed(block, there)  # so that neither the class nor the state dict sees it
        elif not enable and isinstance(there, Recomputed):
            del vars(block)["forward"]
            vars(block).update({} if there.own is None else {"forward": there.own})


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

    def _forward(self, *args: Any, **options: Any) -> Any:
        return (self.own or type(self.block).forward.__get__(self.block))(*args, **options)

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """For the forward pass, and for its repetition."""
        return nullcontext(), _statistics_untouched(self.block)


@contextmanager
def _statistics_untouched(block: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's running statistics: the same batch must not move them a second time."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    kept = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)
