"""Loading checkpoints: this library's own and those of the two public implementations of TANet.

liu-zhy/temporal-adaptive-module keeps torchvision's names, with the block under `net`, behind `base_model.` and often
`module.` too: `base_model.layer1.0.net.conv1.weight`, `base_model.layer1.0.tam.G.0.weight`, `new_fc.weight`.
open-mmlab/mmaction2 pairs each convolution with its BatchNorm and puts the block under `block`:
`backbone.layer1.0.block.conv1.conv.weight`, `backbone.layer1.0.block.conv1.bn.weight`, `cls_head.fc_cls.weight`.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tam_triton.checks import check_module
from tam_triton.nets.containers import weights_of
from tam_triton.nets.segments import check_way, for_frames, over_taps
from tam_triton.nets.stand_ins import stood_for

_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod|model|net|network|base_model|backbone)\.)+")
# From a public name to torchvision's; a name that already is torchvision's passes unchanged.
_RENAMINGS = [
    (re.compile(r"^(?:new_fc|cls_head\.fc_cls)\."), "fc."),
    (re.compile(r"^(layer\d+\.\d+)\.(?:net|block)\."), r"\1."),
    (re.compile(r"\bconv(\d)\.conv\."), r"conv\1."),
    (re.compile(r"\bconv(\d)\.bn\."), r"bn\1."),
    (re.compile(r"\bdownsample\.conv\."), "downsample.0."),
    (re.compile(r"\bdownsample\.bn\."), "downsample.1."),
]
_HEAD = "fc."
COUNT = "num_batches_tracked"
_SHOWN = 5


@dataclass(frozen=True)
class LoadReport:
    """What became of a checkpoint's keys and of the model's.

    Attributes:
        loaded: the model's keys that received a value.
        unused: the checkpoint's keys, as spelled there, that went nowhere.
        missing: the model's keys that received nothing and are as they were.
        interpolated: those of `loaded` that were made for another number of frames.
        notes: what else is to be known of the checkpoint, such as that it has averaged weights beside these.
    """

    loaded: tuple[str, ...]
    unused: tuple[str, ...]
    missing: tuple[str, ...]
    interpolated: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def untouched(self) -> tuple[str, ...]:
        """The model's layers, the outermost, in which no tensor received a value but counts of batches."""
        return tuple(_layers_beyond(self.missing, (name for name in self.loaded if not name.endswith(COUNT))))

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded"]
        if self.interpolated:
            lines += [f"{len(self.interpolated)} of them interpolated over time"]
        lines += self.notes
        if self.unused:
            lines += [f"{len(self.unused)} checkpoint keys not used:", *(f"  {key}" for key in self.unused)]
        if self.missing:
            lines += [f"{len(self.missing)} model keys left as they were:", *(f"  {key}" for key in self.missing)]
        return "\n".join(lines)


def load_published(
    model: nn.Module,
    checkpoint: str | os.PathLike[str] | Mapping[str, Any],
    *,
    ignore_head: bool = False,
    segments: str | None = None,
    average: bool = False,
    start: bool = False,
) -> LoadReport:
    """Load a checkpoint into `model`, whichever of the three namings its keys follow.

    Single tensors may be left over on both sides, which the report lists; layers may not: a checkpoint with others than
    the model's is of another system or another depth. The model is changed only if no error is raised.

    Args:
        model: a TANet, a C2D, or any network with torchvision's ResNet names.
        checkpoint: a state dict, a container with one under "state_dict", "model_state_dict", "model_state" or "model"
            (whose other entries, such as the epoch or the optimizer's state, are not looked at), or the path of a file
            with either: of safetensors, or of `torch.save`, read with `weights_only=True` and its checksums verified.
            Of classes that such a file names only the names are read (see `stand_ins`).
        ignore_head: leave the model's head as it is, for fine-tuning on other classes.
        segments: what to do where the checkpoint's TAMs are for another T: "interpolate" their global branches over
            time (see `segments.for_frames`), or "draw": leave the model's own, as drawn. None refuses.
        average: take the moving average of the weights, where one lies beside them ("ema_state_dict",
            "state_dict_ema" or "model_ema"). What mmengine writes has it in its "state_dict" already.
        start: the weights are those that a training starts from. Layers that the checkpoint lacks stay as they are, as
            TAMs do under a 2D network's weights, and so does a head of other classes; a 2D convolution becomes one over
            frames by the same weight, divided by the number of taps, at each tap.

    Returns:
        The keys loaded, unused and missing.

    Raises:
        TypeError: `model` is no module; `checkpoint`, or what its file holds, is no mapping from names, such as a whole
            pickled module; a tensor is sparse, nested, without values, of no class of torch's, or not of the kind of
            number that the model has there.
        OSError: the file cannot be opened.
        ValueError: the file is no checkpoint or is damaged; two keys stand for the same tensor; a tensor's shape is
            not the model's (another number of segments, taps or classes, another backbone); either has layers that the
            other lacks; there is no average; or nothing fits.
    """
    check_module("model", model)
    state, notes = weights_of(checkpoint, average)
    targets = model.state_dict()
    sources = _by_torchvision_name(state, targets)
    head = f"{getattr(model, 'head_name', 'fc')}."  # of a network on any backbone

    wanted = {name: key for name, key in sources.items() if not (ignore_head and name.startswith(head))}
    for name, key in wanted.items():
        if name in targets and (kind := stood_for(state[key])):
            raise TypeError(f"checkpoint: {key!r} is of {kind}, expected a Tensor")
    matched = {name: key for name, key in wanted.items() if name in targets and isinstance(state[key], Tensor)}
    if not matched:
        raise ValueError(
            f"checkpoint: got {_some(list(map(repr, state))) or 'no keys'}, none of which fits {type(model).__name__}; "
            f"expected keys such as {_some(list(map(repr, targets)))}"
        )
    check_way(segments)
    for name, key in matched.items():
        _check_kind(key, state[key], targets[name])
    values = {name: state[key] for name, key in matched.items()}
    adapted = for_frames(values, targets) if segments else {}
    kept = {name for name in targets if ignore_head and name.startswith(head)}
    if segments == "draw":
        kept |= adapted.keys()
        adapted = {}
    if start:
        kept |= {name for name in values if name.startswith(head) and _of_other_classes(values[name], targets[name])}
        inflated = over_taps(values, targets)
        values |= inflated
        notes += (f"{len(inflated)} convolutions of a 2D network made ones over frames",) if inflated else ()
    matched = {name: key for name, key in matched.items() if name not in kept}
    values = {name: adapted.get(name, values[name]) for name in matched}
    _check_shapes({key: (name, values[name].shape, targets[name].shape) for name, key in matched.items()})
    left = [name for name, key in wanted.items() if name not in targets and isinstance(state[key], Tensor)]
    needed = [] if start else [name for name in targets if name not in kept]
    _check_layers(type(model).__name__, left, needed, targets, matched)

    model.load_state_dict(values, strict=False)
    used = set(matched.values())
    return LoadReport(
        loaded=tuple(matched),
        unused=tuple(key for key in state if key not in used),
        missing=tuple(name for name in targets if name not in matched),
        interpolated=tuple(adapted),
        notes=notes,
    )


def _of_other_classes(theirs: Tensor, ours: Tensor) -> bool:
    return theirs.dim() == ours.dim() and theirs.shape[0] != ours.shape[0] and theirs.shape[1:] == ours.shape[1:]


def _by_torchvision_name(state: Mapping[str, Any], targets: Mapping[str, Any]) -> dict[str, str]:
    """The checkpoint's keys by the names of the model, or of torchvision, that they stand for."""
    keys: dict[str, str] = {}
    for key in state:
        if not isinstance(key, str):
            raise TypeError(f"checkpoint: got the key {key!r}, expected names of tensors")
        name = key
        if name not in targets:
            name = _WRAPPERS.sub("", key)
            for pattern, replacement in _RENAMINGS:
                name = pattern.sub(replacement, name)
        if name in keys:
            raise ValueError(f"checkpoint: got {keys[name]!r} and {key!r}, which both stand for {name!r}")
        keys[name] = key
    return keys


def _check_kind(key: str, theirs: Tensor, ours: Tensor) -> None:
    """Raise for what cannot be copied, and for what a copy would silently truncate."""
    expected = f"expected a dense tensor to go with the model's {ours.dtype}"
    if theirs.is_nested or theirs.layout != torch.strided:
        raise TypeError(f"checkpoint: {key!r} is {'nested' if theirs.is_nested else theirs.layout}, {expected}")
    if theirs.is_meta:
        raise TypeError(f"checkpoint: {key!r} is on meta, without values, {expected}")
    if theirs.is_complex() or theirs.is_floating_point() != ours.is_floating_point():
        raise TypeError(f"checkpoint: {key!r} is {theirs.dtype}, {expected}")


def _check_shapes(pairs: dict[str, tuple[str, torch.Size, torch.Size]]) -> None:
    """Raise for checkpoint keys whose shapes are not the model's; `pairs` is (name, shape there, shape here) by key."""
    wrong = {key: pair for key, pair in pairs.items() if pair[1] != pair[2]}
    if not wrong:
        return
    causes = dict.fromkeys(filter(None, (_cause(*pair) for pair in wrong.values()))) or ["it has other shapes"]
    differences = [
        f"{key!r} is {tuple(theirs)} in the checkpoint, {tuple(ours)} in the model"
        for key, (_, theirs, ours) in wrong.items()
    ]
    raise ValueError(f"checkpoint: does not fit the model; {'; '.join(causes)}. {_some(differences)}")


def _check_layers(
    network: str, left: Iterable[str], needed: Iterable[str], targets: Iterable[str], matched: Iterable[str]
) -> None:
    """Raise for layers that the checkpoint has and the model lacks, and for needed ones of which no tensor came."""
    if surplus := [layer for layer in _layers_beyond(left, targets) if "." in layer]:
        raise ValueError(
            f"checkpoint: is of another system than this {network}, or of another depth: it has "
            f"{_some(list(map(repr, surplus)))}, which the model lacks"
        )
    if lacking := _layers_beyond(needed, matched):
        raise ValueError(
            f"checkpoint: is of another system than this {network}, of another depth or of a 2D network: it lacks "
            f"{_some(list(map(repr, lacking)))} (start=True leaves them as they are)"
        )


def _layers_beyond(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """The outermost layers of tensors' `names` in which none of the `known` tensors is."""
    inside = {name.rsplit(".", depth)[0] for name in known for depth in range(1, name.count(".") + 1)}
    found: dict[str, None] = {}
    for name in names:
        pieces = name.split(".")
        layers = [".".join(pieces[:depth]) for depth in range(1, len(pieces))]
        found |= dict.fromkeys([layer for layer in layers if layer not in inside][:1])
    return list(found)


def _cause(name: str, theirs: torch.Size, ours: torch.Size) -> str | None:
    """The likely reason for two shapes of the tensor `name`; None where another tensor tells it better."""
    if len(theirs) != len(ours):
        return "it belongs to another kind of network"
    if name.endswith("tam.G.0.weight"):  # (αT, T)
        if theirs[1] != ours[1]:
            return f"it was trained with {theirs[1]} segments, the model has {ours[1]}"
        return f"its alpha is {theirs[0] / theirs[1]:g}, the model's {ours[0] / ours[1]:g}"
    if name.endswith("tam.G.3.weight") and theirs[0] != ours[0]:  # (K, αT)
        return f"its kernel_size is {theirs[0]}, the model's {ours[0]}"
    if name.endswith("tam.L.0.weight"):  # (C/β, C, taps)
        if theirs[2] != ours[2]:
            return f"its local branch has {theirs[2]} taps, the model's {ours[2]} (local_kernel_size)"
        if theirs[1] == ours[1]:
            return f"its beta is {theirs[1] // theirs[0]}, the model's {ours[1] // ours[0]}"
    if name == "fc.weight" and theirs[1] == ours[1]:  # (classes, features)
        return f"it has {theirs[0]} classes, the model {ours[0]} (ignore_head=True leaves the model's head as it is)"
    if ".tam." not in name and not name.startswith(_HEAD):
        return "it belongs to another backbone"
    return None


def _some(items: list[str]) -> str:
    more = f"; and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return "; ".join(items[:_SHOWN]) + more
