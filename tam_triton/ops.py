"""The operators as torch sees them: `torch.library` schemas, fakes, device implementations and autograd.

`torch.ops.tam_triton` holds the operators. On a GPU they launch the Triton kernels; so they do on the CPU under
TRITON_INTERPRET=1; elsewhere they run plain torch. `cpu` has the same as plain functions that `torch.compile` can
see into. Autograd is written once over either.

How dX is written once. X reaches the output by two ways, through the squeeze and through the aggregation; autograd
would write both gradients and then add them. Instead the squeeze hands out, beside X̂, three slots without storage,
shaped like X, V and Θ, which only the aggregation takes. The aggregation's backward returns dY, V and Θ as the
"gradients" of these slots, so the squeeze's backward, which runs last, holds all it needs to write dX. The slots never
leave `squeeze_and_aggregate`.
"""

import importlib.util
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tam_triton import cpu, layout

HAS_TRITON = importlib.util.find_spec("triton") is not None
# As Triton reads it when kernels are decorated; not imported for a variable that is not set.
INTERPRETED = HAS_TRITON and bool(
    "TRITON_INTERPRET" in os.environ and importlib.import_module("triton.knobs").runtime.interpret
)
ONE_THREAD: AbstractContextManager[object] = (
    threading.RLock() if INTERPRETED else nullcontext()
)  # Triton's interpreter is one for all threads


class Primitives(NamedTuple):
    """The operators of one implementation; arguments and shapes as in `cpu`."""

    squeeze: Callable[..., Tensor]
    aggregate: Callable[..., Tensor]
    weight_gradients: Callable[..., tuple[Tensor, Tensor]]
    input_gradient: Callable[..., Tensor]
    branches: Callable[..., tuple[Tensor, Tensor]]
    activated_squeeze: Callable[..., Tensor]
    activated_aggregate: Callable[..., Tensor]


SCHEMAS = {
    "squeeze": "(Tensor x, SymInt num_segments) -> Tensor",
    "aggregate": "(Tensor x, Tensor importance, Tensor kernel) -> Tensor",
    "weight_gradients": "(Tensor dy, Tensor x, Tensor importance, Tensor kernel) -> (Tensor, Tensor)",
    "input_gradient": (
        "(Tensor dy, Tensor importance, Tensor kernel, Tensor? d_squeezed, bool channels_last) -> Tensor"
    ),
    "branches": (
        "(Tensor squeezed, Tensor[] global_branch, Tensor[] local_branch, float eps, bool channels_last)"
        " -> (Tensor, Tensor)"
    ),
    "activated_squeeze": "(Tensor x, Tensor[] norm, float eps, SymInt num_segments) -> Tensor",
    "activated_aggregate": "(Tensor x, Tensor[] norm, float eps, Tensor importance, Tensor kernel) -> Tensor",
}


def fake_squeeze(x: Tensor, num_segments: int) -> Tensor:
    return x.new_empty(x.shape[0] // num_segments, x.shape[1], num_segments)


def fake_aggregate(x: Tensor, importance: Tensor, kernel: Tensor) -> Tensor:
    return layout.empty_result(x)


def fake_weight_gradients(dy: Tensor, x: Tensor, importance: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    return importance.new_empty(importance.shape), kernel.new_empty(kernel.shape)


def fake_input_gradient(
    dy: Tensor, importance: Tensor, kernel: Tensor, d_squeezed: Tensor | None, channels_last: bool
) -> Tensor:
    return layout.empty(dy, channels_last)


def fake_branches(
    squeezed: Tensor, global_branch: Sequence[Tensor], local_branch: Sequence[Tensor], eps: float, channels_last: bool
) -> tuple[Tensor, Tensor]:
    lengths = (squeezed.shape[-1], global_branch[-1].shape[0])
    importance, kernel = (layout.empty_weights(squeezed, length, channels_last) for length in lengths)
    return importance, kernel


def fake_activated_squeeze(x: Tensor, norm: Sequence[Tensor], eps: float, num_segments: int) -> Tensor:
    return fake_squeeze(x, num_segments)


def fake_activated_aggregate(
    x: Tensor, norm: Sequence[Tensor], eps: float, importance: Tensor, kernel: Tensor
) -> Tensor:
    return layout.empty_result(x)


def setup_squeeze(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.shape = inputs[0].shape


def squeeze_backward(ctx: Any, d_squeezed: Tensor) -> tuple[Tensor, None]:
    """dX = dX̂/P at every pixel: a view, nothing is written."""
    pixels = ctx.shape[2] * ctx.shape[3]
    return (d_squeezed / pixels).transpose(1, 2).reshape(*ctx.shape[:2], 1, 1).expand(ctx.shape), None


def setup_aggregate(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.impl = inputs[-1] if isinstance(inputs[-1], str) else "triton"


def aggregate_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, importance, kernel = ctx.saved_tensors
    backend = IMPLEMENTATIONS[ctx.impl]
    dx = d_importance = d_kernel = None
    if ctx.needs_input_grad[0]:
        dx = backend.input_gradient(dy, importance, kernel, None, layout.is_channels_last(x))
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        d_importance, d_kernel = backend.weight_gradients(dy, x, importance, kernel)
    return dx, d_importance, d_kernel


def refuse_double_backward(ctx: Any, *_: Tensor) -> None:
    raise NotImplementedError("tam_triton: the gradients have no derivative; create_graph=True is not supported")


def refuse_backward(ctx: Any, *_: Tensor) -> None:
    raise NotImplementedError("tam_triton: operators with BatchNorm folded have no gradient; use TAM's layers")


class Aggregate(torch.autograd.Function):
    """Excitation and aggregation in plain torch, with the gradients in explicit form."""

    @staticmethod
    def forward(x: Tensor, importance: Tensor, kernel: Tensor, impl: str) -> Tensor:
        return IMPLEMENTATIONS[impl].aggregate(x, importance, kernel)

    setup_context = staticmethod(setup_aggregate)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return *aggregate_backward(ctx, dy), None


class SqueezeWithSlots(torch.autograd.Function):
    """X → X̂ and the slots through which the aggregation's backward reaches this one (see the top of this file)."""

    @staticmethod
    def forward(
        x: Tensor, num_segments: int, kernel_size: int, weights_dtype: torch.dtype, impl: str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        squeezed = IMPLEMENTATIONS[impl].squeeze(x, num_segments)
        weight = x.new_zeros((), dtype=weights_dtype)
        return (
            squeezed,
            x.new_zeros(()).expand(x.shape),
            weight.expand(squeezed.shape),
            weight.expand(*squeezed.shape[:2], kernel_size),
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.channels_last = layout.is_channels_last(inputs[0])
        ctx.impl = inputs[-1]

    @staticmethod
    def backward(ctx: Any, d_squeezed: Tensor, dy: Tensor, importance: Tensor, kernel: Tensor) -> tuple[Any, ...]:
        dx = IMPLEMENTATIONS[ctx.impl].input_gradient(dy, importance, kernel, d_squeezed, ctx.channels_last)
        return dx, None, None, None, None


class AggregateWithSlots(torch.autograd.Function):
    """Aggregation whose gradient of X leaves through the slots."""

    @staticmethod
    def forward(
        x: Tensor, importance: Tensor, kernel: Tensor, dy_slot: Tensor, v_slot: Tensor, theta_slot: Tensor, impl: str
    ) -> Tensor:
        return IMPLEMENTATIONS[impl].aggregate(x, importance, kernel)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        setup_aggregate(ctx, inputs, output)
        ctx.weights_dtype = inputs[4].dtype  # a gradient has the dtype of what it belongs to

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, importance, kernel = ctx.saved_tensors
        d_importance, d_kernel = IMPLEMENTATIONS[ctx.impl].weight_gradients(dy, x, importance, kernel)
        return None, d_importance, d_kernel, dy, importance.to(ctx.weights_dtype), kernel.to(ctx.weights_dtype), None


def register() -> None:
    """Defines `torch.ops.tam_triton`; runs once, when this module is imported."""
    fakes: dict[str, Callable[..., Any]] = {
        "squeeze": fake_squeeze,
        "aggregate": fake_aggregate,
        "weight_gradients": fake_weight_gradients,
        "input_gradient": fake_input_gradient,
        "branches": fake_branches,
        "activated_squeeze": fake_activated_squeeze,
        "activated_aggregate": fake_activated_aggregate,
    }
    for name, schema in SCHEMAS.items():
        operator = f"tam_triton::{name}"
        # The fakes derive the result's strides from the input's: the compiler must not pass others.
        torch.library.define(operator, schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))
        torch.library.register_fake(operator, fakes[name])
        if INTERPRETED:
            torch.library.impl(operator, "default", kernel(name))
        else:
            torch.library.impl(operator, "default", plain(name))
        if HAS_TRITON and not INTERPRETED:
            torch.library.impl(operator, "cuda", kernel(name))
    torch.library.register_autograd("tam_triton::squeeze", squeeze_backward, setup_context=setup_squeeze)
    torch.library.register_autograd("tam_triton::aggregate", aggregate_backward, setup_context=setup_aggregate)
    for name in ("weight_gradients", "input_gradient"):
        torch.library.register_autograd(f"tam_triton::{name}", refuse_double_backward)
    for name in ("branches", "activated_squeeze", "activated_aggregate"):
        torch.library.register_autograd(f"tam_triton::{name}", refuse_backward)


def plain(name: str) -> Any:
    """An operator in plain torch."""
    return getattr(cpu, name)


def kernel(name: str) -> Any:
    """The Triton launcher of an operator; Triton is imported when the first one is needed."""

    def launch(*args: Any) -> Any:
        from tam_triton import kernels

        with ONE_THREAD:
            return getattr(kernels, name)(*args)

    return launch


register()

IMPLEMENTATIONS = {
    "triton": Primitives(*(getattr(torch.ops.tam_triton, name) for name in Primitives._fields)),
    "torch": Primitives(*(plain(name) for name in Primitives._fields)),
}
