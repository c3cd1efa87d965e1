"""Every operator equals the NumPy reference, whatever the shape, layout, dtype and magnitude of its arguments."""

from types import ModuleType

import pytest
import torch
from hypothesis import example, given

from tam_triton import kernels, layout
from tests.operators import (
    Operator,
    check_against_reference,
    each_backend,
    each_channelwise,
    each_operator,
    each_tensor,
    strides,
)
from tests.strategies import DENSE, Problem, block_edges, examples, problems


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
    """One below, at and one above the sizes of blocks and tiles; each operator takes every seventeenth of the edges."""
    edges = [(C, P) for C, P in block_edges(itemsize=4) if C * P > 1]
    for C, P in edges[len(operator.name) % 17 :: 17]:
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
