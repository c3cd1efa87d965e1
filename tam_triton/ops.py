"""The operators as torch sees them: `torch.library` schemas, fakes and device implementations.

`torch.ops.tam_triton` holds the operators. On a GPU they launch the Triton kernels; so they do on the CPU under
TRITON_INTERPRET=1; elsewhere they run plain torch. `plain` has the same as functions that `torch.compile` can
see into. Derivatives are written once over either, in `derivatives`.
"""

import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tam_triton import layout, plain

NAMESPACE = "tam_triton"
PLAIN = f"{NAMESPACE}_plain"
"""Of `torch.ops`, for the operators and for the same in plain torch; no two copies of this library may share them."""
HAS_TRITON = importlib.util.find_spec("triton") is not None
# As Triton reads it when kernels are decorated; not imported for a variable that is not set.
INTERPRETED = HAS_TRITON and bool(
    "TRITON_INTERPRET" in os.environ and importlib.import_module("triton.knobs").runtime.interpret
)
ONE_THREAD: AbstractContextManager[object] = (
    threading.RLock() if INTERPRETED else nullcontext()
)  # Triton's interpreter is one for all threads


class Operator(NamedTuple):
    """What torch must know of an operator; its derivative, if any, stands in `derivatives`."""

    schema: str
    fake: Callable[..., Any]


OPERATORS: dict[str, Operator] = {}
"""By name, under which `kernels` and `plain` have it too."""


def operator(schema: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Puts an operator into the table, under the name of its fake: a result's shape, dtype and strides."""

    def put(fake: Callable[..., Any]) -> Callable[..., Any]:
        OPERATORS[fake.__name__] = Operator(schema, fake)
        return fake

    return put


@operator("(Tensor x, SymInt num_segments) -> Tensor")
def squeeze(x: Tensor, num_segments: int) -> Tensor:
    return x.new_empty(x.shape[0] // num_segments, x.shape[1], num_segments)


# V `(N, C, T)` may be absent, and T is then told; Θ is `(N, C, K)`, or `(C, K)` for all clips; `after`: V comes last.
@operator("(Tensor x, Tensor? importance, Tensor kernel, SymInt? num_segments=None, bool after=False) -> Tensor")
def aggregate(
    x: Tensor, importance: Tensor | None, kernel: Tensor, num_segments: int | None = None, after: bool = False
) -> Tensor:
    return layout.empty_result(x)


@operator(
    "(Tensor dy, Tensor x, Tensor? importance, Tensor kernel, SymInt? num_segments=None, bool after=False)"
    " -> (Tensor, Tensor)"
)
def weight_gradients(
    dy: Tensor,
    x: Tensor,
    importance: Tensor | None,
    kernel: Tensor,
    num_segments: int | None = None,
    after: bool = False,
) -> tuple[Tensor, Tensor]:
    T = layout.segments(importance, num_segments)
    like = kernel if importance is None else importance
    return like.new_empty(x.shape[0] // T, x.shape[1], T), kernel.new_empty(kernel.shape)


@operator(
    "(Tensor dy, Tensor? importance, Tensor kernel, Tensor? d_squeezed, bool channels_last,"
    " SymInt? num_segments=None, bool after=False) -> Tensor"
)
def input_gradient(
    dy: Tensor,
    importance: Tensor | None,
    kernel: Tensor,
    d_squeezed: Tensor | None,
    channels_last: bool,
    num_segments: int | None = None,
    after: bool = False,
) -> Tensor:
    return layout.empty(dy, channels_last)


@operator(
    "(Tensor squeezed, Tensor[] global_branch, Tensor[] local_branch, float eps, bool channels_last)"
    " -> (Tensor, Tensor)"
)
def branches(
    squeezed: Tensor, global_branch: Sequence[Tensor], local_branch: Sequence[Tensor], eps: float, channels_last: bool
) -> tuple[Tensor, Tensor]:
    lengths = (squeezed.shape[-1], global_branch[-1].shape[0])
    importance, kernel = (layout.empty_weights(squeezed, length, channels_last) for length in lengths)
    return importance, kernel


# Of G (`g`) and of L: first weight, BatchNorm's weight and bias, second weight. Beside V and Θ come what enters L's
# BatchNorm and both branches' statistics, which the gradients need. `channels_last`: how V and Θ, or dX̂, are stored.
@operator(
    "(Tensor squeezed, Tensor g_first, Tensor g_weight, Tensor g_bias, Tensor g_second,"
    " Tensor l_first, Tensor l_weight, Tensor l_bias, Tensor l_second, float eps, bool channels_last)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
def training_branches(
    squeezed: Tensor,
    g_first: Tensor, g_weight: Tensor, g_bias: Tensor, g_second: Tensor,
    l_first: Tensor, l_weight: Tensor, l_bias: Tensor, l_second: Tensor,
    eps: float, channels_last: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    clips, _, T = squeezed.shape
    wide = of_sums(squeezed)
    return (
        layout.empty_weights(squeezed, T, channels_last),
        layout.empty_weights(squeezed, g_second.shape[0], channels_last),
        squeezed.new_empty(clips, l_first.shape[0], T, dtype=wide),
        squeezed.new_empty(3, g_first.shape[0], dtype=wide),
        squeezed.new_empty(3, l_first.shape[0], dtype=wide),
    )


@operator(
    "(Tensor d_importance, Tensor d_kernel, Tensor squeezed, Tensor importance, Tensor kernel, Tensor projected,"
    " Tensor g_first, Tensor g_weight, Tensor g_bias, Tensor g_second,"
    " Tensor l_first, Tensor l_weight, Tensor l_bias, Tensor l_second, Tensor g_statistics, Tensor l_statistics,"
    " bool channels_last)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
def branch_gradients(
    d_importance: Tensor, d_kernel: Tensor, squeezed: Tensor, importance: Tensor, kernel: Tensor, projected: Tensor,
    g_first: Tensor, g_weight: Tensor, g_bias: Tensor, g_second: Tensor,
    l_first: Tensor, l_weight: Tensor, l_bias: Tensor, l_second: Tensor,
    g_statistics: Tensor, l_statistics: Tensor, channels_last: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    parameters = (g_first, g_weight, g_bias, g_second, l_first, l_weight, l_bias, l_second)
    dx = layout.empty_weights(squeezed, squeezed.shape[-1], channels_last)
    return dx, *(one.new_empty(one.shape) for one in parameters)


@operator("(Tensor x, Tensor[] norm, float eps, SymInt num_segments) -> Tensor")
def activated_squeeze(x: Tensor, norm: Sequence[Tensor], eps: float, num_segments: int) -> Tensor:
    return x.new_empty(x.shape[0] // num_segments, x.shape[1], num_segments)


@operator("(Tensor x, Tensor[] norm, float eps, Tensor importance, Tensor kernel) -> Tensor")
def activated_aggregate(x: Tensor, norm: Sequence[Tensor], eps: float, importance: Tensor, kernel: Tensor) -> Tensor:
    return layout.empty_result(x)


# BatchNorm's weight and bias `(C)`, and mean, unbiased variance and 1/σ `(3, C)`, of the batch or not, before ReLU.
@operator("(Tensor x, float eps) -> Tensor")
def batch_statistics(x: Tensor, eps: float) -> Tensor:
    return x.new_empty(3, x.shape[1], dtype=of_sums(x))


# Beside X̂ come Σ m and Σ m·x̂ over pixels, m = [A > 0]; beside dV and dΘ what dY gives of Σ dA·m and Σ dA·m·x̂.
@operator("(Tensor x, Tensor weight, Tensor bias, Tensor statistics, SymInt num_segments) -> (Tensor, Tensor)")
def normalized_squeeze(
    x: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor, num_segments: int
) -> tuple[Tensor, Tensor]:
    size = (x.shape[0] // num_segments, x.shape[1], num_segments)
    return x.new_empty(size), x.new_empty(2, *size, dtype=of_sums(x))


@operator("(Tensor x, Tensor weight, Tensor bias, Tensor statistics, Tensor importance, Tensor kernel) -> Tensor")
def normalized_aggregate(
    x: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor, importance: Tensor, kernel: Tensor
) -> Tensor:
    return layout.empty_result(x)


@operator(
    "(Tensor dy, Tensor x, Tensor weight, Tensor bias, Tensor statistics, Tensor importance, Tensor kernel)"
    " -> (Tensor, Tensor, Tensor)"
)
def normalized_gradients(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor, importance: Tensor, kernel: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    sums = importance.new_empty(2, *importance.shape, dtype=of_sums(x))
    return importance.new_empty(importance.shape), kernel.new_empty(kernel.shape), sums


@operator("(Tensor d_sums, Tensor sums, Tensor d_squeezed, SymInt pixels) -> (Tensor, Tensor)")
def batch_norm_gradients(d_sums: Tensor, sums: Tensor, d_squeezed: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
    return sums.new_empty(sums.shape[2]), sums.new_empty(sums.shape[2])


@operator(
    "(Tensor dy, Tensor x, Tensor weight, Tensor bias, Tensor statistics, Tensor importance, Tensor kernel,"
    " Tensor d_squeezed, Tensor? d_weight, Tensor? d_bias) -> Tensor"
)
def normalized_input_gradient(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor, importance: Tensor, kernel: Tensor,
    d_squeezed: Tensor, d_weight: Tensor | None, d_bias: Tensor | None,
) -> Tensor:  # fmt: skip
    return layout.empty_result(x)


def of_sums(x: Tensor) -> torch.dtype:
    """The dtype in which sums over x are taken."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def in_plain_torch(name: str) -> Any:
    """An operator in plain torch."""
    return getattr(plain, name)


def on_triton(name: str) -> Any:
    """The Triton launcher of an operator; Triton is imported when the first one is needed."""

    def launch(*args: Any) -> Any:
        from tam_triton import kernels

        with ONE_THREAD:
            return getattr(kernels, name)(*args)

    return launch


def register() -> None:
    """Defines the operators, and those that are plain torch everywhere; runs once, at import."""
    # The fakes derive the result's strides from the input's: the compiler must not pass others.
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
    for name, (schema, fake) in OPERATORS.items():
        full_name = f"{NAMESPACE}::{name}"
        torch.library.define(full_name, schema, tags=tags)
        torch.library.register_fake(full_name, fake)
        torch.library.impl(full_name, "default", on_triton(name) if INTERPRETED else in_plain_torch(name))
        if HAS_TRITON and not INTERPRETED:
            torch.library.impl(full_name, "cuda", on_triton(name))
        torch.library.define(f"{PLAIN}::{name}", schema, tags=tags)
        torch.library.impl(f"{PLAIN}::{name}", "default", in_plain_torch(name))


register()

BY_NAME = {
    "triton": SimpleNamespace(**{name: getattr(getattr(torch.ops, NAMESPACE), name) for name in OPERATORS}),
    "torch": SimpleNamespace(**{name: getattr(getattr(torch.ops, PLAIN), name) for name in OPERATORS}),
}
IMPLEMENTATIONS = {
    "triton": BY_NAME["triton"],
    "torch": SimpleNamespace(**{name: in_plain_torch(name) for name in OPERATORS}),
}
"""The operators of each, with arguments and shapes as in `plain`."""


def operators(impl: str) -> SimpleNamespace:
    """Those of an implementation.

    While a FLOP counter watches, those of plain torch have names too: it would else see elementwise products and sums,
    which it does not count. What computes stays what was asked for.
    """
    return (BY_NAME if is_counted() else IMPLEMENTATIONS)[impl]


def is_counted() -> bool:
    """Whether a FLOP counter watches, which then knows the operators; nothing is imported where there is none."""
    if torch.compiler.is_compiling() or not torch._C._len_torch_dispatch_stack():
        return False
    if "torch.utils.flop_counter" not in sys.modules:
        return False
    from tam_triton.flops import is_counting

    return is_counting()
