"""The paper's systems on 2D backbones, by name, and the checkpoints of the public implementations."""

try:
    import torchvision  # noqa: F401
except ImportError as error:
    raise ImportError("tam_triton.nets needs torchvision: pip install 'tam-triton[nets]'") from error

from tam_triton.nets.backbones import build_backbone, list_backbones
from tam_triton.nets.checkpoints import LoadReport, load_published
from tam_triton.nets.framewise import Framewise
from tam_triton.nets.insert import Place, insert
from tam_triton.nets.places import known_places
from tam_triton.nets.publish import published_state
from tam_triton.nets.registry import config_of, create_model, list_models, list_options
from tam_triton.nets.resnet import insert_tam
from tam_triton.nets.slowfast import SlowFast
from tam_triton.nets.ta_block import TABlock
from tam_triton.nets.video import C2D, TANet
from tam_triton.nets.zoo import (
    c2d,
    c2d18,
    c2d34,
    c2d50,
    c2d101,
    c2d152,
    tanet,
    tanet18,
    tanet34,
    tanet50,
    tanet101,
    tanet152,
)

__all__ = [
    "C2D",
    "Framewise",
    "LoadReport",
    "Place",
    "SlowFast",
    "TABlock",
    "TANet",
    "build_backbone",
    "c2d",
    "c2d18",
    "c2d34",
    "c2d50",
    "c2d101",
    "c2d152",
    "config_of",
    "create_model",
    "insert",
    "insert_tam",
    "known_places",
    "list_backbones",
    "list_models",
    "list_options",
    "load_published",
    "published_state",
    "tanet",
    "tanet18",
    "tanet34",
    "tanet50",
    "tanet101",
    "tanet152",
]
