"""Exported files in use: their values, what is in them, in `predict` and `test`, and those that cannot be read."""

import json
import shutil
import zipfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import pytest
import torch

from tam_triton.nets import create_model
from tests.support.exported import CPU, KINDS, S, T, refused, said, settings_in
from tests.support.onnx_operators import CONSTANT_AXES, SUPPORTED
from tests.support.pages import python_blocks, run_block
from tests.train.evaluation.test_testing import CLASSES
from train.__main__ import main
from train.checkpoint import load_checkpoint
from train.errors import InputError
from train.export import writers
from train.export.config import OPSET
from train.exported import settings
from train.exported.network import load_exported
from train.exported.settings import FORMAT, PART
from train.precision import logits_of
from train.recipes import RECIPES

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", KINDS)
def test_values(place, kind):
    """Also of more clips than it was exported with, and of one."""
    trained, exported = load_checkpoint(place / "best.pt"), load_exported(place / f"best.{kind}", CPU, 1)
    assert exported.class_names == CLASSES
    clips = torch.randint(0, 256, (5, T, S, S, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = logits_of(trained.network, clips, CPU)
        for count in (1, 5):
            got = logits_of(exported.network, clips[:count], CPU)
            torch.testing.assert_close(got, expected[:count], rtol=1e-4, atol=1e-5)
        for wrong in (clips.float(), clips[:, :3], clips[:, :, 1:]):
            with pytest.raises(ValueError, match=r"expected torch.uint8 \(N, 4, 32, 32, 3\)"):
                exported.network(wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_in_a_file(place, kind):
    path = place / f"best.{kind}"
    plain = settings_in(path)
    expected = {
        "format": FORMAT, "kind": kind, "class_names": list(CLASSES), "frames": T, "sampling": "segments",
        "reach": None, "short_side": 36, "crop_size": S, "device": "cpu",
        "input": {"name": "clips", "type": "uint8", "shape": ["N", T, S, S, 3], "colors": "RGB"},
        "output": {"name": "logits", "type": "float32", "shape": ["N", len(CLASSES)]},
    }  # fmt: skip
    assert {name: plain[name] for name in expected} == expected
    with zipfile.ZipFile(path) if kind == "pt2" else nullcontext() as archive:
        whole = b"".join(map(archive.read, archive.namelist())) if archive else path.read_bytes()
    assert whole.count(b"class_names") == 1
    for private in (b"secret", str(Path(writers.__file__).parents[2]).encode()):
        assert private not in whole  # no path of the machine that trained or exported it


def test_the_page(place, tmp_path, monkeypatch, capsys):
    """Its blocks, one after the other, which use nothing of this program."""
    for kind in KINDS:
        shutil.copy(place / f"best.{kind}", tmp_path / f"network.{kind}")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    logits = []
    for block in python_blocks("docs/export.md"):
        run_block(block, names)
        logits.append(names["logits"])
        assert names["made_of"]["class_names"] == list(CLASSES)
    assert eval(capsys.readouterr().out)[0] in CLASSES
    np.testing.assert_allclose(logits[1].numpy(), logits[0], rtol=1e-4, atol=1e-5)
    assert not [node for node in names["program"].graph.nodes if "tam_triton" in str(node.target)]


@pytest.mark.parametrize(
    ("kind", "options"), [("pt2", "--protocol recipe"), ("onnx", "--protocol recipe"), ("onnx", "--window 0.2")]
)
def test_predict_says_what_it_says_of_the_checkpoint(place, capsys, kind, options):
    shown = []
    for name in ("best.pt", f"best.{kind}"):
        line = ("--json", "--top", "3", "--device", "cpu", "--threads", "1", *options.split())
        status, out, _ = said(capsys, "predict", place / name, place / "one.mp4", *line)
        assert status == 0
        lines = [json.loads(line)["predictions"] for line in out.splitlines()]
        shown.append([seen for line in lines if isinstance(line, list) for seen in line])  # the last one may count
    assert len(shown[0]) >= len(CLASSES)
    for one, other in zip(*shown, strict=True):
        assert one["class_name"] == other["class_name"]
        assert one["probability"] == pytest.approx(other["probability"], rel=1e-4)


def test_test_scores_what_it_scores_of_the_checkpoint(place, tmp_path):
    for name in ("best.pt", "best.onnx"):
        options = ("--device", "cpu", "--threads", "1", "--loading.workers", "0", "--out", str(tmp_path / name))
        assert main(["test", str(place / name), "--data", str(place / "val.jsonl"), *options]) == 0
    mine, theirs = (np.load(tmp_path / name / "scores.npz")["scores"] for name in ("best.pt", "best.onnx"))
    np.testing.assert_allclose(theirs, mine, rtol=1e-4, atol=1e-5)


def rewritten(source, target, change):
    """`source`, a pt2, with other settings, or none; returns `target`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for part in old.infolist():
            content = old.read(part)
            if part.filename.endswith(PART):
                content = change(json.loads(content))
            if content is not None:
                new.writestr(part, content if isinstance(content, bytes) else json.dumps(content))
    return target


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda plain: None, "was not exported by `python -m train export`: it has no tam_triton.json"),
        (lambda plain: plain | {"format": "x/2"}, f"is of format 'x/2', expected {FORMAT!r}, which this version reads"),
        (lambda plain: [], f"is of format None, expected {FORMAT!r}, which this version reads"),
        (lambda plain: plain | {"class_names": []}, "settings.class_names: got (), expected at least one name"),
        (lambda plain: plain | {"kind": "onnx"}, "settings.kind: got 'onnx', expected 'pt2', which the file is"),
        (lambda plain: plain | {"recipe": {}}, "fields ['augmentation', 'data', "),
    ],
    ids=["another program", "another version", "no object", "no classes", "another kind", "no recipe"],
)
def test_settings_that_cannot_be_used(place, capsys, tmp_path, change, expected):
    path = rewritten(place / "best.pt2", tmp_path / "n.pt2", change)
    errors = refused(capsys, "predict", path, place / "one.mp4", "--device", "cpu")
    assert errors.startswith(f"error: {path}: ")
    assert expected in errors


def test_damaged_files(place, capsys, tmp_path):
    def said_of(content, name):
        path = tmp_path / name
        path.write_bytes(content)
        return refused(capsys, "predict", path, place / "one.mp4", "--device", "cpu").replace(str(tmp_path), "")

    program, model = (bytearray((place / f"best.{kind}").read_bytes()) for kind in KINDS)
    with zipfile.ZipFile(place / "best.pt2") as archive:
        part = max(archive.infolist(), key=lambda part: part.file_size)
    program[part.header_offset + 1000] ^= 1
    assert f"/a: is damaged: the checksum of its part {part.filename} is not" in said_of(program, "a")
    assert "/b: is not a checkpoint, or a damaged one" in said_of(program[:-100], "b")
    assert "/c: cannot be loaded by onnxruntime" in said_of(model[:-1000], "c")
    changed = onnx.load(place / "best.onnx")
    (entry,) = changed.metadata_props
    entry.value = json.dumps(json.loads(entry.value) | {"class_names": ["falls", "rises"]})
    assert "/d: gives logits (1, 3), expected (1, 2) by its classes" in said_of(changed.SerializeToString(), "d")
    changed.graph.output[0].name = changed.graph.node[-1].output[0] = "scores"
    assert "/e: takes and gives [['clips'], ['scores']]" in said_of(changed.SerializeToString(), "e")
    del changed.metadata_props[:]
    assert "/f: was not exported by `python -m train export`" in said_of(changed.SerializeToString(), "f")


def test_a_program_that_torch_cannot_load(place, capsys, tmp_path):
    (tmp_path / "n.pt2").write_bytes((place / "best.pt2").read_bytes())
    with patch("torch.export.load", side_effect=RuntimeError("schema\nversion 9")):
        errors = refused(capsys, "predict", tmp_path / "n.pt2", place / "one.mp4", "--device", "cpu")
    assert f"cannot be loaded by torch {torch.__version__} (schema version 9); it was exported by tam_triton" in errors


def test_another_device(place):
    """A program moves with all that it holds; what this ONNX Runtime has no provider for is refused."""
    moved = load_exported(place / "best.pt2", torch.device("meta")).network
    logits = moved(torch.empty(2, T, S, S, 3, dtype=torch.uint8, device="meta"))
    assert (logits.device.type, logits.shape) == ("meta", (2, len(CLASSES)))
    with pytest.raises(InputError, match="device: got cuda, for which the installed onnxruntime has no CUDAExec"):
        load_exported(place / "best.onnx", torch.device("cuda"))


def check_operators(path, opset=OPSET):
    """Raises AssertionError for what TensorRT or OpenVINO may not take."""
    model = onnx.load(path)
    graph = model.graph
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert len(model.functions) == 0
    assert {node.op_type for node in graph.node} <= SUPPORTED
    # Bytes are inputs of the network alone, which a Cast takes.
    assert {node.op_type for node in graph.node if "clips" in node.input} == {"Cast"}
    known = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        number = CONSTANT_AXES.get(node.op_type)
        if number is not None and len(node.input) > number:
            assert node.input[number] in known | {""}, node.name
    shapes = [[d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in graph.input]
    assert shapes == [["N", T, S, S, 3]]


def test_no_file_of_the_training_is_named():
    own = RECIPES["own"]
    recipe = replace(
        own,
        data=replace(own.data, train=Path("/there/train.jsonl"), val_root=Path("/there")),
        augmentation=replace(own.augmentation, mirrored=Path("/there/pairs.txt")),
        optimization=replace(own.optimization, class_weights="/there/weights.csv"),
        model=replace(own.model, weights="/there/weights.pth", weights_average=True),
    )
    assert "there" not in settings.settings_of("onnx", recipe, CLASSES, CPU).to_text()


def test_operators_are_those_that_tensorrt_and_openvino_have(place):
    check_operators(place / "best.onnx")


@pytest.mark.deep
@pytest.mark.parametrize("system", ["c2d_pool", "i3d", "nl_c2d", "teinet", "tsm"])
def test_operators_of_other_systems(place, tmp_path, system):
    recipe = load_checkpoint(place / "best.pt").recipe
    network = create_model(system, backbone="resnet18", num_classes=len(CLASSES), num_segments=T).eval()
    for opset in (18, OPSET):
        made = settings.settings_of("onnx", recipe, CLASSES, CPU)
        writers.write_network(tmp_path / "network.onnx", network, made, opset)
        check_operators(tmp_path / "network.onnx", opset)
