"""Loading checkpoints of SlowFast: this library's own and those of the public implementations.

facebookresearch/SlowFast: `s2.pathway0_res0.branch2.a.weight`, `s2_fuse.conv_f2s.weight`, `head.projection.weight`.
facebookresearch/pytorchvideo: `blocks.1.multipathway_blocks.0.res_blocks.0.branch2.conv_a.weight`,
`blocks.1.multipathway_fusion.conv_fast_to_slow.weight`, `blocks.6.proj.weight`.
open-mmlab/mmaction2: `backbone.slow_path.layer1.0.conv1.conv.weight`, `backbone.slow_path.layer1_lateral.conv.weight`,
`cls_head.fc_cls.weight`; its lateral convolutions have no BatchNorm (`SlowFastConfig.lateral_norm`).

All three put the slow pathway's features before the fast one's, as is done here.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from tam_triton.nets.checkpoints import LoadReport, load_published
from tam_triton.nets.containers import weights_of
from tam_triton.nets.slowfast import SlowFast

# From the authors' names to pytorchvideo's, and from these to the ones here; mmaction2's are left to `load_published`.
_RENAMINGS: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^(?:(?:module|_orig_mod)\.)+", ""),
    (r"^s([1-4])_fuse\.", lambda match: f"blocks.{int(match[1]) - 1}.multipathway_fusion."),
    (r"^s1\.pathway([01])_stem\.", r"blocks.0.multipathway_blocks.\1."),
    (
        r"^s([2-5])\.pathway([01])_res",
        lambda match: f"blocks.{int(match[1]) - 1}.multipathway_blocks.{match[2]}.res_blocks.",
    ),
    (r"^(?:head\.projection|blocks\.6\.proj)\.", "fc."),
    (r"^blocks\.0\.multipathway_fusion\.", "slow_path.conv1_lateral."),
    (r"^blocks\.([1-3])\.multipathway_fusion\.", r"slow_path.layer\1_lateral."),
    (r"(?<=_lateral\.)(?:conv_f2s|conv_fast_to_slow)\.", "conv."),
    (r"(?<=_lateral\.)norm\.", "bn."),
    (r"^(blocks\.0\.multipathway_blocks\.[01]\.)conv\.", r"\1conv1."),
    (r"^(blocks\.0\.multipathway_blocks\.[01]\.)(?:bn|norm)\.", r"\1bn1."),
    (r"^blocks\.0\.multipathway_blocks\.([01])\.", lambda match: _path(match[1])),
    (
        r"^blocks\.([1-4])\.multipathway_blocks\.([01])\.res_blocks\.",
        lambda match: f"{_path(match[2])}layer{match[1]}.",
    ),
    (r"\.branch1(?:_conv)?\.", ".downsample.0."),
    (r"\.branch1_(?:bn|norm)\.", ".downsample.1."),
    (r"\.branch2\.(?:conv_)?([abc])\.", lambda match: f".conv{'abc'.index(match[1]) + 1}."),
    (r"\.branch2\.(?:norm_)?([abc])(?:_bn)?\.", lambda match: f".bn{'abc'.index(match[1]) + 1}."),
]


def load_slowfast(
    model: SlowFast,
    checkpoint: str | os.PathLike[str] | Mapping[str, Any],
    *,
    ignore_head: bool = False,
    average: bool = False,
    start: bool = False,
) -> LoadReport:
    """Load a checkpoint into `model`, whichever of the four namings its keys follow.

    Weights of 3D convolutions take the shapes that they have here. The Caffe2 files (`.pkl`) of the authors' model zoo
    are not read.

    Args:
        model: a SlowFast network.
        checkpoint, ignore_head, average, start: as in `load_published`.

    Returns:
        The keys loaded, unused and missing.

    Raises:
        TypeError: `model` is no SlowFast, or as `load_published`.
        OSError, ValueError: as `load_published`.
    """
    if not isinstance(model, SlowFast):
        raise TypeError(f"model: got {type(model).__name__}, expected a SlowFast")
    state, notes = weights_of(checkpoint, average)
    if not all(isinstance(key, str) for key in state):
        return load_published(model, state)  # whose error says what came
    keys: dict[str, str] = {}
    for key in state:
        name = library_name(key)
        if name in keys:
            raise ValueError(f"checkpoint: got {keys[name]!r} and {key!r}, which both stand for {name!r}")
        keys[name] = key
    frames = {name: _of_frames(state[key]) for name, key in keys.items()}
    report = load_published(model, frames, ignore_head=ignore_head, start=start)
    return replace(report, unused=tuple(keys[name] for name in report.unused), notes=notes)


def library_name(key: str) -> str:
    """The name here of a tensor of facebookresearch/SlowFast or pytorchvideo; others keep theirs."""
    for pattern, replacement in _RENAMINGS:
        key = re.sub(pattern, replacement, key)
    return key


def _path(pathway: str) -> str:
    return "slow_path." if pathway == "0" else "fast_path."


def _of_frames(value: Any) -> Any:
    """A Conv3d's weight as the convolutions of frames have it; anything else as it is."""
    if not isinstance(value, Tensor) or value.dim() != 5:
        return value
    if value.shape[2] == 1:  # in space alone: a Conv2d's
        return value[:, :, 0]
    return value[..., 0] if value.shape[3:] == (1, 1) else value.flatten(1, 2)  # TimeConv's, StemConv's
