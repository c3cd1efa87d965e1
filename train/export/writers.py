"""One network in three forms of file. All take bytes, and any number of clips; none of them is checked here."""

import io
import os
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from tam_triton.clips import normalize
from tam_triton.temporal.base import TemporalModule
from train.errors import InputError
from train.export.config import OPSET
from train.exported.network import reason_of
from train.exported.settings import CLIPS, LOGITS, PART, Kind, Settings

_MOST_ONNX = 2**31 - 2**20
"""Bytes of weights, as a file of ONNX is one message of at most 2 GiB."""


def check_tools(kind: Kind, opset: int | None = None) -> None:
    """Raises InputError where what it takes to write and check `kind` is not there, before anything is computed."""
    if kind == "onnx":
        _check_opset(opset or OPSET)
    elif kind == "aoti":
        _check_compiler()


def write_network(path: Path, network: nn.Module, settings: Settings, opset: int | None = None) -> None:
    """Write `network` (N, T, 3, S, S) → (N, classes), in evaluation mode, to `path`, on the disk.

    Operators are plain torch's, whatever the device. `network` is left as the file has it: that may be another memory
    format.

    Raises:
        InputError: it cannot be exported, or not in this form.
        OSError: the file cannot be written.
    """
    for module in network.modules():
        if isinstance(module, TemporalModule):
            module.impl = "torch"
    onnx = settings.kind == "onnx"
    # In channels_last torch's pooling leaves strides in the graph, which ONNX has to make up for by gathering.
    network = network.to(memory_format=torch.contiguous_format if onnx else torch.channels_last)
    device = next(network.parameters()).device
    example = torch.zeros(2, *settings.clip_shape, dtype=torch.uint8, device=device)
    with torch.no_grad(), _reporting(settings.kind):
        module = _FromBytes(network, contiguous=onnx).eval()
        if onnx:
            content = _onnx(module, example, settings, opset or OPSET)
        else:
            program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
            for node in program.graph.nodes:  # lines of source, with paths of this machine: half of the file's text
                node.meta.pop("stack_trace", None)
            content = _pt2(program, settings) if settings.kind == "pt2" else _aoti(program, settings)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


class _FromBytes(nn.Module):
    """The network behind its normalization."""

    def __init__(self, network: nn.Module, contiguous: bool) -> None:
        super().__init__()
        self.network, self.contiguous = network, contiguous

    def forward(self, clips: Tensor) -> Tensor:
        frames = normalize(clips)
        return self.network(frames.contiguous() if self.contiguous else frames)


def _pt2(program: torch.export.ExportedProgram, settings: Settings) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No complete tensor found")  # torch looks at contiguous ones alone
        torch.export.save(program, buffer, extra_files={PART: settings.to_text()})
    return buffer.getvalue()


def _aoti(program: torch.export.ExportedProgram, settings: Settings) -> bytes:
    from torch._inductor.utils import fresh_cache

    buffer = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, fresh_cache(dir=folder):
        # Loops take as many threads as there are where they run, not where they were compiled.
        torch._inductor.aoti_compile_and_package(
            program, package_path=buffer, inductor_configs={"cpp.dynamic_threads": True}
        )
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(f"archive/extra/{PART}", settings.to_text())
    return buffer.getvalue()


def _onnx(module: nn.Module, example: Tensor, settings: Settings, opset: int) -> bytes:
    size = sum(tensor.nbytes for tensor in module.state_dict().values())
    if size > _MOST_ONNX:
        raise InputError(f"format: onnx holds 2 GiB in a file, and the weights have {size} bytes; pt2 holds them")
    program = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        verbose=False,
        input_names=[CLIPS],
        output_names=[LOGITS],
        dynamic_shapes=({0: "N"},),
        opset_version=opset,
    )
    assert program is not None
    if (got := program.model.opset_imports.get("")) != opset:
        raise InputError(f"opset: got {opset}, expected {got}, as torch cannot write this network in another")
    graph = program.model.graph
    floats = next(node for node in graph if node.op_type == "Cast" and node.inputs[0] is graph.inputs[0]).outputs[0]
    for node in graph:
        node.metadata_props.clear()  # the same of ONNX
        if node.op_type == "Shape" and node.inputs[0] is graph.inputs[0]:
            node.replace_input_with(0, floats)  # TensorRT knows bytes as what a Cast takes, and nothing else
    graph.sort()
    program.model.metadata_props[PART] = settings.to_text()
    content: bytes = program.model_proto.SerializeToString()
    return content


def _check_opset(opset: int) -> None:
    """Raises InputError where ONNX Runtime, with which the file is to be checked, does not know `opset`."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 (what torch writes with)
    except ImportError as error:
        raise InputError(
            f"format: onnx needs {error.name}, which is not installed: pip install onnxruntime onnxscript"
        ) from error
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "one", value[:1], value[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have nothing else in common
        raise InputError(f"opset: got {opset}, which onnxruntime {onnxruntime.__version__} does not know") from error


def _check_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise InputError(
            "format: aoti needs a C++ compiler, and none is found; install g++, or name one by the variable CXX"
        ) from error


@contextmanager
def _reporting(kind: Kind) -> Iterator[None]:
    """Say in one line what torch cannot export."""
    try:
        yield
    except (RuntimeError, TypeError, LookupError, AssertionError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"format: the network cannot be exported as {kind}: {reason_of(error)}") from error
