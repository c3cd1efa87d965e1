"""SGD as the paper's code sets it up: groups of parameters with learning rate and decay of their own; the schedules."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tam_triton import TAM
from tam_triton.temporal import GlobalTAM
from train.errors import InputError
from train.recipes import Optimization

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
    Without `optimization.groups` all are "weights".

    Raises:
        InputError: groups are asked for, and `network` has no such layer, or it is no Linear.
    """
    if not optimization.groups:
        return {"weights": [parameter for parameter in network.parameters() if parameter.requires_grad]}
    name = str(getattr(network, "head_name", "fc"))
    head = dict(network.named_modules()).get(name)
    if not isinstance(head, nn.Linear):
        raise InputError(
            f"parameter groups need the last layer as `{name}`, a Linear; {type(network).__name__} has none"
        )
    tams = [module for module in network.modules() if isinstance(module, TAM | GlobalTAM)]
    kernel_layers = {layer for tam in tams for layer in tam.G.modules() if isinstance(layer, nn.Linear)}
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in FACTORS}
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if module is head:
                group = "fc bias" if name == "bias" else "fc weight"
            elif isinstance(module, _BatchNorm):
                group = "norms"
            elif name == "bias":
                group = "biases"
            else:
                group = "fast kernels" if optimization.fast_kernels and module in kernel_layers else "weights"
            groups[group].append(parameter)
    return {name: parameters for name, parameters in groups.items() if parameters}


def build_sgd(network: nn.Module, optimization: Optimization, *, fused: bool) -> torch.optim.SGD:
    """SGD over `parameter_groups`; every group's name and its rate at the start stay readable in the optimizer."""
    settings: list[dict[str, Any]] = []
    for name, parameters in parameter_groups(network, optimization).items():
        lr_factor, decay_factor = FACTORS[name]
        lr, decay = optimization.scaled_lr * lr_factor, optimization.weight_decay * decay_factor
        settings.append({"params": parameters, "name": name, "lr": lr, "first_lr": lr, "weight_decay": decay})
    return torch.optim.SGD(settings, lr=optimization.scaled_lr, momentum=optimization.momentum, fused=fused)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group of `build_sgd` `factor` times the learning rate that it began with."""
    for group in optimizer.param_groups:
        group["lr"] = group["first_lr"] * factor


def build_schedule(optimization: Optimization, steps_per_epoch: int) -> Schedule:
    """The learning rate over the run: a step down after each milestone, or half a cosine; a straight rise before."""
    num_steps = optimization.epochs * steps_per_epoch
    warmup = optimization.warmup_epochs * steps_per_epoch
    ends = [milestone * steps_per_epoch for milestone in optimization.milestones]

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / (warmup + 1))
        if optimization.schedule == "cosine":
            return rise * 0.5 * (1 + math.cos(math.pi * step / num_steps))
        return rise / optimization.lr_divisor ** sum(step >= end for end in ends)

    return factor
