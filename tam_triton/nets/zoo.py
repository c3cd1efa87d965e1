"""TANet and C2D on torchvision's ResNet-18, 34, 50, 101 and 152."""

from collections.abc import Callable, Sequence
from typing import Concatenate, ParamSpec, TypeVar

from torch import nn
from torchvision.models import WeightsEnum

from tam_triton.checks import check_int
from tam_triton.nets.backbones import build_backbone
from tam_triton.nets.places import STAGES
from tam_triton.nets.video import C2D, TANet

DEPTHS = (18, 34, 50, 101, 152)

P = ParamSpec("P")
Network = TypeVar("Network", bound=nn.Module)


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
    local_kernel_size: int = 3,
    dropout: float = 0.5,
    weights: WeightsEnum | str | None = None,
    impl: str | None = None,
) -> TANet:
    """TANet on a torchvision ResNet.

    Args:
        depth, num_classes, num_segments, dropout, weights: as for `c2d`.
        stages, kernel_size, alpha, beta, local_kernel_size, impl: as for `insert_tam`.

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
        local_kernel_size=local_kernel_size,
        impl=impl,
    )


def _short(build: Callable[Concatenate[int, P], Network], depth: int) -> Callable[P, Network]:
    """`build` with its depth given; for `c2d18` … `tanet152`."""

    def short(*args: P.args, **options: P.kwargs) -> Network:
        return build(depth, *args, **options)

    short.__name__ = short.__qualname__ = f"{build.__name__}{depth}"
    short.__doc__ = f"`{build.__name__}` on ResNet-{depth}; further arguments as there."
    return short


c2d18, c2d34, c2d50, c2d101, c2d152 = (_short(c2d, depth) for depth in DEPTHS)
tanet18, tanet34, tanet50, tanet101, tanet152 = (_short(tanet, depth) for depth in DEPTHS)


def _resnet(depth: int, weights: WeightsEnum | str | None) -> nn.Module:
    check_int("depth", depth)
    if depth not in DEPTHS:
        raise ValueError(f"depth: got {depth}, expected one of {DEPTHS}")
    return build_backbone(f"resnet{depth}", weights)
