"""The paper's systems on 2D backbones, by name, and the checkpoints of the public implementations.

A name is imported from its file when it is first asked for: most need torchvision, which takes seconds to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tam_triton.nets.backbones import build_backbone as build_backbone
    from tam_triton.nets.backbones import list_backbones as list_backbones
    from tam_triton.nets.checkpoints import LoadReport as LoadReport
    from tam_triton.nets.checkpoints import load_published as load_published
    from tam_triton.nets.framewise import Framewise as Framewise
    from tam_triton.nets.insertion import Place as Place
    from tam_triton.nets.insertion import insert as insert
    from tam_triton.nets.places import known_places as known_places
    from tam_triton.nets.publish import published_state as published_state
    from tam_triton.nets.registry import config_of as config_of
    from tam_triton.nets.registry import create_model as create_model
    from tam_triton.nets.resnet import insert_tam as insert_tam
    from tam_triton.nets.slowfast import SlowFast as SlowFast
    from tam_triton.nets.systems import list_models as list_models
    from tam_triton.nets.systems import list_options as list_options
    from tam_triton.nets.ta_block import TABlock as TABlock
    from tam_triton.nets.video import C2D as C2D
    from tam_triton.nets.video import TANet as TANet
    from tam_triton.nets.zoo import c2d as c2d
    from tam_triton.nets.zoo import c2d18 as c2d18
    from tam_triton.nets.zoo import c2d34 as c2d34
    from tam_triton.nets.zoo import c2d50 as c2d50
    from tam_triton.nets.zoo import c2d101 as c2d101
    from tam_triton.nets.zoo import c2d152 as c2d152
    from tam_triton.nets.zoo import tanet as tanet
    from tam_triton.nets.zoo import tanet18 as tanet18
    from tam_triton.nets.zoo import tanet34 as tanet34
    from tam_triton.nets.zoo import tanet50 as tanet50
    from tam_triton.nets.zoo import tanet101 as tanet101
    from tam_triton.nets.zoo import tanet152 as tanet152

NAMES = {
    "backbones": ("build_backbone", "list_backbones"),
    "checkpoints": ("LoadReport", "load_published"),
    "framewise": ("Framewise",),
    "insertion": ("Place", "insert"),
    "places": ("known_places",),
    "publish": ("published_state",),
    "registry": ("config_of", "create_model"),
    "resnet": ("insert_tam",),
    "slowfast": ("SlowFast",),
    "systems": ("list_models", "list_options"),
    "ta_block": ("TABlock",),
    "video": ("C2D", "TANet"),
    "zoo": tuple(f"{network}{depth}" for network in ("c2d", "tanet") for depth in ("", 18, 34, 50, 101, 152)),
}
"""What each file has for all to use."""

_FILES = {name: file for file, names in NAMES.items() for name in names}
__all__ = sorted(_FILES)


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"{__name__}.{_FILES[name]}")
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        raise ImportError(f"{__name__}.{name} needs {missing}: pip install 'tam-triton[nets]'") from error
    return globals().setdefault(name, getattr(module, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
