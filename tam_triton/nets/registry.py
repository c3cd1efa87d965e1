"""The ways to make every system of the paper by name."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from torch import nn
from torchvision.models import ResNet, WeightsEnum

from tam_triton.checks import check_count
from tam_triton.nets import places as where
from tam_triton.nets.backbones import build_backbone, check_backbone
from tam_triton.nets.framewise import Framewise, head_name
from tam_triton.nets.insertion import insert
from tam_triton.nets.slowfast import SlowFast
from tam_triton.nets.slowfast_config import CONFIGS
from tam_triton.nets.systems import SYSTEMS, check_system, list_options
from tam_triton.nets.ta_block import FORWARDS
from tam_triton.nets.video import C2D, CHILDREN, TANet, VideoNetwork, check_probability
from tam_triton.temporal.folding import is_hooked


def create_model(
    system: str,
    backbone: str | nn.Module = "resnet50",
    num_classes: int | None = 400,
    num_segments: int | None = None,
    *,
    weights: WeightsEnum | str | None = None,
    dropout: float = 0.5,
    stages: Collection[str] | None = None,
    **options: Any,
) -> nn.Module:
    """A network of the paper's, by name.

    The backbone's weights are drawn first, so equal seeds give all systems on it equal backbones.

    Args:
        system: of `list_models`.
        backbone: of `list_backbones`, or a 2D network, which becomes part of the new one. SlowFast has its own and
            takes the default alone.
        num_classes: classes of a new head; None keeps the backbone's.
        num_segments: frames of a clip, T: 8 by default, and what its name says for SlowFast.
        weights: the backbone's: a name such as "IMAGENET1K_V2", or "DEFAULT"; see `build_backbone`.
        dropout: probability of dropping a feature before the head.
        stages: those of a ResNet with the module: any of "res2" … "res5"; None is all. Not for systems whose places
            are their own.
        options: of the temporal module: `kernel_size`, `alpha`, `beta`, `impl`, …

    Returns:
        A `VideoNetwork` or a `SlowFast`; `config_of` gives what it was made of.

    Raises:
        TypeError, ValueError: an unknown name or option, with a list of what there is; weights of another network; or
            an argument that the network, the module or the place refuses.
    """
    check_system(system)
    config = {
        "system": system,
        "backbone": backbone if isinstance(backbone, str) else None,
        "num_classes": num_classes,
        "num_segments": num_segments,
        "dropout": dropout,
        "stages": None if stages is None else list(stages),
        **options,
    }
    network: nn.Module
    if system in CONFIGS:
        network = _slowfast(system, backbone, num_classes, num_segments, weights, dropout, stages, options)
    else:
        network = _on_frames(
            system,
            backbone,
            num_classes,
            8 if num_segments is None else num_segments,
            weights,
            dropout,
            stages,
            options,
        )
    vars(network)["model_config"] = config | {"num_segments": network.num_segments}
    return network


def config_of(network: nn.Module) -> dict[str, Any]:
    """The keyword arguments of `create_model` that make such a network, without its weights, in plain containers.

    Raises:
        ValueError: it was not made by `create_model`, or on a backbone that had no name, or its head was removed.
    """
    config = getattr(network, "model_config", None)
    if config is None or config["backbone"] is None:
        raise ValueError(f"network: got a {type(network).__name__} that was not made of names, expected create_model's")
    if config["num_classes"] == 0:
        raise ValueError("num_classes: got a network whose head was removed, expected one with a head")
    return dict(config)


def _on_frames(
    system: str,
    backbone: str | nn.Module,
    num_classes: int | None,
    num_segments: int,
    weights: WeightsEnum | str | None,
    dropout: float,
    stages: Collection[str] | None,
    options: dict[str, Any],
) -> VideoNetwork:
    row = SYSTEMS[system]
    _check_options(system, options)
    check_count("num_segments", num_segments)
    check_probability("dropout", dropout)
    if num_classes is not None:
        check_count("num_classes", num_classes)
    if stages is not None and row.style is None:
        raise ValueError(f"stages: got {stages!r} for {system}, expected None: its places are its own")
    if isinstance(backbone, str):
        weights = check_backbone(backbone, weights)
        backbone = build_backbone(backbone, weights)
    elif weights is not None:
        raise ValueError(f"weights: got {weights!r} for a backbone that is there already, expected None")
    elif not isinstance(backbone, nn.Module):
        raise TypeError(f"backbone: got {type(backbone).__name__}, expected a name or a Module")
    found = [] if row.module is None else row.places_in(backbone, stages)
    blocks = [backbone.get_submodule(name) for names in where.residual_blocks(backbone).values() for name in names]
    resnet = bool(blocks) and all(hasattr(backbone, name) for name in CHILDREN)
    resnet = resnet and not _has_own_forward(backbone)
    if resnet and row.module == "tam" and row.style == "b" and all(type(b).forward in FORWARDS for b in blocks):
        chosen: dict[str, Any] = {} if stages is None else {"stages": tuple(stages)}
        return TANet(backbone, num_segments, num_classes=num_classes, dropout=dropout, **chosen, **options)
    head_name(backbone)
    if row.module is not None:  # first: it checks all before it changes anything
        insert(backbone, row.module, found, num_segments, **row.options, **options)
    made = C2D if resnet else Framewise
    return made(backbone, num_segments, num_classes=num_classes, dropout=dropout)


def _has_own_forward(backbone: nn.Module) -> bool:
    """Whether a ResNet does more than its layers in their order, which `C2D` calls: it has hooks or was changed."""
    if is_hooked(backbone) or not isinstance(backbone, ResNet):
        return is_hooked(backbone)
    kind = type(backbone)
    patched = {"forward", "_forward_impl"} & vars(backbone).keys()
    return bool(patched) or (kind.forward, kind._forward_impl) != (ResNet.forward, ResNet._forward_impl)


def _check_options(system: str, options: dict[str, Any]) -> None:
    known = list_options(system)
    if unknown := [name for name in options if name not in known]:
        raise TypeError(f"{unknown[0]}: got an option that {system} does not have, expected one of {known}")


def _slowfast(
    system: str,
    backbone: str | nn.Module,
    num_classes: int | None,
    num_segments: int | None,
    weights: WeightsEnum | str | None,
    dropout: float,
    stages: Collection[str] | None,
    options: dict[str, Any],
) -> SlowFast:
    for name, value, expected in (
        ("backbone", backbone, "resnet50"),
        ("weights", weights, None),
        ("stages", stages, None),
    ):
        if value != expected:
            raise ValueError(f"{name}: got {value!r} for {system}, expected {expected!r}: it has a backbone of its own")
    _check_options(system, options)
    if num_classes is None:
        raise ValueError(f"num_classes: got None for {system}, expected a number: it has no head from before")
    config = CONFIGS[system]
    if num_segments is not None:
        config = replace(config, num_segments=num_segments)
    return SlowFast(config, num_classes, dropout=dropout, **options)
