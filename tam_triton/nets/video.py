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
    fails,
)
from tam_triton.nets.order import running_order
from tam_triton.nets.places import STAGES
from tam_triton.nets.protocol import TimmProtocol, new_head, pool_size
from tam_triton.nets.resnet import insert_tam
from tam_triton.temporal.folding import is_hooked
from tam_triton.temporal.tracing import is_traced

CHILDREN = ("conv1", "bn1", "relu", "maxpool", *STAGES.values(), "avgpool", "fc")
"""Of a ResNet as torchvision has it."""


class VideoNetwork(TimmProtocol):
    """What networks on frames have in common; a subclass says what a frame goes through: its trunk and its head."""

    def frame_maps(self, x: Any) -> Any:
        """Checked frames (N·T, 3, H, W) → their last feature maps (N·T, C, H', W')."""
        raise NotImplementedError

    def frame_head(self, x: Any, pre_logits: bool = False) -> Any:
        """The last feature maps → the frames' logits (N·T, classes), or what the last layer is given, (N·T, D)."""
        raise NotImplementedError

    def frame_logits(self, x: Any) -> Any:
        """Checked frames (N·T, 3, H, W) → their logits (N·T, classes)."""
        return self.frame_head(self.frame_maps(x))

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
        return self._over_frames(self.frame_logits(self._frames(x)))

    def forward_features(self, x: Tensor) -> Any:
        """Clips, as for `forward`, to the last feature maps of their frames, (N·T, C, H', W').

        Raises:
            TypeError, ValueError: as `forward`.
            NotImplementedError: it is not known where the trunk of the backbone ends.
        """
        return self.frame_maps(self._frames(x))

    def forward_head(self, x: Any, pre_logits: bool = False) -> Any:
        """The last feature maps, (N·T, C, H', W'), to logits (N, classes); `pre_logits`: to features (N, D).

        Both are means over the frames of a clip.

        Raises:
            ValueError: the frames are no clips.
            NotImplementedError: as `forward_features`.
        """
        if not is_traced(x) and fails(x.shape[0] % self.num_segments == 0):
            raise ValueError(f"x: got maps of {x.shape[0]} frames, expected clips of {self.num_segments}")
        return self._over_frames(self.frame_head(x, pre_logits))

    def _frames(self, x: Tensor) -> Tensor:
        """Clips as frames (N·T, 3, H, W), checked."""
        x = checked_frames(x, self.num_segments, self.in_channels)
        if not is_traced(x):
            check_device(x, self)
            check_dtype(x, self)
        return x.flatten(0, -4)  # of either rank

    def _over_frames(self, x: Any) -> Any:
        return x.unflatten(0, (-1, self.num_segments)).mean(1)

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
        self.num_features = self.head_hidden_size = self.fc.in_features
        if num_classes is not None:
            self.fc = new_head(self.fc.in_features, num_classes, self.fc.weight).train(self.fc.training)

    @property
    def in_channels(self) -> int:
        """Channels of a frame."""
        return self.conv1.in_channels

    def frame_maps(self, x: Any) -> Any:
        """Checked frames (N·T, 3, H, W) → their last feature maps (N·T, C, H/32, W/32)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def frame_head(self, x: Any, pre_logits: bool = False) -> Any:
        """The last feature maps → the frames' logits (N·T, classes), or what `fc` is given, (N·T, C)."""
        x = self.dropout(self.avgpool(x).flatten(1))
        return x if pre_logits else self.fc(x)

    def _order(self) -> list[str]:
        return running_order(self, last="layer4")

    def _config(self) -> dict[str, Any]:
        return {**super()._config(), "pool_size": pool_size(self.feature_info)}


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
