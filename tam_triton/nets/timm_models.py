"""The paper's systems among timm's models, once that is asked for."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from tam_triton.nets.backbones import check_backbone
from tam_triton.nets.protocol import TimmProtocol
from tam_triton.nets.registry import create_model
from tam_triton.nets.slowfast_config import CONFIGS
from tam_triton.nets.systems import list_models

__all__: list[str] = []  # timm puts the names there
BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def register(backbones: Iterable[str] = BACKBONES) -> list[str]:
    """Let `timm.create_model("tanet_resnet50", num_segments=8)` make what `create_model("tanet", "resnet50")` makes.

    `pretrained=True` is ImageNet's weights of the backbone, and `drop_rate` is `dropout`.

    Args:
        backbones: torchvision's, each of which gets every system; SlowFast has its own.

    Returns:
        The names, which timm then knows: "tanet_resnet50", …, "slowfast_8x8", …

    Raises:
        ImportError: timm is not installed.
        TypeError, ValueError: there is no such backbone.
    """
    try:
        from timm.models import is_model, register_model
    except ImportError as error:
        raise ImportError("timm's registry needs timm: pip install 'tam-triton[timm]'") from error
    for backbone in (backbones := tuple(backbones)):
        check_backbone(backbone)
    on_frames = [name for name in list_models() if name not in CONFIGS]
    made = {f"{system}_{backbone}": (system, backbone) for backbone in backbones for system in on_frames}
    made |= {name: (name, "resnet50") for name in CONFIGS}
    for name, (system, backbone) in made.items():
        if not is_model(name):
            register_model(_entry(name, system, backbone))
    return list(made)


def _entry(name: str, system: str, backbone: str) -> Any:
    def entry(
        pretrained: bool = False,
        *,
        num_classes: int = 400,
        drop_rate: float = 0.5,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
        **options: Any,
    ) -> nn.Module:
        for key, value in (("pretrained_cfg", pretrained_cfg), ("pretrained_cfg_overlay", pretrained_cfg_overlay)):
            if value is not None:
                raise ValueError(f"{key}: got {value!r}, expected None: weights are the backbone's, from torchvision")
        weights = "DEFAULT" if pretrained else None
        network = create_model(system, backbone, num_classes or 1, weights=weights, dropout=drop_rate, **options)
        assert isinstance(network, TimmProtocol)
        if num_classes == 0:
            network.reset_classifier(0)
        return network

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"`create_model({system!r}, {backbone!r})`; further arguments as there."
    return entry
