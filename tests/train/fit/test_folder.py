"""The folder of a run that is removed under it: said, made anew, and nothing of the run lost."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.fit_runs import Videos, equal_bits, final_bits, finish, log_of, run_one, start, tiny_config, without
from train import lock as lock_module
from train.fit.learner import Learner
from train.lock import Lock


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return Videos.make(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory):
    config = tiny_config(tmp_path_factory.mktemp("whole") / "run", tensorboard=True)
    assert run_one(config, videos) == 0
    return config


@pytest.fixture
def at_step(monkeypatch):
    """Do something before a step of the run."""
    actions: dict[int, Callable[[], object]] = {}
    step = Learner.step

    def acting(self, parts):
        if action := actions.pop(self.steps + 1, None):
            action()
        return step(self, parts)

    monkeypatch.setattr(Learner, "step", acting)
    return actions.__setitem__


def remove_log(out: Path) -> None:
    (out / "log.jsonl").unlink()


def remove_checkpoints(out: Path) -> None:
    shutil.rmtree(out / "checkpoints")


@pytest.mark.parametrize("remove", [shutil.rmtree, remove_log, remove_checkpoints])
@pytest.mark.parametrize("number", [3, 6, 8, 15])
def test_what_is_removed_is_written_again(tmp_path, videos, whole, at_step, capfd, remove, number):
    config = tiny_config(tmp_path / "run", tensorboard=True)
    at_step(number, lambda: remove(config.out))
    assert run_one(config, videos) == 0
    assert {path.name for path in config.out.iterdir()} == {path.name for path in whole.out.iterdir()}
    assert (config.out / "recipe.json").read_bytes() == (whole.out / "recipe.json").read_bytes()
    for event in ("step", "epoch"):
        lines = [[line.keys() for line in log_of(run, event)] for run in (config, whole)]
        assert lines[0] == lines[1]
    assert equal_bits(final_bits(config.out), final_bits(whole.out)) or remove is not remove_log
    assert (config.out / "checkpoints" / "best.pt").exists()
    said = capfd.readouterr().out
    assert "removed" in said
    if remove is not remove_log:
        saved = [line["step"] for line in log_of(config, "checkpoint")]
        assert number + number % 2 in saved or number == 15  # at the next line of the log


def test_every_process_knows(tmp_path, videos):
    config = tiny_config(tmp_path / "run", log_every=1)
    children = start(config, videos, 2, tmp_path / "said.txt")
    deadline = time.monotonic() + 60
    while not list(config.out.glob("checkpoints/best.pt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    config.out.rename(tmp_path / "away")
    assert finish(children) == [0, 0], (tmp_path / "said.txt").read_text()
    assert [line["step"] for line in log_of(config, "step")] == list(range(1, 16))
    assert (config.out / "checkpoints" / "step-00000015.pt").exists()
    assert f"{config.out}: was removed while the run lasts" in (tmp_path / "said.txt").read_text()
    resumed = replace(config, resume=True)
    assert finish(start(resumed, videos, 2, tmp_path / "resumed.txt")) == [0, 0]


def test_another_run_has_taken_the_place(tmp_path, videos, at_step, monkeypatch, capfd):
    monkeypatch.setattr(lock_module, "PATIENCE", 0.1)
    config = tiny_config(tmp_path / "run")
    others = []

    def usurp():
        shutil.rmtree(config.out)
        others.append(Lock(config.out))
        others[0].take()
        (config.out / "log.jsonl").write_text("of another run\n")

    at_step(7, usurp)
    assert run_one(config, videos) == 1
    assert f"{config.out}: was removed while this run wrote to it, and now {config.out}: is in use by" in (
        capfd.readouterr().err
    )
    assert sorted(path.name for path in config.out.iterdir()) == [".lock", "log.jsonl"]
    others[0].release()


def test_where_it_cannot_be_made_anew_the_run_goes_on(tmp_path, videos, whole, at_step, capfd):
    """As on a disk that is away for a while."""
    config = tiny_config(tmp_path / "mount" / "run")

    def unmount():
        config.out.parent.rename(tmp_path / "away")
        config.out.parent.touch()

    def mount():
        config.out.parent.unlink()
        (tmp_path / "away").rename(config.out.parent)

    at_step(7, unmount)
    at_step(9, mount)
    assert run_one(config, videos) == 0
    assert equal_bits(final_bits(config.out), final_bits(whole.out))
    assert [line["step"] for line in log_of(config, "step")] == [line["step"] for line in log_of(whole, "step")]


NO_TEXT = os.fsdecode(b"not utf-8 \xff")


def test_a_name_that_is_no_text_ends_no_run(tmp_path, videos, capfd):
    split = without(videos.train, 3)
    bad = replace(split.entries[3], path=split.entries[3].path.with_name(NO_TEXT))
    train = replace(split, entries=(*split.entries[:3], bad, *split.entries[4:]))
    val = replace(videos.val, entries=(replace(videos.val.entries[0], path=bad.path), *videos.val.entries[1:]))
    config = tiny_config(tmp_path / "run", checkpoint_every=1, tensorboard=True)
    config = replace(config, recipe=replace(config.recipe, data=replace(config.recipe.data, max_bad_share=0.5)))
    assert run_one(config, Videos(train, val)) == 0
    named = {line["path"] for event in ("unreadable", "left_out") for line in log_of(config, event)}
    assert named == {str(bad.path / "img_00001.png")}
    for path in sorted((config.out / "checkpoints").glob("step-*.pt"))[1:]:
        path.unlink()
    assert run_one(replace(config, resume=True), Videos(train, val)) == 0
    assert r"not utf-8 \udcff" in capfd.readouterr().out


def test_a_run_that_begins_again_has_each_step_once(tmp_path, videos, at_step):
    """It was killed before its first checkpoint, and is resumed as a requeued job is."""
    config = tiny_config(tmp_path / "run", log_every=1, tensorboard=True)

    def end():
        raise KeyboardInterrupt

    at_step(2, end)
    with pytest.raises(KeyboardInterrupt):
        run_one(config, videos)
    assert [line["step"] for line in log_of(config, "step")] == [1]
    assert run_one(replace(config, resume=True), videos) == 0
    assert [line["step"] for line in log_of(config, "step")] == list(range(1, 16))
    curves = EventAccumulator(str(config.out / "tensorboard")).Reload()
    assert [point.step for point in curves.Scalars("train/loss")] == list(range(1, 16))
