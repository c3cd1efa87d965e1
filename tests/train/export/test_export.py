"""`python -m train export`: what is in the files, that they do what the checkpoint does, and what is refused."""

import errno
import json
import re
import resource
import shutil
import zipfile
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import pytest
import torch

from tam_triton.nets import create_model
from tests.support.onnx_operators import CONSTANT_AXES, SUPPORTED
from tests.support.video_files import encode, striped_frames
from tests.train.evaluation.test_testing import CLASSES, make_trained, make_video
from train.__main__ import main
from train.checkpoint import load_checkpoint, save_checkpoint
from train.data.dataset import Views
from train.data.entries import Split
from train.data.index import Checked, IndexWriter
from train.errors import InputError
from train.export import export, writers
from train.export.config import OPSET, ExportConfig
from train.exported import network, settings
from train.exported.network import kind_of, load_exported
from train.exported.settings import FORMAT, PART
from train.precision import logits_of
from train.recipes import RECIPES

pytestmark = pytest.mark.usefixtures("one_thread")

PAGE = Path(writers.__file__).parents[2] / "docs" / "export.md"
CPU, T, S = torch.device("cpu"), 4, 32
KINDS = ("pt2", "onnx")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint, another one, the first as pt2 and ONNX, checked on videos and on random bytes, and an index."""
    folder = tmp_path_factory.mktemp("place")
    view = Views(short_side=36, crop_size=S)
    trained = make_trained(
        sampling=replace(RECIPES["demo"].sampling, num_segments=T),
        validation=view,
        test=Views("spread", clips=2, crops=3, short_side=36, crop_size=S),
    )
    recipe = trained.recipe
    trained = replace(trained, recipe=replace(recipe, data=replace(recipe.data, val=folder / "secret.jsonl")))
    save_checkpoint(folder / "best.pt", trained)
    entries = tuple(make_video(folder / "videos" / f"{i}", 12 + i, i) for i in range(3))
    with IndexWriter(folder / "val.jsonl", split := Split("val", entries, CLASSES), folder, {}) as writer:
        for number, entry in enumerate(split.entries):
            writer.write(Checked(number, entry, None, ""))
    encode(folder / "one.mp4", striped_frames(20))
    for parameter in trained.network.parameters():
        parameter.data *= 1.02
    save_checkpoint(folder / "other.pt", trained)
    videos = ("--videos", str(folder / "one.mp4"), *(str(entry.path) for entry in entries), "--most", "2")
    for kind in KINDS:
        options = videos if kind == "pt2" else ()
        status = main(["export", str(folder / "best.pt"), *exporting(kind, folder / f"best.{kind}"), *options])
        assert status == 0
    return folder


def exporting(kind, out):
    return ("--format", kind, "--out", str(out), "--device", "cpu", "--threads", "1")


def said(capsys, *command):
    status = main([*map(str, command)])
    shown = capsys.readouterr()
    return status, shown.out, shown.err


def refused(capsys, *command):
    """What a command says that ends in an error."""
    status, _, errors = said(capsys, *command)
    assert status == 1
    assert "Traceback" not in errors
    return errors


def settings_in(path):
    if kind_of(path) == "onnx":
        (text,) = [entry.value for entry in onnx.load(path).metadata_props if entry.key == PART]
    else:
        with zipfile.ZipFile(path) as archive:
            text = archive.read(f"archive/extra/{PART}").decode()
    return json.loads(text)


@contextmanager
def instead_of_exporting(file):
    """The networks that `export` writes are `file`."""

    def copy(path, *_):
        shutil.copy(file, path)

    with patch.object(export, "write_network", copy):
        yield


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
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        exec(block, names)
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


REFUSED = (
    ("predict {file} {video} --views.crop-size 36", "views.crop_size: got 36, expected 32, as {file} was exported"),
    ("predict {file} {video} --protocol 1x1", "views.crop_size: got 224, expected 32, as {file} was exported"),
    ("predict {file} {video} --precision bf16", "precision: got bf16, expected fp32, as {file} was exported"),
    ("test {file} --data {data} --no-channels-last --out {out}", "channels_last: got False, expected True"),
    ("test {file} --data {data} --protocol 10x3 --out {out}", "views.crop_size: got 256, expected 32"),
    ("test {file} --out {out}", "data: got none, expected the index"),
    ("extract {file} {video} --out {out}", "{file}: is exported (onnx) and gives nothing but logits"),
    ("visualize {file} {video} --out {out}", "{file}: is exported (onnx) and gives nothing but logits"),
    ("export {file} --format pt2 --out {out}", "{file}: is exported (onnx) and gives nothing but logits"),
    ("export {best} --format onnx --opset 29 --out {out}", "opset: got 29, which onnxruntime"),
    ("export {best} --format pt2 --out {file}", "{file}: is there already; --overwrite writes over it"),
    ("export {best} --format pt2 --out {out} --videos {data}", "videos: 1 of 1 cannot be read: {data}: "),
    ("export {video} --format pt2 --out {out}", "{video}: is not a checkpoint"),
)


@pytest.mark.parametrize(("command", "expected"), REFUSED, ids=range(len(REFUSED)))
def test_refused_by_name(place, capsys, tmp_path, command, expected):
    places = {
        "file": place / "best.onnx", "video": place / "one.mp4", "data": place / "val.jsonl",
        "best": place / "best.pt", "out": tmp_path / "out",
    }  # fmt: skip
    before = {path: path.stat() for path in place.iterdir()}
    assert f"error: {expected.format(**places)}" in refused(capsys, *command.format(**places).split())
    assert list(tmp_path.iterdir()) == []
    assert {path: path.stat() for path in place.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"files": ("a.pt", "b.mp4")}, "files: got a.pt b.mp4, expected one CHECKPOINT"),
        ({"weights": Path("w.pth"), "recipe": "k400-8f"}, "files: got a.pt, expected none, as there are weights"),
        ({"segments": "draw"}, "segments: got 'draw', expected None without weights"),
        ({"opset": 20}, "opset: got 20, expected None for pt2, as only onnx has one"),
        ({"opset": 17, "format": "onnx"}, "opset: got 17, expected at least 18, which is what torch writes"),
        ({"crop_size": 0}, "crop_size: got 0, expected at least 1"),
        ({"tolerance": 0.0}, "tolerance: got 0.0, expected a share above 0"),
    ],
)
def test_options_that_are_none(options, expected):
    with pytest.raises(InputError, match=re.escape(expected)):
        ExportConfig(**({"files": ("a.pt",), "format": "pt2", "out": Path("b")} | options))


def test_a_file_that_does_something_else_is_not_written(place, capsys, tmp_path):
    out = tmp_path / "network"
    command = ("export", place / "other.pt", *exporting("onnx", out))
    with instead_of_exporting(place / "best.onnx"):
        errors = refused(capsys, *command)
        assert f"error: {out}: is not written, as it differs from {place / 'other.pt'} on 3 clips of random" in errors
        assert "expected at most 0.001 of the magnitude" in errors
        assert list(tmp_path.iterdir()) == []
        status, shown, _ = said(capsys, *command, "--tolerance", "10")
    assert (status, [path.name for path in tmp_path.iterdir()]) == (0, ["network"])
    assert "checked on 3 clips of random bytes, as no --videos are named: largest difference " in shown
    assert f"onnx, {out.stat().st_size / 1e6:.1f} MB, 3 classes, takes uint8 (N, 4, 32, 32, 3)" in shown


def test_it_is_checked_on_the_videos(place, capsys, tmp_path):
    options = ("--videos", place / "videos" / "0", place / "videos" / "1", place / "one.mp4", "--most", "2")
    with instead_of_exporting(place / "best.onnx"):
        status, shown, _ = said(capsys, "export", place / "best.pt", *exporting("onnx", tmp_path / "n"), *options)
    assert status == 0
    assert "checked on 2 of 3 videos, spread evenly: largest difference" in shown
    assert "the same class first for 2 of 2 clips" in shown


def test_logits_that_are_no_numbers(place, capsys, tmp_path):
    trained = load_checkpoint(place / "best.pt")
    trained.network.get_parameter("fc.bias").data[0] = torch.inf
    save_checkpoint(tmp_path / "inf.pt", trained)
    errors = refused(capsys, "export", tmp_path / "inf.pt", *exporting("pt2", tmp_path / "n.pt2"))
    assert "the checkpoint gives logits that are no finite numbers" in errors
    assert not export.Difference(float("nan"), 1.0, 0, 1).largest <= 1


def test_a_full_disk(place, capsys, tmp_path):
    out = tmp_path / "network.pt2"
    out.write_bytes(b"before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
        with patch.object(writers, "_pt2", lambda *_: bytes(10_000)), patch("torch.export.export"):
            errors = refused(capsys, "export", place / "best.pt", *exporting("pt2", out), "--overwrite")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"error: [Errno {errno.EFBIG}] File too large: '{out}'" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["network.pt2"]
    assert out.read_bytes() == b"before"


def test_what_torch_cannot_export(place, capsys, tmp_path):
    """Of a compiler's output the error is named, and not the command that comes first."""
    command = ("export", place / "best.pt", *exporting("pt2", tmp_path / "network"))
    output = "C++ compile error\nCommand: g++ -O1\n\nx.h:1:10: fatal error: Python.h: No such file\n more"
    with patch("torch.export.export", side_effect=RuntimeError(output)):
        errors = refused(capsys, *command)
    assert errors == (
        "error: format: the network cannot be exported as pt2: x.h:1:10: fatal error: Python.h: No such file\n"
    )
    with patch.object(writers, "_MOST_ONNX", 1000):
        errors = refused(capsys, *command, "--format", "onnx")
    assert "format: onnx holds 2 GiB in a file, and the weights have" in errors
    assert list(tmp_path.iterdir()) == []


def test_frames_are_no_smaller_than_the_crop():
    view = Views(short_side=36, crop_size=32)
    assert settings.with_crop_size(view, None) == view
    assert settings.with_crop_size(view, 48) == Views(short_side=48, crop_size=48)


def test_no_compiler(place, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    errors = refused(capsys, "export", place / "best.pt", *exporting("aoti", tmp_path / "network"))
    assert "format: aoti needs a C++ compiler, and none is found" in errors
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.deep
def test_compiled(place, capsys, tmp_path):
    out = tmp_path / "network.pt2"
    status, shown, _ = said(capsys, "export", place / "best.pt", *exporting("aoti", out))
    assert status == 0, shown
    assert kind_of(out) == "aoti"
    assert settings_in(out)["class_names"] == list(CLASSES)
    lines = [said(capsys, "predict", file, place / "one.mp4", "--device", "cpu") for file in (place / "best.pt", out)]
    assert lines[0][:2] == lines[1][:2]
    with patch.object(network, "machine", lambda device: "Linux sparc64 DEFAULT"):
        errors = refused(capsys, "predict", out, place / "one.mp4", "--device", "cpu")
    assert f"{out}: was compiled for {settings.machine(CPU)}, but this is Linux sparc64 DEFAULT" in errors
    with pytest.raises(InputError, match=r"device: got cuda, expected cpu, for which .* was compiled"):
        load_exported(out, torch.device("cuda"))
    assert list(Path(tmp_path).iterdir()) == [out]
