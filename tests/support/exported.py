"""A checkpoint and what `python -m train export` makes of it, for the tests of both."""

import json
import zipfile
from dataclasses import replace

import onnx
import torch

from tests.support.video_files import encode, striped_frames
from tests.train.evaluation.test_testing import CLASSES, make_trained, make_video
from train.__main__ import main
from train.checkpoint import save_checkpoint
from train.data.dataset import Views
from train.data.entries import Split
from train.data.index import Checked, IndexWriter
from train.exported.network import kind_of
from train.exported.settings import PART
from train.recipes import RECIPES

CPU, T, S = torch.device("cpu"), 4, 32
KINDS = ("pt2", "onnx")


def make_place(folder):
    """A checkpoint, another one, the first as pt2 and ONNX, checked on videos and on random bytes, and an index."""
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
