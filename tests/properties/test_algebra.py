"""What the operators' mathematics implies: transposes, linearity, symmetries and the identities of the paper.

Sums of small integers in float32 are exact in any order, so these hold with `==`.
"""

import functools
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from tam_triton import aggregate, squeeze, squeeze_and_aggregate
from tests.support.operators import Operator, each_backend, each_channelwise, each_linear, each_tensor
from tests.support.strategies import DENSE, Problem, another, examples, problems

FLOATS = (torch.float32, torch.float64)
exact_problems = problems(dtypes=FLOATS, integers=True)
each_impl = pytest.mark.parametrize("impl", ["triton", "torch"])


@each_backend
@each_linear
@examples(0.12)
@given(problem=exact_problems)
def test_gradient_is_the_transpose(
    backend: ModuleType, operator: Operator, group: tuple[str, ...], problem: Problem
) -> None:
    """⟨f(u), d⟩ = ⟨u, fᵀ(d)⟩: for the aggregation, ⟨y, dy⟩ = ⟨x, dx⟩ = ⟨V, dV⟩ = ⟨Θ, dΘ⟩."""
    problem = operator.on_exact(problem)
    arguments = operator.arguments(problem)
    results = operator.call(backend, arguments)
    cotangents = operator.cotangents(problem, results)
    gradients = operator.transposes[group](backend, cotangents, arguments)
    values = tuple(arguments[name] for name in group)
    assert inner(results, cotangents) == inner(values, gradients)


def inner(these: tuple[Tensor, ...], those: tuple[Tensor, ...]) -> float:
    return sum((a.double() * b.double()).sum().item() for a, b in zip(these, those, strict=True))


@each_backend
@each_linear
@examples(0.12)
@given(problem=exact_problems, factors=st.tuples(st.integers(-3, 3), st.integers(-3, 3)))
def test_linear(
    backend: ModuleType, operator: Operator, group: tuple[str, ...], problem: Problem, factors: tuple[int, int]
) -> None:
    """f(a·u + b·w) = a·f(u) + b·f(w)."""
    (a, b), problem = factors, operator.on_exact(problem)
    first, other = operator.arguments(problem), operator.arguments(another(problem))
    second = {**first, **{name: other[name] for name in group}}
    combined = {**first, **{name: a * first[name] + b * second[name] for name in group}}
    of_first, of_second, of_combined = (operator.call(backend, given) for given in (first, second, combined))
    for u, w, result in zip(of_first, of_second, of_combined, strict=True):
        assert torch.equal(result, a * u + b * w)


def clipwise(change: Callable[[Tensor], Tensor], problem: Problem) -> Callable[[Tensor], Tensor]:
    """`change` of `(N, …)` for feature maps too; vectors, and a kernel `(C, K)`, belong to all clips."""

    def changed(t: Tensor) -> Tensor:
        if t.dim() == 4:
            return change(t.unflatten(0, (-1, problem.T))).flatten(0, 1)
        return t if t.dim() == 1 else change(t)

    return changed


def permuted_clips(problem: Problem) -> Callable[[Tensor], Tensor]:
    order = torch.randperm(problem.N, generator=torch.Generator().manual_seed(problem.seed))
    return clipwise(lambda t: t if t.dim() == 2 else t[order], problem)


def permuted_channels(problem: Problem) -> Callable[[Tensor], Tensor]:
    order = torch.randperm(problem.C, generator=torch.Generator().manual_seed(problem.seed))
    return lambda t: t[order] if t.dim() <= 2 else t[:, order]


def reversed_time(problem: Problem) -> Callable[[Tensor], Tensor]:
    """Frames in reverse, and so the taps."""
    return clipwise(lambda t: t.flip(1 if t.dim() == 5 else -1), problem)


@pytest.mark.parametrize("symmetry", [permuted_clips, permuted_channels, reversed_time], ids=lambda f: f.__name__)
@each_backend
@each_channelwise
@examples(0.12)
@given(problem=exact_problems)
def test_symmetry(
    backend: ModuleType,
    operator: Operator,
    symmetry: Callable[[Problem], Callable[[Tensor], Tensor]],
    problem: Problem,
) -> None:
    """Rearranged arguments give rearranged results: clips and channels are independent, and time has no direction."""
    problem = operator.on_exact(problem)
    arguments, change = operator.arguments(problem), symmetry(problem)
    expected = [change(result) for result in operator.call(backend, arguments)]
    for result, value in zip(operator.call(backend, each_tensor(change, arguments)), expected, strict=True):
        assert torch.equal(result, value)


@each_backend
@examples(0.24)
@example(problem=Problem(N=1, T=3, C=2, H=1, W=2, K=3, layout="channels_last"), place=0)
@given(problem=problems(dtypes=(torch.float32, torch.float16, torch.bfloat16)), place=st.integers(0, 6))
def test_one_tap_is_a_shift(backend: ModuleType, problem: Problem, place: int) -> None:
    """V = 1 and a single tap: the identity (TSN) where it is the middle one, else a shift in time either way (TSM)."""
    tap = place % problem.K
    clip = problem.features().unflatten(0, (-1, problem.T))
    kernel = torch.zeros_like(problem.kernel()).contiguous()
    kernel[..., tap] = 1
    ones = torch.ones_like(problem.importance())
    y = backend.aggregate(problem.features(), ones, kernel).unflatten(0, (-1, problem.T))
    for t in range(problem.T):
        source = t + tap - problem.K // 2
        expected = clip[:, source] if 0 <= source < problem.T else torch.zeros_like(clip[:, t])
        assert torch.equal(y[:, t], expected), t


@each_backend
@examples(0.24)
@given(problem=exact_problems)
def test_constant_clip_stays_constant_inside(backend: ModuleType, problem: Problem) -> None:
    """Where the taps sum to 1; at a clip's ends some of them see zeros."""
    clip = problem.features().unflatten(0, (-1, problem.T))[:, :1].expand(-1, problem.T, -1, -1, -1)
    kernel = problem.kernel().clone()
    kernel[..., 0] += 1 - kernel.sum(-1)
    y = backend.aggregate(clip.flatten(0, 1), torch.ones_like(problem.importance()), kernel)
    half = problem.K // 2
    for t in range(half, problem.T - half):
        assert torch.equal(y.unflatten(0, (-1, problem.T))[:, t], clip[:, t]), t


def branches(kernel_size: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """A smooth stand-in for the two branches, by which X also reaches the output through X̂."""
    return lambda squeezed: (
        squeezed.sigmoid(),
        (squeezed[..., :1] * torch.arange(1, kernel_size + 1, dtype=squeezed.dtype)).softmax(-1),
    )


@each_impl
@examples(0.08)
@given(problem=problems(dtypes=(torch.float64,), layouts=DENSE).filter(lambda p: p.C <= 8))
def test_gradcheck(impl: str, problem: Problem) -> None:
    leaves = [t.requires_grad_() for t in (problem.features(), problem.importance(), problem.kernel())]
    check = functools.partial(torch.autograd.gradcheck, fast_mode=True, check_undefined_grad=False)
    assert check(lambda x: squeeze(x, problem.T, impl=impl), leaves[0])
    assert check(lambda *t: aggregate(*t, impl=impl), leaves)
    fused = branches(problem.K)
    assert check(lambda x: squeeze_and_aggregate(x, fused, problem.T, problem.K, impl=impl), leaves[0])
