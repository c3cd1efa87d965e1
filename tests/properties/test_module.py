"""What the mathematics implies of the whole of TAM, on both implementations.

Its branches are no integers: a rearranged result is compared with the rearranged truth, under the rule for rounding.
"""

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from bench import peers as eager
from tam_triton import TAM, layout
from tests.library.test_module import each_impl, each_mode, random_tam, run
from tests.support.guards import shuffled_programs
from tests.support.strategies import DENSE, Problem, examples, problems
from tests.support.tolerance import assert_close, nudged

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
    x, dy = problem.features().requires_grad_(), problem.gradient()

    def plainly(module: TAM, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        """y and dx of the eager formulation."""
        twin = copy.deepcopy(module)
        return run(lambda t: eager.tam(twin, t), twin, x, dy)[:2]

    truth, plain = plainly(copy.deepcopy(module).double(), x.double(), dy.double()), plainly(module, x, dy)
    y = module(x)
    (dx,) = torch.autograd.grad(y, x, dy)
    for i, result in enumerate((y.detach(), dx)):

        def again(number: int, i: int = i) -> Tensor:
            return plainly(module, nudged(x, number), nudged(dy, number))[i]

        assert_close(result, truth[i].numpy(), plain[i], again)
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
        check_rearranged(module, module, problem.features(), permuted)


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
        check_rearranged(module, rearranged(module, permute), problem.features(), lambda x: x[:, order])


@each_impl
@each_mode
@examples(0.08)
@given(problem=enough)
@example(Problem(N=1, T=2, C=8, H=1, W=17, K=1, seed=1))  # BatchNorm over two rows: one error for many elements
def test_reversed_time(impl: str, training: bool, problem: Problem) -> None:
    """With the taps of Θ and of the local branch, and the frames that the global branch weighs, in reverse as well."""
    module = tam(problem, impl, training)

    def reverse(twin: TAM) -> None:
        for name, dim in (("G.0.weight", 1), ("G.3.weight", 0), ("L.0.weight", 2)):
            twin.get_parameter(name).copy_(twin.get_parameter(name).flip(dim))

    with torch.no_grad():
        check_rearranged(
            module, rearranged(module, reverse), problem.features(), lambda x: frames_reversed(x, problem.T)
        )


def check_rearranged(module: TAM, twin: TAM, x: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    """`twin` of a rearranged X is `module` of X, rearranged."""

    def plainly(x: Tensor) -> Tensor:
        return change(eager.tam(copy.deepcopy(module).to(x.dtype), x))

    expected, plain = plainly(x.double()).numpy(), plainly(x)
    assert_close(twin(change(x)), expected, plain, lambda number: plainly(nudged(x, number)))


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
