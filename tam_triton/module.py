"""The temporal adaptive module as an nn.Module."""

import torch
from torch import Tensor, nn

from tam_triton import functional, tracing
from tam_triton.checks import (
    check_count,
    check_device,
    check_dtype,
    check_features,
    check_impl,
    check_module,
    check_parameter,
    check_taps,
)

BATCH_NORM_EPS = 1e-5  # torch's default, and that of the published checkpoints


class TAM(nn.Module):
    """Temporal adaptive module (paper section 3; equations 1 to 5).

    Parameter names, shapes and initialisation are those of the published checkpoints:
    `G.0.weight (αT, T)`, `G.1.* (αT)`, `G.3.weight (K, αT)`, `L.0.weight (C/β, C, 3)`, `L.1.* (C/β)`,
    `L.3.weight (C, C/β, 1)`. The global branch fixes T: weights trained with 8 segments do not fit 16.

    Args:
        channels: C of the feature maps.
        num_segments: T, the frames of a clip.
        kernel_size: K, the taps of the aggregation kernel Θ; odd.
        alpha: width of the global branch's hidden layer, in units of T.
        beta: reduction of channels in the local branch.
        impl: "triton", "torch", or None to pick by device.

    Raises:
        TypeError: a number is no int, or `impl` no string.
        ValueError: a number is below 1, channels are fewer than beta, the taps are even, `impl` is unknown, or a
            weight would not fit into memory's addresses.
    """

    def __init__(
        self,
        channels: int,
        num_segments: int,
        kernel_size: int = 3,
        alpha: int = 2,
        beta: int = 4,
        *,
        impl: str | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("num_segments", num_segments), ("alpha", alpha), ("beta", beta), ("channels", channels)):
            check_count(name, value)
        if channels < beta:
            raise ValueError(f"channels: got {channels}, expected at least beta = {beta}")
        check_taps("kernel_size", kernel_size)
        check_impl(impl)
        self.channels, self.num_segments, self.kernel_size, self.impl = channels, num_segments, kernel_size, impl
        hidden = alpha * num_segments
        check_parameter("num_segments", num_segments, hidden * num_segments)
        check_parameter("kernel_size", kernel_size, kernel_size * hidden)
        check_parameter("channels", channels, channels // beta * channels * 3)
        self.G = nn.Sequential(
            nn.Linear(num_segments, hidden, bias=False),
            nn.BatchNorm1d(hidden, BATCH_NORM_EPS),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, kernel_size, bias=False),
            nn.Softmax(-1),
        )
        self.L = nn.Sequential(
            nn.Conv1d(channels, channels // beta, 3, padding=1, bias=False),
            nn.BatchNorm1d(channels // beta, BATCH_NORM_EPS),
            nn.ReLU(inplace=True),
            nn.Conv1d(channels // beta, channels, 1, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(N·T, C, H, W)` → the same shape, dtype and layout.

        Raises:
            ValueError: wrong rank, channels or device, or T does not divide the batch.
            TypeError: not a float tensor, or, without autocast, not of the parameters' dtype.
        """
        if tracing.is_traced(x):
            return tracing.tam_node(self, x)
        self._check(x)
        if self._is_inference(x):
            return self._evaluate(x, None)
        check_dtype(x, self)
        return functional.squeeze_and_aggregate(x, self.branches, self.num_segments, self.kernel_size, impl=self.impl)

    def activated(self, x: Tensor, norm: nn.Module, activation: nn.Module) -> Tensor:
        """`self(activation(norm(x)))`, as a TA-Block has it.

        In evaluation without gradients, where Triton runs, a BatchNorm and ReLU are applied as x is read and their
        result is never written; `norm` and `activation` are then not called, nor are their hooks.

        Raises:
            ValueError: as `forward`; x is on another device than `norm`.
            TypeError: as `forward`; `norm` or `activation` is no module.
        """
        if tracing.is_traced(x):
            return self(activation(norm(x)))
        self._check(x)
        check_module("norm", norm)
        check_module("activation", activation)
        if self._is_inference(x) and isinstance(norm, nn.BatchNorm2d) and isinstance(activation, nn.ReLU):
            foldable = norm.affine and norm.track_running_stats and norm.eps == BATCH_NORM_EPS and not norm.training
            if foldable and norm.num_features == self.channels:
                return self._evaluate(x, _vectors(norm))
        check_device(x, norm)
        return self(activation(norm(x)))

    def branches(self, squeezed: Tensor) -> tuple[Tensor, Tensor]:
        """X̂ `(N, C, T)` → importance V `(N, C, T)` (equation 2) and kernel Θ `(N, C, K)` (equation 3)."""
        kernel = self.G(squeezed.flatten(0, 1)).unflatten(0, squeezed.shape[:2])
        return self.L(squeezed), kernel

    def _check(self, x: Tensor) -> None:
        check_features(x)
        if x.shape[1] != self.channels:
            raise ValueError(f"x: got {x.shape[1]} channels in shape {tuple(x.shape)}, expected {self.channels}")
        check_device(x, self)

    def _is_inference(self, x: Tensor) -> bool:
        """Whether BatchNorms may be folded: in evaluation, without gradients, where Triton runs."""
        if self.training or torch.is_grad_enabled() or x.dtype == torch.float64:
            return False
        return functional.choose(self.impl, x) == "triton"

    def _evaluate(self, x: Tensor, norm: list[Tensor] | None) -> Tensor:
        branches = (_tensors(self.G), _tensors(self.L))
        return functional.evaluate(x, *branches, self.num_segments, BATCH_NORM_EPS, norm=norm, impl=self.impl)

    def extra_repr(self) -> str:
        """The configuration, in `print(model)`."""
        return f"channels={self.channels}, num_segments={self.num_segments}, kernel_size={self.kernel_size}"


def _vectors(norm: nn.Module) -> list[Tensor]:
    """What evaluation needs of a BatchNorm."""
    parameters = [norm.get_parameter(name) for name in ("weight", "bias")]
    return parameters + [norm.get_buffer(name) for name in ("running_mean", "running_var")]


def _tensors(branch: nn.Sequential) -> list[Tensor]:
    """Of a branch: its first weight, BatchNorm's four vectors, its second weight."""
    return [branch.get_parameter("0.weight"), *_vectors(branch[1]), branch.get_parameter("3.weight")]
