"""Weights of a TAM for another number of frames: its global branch fixes T, and nothing else of it does."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 — its usual name

WAYS = ("draw", "interpolate")
GLOBAL = re.compile(r"(?:^|\.)tam\.G\.(?:0\.weight|1\.\w+|3\.weight)$")


def check_way(segments: str | None) -> None:
    """Raises ValueError unless it is one of the ways, or None."""
    if segments is not None and segments not in WAYS:
        raise ValueError(f"segments: got {segments!r}, expected one of {WAYS} or None")


def for_frames(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of global branches as for our T, by name, where theirs are for another T of the same alpha.

    The first Linear is interpolated over its frames, and its sums stay, so that a clip that stands still gives what it
    gave. A hidden unit is as often there as the ratio of the two T says, and what leaves it is divided by that: where T
    grows, nothing but the frames changes; where it shrinks, units are left out (this project's way; none was
    published).
    """
    new: dict[str, Tensor] = {}
    for name in [name for name in theirs if GLOBAL.search(name) and name.endswith("G.0.weight")]:
        prefix = name.removesuffix("0.weight")
        first, last, (hidden, frames) = theirs[name], theirs.get(f"{prefix}3.weight"), ours[name].shape
        if last is None or first.dim() != 2 or last.dim() != 2 or last.shape[1] != first.shape[0]:
            continue  # no global branch
        norm = {key: tensor for key, tensor in theirs.items() if key.startswith(f"{prefix}1.") and tensor.dim() == 1}
        old_hidden, old_frames = first.shape
        fits = all(len(vector) == old_hidden for vector in norm.values())
        if not fits or old_frames == frames or old_hidden * frames != hidden * old_frames:
            continue
        source = torch.arange(hidden, device=first.device) * old_hidden // hidden
        count = torch.bincount(source, minlength=old_hidden)
        over_time = F.interpolate(first[:, None].float(), size=frames, mode="linear", align_corners=False)[:, 0]
        over_time *= old_frames / frames
        missing = first.float().sum(1, keepdim=True) - over_time.sum(1, keepdim=True)
        new[name] = (over_time + missing / frames)[source].to(first.dtype)
        new |= {key: vector[source] for key, vector in norm.items()}
        share = (
            count[source] if hidden >= old_hidden else torch.full((hidden,), hidden / old_hidden, device=first.device)
        )
        new[f"{prefix}3.weight"] = (last[:, source] / share).to(last.dtype)
    return new


def over_taps(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The 1×1 convolutions that are K×1×1 in ours, by name: each tap is the weight over K (arXiv 1705.07750)."""
    new: dict[str, Tensor] = {}
    for name, weight in theirs.items():
        shape = ours[name].shape
        if weight.dim() == len(shape) == 4 and weight.shape == (*shape[:2], 1, 1) and shape[2:] == (shape[2], 1):
            new |= {name: weight.repeat(1, 1, shape[2], 1) / shape[2]} if shape[2] > 1 else {}
    return new
