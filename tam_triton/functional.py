"""Public functions: check the arguments, choose an implementation, call the operator.

All raise TypeError and ValueError as `checks` says, before anything is computed.
`impl="triton"` and `impl="torch"` are explicit requests and never fall back; `None` picks by device: Triton on a GPU
that has it, plain torch anywhere else.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from tam_triton import branch_derivatives, derivatives, layout, norm_derivatives, ops, registered
from tam_triton.checks import (
    check_branch_results,
    check_eps,
    check_excitation,
    check_features,
    check_folded,
    check_impl,
    check_segments,
    check_statistics,
    check_taps,
    check_weights,
    is_autocasting,
)

Excitation = Literal["before", "after"]


def squeeze(x: Tensor, num_segments: int, *, impl: str | None = None) -> Tensor:
    """Spatial squeeze: the mean over pixels of every channel and frame (equation 1; paper section 3.1).

    Args:
        x: feature maps `(N·T, C, H, W)`, contiguous or channels_last (other strides are copied).
        num_segments: T, the frames of a clip.
        impl: "triton", "torch" or None.

    Returns:
        X̂ `(N, C, T)` in x's dtype.

    Raises:
        TypeError: x is no dense float tensor, or `num_segments` no int.
        ValueError: x is of another rank or empty, T does not divide its frames, or `impl` cannot run on its device.
    """
    check_features(x)
    check_segments(x, num_segments)
    chosen = choose(impl, x)
    if chosen == "triton" and torch.compiler.is_compiling():
        return ops.operators(chosen).squeeze(x, num_segments)
    return derivatives.functions().squeeze.call(x, num_segments, chosen)


def aggregate(
    x: Tensor,
    importance: Tensor | None,
    kernel: Tensor,
    *,
    num_segments: int | None = None,
    excitation: Excitation = "before",
    impl: str | None = None,
) -> Tensor:
    """Excitation and depthwise temporal aggregation (equations 4 and 5; paper sections 3.2 and 3.3).

    `y[n,t,c] = Σ_k kernel[n,c,k] · importance[n,c,t+k−K//2] · x[n,t+k−K//2,c]`, with zeros outside the clip; with
    `excitation="after"` it is `importance[n,c,t] · Σ_k kernel[n,c,k] · x[n,t+k−K//2,c]` (TANet-R, table 1).

    Args:
        x: feature maps `(N·T, C, H, W)`, contiguous or channels_last (other strides are copied).
        importance: V `(N, C, T)`, in any float dtype but float64, or float64 if x is; None: nothing is excited.
        kernel: Θ `(N, C, K)`, or `(C, K)`, one for all clips; K odd; dtype as for V.
        num_segments: T, the frames of a clip; needed without `importance`.
        excitation: "before" or "after" the aggregation.
        impl: "triton", "torch" or None.

    Returns:
        y of x's shape, dtype and layout.

    Raises:
        TypeError: an argument is no dense float tensor, or V or Θ is of a dtype that x does not go with.
        ValueError: an argument is of another rank, empty or on another device, shapes disagree, K is even, or T is
            neither told nor that of V.
    """
    check_features(x)
    check_excitation(excitation)
    T = check_weights(x, importance, kernel, num_segments)
    chosen, after = choose(impl, x), excitation == "after" and importance is not None
    if chosen == "triton" and torch.compiler.is_compiling():
        return ops.operators(chosen).aggregate(x, importance, kernel, T, after)
    return derivatives.functions().aggregate.call(x, importance, kernel, T, after, chosen)


def squeeze_and_aggregate(
    x: Tensor,
    branches: Callable[[Tensor], tuple[Tensor | None, Tensor]],
    num_segments: int,
    kernel_size: int,
    *,
    excitation: Excitation | None = "before",
    impl: str | None = None,
) -> Tensor:
    """`aggregate(x, *branches(squeeze(x)))` with a backward that writes the gradient of x once (equations 1 to 5).

    Args:
        x: feature maps `(N·T, C, H, W)`.
        branches: from X̂ `(N, C, T)` to importance V `(N, C, T)` and kernel Θ `(N, C, K)`.
        num_segments: T, the frames of a clip.
        kernel_size: K, the taps of Θ; odd.
        excitation: "before" or "after" the aggregation; None: V is None.
        impl: "triton", "torch" or None.

    Returns:
        y of x's shape, dtype and layout.

    Raises:
        TypeError: as `squeeze` and `aggregate`; `branches` cannot be called, or returns no pair.
        NotImplementedError: torch.func transforms BatchNorms in training, of the module that `branches` is a method of.
        ValueError: the same; what `branches` returns has another T or K, or V where `excitation` says there is none.
    """
    check_features(x)
    check_segments(x, num_segments)
    check_taps("kernel_size", kernel_size)
    if excitation is not None:
        check_excitation(excitation)
    if not callable(branches):
        raise TypeError(f"branches: got {type(branches).__name__}, expected a function of X̂")
    check_statistics(branches)
    excited, chosen = excitation is not None, choose(impl, x)
    plainly = functools.partial(aggregate, x, num_segments=num_segments, excitation=excitation or "before", impl=chosen)
    if not (torch.is_grad_enabled() and x.requires_grad) or torch.jit.is_tracing():
        results = branches(squeeze(x, num_segments, impl=chosen))
        return plainly(*check_branch_results(x, results, num_segments, kernel_size, excited))
    # Under autocast V and Θ may be wider than x.
    weights_dtype = torch.float32 if is_autocasting(x) else x.dtype
    functions, form = derivatives.functions(), (num_segments, excitation == "after", chosen)
    squeezed, *slots = functions.squeeze_with_slots.call(x, kernel_size, weights_dtype, excited, *form)
    weights = check_branch_results(x, branches(squeezed), num_segments, kernel_size, excited)
    if any(w is not None and torch.promote_types(w.dtype, weights_dtype) != weights_dtype for w in weights):
        return plainly(*weights)  # the slots would round V and Θ
    return functions.aggregate_with_slots.call(x, *weights, *slots, *([] if excited else [None]), *form)


def evaluate(
    x: Tensor,
    global_branch: Sequence[Tensor],
    local_branch: Sequence[Tensor],
    num_segments: int,
    eps: float,
    *,
    norm: Sequence[Tensor] | None = None,
    impl: str | None = None,
) -> Tensor:
    """A whole TAM in evaluation with BatchNorm folded, in five launches at most; no gradients (equations 1 to 5).

    Args:
        x: feature maps `(N·T, C, H, W)`.
        global_branch: `G.0.weight (αT, T)`, then weight, bias, running mean and running variance of `G.1 (αT)`, then
            `G.3.weight (K, αT)`.
        local_branch: `L.0.weight (C/β, C, 3)`, the same four of `L.1 (C/β)`, `L.3.weight (C, C/β, 1)`.
        num_segments: T, the frames of a clip.
        eps: of every BatchNorm.
        norm: weight, bias, running mean and running variance `(C)` of a BatchNorm: the TAM is then that of
            ReLU(BN(x)), which is never written to memory.
        impl: "triton", "torch" or None.

    Returns:
        y of x's shape, dtype and layout.

    Raises:
        TypeError: an argument is no dense float tensor, or x is float64.
        ValueError: shapes or devices disagree, `eps` is not above 0, or a gradient would be recorded.
        NotImplementedError: an argument is inside a transform of torch.func, or has a tangent.
    """
    check_features(x)
    check_segments(x, num_segments)
    check_eps(eps)
    check_folded(x, global_branch, local_branch, norm, num_segments)
    operators = ops.operators(choose(impl, x))
    if norm is None:
        squeezed = operators.squeeze(x, num_segments)
    else:
        squeezed = operators.activated_squeeze(x, norm, eps, num_segments)
    weights = operators.branches(squeezed, global_branch, local_branch, eps, layout.is_channels_last(x))
    if norm is None:
        return operators.aggregate(x, *weights)
    return operators.activated_aggregate(x, norm, eps, *weights)


def training_branches(
    squeezed: Tensor,
    global_branch: Sequence[Tensor],
    local_branch: Sequence[Tensor],
    eps: float,
    channels_last: bool,
    *,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both branches of a TAM in training, with the statistics of the batch, in two launches (equations 2 and 3).

    Their gradients take two launches more. What is checked is up to the caller (`temporal.folding`).

    Args:
        squeezed: X̂ `(N, C, T)`.
        global_branch: `G.0.weight (αT, T)`, weight and bias of `G.1 (αT)`, `G.3.weight (K, αT)`.
        local_branch: `L.0.weight (C/β, C, 3)`, weight and bias of `L.1 (C/β)`, `L.3.weight (C, C/β, 1)`.
        eps: of both BatchNorms.
        channels_last: whether V and Θ are for a map of this layout, beside which they are stored channels fastest.
        impl: "triton" or "torch".

    Returns:
        V `(N, C, T)`, Θ `(N, C, K)`; of G `(3, αT)` and of L `(3, C/β)` mean, unbiased variance and 1/σ in the batch.
    """
    importance, kernel, _, *statistics = branch_derivatives.function().call(
        squeezed, *global_branch, *local_branch, eps, channels_last, impl
    )
    return importance, kernel, statistics[0], statistics[1]


def batch_statistics(x: Tensor, eps: float, *, impl: str) -> Tensor:
    """Mean, unbiased variance and 1/σ of every channel of x `(N·T, C, H, W)`: `(3, C)`, without gradients."""
    return ops.operators(impl).batch_statistics(x.detach(), eps)


def normalize_squeeze_and_aggregate(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: Tensor,
    branches: Callable[[Tensor], tuple[Tensor | None, Tensor]],
    num_segments: int,
    kernel_size: int,
    *,
    of_batch: bool,
    eps: float,
    wide: bool,
    impl: str,
) -> Tensor:
    """`squeeze_and_aggregate` of ReLU(BN(x)), with a backward that writes the gradient of x once; neither is in memory.

    What is checked of the BatchNorm is up to the caller (`temporal.folding`).

    Args:
        x: feature maps `(N·T, C, H, W)`.
        weight: γ `(C)`.
        bias: β `(C)`.
        statistics: mean, unbiased variance and 1/σ `(3, C)`.
        branches: from X̂ `(N, C, T)` to importance V `(N, C, T)` and kernel Θ `(N, C, K)`.
        num_segments: T, the frames of a clip.
        kernel_size: K, the taps of Θ; odd.
        of_batch: whether the statistics are those of x, and so have a gradient.
        eps: of the BatchNorm, for derivatives of derivatives.
        wide: whether V and Θ may be of a wider dtype than x.
        impl: "triton" or "torch".

    Returns:
        y of x's shape, dtype and layout.

    Raises:
        TypeError, ValueError: as `squeeze_and_aggregate`.
    """
    check_segments(x, num_segments)
    functions = norm_derivatives.functions()
    weights_dtype = torch.promote_types(x.dtype, torch.float32) if wide or is_autocasting(x) else x.dtype
    norm = (x, weight, bias, statistics, of_batch, eps)
    squeezed, *slots, _ = functions.squeeze.call(*norm, kernel_size, weights_dtype, num_segments, impl)
    weights = check_branch_results(x, branches(squeezed), num_segments, kernel_size, True)
    return functions.aggregate.call(*norm, *weights, *slots, impl)


def choose(impl: str | None, x: Tensor) -> str:
    """The implementation for `x`: as asked for, or by its device."""
    check_impl(impl)
    on_gpu = ops.HAS_TRITON and x.device.type == "cuda"
    if impl is None:
        return "triton" if on_gpu else "torch"
    if impl == "triton" and not (on_gpu or (ops.INTERPRETED and x.device.type == "cpu")):
        raise ValueError(
            f'impl: got "triton" for x on {x.device}, expected x on a GPU with Triton installed, '
            "or on the CPU with TRITON_INTERPRET=1 set before tam_triton is imported"
        )
    return impl


registered.register()
