"""Filters over frames, channel by channel: aggregation by a kernel Θ `(C, K)` that all clips share."""

from typing import Any

import torch.fx
from torch import Tensor, nn

from tam_triton.checks import check_count, check_taps
from tam_triton.temporal import tracing
from tam_triton.temporal.base import TemporalModule

torch.fx.wrap("average")

INITIAL = ("identity", "shift", "random")


class Filter(TemporalModule):
    """Aggregation by a kernel that does not look at the clip: `Y[t] = Σ_k Θ[k]·X[t+k−K//2]` (equation 5 without V)."""

    kernel: Tensor
    """Θ `(C, K)`."""

    def compute(self, x: Any) -> Any:
        """The aggregation."""
        return tracing.aggregate(x, None, self.kernel, num_segments=self.num_segments, impl=self.impl)


class TemporalAvgPool(TemporalModule):
    """Average pooling K×1×1 that keeps the length, which C2D-Pool has in place of each TAM (paper section 4.3).

    A sum over K frames is divided by K also where some are beyond the clip's ends, and count as zeros: so torch's own
    pooling does unless it is told otherwise (*reading*; the paper does not say).

    Args:
        channels: C of the feature maps.
        num_segments: T, the frames of a clip.
        kernel_size: K; odd.
        impl: "triton", "torch", or None to pick by device.

    Raises:
        TypeError: a number is no int, or `impl` no string.
        ValueError: a number is below 1, the taps are even, or `impl` is unknown.
    """

    def __init__(self, channels: int, num_segments: int, kernel_size: int = 3, *, impl: str | None = None) -> None:
        super().__init__(channels, num_segments, impl=impl)
        check_taps("kernel_size", kernel_size)
        self.kernel_size = kernel_size

    def compute(self, x: Any) -> Any:
        """The average."""
        kernel = average(x, self.kernel_size)
        return tracing.aggregate(x, None, kernel, num_segments=self.num_segments, impl=self.impl)

    def extra_repr(self) -> str:
        """The configuration, in `print(model)`."""
        return f"{super().extra_repr()}, kernel_size={self.kernel_size}"


class TemporalShift(Filter):
    """TSM's shift of channels along time (arXiv 1811.08383, section 3; paper section 4.3).

    The first `channels // shift_div` channels take frame t+1, the next as many frame t−1, with zeros beyond the clip's
    ends; the rest stay. It has no parameters.

    Args:
        channels: C of the feature maps.
        num_segments: T, the frames of a clip; at least 2.
        shift_div: one part in so many is shifted each way.
        impl: "triton", "torch", or None to pick by device.

    Raises:
        TypeError: a number is no int, or `impl` no string.
        ValueError: T or `shift_div` is below 2, channels are fewer than `shift_div`, or `impl` is unknown.
    """

    def __init__(self, channels: int, num_segments: int, *, shift_div: int = 8, impl: str | None = None) -> None:
        super().__init__(channels, num_segments, impl=impl, least_segments=2)
        self.shift_div = shift_div
        self.register_buffer("kernel", shift_weight(channels, shift_div), persistent=False)

    def reset_parameters(self) -> None:
        """The kernel, which no checkpoint holds."""
        self.kernel.copy_(shift_weight(self.channels, self.shift_div))

    def extra_repr(self) -> str:
        """The configuration, in `print(model)`."""
        return f"{super().extra_repr()}, shift_div={self.shift_div}"


class ChannelwiseTemporalConv(Filter):
    """Depthwise temporal convolution K×1×1 without bias, learned; zeros stand beyond a clip's ends.

    TEINet's interaction module, TDN's and TEA's shifts are this (arXiv 1911.09435, 2012.10071, 2004.01398). `weight`
    is `(C, 1, K)`, as of torch's depthwise Conv1d.

    Args:
        channels: C of the feature maps.
        num_segments: T, the frames of a clip; at least 2 if `initial` is "shift".
        kernel_size: K; odd.
        initial: "identity", "shift" (TSM's; K = 3) or "random" (torch's own for a Conv1d).
        shift_div: of the shift: one part of the channels in so many each way.
        impl: "triton", "torch", or None to pick by device.

    Raises:
        TypeError: a number is no int, or `impl` no string.
        ValueError: a number is too small, the taps are even or not 3 for a shift, or `initial` or `impl` is unknown.
    """

    def __init__(
        self,
        channels: int,
        num_segments: int,
        kernel_size: int = 3,
        *,
        initial: str = "identity",
        shift_div: int = 8,
        impl: str | None = None,
    ) -> None:
        if initial not in INITIAL:
            raise ValueError(f"initial: got {initial!r}, expected one of {', '.join(INITIAL)}")
        super().__init__(channels, num_segments, impl=impl, least_segments=2 if initial == "shift" else 1)
        check_taps("kernel_size", kernel_size)
        if initial == "shift" and kernel_size != 3:
            raise ValueError(f'kernel_size: got {kernel_size}, expected 3 for initial="shift"')
        self.kernel_size, self.initial, self.shift_div = kernel_size, initial, shift_div
        # On the default device, as torch's layers are.
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel_size, device=None))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As `initial` says."""
        with torch.no_grad():
            if self.initial == "shift":
                self.weight.copy_(shift_weight(self.channels, self.shift_div)[:, None])
            elif self.initial == "identity":
                self.weight.zero_()[..., self.kernel_size // 2] = 1
            else:
                nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    @property
    def kernel(self) -> Tensor:  # type: ignore[override]
        """Θ `(C, K)`."""
        return self.weight.squeeze(1)

    def extra_repr(self) -> str:
        """The configuration, in `print(model)`."""
        return f"{super().extra_repr()}, kernel_size={self.kernel_size}, initial={self.initial!r}"


def average(x: Tensor, kernel_size: int) -> Tensor:
    """Θ `(C, K)` of a mean over K frames; in single precision beside half, where 1/K would be off by a rounding."""
    return x.new_full((x.shape[1], kernel_size), 1 / kernel_size, dtype=torch.promote_types(x.dtype, torch.float32))


def shift_weight(channels: int, shift_div: int) -> Tensor:
    """Θ `(C, 3)` of TSM's shift: the first part from frame t+1, the second from frame t−1, the rest from frame t.

    Raises:
        TypeError: `shift_div` is no int.
        ValueError: `shift_div` is below 2, or channels are fewer.
    """
    check_count("shift_div", shift_div)
    if shift_div < 2:
        raise ValueError(f"shift_div: got {shift_div}, expected at least 2: a part of the channels goes each way")
    if channels < shift_div:
        raise ValueError(f"channels: got {channels}, expected at least shift_div = {shift_div}")
    part = channels // shift_div
    weight = torch.zeros(channels, 3, device=None)  # on the default device, as torch's layers are
    weight[:part, 2] = 1
    weight[part : 2 * part, 0] = 1
    weight[2 * part :, 1] = 1
    return weight
