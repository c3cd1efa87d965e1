"""SGD as the papers' codes set it up: groups of parameters with learning rate and decay of their own; the schedules."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tam_triton import TAM
from tam_triton.temporal import GlobalTAM
from train.errors import InputError
from train.recipe import Optimization

Schedule = Callable[[int], float]
"""From the number of steps done to the factor of the learning rate for the next one."""

# What the recipe's learning rate and weight decay are multiplied by.
FACTORS = {
    "weights": (1.0, 1.0),
    "biases": (2.0, 0.0),
    "norms": (1.0, 0.0),
    "fc weight": (5.0, 1.0),
    "fc bias": (10.0, 0.0),
    "fast kernels": (5.0, 1.0),
}


def parameter_groups(network: nn.Module, optimization: Optimization) -> dict[str, list[nn.Parameter]]:
    """The trainable parameters of `network`, each in one of the groups that `FACTORS` names; empty groups are left out.

    BatchNorm's biases count as BatchNorm; the last layer is `fc`, or that which the network's `head_name` names.
    Without `optimization.groups` all are "weights", BatchNorm's alone "norms" where it is not to decay.

    Raises:
        InputError: groups are asked for, and `network` has no such layer, or it is no Linear.
    """
    head = _head(network) if optimization.groups else None
    tams = [module for module in network.modules() if isinstance(module, TAM | GlobalTAM)]
    kernel_layers = {layer for tam in tams for layer in tam.G.modules() if isinstance(layer, nn.Linear)}

    def group_of(module: nn.Module, name: str) -> str:
        if isinstance(module, _BatchNorm) and (optimization.groups or not optimization.norm_decay):
            return "norms"
        if not optimization.groups:
            return "weights"
        if module is head:
            return "fc bias" if name == "bias" else "fc weight"
        if name == "bias":
            return "biases"
        return "fast kernels" if optimization.fast_kernels and module in kernel_layers else "weights"

    groups: dict[str, list[nn.Parameter]] = {name: [] for name in FACTORS}
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                groups[group_of(module, name)].append(parameter)
    return {name: parameters for name, parameters in groups.items() if parameters}


def _head(network: nn.Module) -> nn.Linear:
    name = str(getattr(network, "head_name", "fc"))
    head = dict(network.named_modules()).get(name)
    if not isinstance(head, nn.Linear):
        raise InputError(
            f"parameter groups need the last layer as `{name}`, a Linear; {type(network).__name__} has none"
        )
    return head


def build_sgd(network: nn.Module, optimization: Optimization, *, fused: bool) -> torch.optim.SGD:
    """SGD over `parameter_groups`; every group's name and its rate at the start stay readable in the optimizer."""
    settings: list[dict[str, Any]] = []
    for name, parameters in parameter_groups(network, optimization).items():
        lr_factor, decay_factor = FACTORS[name]
        lr, decay = optimization.scaled_lr * lr_factor, optimization.weight_decay * decay_factor
        settings.append({"params": parameters, "name": name, "lr": lr, "first_lr": lr, "weight_decay": decay})
    momentum, nesterov = optimization.momentum, optimization.nesterov
    return torch.optim.SGD(settings, lr=optimization.scaled_lr, momentum=momentum, nesterov=nesterov, fused=fused)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group of `build_sgd` `factor` times the learning rate that it began with."""
    for group in optimizer.param_groups:
        group["lr"] = group["first_lr"] * factor


def build_schedule(optimization: Optimization, steps_per_epoch: int) -> Schedule:
    """The learning rate over the run: a step down after each milestone, or half a cosine; before it a rise.

    The rise is a factor of the schedule, or a straight line that begins at `optimization.warmup_start` and meets it.
    """
    num_steps = optimization.epochs * steps_per_epoch
    warmup = optimization.warmup_epochs * steps_per_epoch
    ends = [milestone * steps_per_epoch for milestone in optimization.milestone_epochs]

    def falling(step: float, rise: float = 1.0) -> float:
        if optimization.schedule == "cosine":
            return rise * 0.5 * (1 + math.cos(math.pi * step / num_steps))
        return rise / optimization.lr_divisor ** sum(step >= end for end in ends)

    def factor(step: int) -> float:
        start = optimization.warmup_start
        if start is None:
            return falling(step, rise=min(1.0, (step + 1) / (warmup + 1)))
        return falling(step) if step >= warmup else start + (falling(warmup) - start) * step / warmup

    return factor
