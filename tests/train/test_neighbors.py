"""Two programs that would write into one place: the second is refused, by every command, and harms nothing."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.fit_runs import Videos, equal_bits, final_bits, finish, log_of, run_one, start, tiny_config
from train import lock as lock_module
from train.__main__ import main
from train.lock import Lock


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    videos = Videos.make(folder)
    return videos, videos.written(folder)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(lock_module, "PATIENCE", 0.1)


COMMANDS = [
    ["fit", "demo", "--device", "cpu"],
    ["fit", "demo", "--device", "cpu", "--resume"],
    ["compare", "demo", "--device", "cpu", "--systems", "c2d"],
    ["test", "no checkpoint", "--device", "cpu"],
    ["ensemble", "one", "other"],
    ["demo"],
    ["convert", "no checkpoint"],
    ["prepare", "--source", "frames_list"],
]
each_command = pytest.mark.parametrize(
    "command", COMMANDS, ids=lambda command: " ".join(word for word in command if word.islower() or word == "--resume")
)


def that_writes_to(place, command, folder, data):
    """The whole command line; what it reads is made in `folder`."""
    if command[0] in ("fit", "compare"):
        return [*command, *data[1], "--out", str(place)]
    if command[0] == "prepare":
        (folder / "list.txt").write_text(f"{data[0].train.entries[0].path} 6 0\n")
        (folder / "classes.txt").write_text("falls\n")
        return [*command, str(folder / "list.txt"), "--classes", str(folder / "classes.txt"), "--out", str(place)]
    return [*command, *(["--out"] if command[0] != "convert" else []), str(place)]


@each_command
def test_every_command_keeps_out_of_a_place_in_use(tmp_path, data, impatient, capsys, command):
    place = tmp_path / "place"
    words = that_writes_to(place, command, tmp_path, data)
    with Lock(place, is_file=command[0] in ("prepare", "convert")):
        there = sorted(tmp_path.rglob("*"))
        assert main(words) == 1
        assert sorted(tmp_path.rglob("*")) == there
    assert f"error: {place}: is in use by this very process, {os.getpid()}" in capsys.readouterr().err


@each_command
def test_every_command_says_that_a_place_is_read_only(tmp_path, data, capsys, command):
    """Before it does anything else. In /sys nobody makes folders or files."""
    place = Path("/sys/kernel") / "place"
    assert main(that_writes_to(place, command, tmp_path, data)) == 1
    error = capsys.readouterr().err
    assert re.search(rf"error: {place}: cannot be written to: .*; take another place", error), error


def test_a_refused_run_leaves_no_folder(tmp_path, data):
    config = tiny_config(tmp_path / "new" / "run")
    config = replace(config, recipe=replace(config.recipe, model=replace(config.recipe.model, weights="no/file.pt")))
    assert run_one(config, data[0]) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("resume", [False, True])
def test_two_runs_of_two_processes_each(tmp_path, data, resume):
    """As two torchruns that were started for one folder: one trains, all processes of the other are refused."""
    whole = tiny_config(tmp_path / "whole")
    assert finish(start(whole, data[0], 2, tmp_path / "whole.txt")) == [0, 0]
    config = tiny_config(tmp_path / "run", resume=resume, checkpoint_every=1)
    first = start(config, data[0], 2, tmp_path / "first.txt")
    deadline = time.monotonic() + 60
    while not (config.out / "log.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(first[1], signal.SIGSTOP)  # so that it does not end before the others have come
    try:
        second = start(replace(config, resume=True), data[0], 2, tmp_path / "second.txt")
        assert finish(second) == [1, 1]
    finally:
        os.kill(first[1], signal.SIGCONT)
    assert finish(first) == [0, 0], (tmp_path / "first.txt").read_text()
    assert f"is in use by process {first[0]} on" in (tmp_path / "second.txt").read_text()
    assert [line["step"] for line in log_of(config, "checkpoint")][-1] == 15
    assert len({line["step"] for line in log_of(config, "step")}) == len(log_of(config, "step"))
    assert not (config.out / ".lock").exists()
    assert equal_bits(final_bits(config.out), final_bits(whole.out))


def test_two_rivals_with_sigkills_leave_one_run_that_is_whole(tmp_path):
    """The short form of ten minutes: `python -m tests.support.rivals FOLDER 600 16`."""
    command = [sys.executable, "-m", "tests.support.rivals", str(tmp_path), "5", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["wrong"] == []
    assert all("another process of the run has died" in line for line in report["errors"]), report
