"""A file's name is a name, whatever is in it: from the list to the prediction, in a terminal that knows ASCII alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.video_files import encode, striped_frames
from train.data.entries import Entry
from train.data.index import read_index
from train.data.reader import Decoder, VideoFile, open_frames
from train.data.transcode import transcode

NAMES = ("10:30.mp4", "cam1:0001.mp4", "http:x.mp4", "pipe:0.mp4", "concat:a|b.mp4", "-dash.mp4", "%03d.mp4", "ü ñ.mp4")
NO_TEXT = os.fsdecode(b"not utf-8 \xff.mp4")
SMALL = ("--sampling.num-segments", "4", "--augmentation.crop-size", "32", "--optimization.batch-size", "4")
VIEWS = ("--validation.short-side", "32", "--validation.crop-size", "32", "--optimization.epochs", "1")
DECODERS: tuple[Decoder, ...] = ("auto", "decord", "pyav")


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("relative", [False, True])
def test_every_decoder_reads_files_of_any_name(tmp_path, monkeypatch, decoder, relative):
    monkeypatch.chdir(tmp_path)
    source = encode(tmp_path / "source.mp4", striped_frames(20))
    expected = VideoFile(source).read([7, 3])
    for name in (*NAMES, NO_TEXT):
        path = Path(name) if relative else tmp_path / name
        try:
            path.write_bytes(source.read_bytes())
        except OSError:  # the file system is one of names in UTF-8
            continue
        np.testing.assert_array_equal(VideoFile(path, decoder).read([7, 3]), expected)
        target = path.with_name(f"small of {path.name}")
        transcode(Entry(path, 0), target, 32)
        assert len(open_frames(Entry(target, 0), decoder)) == 20


RUN = """
import json, sys
from train.__main__ import main
if __name__ == "__main__":
    for command in json.loads(sys.argv[1]):
        status = main(command)
        assert status == 0, (command, status)
"""


def run_train(folder, *commands):
    """`python -m train` with each command in turn, in a terminal that knows ASCII alone; what they printed."""
    (folder / "run.py").write_text(RUN)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "PYTHONIOENCODING": "ascii:strict"}
    started = [sys.executable, "run.py", json.dumps(commands)]
    done = subprocess.run(started, cwd=folder, env=environment, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode("ascii")


def test_from_the_folder_to_the_prediction(tmp_path):
    """A tree given by a relative name, with such names of files and of classes; one of the files is no video."""
    source = encode(tmp_path / "source.mp4", striped_frames(12, 32, 40)).read_bytes()
    for split in ("train", "val"):
        for number, name in enumerate((*NAMES, NO_TEXT)):
            path = tmp_path / split / ("a:b", "-c", "ü")[number % 3] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source)
        (tmp_path / split / "a:b" / os.fsdecode(b"bad \xfe.mp4")).write_bytes(b"no video")
    predicted = ("10:30.mp4", "http:x.mp4", "./-dash.mp4", NO_TEXT)
    for name in predicted:
        (tmp_path / name).write_bytes(source)
    options = ("--device", "cpu", "--loading.workers", "1", "--threads", "1")
    data = ("--data.train", "train.index.jsonl", "--data.val", "val.index.jsonl", "--data.num-classes", "3")
    views = ("--views.short-side", "32", "--views.crop-size", "32")
    network = "o:ut/checkpoints/best.pt"
    printed = run_train(
        tmp_path,
        *[("prepare", split, "--source", "tree", "--processes", "1") for split in ("train", "val")],
        ("fit", "demo", "--out", "o:ut", *data, *SMALL, *VIEWS, *options),
        ("test", network, "--data", "val.index.jsonl", "--out", "t:est", *views, *options),
        *[("predict", network, name) for name in predicted],
    )
    assert printed.count("9 of 10 usable") > 1
    assert r"bad \udcfe.mp4: is not a video file" in printed
    index = read_index(tmp_path / "train.index.jsonl")
    assert {entry.path.name for entry in index.split.entries} == {*NAMES, NO_TEXT}
    assert (tmp_path / "t:est" / "missing.csv").exists()
    assert printed.count("%  a:b") == len(predicted)
