"""What the modules on frames `(N·T, C, H, W)` have in common: a configuration, checks, and a place in a graph."""

from typing import Any

from torch import Tensor, nn

from tam_triton.checks import check_count, check_device, check_dtype, check_features, check_impl, check_segments
from tam_triton.temporal import tracing


class TemporalModule(nn.Module):
    """A module that keeps the shape, dtype and layout of its frames; a subclass says in `compute` what it computes.

    Args:
        channels: C of the feature maps.
        num_segments: T, the frames of a clip.
        impl: of the operators it uses: "triton", "torch", or None to pick by device.
        least_segments: the fewest frames that it can do anything with.

    Raises:
        TypeError: a number is no int, or `impl` no string.
        ValueError: a number is too small, or `impl` is unknown.
    """

    def __init__(self, channels: int, num_segments: int, *, impl: str | None = None, least_segments: int = 1) -> None:
        super().__init__()
        check_count("channels", channels)
        check_count("num_segments", num_segments)
        check_impl(impl)
        if num_segments < least_segments:
            raise ValueError(
                f"num_segments: got {num_segments}, expected at least {least_segments}: "
                f"{type(self).__name__} joins a frame with its neighbors"
            )
        self.channels, self.num_segments, self.impl = channels, num_segments, impl

    def forward(self, x: Tensor) -> Tensor:
        """`(N·T, C, H, W)` → the same shape, dtype and layout.

        Raises:
            ValueError: wrong rank, channels or device, or T does not divide the batch.
            TypeError: not a float tensor, or, without autocast, not of the parameters' dtype.
        """
        if tracing.is_traced(x):
            return tracing.node(self, x, self.compute)
        self._check(x)
        check_segments(x, self.num_segments)
        check_dtype(x, self)
        return self.compute(x)

    def compute(self, x: Any) -> Any:
        """The result for a feature map that has been checked."""
        raise NotImplementedError

    def _check(self, x: Tensor) -> None:
        check_features(x)
        if x.shape[1] != self.channels:
            raise ValueError(f"x: got {x.shape[1]} channels in shape {tuple(x.shape)}, expected {self.channels}")
        check_device(x, self)

    def extra_repr(self) -> str:
        """The configuration, in `print(model)`."""
        return f"channels={self.channels}, num_segments={self.num_segments}"


def reduced(channels: int, reduction: int) -> int:
    """C/r, the width of a bottleneck; raises TypeError or ValueError unless it is at least 1."""
    check_count("reduction", reduction)
    check_count("channels", channels)
    if channels < reduction:
        raise ValueError(f"channels: got {channels}, expected at least reduction = {reduction}")
    return channels // reduction
