"""Every temporal module, small, with random weights and statistics."""

import torch
from torch import Tensor, nn

from tam_triton.temporal import MODULES
from tests.support.networks import normal, randomised

FRAMES, CHANNELS = 3, 16
WITHOUT_OPERATORS = ("conv", "inflated_conv", "non_local")
EACH = [(name, impl) for name in MODULES for impl in ("triton", "torch") if name not in WITHOUT_OPERATORS] + [
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
