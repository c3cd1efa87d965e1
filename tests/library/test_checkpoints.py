"""Checkpoints in each public naming: every tensor arrives, every stray key is reported, misfits change nothing.

The names were taken from the module definitions of liu-zhy/temporal-adaptive-module (`ops/models.py`,
`ops/temporal_module.py`) and open-mmlab/mmaction2 (`backbones/tanet.py`, `backbones/resnet.py`, `heads/tsm_head.py`).
"""

import re
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from tam_triton.nets import C2D, TANet, c2d18, create_model, load_published, tanet18, tanet50

T, CLASSES = 4, 7


def random_state(model, seed=0):
    """A state dict with the model's names and shapes and values of its own."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else torch.tensor(seed + 11)
        for key, tensor in model.state_dict().items()
    }


def by_authors(key, *, tanet, dropout=True):
    """torchvision's name → liu-zhy's: blocks under `net` beside a TAM; the head is `new_fc` where there is dropout."""
    if key.startswith("fc.") and dropout:
        return "new_" + key
    if tanet and ".tam." not in key:
        key = re.sub(r"^(layer\d\.\d+)\.", r"\1.net.", key)
    return "base_model." + key


def by_mmaction2(key, *, tanet):
    """torchvision's name → mmaction2's: blocks under `block` beside a TAM, conv and BN paired, the head by itself."""
    if key.startswith("fc."):
        return "cls_head.fc_cls." + key.removeprefix("fc.")
    if ".tam." not in key:
        key = re.sub(r"\bbn(\d)\.", r"conv\1.bn.", re.sub(r"\bconv(\d)\.", r"conv\1.conv.", key))
        key = key.replace("downsample.0.", "downsample.conv.").replace("downsample.1.", "downsample.bn.")
        key = re.sub(r"^(layer\d\.\d+)\.", r"\1.block.", key) if tanet else key
    return "backbone." + key


NAMINGS: dict[str, Callable[..., str]] = {
    "own": lambda key, tanet: key,
    "own, compiled and parallel": lambda key, tanet: f"module._orig_mod.{key}",
    "authors": by_authors,
    "authors, parallel": lambda key, tanet: "module." + by_authors(key, tanet=tanet),
    "authors, no dropout": lambda key, tanet: "module." + by_authors(key, tanet=tanet, dropout=False),
    "mmaction2": by_mmaction2,
    "mmaction2, parallel": lambda key, tanet: "module." + by_mmaction2(key, tanet=tanet),
}

# Key, torchvision's name for it, shape: TANet-50, 8 segments, Kinetics-400.
LITERAL_AUTHORS = """
module.base_model.conv1.weight                               conv1.weight                      64 3 7 7
module.base_model.bn1.weight                                 bn1.weight                        64
module.base_model.bn1.running_var                            bn1.running_var                   64
module.base_model.bn1.num_batches_tracked                    bn1.num_batches_tracked
module.base_model.layer1.0.net.conv1.weight                  layer1.0.conv1.weight             64 64 1 1
module.base_model.layer1.0.net.bn1.bias                      layer1.0.bn1.bias                 64
module.base_model.layer1.0.net.conv2.weight                  layer1.0.conv2.weight             64 64 3 3
module.base_model.layer1.0.net.bn3.running_mean              layer1.0.bn3.running_mean         256
module.base_model.layer1.0.net.downsample.0.weight           layer1.0.downsample.0.weight      256 64 1 1
module.base_model.layer1.0.net.downsample.1.running_mean     layer1.0.downsample.1.running_mean 256
module.base_model.layer1.0.tam.G.0.weight                    layer1.0.tam.G.0.weight           16 8
module.base_model.layer1.0.tam.G.1.weight                    layer1.0.tam.G.1.weight           16
module.base_model.layer1.0.tam.G.1.num_batches_tracked       layer1.0.tam.G.1.num_batches_tracked
module.base_model.layer1.0.tam.G.3.weight                    layer1.0.tam.G.3.weight           3 16
module.base_model.layer1.0.tam.L.0.weight                    layer1.0.tam.L.0.weight           16 64 3
module.base_model.layer1.0.tam.L.1.running_var               layer1.0.tam.L.1.running_var      16
module.base_model.layer1.0.tam.L.3.weight                    layer1.0.tam.L.3.weight           64 16 1
module.base_model.layer3.5.net.conv3.weight                  layer3.5.conv3.weight             1024 256 1 1
module.base_model.layer3.5.tam.L.0.weight                    layer3.5.tam.L.0.weight           64 256 3
module.base_model.layer4.2.net.bn3.num_batches_tracked       layer4.2.bn3.num_batches_tracked
module.base_model.layer4.2.tam.L.3.weight                    layer4.2.tam.L.3.weight           512 128 1
module.new_fc.weight                                         fc.weight                         400 2048
module.new_fc.bias                                           fc.bias                           400
"""
LITERAL_MMACTION2 = """
backbone.conv1.conv.weight                                   conv1.weight                      64 3 7 7
backbone.conv1.bn.weight                                     bn1.weight                        64
backbone.conv1.bn.running_mean                               bn1.running_mean                  64
backbone.conv1.bn.num_batches_tracked                        bn1.num_batches_tracked
backbone.layer1.0.block.conv1.conv.weight                    layer1.0.conv1.weight             64 64 1 1
backbone.layer1.0.block.conv1.bn.bias                        layer1.0.bn1.bias                 64
backbone.layer1.0.block.conv2.conv.weight                    layer1.0.conv2.weight             64 64 3 3
backbone.layer1.0.block.conv3.conv.weight                    layer1.0.conv3.weight             256 64 1 1
backbone.layer1.0.block.conv3.bn.running_var                 layer1.0.bn3.running_var          256
backbone.layer1.0.block.downsample.conv.weight               layer1.0.downsample.0.weight      256 64 1 1
backbone.layer1.0.block.downsample.bn.weight                 layer1.0.downsample.1.weight      256
backbone.layer1.0.block.downsample.bn.num_batches_tracked    layer1.0.downsample.1.num_batches_tracked
backbone.layer1.0.tam.G.0.weight                             layer1.0.tam.G.0.weight           16 8
backbone.layer1.0.tam.G.1.running_mean                       layer1.0.tam.G.1.running_mean     16
backbone.layer1.0.tam.G.3.weight                             layer1.0.tam.G.3.weight           3 16
backbone.layer2.3.block.conv2.bn.weight                      layer2.3.bn2.weight               128
backbone.layer2.3.tam.L.0.weight                             layer2.3.tam.L.0.weight           32 128 3
backbone.layer2.3.tam.L.1.bias                               layer2.3.tam.L.1.bias             32
backbone.layer2.3.tam.L.3.weight                             layer2.3.tam.L.3.weight           128 32 1
backbone.layer4.0.block.downsample.conv.weight               layer4.0.downsample.0.weight      2048 1024 1 1
backbone.layer4.2.block.conv2.conv.weight                    layer4.2.conv2.weight             512 512 3 3
backbone.layer4.2.tam.G.1.bias                               layer4.2.tam.G.1.bias             16
cls_head.fc_cls.weight                                       fc.weight                         400 2048
cls_head.fc_cls.bias                                         fc.bias                           400
"""


@pytest.fixture(scope="module")
def tanet_50():
    return tanet50()


@pytest.fixture(scope="module")
def networks():
    """By whether they have TAMs: ResNet-18, and bottlenecks with every kind of shortcut."""
    bottlenecks = [2, 2, 1, 1]
    return {
        True: [tanet18(CLASSES, T), TANet(ResNet(Bottleneck, bottlenecks), T, num_classes=CLASSES)],
        False: [c2d18(CLASSES, T), C2D(ResNet(Bottleneck, bottlenecks), T, num_classes=CLASSES)],
    }


@pytest.fixture
def small():
    return TANet(ResNet(BasicBlock, [1, 1, 1, 1]), T, num_classes=CLASSES)


@pytest.fixture
def unchanged(small):
    """Fails the test if it changed a bit of `small`."""
    before = {key: tensor.clone() for key, tensor in small.state_dict().items()}
    yield
    assert all(torch.equal(tensor, before[key]) for key, tensor in small.state_dict().items())


def variant(**options):
    return TANet(ResNet(BasicBlock, [1, 1, 1, 1]), **{"num_segments": T, "num_classes": CLASSES} | options)


@pytest.mark.parametrize("tanet", [True, False])
@pytest.mark.parametrize("naming", NAMINGS)
def test_every_tensor_arrives(networks, naming, tanet):
    for seed, model in enumerate(networks[tanet]):
        state = random_state(model, seed)
        report = load_published(model, {NAMINGS[naming](key, tanet=tanet): tensor for key, tensor in state.items()})
        assert (report.unused, report.missing) == ((), ())
        assert set(report.loaded) == set(state)
        assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("table", [LITERAL_AUTHORS, LITERAL_MMACTION2], ids=["authors", "mmaction2"])
def test_literal_names_and_shapes_of_tanet_50(tanet_50, table):
    rows = [line.split() for line in table.strip().splitlines()]
    generator = torch.Generator().manual_seed(0)
    shapes = {key: tuple(map(int, shape)) for key, _, *shape in rows}
    state = {
        key: torch.randn(shape, generator=generator) if shape else torch.tensor(5) for key, shape in shapes.items()
    }
    report = load_published(tanet_50, state, start=True)
    assert report.unused == ()
    assert list(report.loaded) == [name for _, name, *_ in rows]
    after = tanet_50.state_dict()
    assert all(torch.equal(after[name], state[key]) for key, name, *_ in rows)
    assert set(report.missing) == set(after) - set(report.loaded)


@pytest.mark.parametrize("zipped", [True, False])
def test_files_and_containers(small, tmp_path, zipped):
    state = random_state(small)
    path = tmp_path / "ckpt.best.pth.tar"
    container = {
        "epoch": 100,
        "arch": "resnet50",
        "best_prec1": torch.tensor(76.1),
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.01}]},
        "state_dict": {"module." + by_authors(key, tanet=True): tensor for key, tensor in state.items()},
    }
    torch.save(container, path, _use_new_zipfile_serialization=zipped)
    for checkpoint in (path, str(path), container):
        load_published(small, random_state(small, seed=1))
        report = load_published(small, checkpoint)
        assert (report.unused, report.missing) == ((), ())
        assert all(torch.equal(tensor, state[key]) for key, tensor in small.state_dict().items())


def test_report_names_what_was_left_out(small):
    before = {key: tensor.clone() for key, tensor in small.state_dict().items()}
    state = {"module." + by_authors(key, tanet=True): tensor for key, tensor in random_state(small).items()}
    del state["module.base_model.layer2.0.tam.L.1.bias"]
    state |= {"module.consensus.scale.weight": torch.ones(3), "module.temperature": torch.ones(1)}
    state |= {"module.base_model.bn1.weight_orig": torch.ones(64), "epoch": 3}
    report = load_published(small, state)
    assert report.unused == (
        "module.consensus.scale.weight",
        "module.temperature",
        "module.base_model.bn1.weight_orig",
        "epoch",
    )
    assert report.missing == ("layer2.0.tam.L.1.bias",)
    assert len(report.loaded) == len(before) - 1
    assert torch.equal(small.state_dict()["layer2.0.tam.L.1.bias"], before["layer2.0.tam.L.1.bias"])
    assert str(report).splitlines() == [
        f"{len(before) - 1} tensors loaded",
        "4 checkpoint keys not used:",
        *(f"  {key}" for key in report.unused),
        "1 model keys left as they were:",
        "  layer2.0.tam.L.1.bias",
    ]


def test_image_weights_leave_the_tams(small):
    state = random_state(ResNet(BasicBlock, [1, 1, 1, 1]))
    tams = {key: tensor.clone() for key, tensor in small.state_dict().items() if ".tam." in key}
    report = load_published(small, state, ignore_head=True, start=True)
    after = small.state_dict()
    assert report.unused == ("fc.weight", "fc.bias")
    assert set(report.missing) == {*tams, "fc.weight", "fc.bias"}
    assert all(torch.equal(after[key], tams[key]) for key in tams)
    assert all(torch.equal(after[key], state[key]) for key in report.loaded)


@pytest.mark.parametrize("naming", ["authors, parallel", "mmaction2"])
def test_head_of_other_classes_can_be_ignored(small, naming):
    head = {key: tensor.clone() for key, tensor in small.fc.state_dict().items()}
    state = random_state(variant(num_classes=9))
    report = load_published(
        small, {NAMINGS[naming](key, tanet=True): tensor for key, tensor in state.items()}, ignore_head=True
    )
    assert report.missing == ("fc.weight", "fc.bias")
    assert report.unused == tuple(NAMINGS[naming](f"fc.{name}", tanet=True) for name in ("weight", "bias"))
    assert all(torch.equal(small.fc.state_dict()[key], head[key]) for key in head)
    assert torch.equal(small.layer4[0].tam.G[0].weight, state["layer4.0.tam.G.0.weight"])


@pytest.mark.parametrize("system", ["tanet", "tanet_c", "tanet_r"])
def test_the_authors_kernels_of_five_taps(system):
    """Their TAM gives the first Conv1d of its local branch `kernel_size` taps too; mmaction2's has its own argument."""
    blocks = ResNet(Bottleneck, [1, 1, 1, 1])
    network = create_model(system, blocks, CLASSES, T, kernel_size=5, local_kernel_size=5)
    state = random_state(network)
    published = {"module." + by_authors(key, tanet=True): tensor for key, tensor in state.items()}
    assert published["module.base_model.layer1.0.tam.L.0.weight"].shape == (16, 64, 5)
    assert published["module.base_model.layer1.0.tam.G.3.weight"].shape == (5, 2 * T)
    report = load_published(network, published)
    assert (report.missing, report.unused) == ((), ())
    assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_segments": 16},
            r"it was trained with 16 segments, the model has 4\. "
            r"'backbone\.layer1\.0\.tam\.G\.0\.weight' is \(32, 16\) in the checkpoint, \(8, 4\) in the model;",
        ),
        ({"kernel_size": 5}, r"its kernel_size is 5, the model's 3\. .*layer1\.0\.tam\.G\.3\.weight' is \(5, 8\)"),
        ({"alpha": 3}, r"its alpha is 3, the model's 2\. "),
        ({"beta": 8}, r"its beta is 8, the model's 4\. .*tam\.L\.0\.weight' is \(8, 64, 3\)"),
        (
            {"num_classes": 9},
            r"it has 9 classes, the model 7 \(ignore_head=True .*\)\. 'cls_head\.fc_cls\.weight' is \(9, 512\)",
        ),
        ({"num_segments": 8, "num_classes": 9}, r"with 8 segments, the model has 4; it has 9 classes, .*and 21 more"),
    ],
)
def test_misfits_say_why(small, options, message):
    state = random_state(variant(**options))
    with pytest.raises(ValueError, match=message):
        load_published(small, {by_mmaction2(key, tanet=True): tensor for key, tensor in state.items()})


@pytest.mark.usefixtures("unchanged")
def test_misfits_of_other_networks(small):
    wide = TANet(ResNet(Bottleneck, [1, 1, 1, 1]), T, num_classes=CLASSES)
    with pytest.raises(ValueError, match=r"another backbone\. .*'layer1\.0\.conv1\.weight' is \(64, 64, 1, 1\)"):
        load_published(small, random_state(wide))
    state = random_state(small)
    state["layer1.0.tam.L.0.weight"] = torch.zeros(16, 64, 5)
    with pytest.raises(ValueError, match=r"its local branch has 5 taps, the model's 3 \(local_kernel_size\)"):
        load_published(small, state)
    state["layer1.0.tam.L.0.weight"] = torch.zeros(64, 3)
    with pytest.raises(ValueError, match=r"it has other shapes\. 'fc\.bias' is \(9,\)"):
        load_published(small, {"fc.bias": torch.zeros(9)})
    with pytest.raises(ValueError, match=r"another kind of network\. .* is \(64, 3\)"):
        load_published(small, state)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("module.base_model.conv1.weight", "conv1.weight"),
        ("module.new_fc.weight", "module.base_model.fc.weight"),
        ("backbone.layer1.0.conv1.conv.weight", "backbone.layer1.0.block.conv1.conv.weight"),
    ],
)
def test_two_keys_for_one_tensor(small, first, second):
    with pytest.raises(ValueError, match=f"{re.escape(first)}.*{re.escape(second)}.*both stand for"):
        load_published(small, {"bn1.weight": torch.ones(64), first: torch.ones(1), second: torch.ones(1)})


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("checkpoint", "error", "message"),
    [
        ({}, ValueError, "no keys"),
        ({"state_dict": {}}, ValueError, "no keys"),
        (
            {"blocks.0.attn.qkv.weight": torch.ones(3)},
            ValueError,
            r"'blocks\.0\.attn\.qkv\.weight', none of which fits",
        ),
        ({"weights": {"conv1.weight": torch.ones(3)}}, ValueError, "'weights', none of which fits TANet"),
        ({"conv1.weight": "not a tensor"}, ValueError, "none of which fits"),
        ({"state_dict": [1]}, TypeError, "list"),
        (nn.Linear(2, 2), TypeError, "Linear"),
        (None, TypeError, "NoneType"),
    ],
)
def test_no_checkpoint_at_all(small, checkpoint, error, message):
    with pytest.raises(error, match=f"checkpoint: got .*{message}"):
        load_published(small, checkpoint)


@pytest.mark.usefixtures("unchanged")
def test_unreadable_files(small, tmp_path):
    torch.save({"state_dict": random_state(small)}, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    torch.save({"state_dict": random_state(small)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    old = (tmp_path / "old.pth").read_bytes()
    contents = [b"", b"hello\n", whole[: len(whole) // 2], old[:-100], old[:100]]
    for index, content in enumerate(contents):
        path = tmp_path / f"damaged{index}.pth"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"damaged{index}\.pth: is not a checkpoint, or a damaged one"):
            load_published(small, path)
    torch.save(small, tmp_path / "module.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"module\.pth: .*holds more .*tam_triton\.nets\.video\.TANet.*; if you trust"):
        load_published(small, tmp_path / "module.pth")
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        load_published(small, tmp_path / "absent.pth")
