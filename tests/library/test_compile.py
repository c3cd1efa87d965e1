"""torch.compile: one graph, the values, gradients and strides of eager, and no second compilation.

`aot_eager` traces forward and backward as Inductor does and runs what it traced; only one test generates code.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tam_triton import aggregate, squeeze, squeeze_and_aggregate
from tests.support.networks import FRAMES, feature_maps, normal, small_tam, small_tanet, videos

each_impl = pytest.mark.parametrize("impl", ["triton", "torch"])
each_layout = pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"]
)
Forward = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def branches(squeezed: Tensor) -> tuple[Tensor, Tensor]:
    """A cheap stand-in for G and L, so that X also reaches the output through X̂."""
    return squeezed.sigmoid(), torch.softmax(squeezed[..., :3] * 2, -1)


def squeezed(x: Tensor, impl: str) -> Tensor:
    return squeeze(x, FRAMES, impl=impl)


def aggregated(x: Tensor, impl: str) -> Tensor:
    """V and Θ of x too, so that all three have a gradient."""
    return aggregate(x, *branches(squeeze(x, FRAMES, impl=impl)), impl=impl)


def fused(x: Tensor, impl: str) -> Tensor:
    return squeeze_and_aggregate(x, branches, FRAMES, 3, impl=impl)


def agree(compiled: Forward, eager: Forward, x: Tensor, parameters: list[nn.Parameter], dynamic: bool = False) -> None:
    """Output, gradients and their strides are those of eager."""
    results = []
    for forward in (eager, compiled):
        leaf = x.clone().requires_grad_()
        if dynamic and forward is compiled:
            torch._dynamo.mark_dynamic(leaf, 0)
        y = forward(leaf)
        dy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
        results.append((y, *torch.autograd.grad(y, (leaf, *parameters), dy)))
    expected, actual = results
    torch.testing.assert_close(actual, expected, check_stride=True)


def no_recompilation() -> contextlib.AbstractContextManager[object]:
    return torch.compiler.set_stance("fail_on_recompile")


@each_impl
@each_layout
@pytest.mark.parametrize("function", [squeezed, aggregated, fused])
def test_functions(function: Callable[..., Tensor], memory_format: torch.memory_format, impl: str) -> None:
    eager = partial(function, impl=impl)
    compiled = torch.compile(eager, fullgraph=True, dynamic=False, backend="aot_eager")
    x = feature_maps(2, memory_format)
    agree(compiled, eager, x, [])
    with no_recompilation():
        agree(compiled, eager, x.flip(0).contiguous(memory_format=memory_format), [])
        with pytest.raises(RuntimeError, match="fail_on_recompile"):
            compiled(feature_maps(3, memory_format).requires_grad_())


@pytest.mark.deep
@each_impl
def test_any_shape(impl: str) -> None:
    """Everything is symbolic but T."""
    eager = partial(fused, impl=impl)
    compiled = torch.compile(eager, fullgraph=True, dynamic=True, backend="aot_eager")
    agree(compiled, eager, feature_maps(3), [])
    with no_recompilation():
        agree(compiled, eager, normal(5 * FRAMES, 7, 4, 3), [])


@pytest.mark.deep
@each_impl
def test_tanet(impl: str) -> None:
    """In training, on channels_last frames, with any number of clips."""
    network = small_tanet(impl, training=True, stages=["res3"]).double()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    parameters = list(network.parameters())
    frames = videos(3)[..., :16, :16].double().flatten(0, 1).contiguous(memory_format=torch.channels_last)
    agree(compiled, network, frames[: 2 * FRAMES], parameters, dynamic=True)
    with no_recompilation():
        agree(compiled, network, frames, parameters, dynamic=True)


@each_impl
@each_layout
def test_generated_code(impl: str, memory_format: torch.memory_format) -> None:
    module = small_tam(impl, training=True).double()
    compiled = torch.compile(module, fullgraph=True)
    x = feature_maps(2, memory_format).double()
    agree(compiled, module, x, list(module.parameters()))
    with no_recompilation():
        agree(compiled, module, x + 1, list(module.parameters()))


@each_impl
def test_evaluation(impl: str) -> None:
    """Without gradients Triton folds the branches; training and evaluation are a graph each."""
    module = small_tam(impl)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = feature_maps(2, torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), module(x), check_stride=True)
        with no_recompilation():
            torch.testing.assert_close(compiled(x + 1), module(x + 1), check_stride=True)
    agree(compiled, module, x, list(module.parameters()))


@each_impl
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own look
def test_compiled_autograd_of_an_eager_forward(impl: str) -> None:
    module, x = small_tam(impl, training=True), feature_maps(2)
    parameters = list(module.parameters())
    leaf = x.clone().requires_grad_()
    expected = torch.autograd.grad(module(leaf).square().sum(), (leaf, *parameters))
    again = x.clone().requires_grad_()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        module(again).square().sum().backward()
    torch.testing.assert_close((again.grad, *(parameter.grad for parameter in parameters)), expected)
