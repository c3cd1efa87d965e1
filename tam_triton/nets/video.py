"""Video classifiers on a 2D network: every frame through the network, the frames' logits averaged (paper §3.4)."""

from collections.abc import Sequence
from typing import Any

import torch.fx
from torch import Tensor, nn

from tam_triton.checks import (
    FLOATS,
    check_addressable,
    check_clip_length,
    check_count,
    check_dense,
    check_device,
    check_dtype,
    check_module,
    check_parameter,
    fails,
)
from tam_triton.nets.places import STAGES
from tam_triton.nets.resnet import insert_tam
from tam_triton.temporal.folding import is_hooked
from tam_triton.temporal.tracing import is_traced

CHILDREN = ("conv1", "bn1", "relu", "maxpool", *STAGES.values(), "avgpool", "fc")
"""Of a ResNet as torchvision has it."""


class VideoNetwork(nn.Module):
    """What networks on frames have in common; a subclass says in `frame_logits` what a frame goes through.

    Attributes:
        num_segments: frames of a clip, T.
        model_config: what `create_model` made it of, for checkpoints, in plain containers; None without that.
    """

    num_segments: int
    model_config: dict[str, Any] | None = None

    @property
    def in_channels(self) -> int:
        """Channels of a frame."""
        raise NotImplementedError

    def frame_logits(self, x: Any) -> Any:
        """Checked frames (N·T, 3, H, W) → their logits (N·T, classes)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Logits of clips.

        Args:
            x: normalised frames, (N, T, 3, H, W) or (N·T, 3, H, W), frames of a clip in a row. channels_last frames
                stay so throughout.

        Returns:
            (N, classes): the mean of the T frames' logits.

        Raises:
            TypeError: `x` is no dense tensor of a floating-point type, or, without autocast, not of the weights'.
            ValueError: `x` is of another rank, empty, on another device, has another number of channels or of frames.
        """
        x = checked_frames(x, self.num_segments, self.in_channels)
        if not is_traced(x):
            check_device(x, self)
            check_dtype(x, self)
        logits = self.frame_logits(x.flatten(0, -4))  # (N·T, 3, H, W), of either rank
        return logits.unflatten(0, (-1, self.num_segments)).mean(1)

    def extra_repr(self) -> str:
        """The clip length, which no submodule shows."""
        return f"num_segments={self.num_segments}"


class C2D(VideoNetwork):
    """A 2D ResNet on each frame of a clip, without temporal modelling; logits are averaged over the frames.

    The submodules of `resnet` are taken over, not copied, under their own names: the keys of the state dict are
    torchvision's, and `resnet` and the new network share their weights.

    Args:
        resnet: any torchvision-style ResNet (`conv1, bn1, relu, maxpool, layer1 … layer4, avgpool, fc`).
        num_segments: frames of a clip, T.
        num_classes: classes of a new `fc`, weight ~ N(0, 0.001²) and bias zero; None keeps the `fc` there is.
        dropout: probability of dropping a feature before `fc`.

    Raises:
        TypeError: `resnet` lacks one of the submodules above or has hooks on itself, its `fc` is not a Linear,
            `num_segments` or `num_classes` is no int, or `dropout` no number.
        ValueError: `num_segments` or `num_classes` is below 1, `dropout` is outside [0, 1], or `resnet` has modules for
            another T.
    """

    conv1: nn.Conv2d
    bn1: nn.Module
    relu: nn.Module
    maxpool: nn.Module
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module
    avgpool: nn.Module
    fc: nn.Linear

    def __init__(
        self, resnet: nn.Module, num_segments: int, *, num_classes: int | None = None, dropout: float = 0.5
    ) -> None:
        super().__init__()
        check_module("resnet", resnet)
        children = dict(resnet.named_children())
        if missing := [name for name in CHILDREN if name not in children]:
            raise TypeError(f"resnet: got {type(resnet).__name__} without {missing}, expected torchvision's ResNet")
        if is_hooked(resnet):
            raise TypeError(
                f"resnet: got a {type(resnet).__name__} with hooks on itself, "
                f"which {type(self).__name__} would not run; "
                "expected none, or Framewise in its place"
            )
        if not isinstance(children["fc"], nn.Linear):
            raise TypeError(f"resnet.fc: got {type(children['fc']).__name__}, expected a Linear")
        check_count("num_segments", num_segments)
        check_clip_length(resnet, num_segments)
        check_probability("dropout", dropout)
        for name in CHILDREN:
            self.add_module(name, children[name])
        self.num_segments = num_segments
        self.dropout = nn.Dropout(dropout).train(resnet.training)
        self.training = resnet.training
        if num_classes is not None:
            self.fc = new_head(self.fc, num_classes)

    @property
    def in_channels(self) -> int:
        """Channels of a frame."""
        return self.conv1.in_channels

    def frame_logits(self, x: Any) -> Any:
        """Checked frames (N·T, 3, H, W) → their logits (N·T, classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.dropout(self.avgpool(x).flatten(1)))


class TANet(C2D):
    """C2D with TA-Blocks in the chosen stages (paper §3.4).

    Args:
        resnet: any ResNet of torchvision's `BasicBlock`s or `Bottleneck`s, ResNeXt and wide ones included. Its
            layers are taken over as in `C2D`; its own blocks stay plain.
        num_segments: frames of a clip, T. The global branches' weights depend on it.
        num_classes, dropout: as for `C2D`.
        stages, kernel_size, alpha, beta, local_kernel_size, impl: as for `insert_tam`.

    Raises:
        TypeError, ValueError: as `C2D` and `insert_tam`.
    """

    def __init__(
        self,
        resnet: nn.Module,
        num_segments: int,
        *,
        num_classes: int | None = None,
        dropout: float = 0.5,
        stages: Sequence[str] = tuple(STAGES),
        kernel_size: int = 3,
        alpha: int = 2,
        beta: int = 4,
        local_kernel_size: int = 3,
        impl: str | None = None,
    ) -> None:
        super().__init__(resnet, num_segments, num_classes=num_classes, dropout=dropout)
        insert_tam(
            self,
            num_segments,
            stages=stages,
            kernel_size=kernel_size,
            alpha=alpha,
            beta=beta,
            local_kernel_size=local_kernel_size,
            impl=impl,
        )


@torch.fx.wrap
def checked_frames(x: Tensor, num_segments: int, channels: int) -> Tensor:
    """`x`; raises TypeError or ValueError unless it is clips of so many frames and channels.

    A graph of torch.fx calls this with the values, as a network does that is not traced.
    """
    expected = f"expected (N, {num_segments}, {channels}, H, W) or (N·{num_segments}, {channels}, H, W)"
    check_dense("x", x)
    if x.dtype not in FLOATS:
        raise TypeError(f"x: got dtype {x.dtype}, expected normalised frames in {', '.join(map(str, FLOATS))}")
    if x.ndim not in (4, 5):
        raise ValueError(f"x: got {x.ndim} dimensions in shape {tuple(x.shape)}, {expected}")
    if fails(x.shape[-3] == channels):
        raise ValueError(f"x: got {x.shape[-3]} channels in shape {tuple(x.shape)}, {expected}")
    if x.ndim == 5 and fails(x.shape[1] == num_segments):
        raise ValueError(f"x: got {x.shape[1]} frames in shape {tuple(x.shape)}, {expected}")
    if x.ndim == 4 and fails(x.shape[0] % num_segments == 0):
        raise ValueError(f"x: got {x.shape[0]} frames in shape {tuple(x.shape)}, {expected}")
    if any(fails(size > 0) for size in x.shape):
        raise ValueError(f"x: got empty shape {tuple(x.shape)}, {expected}")
    check_addressable(x)
    return x


def check_probability(name: str, value: float) -> None:
    """Raises TypeError or ValueError unless `value` is a probability."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a float")
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: got {value}, expected a probability from 0 to 1")


def new_head(fc: nn.Linear, num_classes: int) -> nn.Linear:
    """A head in place of `fc`: weight ~ N(0, 0.001²), bias zero."""
    check_count("num_classes", num_classes)
    check_parameter("num_classes", num_classes, num_classes * fc.in_features)
    head = nn.Linear(fc.in_features, num_classes, device=fc.weight.device, dtype=fc.weight.dtype)
    with torch.no_grad():
        nn.init.normal_(head.weight, std=0.001)
        nn.init.zeros_(head.bias)
    return head.train(fc.training)
