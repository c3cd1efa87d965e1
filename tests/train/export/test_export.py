"""`python -m train export`: what it writes, what it checks, and what is refused."""

import errno
import re
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from tests.support.exported import CPU, exporting, refused, said, settings_in
from tests.train.evaluation.test_testing import CLASSES
from train.checkpoint import load_checkpoint, save_checkpoint
from train.data.dataset import Views
from train.errors import InputError
from train.export import export, writers
from train.export.config import ExportConfig
from train.exported import network, settings
from train.exported.network import kind_of, load_exported

pytestmark = pytest.mark.usefixtures("one_thread")


@contextmanager
def instead_of_exporting(file):
    """The networks that `export` writes are `file`."""

    def copy(path, *_):
        shutil.copy(file, path)

    with patch.object(export, "write_network", copy):
        yield


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
    before = {path: path.stat().st_mtime_ns for path in place.iterdir()}
    assert f"error: {expected.format(**places)}" in refused(capsys, *command.format(**places).split())
    assert list(tmp_path.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in place.iterdir()} == before


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
