"""Plain torch becomes an ONNX model that onnxruntime runs to the same values, for any number of clips."""

from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

from tam_triton import TAM
from tests.support.networks import CHANNELS, FRAMES, exact_twin, feature_maps, small_tam, small_tanet, videos
from tests.support.tolerance import assert_close


def export(module: nn.Module, x: Tensor, batch: object) -> torch.onnx.ONNXProgram:
    with torch.no_grad():
        program = torch.onnx.export(module, (x,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    assert program is not None
    return program


def run(program: torch.onnx.ONNXProgram, path: Path, x: Tensor) -> Tensor:
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(y)


def test_tam(tmp_path: Path) -> None:
    module = small_tam("torch")
    clips = torch.export.Dim("clips", min=1, max=64)
    program = export(module, feature_maps(2), FRAMES * clips)
    for count in (2, 5):
        x = feature_maps(count)
        with torch.no_grad():
            assert_close(run(program, tmp_path / "tam.onnx", x), exact_twin(module)(x.double()).numpy(), module(x))


def test_tanet(tmp_path: Path) -> None:
    network = small_tanet("torch")
    program = export(network, videos(2), torch.export.Dim.DYNAMIC)
    for clips in (1, 3):
        x = videos(clips)
        with torch.no_grad():
            truth, plain = exact_twin(network)(x.double()).numpy(), network(x)
        assert_close(run(program, tmp_path / "tanet.onnx", x), truth, plain)


def test_the_graph_does_not_grow_with_the_frames() -> None:
    """Every tap is one node over all frames, where Inductor is given every frame apart."""
    sizes = []
    for frames in (4, 16):
        program = export(TAM(CHANNELS, frames, impl="torch").eval(), torch.ones(frames, CHANNELS, 2, 2), None)
        sizes.append(len(program.model.graph))
    assert sizes[0] == sizes[1]
