"""Convolutions over frames, dense in their channels: C2D-TConv's and I3D's (paper section 4.3).

Weights are those of a 2D convolution over (T, P), `(C_out, C_in, K, 1)`: with five dimensions torch would refuse to
move a network to channels_last. A channels_last feature map is convolved where it lies: seen as `(N, C, T, P)` it is
channels_last again, and so is the result. A contiguous one is not, and a convolution makes the copy that it needs.
"""

from typing import Any

import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 — its usual name

from tam_triton import layout
from tam_triton.checks import check_parameter, check_taps
from tam_triton.temporal.base import TemporalModule

torch.fx.wrap("convolve_frames")


class TemporalConv(TemporalModule):
    """Dense temporal convolution K×1×1, C → C, which C2D-TConv has in place of each TAM (paper section 4.3).

    Zeros stand beyond a clip's ends. The weight `(C, C, K, 1)` starts as torch's Conv3d does (*reading*: the paper
    names no other), so the 2D network's function is lost.

    Args:
        channels: C of the feature maps.
        num_segments: T, the frames of a clip.
        kernel_size: K, the frames that a tap is for; odd.

    Raises:
        TypeError: a number is no int.
        ValueError: a number is below 1, the taps are even, or the weight would not fit into memory's addresses.
    """

    def __init__(self, channels: int, num_segments: int, kernel_size: int = 3) -> None:
        super().__init__(channels, num_segments)
        check_taps("kernel_size", kernel_size)
        check_parameter("channels", channels, channels * channels * kernel_size)
        self.kernel_size = kernel_size
        # On the default device, as torch's layers are.
        self.weight = nn.Parameter(torch.empty(channels, channels, kernel_size, 1, device=None))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The ordinary initialization of torch's convolutions."""
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def compute(self, x: Any) -> Any:
        """The convolution."""
        return convolve_frames(x, self.weight, None, self.num_segments)

    def extra_repr(self) -> str:
        """The configuration, in `print(model)`."""
        return f"{super().extra_repr()}, kernel_size={self.kernel_size}"


class InflatedConv(TemporalModule):
    """A 1×1 convolution of a 2D network made K×1×1: I3D's first of a block (paper section 4.3; arXiv 1705.07750, 3).

    Every tap is the 2D weight over K, so a clip that stands still gives the 2D network's values, but at its ends,
    beyond which there are zeros. `weight` `(C_out, C_in, K, 1)` and `bias` keep the names of the layer replaced.

    Args:
        conv: the layer: 1×1, without padding. It is left as it is.
        num_segments: T, the frames of a clip.
        kernel_size: K; odd.

    Raises:
        TypeError: `conv` is no Conv2d, or a number no int.
        ValueError: `conv` is not 1×1 or pads, T is below 1, or the taps are even.
    """

    def __init__(self, conv: nn.Conv2d, num_segments: int, kernel_size: int = 3) -> None:
        if not isinstance(conv, nn.Conv2d):
            raise TypeError(f"conv: got {type(conv).__name__}, expected a Conv2d")
        if conv.kernel_size != (1, 1):
            raise ValueError(f"conv: got kernel_size={conv.kernel_size}, expected (1, 1)")
        if conv.padding not in ((0, 0), "valid", "same"):
            raise ValueError(f"conv: got padding={conv.padding}, expected none")
        super().__init__(conv.in_channels, num_segments)
        check_taps("kernel_size", kernel_size)
        self.out_channels, self.kernel_size = conv.out_channels, kernel_size
        self.stride, self.groups = conv.stride, conv.groups
        weight = conv.weight.detach() / kernel_size
        self.weight = nn.Parameter(weight.repeat(1, 1, kernel_size, 1), conv.weight.requires_grad)
        bias = conv.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), bias.requires_grad)
        self.train(conv.training)

    def compute(self, x: Any) -> Any:
        """The convolution: `(N·T, C_in, H, W)` → `(N·T, C_out, H/stride, W/stride)`."""
        if self.stride != (1, 1):
            x = x[:, :, :: self.stride[0], :: self.stride[1]]
        return convolve_frames(x, self.weight, self.bias, self.num_segments, self.groups)

    def extra_repr(self) -> str:
        """The configuration, in `print(model)`."""
        return (
            f"{super().extra_repr()}, out_channels={self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, groups={self.groups}, bias={self.bias is not None}"
        )


def convolve_frames(
    x: Tensor, weight: Tensor, bias: Tensor | None, num_segments: int, groups: int = 1, stride: int = 1
) -> Tensor:
    """`(N·T, C_in, H, W)` → `(N·T/stride, C_out, H, W)` in x's layout, by a weight `(C_out, C_in/groups, K, 1)`."""
    channels_last = layout.is_channels_last(x)
    clips = layout.to_layout(x, channels_last).unflatten(0, (x.shape[0] // num_segments, num_segments))
    padding = (weight.shape[2] // 2, 0)
    y = F.conv2d(clips.transpose(1, 2).flatten(3), weight, bias, (stride, 1), padding, groups=groups)
    frames = y.unflatten(3, x.shape[2:]).transpose(1, 2).flatten(0, 1)  # (N, C_out, T, P) → (N·T, C_out, H, W)
    return layout.to_layout(frames, channels_last)
