"""A disk that is full, or a file that is gone: named, nothing lost that was there, and gone on with where it can be."""

import csv
import errno
import json
import os
import shutil
from contextlib import closing

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train import appended
from train.appended import AppendedFile
from train.atomic import write_csv
from train.curves import Curves
from train.log import JsonLines, RunLog


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
