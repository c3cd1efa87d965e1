"""The exponential moving average of a network's weights."""

from copy import deepcopy

import torch
from torch import Tensor, nn


class MovingAverage:
    """A copy of `network` whose weights and running statistics follow it: a ← decay·a + (1 − decay)·w.

    What counts, such as BatchNorm's number of batches, is copied. Make it before the network is wrapped or compiled.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move towards `network`."""
        averages: list[Tensor] = []
        values: list[Tensor] = []
        theirs = network.state_dict()
        for name, ours in self.network.state_dict().items():
            if ours.is_floating_point():
                averages.append(ours)
                values.append(theirs[name])
            else:
                ours.copy_(theirs[name])
        torch._foreach_lerp_(averages, values, 1 - self.decay)
