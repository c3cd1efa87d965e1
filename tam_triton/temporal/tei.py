"""TEINet's module (paper section 4.3; arXiv 1911.09435)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 — its usual name

from tam_triton.checks import check_parameter
from tam_triton.temporal import tracing
from tam_triton.temporal.base import TemporalModule, reduced
from tam_triton.temporal.filters import shift_weight


class TEI(TemporalModule):
    """Temporal enhancement and interaction: MEM, then TIM (arXiv 1911.09435, sections "MEM" and "TIM").

    Motion enhanced module: `V[t] = σ(expand(reduce(X̂[t]) − reduce_next(X̂[t+1])))` gates frame t; the last frame stays
    as it is. Temporal interaction module: a depthwise convolution over three frames of what is gated. Both are one
    excitation and aggregation, with a kernel Θ that all clips share. No biases.

    The interaction starts as TSM's shift: an eighth of the channels takes frame t+1, the next frame t−1.

    Args:
        channels: C of the feature maps.
        num_segments: T, the frames of a clip; at least 2.
        reduction: r of channels in MEM.
        shift_div: the interaction starts with one part in so many shifted each way.
        impl: "triton", "torch", or None to pick by device.

    Raises:
        TypeError: a number is no int, or `impl` no string.
        ValueError: T is below 2, another number below 1, channels are fewer than `reduction` or `shift_div`, `impl` is
            unknown, or a weight would not fit into memory's addresses.
    """

    def __init__(
        self, channels: int, num_segments: int, *, reduction: int = 8, shift_div: int = 8, impl: str | None = None
    ) -> None:
        super().__init__(channels, num_segments, impl=impl, least_segments=2)
        width = reduced(channels, reduction)
        check_parameter("channels", channels, channels * width)
        self.shift_div = shift_div
        self.reduce = nn.Conv1d(channels, width, 1, bias=False)
        self.reduce_next = nn.Conv1d(channels, width, 1, bias=False)
        self.expand = nn.Conv1d(width, channels, 1, bias=False)
        self.interaction = nn.Parameter(shift_weight(channels, shift_div))

    def reset_parameters(self) -> None:
        """The interaction as the shift; the layers have ways of their own."""
        with torch.no_grad():
            self.interaction.copy_(shift_weight(self.channels, self.shift_div))

    def compute(self, x: Any) -> Any:
        """MEM and TIM."""
        return tracing.squeeze_and_aggregate(x, self.branches, self.num_segments, 3, impl=self.impl)

    def branches(self, squeezed: Tensor) -> tuple[Tensor, Tensor]:
        """X̂ `(N, C, T)` → MEM's gates V `(N, C, T)` and TIM's kernel Θ `(C, 3)`."""
        motion = self.reduce(squeezed)[..., :-1] - self.reduce_next(squeezed)[..., 1:]
        return F.pad(self.expand(motion).sigmoid(), (0, 1), value=1.0), self.interaction.expand(
            squeezed.shape[0], -1, -1
        )
