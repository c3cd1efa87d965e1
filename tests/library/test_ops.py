"""Autograd over the operators: gradcheck, one gradient of X, what is saved, double backward."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, func, nn

from tam_triton import TAM, aggregate, ops, squeeze, squeeze_and_aggregate
from tam_triton.temporal import ChannelwiseTemporalConv, TemporalAvgPool, TemporalShift
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


def large_saved(x: Tensor, function: Callable[[Tensor], Any]) -> set[int]:
    """Where the tensors of x's size lie that a call saves for its backward."""
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        function(x)
    return {t.data_ptr() for t in saved if t.untyped_storage().nbytes() >= x.nbytes}


@each_impl
def test_nothing_but_x_is_saved_at_its_size(impl: str) -> None:
    problem = Problem(N=1, T=4, C=8, H=16, W=16, K=3)
    x = problem.features().requires_grad_()
    assert large_saved(x, TAM(8, 4, impl=impl)) == {x.data_ptr()}


FROZEN: dict[str, Callable[[str], nn.Module]] = {
    "shift": lambda impl: TemporalShift(8, 4, impl=impl),
    "average": lambda impl: TemporalAvgPool(8, 4, impl=impl),
    "frozen": lambda impl: ChannelwiseTemporalConv(8, 4, impl=impl).requires_grad_(False),
    "learned": lambda impl: ChannelwiseTemporalConv(8, 4, impl=impl),
}


@each_impl
@pytest.mark.parametrize("name", FROZEN)
def test_x_is_saved_for_gradients_of_weights_alone(name: str, impl: str) -> None:
    problem = Problem(N=1, T=4, C=8, H=16, W=16, K=3)
    x, module = problem.features().requires_grad_(), FROZEN[name](impl)
    saved = large_saved(x, module)
    assert saved == ({x.data_ptr()} if name == "learned" else set())
    learned = ChannelwiseTemporalConv(8, 4, impl=impl)
    kernel = getattr(module, "kernel", torch.full((8, 3), 1 / 3))
    learned.weight.data.copy_(kernel[:, None])
    dy = problem.features(salt=3)
    gradients = [torch.autograd.grad(each(x), x, dy)[0] for each in (module, learned)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("wanted", ["x", "importance", "kernel"])
def test_an_operator_by_its_name_saves_no_more(wanted: str) -> None:
    problem = Problem(N=1, T=4, C=8, H=16, W=16, K=3, values="integers")
    values = {"x": problem.features(), "importance": problem.importance(), "kernel": problem.kernel()}
    values[wanted].requires_grad_()
    x, dy = values["x"], problem.features(salt=3)
    by_name = torch.ops.tam_triton.aggregate
    assert large_saved(x, lambda x: by_name(x, *list(values.values())[1:])) == (
        set() if wanted == "x" else {x.data_ptr()}
    )
    expected = torch.autograd.grad(aggregate(*values.values(), impl="torch"), values[wanted], dy)
    torch.testing.assert_close(
        torch.autograd.grad(by_name(*values.values()), values[wanted], dy), expected, rtol=0, atol=0
    )
    backward = torch.ops.tam_triton.input_gradient
    assert large_saved(x, lambda x: backward(x, values["importance"], values["kernel"], None, False)) == (
        set() if wanted == "x" else {x.data_ptr()}
    )


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


@pytest.mark.parametrize(
    "check",
    [torch.autograd.gradcheck, pytest.param(torch.autograd.gradgradcheck, marks=pytest.mark.deep)],
)
@pytest.mark.parametrize("name", ["weight_gradients", "input_gradient", "input_gradient of a squeezed X"])
def test_gradients_are_operators_with_gradients(name: str, check: Callable[..., bool]) -> None:
    """Those registered with torch, called as they are: first and second derivatives."""
    x, importance, kernel = inputs()
    dy, d_squeezed = (t.requires_grad_() for t in (SMALL.features(salt=3), SMALL.importance().flip(0)))
    arguments: tuple[Any, ...] = (dy, x, importance, kernel)
    if name != "weight_gradients":
        arguments = (dy, importance, kernel, d_squeezed if "squeezed" in name else None, False)
    assert check(getattr(ops.IMPLEMENTATIONS["triton"], name.split()[0]), arguments, fast_mode=True)


def test_operators_by_name_are_mapped() -> None:
    """As a compiled graph maps them: samples beside one another, and an argument that all of them share."""
    _, importance, kernel = inputs(requires_grad=False)
    x = torch.stack([SMALL.features(salt=salt) for salt in range(3)], 1)
    y = func.vmap(torch.ops.tam_triton.aggregate, (1, None, None), 1)(x, importance, kernel)
    assert torch.equal(y, torch.stack([aggregate(one, importance, kernel, impl="triton") for one in x.unbind(1)], 1))
    squeezed = func.vmap(lambda x: torch.ops.tam_triton.squeeze(x, SMALL.T), 1)(x)
    assert torch.equal(squeezed, torch.stack([squeeze(one, SMALL.T, impl="triton") for one in x.unbind(1)]))


@pytest.mark.parametrize(
    "transform", [lambda f: func.grad(lambda x: f(x).sum()), lambda f: lambda x: func.jvp(f, (x,), (x,))]
)
def test_a_transform_inside_a_compiled_graph_is_right_or_refused(transform: Any) -> None:
    x, importance, kernel = inputs(requires_grad=False)
    results = []
    for impl in ("torch", "triton"):
        eager = transform(lambda x, impl=impl: aggregate(x, importance, kernel, impl=impl))
        compiled = torch.compile(eager, fullgraph=True, backend="aot_eager")
        results.append(eager(x))
        try:
            torch.testing.assert_close(compiled(x), results[-1])
        except torch._dynamo.exc.Unsupported as error:  # torch 2.11 still gave the right numbers
            if impl == "torch" or not re.search(r"tam_triton: .* without torch.compile", str(error)):
                raise
    torch.testing.assert_close(*results)
