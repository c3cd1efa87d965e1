"""SlowFast against the paper's formulation in 3D convolutions; published costs and names; TAM in its pathways."""

import copy
import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import symbolic_trace
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tam_triton import TAM
from tam_triton.nets import TABlock
from tam_triton.nets.pathway import StemConv, TimeConv
from tam_triton.nets.slowfast import SlowFast, slowfast
from tam_triton.nets.slowfast_checkpoints import library_name, load_slowfast
from tam_triton.nets.slowfast_config import BLOCKS, CONFIGS, SlowFastConfig
from tests.library.test_nets import neutralise
from tests.support.networks import eager_twin, normal, randomised
from tests.support.slowfast import Paper

T, ALPHA, CLASSES = 8, 4, 6
SMALL = SlowFastConfig(num_segments=T, alpha=ALPHA, width=16, channel_ratio=4)

each_layout = pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"]
)
each_kind = pytest.mark.parametrize("tam", [False, True], ids=["conv", "tam"])


@pytest.fixture(autouse=True)
def shallow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """ResNet-50 of five blocks, unless a test counts what the real one has."""
    torch.compiler.reset()
    if "deep" not in request.fixturenames:
        monkeypatch.setitem(BLOCKS, 50, (2, 1, 1, 1))
    yield
    torch.compiler.reset()


@pytest.fixture
def deep() -> None:
    """All the blocks."""


def small(tam: bool = False, impl: str | None = "torch", **options: Any) -> SlowFast:
    """In float64, without dropout."""
    network = SlowFast(replace(SMALL, tam=tam, **options), CLASSES, dropout=0.0, impl=impl)
    return randomised(network).double()


def videos(clips: int, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    frames = normal(clips * T, 3, 40, 48).double().contiguous(memory_format=memory_format)
    return frames.unflatten(0, (clips, T))


def results(network: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """Logits and the gradients of the frames and of every parameter."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    y = network(*leaves)
    dy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return [y.detach(), *torch.autograd.grad(y, (*leaves, *network.parameters()), dy)]


def pair(lateral: int = 5, alpha: int = ALPHA) -> tuple[SlowFast, Paper]:
    """The library's network with the weights of the paper's."""
    paper = randomised(Paper(BLOCKS[50], SMALL.width, SMALL.channel_ratio, alpha, lateral, CLASSES)).double()
    network = small(lateral_kernel=lateral, alpha=alpha)
    report = load_slowfast(network, paper.state_dict())
    assert not report.unused
    assert not report.missing
    return network, paper


@each_layout
@pytest.mark.parametrize(("lateral", "alpha", "training"), [(5, 4, True), (7, 2, False), (3, 8, True)])
def test_values_and_gradients_of_the_paper(
    lateral: int, alpha: int, training: bool, memory_format: torch.memory_format
) -> None:
    network, paper = pair(lateral, alpha)
    network.train(training).to(memory_format=memory_format)
    paper.train(training)
    (y, dx, *gradients), (y3d, dx3d, *gradients3d) = (
        results(network, videos(2, memory_format)),
        results(paper, videos(2)),
    )
    torch.testing.assert_close((y, dx), (y3d, dx3d))
    ours = {name: g for (name, _), g in zip(network.named_parameters(), gradients, strict=True)}
    theirs = {library_name(name): g for (name, _), g in zip(paper.named_parameters(), gradients3d, strict=True)}
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name].reshape(gradient.shape), gradient, msg=f"the gradient of {name}")
    for name, tensor in paper.named_buffers():
        torch.testing.assert_close(network.get_buffer(library_name(name)), tensor)


def test_frames_of_the_slow_pathway_may_be_others() -> None:
    network, paper = (half.eval() for half in pair())
    x = videos(2)
    spread = x[:, torch.linspace(0, T - 1, T // ALPHA).long()]
    torch.testing.assert_close(network(x, spread), paper(x, spread))
    torch.testing.assert_close(network(x.flatten(0, 1), spread.flatten(0, 1)), paper(x, spread))
    torch.testing.assert_close(network(x, x[:, ::ALPHA]), network(x))
    assert not torch.allclose(network(x, spread), network(x))


# Published by facebookresearch/pytorchvideo (34.48, 34.57, 62.83 M) and the paper (36.1, 65.7 G), whose lateral
# convolutions have BatchNorm; by mmaction2's model cards, whose do not and have 7 taps in 8×8 (34,479,288 …, 62.9 M).
@pytest.mark.usefixtures("deep")
@pytest.mark.parametrize(
    ("name", "changes", "parameters", "macs"),
    [
        ("slowfast_4x16", {}, 34_480_216, 36.10),
        ("slowfast_8x8", {}, 34_566_488, 65.71),
        ("slowfast_r101_8x8", {}, 62_826_968, 125.91),
        ("slowfast_4x16", {"lateral_norm": False}, 34_479_288, 36.10),
        ("slowfast_8x8", {"lateral_norm": False}, 34_565_560, 65.71),
        ("slowfast_r101_8x8", {"lateral_norm": False, "lateral_kernel": 7}, 62_912_312, 126.32),
        ("slowfast_tam_4x16", {}, 27_130_380, 28.48),
        ("slowfast_tam_8x8", {}, 27_217_876, 51.66),
    ],
)
def test_parameters_and_cost(name: str, changes: dict[str, Any], parameters: int, macs: float) -> None:
    """Multiply-adds of convolutions, linears and aggregations, in G, for one view of 32 frames of 256 × 256."""
    with torch.device("meta"):
        network = SlowFast(replace(CONFIGS[name], **changes)).eval()
        x = torch.empty(1, 32, 3, 256, 256)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        assert network(x).shape == (1, 400)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert round(counter.get_total_flops() / 2e9, 2) == macs


@pytest.mark.usefixtures("deep")
@pytest.mark.parametrize(("name", "slow"), [("slowfast_tam_4x16", 4), ("slowfast_tam_8x8", 8)])
def test_a_tam_for_each_temporal_convolution(name: str, slow: int) -> None:
    with torch.device("meta"):
        network, plain = slowfast(name), slowfast(name.replace("_tam", ""))
    for path, count, frames in (("slow_path", 9, slow), ("fast_path", 16, 32)):
        tams = [module for module in network.get_submodule(path).modules() if isinstance(module, TAM)]
        assert [tam.num_segments for tam in tams] == [frames] * count
        convs = [name for name, module in plain.get_submodule(path).named_modules() if isinstance(module, TimeConv)]
        convs = [name for name in convs if "lateral" not in name]
        assert len(convs) == count
        for place in convs:
            block = network.get_submodule(f"{path}.{place.removesuffix('.conv1')}")
            assert isinstance(block, TABlock)
            assert block.conv1.kernel_size == (1, 1)
            assert block.tam.channels == block.conv1.out_channels


def test_with_identity_tams_it_is_slowfast_of_one_tap() -> None:
    """Neither convolves over time then: TAM with V = 1 and Θ = [0, 1, 0], the 3×1×1 with a middle tap alone."""
    network, plain = small(tam=True).eval(), small().eval()
    neutralise(network)
    weights = {}
    for name, tensor in network.state_dict().items():
        if ".tam." not in name:
            like = plain.state_dict()[name]
            weights[name] = tensor if tensor.shape == like.shape else nn.functional.pad(tensor, (0, 0, 1, 1))
    plain.load_state_dict(weights)
    torch.testing.assert_close(network(videos(2)), plain(videos(2)))


def test_slowfast_with_tam_learns_as_its_eager_twin() -> None:
    network = small(tam=True, impl="torch").train()
    twin = eager_twin(network)
    torch.testing.assert_close(results(network, videos(1)), results(twin, videos(1)))


def test_a_pathway_sees_its_own_order_of_frames() -> None:
    """TAM in the slow pathway: what the fast one cannot tell it."""
    network = small(tam=True).eval()
    x = videos(1)
    slow = x[:, ::ALPHA]
    assert not torch.allclose(network(x, slow.flip(1)), network(x, slow))
    torch.testing.assert_close(network(torch.cat((x, x.flip(1))))[:1], network(x))  # and clips do not meet


@each_kind
@each_layout
def test_layout(tam: bool, memory_format: torch.memory_format) -> None:
    network = small(tam).eval().to(memory_format=memory_format)
    seen = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda module, inputs, y: seen.append(y.is_contiguous(memory_format=memory_format))
            )
    x = videos(2, memory_format).float()
    with torch.no_grad():
        y = network.float()(x)
    assert seen
    assert all(seen)
    torch.testing.assert_close(y, small(tam).float().eval()(videos(2).float()))


def test_channels_last_frames_are_never_copied() -> None:
    network = small().float().eval().to(memory_format=torch.channels_last)
    x = videos(2, torch.channels_last).float()
    with Copies() as copies, torch.no_grad():
        network(x)
    assert not copies.count


class Copies(TorchDispatchMode):
    """How often a tensor the size of a feature map is copied."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.clone.default, torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            self.count += args[0].dim() >= 4
        return func(*args, **(kwargs or {}))


@pytest.mark.deep
@pytest.mark.parametrize(("tam", "training"), [(False, True), (True, False)])
def test_compiled_whole(tam: bool, training: bool) -> None:
    network = small(tam).train(training)
    expected = results(network, videos(1))
    network.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(results(network, videos(1)), expected)


def test_exported_through_a_file() -> None:
    network = small(tam=True).eval()
    with torch.no_grad():
        program = torch.export.export(network, (videos(3),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        buffer.seek(0)
        forward = torch.export.load(buffer).module()
        for clips in (1, 2):
            torch.testing.assert_close(forward(videos(clips)), network(videos(clips)))


@each_kind
def test_copied_and_traced(tam: bool) -> None:
    network = small(tam).eval()
    twin, graph = copy.deepcopy(network), symbolic_trace(network, concrete_args={"slow": None})
    with torch.no_grad():
        expected = network(videos(2))
        network.fc.weight.zero_()
        torch.testing.assert_close(twin(videos(2)), expected)
        network.fc.weight.copy_(twin.fc.weight)
        torch.testing.assert_close(graph(videos(2)), expected)
    assert twin.config == network.config
    assert (twin.num_segments, twin.alpha) == (T, ALPHA)


@pytest.mark.usefixtures("deep")
def test_initialization() -> None:
    """He's for convolutions, by what leaves them, time included; the last BatchNorm of a block starts at γ = 0."""
    torch.manual_seed(0)
    network = slowfast("slowfast_4x16")
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == (0 if name.endswith("bn3") else 1)).all(), name
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            taps = module.taps * 49 if isinstance(module, StemConv) else module.weight[0, 0].numel()
            assert module.weight.std().item() == pytest.approx((2 / (module.out_channels * taps)) ** 0.5, rel=0.05), (
                name
            )
    assert network.fc.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert not network.fc.bias.any()


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"alpha": 3}, ValueError, "alpha: got 3, expected a divisor of num_segments = 8"),
        ({"alpha": 0}, ValueError, "alpha: got 0, expected at least 1"),
        ({"num_segments": 8.0}, TypeError, "num_segments: got float, expected an int"),
        ({"channel_ratio": 5}, ValueError, "channel_ratio: got 5, expected a divisor of width = 16"),
        ({"depth": 34}, ValueError, r"depth: got 34, expected one of \(50, 101, 152\)"),
        ({"lateral_kernel": 4}, ValueError, "lateral_kernel: got 4, expected an odd number"),
        ({"lateral_norm": 1}, TypeError, "lateral_norm: got int, expected a bool"),
        ({"tam": "yes"}, TypeError, "tam: got str, expected a bool"),
    ],
)
def test_refused_configurations(changes: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        replace(SMALL, **changes)


def test_refused_networks() -> None:
    with pytest.raises(TypeError, match="config: got str, expected a SlowFastConfig"):
        SlowFast("slowfast_4x16")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="name: got 'slowfast_2x32', expected one of"):
        slowfast("slowfast_2x32")
    with pytest.raises(TypeError, match="name: got int, expected a str"):
        slowfast(50)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_classes: got 0"):
        SlowFast(SMALL, 0)
    with pytest.raises(ValueError, match="dropout: got 2, expected a probability"):
        SlowFast(SMALL, 2, dropout=2)
    with pytest.raises(TypeError, match="dropout: got str"):
        SlowFast(SMALL, 2, dropout="0.5")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="impl: got 'cuda'"):
        SlowFast(replace(SMALL, tam=True), 2, impl="cuda")
    with pytest.raises(ValueError, match="channels: got 2, expected at least beta = 4"):
        SlowFast(replace(SMALL, tam=True, channel_ratio=8))


def test_refused_frames() -> None:
    network, x = small(), videos(2)
    slow = x[:, ::ALPHA]
    with pytest.raises(ValueError, match=r"x: got 7 frames in shape .* expected \(N, 8, 3, H, W\)"):
        network(x[:, :7])
    with pytest.raises(ValueError, match=r"x: got 15 frames"):
        network(x.flatten(0, 1)[:15])
    with pytest.raises(ValueError, match=r"8 frames .* expected \(N, 2, 3, H, W\)"):
        network(x, x)
    with pytest.raises(ValueError, match="slow: got 2 frames for 16 in x, expected 1 for 4"):
        network(x, slow[:1])
    with pytest.raises(TypeError, match=r"x: got dtype torch\.float32, expected the module's torch\.float64"):
        network(x, slow.float())
