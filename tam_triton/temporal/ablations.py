"""TAM's parts, alone and in other company (paper section 4.3, table 2). Names of parameters are TAM's."""

from typing import Any

from torch import Tensor, nn

from tam_triton.checks import check_parameter
from tam_triton.functional import Excitation
from tam_triton.temporal import tracing
from tam_triton.temporal.base import TemporalModule, reduced
from tam_triton.temporal.tam import global_branch, local_branch


class Ablation(TemporalModule):
    """What the four share: a squeeze, branches, an aggregation, and when an importance map excites."""

    kernel_size: int
    excitation: Excitation | None = "before"

    def compute(self, x: Any) -> Any:
        """Squeeze, branches and aggregation."""
        return tracing.squeeze_and_aggregate(
            x, self.branches, self.num_segments, self.kernel_size, excitation=self.excitation, impl=self.impl
        )

    def branches(self, squeezed: Tensor) -> tuple[Tensor | None, Tensor]:
        """X̂ `(N, C, T)` → importance V `(N, C, T)`, or None, and kernel Θ."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The configuration, in `print(model)`."""
        return f"{super().extra_repr()}, kernel_size={self.kernel_size}"


class GlobalTAM(Ablation):
    """The global branch alone: `Y = G(X) ⊗ X` (paper section 4.3; equations 3 and 5).

    Args:
        channels: C of the feature maps.
        num_segments: T, the frames of a clip, which fixes the shape of G.
        kernel_size: K, the taps of the aggregation kernel Θ; odd.
        alpha: width of G's hidden layer, in units of T.
        impl: "triton", "torch", or None to pick by device.

    Raises:
        TypeError, ValueError: as TAM.
    """

    excitation: Excitation | None = None

    def __init__(
        self, channels: int, num_segments: int, kernel_size: int = 3, alpha: int = 2, *, impl: str | None = None
    ) -> None:
        super().__init__(channels, num_segments, impl=impl)
        self.kernel_size = kernel_size
        self.G = global_branch(num_segments, kernel_size, alpha)

    def branches(self, squeezed: Tensor) -> tuple[Tensor | None, Tensor]:
        """X̂ `(N, C, T)` → no importance, and kernel Θ `(N, C, K)` (equation 3)."""
        return None, self.G(squeezed.flatten(0, 1)).unflatten(0, squeezed.shape[:2])


class LocalTAM(Ablation):
    """The local branch alone: `Y = L(X) ⊙ X` (paper section 4.3; equations 2 and 4).

    Args:
        channels: C of the feature maps.
        num_segments: T, the frames of a clip.
        beta: reduction of channels in L.
        local_kernel_size: taps of L's first Conv1d; odd.
        impl: "triton", "torch", or None to pick by device.

    Raises:
        TypeError, ValueError: as TAM.
    """

    kernel_size = 1

    def __init__(
        self, channels: int, num_segments: int, beta: int = 4, *, local_kernel_size: int = 3, impl: str | None = None
    ) -> None:
        super().__init__(channels, num_segments, impl=impl)
        self.L = local_branch(channels, beta, local_kernel_size)

    def branches(self, squeezed: Tensor) -> tuple[Tensor | None, Tensor]:
        """X̂ `(N, C, T)` → importance V `(N, C, T)` (equation 2), and a kernel of one tap."""
        return self.L(squeezed), squeezed.new_ones(squeezed.shape[0], self.channels, 1)


class ReversedTAM(GlobalTAM):
    """TANet-R's module: `Y = L(X) ⊙ (G(X) ⊗ X)`, both branches fed by X (paper section 4.3).

    Parameters are TAM's, by name and shape.

    Args:
        channels: C of the feature maps.
        num_segments: T, the frames of a clip, which fixes the shape of G.
        kernel_size: K, the taps of the aggregation kernel Θ; odd.
        alpha: width of G's hidden layer, in units of T.
        beta: reduction of channels in L.
        local_kernel_size: taps of L's first Conv1d; odd.
        impl: "triton", "torch", or None to pick by device.

    Raises:
        TypeError, ValueError: as TAM.
    """

    excitation = "after"

    def __init__(
        self,
        channels: int,
        num_segments: int,
        kernel_size: int = 3,
        alpha: int = 2,
        beta: int = 4,
        *,
        local_kernel_size: int = 3,
        impl: str | None = None,
    ) -> None:
        super().__init__(channels, num_segments, kernel_size, alpha, impl=impl)
        self.L = local_branch(channels, beta, local_kernel_size)

    def branches(self, squeezed: Tensor) -> tuple[Tensor | None, Tensor]:
        """X̂ `(N, C, T)` → importance V `(N, C, T)` (equation 2) and kernel Θ `(N, C, K)` (equation 3)."""
        return self.L(squeezed), super().branches(squeezed)[1]


class GlobalSE(GlobalTAM):
    """The global branch with squeeze-and-excitation in place of the local one (paper section 4.3; arXiv 1709.01507).

    `V = σ(SE.2·δ(SE.0·X̂))` frame by frame, without biases; excitation comes before the aggregation (*reading*: the
    paper says no more than "Global branch + SE").

    Args:
        channels: C of the feature maps.
        num_segments: T, the frames of a clip, which fixes the shape of G.
        kernel_size: K, the taps of the aggregation kernel Θ; odd.
        alpha: width of G's hidden layer, in units of T.
        reduction: r of channels in SE.
        impl: "triton", "torch", or None to pick by device.

    Raises:
        TypeError, ValueError: as TAM.
    """

    excitation = "before"

    def __init__(
        self,
        channels: int,
        num_segments: int,
        kernel_size: int = 3,
        alpha: int = 2,
        *,
        reduction: int = 8,
        impl: str | None = None,
    ) -> None:
        super().__init__(channels, num_segments, kernel_size, alpha, impl=impl)
        width = reduced(channels, reduction)
        check_parameter("channels", channels, channels * width)
        self.SE = nn.Sequential(
            nn.Conv1d(channels, width, 1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv1d(width, channels, 1, bias=False),
            nn.Sigmoid(),
        )

    def branches(self, squeezed: Tensor) -> tuple[Tensor | None, Tensor]:
        """X̂ `(N, C, T)` → gates V `(N, C, T)` and kernel Θ `(N, C, K)` (equation 3)."""
        return self.SE(squeezed), super().branches(squeezed)[1]
