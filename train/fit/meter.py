"""How fast a run goes and what it waits for, measured by the clock alone: no step is held up to be measured."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from train.fit.learner import StepResult
from train.team import Team


class Meter:
    """The steps since the last report.

    Args:
        team: whose steps.
        clips_per_step: over all processes.
    """

    def __init__(self, team: Team, clips_per_step: int) -> None:
        self.team, self.clips_per_step = team, clips_per_step
        self.begin()

    def begin(self) -> None:
        """Forget all steps; the next one begins now."""
        self._since, self._waited, self._steps = time.perf_counter(), 0.0, 0
        self._loss: Tensor | float = 0.0
        self._grad_norm: Tensor | float = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for data."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Around what is no part of a step: validation, writing checkpoints."""
        started = time.perf_counter()
        yield
        self._since += time.perf_counter() - started

    def add(self, result: StepResult) -> None:
        """Count a step."""
        self._steps += 1
        self._loss = self._loss + result.loss
        self._grad_norm = result.grad_norm

    def report(self, lr: float) -> dict[str, float]:
        """The metrics over all processes, none where there was no step. All have to call.

        The only place where a run waits for its device between checkpoints. `loss` is a mean over the steps, times are
        in seconds a step, the wait that of the process that waited longest, memory the peak in GiB.
        """
        losses, waits = zip(*self.team.gather((float(self._loss), self._waited)), strict=True)
        steps, elapsed, grad_norm = self._steps, time.perf_counter() - self._since, float(self._grad_norm)
        self.begin()
        if steps == 0:
            return {}
        metrics = {
            "loss": sum(losses) / steps / self.team.size,
            "lr": lr,
            "grad_norm": grad_norm,
            "step_seconds": elapsed / steps,
            "data_wait_seconds": max(waits) / steps,
            "clips_per_second": self.clips_per_step * steps / elapsed,
        }
        if self.team.device.type == "cuda":
            metrics["gpu_memory_gib"] = torch.cuda.max_memory_allocated(self.team.device) / 2**30
        return metrics

    @staticmethod
    def text(metrics: dict[str, float]) -> str:
        """The metrics as a part of a line."""
        text = (
            f"loss {metrics['loss']:.4f}  lr {metrics['lr']:.3g}  grad norm {metrics['grad_norm']:.2f}  "
            f"{metrics['clips_per_second']:.1f} clips/s  {metrics['step_seconds']:.3f} s a step, "
            f"{metrics['data_wait_seconds']:.3f} s of it waiting for data"
        )
        memory = metrics.get("gpu_memory_gib")
        return text if memory is None else f"{text}  {memory:.1f} GiB"
