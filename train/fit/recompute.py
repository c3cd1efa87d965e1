"""Activation checkpointing: a residual block keeps its input alone and computes the rest again in the backward pass."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from train.errors import InputError

STAGES = ("layer1", "layer2", "layer3", "layer4")


def recompute_blocks(network: nn.Module) -> None:
    """Let every residual block of a ResNet's four stages be computed again in the backward pass, in place.

    Weights, gradients and BatchNorm's running statistics are what they would be without; so are the state dict's names.
    Raises InputError for a network without such stages.
    """
    stages = dict(network.named_children())
    if missing := [name for name in STAGES if name not in stages]:
        raise InputError(f"activation checkpointing needs a ResNet's stages; {type(network).__name__} has no {missing}")
    for name in STAGES:
        for block in stages[name].children():
            contexts = partial(_contexts, block)
            # On the instance, so that neither the class nor the state dict sees it.
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For the forward pass, and for its repetition."""
    return nullcontext(), _statistics_untouched(block)


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
