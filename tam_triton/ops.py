"""The operators as torch sees them: `torch.library` schemas, fakes and device implementations.

`torch.ops.tam_triton` holds the operators. On a GPU they launch the Triton kernels; so they do on the CPU under
TRITON_INTERPRET=1; elsewhere they run plain torch. `cpu` has the same as plain functions that `torch.compile` can
see into. Derivatives are written once over either, in `derivatives`.
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
