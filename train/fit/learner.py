"""A network that learns: one optimizer step, on one device or in step with the other processes of a run."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tam_triton.nets.protocol import TimmProtocol
from train.data.batches import Batch
from train.errors import InputError
from train.fit.config import Compute
from train.fit.ema import MovingAverage
from train.fit.objective import Objective
from train.fit.optimizer import Schedule, build_sgd, set_rate
from train.metrics import Score, Tally
from train.precision import logits_of
from train.recipe import Optimization
from train.team import Team


class StepResult(NamedTuple):
    """What one step was like. Both are on the device, so that no step waits for it."""

    loss: Tensor
    """Mean over this process' clips of what is minimized."""
    grad_norm: Tensor
    """Norm of all gradients before they were clipped."""


class Learner:
    """A network with its optimizer and schedule, the average of its weights, and its score over the epoch so far.

    Args:
        network: logits (N, classes) from normalized clips (N, T, 3, H, W), with the last layer in `fc`; moved to the
            device of `team` and changed in place.
        optimization: as the recipe says.
        schedule: factor of the learning rate by the number of steps done.
        compute: how to compute.
        team: this process and the others.
        objective: what is minimized; by default the mean cross-entropy.

    Raises:
        InputError: `compute` asks for what the network or the device does not have.
    """

    def __init__(
        self,
        network: nn.Module,
        optimization: Optimization,
        schedule: Schedule,
        compute: Compute | None = None,
        team: Team | None = None,
        objective: Objective | None = None,
    ) -> None:
        self.compute = compute or Compute()
        self.team = team or Team(torch.device("cpu"))
        self.device = self.team.device
        on_gpu = self.device.type == "cuda"
        if self.compute.sync_batchnorm and not on_gpu:
            raise InputError("compute.sync_batchnorm: torch has it for GPUs only, and this run computes on the CPU")
        if self.compute.tuned is not None:
            use_tuned(self.compute.tuned, on_gpu)
        network = network.to(self.device).train()
        if self.compute.channels_last:
            network = network.to(memory_format=torch.channels_last)
        if self.compute.sync_batchnorm:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        if self.compute.recompute:
            _recompute(network)
        self.network = network
        self.optimizer = build_sgd(network, optimization, fused=on_gpu)
        self.max_grad_norm = optimization.max_grad_norm or float("inf")
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.compute.precision == "fp16")
        self.average = MovingAverage(network, self.compute.ema) if self.compute.ema else None
        self.parallel: DistributedDataParallel | None = None
        if self.team.size > 1:
            devices = [self.device.index] if on_gpu else None
            self.parallel = DistributedDataParallel(network, device_ids=devices, gradient_as_bucket_view=True)
        self._forward: Any = self.parallel or network
        if self.compute.compile:
            self._forward = torch.compile(self._forward)
        self.objective = objective or Objective()
        if (weights := self.objective.class_weights) is not None:
            self.objective = replace(self.objective, class_weights=weights.to(self.device))
        self.schedule = schedule
        self._lr = optimization.scaled_lr
        self.steps = 0
        self.tally = Tally()

    @property
    def lr(self) -> float:
        """The learning rate of the last step, or of the first where there was none; of parameters with factor 1."""
        return self._lr * self.schedule(max(0, self.steps - 1))

    @property
    def evaluated(self) -> nn.Module:
        """The network to evaluate: the average where there is one."""
        return self.average.network if self.average else self.network

    def step(self, parts: Sequence[Batch]) -> StepResult:
        """One optimizer step on this process' clips, which are computed in `parts`, one after the other."""
        set_rate(self.optimizer, self.schedule(self.steps))
        self.optimizer.zero_grad()
        precision, channels_last = self.compute.precision, self.compute.channels_last
        total = sum(len(part) for part in parts)
        loss = torch.zeros((), device=self.device)
        for number, batch in enumerate(parts, start=1):
            labels = batch.labels.to(self.device, non_blocking=True)
            mixed = self.objective.mix(batch.clips, labels, (self.steps, self.team.rank, number))
            is_last = number == len(parts)  # after it alone the processes add up their gradients
            with nullcontext() if is_last or self.parallel is None else self.parallel.no_sync():
                logits = logits_of(self._forward, mixed.clips, self.device, precision, channels_last)
                part = self.objective.loss(logits, mixed) / total
                self.scaler.scale(part).backward()
            loss += part.detach()
            self.tally.add(logits.detach(), mixed.main_labels)
        self.scaler.unscale_(self.optimizer)
        grad_norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.steps += 1
        if self.average:
            self.average.update(self.network, self.steps)
        return StepResult(loss, grad_norm)

    def take_score(self) -> Score:
        """This process' score over the steps since this was last called."""
        score, self.tally = self.tally.score(), Tally()
        return score

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on but the random generators; the same in all processes."""
        return {
            "steps": self.steps,
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.network.state_dict() if self.average else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken, on another kind of device too."""
        self.network.load_state_dict(state["model"])
        fused = self.optimizer.defaults["fused"]
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["fused"] = fused
        for weight, kept in self.optimizer.state.items():
            for name, value in kept.items():
                if isinstance(value, Tensor) and value.dim() and value.shape != weight.shape:
                    raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected {tuple(weight.shape)}")
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.network.load_state_dict(state["average"])
        self.steps = state["steps"]


def use_tuned(path: Path, on_gpu: bool) -> None:
    """Launch kernels as the file says from now on. Raises InputError for one that is not for this device."""
    if not on_gpu:
        raise InputError(f"compute.tuned: got {path}, but nothing is launched where a run computes on the CPU")
    from tam_triton.kernels import tuned

    try:
        tuned.use(path)
    except (OSError, ValueError) as error:
        raise InputError(f"compute.tuned: {error}") from error


def _recompute(network: nn.Module) -> None:
    """Activation checkpointing, by the network's own blocks."""
    if not isinstance(network, TimmProtocol):
        raise InputError(f"compute.recompute: got {type(network).__name__}, expected a network of tam_triton.nets")
    try:
        network.set_grad_checkpointing()
    except ValueError as error:
        raise InputError(f"compute.recompute: {error}") from error
