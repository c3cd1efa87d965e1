"""Systems by name: parameter counts, TAM as the identity on every backbone, errors before anything is built."""

import copy
import json
import pickle
import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import symbolic_trace
from torchvision.models import resnet18
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from tam_triton import TAM
from tam_triton.nets import C2D, TANet, load_published, tanet18
from tam_triton.nets.backbones import build_backbone, list_backbones
from tam_triton.nets.framewise import Framewise
from tam_triton.nets.registry import config_of, create_model
from tam_triton.nets.systems import list_models
from tests.library.test_nets import neutralise, parameters, randomise

COUNTS = {
    "c2d": 24_327_632,
    "c2d_pool": 24_327_632,
    "tsm": 24_327_632,
    "c2d_tconv": 28_100_048,
    "i3d": 32.99,
    "i3d_every_other": 28.01,
    "global": 24_330_960,
    "local": 25_586_992,
    "global_se": 24.645,
    "tanet": 25_590_320,
    "tanet_b": 25_590_320,
    "tanet_r": 25_590_320,
    "tanet_a": 40.27,
    "tanet_c": 25.59,
    "tanet_d": 44.46,
    "nl_c2d": 31.69,
    "teinet": 30.34,
    "slowfast_4x16": 34.5,
    "slowfast_8x8": 34.6,
}
T = 4
FAMILIES = {
    "resnet18": 64, "resnext50_32x4d": 64, "shufflenet_v2_x0_5": 64, "mobilenet_v2": 64,
    "mobilenet_v3_small": 64, "inception_v3": 75, "convnext_tiny": 64, "efficientnet_b0": 64, "regnet_y_400mf": 64,
    "timm/resnet18": 64, "timm/convnext_atto": 64, "timm/efficientnet_lite0": 64, "timm/regnety_002": 64,
}  # fmt: skip
OTHERS = ["shufflenet_v2_x0_5", "timm/convnext_atto"]


@pytest.mark.parametrize(("system", "expected"), COUNTS.items(), ids=COUNTS)
def test_parameters_are_as_published(system: str, expected: float) -> None:
    with torch.device("meta"):
        count = parameters(create_model(system))
    if isinstance(expected, int):
        assert count == expected
    else:
        digits = len(str(expected).partition(".")[2])
        assert round(count / 1e6, digits) == expected


def test_stages() -> None:
    with torch.device("meta"):
        assert parameters(create_model("tanet", stages=["res5"])) == 25_115_456
        assert parameters(create_model("tanet_r", stages=["res4", "res5"])) == 25_510_688


def clips(pixels: int) -> torch.Tensor:
    return torch.randn(1, 1, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("backbone", "pixels"), FAMILIES.items(), ids=FAMILIES)
def test_a_tam_that_does_nothing_leaves_the_2d_network(backbone: str, pixels: int) -> None:
    plain = randomise(build_backbone(backbone)).eval()
    network = create_model("tanet", copy.deepcopy(plain), None, 1, impl="torch").eval()
    tams = [module for module in network.modules() if isinstance(module, TAM)]
    assert len(tams) >= 5
    assert [key for key in network.state_dict() if ".tam." not in key] == list(plain.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(neutralise(network)(clips(pixels)), plain(clips(pixels)[0]))
        for tam in tams:
            nn.init.zeros_(tam.get_parameter("L.3.weight"))
        assert not torch.allclose(network(clips(pixels)), plain(clips(pixels)[0]))


class Tiny(nn.Module):
    """A stem, two depthwise convolutions and a head of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2),
            nn.ReLU(),
            Tiny.block(),
            nn.ReLU(),
            Tiny.block(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.classifier = nn.Sequential(nn.Linear(8, 8), nn.Hardswish(), nn.Linear(8, 5))

    @staticmethod
    def block() -> nn.Module:
        block = BasicBlock(8, 8)
        block.conv2 = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        return block

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x)) if not self.training else self.classifier(self.features(x)) + 1


def small(backbone: str | None = None) -> Framewise:
    torch.manual_seed(0)
    network = create_model("tanet", backbone or Tiny(), 6, 2, dropout=0.0, impl="torch").eval()
    assert isinstance(network, Framewise)
    return network


def videos() -> torch.Tensor:
    return torch.randn(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backbone", [None, *OTHERS])
def test_a_network_on_any_backbone_is_a_module(backbone: str | None) -> None:
    network = small(backbone)
    expected = network(videos())
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(twin(videos()), expected)
        assert twin.backbone._modules is twin._modules
        twin.get_parameter(f"{twin.head_name}.bias").data.add_(1)
        torch.testing.assert_close(twin(videos()), expected + 1)
    assert torch.equal(network(videos()), expected)
    network.train()
    assert network.backbone.training
    network.eval()
    assert not network.backbone.training
    torch.testing.assert_close(network.double()(videos().double()).float(), expected, rtol=1e-3, atol=1e-5)


def test_any_backbone_compiled_exported_and_traced() -> None:
    network = small()
    expected = network(videos())
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(videos()), expected)
    exported = torch.export.export(network, (videos(),)).module()
    torch.testing.assert_close(exported(videos()), expected)
    graph = symbolic_trace(network)
    torch.testing.assert_close(graph(videos()), expected)
    assert set(graph.state_dict()) == set(network.state_dict())


def test_another_head_stays_on_request() -> None:
    network, published = small(), small().state_dict()
    published["classifier.2.weight"] = torch.zeros(9, 8)
    with pytest.raises(ValueError, match="does not fit"):
        load_published(network, published)
    assert load_published(network, published, ignore_head=True).missing == ("classifier.2.weight", "classifier.2.bias")


@pytest.mark.parametrize("backbone", OTHERS)
def test_dropout_is_on_the_features(backbone: str) -> None:
    network = create_model("c2d", backbone, 6, 2, dropout=1.0)
    assert isinstance(network, Framewise)
    bias = nn.init.normal_(network.get_parameter(f"{network.head_name}.bias"))
    assert torch.equal(network(videos()), bias.expand(2, 6))
    network.eval()
    assert not torch.allclose(network(videos()), bias.expand(2, 6), rtol=0, atol=1e-6)


@pytest.mark.parametrize("system", [name for name in list_models() if not name.startswith("slowfast")])
def test_every_system_runs(system: str) -> None:
    """And, but for three that cannot, tells two frames from the same ones reversed."""
    torch.manual_seed(0)
    network = randomise(create_model(system, ResNet(Bottleneck, [1, 1, 1, 1]), 6, 2)).eval()
    with torch.no_grad():
        logits = network(videos())
        assert torch.allclose(network(videos().flip(1)), logits, rtol=1e-3) == (system in ("c2d", "c2d_pool", "nl_c2d"))
        torch.testing.assert_close(network(videos()[:1]), logits[:1])


def test_a_config_makes_the_network_again() -> None:
    network = create_model("tanet_a", "resnet18", 6, 2, stages=["res5"], alpha=3).eval()
    config = json.loads(json.dumps(config_of(network)))
    twin = create_model(**config).eval()
    twin.load_state_dict(network.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(twin(videos()), network(videos()))


def test_tanet_is_tanet18() -> None:
    torch.manual_seed(0)
    network = create_model("tanet", "resnet18", 6, T)
    torch.manual_seed(0)
    expected = tanet18(6, T)
    assert str(network) == str(expected)
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), expected.state_dict().values(), strict=True)
    )


def test_lists() -> None:
    assert list_models("tanet*") == ["tanet", "tanet_a", "tanet_b", "tanet_c", "tanet_d", "tanet_r"]
    assert list_backbones("resnet*") == ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
    assert "timm/resnet18" in list_backbones("timm/resnet1*")


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("tanett",), {}, ValueError, "system: got 'tanett', expected one of c2d, .*tanet_r"),
        (("tanet", "resnet51"), {}, ValueError, "backbone: got 'resnet51', expected one of .*resnet50"),
        (("tanet", "timm/nothing"), {}, ValueError, "backbone: got 'timm/nothing'"),
        (("tanet", "timm/resnet18.a1_in1k"), {}, ValueError, "expected 'timm/resnet18', and the tag 'a1_in1k' for"),
        (("tanet", "timm/resnet18"), {"weights": "V1"}, ValueError, r"weights: got 'V1', expected .*'a1_in1k'"),
        (("tanet", "timm/test_vit2"), {"weights": 1}, TypeError, "weights: got 1, expected 'DEFAULT'"),
        (("tanet",), {"kernelsize": 5}, TypeError, "kernelsize: got an option .*'kernel_size', 'alpha'"),
        (
            ("c2d",),
            {"kernel_size": 5},
            TypeError,
            r"kernel_size: got an option that c2d does not have",
        ),
        (("tsm",), {"stages": ["res5"]}, ValueError, "stages: got .* for tsm"),
        (("tanet", "mobilenet_v2"), {"stages": ["res5"]}, ValueError, "stages: got .* no ResNet"),
        (("tanet_a", "mobilenet_v2"), {}, ValueError, "style: got 'a' for MobileNetV2"),
        (("tsm", "mobilenet_v2"), {}, ValueError, "backbone: got MobileNetV2, expected a ResNet"),
        (("tsm", "resnet18", 6, 1), {}, ValueError, "num_segments: got 1, expected at least 2"),
        (("tanet", "resnet18"), {"weights": "IMAGENET21K"}, ValueError, "weights: got 'IMAGENET21K'"),
        (("slowfast_4x16", "resnet18"), {}, ValueError, "backbone: got 'resnet18' for slowfast_4x16"),
        (("tanet", "resnet18", 0), {}, ValueError, "num_classes: got 0"),
        (("tanet", "resnet18"), {"dropout": 2}, ValueError, "dropout: got 2"),
    ],
)
def test_bad_calls(arguments, options, error, message) -> None:
    with pytest.raises(error, match=message):
        create_model(*arguments, **options)


def test_backbones_that_do_not_fit() -> None:
    headless = resnet18()
    headless.fc = nn.Identity()
    with pytest.raises(ValueError, match="expected a Linear for its head"):
        Framewise(headless, 2)
    for system in ("tanet_a", "tsm"):
        with pytest.raises(ValueError, match="expected a Linear for its head"):
            create_model(system, headless)
    assert list(headless.state_dict()) == [key for key in resnet18().state_dict() if not key.startswith("fc.")]
    assert not any(module._forward_pre_hooks for module in headless.modules())
    with pytest.raises(ValueError, match="for which no places are known"):
        create_model("tanet", nn.Sequential(nn.Conv2d(3, 3, 1), nn.Linear(3, 3)))
    with pytest.raises(ValueError, match=re.escape("not made of names")):
        config_of(resnet18())


class Halved(ResNet):
    """A ResNet that a user has changed."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


@pytest.mark.parametrize("system", ["c2d", "tanet_a", "tanet"])
def test_a_forward_of_the_users_own_is_run(system: str) -> None:
    backbone = Halved(BasicBlock, [1, 1, 1, 1], num_classes=5).eval()
    network = create_model(system, backbone, None, 2, dropout=0.0).eval()
    backbone.__class__ = ResNet
    with torch.no_grad():
        whole = network(videos())
        backbone.__class__ = Halved
        torch.testing.assert_close(network(videos()), whole / 2)


@pytest.mark.parametrize("system", ["c2d", "tanet_a", "tanet"])
@pytest.mark.parametrize("backbone", [Tiny, partial(ResNet, BasicBlock, [1, 1, 1, 1], num_classes=5)])
def test_hooks_on_the_backbone_are_run(backbone, system: str) -> None:
    if backbone is Tiny and system == "tanet_a":
        pytest.skip("a style of ResNets")
    plain = backbone().eval()
    network = create_model(system, copy.deepcopy(plain), None, 2, dropout=0.0).eval()
    expected = network(videos())
    plain.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    plain.register_forward_hook(lambda module, args, result: result / 2)
    calls: list[nn.Module] = []
    handle = plain.register_full_backward_hook(lambda module, *_: calls.append(module))
    hooked = create_model(system, plain, None, 2, dropout=0.0).eval()
    hooked.load_state_dict(network.state_dict(), strict=True)
    logits = hooked((videos() / 2).requires_grad_())
    torch.testing.assert_close(2 * logits, expected)
    logits.sum().backward()
    assert calls == [plain]
    handle.remove()  # its wrapping of arguments is not for graphs
    torch.testing.assert_close(2 * symbolic_trace(hooked)(videos() / 2), expected)
    torch.testing.assert_close(2 * torch.export.export(hooked, (videos(),)).module()(videos() / 2), expected)
    torch._dynamo.reset()  # it does not look at hooks to tell modules apart
    compiled = torch.compile(hooked, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(2 * compiled(videos() / 2), expected)


def test_hooks_that_a_network_would_not_run_are_refused() -> None:
    resnet = ResNet(BasicBlock, [1, 1, 1, 1])
    resnet.register_forward_hook(lambda module, args, result: None)
    for kind in (C2D, TANet):
        with pytest.raises(TypeError, match=f"resnet: got a ResNet with hooks on itself, which {kind.__name__} would"):
            kind(resnet, 2)


def test_hooks_of_state_dicts_are_the_backbones() -> None:
    backbone = Tiny()
    backbone.register_state_dict_post_hook(lambda module, state, prefix, metadata: state.update(extra=torch.ones(1)))
    seen: list[str] = []
    backbone.register_load_state_dict_pre_hook(lambda module, state, *_: seen.extend(state))
    network = Framewise(backbone, 2)
    assert "extra" in network.state_dict()
    network.load_state_dict(network.state_dict(), strict=False)
    assert "extra" in seen


def test_a_backbone_changes_with_its_network() -> None:
    backbone = Tiny()
    head = backbone.classifier[-1]
    network = Framewise(backbone, 2, num_classes=9, dropout=0.25)
    assert backbone.classifier[-1] is network.get_submodule(network.head_name) is not head
    assert backbone.eval()(videos()[:, 0]).shape == (2, 9)
    backbone = Tiny()
    head = backbone.classifier[-1]
    Framewise(copy.deepcopy(backbone), 2, num_classes=9)
    assert backbone.classifier[-1] is head


def test_inception_sees_the_same_frames_with_and_without_weights() -> None:
    backbone: Any = create_model("c2d", "inception_v3", 5, 2).backbone
    assert backbone.transform_input is True


def test_frames_of_another_dtype_or_device_are_named() -> None:
    network = create_model("tanet_a", "resnet18", 5, 2)
    with pytest.raises(TypeError, match=r"^x: got dtype torch.float16, expected the module's torch.float32"):
        network(videos().half())
    with pytest.raises(ValueError, match=r"^x: got device meta, expected the module's cpu"):
        network(videos().to("meta"))
