"""From a recipe's description of a network to the network."""

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
    if model.backbone == "small":
        backbone = SmallResNet(num_classes)
        if model.kind == "C2D":
            return C2D(backbone, num_segments, dropout=model.dropout)
        taps, alpha, beta = model.kernel_size, model.alpha, model.beta
        return TANet(backbone, num_segments, dropout=model.dropout, kernel_size=taps, alpha=alpha, beta=beta)
    try:
        return _on_torchvision(model, num_classes, num_segments, model.weights if pretrained else None)
    except ValueError as error:
        raise InputError(f"model: {error}") from error


def _on_torchvision(model: Model, num_classes: int, num_segments: int, weights: str | None) -> C2D:
    depth = int(model.backbone.removeprefix("resnet"))
    if model.kind == "C2D":
        return c2d(depth, num_classes, num_segments, dropout=model.dropout, weights=weights)
    return tanet(
        depth,
        num_classes,
        num_segments,
        dropout=model.dropout,
        kernel_size=model.kernel_size,
        alpha=model.alpha,
        beta=model.beta,
        weights=weights,
    )
