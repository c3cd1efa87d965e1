"""Derivatives of a TAM behind BatchNorm and ReLU in training, of which neither's result is in memory.

dx is written once, as `derivatives` says: the squeeze hands out slots which only the aggregation takes. Beside dY, V
and Θ there goes through them what dY gives of BatchNorm's two sums, so that the squeeze's backward, which runs last and
has dX̂, first knows dγ and dβ, and then all of dx.

Where the backward is to be differentiated itself, or mapped, torch's own operations take its place: they compute
BatchNorm, ReLU, squeeze and aggregation once more, from what the forward was given.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tam_triton import ops
from tam_triton.autograd import Operator, no_gradient, no_jvp
from tam_triton.branch_derivatives import has_derivative
from tam_triton.plain import by_tap
from tam_triton.plain.views import clip_view, widened


class NormalizedSqueeze(Operator):
    """x, γ, β, statistics `(3, C)`, whether they are the batch's, ε, K, V's and Θ's dtype, T, impl → X̂ and slots.

    The slots are of dY, Θ, V and of the sums `(2, N, C, T)`.
    """

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor, of_batch: bool, eps: float,
        kernel_size: int, weights_dtype: torch.dtype, num_segments: int, impl: str,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        squeezed, sums = ops.operators(impl).normalized_squeeze(x, weight, bias, statistics, num_segments)
        small, wide = x.new_empty((), dtype=weights_dtype), sums.new_empty(())
        shape = squeezed.shape
        slots = (x.new_empty(()).expand(x.shape), small.expand(*shape[:2], kernel_size), small.expand(shape))
        return squeezed, *slots, wide.expand(sums.shape), sums

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.of_batch, ctx.eps, _, _, ctx.num_segments, ctx.impl = inputs
        ctx.save_for_backward(*tensors, output[-1])
        ctx.mark_non_differentiable(output[-1])

    @staticmethod
    def backward(
        ctx: Any, d_squeezed: Tensor, dy: Tensor, kernel: Tensor, importance: Tensor, d_sums: Tensor, _: Any
    ) -> tuple[Any, ...]:
        x, weight, bias, statistics, sums = ctx.saved_tensors
        of_x, *of_norm = ctx.needs_input_grad[:3]
        if not torch.compiler.is_compiling() and has_derivative(d_squeezed, dy, importance, kernel):
            return *squeeze_derived_again(ctx, d_squeezed, dy, importance, kernel), *[None] * 7
        operators = ops.operators(ctx.impl)
        dx = d_weight = d_bias = None
        if any(of_norm) or (of_x and ctx.of_batch):
            pixels = x.shape[2] * x.shape[3]
            d_weight, d_bias = operators.batch_norm_gradients(d_sums, sums, d_squeezed, pixels)
        if of_x:
            gradients = (d_weight, d_bias) if ctx.of_batch else (None, None)
            dx = operators.normalized_input_gradient(
                dy, x, weight, bias, statistics, importance, kernel, d_squeezed, *gradients
            )
        d_weight, d_bias = (
            one.to(parameter.dtype) if wanted and one is not None else None
            for one, parameter, wanted in zip((d_weight, d_bias), (weight, bias), of_norm, strict=True)
        )
        return dx, d_weight, d_bias, *[None] * 7


class NormalizedAggregate(Operator):
    """x, γ, β, statistics, whether they are the batch's, ε, V, Θ, the slots, impl → y; its gradients leave by slots."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor, of_batch: bool, eps: float,
        importance: Tensor, kernel: Tensor,
        dy_slot: Tensor, theta_slot: Tensor, v_slot: Tensor, sums_slot: Tensor, impl: str,
    ) -> Tensor:  # fmt: skip
        return ops.operators(impl).normalized_aggregate(x, weight, bias, statistics, importance, kernel)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, statistics, ctx.of_batch, ctx.eps, importance, kernel = inputs[:8]
        ctx.save_for_backward(x, weight, bias, statistics, importance, kernel)
        ctx.weights_dtype = inputs[9].dtype  # a gradient has the dtype of what it belongs to
        ctx.impl = inputs[-1]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, weight, bias, statistics, importance, kernel = ctx.saved_tensors
        of_x, *of_norm = ctx.needs_input_grad[:3]
        of_weights = ctx.needs_input_grad[6:8]
        d_importance = d_kernel = d_sums = None
        if not torch.compiler.is_compiling() and has_derivative(dy):
            d_importance, d_kernel = aggregate_derived_again(ctx, dy)
        elif any(of_weights) or any(of_norm) or (of_x and ctx.of_batch):
            d_importance, d_kernel, d_sums = ops.operators(ctx.impl).normalized_gradients(
                dy, x, weight, bias, statistics, importance, kernel
            )
        none = [
            no_gradient(one) if yes else None for one, yes in ((dy, of_x), (weight, of_norm[0]), (bias, of_norm[1]))
        ]
        slots = dy, kernel.to(ctx.weights_dtype), importance.to(ctx.weights_dtype), d_sums
        return *none, None, None, None, d_importance, d_kernel, *slots, None


def squeeze_derived_again(
    ctx: Any, d_squeezed: Tensor, dy: Tensor, importance: Tensor, kernel: Tensor
) -> list[Tensor | None]:
    """Gradients of x, γ and β by way of X̂ and, with V and Θ as they are, of y.

    Of views of these: V and Θ come from x too, which is not what is asked for here.
    """
    *leaves, statistics, _ = ctx.saved_tensors
    needed = ctx.needs_input_grad[:3]
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        x, weight, bias = (leaf.view_as(leaf) for leaf in leaves)
        activated = activation(x, weight, bias, statistics, ctx)
        squeezed = clip_view(activated.mean((2, 3)), ctx.num_segments).transpose(1, 2).to(d_squeezed.dtype)
        y = aggregated(activated, importance, kernel).to(dy.dtype)
    wanted = [one for one, yes in zip((x, weight, bias), needed, strict=True) if yes]
    found = iter(torch.autograd.grad((squeezed, y), wanted, (d_squeezed, dy), create_graph=create_graph))
    return [next(found) if yes else None for yes in needed]


def aggregate_derived_again(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of V and Θ, of views of them: the one may come from the other."""
    x, weight, bias, statistics, importance, kernel = ctx.saved_tensors
    needed = ctx.needs_input_grad[6:8]
    create_graph = torch.is_grad_enabled()
    if not any(needed):
        return None, None
    with torch.enable_grad():
        importance, kernel = importance.view_as(importance), kernel.view_as(kernel)
        y = aggregated(activation(x, weight, bias, statistics, ctx), importance, kernel).to(dy.dtype)
    wanted = [one for one, yes in zip((importance, kernel), needed, strict=True) if yes]
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=create_graph))
    d_importance, d_kernel = (next(found) if yes else None for yes in needed)
    return d_importance, d_kernel


def activation(x: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor, ctx: Any) -> Tensor:
    """A in the dtype of sums, with the batch's statistics as functions of x where they are that."""
    x, weight, bias = widened(x), widened(weight), widened(bias)
    if ctx.of_batch:
        return functional.batch_norm(x, None, None, weight, bias, training=True, eps=ctx.eps).relu()
    scale, mean = (weight * statistics[2])[:, None, None], statistics[0][:, None, None]
    return ((x - mean) * scale + bias[:, None, None]).relu()


def aggregated(activated: Tensor, importance: Tensor, kernel: Tensor) -> Tensor:
    """y of A."""
    weights = widened(importance)[..., None] * widened(kernel)[:, :, None]
    return by_tap.weighted_sum(activated, weights, None, False, channels_last=False)


class Functions(NamedTuple):
    """What `functional` applies."""

    squeeze: type[Operator]
    aggregate: type[Operator]


EAGER = Functions(NormalizedSqueeze, NormalizedAggregate)
IN_GRAPH = Functions(*(type(f"{function.__name__}InGraph", (function,), {"jvp": no_jvp}) for function in EAGER))


def functions() -> Functions:
    """Those for what torch does now."""
    return IN_GRAPH if torch.compiler.is_compiling() else EAGER
