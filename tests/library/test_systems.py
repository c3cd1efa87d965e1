"""Every system's whole network against one written here: ResNet by hand, the modules as test_temporal.py has them from
their papers, and where each acts. In float64, forward and backward, eager and compiled."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 — its usual name
from torchvision.models import resnet18, resnet50
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from tam_triton.nets import create_model, list_models
from tam_triton.temporal.base import TemporalModule
from tests.library.test_registry import FAMILIES, randomise
from tests.library.test_temporal import eager, normalized
from tests.support.networks import eager_twin, normal, randomised

T = 4
COMPILED_FAMILIES = ("mobilenet_v3_small", "shufflenet_v2_x0_5", "timm/convnext_atto", "timm/resnet18")
# The module by its formulation's name, and where it is: before conv1 (a), before conv2 (b), after conv2 with its
# BatchNorm and ReLU (c), after the last BatchNorm (d), instead of conv1, or after the block.
SYSTEMS = {
    "c2d": (None, ""),
    "c2d_pool": ("avg_pool", "b"),
    "c2d_tconv": ("conv", "b"),
    "tsm": ("shift", "a"),
    "teinet": ("tei", "a"),
    "i3d": ("inflated_conv", "instead"),
    "i3d_every_other": ("inflated_conv", "instead"),
    "nl_c2d": ("non_local", "after"),
    "global": ("global", "b"),
    "local": ("local", "b"),
    "global_se": ("global_se", "b"),
    "tanet_r": ("tanet_r", "b"),
    "tanet_a": ("tam", "a"),
    "tanet_b": ("tam", "b"),
    "tanet_c": ("tam", "c"),
    "tanet_d": ("tam", "d"),
    "tanet": ("tam", "b"),
}


def acts(system: str, stage: int, number: int) -> bool:
    """Whether block `number` of res`stage` has the module."""
    if system == "nl_c2d":
        return (stage == 3 and number in (0, 2)) or (stage == 4 and number in (0, 2, 4))
    if system == "i3d_every_other":
        return stage == 2 or number % 2 == (1 if stage == 5 else 0)
    return True


def convolved(conv: Any, x: Tensor) -> Tensor:
    if not isinstance(conv, TemporalModule):
        return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)
    clips = x.unflatten(0, (-1, T)).transpose(1, 2)
    weight: Any = conv.weight
    cube = weight.unflatten(2, (3, -1))
    y = F.conv3d(clips, cube, None, (1, *conv.stride), (1, *conv.padding))  # type: ignore[misc]
    return y.transpose(1, 2).flatten(0, 1)


def residual(block: Any, x: Tensor, system: str, is_acting: bool) -> Tensor:
    name, place = SYSTEMS[system]
    inside = [part for key, part in block.named_children() if isinstance(part, TemporalModule) and key != "conv1"]
    assert len(inside) == (is_acting and place not in ("", "instead"))
    assert isinstance(block.conv1, TemporalModule) == (is_acting and place == "instead")

    def at(here: str, z: Tensor) -> Tensor:
        return eager(str(name), inside[0], z) if is_acting and place == here else z

    y = normalized(block.bn1, convolved(block.conv1, at("a", x))).relu()
    y = normalized(block.bn2, convolved(block.conv2, at("b", y)))
    is_deep = hasattr(block, "conv3")
    y = normalized(block.bn3, convolved(block.conv3, at("c", y.relu()))) if is_deep else at("c", y)
    y = at("d", y)
    shortcut = x
    if block.downsample is not None:
        shortcut = normalized(block.downsample[1], convolved(block.downsample[0], x))
    return at("after", (y + shortcut).relu())


def by_hand(network: Any, clips: Tensor, system: str) -> Tensor:
    """Logits, averaged over the frames."""
    x = clips.flatten(0, 1)
    x = F.max_pool2d(normalized(network.bn1, convolved(network.conv1, x)).relu(), 3, 2, 1)
    for stage in (2, 3, 4, 5):
        for number, block in enumerate(network.get_submodule(f"layer{stage - 1}")):
            x = residual(block, x, system, acts(system, stage, number))
    return F.linear(x.mean((2, 3)), network.fc.weight, network.fc.bias).unflatten(0, (-1, T)).mean(1)


def gradients(y: Tensor, network: nn.Module, x: Tensor) -> list[Tensor]:
    return [y.detach(), *torch.autograd.grad(y, (x, *network.parameters()), torch.ones_like(y).cumsum(1))]


def network_of(system: str, backbone: ResNet) -> nn.Module:
    return randomised(create_model(system, backbone, 3, T, dropout=0.0)).double().eval()


def test_all_systems_are_here() -> None:
    assert set(SYSTEMS) == {name for name in list_models() if not name.startswith("slowfast")}  # test_slowfast.py's


@pytest.mark.parametrize("make", [resnet18, resnet50], ids=["resnet18", "resnet50"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_forward_and_backward(system: str, make: Any) -> None:
    network = network_of(system, make())
    x = normal(1, T, 3, 32, 32).double().requires_grad_()
    expected = gradients(by_hand(network, x, system), network, x)
    torch.testing.assert_close(gradients(network(x), network, x), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.deep
@pytest.mark.parametrize(
    ("system", "block"), [*((system, Bottleneck) for system in SYSTEMS), ("tanet_b", BasicBlock), ("i3d", BasicBlock)]
)
def test_compiled(system: str, block: Any) -> None:
    network = network_of(system, ResNet(block, [1, 1, 1, 1]))
    x = normal(1, T, 3, 32, 32).double().requires_grad_()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    expected = gradients(by_hand(network, x, system), network, x)
    torch.testing.assert_close(gradients(compiled(x), network, x), expected, rtol=1e-8, atol=1e-9)
    torch.compiler.reset()


@pytest.mark.deep
@pytest.mark.parametrize(("backbone", "pixels"), FAMILIES.items(), ids=FAMILIES)
def test_tanet_on_every_backbone(backbone: str, pixels: int) -> None:
    """Against the same places with TAM in its usual formulation; one of each kind of block is compiled too."""
    network = randomise(create_model("tanet", backbone, 3, 2, dropout=0.0, impl="torch")).double().eval()
    x = normal(1, 2, 3, pixels, pixels).double().requires_grad_()
    twin = eager_twin(network)
    expected = gradients(twin(x), twin, x)
    torch.testing.assert_close(gradients(network(x), network, x), expected, rtol=1e-7, atol=1e-9)
    if backbone not in COMPILED_FAMILIES:
        return
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled(x), network, x), expected, rtol=1e-7, atol=1e-9)
    torch.compiler.reset()
