"""How many clips a step takes where the recipe leaves it to the machine.

As many as the learning rate is meant for, unless the device's memory, the cores or the number of videos bear fewer:
then the greatest number below that is a power of two of clips for each process and part of a step.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from train.fit.config import Compute
from train.networks import check_network
from train.recipe import Recipe
from train.team import Team

STEPS = 8
"""That an epoch has at least, or a step is one clip of each process and part."""
ON_CPU = 8
"""Clips that any number of cores is asked to bear; with more cores, one a core."""

_COPIES = (
    5  # of the weights: themselves, their gradients and momentum, in passing what clips and sums them, a workspace
)
_HALF = 0.6  # of the memory for clips that half precision takes: 0.52 to 0.6, measured on an H100 and a CPU
_SHARE = {"cuda": 0.8, "cpu": 0.5}  # of the memory that is used: the estimate is within 10 %, others need some too
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


class Limit(NamedTuple):
    """A number of clips, and what there are no more for."""

    clips: int
    reason: str


def choose_batch(recipe: Recipe, num_classes: int, num_videos: int, compute: Compute, team: Team) -> Limit:
    """The number of clips, the same in all processes, and what bounds it. All have to call it.

    Raises InputError for a network that there is none of.
    """
    limits = [
        Limit(recipe.optimization.lr_batch_size, "as many as the learning rate is meant for"),
        Limit(num_videos // STEPS, f"{STEPS} steps an epoch of {num_videos} videos"),
        *_limits_of_device(recipe, num_classes, compute, team),
    ]
    least = min(each for limits_of_one in team.gather(limits) for each in limits_of_one)
    clips = parts = team.size * compute.accumulate
    while 2 * clips <= least.clips:
        clips *= 2
    if clips > least.clips:
        return Limit(clips, f"one for each of {parts} processes and parts")
    return Limit(clips, least.reason)


def _limits_of_device(recipe: Recipe, num_classes: int, compute: Compute, team: Team) -> Iterator[Limit]:
    weights, clip = memory_of(recipe, num_classes)
    if compute.precision != "fp32":
        clip *= _HALF
    memory = _SHARE[team.device.type] * _memory(team.device)
    if team.device.type == "cpu":
        memory /= team.size  # as if all processes were on this machine
        cores = len(os.sched_getaffinity(0))
        yield Limit(max(ON_CPU, cores), f"{cores} core{'s' if cores > 1 else ''}, without a GPU")
    held = max(0, int((memory - _COPIES * weights) / clip))
    yield Limit(held * compute.accumulate * team.size, f"{memory / 2**30:.1f} GiB of memory for each process")


def memory_of(recipe: Recipe, num_classes: int) -> tuple[int, float]:
    """Bytes of the weights, and of what a training step in float32 keeps of each clip for its backward pass.

    Counted on the meta device, from shapes: nothing is computed, and no random number drawn.
    """
    frames, side, count = recipe.sampling.num_segments, recipe.augmentation.crop_size, 2
    network = check_network(recipe.model, num_classes, frames).train()
    weights = {weight.untyped_storage()._cdata: weight.nbytes for weight in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(torch.empty(count, frames, 3, side, side, device="meta"))
    del output
    kept_bytes = sum(kept[key].untyped_storage().nbytes() for key in kept.keys() - weights.keys())
    return sum(weights.values()), max(1, kept_bytes) / count


def _memory(device: torch.device) -> int:
    """Bytes that are free on a GPU, or that there are for this program, used or not, beside a CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in map(Path, _LIMITS):
        try:
            found.append(int(path.read_text()))
        except (OSError, ValueError):  # none of that name, or no limit
            continue
    return min(found)
