"""A network's weights by the names of the public implementations of TANet: the way back of `load_published`."""

import re
from collections.abc import Callable

from torch import Tensor, nn

from tam_triton.checks import check_module
from tam_triton.nets.places import residual_blocks
from tam_triton.nets.ta_block import TABlock
from tam_triton.nets.video import C2D
from tam_triton.temporal.base import TemporalModule


def published_state(network: nn.Module, form: str) -> dict[str, Tensor]:
    """The state dict of a TANet or a C2D on a ResNet as a public implementation names it.

    Args:
        network: a TANet of bottlenecks with a TAM in each, as both have it, or a C2D without temporal modules.
        form: "authors" (liu-zhy/temporal-adaptive-module, under `module.` as its DataParallel writes it; the head is
            `new_fc`, or without dropout `fc`) or "mmaction2" (open-mmlab/mmaction2's Recognizer2D).

    Returns:
        The network's own tensors. Both implementations look for them under "state_dict" in a file.

    Raises:
        TypeError: `network` is no module, or neither a TANet nor a C2D.
        ValueError: an unknown form, or a network that this implementation cannot build.
    """
    check_module("network", network)
    if form not in FORMS:
        raise ValueError(f"form: got {form!r}, expected one of {tuple(FORMS)}")
    if not isinstance(network, C2D):
        raise TypeError(f"network: got {type(network).__name__}, expected a TANet or a C2D on a ResNet")
    _check_network(network, form)
    blocks = [network.get_submodule(name) for names in residual_blocks(network).values() for name in names]
    temporal = isinstance(blocks[0], TABlock)
    rename = FORMS[form]
    return {rename(name, temporal, network.dropout.p > 0): tensor for name, tensor in network.state_dict().items()}


def _by_authors(name: str, temporal: bool, dropout: bool) -> str:
    if name.startswith("fc.") and dropout:
        return f"module.new_{name}"
    if temporal and ".tam." not in name:
        name = re.sub(r"^(layer\d+\.\d+)\.", r"\1.net.", name)
    return f"module.base_model.{name}"


def _by_mmaction2(name: str, temporal: bool, dropout: bool) -> str:
    if name.startswith("fc."):
        return f"cls_head.fc_cls.{name.removeprefix('fc.')}"
    if ".tam." not in name:
        for pattern, replacement in (
            (r"\bconv(\d)\.", r"conv\1.conv."),
            (r"\bbn(\d)\.", r"conv\1.bn."),
            (r"\bdownsample\.0\.", "downsample.conv."),
            (r"\bdownsample\.1\.", "downsample.bn."),
            (r"^(layer\d+\.\d+)\.", r"\1.block." if temporal else r"\1."),
        ):
            name = re.sub(pattern, replacement, name)
    return f"backbone.{name}"


FORMS: dict[str, Callable[[str, bool, bool], str]] = {"authors": _by_authors, "mmaction2": _by_mmaction2}


def _check_network(network: C2D, form: str) -> None:
    """Raise for what the names could be written for, but no network of theirs would be the same."""
    blocks = [network.get_submodule(name) for names in residual_blocks(network).values() for name in names]
    tams = [block.tam for block in blocks if isinstance(block, TABlock)]
    others = [module for module in network.modules() if isinstance(module, TemporalModule) and module not in tams]
    if others:
        raise ValueError(f"network: got one with {type(others[0]).__name__} of its own, expected TANet's TAMs or none")
    if not tams:
        return
    if len(tams) < len(blocks):
        raise ValueError(f"network: got TAMs in {len(tams)} of {len(blocks)} blocks, expected them in all for {form}")
    if not all(hasattr(block, "conv3") for block in blocks):
        raise ValueError(f"network: got basic blocks with TAMs, expected bottlenecks for {form}")
    for tam in tams if form == "authors" else []:
        frames, taps, channels = tam.num_segments, tam.kernel_size, tam.channels
        shapes = [tuple(tam.get_parameter(name).shape) for name in ("G.0.weight", "L.0.weight")]
        expected = [(2 * frames, frames), (channels // 4, channels, taps)]
        if shapes != expected:
            raise ValueError(
                f"network: got G.0.weight {shapes[0]} and L.0.weight {shapes[1]}, expected {expected[0]} and "
                f"{expected[1]} for {form}, whose alpha is 2, beta 4, and local taps as many as the kernel's"
            )
