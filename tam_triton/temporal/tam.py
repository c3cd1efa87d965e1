"""The temporal adaptive module as an nn.Module."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tam_triton import functional
from tam_triton.checks import (
    check_count,
    check_device,
    check_dtype,
    check_module,
    check_parameter,
    check_segments,
    check_taps,
)
from tam_triton.derivatives import is_channels_last
from tam_triton.temporal import running, tracing
from tam_triton.temporal.base import TemporalModule
from tam_triton.temporal.folding import Folded, fold, fold_activated, fold_normalized, fold_training, is_bare

BATCH_NORM_EPS = 1e-5  # torch's default, and that of the published checkpoints


class TAM(TemporalModule):
    """Temporal adaptive module (paper section 3; equations 1 to 5).

    Parameter names, shapes and initialisation are those of the published checkpoints:
    `G.0.weight (αT, T)`, `G.1.* (αT)`, `G.3.weight (K, αT)`, `L.0.weight (C/β, C, 3)`, `L.1.* (C/β)`,
    `L.3.weight (C, C/β, 1)`. The global branch fixes T: weights trained with 8 segments do not fit 16.

    The arguments have other names in the public implementations (docs/systems.md). The authors' code gives the first
    Conv1d of L as many taps as the kernel, so its checkpoints of K = 5 need `local_kernel_size=5`.

    Args:
        channels: C of the feature maps.
        num_segments: T, the frames of a clip.
        kernel_size: K, the taps of the aggregation kernel Θ; odd.
        alpha: width of the global branch's hidden layer, in units of T.
        beta: reduction of channels in the local branch.
        local_kernel_size: taps of the local branch's first Conv1d; odd. With others than 3, evaluation goes through the
            layers, as no kernel that folds them has these.
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
        local_kernel_size: int = 3,
        impl: str | None = None,
    ) -> None:
        super().__init__(channels, num_segments, impl=impl)
        self.kernel_size = kernel_size
        self.G = global_branch(num_segments, kernel_size, alpha)
        self.L = local_branch(channels, beta, local_kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """`(N·T, C, H, W)` → the same shape, dtype and layout.

        Raises:
            ValueError: wrong rank, channels or device, or T does not divide the batch.
            TypeError: not a float tensor, or, without autocast, not of the parameters' dtype.
        """
        if tracing.is_traced(x):
            return tracing.node(self, x, self.compute)
        self._check(x)
        if (folded := self._fold(x)) is not None:
            return self._evaluate(x, folded, None)
        check_dtype(x, self)
        return self.compute(x)

    def compute(self, x: Any) -> Any:
        """Through the layers."""
        branches = self.branches if tracing.is_traced(x) else self._branches_beside(x)
        return tracing.squeeze_and_aggregate(x, branches, self.num_segments, self.kernel_size, impl=self.impl)

    def activated(self, x: Tensor, norm: nn.Module, activation: nn.Module) -> Tensor:
        """`self(activation(norm(x)))`, as a TA-Block has it.

        Where Triton runs, a BatchNorm and a ReLU of torch's own, with nothing attached to them, are applied as x is
        read and their result is never written; in training, by the batch's statistics or frozen ones, nor is its
        gradient.

        Raises:
            ValueError: as `forward`; x is on another device than `norm`.
            TypeError: as `forward`; `norm` or `activation` is no module.
        """
        if tracing.is_traced(x):
            return self(activation(norm(x)))
        self._check(x)
        check_module("norm", norm)
        check_module("activation", activation)
        if (folded := self._fold(x)) is not None:
            vectors = fold_activated(x, norm, activation, folded.eps)
            if vectors is not None and is_bare(self, TAM.forward):
                return self._evaluate(x, folded, vectors)
        check_device(x, norm)
        if (y := self._train(x, norm, activation)) is not None:
            return y
        return self(activation(norm(x)))

    def branches(self, squeezed: Tensor) -> tuple[Tensor, Tensor]:
        """X̂ `(N, C, T)` → importance V `(N, C, T)` (equation 2) and kernel Θ `(N, C, K)` (equation 3).

        In training, where Triton runs, two launches take the place of the layers, if these are as they were built.
        """
        return self._branches(squeezed, channels_last=False)

    def _branches_beside(self, x: Tensor) -> Any:
        """`branches`, for weights as the kernels read them beside x, where it is the one written here."""
        ours = self.training and getattr(self.branches, "__func__", None) is BRANCHES
        return partial(self._branches, channels_last=is_channels_last(x)) if ours else self.branches

    def _branches(self, squeezed: Tensor, channels_last: bool) -> tuple[Tensor, Tensor]:
        """For a feature map of this layout, beside which kernels store V and Θ as they read them."""
        folds = self.training and not tracing.is_traced(squeezed) and functional.choose(self.impl, squeezed) == "triton"
        return run_branches(squeezed, self.G, self.L, self.kernel_size, channels_last, folds=folds)

    def _fold(self, x: Tensor) -> Folded | None:
        """What Triton needs to replace the layers in evaluation, or None where it may not (see `folding`)."""
        if self.training or torch.is_grad_enabled() or functional.choose(self.impl, x) != "triton":
            return None
        if x.dtype == torch.float64 or getattr(self.branches, "__func__", None) is not BRANCHES:
            return None
        return fold(x, self.G, self.L, self.kernel_size)

    def _train(self, x: Tensor, norm: Any, activation: nn.Module) -> Tensor | None:
        """`activated` where BatchNorm's statistics move or gradients are wanted; None where the layers have to run."""
        if functional.choose(self.impl, x) != "triton" or not (norm.training or torch.is_grad_enabled()):
            return None
        if not is_bare(self, FORWARD) or getattr(self.compute, "__func__", None) is not COMPUTE:
            return None
        if (known := fold_normalized(x, norm, activation)) is None:
            return None
        check_segments(x, self.num_segments)
        check_dtype(x, self)
        if known.frozen is None:
            statistics = functional.batch_statistics(x, norm.eps, impl="triton")
            running.update([norm], [statistics])
        else:
            statistics = running.frozen(*known.frozen, norm.eps)
        return functional.normalize_squeeze_and_aggregate(
            x, known.weight, known.bias, statistics, self._branches_beside(x), self.num_segments, self.kernel_size,
            of_batch=known.frozen is None, eps=norm.eps, impl="triton",
            wide=getattr(self.branches, "__func__", None) is not BRANCHES,
        )  # fmt: skip

    def _evaluate(self, x: Tensor, folded: Folded, norm: list[Tensor] | None) -> Tensor:
        branches = (folded.global_branch, folded.local_branch)
        return functional.evaluate(x, *branches, self.num_segments, folded.eps, norm=norm, impl=self.impl)

    def extra_repr(self) -> str:
        """The configuration, in `print(model)`."""
        return f"{super().extra_repr()}, kernel_size={self.kernel_size}"


FORWARD, COMPUTE = TAM.forward, TAM.compute
BRANCHES = TAM.branches  # as it is written here: replaced on an object, a subclass or this class, it is called


def run_branches(
    squeezed: Tensor, G: nn.Module, L: nn.Module, kernel_size: int, channels_last: bool, *, folds: bool
) -> tuple[Tensor, Tensor]:
    """V `(N, C, T)` and Θ `(N, C, K)` by L and G, in training through kernels where these `folds` and they may."""
    if folds and (trained := fold_training(squeezed, G, L, kernel_size)) is not None:
        branches, eps = (trained.global_branch, trained.local_branch), trained.eps
        importance, kernel, *statistics = functional.training_branches(
            squeezed, *branches, eps, channels_last, impl="triton"
        )
        running.update(trained.norms, statistics)
        return importance, kernel
    kernel = G(squeezed.flatten(0, 1)).unflatten(0, squeezed.shape[:2])
    return L(squeezed), kernel


def global_branch(num_segments: int, kernel_size: int, alpha: int) -> nn.Sequential:
    """G, from rows of X̂ `(N·C, T)` to Θ `(N·C, K)` (equation 3)."""
    check_count("alpha", alpha)
    check_taps("kernel_size", kernel_size)
    hidden = alpha * num_segments
    check_parameter("num_segments", num_segments, hidden * num_segments)
    check_parameter("kernel_size", kernel_size, kernel_size * hidden)
    return nn.Sequential(
        nn.Linear(num_segments, hidden, bias=False),
        nn.BatchNorm1d(hidden, BATCH_NORM_EPS),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, kernel_size, bias=False),
        nn.Softmax(-1),
    )


def local_branch(channels: int, beta: int, local_kernel_size: int = 3) -> nn.Sequential:
    """L, from X̂ `(N, C, T)` to V `(N, C, T)` (equation 2)."""
    check_count("beta", beta)
    check_taps("local_kernel_size", local_kernel_size)
    if channels < beta:
        raise ValueError(f"channels: got {channels}, expected at least beta = {beta}")
    hidden = channels // beta
    check_parameter("channels", channels, hidden * channels * local_kernel_size)
    return nn.Sequential(
        nn.Conv1d(channels, hidden, local_kernel_size, padding=local_kernel_size // 2, bias=False),
        nn.BatchNorm1d(hidden, BATCH_NORM_EPS),
        nn.ReLU(inplace=True),
        nn.Conv1d(hidden, channels, 1, bias=False),
        nn.Sigmoid(),
    )
