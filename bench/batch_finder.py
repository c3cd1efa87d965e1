"""How many clips a GPU holds in a training step: tried, not estimated."""

from collections.abc import Callable
from dataclasses import replace

import torch

from train.data.batches import Batch
from train.errors import InputError
from train.fit.config import Compute
from train.fit.learner import Learner
from train.networks import build_network
from train.recipe import Recipe
from train.team import Team

LARGEST = 1024


def find_largest(fits: Callable[[int], bool], largest: int = LARGEST) -> int:
    """The greatest number up to `largest` that `fits`, if every smaller one does too; 0 if not even 1 does."""
    low, high = 0, 1
    while high <= largest and fits(high):
        low, high = high, 2 * high
    high = min(high, largest + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def find_batch(recipe: Recipe, num_classes: int, compute: Compute, device: torch.device) -> str:
    """What fits on `device`, as a table: the peak memory of a training step by the number of clips tried.

    Raises InputError on the CPU, where there is no limit to be found: main memory is shared and swapped.
    """
    if device.type != "cuda":
        raise InputError("find_batch: is not available on the CPU; it finds out what fits into a GPU's memory")
    learner = _learner(recipe, num_classes, compute, device)
    peaks: dict[int, int] = {}

    def fits(count: int) -> bool:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        try:
            learner.step([_random_batch(recipe, num_classes, count)])
            torch.cuda.synchronize(device)
        except torch.OutOfMemoryError:
            learner.optimizer.zero_grad()
            return False
        peaks[count] = torch.cuda.max_memory_allocated(device)
        return True

    largest = find_largest(fits)
    return report(largest, peaks, recipe.optimization.batch_size or max(1, largest))


def report(largest: int, peaks: dict[int, int], wanted: int) -> str:
    """The table, and in how many parts a step of `wanted` clips can be computed by a process alone."""
    lines = ["clips  peak memory", *(f"{count:5}  {peak / 2**30:7.2f} GiB" for count, peak in sorted(peaks.items()))]
    if largest == 0:
        return "\n".join([*lines, "not even one clip fits; --compute.recompute or another precision may help"])
    parts = next(parts for parts in range(1, wanted + 1) if wanted % parts == 0 and wanted // parts <= largest)
    lines.append(
        f"at most {largest} clips fit; one process does the {wanted} of a step with --compute.accumulate {parts}"
    )
    return "\n".join(lines)


def _learner(recipe: Recipe, num_classes: int, compute: Compute, device: torch.device) -> Learner:
    network = build_network(recipe.model, num_classes, recipe.sampling.num_segments, pretrained=False)
    # A rate of almost nothing, so that random clips cannot make the network overflow.
    optimization = replace(recipe.optimization, lr=1e-12, scale_lr=False)
    return Learner(network, optimization, lambda _: 1.0, compute, Team(device))


def _random_batch(recipe: Recipe, num_classes: int, count: int) -> Batch:
    size = recipe.augmentation.crop_size
    clips = torch.randint(0, 256, (count, recipe.sampling.num_segments, size, size, 3), dtype=torch.uint8)
    return Batch(clips, torch.randint(0, num_classes, (count,)))
