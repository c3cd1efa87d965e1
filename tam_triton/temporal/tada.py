"""TAdaConv's calibration (beyond the paper; arXiv 2110.06178)."""

from typing import Any

from torch import Tensor, nn

from tam_triton.checks import check_parameter, check_taps
from tam_triton.temporal import tracing
from tam_triton.temporal.base import TemporalModule, reduced


class TAda(TemporalModule):
    """Calibration of the 2D convolution that comes next: `W_t = a_t · W`, with a_t a factor for each input channel.

    A convolution is linear in its input channels, so calibrating its weight frame by frame (section 3.1 of arXiv
    2110.06178) is scaling its input: an excitation and an aggregation of one tap before one shared convolution, in
    place of a convolution with N·T groups. Put before `conv2` of a bottleneck, it makes that layer TAda2D's.

    `a_t = 1 + b(ReLU(BN(a(X̂ + g(mean over frames of X̂)))))` (section 3.2), `a` and `b` convolutions over frames. `b`
    starts at 0: the 2D network's function stays. Names are those of the public code's routing function
    (alibaba-mmai-research/TAdaConv), whose weights have two dimensions of 1 more.

    Args:
        channels: C of the feature maps.
        num_segments: T, the frames of a clip.
        reduction: r of channels between the two convolutions.
        kernel_size: taps of both; odd.
        impl: "triton", "torch", or None to pick by device.

    Raises:
        TypeError: a number is no int, or `impl` no string.
        ValueError: a number is below 1, channels are fewer than `reduction`, the taps are even, `impl` is unknown, or a
            weight would not fit into memory's addresses.
    """

    def __init__(
        self, channels: int, num_segments: int, *, reduction: int = 4, kernel_size: int = 3, impl: str | None = None
    ) -> None:
        super().__init__(channels, num_segments, impl=impl)
        width = reduced(channels, reduction)
        check_taps("kernel_size", kernel_size)
        check_parameter("channels", channels, channels * max(channels, width * kernel_size))
        self.kernel_size = kernel_size
        self.g = nn.Conv1d(channels, channels, 1)
        self.a = nn.Conv1d(channels, width, kernel_size, padding=kernel_size // 2)
        self.bn = nn.BatchNorm1d(width)
        self.b = nn.Conv1d(width, channels, kernel_size, padding=kernel_size // 2, bias=False)
        nn.init.zeros_(self.b.weight)

    def compute(self, x: Any) -> Any:
        """x with each frame's channels scaled."""
        return tracing.squeeze_and_aggregate(x, self.branches, self.num_segments, 1, impl=self.impl)

    def branches(self, squeezed: Tensor) -> tuple[Tensor, Tensor]:
        """X̂ `(N, C, T)` → factors a `(N, C, T)`, and a kernel of one tap."""
        context = self.g(squeezed.mean(-1, keepdim=True))
        factors = 1 + self.b(self.bn(self.a(squeezed + context)).relu())
        return factors, squeezed.new_ones(squeezed.shape[0], self.channels, 1)

    def extra_repr(self) -> str:
        """The configuration, in `print(model)`."""
        return f"{super().extra_repr()}, kernel_size={self.kernel_size}"
