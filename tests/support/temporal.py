"""Every temporal module, small, with random weights and statistics."""

import torch
from torch import Tensor, nn

from tam_triton.temporal import MODULES
from tests.support.networks import normal, randomised

FRAMES, CHANNELS = 3, 16
WITHOUT_OPERATORS = ("conv", "inflated_conv", "non_local")
WITH_OPERATORS = [name for name in MODULES if name not in WITHOUT_OPERATORS]
EACH = [(name, impl) for name in WITH_OPERATORS for impl in ("triton", "torch")] + [
    (name, "") for name in WITHOUT_OPERATORS
]
"""Names with each implementation that they take."""


def small(name: str, impl: str = "", num_segments: int = FRAMES) -> nn.Module:
    """As it is constructed: 16 channels in, K = 3."""
    if name == "inflated_conv":
        return MODULES[name](nn.Conv2d(CHANNELS, 24, 1), num_segments)
    return MODULES[name](CHANNELS, num_segments, **({"impl": impl} if impl else {}))


def random_module(name: str, impl: str = "", num_segments: int = FRAMES) -> nn.Module:
    """The same with nothing at its initial value."""
    return randomised(small(name, impl, num_segments))


def feature_maps(
    clips: int = 2, memory_format: torch.memory_format = torch.contiguous_format, num_segments: int = FRAMES
) -> Tensor:
    """`(N·T, C, 5, 4)`."""
    return normal(clips * num_segments, CHANNELS, 5, 4).contiguous(memory_format=memory_format)


def in_float64(name: str, memory_format: torch.memory_format, device: str) -> list[Tensor]:
    """On the CPU, what a module gave on a device: y, and the gradients of x and of every parameter."""
    module = random_module(name, num_segments=8).double().to(device).train()
    leaf = feature_maps(memory_format=memory_format, num_segments=8).double().to(device).requires_grad_()
    y = module(leaf)
    gradients = torch.autograd.grad(y.sin().sum(), (leaf, *module.parameters()))
    return [one.cpu() for one in (y.detach(), *gradients)]
