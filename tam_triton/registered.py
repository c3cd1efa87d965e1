"""Derivatives of the operators by their names, `torch.ops.tam_triton`: those of `derivatives`, but backwards only.

A compiler and an exported program call them so, and whoever wants to.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._library.autograd import Info, make_autograd_impl
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from tam_triton import autograd, derivatives
from tam_triton.branch_derivatives import Branches
from tam_triton.checks import transforming
from tam_triton.ops import BY_NAME, NAMESPACE, OPERATORS, is_counted


def refuse_backward(ctx: Any, *_: Tensor) -> None:
    raise NotImplementedError("tam_triton: operators with BatchNorm folded have no gradient; use TAM's layers")


def refuse_transforms(name: str, tensors: Sequence[Tensor]) -> None:
    """Raises NotImplementedError for a tensor with a tangent, and for one that torch.func differentiates by."""
    tangents = torch._C._is_fwd_grad_enabled() and any(
        forward_ad.unpack_dual(one).tangent is not None for one in tensors
    )
    recorded = torch.is_grad_enabled() and any(one.requires_grad for one in tensors)
    if tangents or (recorded and torch._C._are_functorch_transforms_active()):
        raise NotImplementedError(
            f"tam_triton: torch.ops.tam_triton.{name} has no "
            f"{'forward-mode derivative' if tangents else 'torch.func.grad'}; use the functions of tam_triton or TAM's "
            "layers, without torch.compile"
        )


def refusing(name: str, autograd: Callable[..., Any]) -> Callable[..., Any]:
    """Autograd of an operator by its name. torch would run it on the values alone, and take all tangents for zero."""

    def run(keyset: Any, *args: Any) -> Any:
        is_counted()
        if transforming():
            refuse_transforms(name, [one for one in pytree.tree_leaves(args) if isinstance(one, Tensor)])
        return autograd(keyset, *args)

    return run


def register() -> None:
    """Autograd of `torch.ops.tam_triton`; runs once, when `functional` is imported."""
    by_clip = {function.operator: function for function in derivatives.OF_OPERATORS}
    functions = by_clip | {Branches.operator: Branches}
    for name in OPERATORS:
        info = registration(functions[name]) if name in functions else Info(refuse_backward, None)
        operator = getattr(BY_NAME["triton"], name).default
        if name in by_clip:
            torch.library.register_vmap(operator, partial(of_samples, operator))
        LIBRARY.impl(name, refusing(name, make_autograd_impl(operator, info)), "Autograd", with_keyset=True)


def of_samples(operator: Any, info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
    """`vmap` of an operator by its name."""
    return autograd.mapped(operator, info.batch_size, in_dims, args)


def registration(function: type[autograd.Operator]) -> Info:
    """The function's derivative for the operator, whose arguments end before the implementation."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        function.setup_context(ctx, (*inputs, "triton"), output)

    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return function.backward(ctx, *gradients)[:-1]

    return Info(backward, setup)


LIBRARY = torch.library.Library(NAMESPACE, "IMPL")  # what it holds is registered as long as it lives
