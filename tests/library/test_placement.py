"""Where parameters are and in which dtype: offloaded by accelerate, quantised, cast by hooks, mixed."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from tam_triton import TAM
from tam_triton.nets import C2D
from tam_triton.nets.small_resnet import SmallResNet
from tests.support.networks import CLASSES, FRAMES, feature_maps, randomised, small_tam, small_tanet, videos

CPU = torch.device("cpu")
each_impl = pytest.mark.parametrize("impl", ["triton", "torch"])


def small_c2d(impl: str, training: bool) -> C2D:
    return randomised(C2D(SmallResNet(CLASSES), FRAMES, dropout=0.0)).train(training)


@each_impl
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("place", ["cpu", "disk"])
@pytest.mark.parametrize("make", [small_tam, small_tanet, small_c2d])
def test_offloaded(
    make: Callable[[str, bool], nn.Module], place: str, training: bool, impl: str, tmp_path: Path
) -> None:
    """With the gradient of x, which goes through every layer."""
    module = make(impl, training)
    x = (feature_maps if isinstance(module, TAM) else videos)(2).requires_grad_()
    offloaded = copy.deepcopy(module)
    if place == "cpu":
        cpu_offload(offloaded, CPU)
    else:
        disk_offload(offloaded, tmp_path, CPU)
    assert {parameter.device.type for parameter in offloaded.parameters()} == {"meta"}
    if not training:
        with torch.no_grad():
            torch.testing.assert_close(offloaded(x), module(x))  # one of them with BatchNorm folded
    results = []
    for network in (offloaded, module):
        y = network(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), x)))
    through_kernels = impl == "triton"  # what is hooked is differentiated through its layers
    exact = None if through_kernels else 0
    torch.testing.assert_close(*results, rtol=exact, atol=exact)


class Int8Linear(nn.Module):
    """A Linear that keeps its weight as int8, and computes in the dtype of its input."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.scale = linear.weight.detach().abs().max() / 127
        self.weight = nn.Parameter((linear.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale)


def with_int8(tam: TAM) -> Int8Linear:
    """The TAM's first layer, which is its first parameter, quantised in place."""
    first = tam.G[0]
    assert isinstance(first, nn.Linear)
    tam.G[0] = quantised = Int8Linear(first)
    assert next(tam.parameters()).dtype == torch.int8
    return quantised


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_quantised_first_layer(training: bool) -> None:
    module, quantised = small_tam("torch", training), small_tam("torch", training)
    layer = with_int8(quantised)
    with torch.no_grad():
        module.get_parameter("G.0.weight").copy_(layer.weight * layer.scale)
    torch.testing.assert_close(quantised(feature_maps(2)), module(feature_maps(2)))
    with pytest.raises(
        TypeError, match=r"x: got dtype torch\.float16, expected the module's torch\.float32 or autocast"
    ):
        quantised(feature_maps(2).half())


def test_layers_whose_hooks_cast() -> None:
    """As a sharded module's layers, which are gathered in another dtype when they run."""
    module = small_tam("torch", training=True)
    for branch in (module.G, module.L):
        branch.register_forward_pre_hook(lambda branch, args: tuple(x.float() for x in args))
    y = module(feature_maps(2).bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), small_tam("torch", training=True)(feature_maps(2)), rtol=0.1, atol=0.1)


def test_layers_of_mixed_dtypes_are_left_to_torch() -> None:
    network = C2D(ResNet(BasicBlock, [1, 1, 1, 1]), FRAMES).bfloat16()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.float()
    assert network(videos(1).bfloat16()).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="should be the same"):
        network(videos(1))
