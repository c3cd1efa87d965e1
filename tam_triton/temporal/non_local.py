"""The Non-local block, which attends from every position of a clip to all of them (paper section 4.3)."""

from typing import Any

import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 — its usual name

from tam_triton import layout
from tam_triton.checks import check_parameter
from tam_triton.temporal.base import TemporalModule, reduced

torch.fx.wrap("attend")
torch.fx.wrap("dense")
torch.fx.wrap("pool_pixels")


class NonLocal(TemporalModule):
    """Non-local block, embedded Gaussian (arXiv 1711.07971, equation 6 with equations 2 and 4; figure 2).

    `y = softmax(θ(x)·φ(x)ᵀ)·g(x)` over all T·H·W positions, with φ(x) and g(x) max-pooled 1×2×2, then
    `x + BN(out(y))`. The scores are not divided by √(C/2): equation 4 has no such factor. The convolutions have biases
    and start at N(0, 0.01), as the authors' code has it; BN's weight starts at 0, so the block starts as the identity.

    Args:
        channels: C of the feature maps.
        num_segments: T, the frames of a clip.
        reduction: of the channels that positions are compared in.

    Raises:
        TypeError: a number is no int.
        ValueError: a number is below 1, channels are fewer than `reduction`, or a weight would not fit into memory's
            addresses.
    """

    def __init__(self, channels: int, num_segments: int, reduction: int = 2) -> None:
        super().__init__(channels, num_segments)
        inner = reduced(channels, reduction)
        check_parameter("channels", channels, channels * inner)
        self.theta = nn.Conv2d(channels, inner, 1)
        self.phi = nn.Conv2d(channels, inner, 1)
        self.g = nn.Conv2d(channels, inner, 1)
        self.out = nn.Conv2d(inner, channels, 1)
        self.bn = nn.BatchNorm2d(channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Convolutions at N(0, 0.01) without bias; the whole as the identity."""
        for conv in (self.theta, self.phi, self.g, self.out):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        self.bn.reset_parameters()
        nn.init.zeros_(self.bn.weight)

    def compute(self, x: Any) -> Any:
        """The block."""
        x = dense(x)
        # Pooled after the convolutions, as published; a 1×1 convolution of a pooled map would not be the same.
        attended = attend(self.theta(x), pool_pixels(self.phi(x)), pool_pixels(self.g(x)), self.num_segments)
        return x + self.bn(self.out(attended))


def dense(x: Tensor) -> Tensor:
    """`x` itself, or a copy in one of the two layouts where it is a slice of something."""
    return layout.to_layout(x, layout.is_channels_last(x))


def pool_pixels(x: Tensor) -> Tensor:
    """1×2×2 max pooling; not along a side of one pixel, of which nothing would be left."""
    return F.max_pool2d(x, [min(2, side) for side in x.shape[2:]])


def attend(queries: Tensor, keys: Tensor, values: Tensor, num_segments: int) -> Tensor:
    """softmax(QKᵀ)·V over a clip's positions, of three `(N·T, C', ·, ·)`; in the queries' shape and layout."""

    def positions(frames: Tensor) -> Tensor:  # (N, 1, T·P, C'): a view of a channels_last map
        clips = frames.flatten(2).transpose(1, 2).unflatten(0, (frames.shape[0] // num_segments, num_segments))
        return clips.flatten(1, 2)[:, None]

    y = F.scaled_dot_product_attention(positions(queries), positions(keys), positions(values), scale=1.0)
    rows = y[:, 0].unflatten(1, (num_segments, queries.shape[2] * queries.shape[3])).flatten(0, 1)
    return layout.to_layout(rows.transpose(1, 2).unflatten(2, queries.shape[2:]), layout.is_channels_last(queries))
