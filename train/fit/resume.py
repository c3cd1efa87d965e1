"""How one run goes on from the other's checkpoint: what makes the two the same, and the states of random generators."""

import random
from typing import Any

import numpy as np
import torch

from train.data.entries import Split, fingerprint
from train.fields import to_plain
from train.fit.config import Compute
from train.recipes import Recipe

MAY_DIFFER = (
    "recipe.name",
    "recipe.data.train",
    "recipe.data.val",
    "recipe.data.max_bad_share",
    "recipe.data.balanced",  # what it makes of the data is compared
    "recipe.test",
    "compute.accumulate",
    "compute.channels_last",
    "compute.compile",
    "compute.recompute",
)
"""Settings that change neither what is computed nor on what: where files are (the videos themselves are compared), how
the network is tested, and, but for rounding, how fast it learns. Whatever is in none of recipe, compute and data, such
as the number of workers, may differ too."""


def describe_run(recipe: Recipe, compute: Compute, train: Split, val: Split) -> dict[str, Any]:
    """All that decides what a run computes, in the types that JSON has."""
    data = {"training videos": fingerprint(train), "validation videos": fingerprint(val)}
    if recipe.data.balanced:  # named where it is so alone, so that older runs may go on
        data["classes"] = "balanced"
    return {"recipe": to_plain(recipe), "compute": to_plain(compute), "data": data}


def differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs in two runs' descriptions and must not, each as `field: was this, is that`; empty for one run."""
    before, after = _flat(saved), _flat(now)
    fields = sorted(before.keys() | after.keys())
    return [
        f"{field}: was {before.get(field)!r}, is {after.get(field)!r}"
        for field in fields
        if before.get(field) != after.get(field) and not any(_within(field, free) for free in MAY_DIFFER)
    ]


def _within(field: str, group: str) -> bool:
    return field == group or field.startswith(f"{group}.")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def seed_generators(*numbers: int) -> None:
    """Seed Python's, NumPy's and torch's generators by a list of whole numbers; another list gives other numbers."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def generator_states(device: torch.device) -> dict[str, Any]:
    """The states now; with those of `device` if it is a GPU."""
    version, words, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=True)
    name, keys, *rest = numpy_state
    return {
        "python": (version, words, gauss),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_generators(states: dict[str, Any], device: torch.device) -> None:
    """Go on from `generator_states`. A GPU's state that was not saved, or has no GPU here, is left out."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"], device)
