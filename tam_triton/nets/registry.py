"""Every system of the paper as a row of one table, and the ways to make them by name."""

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import nn
from torchvision.models import ResNet, WeightsEnum

from tam_triton.checks import check_count
from tam_triton.nets import places as where
from tam_triton.nets.backbones import as_people_count, build_backbone, check_backbone
from tam_triton.nets.framewise import Framewise, head_name
from tam_triton.nets.insertion import Place, insert
from tam_triton.nets.slowfast import CONFIGS, SlowFast
from tam_triton.nets.ta_block import FORWARDS
from tam_triton.nets.video import C2D, CHILDREN, TANet, VideoNetwork, check_probability
from tam_triton.temporal import MODULES
from tam_triton.temporal.folding import is_hooked


@dataclass(frozen=True)
class System:
    """A row: what goes where into a 2D network.

    Attributes:
        module: a name in `tam_triton.temporal.MODULES`; None for nothing.
        source: in the paper.
        style: of the places, if the system is known on other backbones than ResNets and in single stages.
        places: from a ResNet to the places, otherwise.
        name: the module's in its block.
        options: of the module, where they are not its defaults.
    """

    module: str | None
    source: str
    style: str | None = None
    places: Callable[[nn.Module], list[Place]] | None = None
    name: str = "tam"
    options: dict[str, Any] = field(default_factory=dict)

    def places_in(self, network: nn.Module, stages: Collection[str] | None) -> list[Place]:
        """Where the module goes."""
        if self.places is not None:
            return self.places(network)
        assert self.style is not None
        return [replace(place, name=self.name) for place in where.known_places(network, self.style, stages=stages)]


SYSTEMS = {
    "c2d": System(None, "table 2: frame by frame, logits averaged"),
    "c2d_pool": System("avg_pool", "table 2: average pooling 3×1×1 in place of each TAM", "b", name="pool"),
    "c2d_tconv": System("conv", "table 2: dense 3×1×1 convolution in place of each TAM", "b", name="temporal_conv"),
    "tsm": System("shift", "section 4.3; arXiv 1811.08383", places=where.shifts),
    "teinet": System("tei", "section 4.3; arXiv 1911.09435", places=partial(where.block_inputs, name="tei")),
    "i3d": System("inflated_conv", "section 4.3: I3D 3×1×1 in every block", places=where.first_convs),
    "i3d_every_other": System(
        "inflated_conv", "arXiv 1711.07971, section 4.1", places=partial(where.first_convs, every_other=True)
    ),
    "nl_c2d": System("non_local", "section 4.3; arXiv 1711.07971", places=where.non_locals),
    "global": System("global", "table 2: the global branch alone", "b"),
    "local": System("local", "table 2: the local branch alone", "b"),
    "global_se": System("global_se", "table 2: the global branch and squeeze-and-excitation", "b"),
    "tanet_r": System("tanet_r", "table 2: excitation after the aggregation", "b"),
    "tanet_a": System("tam", "table 2: before conv1", "a"),
    "tanet_b": System("tam", "table 2: before conv2, which is TANet", "b"),
    "tanet_c": System("tam", "table 2: after conv2", "c"),
    "tanet_d": System("tam", "table 2: after conv3", "d"),
    "tanet": System("tam", "section 3.4", "b"),
}


def list_models(pattern: str = "*") -> list[str]:
    """The systems whose names match, as file names are matched ("tanet*"), sorted as people count."""
    if not isinstance(pattern, str):
        raise TypeError(f"pattern: got {type(pattern).__name__}, expected a str")
    return as_people_count(name for name in (*SYSTEMS, *CONFIGS) if fnmatchcase(name, pattern))


def list_options(system: str) -> tuple[str, ...]:
    """The options that a system's temporal module has: `kernel_size`, `alpha`, `beta`, `impl`, …

    Raises:
        TypeError, ValueError: an unknown name, with a list of what there is.
    """
    _check_system(system)
    if system in CONFIGS:
        return ("impl",)
    module = SYSTEMS[system].module
    return () if module is None else tuple(inspect.signature(MODULES[module]).parameters)[2:]


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
    _check_system(system)
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
        ValueError: it was not made by `create_model`, or on a backbone that had no name.
    """
    config = getattr(network, "model_config", None)
    if config is None or config["backbone"] is None:
        raise ValueError(f"network: got a {type(network).__name__} that was not made of names, expected create_model's")
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


def _check_system(system: str) -> None:
    if not isinstance(system, str):
        raise TypeError(f"system: got {type(system).__name__}, expected a name such as 'tanet'")
    if system not in (known := list_models()):
        raise ValueError(f"system: got {system!r}, expected one of {', '.join(known)}")


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
