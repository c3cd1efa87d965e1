"""Derivatives of a TAM's branches in training.

The backward is an operator too. Where it is to be differentiated itself, or mapped, torch's own operations take its
place: they compute the branches once more, from what the forward was given.
"""

from typing import Any

import torch
from torch import Tensor

from tam_triton import ops, plain
from tam_triton.autograd import Operator, below_autograd, no_jvp
from tam_triton.checks import transforming


class Branches(Operator):
    """As `plain.training_branches` → V, Θ and, without gradients, the other results.

    BatchNorm joins the clips of a batch: torch's own layers are what `vmap` can be asked of.
    """

    operator = "training_branches"

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return ops.operators(args[-1]).training_branches(*args[:-1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.eps, ctx.channels_last, ctx.impl = inputs
        ctx.save_for_backward(*tensors, *output)
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, d_importance: Tensor | None, d_kernel: Tensor | None, *_: None) -> tuple[Any, ...]:
        squeezed, *parameters, importance, kernel, projected, g_statistics, l_statistics = ctx.saved_tensors
        dv = torch.zeros_like(importance) if d_importance is None else d_importance
        d_theta = torch.zeros_like(kernel) if d_kernel is None else d_kernel
        if not torch.compiler.is_compiling() and has_derivative(dv, d_theta):
            gradients = derived_again(ctx, (squeezed, *parameters), (dv, d_theta))
        else:
            with below_autograd():
                gradients = ops.operators(ctx.impl).branch_gradients(
                    dv, d_theta, squeezed, importance, kernel, projected, *parameters, g_statistics, l_statistics,
                    ctx.channels_last,
                )  # fmt: skip
        wanted = zip(gradients, ctx.needs_input_grad[: len(gradients)], strict=True)
        return *(gradient if one else None for gradient, one in wanted), None, None, None


def has_derivative(*gradients: Tensor) -> bool:
    """Whether what a backward makes of these is itself to be differentiated, or mapped."""
    batched = any(torch._C._functorch.is_legacy_batchedtensor(one) for one in gradients)
    return torch.is_grad_enabled() or batched or transforming()


def derived_again(ctx: Any, inputs: tuple[Tensor, ...], gradients: tuple[Tensor, Tensor]) -> tuple[Tensor | None, ...]:
    """The gradients of the branches by torch's own operations, which have derivatives of every kind.

    Of views of the inputs: two of them may be one parameter, whose gradient each would get in full.
    """
    create_graph = torch.is_grad_enabled()
    needed = ctx.needs_input_grad[: len(inputs)]
    with torch.enable_grad():
        inputs = tuple(one.view_as(one) for one in inputs)
        arguments: list[Any] = [*inputs, ctx.eps, ctx.channels_last]
        importance, kernel, *_ = plain.training_branches(*arguments)
    wanted = [one for one, yes in zip(inputs, needed, strict=True) if yes]
    found = iter(torch.autograd.grad((importance, kernel), wanted, gradients, create_graph=create_graph))
    return tuple(next(found) if yes else None for yes in needed)


IN_GRAPH: Any = type("BranchesInGraph", (Branches,), {"jvp": no_jvp})


def function() -> type[Operator]:
    """That for what torch does now."""
    return IN_GRAPH if torch.compiler.is_compiling() else Branches
