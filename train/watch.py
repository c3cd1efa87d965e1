"""Sees that a loss or a gradient is no number any more, without any step waiting for the device."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from train.learner import StepResult

SHOWN = 16


@dataclass(frozen=True)
class _Reading:
    """Loss and gradient norm of a step (2,) on the CPU, once `arrived` has happened; and how to name its clips."""

    step: int
    values: Tensor
    arrived: torch.cuda.Event | None
    files: Sequence[str]


class FiniteWatch:
    """Looks at the steps' losses and gradient norms; on a GPU some steps later, when they have come by themselves.

    Args:
        norm_may_overflow: with a loss scaler it may, now and then: the scaler leaves such a step out.
    """

    def __init__(self, norm_may_overflow: bool) -> None:
        self.norm_may_overflow = norm_may_overflow
        self._readings: deque[_Reading] = deque()

    def add(self, step: int, result: StepResult, files: Sequence[str]) -> None:
        """Note what step number `step` on the clips of `files` gave."""
        values = torch.stack([result.loss, result.grad_norm.float()])
        arrived = None
        if values.is_cuda:
            values = torch.empty(2, pin_memory=True).copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._readings.append(_Reading(step, values, arrived, files))

    def problem(self, wait: bool = False) -> str | None:
        """What is wrong with a step looked at by now, in words; `wait` looks at all that were added."""
        while self._readings:
            reading = self._readings[0]
            if reading.arrived and not wait and not reading.arrived.query():
                return None
            if reading.arrived:
                reading.arrived.synchronize()
            self._readings.popleft()
            loss, norm = reading.values.tolist()
            if not math.isfinite(loss):
                return f"the loss of step {reading.step} is {loss}; its clips are of {_some(reading.files)}"
            if not math.isfinite(norm) and not self.norm_may_overflow:
                return f"the gradient norm of step {reading.step} is {norm}; its clips are of {_some(reading.files)}"
        return None


def _some(files: Sequence[str]) -> str:
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    return ", ".join(files[:SHOWN]) + more
