"""The exponential moving average of a network's weights."""

from copy import deepcopy

import torch
from torch import Tensor, nn


class MovingAverage:
    """A copy of `network` whose weights and running statistics follow it: a ← d·a + (1 − d)·w.

    After step s, d = min(decay, 1 − s^(−2/3)), the warm-up of timm's ModelEmaV3: the first step's weights are taken as
    they are, and a run of any length forgets the weights that it began with. 0.99 is reached at step 1,000, 0.999 at
    31,623. What counts, such as BatchNorm's number of batches, is copied. Make it before the network is wrapped or
    compiled.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move towards `network`, of which step number `step` (from 1) has just been taken."""
        averages: list[Tensor] = []
        values: list[Tensor] = []
        theirs = network.state_dict()
        for name, ours in self.network.state_dict().items():
            if ours.is_floating_point():
                averages.append(ours)
                values.append(theirs[name])
            else:
                ours.copy_(theirs[name])
        torch._foreach_lerp_(averages, values, 1 - min(self.decay, 1 - step ** (-2 / 3)))
