"""TANet and its 2D baseline on torchvision's ResNets, and the checkpoints of the public implementations."""

try:
    import torchvision  # noqa: F401
except ImportError as error:
    raise ImportError("tam_triton.nets needs torchvision: pip install 'tam-triton[nets]'") from error

from tam_triton.nets.checkpoints import LoadReport, load_published
from tam_triton.nets.resnet import insert_tam
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
    "LoadReport",
    "TABlock",
    "TANet",
    "c2d",
    "c2d18",
    "c2d34",
    "c2d50",
    "c2d101",
    "c2d152",
    "insert_tam",
    "load_published",
    "tanet",
    "tanet18",
    "tanet34",
    "tanet50",
    "tanet101",
    "tanet152",
]
