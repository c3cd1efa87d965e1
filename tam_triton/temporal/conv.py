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
torch.fx.wrap("convolve_space_and_frames")


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
    """A convolution of a 2D network with K taps over frames: I3D's first of a block (arXiv 1705.07750, section 3).

    1×1 is made K×1×1 (paper section 4.3). In basic blocks 3×3 is made K×3×3 (*reading*; mmaction2's ResNet3d inflates
    both convolutions of such a block, this the first alone, as in bottlenecks).

    Every tap is the 2D weight over K, so a clip that stands still gives the 2D network's values, but at its ends,
    beyond which there are zeros. `weight` `(C_out, C_in / groups, K·kh, kw)`, tap after tap, and `bias` keep the names
    of the layer replaced.

    Args:
        conv: the layer, a square, padded with zeros by numbers if at all. It is left as it is.
        num_segments: T, the frames of a clip.
        kernel_size: K; odd.

    Raises:
        TypeError: `conv` is not torch's own Conv2d, as one that is parametrized is not, or a number is no int.
        ValueError: `conv` is no square or pads in another way, T is below 1, or the taps are even.
    """

    def __init__(self, conv: nn.Conv2d, num_segments: int, kernel_size: int = 3) -> None:
        if type(conv) is not nn.Conv2d:  # what a subclass or a parametrization does of its own would be lost
            raise TypeError(f"conv: got {type(conv).__name__}, expected torch's own Conv2d")
        if conv.kernel_size[0] != conv.kernel_size[1]:
            raise ValueError(f"conv: got kernel_size={conv.kernel_size}, expected a square")
        padding = (0, 0) if conv.kernel_size == (1, 1) and isinstance(conv.padding, str) else conv.padding
        if isinstance(padding, str) or conv.padding_mode != "zeros":
            raise ValueError(f"conv: got padding={conv.padding!r} of {conv.padding_mode}, expected numbers of zeros")
        super().__init__(conv.in_channels, num_segments)
        check_taps("kernel_size", kernel_size)
        self.out_channels, self.kernel_size = conv.out_channels, kernel_size
        self.spatial_size, self.stride, self.padding = conv.kernel_size, conv.stride, padding
        self.dilation, self.groups = conv.dilation, conv.groups
        weight = conv.weight.detach() / kernel_size
        self.weight = nn.Parameter(weight.repeat(1, 1, kernel_size, 1), conv.weight.requires_grad)
        bias = conv.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), bias.requires_grad)
        self.train(conv.training)

    def compute(self, x: Any) -> Any:
        """The convolution: `(N·T, C_in, H, W)` → `(N·T, C_out, H', W')`, of the size that the 2D one gives."""
        if self.spatial_size != (1, 1) or self.padding != (0, 0):
            return convolve_space_and_frames(
                x, self.weight, self.bias, self.num_segments, self.stride, self.padding, self.dilation, self.groups
            )
        if self.stride != (1, 1):
            x = x[:, :, :: self.stride[0], :: self.stride[1]]
        return convolve_frames(x, self.weight, self.bias, self.num_segments, self.groups)

    def extra_repr(self) -> str:
        """The configuration, in `print(model)`."""
        kernel_size = (self.kernel_size, *self.spatial_size)
        return (
            f"{super().extra_repr()}, out_channels={self.out_channels}, kernel_size={kernel_size}, "
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


def convolve_space_and_frames(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    num_segments: int,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """`(N·T, C_in, H, W)` → `(N·T, C_out, H', W')` in x's layout, by a weight `(C_out, C_in/groups, K·kh, kw)`.

    kh is kw: kernels of 2D networks are squares here. As a 3D convolution a channels_last map is convolved where it is.
    """
    channels_last = layout.is_channels_last(x)
    taps = weight.shape[2] // weight.shape[3]
    clips = layout.to_layout(x, channels_last).unflatten(0, (x.shape[0] // num_segments, num_segments))
    cube = weight.unflatten(2, (taps, weight.shape[3]))
    y = F.conv3d(clips.transpose(1, 2), cube, bias, (1, *stride), (taps // 2, *padding), (1, *dilation), groups)
    return layout.to_layout(y.transpose(1, 2).flatten(0, 1), channels_last)
