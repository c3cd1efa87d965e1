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

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tam_triton import layout, ops


class Operator(torch.autograd.Function):
    """An operator of either implementation, its last argument."""

    @classmethod
    def vmap(cls, info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
        """As torch.func calls it."""
        return mapped(cls.apply, info.batch_size, in_dims, args)


class Squeeze(Operator):
    """x `(N·T, C, H, W)`, T → X̂ `(N, C, T)`."""

    @staticmethod
    def forward(x: Tensor, num_segments: int, impl: str) -> Tensor:
        return ops.IMPLEMENTATIONS[impl].squeeze(x, num_segments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, *ctx.settings = inputs
        ctx.shape = x.shape

    @staticmethod
    def backward(ctx: Any, d_squeezed: Tensor) -> tuple[Tensor, None, None]:
        return spread(d_squeezed, ctx.shape), None, None

    @staticmethod
    def jvp(ctx: Any, x: Tensor, *_: None) -> Tensor:
        return Squeeze.apply(x, *ctx.settings)


class Aggregate(Operator):
    """x `(N·T, C, H, W)`, V `(N, C, T)`, Θ `(N, C, K)` → y of x's shape."""

    @staticmethod
    def forward(x: Tensor, importance: Tensor, kernel: Tensor, impl: str) -> Tensor:
        return ops.IMPLEMENTATIONS[impl].aggregate(x, importance, kernel)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        save(ctx, *inputs[:3])
        ctx.impl = inputs[-1]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, importance, kernel = ctx.saved_tensors
        dx = d_importance = d_kernel = None
        if ctx.needs_input_grad[0]:
            dx = gradient(InputGradient, dy, importance, kernel, None, is_channels_last(x), ctx.impl)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            d_importance, d_kernel = gradient(WeightGradients, dy, x, importance, kernel, ctx.impl)
        return dx, d_importance, d_kernel, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        return product_rule(ctx, tangents)


class InputGradient(Operator):
    """dY, V, Θ, dX̂ if any, whether dX is to be channels_last → dX."""

    @staticmethod
    def forward(
        dy: Tensor, importance: Tensor, kernel: Tensor, d_squeezed: Tensor | None, channels_last: bool, impl: str
    ) -> Tensor:
        return ops.IMPLEMENTATIONS[impl].input_gradient(dy, importance, kernel, d_squeezed, channels_last)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        save(ctx, *inputs[:3])
        ctx.channels_last, ctx.impl = inputs[-2:]

    @staticmethod
    def backward(ctx: Any, d_dx: Tensor) -> tuple[Tensor | None, ...]:
        dy, importance, kernel = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        d_dy = d_importance = d_kernel = d_squeezed = None
        if wanted[0]:
            d_dy = Aggregate.apply(d_dx, importance, kernel, ctx.impl)
        if wanted[1] or wanted[2]:
            d_importance, d_kernel = WeightGradients.apply(dy, d_dx, importance, kernel, ctx.impl)
        if wanted[3]:
            d_squeezed = Squeeze.apply(d_dx, importance.shape[-1], ctx.impl)
        return d_dy, d_importance, d_kernel, d_squeezed, None, None

    @staticmethod
    def jvp(
        ctx: Any, t_dy: Tensor | None, t_importance: Tensor | None, t_kernel: Tensor | None,
        t_squeezed: Tensor | None, *_: None,
    ) -> Tensor:  # fmt: skip
        dy, importance, kernel = ctx.saved_tensors
        terms = [
            InputGradient.apply(*arguments, None, ctx.channels_last, ctx.impl)
            for arguments in replaced((dy, importance, kernel), (t_dy, t_importance, t_kernel))
        ]
        return total(terms if t_squeezed is None else [*terms, spread(t_squeezed, dy.shape)])


class WeightGradients(Operator):
    """dY, X, V, Θ → dV and dΘ; dV does not depend on V, nor dΘ on Θ."""

    @staticmethod
    def forward(dy: Tensor, x: Tensor, importance: Tensor, kernel: Tensor, impl: str) -> tuple[Tensor, Tensor]:
        return ops.IMPLEMENTATIONS[impl].weight_gradients(dy, x, importance, kernel)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        save(ctx, *inputs[:4])
        ctx.impl = inputs[-1]

    @staticmethod
    def backward(ctx: Any, dd_importance: Tensor, dd_kernel: Tensor) -> tuple[Tensor | None, ...]:
        dy, x, importance, kernel = ctx.saved_tensors
        pairs = ((dd_importance, kernel), (importance, dd_kernel))
        d_dy = dx = d_importance = d_kernel = None
        if ctx.needs_input_grad[0]:
            d_dy = total(Aggregate.apply(x, *pair, ctx.impl) for pair in pairs)
        if ctx.needs_input_grad[1]:
            channels_last = is_channels_last(x)
            dx = total(InputGradient.apply(dy, *pair, None, channels_last, ctx.impl) for pair in pairs)
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            d_importance, d_kernel = WeightGradients.apply(dy, x, dd_importance, dd_kernel, ctx.impl)
        return d_dy, dx, d_importance, d_kernel, None

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
        terms = [WeightGradients.apply(*pair, importance, kernel, ctx.impl) for pair in replaced((dy, x), (t_dy, t_x))]
        if t_importance is not None or t_kernel is not None:
            t_importance = torch.zeros_like(importance) if t_importance is None else t_importance
            t_kernel = torch.zeros_like(kernel) if t_kernel is None else t_kernel
            terms.append(WeightGradients.apply(dy, x, t_importance, t_kernel, ctx.impl))
        d_importances, d_kernels = zip(*terms, strict=True)
        return total(d_importances), total(d_kernels)


class SqueezeWithSlots(Operator):
    """x, T, K → X̂ and the slots by which the aggregation's backward reaches this one (see the top of this file)."""

    @staticmethod
    def forward(
        x: Tensor, num_segments: int, kernel_size: int, weights_dtype: torch.dtype, impl: str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        squeezed = ops.IMPLEMENTATIONS[impl].squeeze(x, num_segments)
        weight = x.new_zeros((), dtype=weights_dtype)
        return (
            squeezed,
            x.new_zeros(()).expand(x.shape),
            weight.expand(squeezed.shape),
            weight.expand(*squeezed.shape[:2], kernel_size),
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, *ctx.settings = inputs
        ctx.channels_last = is_channels_last(x)

    @staticmethod
    def backward(ctx: Any, d_squeezed: Tensor, dy: Tensor, importance: Tensor, kernel: Tensor) -> tuple[Any, ...]:
        impl = ctx.settings[-1]
        dx = gradient(InputGradient, dy, importance, kernel, d_squeezed, ctx.channels_last, impl)
        return dx, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, x: Tensor, *_: None) -> tuple[Tensor, ...]:
        """The slots have no values: SqueezeWithSlots of the tangent hands out X̂'s tangent, and zeros."""
        return SqueezeWithSlots.apply(x, *ctx.settings)


class AggregateWithSlots(Operator):
    """Aggregation whose gradient of X leaves through the slots."""

    @staticmethod
    def forward(
        x: Tensor, importance: Tensor, kernel: Tensor, dy_slot: Tensor, v_slot: Tensor, theta_slot: Tensor, impl: str
    ) -> Tensor:
        return ops.IMPLEMENTATIONS[impl].aggregate(x, importance, kernel)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        Aggregate.setup_context(ctx, inputs, output)
        ctx.weights_dtype = inputs[4].dtype  # a gradient has the dtype of what it belongs to

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, importance, kernel = ctx.saved_tensors
        d_importance, d_kernel = gradient(WeightGradients, dy, x, importance, kernel, ctx.impl)
        slots = dy, importance.to(ctx.weights_dtype), kernel.to(ctx.weights_dtype)
        return no_gradient(x), d_importance, d_kernel, *slots, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        return product_rule(ctx, tangents)


def no_gradient(x: Tensor) -> Tensor | None:
    """What a backward returns for an input whose gradient leaves by another way."""
    if torch.compiler.is_compiling() and torch._dynamo.compiled_autograd.in_compiled_autograd_region:
        return x.new_zeros(()).expand(x.shape)  # it adds up what comes without looking whether it is a tensor
    return None


def gradient(function: type[Operator], *args: Any) -> Any:
    """A function as a backward calls it: in a compiled graph, where gradients have no derivative, the mere operator."""
    if torch.compiler.is_compiling():
        return function.forward(*args)
    batched = [isinstance(one, Tensor) and torch._C._functorch.is_legacy_batchedtensor(one) for one in args]
    return of_batched(function, batched, args) if any(batched) else function.apply(*args)


def mapped(
    function: Callable[..., Any], samples: int, in_dims: Sequence[int | None], args: Sequence[Any]
) -> tuple[Any, Any]:
    """The clips of all samples, one after another; results and the dimension of their samples."""

    def folded(value: Any, dim: int | None) -> Any:
        if not isinstance(value, Tensor):
            return value
        of_samples = value.expand(samples, *value.shape) if dim is None else value.movedim(dim, 0)
        return of_samples.flatten(0, 1)

    results = function(*map(folded, args, in_dims))
    if isinstance(results, Tensor):
        return results.unflatten(0, (samples, -1)), 0
    return tuple(one.unflatten(0, (samples, -1)) for one in results), (0,) * len(results)


def of_batched(function: type[Operator], batched: list[bool], args: tuple[Any, ...]) -> Any:
    """Under `is_grads_batched`, whose vmap is older than that of torch.func and asks no Function for its rule."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    pairs = list(zip(args, batched, strict=True))
    unwrapped = [torch._remove_batch_dim(one, level, 1, 0) if yes else one for one, yes in pairs]
    samples = unwrapped[batched.index(True)].shape[0]
    results, _ = mapped(function.apply, samples, [0 if yes else None for yes in batched], unwrapped)
    if isinstance(results, Tensor):
        return torch._add_batch_dim(results, 0, level)
    return tuple(torch._add_batch_dim(one, 0, level) for one in results)


def save(ctx: Any, *tensors: Tensor) -> None:
    """For `backward` and `jvp`."""
    ctx.save_for_backward(*tensors)
    if not torch.compiler.is_compiling():
        ctx.save_for_forward(*tensors)


def is_channels_last(x: Tensor) -> bool:
    """`layout.is_channels_last`; under `vmap`, where a tensor does not tell, its gradient is contiguous."""
    try:
        return layout.is_channels_last(x)
    except RuntimeError:
        return False


def replaced(arguments: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...]) -> list[tuple[Tensor, ...]]:
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
    return total(Aggregate.apply(*arguments, ctx.impl) for arguments in terms)


class Functions(NamedTuple):
    """What `functional` applies."""

    squeeze: type[Operator]
    aggregate: type[Operator]
    squeeze_with_slots: type[Operator]
    aggregate_with_slots: type[Operator]


EAGER = Functions(Squeeze, Aggregate, SqueezeWithSlots, AggregateWithSlots)
no_jvp: Any = staticmethod(torch.autograd.Function.jvp)  # torch.compile refuses a Function that has one of its own
IN_GRAPH = Functions(*(type(f"{function.__name__}InGraph", (function,), {"jvp": no_jvp}) for function in EAGER))


def functions() -> Functions:
    """Those for what torch does now."""
    return IN_GRAPH if torch.compiler.is_compiling() else EAGER
