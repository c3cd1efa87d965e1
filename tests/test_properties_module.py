"""What the mathematics implies of the whole of TAM, on both implementations.

Its branches are no integers: a rearranged result is compared with the rearranged truth, under the rule for rounding.
"""

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bench import peers as eager
from tam_triton import TAM, layout
from tests.guards import shuffled_programs
from tests.strategies import DENSE, Problem, examples, others, problems
from tests.test_module import each_impl, each_mode, random_tam, run
from tests.tolerance import assert_close

FLOATS = (torch.float32, torch.bfloat16)
# BatchNorm needs two rows, and the local branch a hidden channel.
enough = problems(dtypes=(torch.float32,)).filter(lambda p: p.N * p.T > 1 and p.C >= 4)
dense = problems(dtypes=(torch.float64,), layouts=DENSE).filter(lambda p: p.N * p.T > 1 and 4 <= p.C <= 8)


def tam(problem: Problem, impl: str, training: bool = False) -> TAM:
    return random_tam(problem.C, problem.T, problem.K, impl=impl, training=training).to(problem.dtype)


def rearranged(module: TAM, change: Callable[[TAM], None]) -> TAM:
    twin = copy.deepcopy(module)
    with torch.no_grad():
        change(twin)
    return twin


def frames_reversed(x: Tensor, T: int) -> Tensor:
    return x.unflatten(0, (-1, T)).flip(1).flatten(0, 1)


@each_impl
@each_mode
@examples(0.08)
@given(problem=enough)
def test_dy_and_x_in_any_layout(impl: str, training: bool, problem: Problem) -> None:
    """The layouts of X and dY change neither the result nor any gradient, and Y and dX have that of X."""
    module = tam(problem, impl, training)

    def to_compare(problem: Problem) -> list[tuple[np.ndarray, Tensor]]:
        """(truth, plain) of y and of dx."""
        x, dy = problem.features(), problem.gradient()
        twin, exact = copy.deepcopy(module), copy.deepcopy(module).double()
        plain_y, plain_dx, _ = run(lambda t: eager.tam(twin, t), twin, x, dy)
        true_y, true_dx, _ = run(lambda t: eager.tam(exact, t), exact, x.double(), dy.double())
        return [(true_y.numpy(), plain_y), (true_dx.numpy(), plain_dx)]

    expected = to_compare(problem)
    x = problem.features().requires_grad_()
    y = module(x)
    (dx,) = torch.autograd.grad(y, x, problem.gradient())
    for i, result in enumerate((y.detach(), dx)):
        assert_close(result, *expected[i], (to_compare(other)[i] for other in others(problem)))
    assert layout.is_channels_last(y) == layout.is_channels_last(dx) == layout.is_channels_last(layout.empty_result(x))


@each_impl
@each_mode
@examples(0.08)
@given(problem=enough)
def test_permuted_clips(impl: str, training: bool, problem: Problem) -> None:
    """BatchNorm's statistics do not know the order of clips, and nothing else joins them."""
    module = tam(problem, impl, training)
    order = torch.randperm(problem.N, generator=torch.Generator().manual_seed(problem.seed))

    def permuted(x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, problem.T))[order].flatten(0, 1)

    with torch.no_grad():
        check_rearranged(module, module, problem, permuted)


@each_impl
@each_mode
@examples(0.08)
@given(problem=enough)
def test_permuted_channels(impl: str, training: bool, problem: Problem) -> None:
    """The global branch is the same for every channel; the local one permutes with its weights."""
    module = tam(problem, impl, training)
    order = torch.randperm(problem.C, generator=torch.Generator().manual_seed(problem.seed))

    def permute(twin: TAM) -> None:
        first, last = twin.get_parameter("L.0.weight"), twin.get_parameter("L.3.weight")
        first.copy_(first[:, order])
        last.copy_(last[order])

    with torch.no_grad():
        check_rearranged(module, rearranged(module, permute), problem, lambda x: x[:, order])


@each_impl
@each_mode
@examples(0.08)
@given(problem=enough)
def test_reversed_time(impl: str, training: bool, problem: Problem) -> None:
    """With the taps of Θ and of the local branch, and the frames that the global branch weighs, in reverse as well."""
    module = tam(problem, impl, training)

    def reverse(twin: TAM) -> None:
        for name, dim in (("G.0.weight", 1), ("G.3.weight", 0), ("L.0.weight", 2)):
            twin.get_parameter(name).copy_(twin.get_parameter(name).flip(dim))

    with torch.no_grad():
        check_rearranged(module, rearranged(module, reverse), problem, lambda x: frames_reversed(x, problem.T))


def check_rearranged(module: TAM, twin: TAM, problem: Problem, change: Callable[[Tensor], Tensor]) -> None:
    """`twin` of a rearranged X is `module` of X, rearranged."""

    def to_compare(problem: Problem) -> tuple[np.ndarray, Tensor]:
        x = problem.features()
        truth = change(eager.tam(copy.deepcopy(module).double(), x.double()))
        return truth.numpy(), change(eager.tam(copy.deepcopy(module), x))

    expected = to_compare(problem)
    assert_close(twin(change(problem.features())), *expected, map(to_compare, others(problem)))


@each_impl
@examples(0.24)
@given(problem=enough)
def test_branches_of_zeros_average_and_halve(impl: str, problem: Problem) -> None:
    """W₂ = 0 makes Θ uniform and W₄ = 0 makes V one half: a constant clip is halved inside, exactly but for 1/K."""
    module = tam(problem, impl)
    with torch.no_grad():
        module.get_parameter("G.3.weight").zero_()
        module.get_parameter("L.3.weight").zero_()
        clip = problem.features().unflatten(0, (-1, problem.T))[:, :1].expand(-1, problem.T, -1, -1, -1)
        y = module(clip.flatten(0, 1)).unflatten(0, (-1, problem.T))
    half = problem.K // 2
    for t in range(half, problem.T - half):
        assert_close(y[:, t], (clip[:, t].double() / 2).numpy(), sum([clip[:, t] / 2 / problem.K] * problem.K))


@each_impl
@examples(0.24)
@given(
    problem=problems(dtypes=FLOATS, layouts=DENSE).filter(lambda p: p.C >= 4),
    clip=st.integers(0, 2),
    frame=st.integers(0, 6),
    channel=st.integers(0, 16),
)
@np.errstate(invalid="ignore")
def test_nan_stays_in_its_clip_and_near_its_frame(
    impl: str, problem: Problem, clip: int, frame: int, channel: int
) -> None:
    """In evaluation. The local branch carries it to all channels of the frames beside, and the taps further."""
    if impl == "torch":  # torch 2.14's convolution in bfloat16 pads an odd number of channels by 0 × other frames' NaN
        problem = replace(problem, dtype=torch.float32)
    module = tam(problem, impl)
    n, s, c = clip % problem.N, frame % problem.T, channel % problem.C
    x = problem.features()
    poisoned = x.clone()
    poisoned.unflatten(0, (-1, problem.T))[n, s, c, 0, 0] = torch.nan
    distance = (torch.arange(problem.T) - s).abs()
    reached = torch.zeros(problem.N, problem.T, problem.C, dtype=torch.bool)
    reached[n, distance <= 1 + problem.K // 2] = True
    reached[n, :, c] = True  # Θ has seen the whole clip
    with torch.no_grad():
        y, clean = (module(t).unflatten(0, (-1, problem.T)) for t in (poisoned, x))
    assert torch.equal(y[~reached], clean[~reached])
    assert y[n, :, c].isnan().all()


@each_impl
@each_mode
@examples(0.08)
@given(problem=dense)
def test_gradcheck(impl: str, training: bool, problem: Problem) -> None:
    """In X, on both ways to Y."""
    module = tam(problem, impl, training)
    x = problem.features().requires_grad_()
    assert torch.autograd.gradcheck(module, x, fast_mode=True, check_undefined_grad=False)


@each_mode
@examples(0.08)
@given(problem=enough, seed=st.integers(0, 2**8))
def test_same_bits_in_any_order_of_programs(training: bool, problem: Problem, seed: int) -> None:
    module = tam(problem, "triton", training)
    x, dy = problem.features(), problem.gradient()
    y, dx, gradients = run(module, module, x, dy)
    with shuffled_programs(seed):
        again, dx_again, gradients_again = run(module, module, x, dy)
    assert torch.equal(y, again)
    assert torch.equal(dx, dx_again)
    assert all(torch.equal(gradient, gradients_again[name]) for name, gradient in gradients.items())
