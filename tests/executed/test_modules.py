"""Whole modules by what Triton compiles: TAM and the TA-Block on a stand-in for a GPU, beside plain torch."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from bench.ptx.driver import TARGETS, device
from tam_triton import TAM, layout
from tam_triton.nets import TABlock, TANet
from tam_triton.nets.small_resnet import SmallResNet
from tests.support.networks import CLASSES, eager_twin, exact_twin, normal, randomised
from tests.support.temporal import WITH_OPERATORS, in_float64
from tests.support.tolerance import assert_close, nudged

pytestmark = pytest.mark.executed

CLIPS, FRAMES, CHANNELS = 2, 4, 16
# Not the current device: what forgets to make it so cannot launch.
GPU = torch.device("cuda", 1)
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
SQUEEZE, BANDED = "squeeze_kernel", "banded_kernel"
BRANCHES = ["projections_kernel", "weights_kernel"]
BRANCHES_BACKWARD = ["output_gradients_kernel", "input_gradients_kernel"]
WEIGHT_GRADIENTS = "weight_gradients_kernel"
STATISTICS, NORM_GRADIENTS = ["moments_kernel", "statistics_kernel"], "norm_gradients_kernel"


def basic(stride: int) -> TABlock:
    return TABlock(BasicBlock(CHANNELS, CHANNELS, stride, shortcut(stride)), TAM(CHANNELS, FRAMES))


def bottleneck(stride: int) -> TABlock:
    block = Bottleneck(CHANNELS, CHANNELS // Bottleneck.expansion, stride, shortcut(stride))
    return TABlock(block, TAM(block.conv1.out_channels, FRAMES))


def shortcut(stride: int) -> nn.Module | None:
    """An identity where it can be: it shows any operation in place that reaches the block's input."""
    if stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1, stride, bias=False), nn.BatchNorm2d(CHANNELS))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "tam": lambda: TAM(CHANNELS, FRAMES),
    "tam, five taps": lambda: TAM(CHANNELS, FRAMES, 5),
    "basic": lambda: basic(1),
    "basic, strided": lambda: basic(2),
    "bottleneck": lambda: bottleneck(1),
    "bottleneck, strided": lambda: bottleneck(2),
}


@dataclass(frozen=True)
class Run:
    """What a call of a module leaves.

    Attributes:
        y: its result.
        gradients: of x and of every parameter, by name; none without gradients.
        statistics: the buffers that are not counts, by name.
    """

    y: Tensor
    gradients: dict[str, Tensor]
    statistics: dict[str, Tensor]


def run(module: nn.Module, x: Tensor, dy: Tensor | None) -> Run:
    """Forward, and backward from `dy` unless that is None."""
    buffers = {name: buffer for name, buffer in module.named_buffers() if buffer.is_floating_point()}
    if dy is None:
        with torch.no_grad():
            return Run(module(x), {}, buffers)
    leaves = {"x": x.detach().requires_grad_(), **dict(module.named_parameters())}
    y = module(leaves["x"])
    gradients = torch.autograd.grad(y, list(leaves.values()), dy.to(y.device))
    return Run(y, dict(zip(leaves, gradients, strict=True)), buffers)


def assert_runs_close(ours: Run, exact: Run, plain: list[Run]) -> None:
    """By the one rule for rounding, gradients of parameters together.

    Args:
        ours: what is tested.
        exact: in float64.
        plain: by torch's own operations in the precision under test, of x as given and of x moved by a rounding.
    """

    def check(part: Callable[[Run], Tensor]) -> None:
        assert_close(part(ours), part(exact).numpy(), part(plain[0]), lambda i: part(plain[i % len(plain)]))

    check(lambda one: one.y.detach())
    if ours.gradients:
        check(lambda one: one.gradients["x"])
        scales = {name: value.abs().max() for name, value in exact.gradients.items() if name != "x"}
        check(lambda one: in_units(one.gradients, scales))
    check(lambda one: torch.cat([values.flatten() for values in one.statistics.values()]))


def in_units(gradients: dict[str, Tensor], scales: dict[str, Tensor]) -> Tensor:
    """As one vector, each in units of its own size: a tensor of three elements is exact by luck alone."""
    return torch.cat([(gradients[name] / scale.to(gradients[name].dtype)).flatten() for name, scale in scales.items()])


def check_module(
    name: str, mode: str, memory: str, dtype: torch.dtype = torch.float32, target: str = "sm_90"
) -> list[str]:
    """The kernels that it launched, after it gave what it should: values, gradients and statistics."""
    module = randomised(MODULES[name]()).train(mode == "train").to(dtype)
    x = normal(CLIPS * FRAMES, CHANNELS, 6, 5).to(dtype).contiguous(memory_format=LAYOUTS[memory])
    dy = None if mode == "inference" else normal(*eager_twin(module)(x).shape).to(dtype)
    exact = run(exact_twin(module), x.double(), None if dy is None else dy.double())
    inputs = [x, *(nudged(x, number).contiguous(memory_format=LAYOUTS[memory]) for number in range(1, 8))]
    plain = [run(eager_twin(module), one, dy) for one in inputs]
    with device(target) as launches:
        ours = run(module.to(GPU), x.to(GPU), dy)
        everything = [ours.y, *ours.gradients.values(), *ours.statistics.values()]
        assert {one.device for one in everything} == {GPU}
    assert layout.is_channels_last(ours.y) == (memory == "channels_last")
    assert_runs_close(ours, exact, plain)
    return [one.kernel for one in launches if one.kernel != "add_parts_kernel"]


each_layout = pytest.mark.parametrize("memory", LAYOUTS)


@each_layout
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", MODULES)
def test_forward_and_backward(name: str, mode: str, memory: str) -> None:
    forward, backward = (BRANCHES, BRANCHES_BACKWARD) if mode == "train" else ([], [])
    statistics = STATISTICS if mode == "train" else []
    if name.startswith("tam"):  # no BatchNorm in front
        statistics, of_norm = [], []
    else:
        of_norm = [NORM_GRADIENTS]
    launched = [*statistics, SQUEEZE, *forward, BANDED, WEIGHT_GRADIENTS, *backward, *of_norm, BANDED]
    assert check_module(name, mode, memory) == launched


@each_layout
@pytest.mark.parametrize("name", MODULES)
def test_inference(name: str, memory: str) -> None:
    assert check_module(name, "inference", memory) == [SQUEEZE, *BRANCHES, BANDED]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "mode"), [("tam", "train"), ("bottleneck", "inference")])
def test_every_dtype(name: str, mode: str, dtype: torch.dtype) -> None:
    check_module(name, mode, "channels_last", dtype)


@pytest.mark.parametrize("target", [target for target in TARGETS if target != "sm_90"])
@pytest.mark.parametrize("mode", ["train", "inference"])
def test_every_target(mode: str, target: str) -> None:
    check_module("basic", mode, "nchw", target=target)


@each_layout
@pytest.mark.parametrize("name", WITH_OPERATORS)
def test_temporal_modules_equal_those_on_the_cpu(name: str, memory: str) -> None:
    expected = in_float64(name, LAYOUTS[memory], "cpu")
    with device("sm_90") as launches:
        ours = in_float64(name, LAYOUTS[memory], "cuda:1")
    assert launches
    torch.testing.assert_close(ours, expected)


def learned(where: str) -> dict[str, Tensor]:
    """On the CPU, the state of a network after two steps of SGD on a device; in float64."""
    network = (
        randomised(TANet(SmallResNet(CLASSES), FRAMES, dropout=0.0, stages=["res2", "res3"])).double().to(where).train()
    )
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    clips, labels = normal(CLIPS, FRAMES, 3, 16, 16).double().to(where), torch.arange(CLIPS).to(where)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(clips), labels).backward()
        optimizer.step()
    return {name: value.cpu() for name, value in network.state_dict().items()}


def test_a_network_learns_the_same() -> None:
    with device("sm_90") as launches:
        ours = learned("cuda:1")
    assert {one.kernel for one in launches} >= {SQUEEZE, *BRANCHES, BANDED, WEIGHT_GRADIENTS, *BRANCHES_BACKWARD}
    torch.testing.assert_close(ours, learned("cpu"))
