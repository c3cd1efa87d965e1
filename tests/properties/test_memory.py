"""What the operators touch: all of the result, nothing else, each clip apart, and the same bits in any order."""

from types import ModuleType

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tam_triton import kernels
from tests.support.guards import Guards, shuffled_programs
from tests.support.operators import OPERATORS, Arguments, Operator, each_backend, each_operator, each_tensor
from tests.support.strategies import DENSE, Problem, examples, problems

(BRANCHES,) = (operator for operator in OPERATORS if operator.name == "branches")
SPOTS = [
    (operator, name)
    for operator in OPERATORS
    if operator.channelwise
    for name, value in operator.arguments(Problem(N=1, T=1, C=1, H=1, W=1, K=1)).items()
    if isinstance(value, Tensor)
]


def at_a_spot(arguments: Arguments, name: str, index: int, value: float) -> Arguments:
    """The arguments with one element of one of them replaced."""
    changed = arguments[name].clone()
    changed[np.unravel_index(index % changed.numel(), changed.shape)] = value
    return {**arguments, name: changed}


def reached(operator: Operator, problem: Problem, arguments: Arguments, name: str, index: int) -> list[Tensor]:
    """Which elements of the results depend on one of an argument: those that move with it where all else is 1."""
    ones = each_tensor(torch.ones_like, arguments)
    before, after = operator.truths(problem, ones), operator.truths(problem, at_a_spot(ones, name, index, 2.0))
    return [torch.from_numpy(np.asarray(a != b)) for a, b in zip(before, after, strict=True)]


@each_backend
@pytest.mark.parametrize(("operator", "name"), SPOTS, ids=[f"{operator}-{name}" for operator, name in SPOTS])
@examples(0.12)
@given(
    problem=problems(dtypes=(torch.float32, torch.bfloat16), layouts=DENSE),
    index=st.integers(0, 2**12),
    value=st.sampled_from(("nan", "inf", "-inf")),
)
@np.errstate(invalid="ignore")
def test_what_is_not_finite_stays_where_it_belongs(
    backend: ModuleType, operator: Operator, name: str, problem: Problem, index: int, value: str
) -> None:
    """It reaches what the mathematics says, frames that its taps touch in its own channel; the rest keep their bits."""
    arguments = operator.arguments(problem)
    poisoned = at_a_spot(arguments, name, index, float(value))
    cones = reached(operator, problem, arguments, name, index)
    results = operator.call(backend, poisoned), operator.call(backend, arguments), cones
    for result, clean, cone in zip(*results, strict=True):
        assert torch.equal(result[~cone], clean[~cone])
        if value == "nan":
            assert result[cone].isnan().all()


@each_backend
@examples(0.24)
@given(problem=problems(dtypes=(torch.float32,), layouts=DENSE), clip=st.integers(0, 2))
@np.errstate(invalid="ignore")
def test_branches_keep_nan_in_its_clip(backend: ModuleType, problem: Problem, clip: int) -> None:
    """Channels mix inside it."""
    arguments = BRANCHES.arguments(problem)
    n = clip % problem.N
    poisoned = at_a_spot(arguments, "squeezed", n * problem.C * problem.T, float("nan"))
    others = torch.arange(problem.N) != n
    for result, clean in zip(BRANCHES.call(backend, poisoned), BRANCHES.call(backend, arguments), strict=True):
        assert torch.equal(result[others], clean[others])
        assert result[n].isnan().any()


@each_backend
@each_operator
@examples(0.12)
@given(problem=problems(dtypes=(torch.float32, torch.bfloat16)))
def test_writes_all_of_the_result_and_nothing_else(backend: ModuleType, operator: Operator, problem: Problem) -> None:
    """Results begin as NaN, borders and arguments keep every byte, and what lies around arguments is never used."""
    arguments = operator.arguments(problem)
    expected = operator.call(backend, arguments)
    guards = Guards()
    surrounded = each_tensor(guards.surround, arguments)
    with guards:
        results = operator.call(backend, surrounded)
    guards.check()
    for result, value in zip(results, expected, strict=True):
        assert torch.equal(result, value)  # NaN, where nothing was written, equals nothing


@each_operator
@examples(0.12)
@given(problem=problems(dtypes=(torch.float32, torch.bfloat16)), seed=st.integers(0, 2**8))
def test_same_bits_in_any_order_of_programs(operator: Operator, problem: Problem, seed: int) -> None:
    arguments = operator.arguments(problem)
    expected = operator.call(kernels, arguments)
    with shuffled_programs(seed):
        results = operator.call(kernels, arguments)
    for result, value in zip(results, expected, strict=True):
        assert torch.equal(result, value)


@each_backend
@each_operator
@examples(0.1)
@given(problem=problems())
def test_same_bits_every_time(backend: ModuleType, operator: Operator, problem: Problem) -> None:
    if problem.dtype not in operator.dtypes:
        return
    arguments = operator.arguments(problem)
    for first, again in zip(*(operator.call(backend, arguments) for _ in range(2)), strict=True):
        assert torch.equal(first, again)


@triton.jit
def copy_kernel(x_ptr, y_ptr, last_ptr, size, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, tl.load(x_ptr + i, mask=i < size, other=0.0), mask=i < size)
    tl.store(last_ptr, tl.program_id(0).to(tl.float32))


def copied(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The first elements of x, and which program ran last."""
    y, last = torch.empty_like(x), x.new_empty(1)
    copy_kernel[(triton.cdiv(size, 4),)](x, y, last, size, BLOCK=4)
    return y, last


@pytest.mark.parametrize("place", [-1, 10], ids=["before", "behind"])
def test_the_guards_see_a_write_outside(place: int) -> None:
    with Guards() as guards:
        y = torch.empty(10)
        y.fill_(1)
        guards.check()
        y.as_strided((), (), y.storage_offset() + place).fill_(1)
    with pytest.raises(AssertionError, match=r"a new tensor of shape \(10,\)"):
        guards.check()


def test_the_guards_see_what_is_not_written_and_what_is_read_outside() -> None:
    guards = Guards()
    x = guards.surround(torch.ones(10))
    with guards:
        short, _ = copied(x, 9)
        past, _ = copied(x.as_strided((11,), (1,)), 11)
    assert short.isnan().tolist() == [False] * 9 + [True]
    assert past[-1].isnan()


def test_the_guards_see_a_changed_argument() -> None:
    guards = Guards()
    x = guards.surround(torch.ones(10))
    x += 1
    with pytest.raises(AssertionError, match=r"an argument of shape \(10,\)"):
        guards.check()


def test_programs_run_once_in_another_order() -> None:
    x = torch.arange(400.0)
    in_order, last = copied(x, 400)
    with shuffled_programs(seed=1):
        shuffled, other = copied(x, 400)
    assert torch.equal(in_order, x)
    assert torch.equal(shuffled, x)
    assert last.item() == 99
    assert other.item() != 99
