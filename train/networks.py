"""From a recipe's description of a network to the network."""

from typing import Any

from tam_triton.nets import C2D, TANet, c2d, tanet
from train.errors import InputError
from train.recipes import Model
from train.small_resnet import SmallResNet


def build_network(model: Model, num_classes: int, num_segments: int, *, pretrained: bool = True) -> C2D:
    """The network that `model` describes, for clips of T = `num_segments` frames.

    The backbone's weights are drawn first, so equal seeds give C2D and TANet equal backbones.

    Args:
        pretrained: load the backbone's weights that `model` names, downloading them where torch's cache lacks them;
            otherwise, and where it names none, they are random.

    Raises:
        InputError: weights that torchvision does not have, or that are damaged in torch's cache.
        OSError: they cannot be downloaded.
    """
    options: dict[str, Any] = {"dropout": model.dropout}
    if model.kind == "TANet":
        options |= {"kernel_size": model.kernel_size, "alpha": model.alpha, "beta": model.beta}
    if model.backbone == "small":
        return (TANet if model.kind == "TANet" else C2D)(SmallResNet(num_classes), num_segments, **options)
    make, depth = tanet if model.kind == "TANet" else c2d, int(model.backbone.removeprefix("resnet"))
    try:
        return make(depth, num_classes, num_segments, weights=model.weights if pretrained else None, **options)
    except ValueError as error:
        raise InputError(f"model: {error}") from error
