"""timm's protocol on networks of every kind: what they say of themselves is so, and timm's tools work on them."""

import copy
import math
from functools import partial

import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.models import FeatureInfo, checkpoint_seq, group_modules, group_parameters, model_parameters
from timm.models._features import FeatureGetterNet, FeatureHookNet
from timm.models._manipulate import reparameterize_model
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.scheduler import StepLRScheduler
from timm.utils import ModelEmaV3, freeze, unfreeze
from timm.utils.model import avg_ch_var, extract_spp_stats
from torch import Tensor, nn

from tam_triton import TAM
from tam_triton.features import record_features
from tam_triton.nets import C2D, Framewise, SlowFast, config_of, create_model, list_models
from tam_triton.nets.hub import from_pretrained, save_pretrained
from tam_triton.nets.protocol import TimmProtocol
from tam_triton.nets.slowfast_config import BLOCKS, SlowFastConfig
from tam_triton.nets.small_resnet import SmallResNet
from tam_triton.nets.timm_models import register
from tests.support.networks import normal, randomised

CLASSES, T, PIXELS = 6, 2, 32
SYSTEMS = (
    ("tanet", "small"), ("c2d", "shufflenet_v2_x0_5"), ("tanet", "timm/test_resnet"), ("slowfast_tam_4x16", "small"),
)  # fmt: skip
OTHERS = (
    ("i3d", "small"), ("nl_c2d", "small"), ("tsm", "resnet18"), ("tanet", "mobilenet_v3_small"),
    ("c2d", "regnet_y_400mf"), ("c2d", "inception_v3"), ("c2d", "convnext_tiny"), ("tanet", "timm/test_convnext"),
    ("c2d_tconv", "timm/test_efficientnet"),
)  # fmt: skip
each_network = pytest.mark.parametrize("name", [" on ".join(each) for each in SYSTEMS])
MADE: dict[str, TimmProtocol] = {}


def network_called(name: str, *, dropout: float = 0.0) -> TimmProtocol:
    """A copy: most are made once."""
    key = f"{name}, {dropout}"
    if key not in MADE:
        torch.manual_seed(0)
        system, backbone = name.split(" on ")
        if system.startswith("slowfast"):
            config = SlowFastConfig(num_segments=T, alpha=1, width=8, channel_ratio=2, tam=True)
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(BLOCKS, 50, (1, 1, 1, 1))
                made: nn.Module = SlowFast(config, CLASSES, dropout=dropout, impl="torch")
        else:
            start: str | nn.Module = SmallResNet(CLASSES) if backbone == "small" else backbone
            options = {"impl": "torch"} if system == "tanet" else {}
            made = create_model(system, start, CLASSES, T, dropout=dropout, **options)
        assert isinstance(made, TimmProtocol)
        MADE[key] = randomised(made) if backbone == "small" else made
    return copy.deepcopy(MADE[key])


def clips(number: int = 2) -> Tensor:
    return normal(number, T, 3, PIXELS, PIXELS)


def as_tuple(maps: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return maps if isinstance(maps, tuple) else (maps,)


@each_network
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_trunk_and_head_are_the_network(name: str, training: bool) -> None:
    network = network_called(name).train(training)
    twin, x = copy.deepcopy(network), clips()
    with torch.no_grad():
        maps = network.forward_features(x)
        logits, features = network.forward_head(maps), network.forward_head(maps, pre_logits=True)
        assert torch.equal(logits, twin(x))
        kept = record_features(twin.eval(), lambda: twin(x), len(x))
    assert logits.shape == (2, CLASSES) == (2, network.num_classes)
    assert features.shape == (2, network.head_hidden_size)
    assert sum(each.shape[1] for each in as_tuple(maps)) == network.num_features
    if not training:
        torch.testing.assert_close(features, kept.features.mean(1))


@pytest.mark.parametrize("name", [" on ".join(each) for each in OTHERS])
def test_trunks_and_heads_of_others(name: str) -> None:
    network, pixels = network_called(name).eval(), 75 if "inception" in name else PIXELS
    x = normal(1, T, 3, pixels, pixels)
    with torch.no_grad():
        maps, intermediates = network.forward_intermediates(x)
        assert torch.equal(network.forward_head(maps), network(x))
    assert maps.shape[1] == network.num_features
    if "efficientnet" not in name:  # timm's has a convolution after the last stage
        assert torch.equal(maps, intermediates[-1])
    for info, each in zip(network.feature_info, intermediates, strict=True):
        assert each.shape[1] == info["num_chs"]
        assert "inception" in name or each.shape[2] == PIXELS // info["reduction"]  # Inception's are not padded


@each_network
def test_every_parameter_has_a_gradient(name: str) -> None:
    network = network_called(name).train()
    network(clips()).square().mean().backward()
    assert [key for key, weight in network.named_parameters() if weight.grad is None] == []


@each_network
def test_a_head_is_removed_and_replaced(name: str) -> None:
    network, x = network_called(name, dropout=0.3).eval(), clips()
    with torch.no_grad():
        features = network.forward_head(network.forward_features(x), pre_logits=True)
        head = network.get_classifier()
        assert isinstance(head, nn.Linear)
        torch.testing.assert_close(head(features), network(x))
        network.reset_classifier(0)
        assert network.num_classes == 0
        assert torch.equal(network(x), features)
        network.train().double().reset_classifier(3, "avg")
        new = network.get_classifier()
        assert isinstance(new, nn.Linear)
        assert (new.weight.dtype, new.training, network.num_classes) == (torch.float64, True, 3)
        assert 0.5 < new.weight.std() / network.head_std < 1.5
        network.eval()
        features = network.forward_head(network.forward_features(x.double()), pre_logits=True)
        torch.testing.assert_close(new(features), network(x.double()))
    assert network.get_submodule(str(network.get_classifier(name_only=True))) is new
    assert network.default_cfg["num_classes"] == 3


@pytest.mark.parametrize("backbone", ["small", "shufflenet_v2_x0_5", "mobilenet_v3_small", "timm/test_resnet"])
def test_dropout_stays_before_a_new_head(backbone: str) -> None:
    """In networks whose Dropout is run by a hook of the old one, too."""
    network = network_called(f"c2d on {backbone}", dropout=0.5).train()
    network.reset_classifier(3)
    given: list[Tensor] = []
    head = network.get_classifier()
    assert isinstance(head, nn.Linear)
    head.register_forward_hook(lambda _, inputs, output: given.append(inputs[0]))
    network(clips())
    assert 0.3 < (given[0] == 0).float().mean() < 0.95


def test_what_made_a_network_knows_its_new_head(tmp_path) -> None:
    network = network_called("c2d on shufflenet_v2_x0_5").eval()
    network.reset_classifier(3)
    save_pretrained(network, tmp_path)
    assert torch.equal(from_pretrained(tmp_path)(clips(1)), network(clips(1)))
    network.reset_classifier(0)
    with pytest.raises(ValueError, match="num_classes"):
        save_pretrained(network, tmp_path / "headless")
    assert not (tmp_path / "headless").exists()


@each_network
def test_configuration(name: str) -> None:
    network = network_called(name).eval()
    config, state = network.default_cfg, network.state_dict()
    first = config["first_conv"]
    for layer in (config["classifier"], *([first] if isinstance(first, str) else first)):
        assert f"{layer}.weight" in state
    assert config == network.pretrained_cfg
    resolved = resolve_data_config({}, model=network)
    expected = ("input_size", "mean", "std", "interpolation", "crop_pct")
    assert {key: resolved[key] for key in expected} == {key: config[key] for key in expected}
    if isinstance(network, C2D | SlowFast):
        assert (resolved["mean"], resolved["crop_pct"]) == ((0.485, 0.456, 0.406), 224 / 256)
    with torch.no_grad():
        maps = network.forward_features(normal(1, T, *config["input_size"]))
    assert {tuple(each.shape[2:]) for each in as_tuple(maps)} == {tuple(config["pool_size"])}


@each_network
def test_features_are_where_they_are_said_to_be(name: str) -> None:
    network, x = network_called(name).eval(), clips()
    info = network.feature_info
    told = FeatureInfo(network.feature_info, tuple(range(len(info))))
    assert len(info) >= 4
    with torch.no_grad():
        last, maps = network.forward_intermediates(x)
        for a, b in zip(as_tuple(last), as_tuple(network.forward_features(x)), strict=True):
            assert torch.equal(a, b)
        for each, channels, reduction, said in zip(maps, told.channels(), told.reduction(), info, strict=True):
            frames = len(x) * said.get("num_segments", T)
            assert each.shape == (frames, channels, PIXELS // reduction, PIXELS // reduction)
        got = FeatureGetterNet(network, out_indices=(0, 2, -1))(x)
        assert all(torch.equal(a, b) for a, b in zip(got, (maps[0], maps[2], maps[-1]), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(network.forward_intermediates(x, 2)[1], maps[-2:], strict=True))
        hooked = FeatureHookNet(network, out_indices=tuple(range(len(info))))(x)  # it removes the head
        assert all(torch.equal(a, b) for a, b in zip(hooked, maps, strict=True))


def keep_size(sizes: list[int], tensor: Tensor) -> Tensor:
    sizes.append(tensor.numel())
    return tensor


@each_network
def test_recomputing_changes_no_bits(name: str) -> None:
    """Nor BatchNorm's statistics, which one batch moves once; it keeps less, and can be undone."""
    results = {}
    for enabled in (False, True):
        network = network_called(name, dropout=0.2).train()
        if enabled:
            network.set_grad_checkpointing()
            network.set_grad_checkpointing(False)
            assert not any("forward" in vars(module) for module in network.modules())
            network.set_grad_checkpointing()
            network = copy.deepcopy(network)
        saved: list[int] = []
        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(partial(keep_size, saved), lambda tensor: tensor):
            logits = network(clips())
        logits.square().sum().backward()
        results[enabled] = (
            (
                {"logits": logits.detach()}
                | {f"d{key}": weight.grad for key, weight in network.named_parameters()}
                | dict(network.state_dict())
            ),
            sum(saved),
        )
    (plain, kept), (again, kept_again) = results[False], results[True]
    assert plain.keys() == again.keys()
    assert [key for key, value in plain.items() if not torch.equal(value, again[key])] == []
    assert kept_again < 0.7 * kept


@each_network
def test_groups_go_from_the_frames_to_the_head(name: str) -> None:
    network = network_called(name)
    order = [key for key, _ in network.named_parameters()]
    for coarse in (False, True):
        layers = group_parameters(network, network.group_matcher(coarse), reverse=True)
        assert sorted(layers) == sorted(order)
        last, first = max(layers.values()), network.default_cfg["first_conv"]
        assert {key for key, layer in layers.items() if layer == last} >= {f"{network.head_name}.weight"}
        for conv in [first] if isinstance(first, str) else first:
            assert layers[f"{conv}.weight"] == 0
        assert last >= 4
        if not isinstance(network, SlowFast):
            trunk = [key for key in order if ".tam." not in key and ".non_local." not in key]
            assert [layers[key] for key in trunk] == sorted(layers[key] for key in trunk)
        if isinstance(network, SlowFast):  # laterals are of the stage before them, and of both pathways
            for stage in ("layer1", "layer2", "layer3"):
                blocks = {layer for key, layer in layers.items() if f"_path.{stage}." in key}
                assert {layers[f"slow_path.{stage}_lateral.conv.weight"]} == blocks
        for key, module in network.named_modules():
            if isinstance(module, TAM):  # it is of its block
                block = key.rpartition(".")[0]
                of_block = {layer for param, layer in layers.items() if param.startswith(f"{block}.")}
                assert len(of_block) == 1
    assert sum(map(len, group_modules(network, network.group_matcher()).values())) > 8


@each_network
def test_rates_by_layer(name: str) -> None:
    network = network_called(name)
    groups = param_groups_layer_decay(network, layer_decay=0.5, weight_decay=0.1)
    scale = {id(weight): group["lr_scale"] for group in groups for weight in group["params"]}
    decay = {id(weight): group["weight_decay"] for group in groups for weight in group["params"]}
    layers = group_parameters(network, network.group_matcher(), reverse=True)
    for key, weight in network.named_parameters():
        assert math.isclose(scale[id(weight)], 0.5 ** (max(layers.values()) - layers[key]))
        assert decay[id(weight)] == (0.1 if weight.ndim > 1 else 0)
    optimizer = create_optimizer_v2(network, opt="adamw", lr=0.1, layer_decay=0.5)
    StepLRScheduler(optimizer, decay_t=1).step(0)  # timm's schedules give a group its share of the rate
    rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    assert rates == {weight: pytest.approx(0.1 * share) for weight, share in scale.items()}


@each_network
def test_tools(name: str) -> None:
    network, x = network_called(name).train(), clips(1)
    average = ModelEmaV3(network, decay=0.5)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(1)
    average.update(network, step=2)
    head = f"{network.head_name}.weight"
    torch.testing.assert_close(average.module.get_parameter(head) + 0.5, network.get_parameter(head))
    assert average.module.num_classes == CLASSES

    network = network_called(name).eval()
    with torch.no_grad():
        assert torch.equal(reparameterize_model(network)(x), network(x))
    ids = {id(weight) for weight in model_parameters(network, exclude_head=True)}
    assert [key for key, weight in network.named_parameters() if id(weight) not in ids] == [
        f"{network.head_name}.weight",
        f"{network.head_name}.bias",
    ]
    module = network.feature_info[-1]["module"]
    stats = extract_spp_stats(network, [module], [avg_ch_var], [T, 3, PIXELS, PIXELS])["avg_ch_var"]
    assert len(stats) == 1
    assert stats[0] > 0


@each_network
def test_freezing(name: str) -> None:
    """BatchNorms over frames become constants and back; those in a TAM are of one dimension, which timm leaves."""
    network = network_called(name)
    stage = network.feature_info[-2]["module"]
    freeze(network, stage)
    frozen = {key for key, weight in network.named_parameters() if not weight.requires_grad}
    assert frozen
    assert frozen == {key for key, _ in network.named_parameters() if key.startswith(f"{stage}.")}
    network.train()(clips()).mean().backward()
    still = {key: value.clone() for key, value in network.get_submodule(stage).state_dict().items()}
    network(clips() + 1)
    now = network.get_submodule(stage).state_dict()
    assert all(torch.equal(now[key], value) for key, value in still.items() if ".tam." not in f".{key}")
    unfreeze(network, stage)
    assert all(weight.requires_grad for weight in network.parameters())


def test_a_stage_by_timms_checkpoint() -> None:
    network = network_called("tanet on small").eval()
    x = normal(T, 16, 8, 8)
    layer = network.get_submodule("layer2")
    assert isinstance(layer, nn.Sequential)
    assert torch.equal(checkpoint_seq(layer, x), layer(x))


def test_blocks_that_are_watched_are_recomputed_too() -> None:
    """A forward of its own is what a block computes, before and after."""
    network = network_called("c2d on small")
    block = network.get_submodule("layer3.0")
    own = vars(block)["forward"] = lambda x: type(block).forward(block, x) * 2
    expected = network.eval()(clips())
    network.set_grad_checkpointing()
    assert torch.equal(network(clips()), expected)
    network.set_grad_checkpointing(False)
    assert vars(block)["forward"] is own


class Odd(nn.Module):
    """A network of which nobody knows where its trunk ends."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).amax((2, 3)))


def test_what_is_not_known_is_refused() -> None:
    network = Framewise(Odd(), 2)
    x = normal(1, 2, 3, 8, 8)
    for call in (network.forward_features, lambda _: network.forward_head(x[0]), lambda _: network.feature_info):
        with pytest.raises(NotImplementedError, match="got a Odd whose trunk is not known"):
            call(x)
    with pytest.raises(ValueError, match="Framewise without blocks"):
        network.set_grad_checkpointing()
    assert network.default_cfg["first_conv"] == "conv"
    assert network.group_matcher() == {"conv": r"^(?:conv)\."}
    known = network_called("tanet on small")
    for arguments, message in (((-1,), "num_classes"), ((3, ""), "global_pool"), ((2.0,), "num_classes")):
        with pytest.raises((TypeError, ValueError), match=message):
            known.reset_classifier(*arguments)
    with pytest.raises(ValueError, match="maps of 3 frames"):
        known.forward_head(normal(3, 128, 1, 1))
    with pytest.raises(ValueError, match="indices"):
        known.forward_intermediates(clips(), [7])
    with pytest.raises(ValueError, match="output_fmt"):
        known.forward_intermediates(clips(), output_fmt="NHWC")


def test_timm_makes_them_by_name() -> None:
    names = register(["resnet18"])
    assert names == register(["resnet18"])  # once more does nothing
    assert len(names) == len(set(names)) == len(list_models())
    assert {"tanet_resnet18", "slowfast_tam_4x16"} <= set(timm.list_models())
    torch.manual_seed(0)
    network = timm.create_model("tsm_resnet18", num_classes=CLASSES, num_segments=T, drop_rate=0.25)
    torch.manual_seed(0)
    expected = create_model("tsm", "resnet18", CLASSES, T, dropout=0.25)
    assert config_of(network) == config_of(expected)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), expected.parameters(), strict=True))
    assert timm.create_model("c2d_resnet18", num_classes=0).num_classes == 0
    with pytest.raises(ValueError, match="pretrained_cfg"):
        timm.create_model("c2d_resnet18", pretrained_cfg="in1k")
    with pytest.raises(ValueError, match="resnet19"):
        register(["resnet19"])
