"""The compiled operators, executed, against the reference: the properties of the interpreted ones, by the same rule."""

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from triton.runtime import driver

from bench.offline import AbsentDevice
from bench.ptx.driver import TARGETS
from tests.executed.compiled import Compiled
from tests.support.operators import OPERATORS, Operator, check_against_reference, each_operator
from tests.support.strategies import Problem, examples, problems

pytestmark = pytest.mark.executed


@pytest.fixture(autouse=True, scope="module")
def absent_gpu() -> Iterator[None]:
    """The edges of blocks, and strides that fakes promise, are asked for outside `device`."""
    with mock.patch.object(driver, "_active", AbsentDevice("sm_90")):
        yield


@each_operator
@examples(0.16)
@given(problem=problems(), target=st.sampled_from(list(TARGETS)))
def test_equals_the_reference(operator: Operator, problem: Problem, target: str) -> None:
    check_against_reference(Compiled(target), operator, problem)  # type: ignore[arg-type]


@pytest.mark.deep
@each_operator
def test_sixteen_frames_and_five_taps(operator: Operator) -> None:
    for layout in ("contiguous", "channels_last"):
        problem = Problem(N=2, T=16, C=24, H=7, W=6, K=5, layout=layout, dy_layout=layout, dtype=torch.bfloat16)
        check_against_reference(Compiled("sm_90"), operator, problem)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [-1.0, 1.0])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_what_is_approximate_may_err_as_far_as_it_is_allowed(layout: str, error: float) -> None:
    """Square roots, exponentials and quotients of a GPU are not exact. A single V is one of each, and nothing else."""
    small, single = Problem(N=2, T=4, C=16, H=3, W=3, K=3, layout=layout), Problem(N=1, T=1, C=1, H=1, W=1, K=3)
    cases = [
        ("branches", small), ("activated_squeeze", small), ("activated_aggregate", small), ("branches", single),
        ("training_branches", small), ("branch_gradients", single),
    ]  # fmt: skip
    rows = {str(operator): operator for operator in OPERATORS}
    for name, problem in cases:
        check_against_reference(Compiled("sm_90", error=error), rows[name], problem)  # type: ignore[arg-type]


def backwards(count: int) -> range:
    return range(count)[::-1]


@pytest.mark.deep
@each_operator
def test_order_changes_no_bit(operator: Operator) -> None:
    """Of programs, and of the warps of each between two barriers."""
    orders: list[dict[str, Any]] = [{"order": backwards, "batch": 1}, {"warp_order": backwards}]
    for layout in ("contiguous", "channels_last"):
        arguments = operator.arguments(Problem(N=2, T=4, C=24, H=6, W=6, K=3, layout=layout, dy_layout=layout))
        expected = operator.call(Compiled("sm_90"), arguments)  # type: ignore[arg-type]
        for order in orders:
            results = operator.call(Compiled("sm_90", **order), arguments)  # type: ignore[arg-type]
            assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True)), order


@pytest.mark.deep
def test_copies_that_are_not_proven_to_agree_do() -> None:
    """Of sums over the rows of a batch that are gone through in a loop: the machine compares what lanes store."""
    (operator,) = (row for row in OPERATORS if row.name == "branch_gradients")
    problem = Problem(8, 8, 256, 2, 2, 3, layout="channels_last", dy_layout="channels_last", dtype=torch.bfloat16)
    assert operator.call(Compiled("sm_90"), operator.arguments(problem))  # type: ignore[arg-type]
