"""TDN's shift (beyond the paper; arXiv 2012.10071)."""

from typing import Any

from tam_triton.temporal.base import TemporalModule
from tam_triton.temporal.filters import ChannelwiseTemporalConv


class ShiftModule(TemporalModule):
    """The temporal convolution of TDN's blocks: depthwise 3×1×1, learned, started as TSM's shift.

    As `ShiftModule` of the public code (MCG-NJU/TDN, ops/base_module.py), whose name of the weight it keeps:
    `conv.weight (C, 1, 3)`.

    Args:
        channels: C of the feature maps.
        num_segments: T, the frames of a clip; at least 2.
        initial: as ChannelwiseTemporalConv's.
        shift_div: one part of the channels in so many starts shifted each way.
        impl: "triton", "torch", or None to pick by device.

    Raises:
        TypeError, ValueError: as ChannelwiseTemporalConv, and for T below 2.
    """

    def __init__(
        self,
        channels: int,
        num_segments: int,
        *,
        initial: str = "shift",
        shift_div: int = 8,
        impl: str | None = None,
    ) -> None:
        super().__init__(channels, num_segments, impl=impl, least_segments=2)
        self.conv = ChannelwiseTemporalConv(channels, num_segments, initial=initial, shift_div=shift_div, impl=impl)

    def compute(self, x: Any) -> Any:
        """The convolution."""
        return self.conv(x)
