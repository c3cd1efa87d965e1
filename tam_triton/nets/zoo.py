"""TANet and C2D on torchvision's ResNet-18, 34, 50, 101 and 152."""

from collections.abc import Sequence
from typing import TypedDict, Unpack

from torch import nn
from torchvision.models import WeightsEnum, get_model, get_model_weights

from tam_triton.checks import check_int
from tam_triton.nets.archive import check_download
from tam_triton.nets.resnet import STAGES
from tam_triton.nets.video import C2D, TANet

DEPTHS = (18, 34, 50, 101, 152)


def c2d(
    depth: int,
    num_classes: int | None = 400,
    num_segments: int = 8,
    *,
    dropout: float = 0.5,
    weights: WeightsEnum | str | None = None,
) -> C2D:
    """C2D on a torchvision ResNet.

    Args:
        depth: 18, 34, 50, 101 or 152.
        num_classes: classes of a new `fc`; None keeps the backbone's 1000.
        num_segments: frames of a clip, T.
        dropout: probability of dropping a feature before `fc`.
        weights: torchvision's weights for this depth, by member or by name ("IMAGENET1K_V1", "DEFAULT"), downloaded
            where torch's cache lacks them. None leaves the backbone at its random initialisation.

    Raises:
        TypeError, ValueError: unknown `depth`, `weights` of another network or damaged in torch's cache, or an
            argument that `C2D` refuses.
    """
    return C2D(_resnet(depth, weights), num_segments, num_classes=num_classes, dropout=dropout)


def tanet(
    depth: int,
    num_classes: int | None = 400,
    num_segments: int = 8,
    *,
    stages: Sequence[str] = tuple(STAGES),
    kernel_size: int = 3,
    alpha: int = 2,
    beta: int = 4,
    dropout: float = 0.5,
    weights: WeightsEnum | str | None = None,
    impl: str | None = None,
) -> TANet:
    """TANet on a torchvision ResNet.

    Args:
        depth, num_classes, num_segments, dropout, weights: as for `c2d`.
        stages, kernel_size, alpha, beta, impl: as for `insert_tam`.

    Raises:
        TypeError, ValueError: unknown `depth`, `weights` of another network or damaged in torch's cache, or an
            argument that `TANet` refuses.
    """
    return TANet(
        _resnet(depth, weights),
        num_segments,
        num_classes=num_classes,
        dropout=dropout,
        stages=stages,
        kernel_size=kernel_size,
        alpha=alpha,
        beta=beta,
        impl=impl,
    )


class C2DOptions(TypedDict, total=False):
    """Keyword arguments of `c2d`."""

    dropout: float
    weights: WeightsEnum | str | None


class TANetOptions(C2DOptions, total=False):
    """Keyword arguments of `tanet`."""

    stages: Sequence[str]
    kernel_size: int
    alpha: int
    beta: int
    impl: str | None


def c2d18(num_classes: int | None = 400, num_segments: int = 8, **options: Unpack[C2DOptions]) -> C2D:
    """C2D on ResNet-18; arguments as for `c2d`."""
    return c2d(18, num_classes, num_segments, **options)


def c2d34(num_classes: int | None = 400, num_segments: int = 8, **options: Unpack[C2DOptions]) -> C2D:
    """C2D on ResNet-34; arguments as for `c2d`."""
    return c2d(34, num_classes, num_segments, **options)


def c2d50(num_classes: int | None = 400, num_segments: int = 8, **options: Unpack[C2DOptions]) -> C2D:
    """C2D on ResNet-50; arguments as for `c2d`."""
    return c2d(50, num_classes, num_segments, **options)


def c2d101(num_classes: int | None = 400, num_segments: int = 8, **options: Unpack[C2DOptions]) -> C2D:
    """C2D on ResNet-101; arguments as for `c2d`."""
    return c2d(101, num_classes, num_segments, **options)


def c2d152(num_classes: int | None = 400, num_segments: int = 8, **options: Unpack[C2DOptions]) -> C2D:
    """C2D on ResNet-152; arguments as for `c2d`."""
    return c2d(152, num_classes, num_segments, **options)


def tanet18(num_classes: int | None = 400, num_segments: int = 8, **options: Unpack[TANetOptions]) -> TANet:
    """TANet on ResNet-18; arguments as for `tanet`."""
    return tanet(18, num_classes, num_segments, **options)


def tanet34(num_classes: int | None = 400, num_segments: int = 8, **options: Unpack[TANetOptions]) -> TANet:
    """TANet on ResNet-34; arguments as for `tanet`."""
    return tanet(34, num_classes, num_segments, **options)


def tanet50(num_classes: int | None = 400, num_segments: int = 8, **options: Unpack[TANetOptions]) -> TANet:
    """TANet on ResNet-50; arguments as for `tanet`."""
    return tanet(50, num_classes, num_segments, **options)


def tanet101(num_classes: int | None = 400, num_segments: int = 8, **options: Unpack[TANetOptions]) -> TANet:
    """TANet on ResNet-101; arguments as for `tanet`."""
    return tanet(101, num_classes, num_segments, **options)


def tanet152(num_classes: int | None = 400, num_segments: int = 8, **options: Unpack[TANetOptions]) -> TANet:
    """TANet on ResNet-152; arguments as for `tanet`."""
    return tanet(152, num_classes, num_segments, **options)


def _resnet(depth: int, weights: WeightsEnum | str | None) -> nn.Module:
    check_int("depth", depth)
    if depth not in DEPTHS:
        raise ValueError(f"depth: got {depth}, expected one of {DEPTHS}")
    known = get_model_weights(f"resnet{depth}")
    if isinstance(weights, str) and weights.removeprefix(f"{known.__name__}.") not in known.__members__:
        raise ValueError(f"weights: got {weights!r}, expected one of {tuple(known.__members__)} for ResNet-{depth}")
    if weights is not None and not isinstance(weights, str | known):
        raise TypeError(f"weights: got {weights!r}, expected a member of {known.__name__}, its name or None")
    if isinstance(weights, str):
        weights = known[weights.removeprefix(f"{known.__name__}.")]
    if weights is not None:
        check_download(weights)
    return get_model(f"resnet{depth}", weights=weights)
