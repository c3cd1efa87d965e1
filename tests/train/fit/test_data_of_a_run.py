"""What a run says of its data before it takes a step: moved videos, one class, videos of both sets."""

import shutil
from dataclasses import replace

import pytest

from tests.support.fit_runs import Videos, log_of, run_one, tiny_config
from train.__main__ import main
from train.data.entries import Split
from train.fit.run import Run

OPTIONS = (
    "--optimization.epochs 1 --optimization.batch-size 4 --sampling.num-segments 4 --augmentation.crop-size 32 "
    "--validation.short-side 36 --validation.crop-size 32 --test.short-side 36 --test.crop-size 32 "
    "--loading.workers 0 --device cpu --threads 1"
)


def test_moved_videos_are_noticed_before_the_first_step(tmp_path, capsys):
    """And named with the remedy, which then serves the run and its test."""
    data, moved, out = tmp_path / "data", tmp_path / "moved", tmp_path / "run"
    indices = Videos.make(data).written(tmp_path)
    shutil.copytree(data, moved)
    shutil.rmtree(data / "val")
    command = ["fit", "demo", *indices, "--out", str(out), *OPTIONS.split()]
    text = (tmp_path / "val.jsonl").read_text().replace(f'"root": "{tmp_path}"', f'"root": "{data}"')
    (tmp_path / "val.jsonl").write_text(text.replace('"path": "data/val/', '"path": "val/'))
    assert main(command) == 1
    error = capsys.readouterr().err
    assert (
        f"error: val: 7 of its 7 videos were looked for and none is there to be read, such as {data}/val/000" in error
    )
    assert "--data.val-root takes the folder that they were moved to" in error
    assert not out.exists()
    assert main([*command, "--data.val-root", str(moved)]) == 0
    checkpoint = str(out / "checkpoints/best.pt")
    capsys.readouterr()
    options = ["--out", str(tmp_path / "scores"), "--device", "cpu", "--loading.workers", "0"]
    assert main(["test", checkpoint, *options]) == 0  # the checkpoint knows the place
    assert "top-1" in capsys.readouterr().out
    assert main(["test", checkpoint, *options, "--overwrite", "--root", str(data)]) == 1
    assert "--root takes the folder that they were moved to" in capsys.readouterr().err


def test_one_class_tells_nothing_apart(tmp_path, capsys):
    videos = Videos.make(tmp_path)
    entries = tuple(replace(entry, label=0) for entry in videos.train.entries)
    one = Videos(Split("train", entries, ("falls",)), Split("val", entries[:3], ("falls",)))
    config = tiny_config(tmp_path / "run")
    config = replace(config, recipe=replace(config.recipe, data=replace(config.recipe.data, num_classes=None)))
    assert run_one(config, one) == 1
    assert "train: all is of one class, 'falls'; expected two or more" in capsys.readouterr().err


class _TrainsError(Exception):
    """The run has said all and begins."""


def test_videos_of_both_sets_are_said(tmp_path, monkeypatch):
    def train(self):
        raise _TrainsError

    monkeypatch.setattr(Run, "train", train)
    videos = Videos.make(tmp_path)
    shared = replace(videos.val, entries=(*videos.val.entries, videos.train.entries[5]))
    config = tiny_config(tmp_path / "run")
    with pytest.raises(_TrainsError):
        run_one(config, Videos(videos.train, shared))
    (warning,) = log_of(config, "warning")
    assert warning["message"] == (
        f"1 of the 8 validation videos are trained on too, such as {videos.train.entries[5].path}: the score says "
        "nothing of others"
    )


def test_class_names_that_differ_are_named(tmp_path, capsys):
    videos = Videos.make(tmp_path)
    other = replace(videos.val, class_names=("falls", "rises", "rests"))
    assert run_one(tiny_config(tmp_path / "run"), Videos(videos.train, other)) == 1
    assert "only train has ['stays'], only val has ['rests']" in capsys.readouterr().err


def test_validation_videos_that_cannot_be_read(tmp_path, capsys):
    videos = Videos.make(tmp_path)
    for entry in videos.val.entries:
        for picture in entry.path.iterdir():
            picture.write_bytes(b"no picture")
    config = tiny_config(tmp_path / "run")
    assert run_one(config, videos) == 1
    assert (
        f"none of the 7 validation videos can be read, such as {videos.val.entries[0].path}" in capsys.readouterr().err
    )
    assert len(log_of(config, "left_out")) == 7
