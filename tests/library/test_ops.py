"""Autograd over the operators: gradcheck, one gradient of X, what is saved, double backward."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tam_triton import TAM, aggregate, ops, squeeze, squeeze_and_aggregate
from tests.support.strategies import Problem
from tests.support.tolerance import assert_close

each_impl = pytest.mark.parametrize("impl", ["triton", "torch"])
each_layout = pytest.mark.parametrize("memory", ["contiguous", "channels_last", "sliced"])
SMALL = Problem(N=2, T=3, C=4, H=3, W=2, K=3, dtype=torch.float64)


def inputs(problem: Problem = SMALL, requires_grad: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    tensors = (problem.features(), problem.importance(), problem.kernel())
    return tuple(t.detach().requires_grad_(requires_grad) for t in tensors)  # type: ignore[return-value]


def branches(squeezed: Tensor) -> tuple[Tensor, Tensor]:
    """A cheap stand-in for G and L, so that X also reaches the output through X̂."""
    return squeezed.sigmoid(), torch.softmax(squeezed[..., :3] * 2, -1)


@each_impl
@each_layout
def test_gradcheck(impl: str, memory: str) -> None:
    x, importance, kernel = inputs(Problem(**{**vars(SMALL), "layout": memory}))
    check = torch.autograd.gradcheck
    assert check(lambda t: squeeze(t, SMALL.T, impl=impl), x, fast_mode=True)
    assert check(lambda *t: aggregate(*t, impl=impl), (x, importance, kernel), fast_mode=True)
    assert check(lambda t: squeeze_and_aggregate(t, branches, SMALL.T, 3, impl=impl), x, fast_mode=True)


@each_impl
def test_the_two_gradients_of_x_meet(impl: str) -> None:
    """The fused pair gives what autograd gives when it adds the squeeze's gradient to the aggregation's itself."""
    x = inputs()[0]
    fused = squeeze_and_aggregate(x, branches, SMALL.T, 3, impl=impl)
    apart = aggregate(x, *branches(squeeze(x, SMALL.T, impl=impl)), impl=impl)
    dy = SMALL.features(salt=3)
    assert torch.equal(fused, apart)
    torch.testing.assert_close(torch.autograd.grad(fused, x, dy), torch.autograd.grad(apart, x, dy))


@each_impl
def test_weights_wider_than_x_are_not_rounded(impl: str) -> None:
    problem = Problem(N=2, T=3, C=4, H=3, W=2, K=3, dtype=torch.bfloat16)
    x, dy = problem.features().requires_grad_(), problem.features(salt=3)

    def wide(squeezed: Tensor) -> tuple[Tensor, Tensor]:
        return branches(squeezed if squeezed.dtype == torch.float64 else squeezed.float())

    def gradient(x: Tensor, dy: Tensor, fused: bool) -> Tensor:
        if fused:
            y = squeeze_and_aggregate(x, wide, problem.T, 3, impl=impl)
        else:
            y = aggregate(x, *wide(squeeze(x, problem.T, impl=impl)), impl=impl)
        return torch.autograd.grad(y, x, dy)[0]

    truth = gradient(x.detach().double().requires_grad_(), dy.double(), fused=False)
    assert_close(gradient(x, dy, fused=True), truth.numpy(), gradient(x, dy, fused=False))


@each_impl
def test_nothing_but_x_is_saved_at_its_size(impl: str) -> None:
    problem = Problem(N=1, T=4, C=8, H=16, W=16, K=3)
    x = problem.features().requires_grad_()
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        TAM(8, 4, impl=impl)(x)
    large = {t.data_ptr() for t in saved if t.untyped_storage().nbytes() >= x.nbytes}
    assert large == {x.data_ptr()}


@each_impl
def test_frozen_input_still_trains_the_branches(impl: str) -> None:
    module = TAM(8, 4, impl=impl)
    x = Problem(N=2, T=4, C=8, H=3, W=3, K=3).features()
    expected = torch.autograd.grad(module(x.clone().requires_grad_()).square().sum(), list(module.parameters()))
    torch.testing.assert_close(torch.autograd.grad(module(x).square().sum(), list(module.parameters())), expected)


@each_impl
def test_double_backward(impl: str) -> None:
    x, importance, kernel = inputs()
    check = torch.autograd.gradgradcheck
    assert check(lambda t: squeeze(t, SMALL.T, impl=impl), x, fast_mode=True)
    assert check(lambda *t: aggregate(*t, impl=impl), (x, importance, kernel), fast_mode=True)
    assert check(lambda t: squeeze_and_aggregate(t, branches, SMALL.T, 3, impl=impl), x, fast_mode=True)


def test_gradients_are_operators_with_gradients() -> None:
    """Those registered with torch, called as they are: first and second derivatives."""
    x, importance, kernel = inputs()
    dy, d_squeezed = (t.requires_grad_() for t in (SMALL.features(salt=3), SMALL.importance().flip(0)))
    registered = ops.IMPLEMENTATIONS["triton"]
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(registered.weight_gradients, (dy, x, importance, kernel), fast_mode=True)
        for offset in (d_squeezed, None):
            arguments: tuple[Any, ...] = (dy, importance, kernel, offset, False)
            assert check(registered.input_gradient, arguments, fast_mode=True)
