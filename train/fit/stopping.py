"""How a run ends, and why it may do so before its end: a signal, or a loss or a gradient that is not finite.

SIGTERM, SIGINT and SIGHUP ask it to stop after the step it is in, instead of ending it wherever it is. Numbers are
looked at without any step waiting for the device.
"""

import math
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import torch
from torch import Tensor

from train.fit.learner import StepResult

SHOWN = 16


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    steps: int
    """Optimizer steps done, in this run and those that it resumed."""
    signal: int | None
    """The signal that stopped it; None if it went to its end."""
    best: float | None
    """Best top-1 accuracy in a validation, from 0 to 1."""
    checkpoint: Path


class Verdict(IntEnum):
    """What a process says before a step; the greatest of all processes' holds for all of them."""

    GO = 0
    STOP = 1
    """A signal came."""
    FAILED = 2
    """No batch could be had: the state is sound, and saved before the run ends."""
    DIVERGED = 3
    """A loss or a gradient is not finite, so the state is not to be saved."""


class Stopped(Exception):  # noqa: N818 (no error)
    """All processes have agreed to stop, as `signal` asked, and the checkpoint is written."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


class StopRequest:
    """Which signal asked for an end, if one did."""

    def __init__(self) -> None:
        self.number: int | None = None

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """Handle signal `number`. The second interrupt from the keyboard does not wait for the step to end."""
        if self.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Note SIGTERM, SIGINT and SIGHUP for a while; what handled them before does so again afterwards.

    A closed terminal sends SIGHUP; one that is ignored already, as under nohup, stays so.
    Processes forked meanwhile, such as those that read videos, inherit this, so an interrupt from the keyboard, which
    goes to all of them, does not end them under the run's feet.
    """
    request = StopRequest()
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    former = [signal.signal(number, request.receive) for number in numbers]
    try:
        yield request
    finally:
        for number, handler in zip(numbers, former, strict=True):
            signal.signal(number, handler)


class _Reading(NamedTuple):
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
            if reading.arrived:
                if not wait and not reading.arrived.query():
                    return None
                reading.arrived.synchronize()
            self._readings.popleft()
            loss, norm = reading.values.tolist()
            more = f" and {len(reading.files) - SHOWN} more" if len(reading.files) > SHOWN else ""
            clips = f"its clips are of {', '.join(reading.files[:SHOWN])}{more}"
            if not math.isfinite(loss):
                return f"the loss of step {reading.step} is {loss}; {clips}"
            if not math.isfinite(norm) and not self.norm_may_overflow:
                return f"the gradient norm of step {reading.step} is {norm}; {clips}"
        return None
