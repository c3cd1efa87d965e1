"""Every operator equals the NumPy reference, whatever the shape, layout, dtype and magnitude of its arguments."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from tam_triton import kernels, layout
from tests.support.formulas import activation
from tests.support.operators import (
    Arguments,
    Operator,
    check_against_reference,
    each_backend,
    each_channelwise,
    each_operator,
    each_tensor,
    strides,
    together,
)
from tests.support.strategies import DENSE, Problem, block_edges, examples, problems


@each_backend
@each_operator
@examples(0.24)
@given(problem=problems(extremes=True))
@example(Problem(N=1, T=1, C=1, H=1, W=1, K=1, layout="sliced", dtype=torch.bfloat16, seed=1))
@example(Problem(N=2, T=3, C=16, H=7, W=7, K=3, layout="offset", dtype=torch.float16, seed=1))
@example(Problem(N=1, T=1, C=1, H=2, W=3, K=1, seed=5))  # one sum that cancels, which plain torch hits by luck
@example(Problem(N=1, T=3, C=3, H=1, W=3, K=1, dtype=torch.float64, seed=6889, dy_layout="channels_last"))
@example(Problem(N=1, T=4, C=1, H=1, W=63, K=1, layout="sliced", dtype=torch.float64, seed=6))  # ReLU leaves few
def test_equals_the_reference(backend: ModuleType, operator: Operator, problem: Problem) -> None:
    check_against_reference(backend, operator, problem)


@each_operator
@pytest.mark.parametrize("memory", DENSE)
def test_edges_of_blocks(operator: Operator, memory: str) -> None:
    """One below, at and one above the sizes of blocks and tiles; each operator takes every seventeenth of the edges.

    All take a map that is large enough for programs to share its pixels.
    """
    edges = [(C, P) for C, P in block_edges(itemsize=4) if C * P > 1]
    for C, P in [*edges[len(operator.name) % 17 :: 17], (3, 1028)]:
        check_against_reference(kernels, operator, Problem(N=1, T=2, C=C, H=1, W=P, K=3, layout=memory))


@each_backend
@each_channelwise
@examples(0.16)
@given(problem=problems(dtypes=(torch.float32, torch.float64), integers=True))
def test_values_do_not_depend_on_layouts(backend: ModuleType, operator: Operator, problem: Problem) -> None:
    """NCHW, channels_last, slices, crops, expanded gradients: exact sums of the same integers are the same."""
    arguments = operator.arguments(operator.on_exact(problem))
    expected = operator.call(backend, each_tensor(lambda t: t.contiguous(), arguments))
    for result, value in zip(operator.call(backend, arguments), expected, strict=True):
        assert torch.equal(result, value)


@each_backend
@examples(0.24)
@given(problem=problems())
def test_layout_of_the_input_gradient_is_free(backend: ModuleType, problem: Problem) -> None:
    """dX comes in the layout that is asked for, whatever dY's is."""
    for channels_last in (False, True):
        dx = backend.input_gradient(problem.gradient(), problem.importance(), problem.kernel(), None, channels_last)
        assert strides(dx) == strides(layout.empty(dx, channels_last))


def written_out(
    x: Tensor, importance: Tensor | None, kernel: Tensor, num_segments: int = 0, after: bool = False
) -> Tensor:
    """Equations 4 and 5 frame by frame and tap by tap; a frame outside the clip is no term, not one of 0."""
    T, K = num_segments if importance is None else importance.shape[-1], kernel.shape[-1]
    clip = x.unflatten(0, (-1, T))
    frames = []
    for t in range(T):
        reached = [(k, t + k - K // 2) for k in range(K) if 0 <= t + k - K // 2 < T]
        terms = []
        for k, s in reached:
            weight = kernel[..., k]
            if importance is not None:
                weight = weight * importance[..., t if after else s]
            terms.append(weight[..., None, None] * clip[:, s])
        frames.append(sum(terms[1:], start=terms[0]))
    return torch.stack(frames, 1).flatten(0, 1)


def derived(
    dy: Tensor, x: Tensor, importance: Tensor | None, kernel: Tensor, num_segments: int = 0, after: bool = False
) -> tuple[Tensor, ...]:
    """dX, dV and dΘ of that, by autograd; dV as if V were 1 where it is None."""
    if importance is None:
        importance = x.new_ones(x.shape[0] // num_segments, x.shape[1], num_segments)
    x, importance, kernel = leaves = [tensor.detach().requires_grad_() for tensor in (x, importance, kernel)]
    return torch.autograd.grad(written_out(x, importance, kernel, after=after), leaves, dy)


def derived_input(
    dy: Tensor, importance: Tensor | None, kernel: Tensor, d_squeezed: Tensor | None, channels_last: bool, **form: Any
) -> Tensor:
    dx = derived(dy, dy, importance, kernel, **form)[0]
    if d_squeezed is None:
        return dx
    return dx + (d_squeezed / (dy.shape[2] * dy.shape[3])).transpose(1, 2).flatten(0, 1)[..., None, None]


IEEE: dict[str, Callable[..., Any]] = {
    "squeeze": lambda x, num_segments: x.mean((2, 3)).unflatten(0, (-1, num_segments)).transpose(1, 2),
    "activated_squeeze": lambda x, norm, eps, num_segments: IEEE["squeeze"](activation(x, norm, eps), num_segments),
    "aggregate": written_out,
    "activated_aggregate": lambda x, norm, eps, **weights: written_out(activation(x, norm, eps), **weights),
    "weight_gradients": lambda **a: derived(**a)[1:],
    "input_gradient": derived_input,
}


def strewn(arguments: Arguments, seed: int, spots: int) -> Arguments:
    """The arguments with exact zeros in V and Θ, and a few NaN and infinities anywhere; BatchNorm stays as it is."""
    generator = torch.Generator().manual_seed(seed)
    changed = {
        name: value.clone(memory_format=torch.preserve_format)
        for name, value in arguments.items()
        if isinstance(value, Tensor)
    }
    for name in {"importance", "kernel"} & set(changed):
        changed[name] *= torch.rand(changed[name].shape, generator=generator) < 0.5
    for _ in range(spots):
        name = sorted(changed)[int(torch.randint(len(changed), (), generator=generator))]
        place = tuple(int(torch.randint(size, (), generator=generator)) for size in changed[name].shape)
        # A weight times a sum, or a sum of products with it: alike, unless it is infinite, as no sigmoid or softmax is.
        both = "x" in arguments and "dy" in arguments
        only_nan = ("importance", "kernel") if both else ("importance",) if {"dy", "after"} & set(arguments) else ()
        values = 1 if name in only_nan else 3
        changed[name][place] = (torch.nan, torch.inf, -torch.inf)[int(torch.randint(values, (), generator=generator))]
    return {**arguments, **changed}


@each_backend
@each_channelwise
@examples(0.4)
@given(
    problem=problems(dtypes=(torch.float32,), layouts=DENSE, integers=True),
    seed=st.integers(0, 2**16),
    spots=st.integers(1, 3),
)
@np.errstate(invalid="ignore")
def test_what_is_not_finite_follows_the_mathematics(
    backend: ModuleType, operator: Operator, problem: Problem, seed: int, spots: int
) -> None:
    """0·NaN and 0·Inf are NaN, where V or Θ is 0 as well; beyond the ends of a clip there is nothing to be NaN."""
    arguments = strewn(operator.arguments(operator.on_exact(problem)), seed, spots)
    exact = IEEE[operator.name](**each_tensor(Tensor.double, arguments))
    for result, expected in zip(operator.call(backend, arguments), together(exact), strict=True):
        assert torch.equal(result.isnan(), expected.isnan())
        assert torch.equal(result.double().nan_to_num(0), expected.nan_to_num(0))
