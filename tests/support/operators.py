"""The operators as the properties see them: one row each. A new kernel is a new row.

A row says how the arguments are drawn, what the reference and plain torch make of them, in which arguments the
operator is linear, and what carries a gradient of its results back to these. Names and ranks mean the same everywhere:
feature maps `(N·T, C, H, W)` have four dimensions, weights `(N, C, ·)` three, lists of tensors are parameters.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import reference
from bench import peers as eager
from tam_triton import kernels, layout, ops, plain
from tests.support.arguments import (
    EPS,
    NORMALIZED,
    Arguments,
    after,
    branch_parameters,
    d_squeezed,
    norm,
    shared,
    weights,
)
from tests.support.formulas import (
    PARAMETERS,
    activation,
    exact_activation,
    exact_aggregate,
    exact_branch_gradients,
    exact_branches,
    exact_gradients,
    exact_input_gradient,
    exact_normalized,
    exact_training,
    plain_aggregate,
    plain_branch_gradients,
    plain_branches,
    plain_gradients,
    plain_input_gradient,
    plain_normalized,
    plain_training,
)
from tests.support.strategies import DTYPES, EXPONENTS, Problem, weights_in_layout
from tests.support.tolerance import Error, error_of, nudged

# (backend, gradients of the results, arguments) → gradients of a group of arguments
Transpose = Callable[[ModuleType, tuple[Tensor, ...], Arguments], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Operator:
    """One row.

    Attributes:
        name: of the function, in `tam_triton.kernels` and `tam_triton.plain` alike.
        arguments: those of a problem, by name and in order.
        truth: the reference, from the arguments as NumPy arrays, feature maps as clip views `(N, T, C, H, W)`.
        plain: the same from torch's own operations, in the arguments' precision.
        transposes: by the arguments in which the operator is jointly linear, what takes gradients back to them.
        averages: something is divided by P, which is exact for powers of two alone.
        channelwise: channels do not mix, sums of integers are exact, and time may run backwards.
        dtypes: those it takes.
        note: tells rows of one name apart.
    """

    name: str
    arguments: Callable[[Problem], Arguments]
    truth: Callable[..., Any]
    plain: Callable[..., Any]
    transposes: Mapping[tuple[str, ...], Transpose] = field(default_factory=dict)
    averages: bool = False
    channelwise: bool = True
    dtypes: tuple[torch.dtype, ...] = DTYPES
    note: str = ""

    def __str__(self) -> str:
        return self.name + self.note

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Its name, in Hypothesis's reports."""
        printer.text(str(self))

    def call(self, backend: ModuleType, arguments: Arguments) -> tuple[Tensor, ...]:
        """The results, one or several."""
        return together(getattr(backend, self.name)(*arguments.values()))

    def truths(self, problem: Problem, arguments: Arguments) -> tuple[np.ndarray, ...]:
        """What the results are in exact arithmetic, in their own shapes."""
        clips = dict.fromkeys(("x", "dy"), problem.T)  # feature maps; other tensors of four dimensions are sums
        given = {name: as_reference(value, clips.get(name, 0)) for name, value in arguments.items()}
        results = together(self.truth(**given))
        return tuple(result.reshape(-1, *result.shape[2:]) if result.ndim == 5 else result for result in results)

    def in_plain_torch(self, arguments: Arguments) -> tuple[Tensor, ...]:
        """The results by torch's own operations."""
        return together(self.plain(**arguments))

    def cotangents(self, problem: Problem, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """A gradient for each result."""
        return tuple(problem.tensor(*result.shape, salt=20 + i) for i, result in enumerate(results))

    def on_exact(self, problem: Problem) -> Problem:
        """The problem, of integers, made exact for this operator: P is a power of two where it divides."""
        H, W = (1 << size.bit_length() - 1 if self.averages else size for size in (problem.H, problem.W))
        return replace(problem, H=H, W=W)


def together(results: Any) -> tuple[Any, ...]:
    return results if isinstance(results, tuple) else (results,)


def as_reference(value: Any, num_segments: int) -> Any:
    """An argument as the reference takes it."""
    if isinstance(value, list):
        return [as_reference(item, num_segments) for item in value]
    if not isinstance(value, Tensor):
        return value
    value = value.detach().double()
    return (value.unflatten(0, (-1, num_segments)) if value.dim() == 4 and num_segments else value).numpy()


def strides(x: Tensor) -> list[int]:
    """Those that matter: a dimension of one element may have any."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]


def check_against_reference(backend: ModuleType, operator: Operator, problem: Problem) -> None:
    """Values, dtype and shape, and the strides that the operator's fake promises."""
    for error in errors(backend, operator, problem):
        assert error.in_units <= 1, str(error)


def errors(backend: ModuleType, operator: Operator, problem: Problem) -> list[Error]:
    """Of each result; AssertionError where dtype, shape or strides are not those that the operator's fake promises."""
    if problem.dtype not in operator.dtypes:
        problem = replace(problem, dtype=torch.float32)
    arguments = operator.arguments(problem)
    results = operator.call(backend, arguments)
    plain = operator.in_plain_torch(arguments)
    fakes = together(ops.OPERATORS[operator.name].fake(*arguments.values()))
    assert [strides(result) for result in results] == [strides(fake) for fake in fakes]
    found = []
    for i, (result, truth) in enumerate(zip(results, operator.truths(problem, arguments), strict=True)):

        def again(number: int, i: int = i) -> Tensor:
            return operator.in_plain_torch(each_tensor(lambda tensor: nudged(tensor, number), arguments))[i]

        found.append(error_of(result, truth, plain[i], again))
    return found


def each_tensor(change: Callable[[Tensor], Tensor], arguments: Arguments) -> Arguments:
    """The arguments with every tensor changed, those in lists too."""

    def changed(value: Any) -> Any:
        if isinstance(value, list):
            return [changed(item) for item in value]
        return change(value) if isinstance(value, Tensor) else value

    return {name: changed(value) for name, value in arguments.items()}


def training_arguments(p: Problem) -> Arguments:
    """X̂ of one clip more, as BatchNorm needs two values, and both branches' parameters."""
    squeezed = weights_in_layout(p.tensor(p.N + 1, p.C, p.T, salt=1), p.weights_layout)
    branches = branch_parameters(p)
    named = {
        f"{letter}_{name}": tensor
        for letter, (first, weight, bias, _, _, second) in (
            ("g", branches["global_branch"]),
            ("l", branches["local_branch"]),
        )
        for name, tensor in zip(PARAMETERS, (first, weight, bias, second), strict=True)
    }
    return {"squeezed": squeezed, **named}


def gradient_arguments(p: Problem) -> Arguments:
    """Gradients of V and Θ, in a layout of their own, and what the forward took and gave."""
    given = training_arguments(p)
    channels_last = p.layout == "channels_last"
    importance, kernel, projected, *statistics = plain.training_branches(*(*given.values(), EPS, channels_last))
    d_importance, d_kernel = (
        weights_in_layout(p.tensor(*one.shape, salt=salt), p.weights_layout)
        for one, salt in ((importance, 50), (kernel, 51))
    )
    return {
        "d_importance": d_importance, "d_kernel": d_kernel, "squeezed": given["squeezed"], "importance": importance,
        "kernel": kernel, "projected": projected, **dict(list(given.items())[1:]),
        **dict(zip(("g_statistics", "l_statistics"), statistics, strict=True)), "channels_last": channels_last,
    }  # fmt: skip


def dy_arguments(p: Problem, offset: Tensor | None, form: Callable[[Problem], Arguments] = weights) -> Arguments:
    weights_of_form = form(p)
    return {
        "dy": p.gradient(),
        "importance": weights_of_form.pop("importance"),
        "kernel": weights_of_form.pop("kernel"),
        "d_squeezed": offset,
        "channels_last": layout.is_channels_last(p.features()),
        **weights_of_form,
    }


def form_of(a: Arguments) -> Arguments:
    """What tells the form, beside V and Θ."""
    return {name: a[name] for name in ("num_segments", "after") if name in a}


def without_gradient(x: Tensor, d_squeezed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, bool]:
    """Arguments of `input_gradient` where X reaches nothing but the squeeze."""
    zeros = torch.zeros_like(d_squeezed)
    return torch.zeros_like(x), zeros, zeros[..., :1], d_squeezed, layout.is_channels_last(x)


def into_x(b: ModuleType, dy: Tensor, a: Arguments) -> Tensor:
    channels_last = layout.is_channels_last(a["x"])
    return b.input_gradient(dy, a["importance"], a["kernel"], None, channels_last, **form_of(a))


def into_weights(b: ModuleType, dy: Tensor, x: Tensor, a: Arguments) -> tuple[Tensor, Tensor]:
    return b.weight_gradients(dy, x, a["importance"], a["kernel"], **form_of(a))


def along_weights(apply: Callable[[Tensor, Tensor], Tensor], d: tuple[Tensor, ...], a: Arguments) -> Tensor:
    """The derivative of something bilinear in V and Θ in the direction d."""
    return apply(d[0], a["kernel"]) + apply(a["importance"], d[1])


def banded(note: str, form: Callable[[Problem], Arguments]) -> tuple[Operator, ...]:
    """The rows of one form."""

    def into_both(gradients: Callable[[ModuleType, tuple[Tensor, ...], Arguments], tuple[Tensor, Tensor]]) -> Any:
        of_kernel = {("kernel",): lambda b, d, a: gradients(b, d, a)[1:]}
        of_importance = {("importance",): lambda b, d, a: gradients(b, d, a)[:1]}
        return of_kernel if form is shared else of_importance | of_kernel

    def into_dy(b: ModuleType, d: tuple[Tensor, ...], a: Arguments) -> Tensor:
        return b.aggregate(d[0], a["importance"], a["kernel"], **form_of(a))

    aggregate = Operator(
        "aggregate",
        arguments=lambda p: {"x": p.features(), **form(p)},
        truth=exact_aggregate,
        plain=plain_aggregate,
        transposes={
            ("x",): lambda b, d, a: (into_x(b, d[0], a),),
            **into_both(lambda b, d, a: into_weights(b, d[0], a["x"], a)),
        },
        note=note,
    )
    weight_gradients = Operator(
        "weight_gradients",
        arguments=lambda p: {"dy": p.gradient(), "x": p.features(), **form(p)},
        truth=lambda **a: exact_gradients(**a)[1:],
        plain=lambda **a: plain_gradients(**a)[1:],
        transposes={
            ("dy",): lambda b, d, a: (
                along_weights(lambda v, theta: b.aggregate(a["x"], v, theta, **form_of(a)), d, a),
            ),
            ("x",): lambda b, d, a: (
                along_weights(lambda v, theta: into_x(b, a["dy"], {**a, "importance": v, "kernel": theta}), d, a),
            ),
        },
        note=note,
    )
    input_gradient = Operator(
        "input_gradient",
        arguments=lambda p: dy_arguments(p, None, form),
        truth=exact_input_gradient,
        plain=plain_input_gradient,
        transposes={
            ("dy",): lambda b, d, a: (into_dy(b, d, a),),
            **into_both(lambda b, d, a: into_weights(b, a["dy"], d[0], a)),
        },
        note=note,
    )
    with_offset = replace(
        input_gradient,
        arguments=lambda p: dy_arguments(p, d_squeezed(p), form),
        transposes={
            ("dy", "d_squeezed"): lambda b, d, a: (into_dy(b, d, a), b.squeeze(d[0], a["d_squeezed"].shape[-1]))
        },
        averages=True,
        note=f"{note}+d_squeezed",
    )
    both = (input_gradient, with_offset) if form is weights else (with_offset,)
    return aggregate, weight_gradients, *both


def normalized(row: str) -> Operator:
    """One behind a BatchNorm in training. m = [A > 0] is no continuous function of X."""
    name, plus, note = row.partition("+")
    return Operator(
        name,
        # A variance of huge values, or 1/σ of tiny ones, has no float.
        arguments=lambda p: NORMALIZED[row](replace(p, values="normal" if p.values in EXPONENTS else p.values)),
        truth=lambda **a: exact_normalized(name, **a),
        plain=lambda **a: plain_normalized(name, **a),
        channelwise=False,
        note=plus + note,
    )


OPERATORS = (
    Operator(
        "squeeze",
        arguments=lambda p: {"x": p.features(), "num_segments": p.T},
        truth=lambda x, num_segments: reference.squeeze(x),
        plain=eager.squeeze,
        transposes={("x",): lambda b, d, a: (b.input_gradient(*without_gradient(a["x"], d[0])),)},
        averages=True,
    ),
    *banded("", weights),
    *banded("+shared", shared),
    *banded("+after", after),
    Operator(
        "activated_squeeze",
        arguments=lambda p: {"x": p.features(), **norm(p), "num_segments": p.T},
        truth=lambda x, norm, eps, num_segments: reference.squeeze(exact_activation(x, norm, eps)),
        plain=lambda x, norm, eps, num_segments: eager.squeeze(activation(x, norm, eps), num_segments),
        averages=True,
    ),
    Operator(
        "activated_aggregate",
        arguments=lambda p: {"x": p.features(), **norm(p), **weights(p)},
        truth=lambda x, norm, eps, **weights: reference.excite_and_aggregate(exact_activation(x, norm, eps), **weights),
        plain=lambda x, norm, eps, **weights: eager.excite_and_aggregate(activation(x, norm, eps), **weights),
        transposes={
            ("importance",): lambda b, d, a: into_weights(b, d[0], activation(a["x"], a["norm"], a["eps"]), a)[:1],
            ("kernel",): lambda b, d, a: into_weights(b, d[0], activation(a["x"], a["norm"], a["eps"]), a)[1:],
        },
    ),
    Operator(
        "branches",
        arguments=lambda p: {
            "squeezed": p.importance(),
            **branch_parameters(p),
            "eps": EPS,
            "channels_last": p.layout == "channels_last",
        },
        truth=exact_branches,
        plain=plain_branches,
        channelwise=False,
        dtypes=(torch.float32, torch.float16, torch.bfloat16),
    ),
    Operator(
        "training_branches",
        arguments=lambda p: {**training_arguments(p), "eps": EPS, "channels_last": p.layout == "channels_last"},
        truth=exact_training,
        plain=plain_training,
        channelwise=False,
    ),
    Operator(
        "branch_gradients",
        arguments=gradient_arguments,
        truth=exact_branch_gradients,
        plain=plain_branch_gradients,
        channelwise=False,
    ),
    *map(normalized, NORMALIZED),
)
LINEAR = [(operator, group) for operator in OPERATORS for group in operator.transposes]

each_backend = pytest.mark.parametrize("backend", [kernels, plain], ids=["kernels", "plain"])
each_operator = pytest.mark.parametrize("operator", OPERATORS, ids=str)
each_channelwise = pytest.mark.parametrize("operator", [op for op in OPERATORS if op.channelwise], ids=str)
each_linear = pytest.mark.parametrize(
    ("operator", "group"), LINEAR, ids=[f"{operator}-{','.join(group)}" for operator, group in LINEAR]
)
