"""Files of other programs: what lies beside their weights is neither imported nor run; damage gives no traceback."""

import argparse
import collections
import io
import os
import pathlib
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from tam_triton import TAM
from tam_triton.nets import C2D, TANet, create_model, load_published
from tam_triton.nets.archive import read_checkpoint
from tam_triton.nets.stand_ins import stood_for

safetensors = pytest.importorskip("safetensors.torch")


class HistoryBuffer:
    """As mmengine's: arrays, and functions by their qualified names, which are pickled as calls of getattr."""

    def __init__(self):
        self.history = np.array([0.5, 0.25])

    def mean(self):
        raise AssertionError("a stand-in ran it")

    def __getstate__(self):
        return {**vars(self), "statistics_methods": {"mean": HistoryBuffer.mean}}


class ConfigDict(dict):
    """As addict's and mmengine's: items, and a state."""


class DictConfig(collections.abc.Mapping):
    """As omegaconf's: a mapping that is no dict."""

    def __init__(self, content):
        self.content = content

    def __getitem__(self, key):
        return self.content[key]

    def __iter__(self):
        return iter(self.content)

    def __len__(self):
        return len(self.content)


class Harmful:
    """Unpickled, it would call `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


FOREIGN = {
    HistoryBuffer: "mmengine.logging.history_buffer",
    ConfigDict: "mmengine.config.config",
    DictConfig: "omegaconf.dictconfig",
}


@pytest.fixture
def foreign(monkeypatch):
    """The classes above in modules of their own, which are gone when the test has written its file."""
    added = set()
    for kind, name in FOREIGN.items():
        packages = name.split(".")
        for depth in range(1, len(packages) + 1):
            added.add(".".join(packages[:depth]))
            monkeypatch.setitem(sys.modules, ".".join(packages[:depth]), types.ModuleType(name))
        setattr(sys.modules[name], kind.__name__, kind)
        monkeypatch.setattr(kind, "__module__", name)
    return lambda: [sys.modules.pop(name) for name in added]


def tam(seed=0):
    torch.manual_seed(seed)
    return TAM(8, 4)


def state_of(module, prefix="", seed=5):
    generator = torch.Generator().manual_seed(seed)
    return {
        prefix + name: torch.rand(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in module.state_dict().items()
    }


def by_mmengine(module):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    return {
        "meta": {"epoch": 1, "cfg": ConfigDict(model=ConfigDict(type="Recognizer2D"))},
        "message_hub": {
            "log_scalars": collections.OrderedDict(loss=HistoryBuffer()),
            "runtime_info": {"eta": np.float64(0.0), "lr": np.array([0.01])},
        },
        "optimizer": optimizer.state_dict(),
        "param_schedulers": [{"milestones": collections.Counter({1: 1})}],
        "state_dict": state_of(module, "backbone."),
    }


def by_authors(module):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    for group in optimizer.param_groups:
        group["lr"] = 0.01 * 0.1 ** (sum(np.array([30, 40, 45]) <= 40))
    return {
        "epoch": 41,
        "arch": "resnet50",
        "state_dict": state_of(module, "module.base_model."),
        "optimizer": optimizer.state_dict(),
        "best_prec1": np.float64(46.5),
    }


def by_somebody(module):
    history: dict[str, object] = collections.defaultdict(list, loss=collections.deque([np.float32(1.0)]))
    return {
        "args": argparse.Namespace(lr=0.1, out=pathlib.PosixPath("/runs"), seen=frozenset([1])),
        "config": DictConfig({"lr": 0.1}),
        "history": history,
        "by_number": {np.int64(3): 1, np.int64(4): 2},
        "criterion": nn.CrossEntropyLoss(),
        "model_state_dict": state_of(module, "network."),
    }


def saved(content, zipped):
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("program", [by_mmengine, by_authors, by_somebody])
def test_what_lies_beside_the_weights_is_ignored(program, zipped, tmp_path, foreign):
    if program is by_somebody and not zipped:
        pytest.skip("before torch 1.6 a module was written with its source")
    path = tmp_path / "epoch_1.pth"
    path.write_bytes(saved(program(tam()), zipped))
    foreign()
    allowed = set(torch.serialization.get_safe_globals())
    with pytest.raises(ValueError, match="holds more than tensors"):
        read_checkpoint(path)
    network = tam(1)
    report = load_published(network, path)
    assert (report.missing, report.unused) == ((), ())
    assert all(torch.equal(tensor, state_of(tam())[name]) for name, tensor in network.state_dict().items())
    assert not sys.modules.keys() & set(FOREIGN.values())
    assert set(torch.serialization.get_safe_globals()) == allowed


def test_only_names_are_left(tmp_path, foreign):
    path = tmp_path / "a.pth"
    path.write_bytes(saved(by_mmengine(tam()) | by_somebody(tam()), zipped=True))
    foreign()
    content = read_checkpoint(path, foreign=True)
    hub = content["message_hub"]
    assert stood_for(hub["log_scalars"]["loss"]) == "mmengine.logging.history_buffer.HistoryBuffer"
    assert stood_for(hub["runtime_info"]["lr"]) == "numpy.ndarray"
    assert stood_for(content["args"]) == "argparse.Namespace"
    assert stood_for(content["meta"]["cfg"]) == "mmengine.config.config.ConfigDict"
    assert content["meta"]["epoch"] == 1
    assert stood_for(1) is None


def test_nothing_is_run(tmp_path):
    """Of modules that torch bars, such as os, no stand-in is made either."""
    for function, arguments in ((exec, ("raise SystemExit",)), (pathlib.Path.mkdir, (tmp_path / "harm",))):
        torch.save({"state_dict": state_of(tam()), "hook": Harmful(function, *arguments)}, tmp_path / "a.pth")
        load_published(tam(), tmp_path / "a.pth")
    torch.save({"state_dict": state_of(tam()), "hook": Harmful(os.mkdir, str(tmp_path / "harm"))}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"checkpoint: .*a\.pth: .*holds more than .*posix\.mkdir"):
        load_published(tam(), tmp_path / "a.pth")
    assert [file.name for file in tmp_path.iterdir()] == ["a.pth"]


@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_whole_modules_are_refused(key, tmp_path):
    torch.save(tam() if key is None else {key: tam(), "epoch": 3}, tmp_path / "a.pth")
    network = tam(1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    place = "" if key is None else f" under '{key}'"
    with pytest.raises(
        TypeError, match=rf"a whole tam_triton\.temporal\.tam\.TAM{place}, .*torch\.save\(network\.state"
    ):
        load_published(network, tmp_path / "a.pth")
    torch.save(state_of(tam()) | {"G.0.weight": np.zeros((8, 4))}, tmp_path / "a.pth")
    with pytest.raises(TypeError, match=r"'G\.0\.weight' is of numpy\.ndarray, expected a Tensor"):
        load_published(network, tmp_path / "a.pth")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "net.", "network.", "model.backbone.", "module.network."])
@pytest.mark.parametrize("container", [None, "state_dict", "model_state_dict", "model_state", "model"])
def test_containers_and_prefixes(prefix, container):
    state = state_of(tam(), prefix)
    network = tam(1)
    report = load_published(network, state if container is None else {"epoch": 3, container: state, "arch": "x"})
    assert (report.missing, report.unused) == ((), ())
    assert torch.equal(network.G[0].weight, state[f"{prefix}G.0.weight"])


def test_a_network_may_have_such_a_name_itself():
    network = nn.ModuleDict({"net": nn.Linear(2, 2), "model": nn.Linear(2, 2)})
    state = state_of(network)
    load_published(network, state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("key", ["ema_state_dict", "state_dict_ema", "model_ema"])
def test_averaged_weights(key):
    network, state, averaged = tam(), state_of(tam()), state_of(tam(), "module.", seed=6)
    content = {"state_dict": state, key: averaged | {"n_averaged": torch.tensor(3)}}
    report = load_published(network, content)
    assert report.notes == (f"averaged weights (EMA) are there too, under '{key}'; average=True takes them",)
    assert report.notes[0] in str(report)
    assert torch.equal(network.G[0].weight, state["G.0.weight"])
    report = load_published(network, content, average=True)
    assert report.notes == (f"averaged weights (EMA), from '{key}'",)
    assert torch.equal(network.G[0].weight, averaged["module.G.0.weight"])
    with pytest.raises(ValueError, match="average: got True, but the checkpoint has none of ema_state_dict"):
        load_published(network, {"state_dict": state}, average=True)


@pytest.mark.parametrize("average", [True, False])
def test_mmengine_puts_the_average_first(average):
    network, state = tam(), state_of(tam())
    content = {"state_dict": state, "ema_state_dict": state_of(tam(), "module.", seed=6), "message_hub": {}}
    report = load_published(network, content, average=average)
    assert "these are averaged weights (EMA), as mmengine writes them" in report.notes[0]
    assert torch.equal(network.G[0].weight, state["G.0.weight"])


def test_safetensors(tmp_path, monkeypatch):
    path, state, network = tmp_path / "model.safetensors", state_of(tam()), tam(1)
    safetensors.save_file(state, path)
    load_published(network, path)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ValueError, match="pip install safetensors"):
        load_published(network, path)


def resnet(blocks, made=TANet):
    return made(ResNet(BasicBlock, blocks), 4, num_classes=3)


def test_layers_of_another_system():
    plain, temporal, deep = resnet([1, 1, 1, 1], C2D), resnet([1, 1, 1, 1]), resnet([1, 2, 1, 1])
    for network, other, message in (
        (
            plain,
            temporal,
            r"another system than this C2D.*it has 'layer1\.0\.tam'; .*'layer4\.0\.tam', which the model",
        ),
        (temporal, plain, r"another system than this TANet.*it lacks 'layer1\.0\.tam'; .*start=True"),
        (temporal, deep, r"of another depth: it has 'layer2\.1', which the model lacks"),
        (deep, temporal, r"of another depth .*: it lacks 'layer2\.1' \("),
    ):
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            load_published(network, other.state_dict())
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert len(load_published(temporal, plain.state_dict(), start=True).missing) == 4 * 14


@pytest.mark.parametrize("form", ["zip", "zip without checksums", "legacy", "safetensors"])
@pytest.mark.parametrize("program", [by_mmengine, by_authors])
def test_damage_anywhere(program, form, tmp_path, foreign):
    """Each bit in turn, and each length: what loads has all names, and what does not says so."""
    path, network = tmp_path / "a.pth", nn.Linear(1, 1)
    content = program(network)
    if form == "safetensors":
        whole = safetensors.save(content["state_dict"])
    else:
        before = torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options("without" not in form)
        try:
            whole = saved(content, zipped=form != "legacy")
        finally:
            torch.serialization.set_crc32_options(before)
    foreign()
    step = max(1, len(whole) // 400)
    for place in range(0, len(whole), step):
        flipped = whole[:place] + bytes([whole[place] ^ 1 << place // step % 8]) + whole[place + 1 :]
        for damaged in (flipped, whole[:place]):
            path.write_bytes(damaged)
            try:
                report = load_published(network, path)
            except (ValueError, TypeError) as error:
                message = str(error)
            else:
                message = f"checkpoint: {report.loaded}"
            assert message.startswith("checkpoint: ")


def test_the_start_of_a_training():
    """From 2D weights, with a head for other classes, of another number of frames."""
    plain = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5)
    network = create_model("i3d", ResNet(Bottleneck, [1, 1, 1, 1]), 3, 4)
    report = load_published(network, state_of(plain), start=True)
    assert report.untouched == ("fc",)
    assert report.notes == ("4 convolutions of a 2D network made ones over frames",)
    weight = state_of(plain)["layer2.0.conv1.weight"]
    torch.testing.assert_close(network.get_parameter("layer2.0.conv1.weight").sum(2, keepdim=True), weight)
    temporal = resnet([1, 1, 1, 1])
    other = TANet(ResNet(BasicBlock, [1, 1, 1, 1]), 8, num_classes=5)
    assert load_published(temporal, state_of(other), start=True, segments="interpolate").untouched == ("fc",)
    report = load_published(temporal, state_of(other), start=True, segments="draw")
    assert report.untouched == (*(f"layer{stage}.0.tam.G" for stage in (1, 2, 3, 4)), "fc")
    with pytest.raises(ValueError, match="trained with 8 segments"):
        load_published(temporal, state_of(other), start=True)
    with pytest.raises(ValueError, match="another backbone"):
        load_published(temporal, state_of(plain), start=True)
    with pytest.raises(ValueError, match=r"it has 'layer1\.0\.tam'; "):
        load_published(resnet([1, 1, 1, 1], C2D), state_of(other), start=True, segments="draw")


@pytest.mark.parametrize("segments", ["interpolate", "draw"])
@pytest.mark.parametrize("name", ["G.0.weight", "G.1.weight", "G.3.weight"])
@pytest.mark.parametrize("shape", [(), (7,), (3, 3), (2, 3, 4)])
def test_odd_global_branches(name, shape, segments):
    state = state_of(TANet(ResNet(BasicBlock, [1, 1, 1, 1]), 8, num_classes=3))
    state[f"layer1.0.tam.{name}"] = torch.zeros(shape)
    with pytest.raises(ValueError, match="does not fit the model"):
        load_published(resnet([1, 1, 1, 1]), state, segments=segments)
