"""torch.export of TANet through a file, and AOTInductor on the CPU: any number of clips, the values of eager."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tam_triton import TAM
from tests.support.networks import FRAMES, exact_twin, feature_maps, small_tam, small_tanet, videos
from tests.support.tolerance import assert_close

each_impl = pytest.mark.parametrize("impl", ["triton", "torch"])
FOLDED = {"activated_squeeze", "branches", "activated_aggregate"}


def round_trip(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    return torch.export.load(buffer)


def operators(program: torch.export.ExportedProgram) -> set[str]:
    """Those of this library that the graph calls."""
    called = (str(node.target).split(".") for node in program.graph.nodes)
    return {target[1] for target in called if target[0] == "tam_triton"}


@each_impl
def test_tanet_through_a_file(impl: str) -> None:
    network = small_tanet(impl)
    with torch.no_grad():
        program = torch.export.export(network, (videos(3),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        program = round_trip(program)
        assert operators(program) == (FOLDED if impl == "triton" else set())
        for clips in (1, 2):
            torch.testing.assert_close(program.module()(videos(clips)), network(videos(clips)))


@each_impl
def test_an_exported_module_can_be_trained(impl: str) -> None:
    """The graph has no custom backward: dX is then the sum of the squeeze's gradient and the aggregation's."""
    module = small_tam(impl).double()
    x = feature_maps(2).double().requires_grad_()
    program = round_trip(torch.export.export(module, (x,)))
    assert operators(program) == ({"squeeze", "aggregate"} if impl == "triton" else set())
    results = []
    for forward in (module, program.module()):
        y = forward(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, *forward.parameters()))))
    torch.testing.assert_close(*results)


@each_impl
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("recording", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("make", [small_tam, small_tanet])
def test_exported_under_autocast(make: Callable[..., nn.Module], recording: bool, training: bool, impl: str) -> None:
    """The program knows nothing of it, as a ResNet's does not: it runs in float32 outside, in low precision inside."""
    network = make(impl, training)
    x = feature_maps(2) if isinstance(network, TAM) else videos(2)
    with torch.set_grad_enabled(recording):
        with torch.autocast("cpu", torch.bfloat16):
            program = round_trip(torch.export.export(network, (x,)))
            low = program.module()(x)
            assert low.dtype == network(x).dtype
        result, usual = program.module()(x), network(x)
        torch.testing.assert_close(result, usual)
        assert (low - usual).norm() < 0.1 * usual.norm()


def test_compiled_ahead_of_time(tmp_path: Path) -> None:
    module = small_tam("torch")
    clips = torch.export.Dim("clips", min=1, max=64)
    with torch.no_grad():
        program = torch.export.export(module, (feature_maps(2),), dynamic_shapes=({0: FRAMES * clips},))
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "tam.pt2"))
        loaded = torch._inductor.aoti_load_package(package)
        for count in (2, 5):
            x = feature_maps(count)
            assert_close(loaded(x), exact_twin(module)(x.double()).numpy(), module(x))
