"""The parts of SlowFast networks: a pathway, its lateral connections, and convolutions over the frames of a clip."""

from collections.abc import Sequence

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 — its usual name
from torchvision.models.resnet import Bottleneck

from tam_triton import layout
from tam_triton.nets.ta_block import TABlock
from tam_triton.temporal import TAM
from tam_triton.temporal.conv import convolve_frames

STAGES = ("layer1", "layer2", "layer3", "layer4")

torch.fx.wrap("convolve_frames")
torch.fx.wrap("convolve_clips")


class Pathway(nn.Module):
    """A ResNet of bottlenecks on frames in the batch, without its head (paper table 1).

    Args:
        width: channels of the stem.
        blocks: of each stage.
        num_segments: the pathway's T.
        taps: frames that the stem's convolution spans, and the first one of each stage's blocks.
        lateral: channels that come in beside the pathway's own ahead of res2, in units of its growth.
        tam: TAM where `taps` are more than 1.
        impl: the implementation of the TAMs.
    """

    def __init__(
        self,
        width: int,
        blocks: Sequence[int],
        num_segments: int,
        taps: Sequence[int],
        lateral: int,
        tam: bool,
        impl: str | None,
    ) -> None:
        super().__init__()
        self.num_segments = num_segments
        flat = taps[0] == 1
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False) if flat else StemConv(3, width, taps[0], num_segments)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels, lateral_channels = width, lateral
        for i, stage in enumerate(STAGES):
            planes = width * 2**i
            layers = []
            for j in range(blocks[i]):
                stride = 2 if i > 0 and j == 0 else 1
                arriving = channels + lateral_channels if j == 0 else planes * Bottleneck.expansion
                layers.append(_block(arriving, planes, stride, taps[i + 1], num_segments, tam, impl))
            self.add_module(stage, nn.Sequential(*layers))
            channels, lateral_channels = planes * Bottleneck.expansion, lateral * 2**i * Bottleneck.expansion

    def stem(self, x: Tensor) -> Tensor:
        """(N·T, 3, H, W) → (N·T, width, H/4, W/4)."""
        return self.maxpool(self.relu(self.bn1(self.conv1(x))))

    def average(self, x: Tensor) -> Tensor:
        """(N·T, C, H, W) → (N, C): the mean over space and time."""
        return x.mean((2, 3)).unflatten(0, (-1, self.num_segments)).mean(1)


class Lateral(nn.Module):
    """Fast features for the slow pathway: K×1×1 with stride α in time, 2·βC channels (paper section 3.3, "T-conv").

    Args:
        channels: βC, of the fast pathway.
        taps: K; odd.
        num_segments: T of the fast pathway.
        alpha: the stride in time.
        norm: whether BatchNorm and ReLU follow.
    """

    def __init__(self, channels: int, taps: int, num_segments: int, alpha: int, norm: bool) -> None:
        super().__init__()
        self.conv = TimeConv(channels, 2 * channels, taps, num_segments, alpha)
        self.bn = nn.BatchNorm2d(2 * channels) if norm else None
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N·T, C, H, W) → (N·T/α, 2·C, H, W)."""
        x = self.conv(x)
        return x if self.bn is None else self.relu(self.bn(x))


class TimeConv(nn.Conv2d):
    """A K×1×1 convolution without bias on frames in the batch, with zeros beyond each end of a clip.

    It is a Conv2d over time and pixels, `weight` `(C_out, C_in, K, 1)`. (A weight of five dimensions cannot be turned
    into channels_last together with the others.)

    Args:
        in_channels, out_channels: as for Conv2d.
        taps: K, frames that it spans; odd.
        num_segments: T, the frames of a clip.
        stride: in time; a divisor of T.
    """

    def __init__(self, in_channels: int, out_channels: int, taps: int, num_segments: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, (taps, 1), (stride, 1), (taps // 2, 0), bias=False)
        self.num_segments = num_segments

    def forward(self, x: Tensor) -> Tensor:
        """(N·T, C, H, W) → (N·T/stride, C_out, H, W), in x's layout."""
        return convolve_frames(x, self.weight, None, self.num_segments, stride=self.stride[0])


class StemConv(nn.Conv2d):
    """The fast pathway's K×7×7 stem on frames in the batch, stride 2 in space, with zeros beyond each end of a clip.

    `weight` is a Conv3d's with its taps in time beside the channels: `(C_out, C_in·K, 7, 7)`.

    Args:
        in_channels, out_channels: as for Conv2d.
        taps: K, frames that it spans; odd.
        num_segments: T, the frames of a clip.
    """

    def __init__(self, in_channels: int, out_channels: int, taps: int, num_segments: int) -> None:
        super().__init__(in_channels * taps, out_channels, 7, 2, 3, bias=False)
        self.taps, self.num_segments = taps, num_segments

    def weight_3d(self) -> Tensor:
        """The weight as Conv3d has it, `(C_out, C_in, K, 7, 7)`: a view."""
        return self.weight.unflatten(1, (-1, self.taps))

    def forward(self, x: Tensor) -> Tensor:
        """(N·T, C, H, W) → (N·T, C_out, H/2, W/2), in x's layout."""
        return convolve_clips(x, self.weight_3d(), self.num_segments)


def convolve_clips(x: Tensor, weight: Tensor, num_segments: int) -> Tensor:
    """Frames `(N·T, C, H, W)` by a weight `(C_out, C, K, 7, 7)` with stride 2 in space, in x's layout."""
    channels_last = layout.is_channels_last(x)
    clips = layout.to_layout(x, channels_last).unflatten(0, (-1, num_segments)).transpose(1, 2)  # (N, C, T, H, W)
    y = F.conv3d(clips, weight, None, (1, 2, 2), (weight.shape[2] // 2, 3, 3))
    y = y.contiguous(memory_format=torch.channels_last_3d if channels_last else torch.contiguous_format)
    return layout.to_layout(y.transpose(1, 2).flatten(0, 1), channels_last)


def _block(
    in_channels: int, planes: int, stride: int, taps: int, num_segments: int, tam: bool, impl: str | None
) -> Bottleneck | TABlock:
    out_channels = planes * Bottleneck.expansion
    downsample = None
    if stride > 1 or in_channels != out_channels:
        shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out_channels))
    block = Bottleneck(in_channels, planes, stride, downsample)
    if taps == 1:
        return block
    if tam:
        return TABlock(block, TAM(planes, num_segments, impl=impl))
    block.conv1 = TimeConv(in_channels, planes, taps, num_segments)
    return block
