"""Temporal modules inserted by name: the right function, whatever becomes of the network, and no change on an error."""

import copy
import io
import pickle
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.fx import symbolic_trace
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from tam_triton import TAM
from tam_triton.nets import C2D, insert_tam
from tam_triton.nets.framewise import Framewise
from tam_triton.nets.insertion import Place, insert
from tam_triton.nets.registry import create_model
from tam_triton.nets.slowfast import SlowFast
from tam_triton.nets.slowfast_config import SlowFastConfig
from tam_triton.nets.small_resnet import SmallResNet
from tam_triton.temporal import InflatedConv, NonLocal, TemporalConv, TemporalShift
from tests.support.networks import CLASSES, FRAMES, randomised, videos

B = Place("layer*.*.conv2")


def small(block: type = BasicBlock) -> C2D:
    backbone = SmallResNet(CLASSES) if block is BasicBlock else ResNet(Bottleneck, [1, 1, 1, 1], num_classes=CLASSES)
    return C2D(backbone, FRAMES, dropout=0.0)


def inserted(place: Place = B, module: object = partial(TAM, impl="torch"), block: type = BasicBlock) -> C2D:
    return randomised(insert(small(block), module, place, FRAMES)).eval()  # type: ignore[arg-type]


def test_tam_before_conv2_is_a_ta_block() -> None:
    network = inserted()
    expected = insert_tam(small(), FRAMES, impl="torch").eval()
    expected.load_state_dict(network.state_dict(), strict=True)
    assert list(network.state_dict()) == list(expected.state_dict())
    assert torch.equal(network(videos(2)), expected(videos(2)))


class Twice(nn.Module):
    """Doubles what it sees."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@pytest.mark.parametrize("pattern", ["layer1.0.conv1", "layer1.0.conv2", "layer1.0.bn2", "layer1.0", "fc"])
@pytest.mark.parametrize("position", ["before", "after"])
def test_it_acts_where_it_says(pattern: str, position: str) -> None:
    network = inserted(Place(pattern, position, "twice"), lambda channels, num_segments: Twice())
    plain = small().eval()
    plain.load_state_dict(network.state_dict(), strict=True)
    layer = plain.get_submodule(pattern)
    if position == "before":
        layer.register_forward_pre_hook(lambda layer, args: (2 * args[0],))
    else:
        layer.register_forward_hook(lambda layer, args, result: 2 * result)
    assert torch.equal(network(videos(2)), plain(videos(2)))
    where = "the block" if pattern == "layer1.0" else pattern.rpartition(".")[2]
    assert f"(twice): Twice({position} {where})" in str(network)


def test_instead() -> None:
    network = inserted(Place("layer*.*.conv1", "instead"), InflatedConv, Bottleneck)
    names = [name for name, module in network.named_modules() if isinstance(module, InflatedConv)]
    assert names == [f"layer{i}.0.conv1" for i in range(1, 5)]
    assert list(network.state_dict()) == list(small(Bottleneck).state_dict())


def test_by_name_and_with_options() -> None:
    network = insert(small(), "tam", B, FRAMES, kernel_size=5, impl="torch")
    tams = [module for module in network.modules() if isinstance(module, TAM)]
    assert [tam.kernel_size for tam in tams] == [5] * 4
    assert "kernel_size=5, before conv2" in str(network)


def test_mode_dtype_and_device() -> None:
    network = insert(small().double().eval(), "tam", B, FRAMES)
    assert not any(module.training for module in network.modules())
    assert {p.dtype for p in network.parameters()} == {torch.float64}
    assert {p.device.type for p in insert(small().to("meta"), "tam", B, FRAMES).parameters()} == {"meta"}


def test_a_seed_gives_one_network_whatever_the_order() -> None:
    states = []
    stages = [Place(f"layer{i}.*.conv2") for i in range(1, 5)]
    for places in (stages, stages[::-1]):
        torch.manual_seed(0)
        states.append(insert(small(), "tam", places, FRAMES).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


PLACES = {
    "b": B,
    "bn": Place("layer*.*.bn2", "after"),
    "block": Place("layer[23].*", "after"),
}
each_place = pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)


@each_place
def test_copies(place: Place) -> None:
    network = inserted(place)
    expected = network(videos(1))
    twins = [copy.deepcopy(network), pickle.loads(pickle.dumps(network))]
    buffer = io.BytesIO()
    torch.save(network, buffer)
    buffer.seek(0)
    twins.append(torch.load(buffer, weights_only=False))
    for twin in twins:
        assert torch.equal(twin(videos(1)), expected)
        for module in twin.modules():
            if isinstance(module, TAM):
                nn.init.zeros_(module.L[3].weight)  # type: ignore[arg-type]
        assert not torch.equal(twin(videos(1)), expected)  # it runs its own modules
    assert torch.equal(network(videos(1)), expected)


def test_hooks_of_a_new_process_leave_it_alone(tmp_path) -> None:
    network = inserted(Place("layer1.0.conv2"))
    torch.save((network, network(videos(1))), tmp_path / "network.pt")
    program = f"""
import torch
from tests.support.networks import videos
network, expected = torch.load({str(tmp_path / "network.pt")!r}, weights_only=False)
for i in range(20):
    network.layer1[0].conv2.register_forward_pre_hook(lambda layer, args: None)
assert torch.equal(network(videos(1)), expected)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.deep
@each_place
def test_compiled(place: Place) -> None:
    network = inserted(place)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(videos(2)), network(videos(2)))


@each_place
def test_exported(place: Place) -> None:
    network = inserted(place)
    exported = torch.export.export(network, (videos(2),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module()
    torch.testing.assert_close(exported(videos(3)), network(videos(3)))


@pytest.mark.parametrize("place", [B, PLACES["block"], Place("layer*.*.conv1", "after")])
def test_in_a_graph_it_is_a_node(place: Place) -> None:
    network = inserted(place)
    graph = symbolic_trace(network)
    tams = [name for name, module in network.named_modules() if isinstance(module, TAM)]
    assert [node.target for node in graph.graph.nodes if str(node.target).endswith(".tam")] == tams
    assert set(graph.state_dict()) == set(network.state_dict())
    torch.testing.assert_close(graph(videos(2)), network(videos(2)))


def test_a_graph_refuses_a_layer_that_cannot_be_looked_into() -> None:
    with pytest.raises(NotImplementedError, match=r"torch\.fx: tam acts after bn2, a BatchNorm2d"):
        symbolic_trace(inserted(PLACES["bn"]))


def test_a_layer_or_module_that_was_replaced() -> None:
    network = inserted(PLACES["bn"])
    with pytest.raises(RuntimeError, match=r"tam: no longer acts after bn2.*convert_sync_batchnorm"):
        nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(network))(videos(1))
    network.layer1[0].tam = nn.Identity()  # type: ignore[index]
    with pytest.raises(RuntimeError, match="tam: no longer acts after bn2"):
        network(videos(1))


def test_a_wrapped_layer_is_still_hooked() -> None:
    class Wrapped(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    network = inserted()
    expected = network(videos(1))
    network.layer1[0].conv2 = Wrapped(network.layer1[0].conv2)  # type: ignore[index]
    assert torch.equal(network(videos(1)), expected)


@pytest.mark.parametrize(
    ("module", "place", "error", "message"),
    [
        ("tamm", B, ValueError, "module: got 'tamm', expected one of .*'tam'"),
        (TAM(8, FRAMES), B, TypeError, "module: got TAM, expected a name or what makes"),
        (lambda channels, num_segments: 3, B, TypeError, "module: got int from the call"),
        ("tam", [], TypeError, "place: got"),
        ("tam", "layer1.0.conv2", TypeError, "place: got 'layer1.0.conv2'"),
        ("tam", Place("layer*.conv2"), ValueError, r"pattern 'layer\*.conv2', which fits no layer of C2D.*'conv1'"),
        ("tam", [B, Place("nowhere")], ValueError, "pattern 'nowhere'"),
        ("tam", [B, Place("layer1.0.conv1")], ValueError, "both be layer1.0.tam"),
        ("tam", [B, B], ValueError, r"layer1.0.conv2 and layer1.0.conv2"),
        ("tam", Place("maxpool"), ValueError, r"maxpool \(MaxPool2d\), which does not tell its channels"),
        ("tam", Place("layer1.0.conv2", name="bn1"), ValueError, "layer1.0 already has a 'bn1'"),
        (partial(TAM, beta=512), B, ValueError, r"before layer1.0.conv2: channels: got \d+, expected at least beta"),
        ("inflated_conv", Place("layer1.0.bn1", "instead"), TypeError, "instead layer1.0.bn1: conv: got BatchNorm2d"),
    ],
)
def test_nothing_has_changed_on_an_error(module, place, error, message) -> None:
    network = small()
    before = str(network)
    modules = list(network.modules())
    with pytest.raises(error, match=message):
        insert(network, module, place, FRAMES)
    assert str(network) == before
    assert list(network.modules()) == modules
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def test_twice() -> None:
    network = inserted()
    with pytest.raises(ValueError, match=r"layer1\.0 already has a 'tam'"):
        insert(network, "tam", B, FRAMES)
    with pytest.raises(ValueError, match=r"layer1.0.conv2, which has hooks"):
        insert(network, TemporalConv, Place("layer1.0.conv2", "instead"), FRAMES)
    insert(network, NonLocal, Place("layer2.0", "after", "non_local"), FRAMES)
    assert isinstance(network.get_submodule("layer2.0.non_local"), NonLocal)
    with pytest.raises(ValueError, match="position: got 'behind'"):
        Place("fc", "behind")
    with pytest.raises(ValueError, match=r"name: got 'a\.b'"):
        Place("fc", name="a.b")


def test_one_frame_has_no_neighbors() -> None:
    with pytest.raises(ValueError, match=r"before layer1.0.conv1: num_segments: got 1, expected at least 2"):
        insert(SmallResNet(CLASSES), TemporalShift, Place("layer*.*.conv1"), 1)


def other_modules() -> list[nn.Module]:
    """Networks that are for FRAMES frames: by themselves, and by a module that is there."""
    place = Place("layer1.0.conv2")
    return [small(), inserted(place), insert(SmallResNet(CLASSES), "tam", place, FRAMES)]


@pytest.mark.parametrize("network", other_modules(), ids=["network", "both", "module"])
@pytest.mark.parametrize(
    "build",
    [
        partial(insert, module="tam", place=Place("layer3.0.conv2")),
        partial(insert_tam, stages=["res4"]),
        C2D,
        partial(create_model, "c2d", num_classes=None),
        partial(create_model, "tanet", num_classes=None, stages=["res4"]),
        partial(create_model, "tsm", num_classes=None),
    ],
    ids=["insert", "insert_tam", "C2D", "c2d", "tanet", "tsm"],
)
def test_one_network_has_one_clip_length(build, network: nn.Module) -> None:
    before, modules = str(network), list(network.modules())
    with pytest.raises(ValueError, match=r"^num_segments: got 5, expected 3, as (C2D|TAM layer1.0.tam) has it"):
        build(network, num_segments=5)
    assert str(network) == before
    assert list(network.modules()) == modules


def test_a_module_for_another_clip_length() -> None:
    with pytest.raises(ValueError, match=r"^num_segments: got 5, expected 3, as TAM layer1.0.tam has it"):
        Framewise(insert(SmallResNet(CLASSES), "tam", Place("layer1.0.conv2"), FRAMES), 5)
    network = small()
    before = str(network)
    with pytest.raises(ValueError, match=r"^num_segments: got 3, expected 5, as TAM has it"):
        insert(network, lambda channels, num_segments: TAM(channels, 5), B, FRAMES)
    assert str(network) == before


def test_pathways_have_clip_lengths_of_their_own() -> None:
    network = SlowFast(SlowFastConfig(depth=50, num_segments=8, alpha=4, width=8), 5)
    place = Place("slow_path.layer1.0", "after", "non_local")
    with pytest.raises(ValueError, match="num_segments: got 8, expected 2"):
        insert(network, "non_local", place, 8)
    insert(network, "non_local", place, 2)


def test_children_that_are_all_run() -> None:
    with pytest.raises(ValueError, match="Sequential, which runs every child"):
        insert(nn.Sequential(nn.Conv2d(3, 3, 1)), "tam", Place("0", channels=8), FRAMES)
