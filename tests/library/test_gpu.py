"""The compiled kernels on a real GPU: `pytest -m gpu`. Skipped where there is none."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tam_triton import TAM, kernels, layout, plain
from tests.library.test_kernels import each_layout, each_shape
from tests.support.strategies import Problem
from tests.support.temporal import WITH_OPERATORS, in_float64
from tests.support.tolerance import INPUTS, assert_close, nudged

pytestmark = pytest.mark.gpu


@each_layout
@each_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_compiled_kernels_equal_plain_torch_in_float64(dtype: torch.dtype, memory: str, shape: Problem) -> None:
    problem = Problem(**{**vars(shape), "layout": memory, "dtype": dtype})
    x, dy, v, theta = problem.features(), problem.features(salt=3), problem.importance(), problem.kernel()
    channels_last = layout.is_channels_last(x)
    T, taps = problem.T, theta[0]
    calls: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
        "squeeze": (lambda b, x: b.squeeze(x, T), (x,)),
        "aggregate": (lambda b, *t: b.aggregate(*t), (x, v, theta)),
        "aggregate, shared": (lambda b, x, taps: b.aggregate(x, None, taps, T), (x, taps)),
        "aggregate, after": (lambda b, *t: b.aggregate(*t, T, True), (x, v, theta)),
        "weight_gradients": (lambda b, *t: b.weight_gradients(*t), (dy, x, v, theta)),
        "weight_gradients, shared": (lambda b, dy, x, taps: b.weight_gradients(dy, x, None, taps, T), (dy, x, taps)),
        "weight_gradients, after": (lambda b, *t: b.weight_gradients(*t, T, True), (dy, x, v, theta)),
        "input_gradient": (lambda b, *t: b.input_gradient(*t, channels_last), (dy, v, theta, v)),
        "input_gradient, shared": (
            lambda b, dy, taps, v: b.input_gradient(dy, None, taps, v, channels_last, T), (dy, taps, v)
        ),
        "input_gradient, after": (lambda b, *t: b.input_gradient(*t, channels_last, T, True), (dy, v, theta, v)),
    }  # fmt: skip
    for call, tensors in calls.values():
        results = as_tuple(call(kernels, *(t.cuda() for t in tensors)))
        usual = as_tuple(call(plain, *tensors))
        truth = as_tuple(call(plain, *(t.double() for t in tensors)))
        # In float64 plain torch is the truth itself: what rounding costs shows on inputs a rounding away.
        moved = [as_tuple(call(plain, *(nudged(t, i) for t in tensors))) for i in range(1, INPUTS)]
        for i, result in enumerate(results):
            others = itertools.cycle(values[i] for values in moved)
            assert_close(result.cpu(), truth[i].numpy(), usual[i], lambda _, others=others: next(others))  # type: ignore[misc]


@each_layout
@pytest.mark.parametrize("name", WITH_OPERATORS)
def test_temporal_modules_equal_those_on_the_cpu(name: str, memory: str) -> None:
    memory_format = torch.channels_last if memory == "channels_last" else torch.contiguous_format
    expected, ours = (in_float64(name, memory_format, device) for device in ("cpu", "cuda"))
    torch.testing.assert_close(ours, expected)


def as_tuple(results: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (results,) if isinstance(results, torch.Tensor) else results


@each_layout
@pytest.mark.parametrize("size", [56, 28, 14, 7])
def test_same_bits_every_time(size: int, memory: str) -> None:
    problem = Problem(N=8, T=8, C=64, H=size, W=size, K=3, layout=memory, dtype=torch.bfloat16)
    module = TAM(64, 8).cuda().train()
    x, dy = problem.features().cuda().requires_grad_(), problem.features(salt=3).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        runs = [torch.autograd.grad(module(x), (x, *module.parameters()), dy) for _ in range(3)]
    for run in runs[1:]:
        for first, again in zip(runs[0], run, strict=True):
            assert torch.equal(first, again)


@each_layout
def test_a_training_step_in_a_cuda_graph(memory: str) -> None:
    """Forward, backward and running statistics, replayed on other frames: the bits of the eager step."""
    problem = Problem(N=2, T=8, C=64, H=14, W=14, K=3, layout=memory)
    x, dy = problem.features().cuda().requires_grad_(), problem.features(salt=3).cuda()
    eager = TAM(64, 8).cuda().train()
    captured = copy.deepcopy(eager)

    def step(module: TAM) -> list[Tensor]:
        y = module(x)
        return [y.detach(), *torch.autograd.grad(y, (x, *module.parameters()), dy)]

    with torch.cuda.stream(torch.cuda.Stream()):  # kernels are compiled before anything is captured
        step(captured)
        torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(captured)
    captured.load_state_dict(eager.state_dict())
    for salt in (5, 6):
        x.data.copy_(problem.features(salt=salt))
        graph.replay()
        for replayed, expected in zip(results, step(eager), strict=True):
            assert torch.equal(replayed, expected)
        for name, buffer in eager.named_buffers():
            assert torch.equal(captured.get_buffer(name), buffer), name
    assert eager.get_buffer("G.1.num_batches_tracked") == 2


@each_layout
def test_compiled_module(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # the branches' convolutions, by whichever algorithm
    problem = Problem(N=2, T=8, C=32, H=14, W=14, K=3, layout=memory)
    module = TAM(32, 8).cuda()
    x = problem.features().cuda().requires_grad_()
    dy = torch.randn_like(x)
    expected = torch.autograd.grad(module(x), (x, *module.parameters()), dy)
    compiled = torch.compile(module, fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(x), (x, *module.parameters()), dy), expected)
