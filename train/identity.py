"""What makes two runs the same, so that one may go on from the other's checkpoint."""

import hashlib
import json
from typing import Any

from train.data.entries import Split
from train.fields import to_plain
from train.learner import Compute
from train.recipes import Recipe

MAY_DIFFER = (
    "recipe.name",
    "recipe.data.train",
    "recipe.data.val",
    "recipe.data.max_bad_share",
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
    return {
        "recipe": to_plain(recipe),
        "compute": to_plain(compute),
        "data": {"training videos": fingerprint(train), "validation videos": fingerprint(val)},
    }


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


def fingerprint(split: Split) -> str:
    """A text that differs for other videos, other labels or another order, but not for another folder above them."""
    rows = [(entry.path.parent.name, entry.path.name, entry.label) for entry in split.entries]
    digest = hashlib.sha256(json.dumps([split.class_names, rows]).encode()).hexdigest()
    return f"{len(split)} entries, digest {digest[:16]}"
