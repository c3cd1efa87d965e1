"""Public functions: check the arguments, choose an implementation, call the operator.

`impl="triton"` and `impl="torch"` are explicit requests and never fall back; `None` picks by device: Triton on a GPU
that has it, plain torch anywhere else.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tam_triton import layout, ops

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def squeeze(x: Tensor, num_segments: int, *, impl: str | None = None) -> Tensor:
    """Spatial squeeze: the mean over pixels of every channel and frame (equation 1; paper section 3.1).

    Args:
        x: feature maps `(N·T, C, H, W)`, contiguous or channels_last (other strides are copied).
        num_segments: T, the frames of a clip.
        impl: "triton", "torch" or None.

    Returns:
        X̂ `(N, C, T)` in x's dtype.
    """
    check_features(x)
    check_segments(x, num_segments)
    return ops.IMPLEMENTATIONS[choose(impl, x)].squeeze(x, num_segments)


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
    """
    check_weights(x, importance, kernel)
    if (chosen := choose(impl, x)) == "triton":
        return ops.IMPLEMENTATIONS[chosen].aggregate(x, importance, kernel)
    return ops.Aggregate.apply(x, importance, kernel, chosen)


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
    """
    check_features(x)
    check_segments(x, num_segments)
    chosen = choose(impl, x)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return aggregate(x, *branches(squeeze(x, num_segments, impl=chosen)), impl=chosen)
    # Under autocast V and Θ may be wider than x.
    weights_dtype = torch.float32 if torch.is_autocast_enabled(x.device.type) else x.dtype
    squeezed, *slots = ops.SqueezeWithSlots.apply(x, num_segments, kernel_size, weights_dtype, chosen)
    importance, kernel = branches(squeezed)
    check_weights(x, importance, kernel)
    if kernel.shape[-1] != kernel_size:
        raise ValueError(f"kernel: got {kernel.shape[-1]} taps, expected kernel_size={kernel_size}")
    if any(torch.promote_types(w.dtype, weights_dtype) != weights_dtype for w in (importance, kernel)):
        return aggregate(x, importance, kernel, impl=chosen)  # the slots would round V and Θ
    return ops.AggregateWithSlots.apply(x, importance, kernel, *slots, chosen)


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
    """
    check_features(x)
    check_segments(x, num_segments)
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


def check_impl(impl: str | None) -> None:
    """Raises ValueError unless `impl` is one of the three."""
    if impl not in ("triton", "torch", None):
        raise ValueError(f'impl: got {impl!r}, expected "triton", "torch" or None')


def check_features(x: Tensor) -> None:
    """Raises TypeError or ValueError unless x is `(N·T, C, H, W)`, float, dense, and not empty."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x: got {type(x).__name__}, expected a Tensor")
    if x.layout != torch.strided:
        raise TypeError(f"x: got layout {x.layout}, expected a dense (strided) tensor")
    if x.dtype not in FLOATS:
        raise TypeError(f"x: got dtype {x.dtype}, expected one of {', '.join(map(str, FLOATS))}")
    if x.dim() != 4:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected 4 dimensions (N·T, C, H, W)")
    if 0 in x.shape:
        raise ValueError(f"x: got empty shape {tuple(x.shape)}, expected every dimension of (N·T, C, H, W) above 0")


def check_segments(x: Tensor, num_segments: int) -> None:
    """Raises TypeError or ValueError unless T divides the frames of x."""
    if not isinstance(num_segments, int | torch.SymInt):
        raise TypeError(f"num_segments: got {type(num_segments).__name__}, expected an int")
    if num_segments < 1 or x.shape[0] % num_segments:
        raise ValueError(f"num_segments: got {num_segments}, expected a divisor of x's N·T = {x.shape[0]}")


def check_weights(x: Tensor, importance: Tensor, kernel: Tensor) -> None:
    """Raises TypeError or ValueError unless V and Θ fit x and one another."""
    for name, weight in (("importance", importance), ("kernel", kernel)):
        if not isinstance(weight, Tensor):
            raise TypeError(f"{name}: got {type(weight).__name__}, expected a Tensor")
        if weight.dim() != 3 or 0 in weight.shape:
            raise ValueError(
                f"{name}: got shape {tuple(weight.shape)}, expected 3 dimensions above 0: "
                f"{'(N, C, T)' if name == 'importance' else '(N, C, K)'}"
            )
    check_features(x)
    if x.shape[0] % importance.shape[-1]:
        raise ValueError(
            f"importance: got T = {importance.shape[-1]} frames in shape {tuple(importance.shape)}, "
            f"expected a divisor of x's N·T = {x.shape[0]}"
        )
    rows = (x.shape[0] // importance.shape[-1], x.shape[1])
    for name, weight in (("importance", importance), ("kernel", kernel)):
        if tuple(weight.shape[:2]) != rows:
            raise ValueError(
                f"{name}: got (N, C) = {tuple(weight.shape[:2])}, expected {rows} for x of shape {tuple(x.shape)} "
                f"with T = {importance.shape[-1]}"
            )
        if weight.device != x.device:
            raise ValueError(f"{name}: got device {weight.device}, expected x's {x.device}")
        if weight.dtype not in FLOATS or (x.dtype == torch.float64) != (weight.dtype == torch.float64):
            expected = "float64" if x.dtype == torch.float64 else "float32, float16 or bfloat16"
            raise TypeError(f"{name}: got dtype {weight.dtype}, expected {expected} for x in {x.dtype}")
    if kernel.shape[-1] % 2 == 0:
        raise ValueError(f"kernel: got K = {kernel.shape[-1]} taps, expected an odd number")
