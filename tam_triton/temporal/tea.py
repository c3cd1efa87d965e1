"""TEA's multiple temporal aggregation (beyond the paper; arXiv 2004.01398)."""

from typing import Any

import torch
from torch import nn

from tam_triton.checks import check_count, check_parameter
from tam_triton.temporal.base import TemporalModule
from tam_triton.temporal.tdn import ShiftModule


class MTA(TemporalModule):
    """Channels in groups, each modeled over time and space after the one before it is added (section 3.2, "MTA").

    `Yᵢ = ReLU(BN(conv3×3(conv3×1×1(Xᵢ + Yᵢ₋₁))))`, with depthwise temporal convolutions that start as the identity. The
    order is the public code's (Phoenix1327/tea-action-recognition, ops/tea50_8f.py), and so are the names `shifts`,
    `convs`, `bns`: the last group has no spatial convolution, nothing is added to it, and it starts as a shift of its
    halves. There the temporal weight is `(2·(C/groups//2), 1, 3)`: the channels of a group are even in number.

    Args:
        channels: C of the feature maps.
        num_segments: T, the frames of a clip; at least 2.
        groups: of channels, at least 2.
        impl: "triton", "torch", or None to pick by device.

    Raises:
        TypeError: a number is no int, or `impl` no string.
        ValueError: T or `groups` is below 2, channels are no multiple of 2·groups, `impl` is unknown, or a weight would
            not fit into memory's addresses.
    """

    def __init__(self, channels: int, num_segments: int, *, groups: int = 4, impl: str | None = None) -> None:
        super().__init__(channels, num_segments, impl=impl, least_segments=2)
        check_count("groups", groups)
        if groups < 2:
            raise ValueError(f"groups: got {groups}, expected at least 2")
        if channels % (2 * groups):
            raise ValueError(f"channels: got {channels}, expected a multiple of 2·groups = {2 * groups}")
        self.groups, width = groups, channels // groups
        check_parameter("channels", channels, 9 * width * width)
        self.shifts = nn.ModuleList(
            ShiftModule(width, num_segments, initial=initial, shift_div=2, impl=impl)
            for initial in ("identity",) * (groups - 1) + ("shift",)
        )
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(groups - 1))
        self.bns = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(groups - 1))

    def compute(self, x: Any) -> Any:
        """The chain."""
        parts = x.chunk(self.groups, 1)
        results: list[Any] = []
        for i, (conv, bn) in enumerate(zip(self.convs, self.bns, strict=True)):
            joined = parts[i] + results[-1] if results else parts[i]
            results.append(bn(conv(self.shifts[i](joined))).relu())
        return torch.cat([*results, self.shifts[-1](parts[self.groups - 1])], 1)

    def extra_repr(self) -> str:
        """The configuration, in `print(model)`."""
        return f"{super().extra_repr()}, groups={self.groups}"
