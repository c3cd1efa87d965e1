"""What a 2D network runs one after the other: single layers, and blocks of layers."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from tam_triton.temporal.base import TemporalModule


def running_order(network: nn.Module, last: str | None = None, prefix: str = "") -> list[str]:
    """The names of a network's parts, single layers and blocks, as they are registered.

    In torchvision's and timm's networks that is the order in which they are called.

    Args:
        network: a child that is a Sequential of blocks, as a ResNet's `layer1` is, is taken apart into them.
        last: the child to end with; None takes all.
        prefix: of the names.
    """
    names = []
    for name, child in network.named_children():
        if isinstance(child, nn.Sequential) and len(child) and all(map(is_block, child)):
            names += running_order(child, prefix=f"{prefix}{name}.")
        else:
            names.append(f"{prefix}{name}")
        if name == last:
            break
    return names


def is_block(part: nn.Module) -> bool:
    """Whether it has layers of its own."""
    return next(part.children(), None) is not None


def groups(network: nn.Module, order: Sequence[str], coarse: bool) -> dict[str, str]:
    """Patterns of the parameters' names, from the first part on; layers between blocks are a group together.

    Args:
        network: what the names are of.
        order: its `running_order`.
        coarse: by stages, in networks that have some, not by blocks.
    """
    found: dict[str, list[str]] = {}
    single = ""
    for name in order:
        if next(network.get_submodule(name).parameters(), None) is None:
            continue
        if is_block(network.get_submodule(name)):
            single, key = "", (stage_of(name, order) or name) if coarse else name
        else:
            single = key = single or name
        found.setdefault(key, []).append(name)
    return {key: rf"^(?:{'|'.join(map(re.escape, names))})\." for key, names in found.items()}


def stage_of(name: str, order: Sequence[str]) -> str | None:
    """The Sequential around a block that is one stage of several."""
    stage = name.rpartition(".")[0]
    parents = {other.rpartition(".")[0] for other in order if "." in other}
    is_around_stages = any(parent.startswith(f"{stage}.") for parent in parents)
    return stage if stage and len(parents) > 1 and not is_around_stages else None


def describe_features(network: nn.Module, order: Sequence[str], num_features: int) -> list[dict[str, Any]]:
    """The last maps of each resolution: their channels, by how much they are smaller than the frames, and the module.

    Args:
        network: what the names are of.
        order: its `running_order`.
        num_features: channels of the last maps.
    """
    parts = [list(_layers(network.get_submodule(name))) for name in order]
    strides = [max(map(_stride, layers), default=1) for layers in parts]
    info, reduction = [], 1
    for i, (name, stride) in enumerate(zip(order, strides, strict=True)):
        reduction *= stride
        is_last = i + 1 == len(order)
        if is_last or strides[i + 1] > 1:
            # What comes next says it even where branches are concatenated.
            following = (size for layers in parts[i + 1 :] for layer in layers if (size := _channels(layer)))
            stage = stage_of(name, order)
            ends = stage is not None and (is_last or stage_of(order[i + 1], order) != stage)
            module = stage if ends else name
            info.append({"num_chs": next(following, num_features), "reduction": reduction, "module": module})
    return info


def _layers(part: nn.Module) -> Iterator[Any]:
    """Those of a part, but for what temporal modules are made of."""
    yield part
    if not isinstance(part, TemporalModule):
        for child in part.children():
            yield from _layers(child)


def _channels(layer: Any) -> int | None:
    """That it takes."""
    return layer.channels if isinstance(layer, TemporalModule) else getattr(layer, "in_channels", None)


def _stride(layer: Any) -> int:
    """In space."""
    stride = getattr(layer, "stride", 1)
    return stride if isinstance(stride, int) else stride[-1]
