"""TANet and C2D: exact parameter counts and invariants."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models import ResNet18_Weights, WeightsEnum, resnet18, resnet50
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from tam_triton.nets import C2D, TABlock, TANet, c2d18, c2d50, insert_tam, tanet, tanet18, tanet50
from tam_triton.temporal.tam import TAM

T = 4


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def randomise(module, seed=0):
    """Random values everywhere, running statistics included, so that no two tensors can be confused."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            values = torch.randn(tensor.shape, generator=generator) / max(tensor[0].numel(), 1) ** 0.5
            tensor.copy_(values.abs() + 0.5 if name.endswith("running_var") else values)
        else:
            tensor.fill_(3)
    return module


def neutralise(model):
    """Make every TAM the identity: V = 1 and Θ = [0, 1, 0], exactly, whatever the input."""
    for tam in (m for m in model.modules() if isinstance(m, TAM)):
        weights = tam.state_dict()
        for branch in "GL":
            weights[f"{branch}.1.weight"].zero_()
            weights[f"{branch}.1.bias"].fill_(1)
        weights["G.3.weight"].fill_(-100)[1].fill_(100)
        weights["L.3.weight"].fill_(100)
    return model


@pytest.fixture(scope="module")
def clips():
    return torch.randn(2, T, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def small():
    """A TANet of one basic block a stage."""
    return randomise(TANet(ResNet(BasicBlock, [1, 1, 1, 1]), T, num_classes=6)).eval()


@pytest.fixture(scope="module", params=[resnet18, resnet50])
def trio(request):
    """TANet, C2D and plain ResNet with the same random weights, in evaluation mode."""
    ta_net = randomise(TANet(request.param(), T, num_classes=6))
    weights = {key: tensor for key, tensor in ta_net.state_dict().items() if ".tam." not in key}
    c2d = C2D(request.param(), T, num_classes=6)
    c2d.load_state_dict(weights)
    resnet = request.param(num_classes=6)
    resnet.load_state_dict(weights)
    return ta_net.eval(), c2d.eval(), resnet.eval()


@pytest.mark.parametrize(
    ("build", "arguments", "expected"),
    [
        (tanet50, (400, 8), 25_590_320),
        (tanet50, (174, 8), 25_127_246),
        (tanet50, (174, 16), 25_134_670),
        (c2d50, (400, 8), 24_327_632),
    ],
)
def test_parameter_counts(build, arguments, expected):
    with torch.device("meta"):
        assert parameters(build(*arguments)) == expected


@pytest.mark.parametrize(
    ("stages", "blocks", "total"),
    [
        (["res5"], 3, 25_115_456),
        (["res4", "res5"], 9, 25_510_688),
        (["res5", "res3", "res4"], 13, 25_577_312),
        (["res2", "res3", "res4", "res5"], 16, 25_590_320),
    ],
)
def test_stages(stages, blocks, total):
    with torch.device("meta"):
        model = tanet50(stages=stages)
    ta_blocks = [name for name, module in model.named_modules() if isinstance(module, TABlock)]
    assert len(ta_blocks) == blocks
    assert {name.split(".")[0] for name in ta_blocks} == {f"layer{int(stage[3]) - 1}" for stage in stages}
    assert parameters(model) == total


@pytest.mark.parametrize(
    ("depth", "expected"),
    [(18, [2, 2, 2, 2]), (34, [3, 4, 6, 3]), (50, [3, 4, 6, 3]), (101, [3, 4, 23, 3]), (152, [3, 8, 36, 3])],
)
def test_depths(depth, expected):
    with torch.device("meta"):
        model = tanet(depth, 10, T)
    assert [sum(isinstance(m, TABlock) for m in getattr(model, f"layer{i}")) for i in (1, 2, 3, 4)] == expected


@pytest.mark.parametrize(
    "build",
    [
        resnet18,
        lambda: ResNet(Bottleneck, [1, 2, 1, 1]),
        lambda: ResNet(Bottleneck, [1, 2, 1, 1], groups=4, width_per_group=8),
        lambda: ResNet(Bottleneck, [1, 2, 1, 1], width_per_group=128),
    ],
    ids=["basic", "bottleneck", "resnext", "wide"],
)
def test_insertion_keeps_weights_and_names(build):
    resnet = randomise(build())
    before = {key: tensor.clone() for key, tensor in resnet.state_dict().items()}
    assert insert_tam(resnet, T) is resnet
    after = resnet.state_dict()
    assert [key for key in after if ".tam." not in key] == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    blocks = [block for i in (1, 2, 3, 4) for block in getattr(resnet, f"layer{i}")]
    assert all(block.tam.L[0].in_channels == block.conv1.out_channels for block in blocks)
    assert len([key for key in after if ".tam." in key]) == 14 * len(blocks)


def test_c2d_averages_the_logits_of_frames(trio, clips):
    _, c2d, resnet = trio
    with torch.no_grad():
        expected = torch.stack([sum(resnet(clip)) / T for clip in clips])
        torch.testing.assert_close(c2d(clips), expected)


def test_neutral_tams_make_c2d(trio, clips):
    ta_net, c2d, _ = trio
    with torch.no_grad():
        expected = c2d(clips)
        assert not torch.allclose(ta_net(clips), expected, rtol=0.01)
        torch.testing.assert_close(neutralise(copy.deepcopy(ta_net))(clips), expected)


def test_clips_are_independent_and_rank_does_not_matter(small, clips):
    with torch.no_grad():
        logits = small(clips)
        assert torch.equal(small(clips.flatten(0, 1)), logits)
        torch.testing.assert_close(torch.cat([small(clips[:1]), small(clips[1:])]), logits)
        assert not torch.allclose(small(clips.flip(1)), logits, rtol=0.01)


def test_channels_last_stays(small, clips):
    frames = clips.flatten(0, 1).to(memory_format=torch.channels_last)
    layouts = []
    model = copy.deepcopy(small)
    for module in model.modules():
        if isinstance(module, TAM | TABlock):
            module.register_forward_hook(
                lambda *call: layouts.append(call[-1].is_contiguous(memory_format=torch.channels_last))
            )
    with torch.no_grad():
        logits = model(frames.unflatten(0, (2, T)))
    assert layouts == [True] * 8
    torch.testing.assert_close(logits, small(clips))


def test_exports_with_any_number_of_clips(small, clips):
    exported = torch.export.export(small, (clips,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module()
    more = torch.cat([clips, clips.flip(1)])
    torch.testing.assert_close(exported(more), small(more))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(T, 32, 32), ValueError, "3 dimensions"),
        (torch.zeros(1, 1, T, 3, 32, 32), ValueError, "6 dimensions"),
        (torch.zeros(2, T + 1, 3, 32, 32), ValueError, r"5 frames.*expected \(N, 4, 3, H, W\)"),
        (torch.zeros(2, 1, 3, 32, 32), ValueError, "1 frames"),
        (torch.zeros(T + 2, 3, 32, 32), ValueError, "6 frames"),
        (torch.zeros(2, T, 1, 32, 32), ValueError, "1 channels"),
        (torch.zeros(2, 3, T, 32, 32), ValueError, "4 channels"),
        (torch.zeros(T, 4, 32, 32), ValueError, "4 channels"),
        (torch.zeros(0, T, 3, 32, 32), ValueError, "empty"),
        (torch.zeros(0, 3, 32, 32), ValueError, "empty"),
        (torch.zeros(2, T, 3, 32, 0), ValueError, "empty"),
        (torch.zeros(2, T, 3, 32, 32, dtype=torch.uint8), TypeError, "uint8"),
    ],
)
def test_bad_input(small, x, error, message):
    with pytest.raises(error, match=f"x: got .*{message}"):
        small(x)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"stages": "res5"}, TypeError, "the string 'res5'"),
        ({"stages": ()}, ValueError, "stages: got"),
        ({"stages": ("res5", "res5")}, ValueError, "stages: got"),
        ({"stages": ("res1",)}, ValueError, r"\('res1',\), expected .*'res2'"),
        ({"kernel_size": 4}, ValueError, "kernel_size: got 4"),
        ({"beta": 256}, ValueError, "beta"),
        ({"num_segments": 0}, ValueError, "num_segments: got 0"),
        ({"num_classes": 0}, ValueError, "num_classes: got 0"),
        ({"dropout": 1.5}, ValueError, "1.5"),
    ],
)
def test_bad_arguments_leave_the_resnet_alone(options, error, message):
    resnet = ResNet(BasicBlock, [1, 1, 1, 1])
    modules = list(resnet.modules())
    with pytest.raises(error, match=message):
        TANet(resnet, **{"num_segments": T, "num_classes": 6} | options)
    assert list(resnet.modules()) == modules


def test_networks_that_are_no_plain_resnets(small):
    with pytest.raises(ValueError, match="TA-Blocks"):
        insert_tam(small, T, stages=["res5"])
    with pytest.raises(TypeError, match=r"Linear.*layer1"):
        insert_tam(nn.Linear(3, 3), T)
    with pytest.raises(TypeError, match="maxpool"):
        C2D(nn.Sequential(), T)
    odd = ResNet(BasicBlock, [1, 1, 1, 1])
    odd.layer4[0] = nn.Identity()
    with pytest.raises(TypeError, match="Identity"):
        insert_tam(odd, T)
    assert isinstance(odd.layer1[0], BasicBlock)
    odd.fc = nn.Identity()
    with pytest.raises(TypeError, match=r"fc: got Identity"):
        C2D(odd, T)


def test_options_reach_every_tam():
    model = TANet(ResNet(BasicBlock, [1, 1, 1, 1]), 6, kernel_size=5, alpha=3, beta=8, impl="torch")
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    for layer, C in enumerate((64, 128, 256, 512), start=1):
        assert shapes[f"layer{layer}.0.tam.G.0.weight"] == (18, 6)
        assert shapes[f"layer{layer}.0.tam.G.3.weight"] == (5, 18)
        assert shapes[f"layer{layer}.0.tam.L.0.weight"] == (C // 8, C, 3)
    assert [m.impl for m in model.modules() if isinstance(m, TAM)] == ["torch"] * 4


def test_a_seed_gives_one_network():
    states = []
    for build in (
        lambda: tanet18(6, T),
        lambda: tanet18(6, T, stages=["res5", "res4", "res3", "res2"]),
        lambda: c2d18(6, T),
    ):
        torch.manual_seed(0)
        states.append(build().state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert all(torch.equal(states[0][key], states[2][key]) for key in states[2])


def test_a_shared_resnet_stays_plain(clips):
    resnet = randomise(ResNet(BasicBlock, [1, 1, 1, 1])).eval()
    c2d = C2D(resnet, T)
    logits = c2d(clips)
    TANet(resnet, T)
    assert torch.equal(c2d(clips), logits)
    assert torch.equal(resnet(clips.flatten(0, 1)).unflatten(0, (2, T)).mean(1), logits)


def test_head():
    torch.manual_seed(0)
    resnet = ResNet(BasicBlock, [1, 1, 1, 1])
    fc = resnet.fc
    assert C2D(resnet, T).fc is fc
    head = C2D(resnet, T, num_classes=400).fc
    assert head.weight.std().item() == pytest.approx(0.001, rel=0.01)
    assert head.bias.count_nonzero() == 0


def test_dropout_acts_on_the_features_in_training_alone(clips):
    model = randomise(C2D(ResNet(BasicBlock, [1, 1, 1, 1]), T, num_classes=6, dropout=1.0))
    assert torch.equal(model(clips), model.fc.bias.expand(2, 6))
    assert not torch.allclose(model.eval()(clips), model.fc.bias)


def test_new_modules_follow_mode_dtype_and_device():
    model = TANet(ResNet(BasicBlock, [1, 1, 1, 1]).double().eval(), T, num_classes=6)
    assert not any(module.training for module in model.modules())
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    meta = TANet(ResNet(BasicBlock, [1, 1, 1, 1]).to("meta"), T, num_classes=6)
    assert {tensor.device.type for tensor in meta.state_dict().values()} == {"meta"}
    assert all(module.training for module in meta.modules())


def test_pretrained_weights_by_name_and_member(monkeypatch):
    published = randomise(resnet18(), seed=5).state_dict()
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: published)
    for weights in ("IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1", "DEFAULT", ResNet18_Weights.IMAGENET1K_V1):
        state = tanet18(num_classes=None, num_segments=T, weights=weights).state_dict()
        assert all(torch.equal(state[key], published[key]) for key in published)
    state = c2d18(num_classes=5, weights="DEFAULT").state_dict()
    assert [key for key in published if not torch.equal(state[key], published[key])] == ["fc.weight", "fc.bias"]


def test_unknown_weights_and_depth():
    with pytest.raises(ValueError, match=r"weights: got 'IMAGENET21K'.*IMAGENET1K_V1"):
        tanet18(weights="IMAGENET21K")
    with pytest.raises(TypeError, match="ResNet50_Weights"):
        tanet50(weights=ResNet18_Weights.DEFAULT)
    with pytest.raises(ValueError, match=r"depth: got 20, expected one of \(18"):
        tanet(20)
