"""From a recipe's description of a network to the network."""

from pathlib import Path
from urllib.error import URLError

import torch
from torch import nn

from tam_triton import nets
from tam_triton.nets.small_resnet import with_head
from train.errors import InputError
from train.recipe import Model


def build_network(model: Model, num_classes: int, num_segments: int, *, pretrained: bool = True) -> nn.Module:
    """The network that `model` describes, for clips of T = `num_segments` frames.

    The backbone's weights are drawn first, so equal seeds give all systems on it equal backbones.

    Args:
        pretrained: load the backbone's published weights that `model` names, downloading them where torch's cache
            lacks them; otherwise, and where it names none or a file (see `weights`), they are random.

    Raises:
        InputError: a system that does not fit the backbone or the clips, or weights that are damaged in torch's cache
            or cannot be downloaded.
    """
    try:
        return nets.create_model(
            model.system,
            *with_head(model.backbone, num_classes),
            num_segments,
            weights=model.pretrained if pretrained else None,
            dropout=model.dropout,
            **model.options,
        )
    except (ValueError, TypeError) as error:
        raise InputError(f"model: {error}") from error
    except URLError as error:
        raise InputError(
            f"model.weights: {model.weights} of {model.backbone} cannot be downloaded ({error.reason}) to "
            f"{Path(torch.hub.get_dir()) / 'checkpoints'}; put the file there, give one of your own by --model.weights "
            "FILE, or start from random weights by --model.weights None"
        ) from error


def check_network(model: Model, num_classes: int, num_segments: int) -> nn.Module:
    """The network on the meta device, at the price of shapes: nothing is downloaded, and no random number drawn.

    Raises InputError if there is none.
    """

    def build() -> nn.Module:
        return build_network(model, num_classes, num_segments, pretrained=False)

    try:
        with torch.device("meta"):
            return build()
    except NotImplementedError:  # torchvision's RegNets compute their widths with tensors, and read these
        with torch.random.fork_rng(devices=()):
            return build().to("meta")
