"""How much each class weighs in the loss: as its videos are rare, or as a file says."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train.data.entries import Split
from train.data.sources.text import numbered_rows, read_json, unicode_form
from train.errors import InputError
from train.recipe import BALANCED

HEADER = ("class", "weight")


def class_weights(choice: str | None, split: Split) -> Tensor | None:
    """The weights (classes,) float32 of the classes of `split`, the training videos; None where there are none.

    Args:
        choice: "balanced": n / (k · nₖ) for a class with nₖ of the n videos, where k classes have any; so their mean
            over the videos is 1, and a class without videos weighs as one with a single one. Or a file: a JSON object
            of name and weight, if its name ends in `.json`, otherwise a table of two columns, CSV.

    Raises:
        InputError: a file that cannot be read, or that lacks a class, names one twice or another, or has something else
            than a finite number from 0 on for one, or 0 for all.
    """
    if choice is None:
        return None
    if choice == BALANCED:
        counts = Counter(entry.label for entry in split.entries)
        labels = range(len(split.class_names))
        return torch.tensor([len(split) / (len(counts) * max(1, counts[label])) for label in labels])
    path = Path(choice)
    found: dict[str, float] = {}
    known = {unicode_form(name) for name in split.class_names}
    for where, name, weight in _weights(path):
        name = unicode_form(name)
        if name not in known:
            raise InputError(f"{where}: {name!r} is none of the {len(known)} classes")
        if name in found:
            raise InputError(f"{where}: {name!r} is there twice")
        found[name] = _number(where, name, weight)
    if missing := [name for name in split.class_names if unicode_form(name) not in found]:
        raise InputError(f"{path}: has no weight for {missing[0]!r}, one of {len(missing)} classes that it lacks")
    if not any(found.values()):
        raise InputError(f"{path}: all weights are 0, expected one above 0 at least")
    return torch.tensor([found[unicode_form(name)] for name in split.class_names])


def describe_weights(weights: Tensor) -> str:
    """A text that differs for other weights."""
    return f"{len(weights)} weights, digest {hashlib.sha256(weights.numpy().tobytes()).hexdigest()[:16]}"


def _weights(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Where it stands, the name and the weight, of each class in the file."""
    if path.suffix.lower() == ".json":
        pairs = read_json(path, pairs=list)  # a dict would hide a name that is there twice
        if not (isinstance(pairs, list) and pairs and all(isinstance(pair, tuple) for pair in pairs)):
            raise InputError(f"{path}: expected an object of names and weights")
        yield from ((str(path), name, weight) for name, weight in pairs)
        return
    for line, row in numbered_rows(path):
        if len(row) != len(HEADER):
            raise InputError(f"{path}, line {line}: expected a class and its weight, got {len(row)} fields")
        name, weight = row
        if (line, name, weight) != (1, *HEADER):
            yield f"{path}, line {line}", name, weight


def _number(where: str, name: str, weight: Any) -> float:
    try:
        number = float(weight) if isinstance(weight, int | float | str) and not isinstance(weight, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not 0 <= number < torch.finfo(torch.float32).max:
        raise InputError(f"{where}: the weight of {name!r} must be a finite number from 0 on, got {weight!r}")
    return number
