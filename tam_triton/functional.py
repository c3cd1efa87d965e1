"""Public functions: check the arguments, choose an implementation, call the operator.

All raise TypeError and ValueError as `checks` says, before anything is computed.
`impl="triton"` and `impl="torch"` are explicit requests and never fall back; `None` picks by device: Triton on a GPU
that has it, plain torch anywhere else.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tam_triton import derivatives, layout, ops, registered
from tam_triton.checks import (
    check_branch_results,
    check_eps,
    check_features,
    check_folded,
    check_impl,
    check_segments,
    check_statistics,
    check_taps,
    check_weights,
)


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
        return ops.IMPLEMENTATIONS[chosen].squeeze(x, num_segments)
    return derivatives.functions().squeeze.apply(x, num_segments, chosen)


def aggregate(x: Tensor, importance: Tensor, kernel: Tensor, *, impl: str | None = None) -> Tensor:
    """Excitation and temporal aggregation, channel by channel (equations 4 and 5; paper sections 3.2 and 3.3).

    `y[n,t,c] = Σ_k kernel[n,c,k] · importance[n,c,t+k−K//2] · x[n,t+k−K//2,c]`, with zeros outside the clip.

    Args:
        x: feature maps `(N·T, C, H, W)`, contiguous or channels_last (other strides are copied).
        importance: V `(N, C, T)`, in any float dtype but float64, or float64 if x is.
        kernel: Θ `(N, C, K)`, K odd; dtype as for V.
        impl: "triton", "torch" or None.

    Returns:
        y of x's shape, dtype and layout.

    Raises:
        TypeError: an argument is no dense float tensor, or V or Θ is of a dtype that x does not go with.
        ValueError: an argument is of another rank, empty or on another device, shapes disagree, or K is even.
    """
    check_features(x)
    check_weights(x, importance, kernel)
    chosen = choose(impl, x)
    if chosen == "triton" and torch.compiler.is_compiling():
        return ops.IMPLEMENTATIONS[chosen].aggregate(x, importance, kernel)
    return derivatives.functions().aggregate.apply(x, importance, kernel, chosen)


def squeeze_and_aggregate(
    x: Tensor,
    branches: Callable[[Tensor], tuple[Tensor, Tensor]],
    num_segments: int,
    kernel_size: int,
    *,
    impl: str | None = None,
) -> Tensor:
    """`aggregate(x, *branches(squeeze(x)))` with a backward that writes the gradient of x once (equations 1 to 5).

    Args:
        x: feature maps `(N·T, C, H, W)`.
        branches: from X̂ `(N, C, T)` to importance V `(N, C, T)` and kernel Θ `(N, C, K)`.
        num_segments: T, the frames of a clip.
        kernel_size: K, the taps of Θ; odd.
        impl: "triton", "torch" or None.

    Returns:
        y of x's shape, dtype and layout.

    Raises:
        TypeError: as `squeeze` and `aggregate`; `branches` cannot be called, or returns no pair.
        NotImplementedError: torch.func transforms BatchNorms in training, of the module that `branches` is a method of.
        ValueError: the same; what `branches` returns has another T or K.
    """
    check_features(x)
    check_segments(x, num_segments)
    check_taps("kernel_size", kernel_size)
    if not callable(branches):
        raise TypeError(f"branches: got {type(branches).__name__}, expected a function of X̂")
    check_statistics(branches)
    chosen = choose(impl, x)
    if not (torch.is_grad_enabled() and x.requires_grad):
        results = branches(squeeze(x, num_segments, impl=chosen))
        return aggregate(x, *check_branch_results(x, results, num_segments, kernel_size), impl=chosen)
    # Under autocast V and Θ may be wider than x.
    weights_dtype = torch.float32 if torch.is_autocast_enabled(x.device.type) else x.dtype
    functions = derivatives.functions()
    squeezed, *slots = functions.squeeze_with_slots.apply(x, num_segments, kernel_size, weights_dtype, chosen)
    importance, kernel = check_branch_results(x, branches(squeezed), num_segments, kernel_size)
    if any(torch.promote_types(w.dtype, weights_dtype) != weights_dtype for w in (importance, kernel)):
        return aggregate(x, importance, kernel, impl=chosen)  # the slots would round V and Θ
    return functions.aggregate_with_slots.apply(x, importance, kernel, *slots, chosen)


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
    operators = ops.IMPLEMENTATIONS[choose(impl, x)]
    if norm is None:
        squeezed = operators.squeeze(x, num_segments)
    else:
        squeezed = operators.activated_squeeze(x, norm, eps, num_segments)
    weights = operators.branches(squeezed, global_branch, local_branch, eps, layout.is_channels_last(x))
    if norm is None:
        return operators.aggregate(x, *weights)
    return operators.activated_aggregate(x, norm, eps, *weights)


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
