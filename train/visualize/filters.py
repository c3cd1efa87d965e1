"""I3D's 3×1×1 filters at the place of a TAM: the weights that every clip gets (paper, figure 4's fifth column)."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from tam_triton.temporal import InflatedConv
from train.checkpoint import load_checkpoint
from train.errors import InputError

SYSTEMS = ("i3d", "i3d_every_other")
_BLOCK = re.compile(r"(layer\d+)\.(\d+)\.")


class Filters(NamedTuple):
    """The temporal filters of one convolution."""

    name: str
    """The convolution's, such as layer3.5.conv1."""
    taps: Tensor
    """(F, K): of each of F filters (of every pair of channels and, in basic blocks, every pixel) its K weights."""


def read_filters(checkpoint: Path, blocks: Sequence[str]) -> dict[str, Filters]:
    """For each of the TAMs `blocks` the filters of the same block, or of the last one before it that has some.

    Raises InputError for what is no checkpoint of I3D, and for an I3D without filters in the stage of a TAM.
    """
    trained = load_checkpoint(checkpoint)
    if trained.recipe.model.system not in SYSTEMS:
        raise InputError(f"i3d: {checkpoint} is of {trained.recipe.model.system}, expected one of {', '.join(SYSTEMS)}")
    convs = {name: conv for name, conv in trained.network.named_modules() if isinstance(conv, InflatedConv)}
    return {block: _beside(block, convs, checkpoint) for block in blocks}


def _beside(block: str, convs: dict[str, InflatedConv], checkpoint: Path) -> Filters:
    place = _place(block)
    there = [(found, name) for name in convs if (found := _place(name)) is not None]
    before = [(found, name) for found, name in there if place and found[0] == place[0] and found[1] <= place[1]]
    if not before:
        raise InputError(f"i3d: {checkpoint} has filters in {', '.join(convs)}, but none in the stage of {block}")
    _, name = max(before)
    conv = convs[name]
    weight = conv.weight.detach().float().unflatten(2, (conv.kernel_size, conv.spatial_size[0]))
    return Filters(name, weight.movedim(2, -1).flatten(0, -2))  # (C_out, C_in/groups, K, kh, kw) → (F, K)


def _place(name: str) -> tuple[str, int] | None:
    """The stage and the number of the block that a layer is in."""
    found = _BLOCK.search(name)
    return (found[1], int(found[2])) if found else None
