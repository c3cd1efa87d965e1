"""Temporal modules under what torch does with modules: copies, compilation, export, graphs, refusals; and no copies."""

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import symbolic_trace
from torch.utils._python_dispatch import TorchDispatchMode

from tam_triton import temporal
from tam_triton.temporal import MODULES, ChannelwiseTemporalConv, InflatedConv, TemporalShift
from tests.support.temporal import CHANNELS, EACH, FRAMES, feature_maps, random_module, small

each_module = pytest.mark.parametrize(("name", "impl"), EACH)
each_name = pytest.mark.parametrize("name", MODULES)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@each_name
def test_copied_pickled_and_saved(name: str) -> None:
    module = random_module(name).eval()
    x, y = feature_maps(), module(feature_maps())
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    loaded = small(name).eval()
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
        torch.testing.assert_close(twin(x), y, rtol=0, atol=0)
    assert f"channels={CHANNELS}, num_segments={FRAMES}" in repr(module)


# Compilers see the same operators in each; a module of every form has them interpreted, the others in plain torch.
COMPILED = [(name, impl) for name, impl in EACH if impl != "triton" or name in ("tanet_r", "global", "shift")]


@pytest.mark.deep
@pytest.mark.parametrize(("name", "impl"), COMPILED)
def test_compiled_for_any_number_of_clips(name: str, impl: str) -> None:
    memory_format = torch.contiguous_format if impl == "triton" else torch.channels_last
    module = random_module(name, impl).double()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = feature_maps(3, memory_format).double()
    torch.testing.assert_close(values(compiled, x[: 2 * FRAMES]), values(module, x[: 2 * FRAMES]), check_stride=True)
    with torch.compiler.set_stance("fail_on_recompile"):
        torch.testing.assert_close(values(compiled, x), values(module, x), check_stride=True)


def values(module: Any, x: Tensor) -> list[Tensor]:
    """y, dx and the gradients of the parameters, for any number of clips."""
    leaf = x.clone().requires_grad_()
    torch._dynamo.mark_dynamic(leaf, 0)
    y = module(leaf)
    dy = torch.empty_like(y).copy_(torch.linspace(-1, 1, y.numel()).view(y.shape))
    return [y.detach(), *torch.autograd.grad(y, (leaf, *module.parameters()), dy)]


@each_module
def test_exported_for_any_number_of_clips(name: str, impl: str) -> None:
    module = random_module(name, impl).eval()
    with torch.no_grad():
        program = torch.export.export(module, (feature_maps(3),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        for clips in (2, 5):
            torch.testing.assert_close(program.module()(feature_maps(clips)), module(feature_maps(clips)))


@each_module
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_traced_by_fx(name: str, impl: str, training: bool) -> None:
    """One node in a network, its layers and operators alone."""
    module = random_module(name, impl).train(training)
    network = nn.Sequential(nn.ReLU(), module)
    graph = symbolic_trace(network)
    assert [str(node.target) for node in graph.graph.nodes if node.op == "call_module"] == ["0", "1"]
    alone = symbolic_trace(module)
    x = feature_maps()
    expected = copy.deepcopy(module)(x.relu())
    torch.testing.assert_close(copy.deepcopy(graph)(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(alone)(x.relu()), expected)
    torch.testing.assert_close(pickle.loads(pickle.dumps(alone))(x.relu()), expected)


class Copies(TorchDispatchMode):
    """Counts the operations that copy a tensor at least so large."""

    NAMES = ("clone", "copy_", "_to_copy", "contiguous", "cat", "_reshape_copy", "_unsafe_view_copy")

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements, self.found = elements, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in self.NAMES and result.numel() >= self.elements:
            self.found += 1
        return result


@pytest.mark.parametrize(("name", "contiguous"), [("conv", 1), ("inflated_conv", 1), ("non_local", 4)])
def test_no_copy_of_a_channels_last_map(name: str, contiguous: int) -> None:
    """A contiguous one: the result of a convolution over frames, beside what torch's own copies; queries, keys, …"""
    module = random_module(name).eval()
    for memory_format, most in ((torch.channels_last, 0), (torch.contiguous_format, contiguous)):
        x = feature_maps(2, memory_format)
        with torch.no_grad(), Copies(x.numel() // 8) as copies:
            module(x)
        assert copies.found <= most


@each_name
def test_refuses_a_bad_feature_map(name: str) -> None:
    module = random_module(name)
    x = feature_maps()
    with pytest.raises(ValueError, match=rf"^x: got 15 channels in shape \(6, 15, 5, 4\), expected {CHANNELS}$"):
        module(x[:, 1:])
    with pytest.raises(ValueError, match=r"^num_segments: got 3, expected a divisor of x's N·T = 5$"):
        module(x[:5])
    with pytest.raises(ValueError, match=r"^x: got shape .*, expected 4 dimensions"):
        module(x[0])
    with pytest.raises(TypeError, match=r"^x: got dtype torch.int64"):
        module(x.long())
    if any(True for _ in module.parameters()):
        with pytest.raises(TypeError, match=r"^x: got dtype torch.float64, expected the module's torch.float32$"):
            module(x.double())
        with pytest.raises(ValueError, match=r"^x: got device meta, expected the module's cpu$"):
            module(x.to("meta"))


@pytest.mark.parametrize("name", ["shift", "tei", "tdn_shift", "tea_mta"])
def test_refuses_clips_of_one_frame(name: str) -> None:
    with pytest.raises(ValueError, match=r"^num_segments: got 1, expected at least 2: \w+ joins a frame with its neig"):
        MODULES[name](CHANNELS, 1)
    with pytest.raises(ValueError, match=r"^num_segments: got 1, expected at least 2"):
        ChannelwiseTemporalConv(CHANNELS, 1, initial="shift")


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"shift", "tei", "tdn_shift", "tea_mta"}))
def test_one_frame_is_a_clip_for_the_others(name: str) -> None:
    module = small(name, num_segments=1).eval()
    assert module(feature_maps(2, num_segments=1)).isfinite().all()


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        *[(name, (16, 0), ValueError, "num_segments: got 0, expected at least 1") for name in MODULES],
        *[
            (name, ("16", 4), TypeError, "channels: got str, expected an int")
            for name in MODULES
            if name != "inflated_conv"
        ],
        ("avg_pool", (16, 4, 2), ValueError, "kernel_size: got 2, expected an odd number above 0"),
        ("conv", (16, 4, 2), ValueError, "kernel_size: got 2, expected an odd number above 0"),
        ("conv", (2**24, 4), ValueError, "channels: got 16777216, which makes a parameter"),
        ("non_local", (2**25, 4), ValueError, "channels: got 33554432, which makes a parameter"),
        ("non_local", (1, 4), ValueError, "channels: got 1, expected at least reduction = 2"),
        ("tei", (7, 4), ValueError, "channels: got 7, expected at least reduction = 8"),
        ("global_se", (7, 4), ValueError, "channels: got 7, expected at least reduction = 8"),
        ("local", (3, 4), ValueError, "channels: got 3, expected at least beta = 4"),
        ("shift", (7, 4), ValueError, "channels: got 7, expected at least shift_div = 8"),
        ("tada", (3, 4), ValueError, "channels: got 3, expected at least reduction = 4"),
        ("tea_mta", (12, 4), ValueError, "channels: got 12, expected a multiple of 2·groups = 8"),
    ],
)
def test_refuses_a_bad_configuration(name: str, arguments: Any, error: type[Exception], message: str) -> None:
    if name == "inflated_conv":
        arguments = (nn.Conv2d(4, 4, 1), *arguments[1:])
    with pytest.raises(error, match=f"^{message}"):
        MODULES[name](*arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TemporalShift(16, 4, shift_div=1), "shift_div: got 1, expected at least 2"),
        (lambda: ChannelwiseTemporalConv(16, 4, initial="tsm"), "initial: got 'tsm', expected one of identity, shift,"),
        (lambda: ChannelwiseTemporalConv(16, 4, 5, initial="shift"), "kernel_size: got 5, expected 3 for initial="),
        (lambda: MODULES["tea_mta"](16, 4, groups=1), "groups: got 1, expected at least 2"),
        (lambda: InflatedConv(nn.Conv2d(4, 4, (3, 1)), 4), r"conv: got kernel_size=\(3, 1\), expected a square"),
        (
            lambda: InflatedConv(nn.Conv2d(4, 4, 3, padding="same"), 4),
            "conv: got padding='same' of zeros, expected",
        ),
        (
            lambda: InflatedConv(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), 4),
            r"conv: got padding=\(1, 1\) of reflect, expected numbers of zeros",
        ),
        (lambda: MODULES["tei"](16, 4, impl="cuda"), "impl: got 'cuda', expected"),
    ],
)
def test_refuses_bad_options(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


class Doubling(nn.Conv2d):
    """A convolution with a forward of its own, as timm has some."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.Linear(4, 4), "Linear"),
        (Doubling(4, 4, 1), "Doubling"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1)), "ParametrizedConv2d"),
    ],
)
def test_refuses_to_inflate_what_is_not_torchs_own_convolution(layer: Any, name: str) -> None:
    """What it does of its own would be lost without a word."""
    with pytest.raises(TypeError, match=rf"^conv: got {name}, expected torch's own Conv2d$"):
        InflatedConv(layer, 4)


def test_an_inflated_convolution_keeps_mode_and_frozen_weights() -> None:
    conv = nn.Conv2d(4, 6, 1).eval().requires_grad_(False).bfloat16()
    inflated = InflatedConv(conv, 4)
    assert not inflated.training
    assert [(p.dtype, p.requires_grad) for p in inflated.parameters()] == [(torch.bfloat16, False)] * 2


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"inflated_conv"}))  # whose weights come from a layer
def test_parameters_made_on_meta_start_as_if_made_at_once(name: str) -> None:
    """torch's own way to defer: `to_empty`, then `reset_parameters` of all that has parameters or buffers itself."""
    with torch.device("meta"):
        module = MODULES[name](CHANNELS, FRAMES)
    module.to_empty(device="cpu")
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data.fill_(float("nan")) if tensor.is_floating_point() else tensor.data.zero_()
    for part in module.modules():
        if [*part.parameters(recurse=False), *part.buffers(recurse=False)]:
            part.reset_parameters()  # type: ignore[operator]
    assert module(feature_maps()).isfinite().all()


def test_names_of_state_dicts() -> None:
    names = {name: set(small(name).state_dict()) for name in MODULES}
    assert names["avg_pool"] == names["shift"] == set()  # a checkpoint of C2D fits C2D-Pool and TSM
    assert names["global"] | names["local"] == names["tam"] == names["tanet_r"]
    assert names["inflated_conv"] == {"weight", "bias"}
    assert names["tdn_shift"] == {"conv.weight"}
    assert {name.split(".")[0] for name in names["tea_mta"]} == {"shifts", "convs", "bns"}
    assert {name.split(".")[0] for name in names["tada"]} == {"g", "a", "b", "bn"}
    assert MODULES["tdn_shift"](16, 4).state_dict()["conv.weight"].shape == (16, 1, 3)


def test_every_module_has_a_name() -> None:
    assert {module.__name__ for module in MODULES.values()} == set(temporal.__all__) - {"MODULES"}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_moves_to_channels_last_as_a_network_does(name: str) -> None:
    module = small(name).eval()
    with torch.no_grad():
        expected = module(feature_maps())
        moved = module.to(memory_format=torch.channels_last)(feature_maps(memory_format=torch.channels_last))
    torch.testing.assert_close(moved, expected)
