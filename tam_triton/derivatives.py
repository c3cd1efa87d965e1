"""Derivatives of the operators, forwards and backwards, to any order, and what `vmap` makes of them.

F(dY, X, V, Θ) = ⟨dY, aggregate(X, V, Θ)⟩ is linear in each of the four, and the operators are its partial gradients. So
the derivatives of `aggregate`, `input_gradient` and `weight_gradients` are these three again. Clips do not see one
another: `vmap` folds the mapped dimension into the clips.

How dX is written once. X reaches the output by two ways, through the squeeze and through the aggregation; autograd
would write both gradients and then add them. Instead the squeeze hands out, beside X̂, three slots without storage,
shaped like X, V and Θ, which only the aggregation takes. The aggregation's backward returns dY, V and Θ as the
"gradients" of these slots, so the squeeze's backward, which runs last, holds all it needs to write dX. The slots never
leave `squeeze_and_aggregate`.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tam_triton import layout, ops
from tam_triton.autograd import Operator, gradient, no_gradient, no_jvp


class Squeeze(Operator):
    """x `(N·T, C, H, W)`, T → X̂ `(N, C, T)`."""

    operator = "squeeze"

    @staticmethod
    def forward(x: Tensor, num_segments: int, impl: str) -> Tensor:
        return ops.operators(impl).squeeze(x, num_segments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, *ctx.settings = inputs
        ctx.shape = x.shape

    @staticmethod
    def backward(ctx: Any, d_squeezed: Tensor) -> tuple[Tensor, None, None]:
        return spread(d_squeezed, ctx.shape), None, None

    @staticmethod
    def jvp(ctx: Any, x: Tensor, *_: None) -> Tensor:
        return Squeeze.call(x, *ctx.settings)


class Aggregate(Operator):
    """x `(N·T, C, H, W)`, V `(N, C, T)` or None, Θ `(N, C, K)` or `(C, K)`, T, whether V comes after → y like x."""

    operator = "aggregate"

    @staticmethod
    def forward(
        x: Tensor, importance: Tensor | None, kernel: Tensor, num_segments: int, after: bool, impl: str
    ) -> Tensor:
        return ops.operators(impl).aggregate(x, importance, kernel, num_segments, after)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, importance, kernel = inputs[:3]
        save(ctx, (x, any(ctx.needs_input_grad[1:3])), (importance, True), (kernel, True))
        ctx.channels_last = is_channels_last(x)
        ctx.form = form(importance, *inputs[3:])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, importance, kernel = ctx.saved_tensors
        dx = d_importance = d_kernel = None
        if ctx.needs_input_grad[0]:
            dx = gradient(InputGradient, dy, importance, kernel, None, ctx.channels_last, *ctx.form)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            d_importance, d_kernel = gradient(WeightGradients, dy, x, importance, kernel, *ctx.form)
        return dx, None if importance is None else d_importance, d_kernel, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        return product_rule(ctx, tangents)


class InputGradient(Operator):
    """dY, V, Θ, dX̂ if any, whether dX is to be channels_last, T, whether V came after → dX."""

    operator = "input_gradient"

    @staticmethod
    def forward(
        dy: Tensor, importance: Tensor | None, kernel: Tensor, d_squeezed: Tensor | None, channels_last: bool,
        num_segments: int, after: bool, impl: str,
    ) -> Tensor:  # fmt: skip
        operators = ops.operators(impl)
        return operators.input_gradient(dy, importance, kernel, d_squeezed, channels_last, num_segments, after)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        dy, importance, kernel = inputs[:3]
        save(ctx, (dy, any(ctx.needs_input_grad[1:3])), (importance, True), (kernel, True))
        ctx.channels_last = inputs[4]
        ctx.form = form(importance, *inputs[5:])

    @staticmethod
    def backward(ctx: Any, d_dx: Tensor) -> tuple[Tensor | None, ...]:
        dy, importance, kernel = ctx.saved_tensors
        num_segments, _, impl = ctx.form
        wanted = ctx.needs_input_grad
        d_dy = d_importance = d_kernel = d_squeezed = None
        if wanted[0]:
            d_dy = Aggregate.call(d_dx, importance, kernel, *ctx.form)
        if wanted[1] or wanted[2]:
            d_importance, d_kernel = WeightGradients.call(dy, d_dx, importance, kernel, *ctx.form)
        if wanted[3]:
            d_squeezed = Squeeze.call(d_dx, num_segments, impl)
        return d_dy, None if importance is None else d_importance, d_kernel, d_squeezed, None, None, None, None

    @staticmethod
    def jvp(
        ctx: Any, t_dy: Tensor | None, t_importance: Tensor | None, t_kernel: Tensor | None,
        t_squeezed: Tensor | None, *_: None,
    ) -> Tensor:  # fmt: skip
        dy, importance, kernel = ctx.saved_tensors
        terms = [
            InputGradient.call(*arguments, None, ctx.channels_last, *ctx.form)
            for arguments in replaced((dy, importance, kernel), (t_dy, t_importance, t_kernel))
        ]
        return total(terms if t_squeezed is None else [*terms, spread(t_squeezed, dy.shape)])


class WeightGradients(Operator):
    """dY, X, V, Θ, T, whether V comes after → dV and dΘ; dV does not depend on V (None: 1), nor dΘ on Θ."""

    operator = "weight_gradients"

    @staticmethod
    def forward(
        dy: Tensor, x: Tensor, importance: Tensor | None, kernel: Tensor, num_segments: int, after: bool, impl: str
    ) -> tuple[Tensor, Tensor]:
        return ops.operators(impl).weight_gradients(dy, x, importance, kernel, num_segments, after)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        dy, x, importance, kernel = inputs[:4]
        of_dy, of_x, *of_weights = ctx.needs_input_grad[:4]
        save(ctx, (dy, of_x or any(of_weights)), (x, of_dy or any(of_weights)), (importance, True), (kernel, True))
        ctx.channels_last = is_channels_last(x)
        ctx.form = form(importance, *inputs[4:])

    @staticmethod
    def backward(ctx: Any, dd_importance: Tensor, dd_kernel: Tensor) -> tuple[Tensor | None, ...]:
        dy, x, importance, kernel = ctx.saved_tensors
        pairs = ((dd_importance, kernel), (importance, dd_kernel))
        d_dy = dx = d_importance = d_kernel = None
        if ctx.needs_input_grad[0]:
            d_dy = total(Aggregate.call(x, *pair, *ctx.form) for pair in pairs)
        if ctx.needs_input_grad[1]:
            dx = total(InputGradient.call(dy, *pair, None, ctx.channels_last, *ctx.form) for pair in pairs)
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            d_importance, d_kernel = WeightGradients.call(dy, x, dd_importance, dd_kernel, *ctx.form)
        return d_dy, dx, None if importance is None else d_importance, d_kernel, None, None, None

    @staticmethod
    def jvp(
        ctx: Any,
        t_dy: Tensor | None,
        t_x: Tensor | None,
        t_importance: Tensor | None,
        t_kernel: Tensor | None,
        *_: None,
    ) -> tuple[Tensor, Tensor]:
        dy, x, importance, kernel = ctx.saved_tensors
        terms = [WeightGradients.call(*pair, importance, kernel, *ctx.form) for pair in replaced((dy, x), (t_dy, t_x))]
        if t_importance is not None or t_kernel is not None:
            like = kernel if importance is None else importance
            T = ctx.form[0]
            zeros = like.new_zeros(x.shape[0] // T, x.shape[1], T)
            t_kernel = torch.zeros_like(kernel) if t_kernel is None else t_kernel
            terms.append(
                WeightGradients.call(dy, x, zeros if t_importance is None else t_importance, t_kernel, *ctx.form)
            )
        d_importances, d_kernels = zip(*terms, strict=True)
        return total(d_importances), total(d_kernels)


OF_OPERATORS: tuple[type[Operator], ...] = (Squeeze, Aggregate, InputGradient, WeightGradients)


class SqueezeWithSlots(Operator):
    """x, T, K, … → X̂ and the slots by which the aggregation's backward reaches this one (see the top of this file).

    The slot of V comes last, and not at all where `excited` is False.
    """

    @staticmethod
    def forward(
        x: Tensor, kernel_size: int, weights_dtype: torch.dtype, excited: bool,
        num_segments: int, after: bool, impl: str,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        squeezed = ops.operators(impl).squeeze(x, num_segments)
        one = x.new_empty(())
        weight = one if weights_dtype == x.dtype else one.new_empty((), dtype=weights_dtype)
        slots = (one.expand(x.shape), weight.expand(*squeezed.shape[:2], kernel_size))
        return squeezed, *slots, *([weight.expand(squeezed.shape)] if excited else [])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, *ctx.settings = inputs
        ctx.channels_last = is_channels_last(x)

    @staticmethod
    def backward(
        ctx: Any, d_squeezed: Tensor, dy: Tensor, kernel: Tensor, importance: Tensor | None = None
    ) -> tuple[Any, ...]:
        form = ctx.settings[3:]
        dx = gradient(InputGradient, dy, importance, kernel, d_squeezed, ctx.channels_last, *form)
        return dx, *[None] * len(ctx.settings)

    @staticmethod
    def jvp(ctx: Any, x: Tensor, *_: None) -> tuple[Tensor, ...]:
        """The slots have no values: SqueezeWithSlots of the tangent hands out X̂'s tangent, and slots again."""
        return SqueezeWithSlots.apply(x, *ctx.settings)


class AggregateWithSlots(Operator):
    """Aggregation whose gradient of X leaves through the slots."""

    @staticmethod
    def forward(
        x: Tensor, importance: Tensor | None, kernel: Tensor,
        dy_slot: Tensor, theta_slot: Tensor, v_slot: Tensor | None,
        num_segments: int, after: bool, impl: str,
    ) -> Tensor:  # fmt: skip
        return ops.operators(impl).aggregate(x, importance, kernel, num_segments, after)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, importance, kernel = inputs[:3]
        save(ctx, (x, any(ctx.needs_input_grad[1:3])), (importance, True), (kernel, True))
        ctx.form = inputs[6:]
        ctx.weights_dtype = inputs[4].dtype  # a gradient has the dtype of what it belongs to

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, importance, kernel = ctx.saved_tensors
        d_importance = d_kernel = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            d_importance, d_kernel = gradient(WeightGradients, dy, x, importance, kernel, *ctx.form)
        slots = dy, kernel.to(ctx.weights_dtype), None if importance is None else importance.to(ctx.weights_dtype)
        return no_gradient(dy), None if importance is None else d_importance, d_kernel, *slots, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        return product_rule(ctx, tangents)


def form(importance: Tensor | None, num_segments: int | None, after: bool, impl: str) -> tuple[int, bool, str]:
    """T, whether V comes after the aggregation, and the implementation: what the operators' last arguments are."""
    return layout.segments(importance, num_segments), after, impl


def save(ctx: Any, *tensors: tuple[Tensor | None, bool]) -> None:
    """For `jvp`, and, where it is told so, for `backward`: what has X's size is not kept in vain."""
    ctx.save_for_backward(*(tensor if wanted else None for tensor, wanted in tensors))
    if not torch.compiler.is_compiling():
        ctx.save_for_forward(*(tensor for tensor, _ in tensors))


def is_channels_last(x: Tensor) -> bool:
    """`layout.is_channels_last`; under `vmap`, where a tensor does not tell, its gradient is contiguous."""
    try:
        return layout.is_channels_last(x)
    except RuntimeError:
        return False


def replaced(arguments: tuple[Any, ...], tangents: tuple[Tensor | None, ...]) -> list[tuple[Any, ...]]:
    """The arguments with one of them replaced by its tangent, for each that has one: the terms of the product rule."""
    return [(*arguments[:i], tangent, *arguments[i + 1 :]) for i, tangent in enumerate(tangents) if tangent is not None]


def total(terms: Iterable[Tensor]) -> Tensor:
    """The sum of one term or more."""
    first, *others = terms
    return sum(others, start=first)


def spread(d_squeezed: Tensor, shape: torch.Size) -> Tensor:
    """dX̂/P at every pixel: a view, nothing is written."""
    return (d_squeezed / (shape[2] * shape[3])).transpose(1, 2).reshape(*shape[:2], 1, 1).expand(shape)


def product_rule(ctx: Any, tangents: tuple[Tensor | None, ...]) -> Tensor:
    """The tangent of an aggregation."""
    terms = replaced(ctx.saved_tensors, tangents[:3])
    return total(Aggregate.call(*arguments, *ctx.form) for arguments in terms)


class Functions(NamedTuple):
    """What `functional` applies."""

    squeeze: type[Operator]
    aggregate: type[Operator]
    squeeze_with_slots: type[Operator]
    aggregate_with_slots: type[Operator]


EAGER = Functions(Squeeze, Aggregate, SqueezeWithSlots, AggregateWithSlots)
IN_GRAPH = Functions(*(type(f"{function.__name__}InGraph", (function,), {"jvp": no_jvp}) for function in EAGER))


def functions() -> Functions:
    """Those for what torch does now."""
    return IN_GRAPH if torch.compiler.is_compiling() else EAGER
