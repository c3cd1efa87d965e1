"""A disk that is full, or a file that is gone: named, nothing lost that was there, and gone on with where it can be."""

import csv
import errno
import io
import json
import os
import re
import shutil
from contextlib import closing
from unittest.mock import patch

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.fit_runs import CLASSES, Videos
from tests.support.limited import run_limited
from train import appended
from train.__main__ import main
from train.appended import AppendedFile
from train.atomic import write_csv
from train.curves import Curves
from train.log import JsonLines, RunLog

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = (
    "--optimization.epochs 1 --optimization.batch-size 4 --sampling.num-segments 4 --augmentation.crop-size 32 "
    "--validation.short-side 36 --validation.crop-size 32 --test.short-side 36 --test.crop-size 32 "
    "--device cpu --threads 1 --loading.workers 0"
)
TEST = "--device cpu --threads 1 --loading.workers 0 --views.short-side 36 --views.crop-size 32"
DEMO = (
    "demo --tasks order --train-videos 6 --val-videos 6 --epochs 1 --batch-size 4 --workers 0 --threads 1 --out {out}"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two indices, a list, a run and its test, in a folder."""
    folder = tmp_path_factory.mktemp("place")
    videos = Videos.make(folder)
    options = videos.written(folder)
    (folder / "list.txt").write_text("".join(f"{entry.path} 6 {entry.label}\n" for entry in videos.train.entries))
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    assert main(["fit", "demo", *options, *SMALL.split(), "--out", str(folder / "run")]) == 0
    for name in ("one", "two"):
        assert main(["test", str(folder / "run/checkpoints/best.pt"), *TEST.split(), "--out", str(folder / name)]) == 0
    return folder


@pytest.mark.parametrize(
    ("command", "most", "named"),
    [
        ("fit demo {data} {small} --out {out}", 100, "out/recipe.json"),
        ("fit demo {data} {small} --out {out} --tensorboard", 3000, "no checkpoint at step 5: {place}/out/checkpoints"),
        ("test {best} {test} --out {out} --overwrite", 500, "out/scores.npz"),
        ("test {best} {test} --out {out} --overwrite", 3000, "out/confusion.png"),
        ("test {best} {test} --out {place}/one --overwrite", 500, "one/scores.npz"),
        ("ensemble {place}/one {place}/two --out {out}", 500, "out/scores.npz"),
        ("convert {best} {out}", 5000, "out"),
        ("convert {best} {place}/run/recipe.json --overwrite", 5000, "run/recipe.json"),
        ("extract {best} {place}/train/* --out {out} --maps layer3 --workers 0", 3000, "/train/000.safetensors"),
        ("prepare {list} --out {out}", 400, "out"),
        ("prepare {list} --out {out}", 1500, "out"),
        ("prepare {list} --out {out} --transcode {place}/small", 700, "small/train/0"),
        ("compare demo {data} {small} --systems c2d --seeds 0 --out {out}", 100, "out/runs.csv"),
        ("compare demo {data} {small} --systems c2d --seeds 0 --out {out}", 3000, "out/accuracy_over_cost.png"),
        (DEMO, 30, "classes.txt"),
        (DEMO, 900, "train/00000.mp4"),
    ],
)
def test_what_cannot_be_written_is_named_and_what_was_there_is_kept(place, command, most, named):
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    out = place / "out"
    values = {
        "data": f"--data.train {place}/train.jsonl --data.val {place}/val.jsonl",
        "small": SMALL,
        "test": TEST,
        "best": place / "run/checkpoints/best.pt",
        "list": f"{place}/list.txt --source frames_list --classes {place}/classes.txt --processes 1",
        "place": place,
        "out": out,
    }
    try:
        status, said = run_limited(most, command.format(**values).split())
        assert status == 1, said
        error = said[said.index("error: ") :]
        assert named.format(place=place) in error, said
        assert re.search("File too large|No space left on device", error), said
        assert "Traceback" not in said
        assert all(path.read_bytes() == content for path, content in before.items())
        assert not list(place.rglob(".*lock"))
        assert not [path for path in place.rglob("*.unfinished") if path.is_file()]
        if command.startswith("test"):
            assert "of 7 videos" in said  # the accuracy, for which all was computed
        if "compare" not in command:
            again = command.format(**values).split()
            with patch("train.convert.published_state", lambda network, _: network.state_dict()):
                assert main([*again, *(["--resume"] if command.startswith("fit") else [])]) == 0
    finally:
        for path, content in before.items():
            path.write_bytes(content)
        for path in (out, place / "small"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    "command",
    [
        "fit demo {data} {small} --out {out}",
        "compare demo {data} {small} --systems c2d --seeds 0 --out {out}",
        "test {best} {test} --out {out}",
    ],
)
def test_a_full_disk_that_the_console_is_written_to_ends_nothing(place, tmp_path, command):
    values = {
        "data": f"--data.train {place}/train.jsonl --data.val {place}/val.jsonl",
        "small": SMALL,
        "test": TEST,
        "best": place / "run/checkpoints/best.pt",
        "out": tmp_path / "out",
    }

    class Full(io.StringIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    with patch("os.dup2"), patch("sys.stdout", Full()):
        assert main(command.format(**values).split()) == 0
    assert (tmp_path / "out").is_dir()


@pytest.fixture
def disk(monkeypatch):
    """A disk with `room` for some bytes more, or None; what `os.write` puts on others' files is written."""
    write = os.write

    class Disk:
        room: int | None = None

        def write(self, file, data):
            if self.room is None or file < 3:
                return write(file, data)
            if self.room == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            done = write(file, bytes(data[: self.room]))
            self.room -= done
            return done

    disk = Disk()
    monkeypatch.setattr(os, "write", disk.write)
    return disk


def steps_of(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_log_waits_for_space(tmp_path, disk, capsys):
    path = tmp_path / "log.jsonl"
    with closing(RunLog(tmp_path)) as log:
        log.event("step", step=1)
        disk.room = 10  # of the next line
        for step in (2, 3):
            log.event("step", step=step)
        assert path.read_text().endswith('{"event": ')
        disk.room = None
        log.event("step", step=4)
        assert steps_of(path) == [1, 2, 3, 4]
    assert capsys.readouterr().out.splitlines() == [
        f"warning: {path}: No space left on device; what it is to hold stays in memory until it can",
        f"warning: {path}: can be written again",
    ]


def test_a_log_holds_so_much(tmp_path, disk, monkeypatch):
    monkeypatch.setattr(appended, "HELD", 100)
    said: list[str] = []
    with JsonLines(tmp_path / "log.jsonl", warn=said.append) as log:
        disk.room = 0
        for step in range(9):
            log.write("step", step=step)
        disk.room = None
        log.write("step", step=9)
        log.write("step", step=10)
    assert steps_of(tmp_path / "log.jsonl") == [0, 1, 2, 10]
    assert said[1].endswith("can be written again, but 7 records are lost")


def test_what_is_lost_at_the_end_is_said(tmp_path, capsys):
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with closing(RunLog(tmp_path, append=True)) as log:
        log.event("step", step=1)
        log.event("step", step=2)
    assert "log.jsonl: the last 2 records could not be written" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_removed_log_is_written_again(tmp_path, capsys, what):
    folder, away = tmp_path / "run", tmp_path / "away"
    folder.mkdir()
    with closing(RunLog(folder)) as log:
        log.event("step", step=1)
        if what == "folder":
            folder.rename(away)
        else:
            (folder / "log.jsonl").unlink()
        log.event("step", step=2)
        log.event("step", step=3)
    assert steps_of(folder / "log.jsonl") == [1, 2, 3]
    assert f"warning: {folder / 'log.jsonl'}: was removed, and is written again" in capsys.readouterr().out


def test_a_replaced_log_is_gone_on_with(tmp_path):
    path = tmp_path / "log.jsonl"
    said: list[str] = []
    with JsonLines(path, warn=said.append) as log:
        log.write("step", step=1)
        (tmp_path / "edited").write_text('{"event": "note", "step": 0}\n')
        (tmp_path / "edited").rename(path)
        log.write("step", step=2)
    assert steps_of(path) == [0, 2]
    assert said == [f"{path}: was replaced, and is gone on with"]


def test_curves_wait_for_space_too(tmp_path, disk):
    said: list[str] = []
    with closing(Curves(tmp_path / "tensorboard", said.append)) as curves:
        curves.add_scalar("train/loss", 3.0, 1)
        disk.room = 7
        curves.add_scalar("train/loss", 2.0, 2)
        disk.room = None
        curves.add_scalar("train/loss", 1.0, 3)
        shutil.rmtree(tmp_path / "tensorboard")
        curves.add_scalar("train/loss", 0.5, 4)
    read = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(point.step, point.value) for point in read.Scalars("train/loss")] == [(1, 3), (2, 2), (3, 1), (4, 0.5)]
    assert len(said) == 3


def test_cells_that_spreadsheets_would_run(tmp_path):
    texts = ("=1+1", "+1", "-1", "@A1", "\t=1", " =1", "a;=1", "'=1", "＝1", "a-b=c", "it's", "ça tombe")
    write_csv(tmp_path / "table.csv", [texts, (-1, 2.5, None, "")])
    with (tmp_path / "table.csv").open(encoding="utf-8", newline="") as file:
        written, numbers = csv.reader(file)
    assert written == ["'=1+1", "'+1", "'-1", "'@A1", "'\t'=1", "' =1", "a;'=1", "''=1", "'＝1", *texts[-3:]]
    assert numbers == ["-1", "2.5", "", ""]


def test_no_room_to_leave_lines_out(tmp_path, monkeypatch):
    said: list[str] = []
    with JsonLines(tmp_path / "log.jsonl", warn=said.append) as log:
        log.write("step", step=1)
        log.write("step", step=2)
        monkeypatch.setattr(AppendedFile, "replace", lambda *_: (tmp_path / "no").stat())
        log.keep(lambda line: line["step"] < 2)
        log.write("step", step=3)
    assert steps_of(tmp_path / "log.jsonl") == [1, 2, 3]
    assert "lines that come again stand in it twice" in said[0]
