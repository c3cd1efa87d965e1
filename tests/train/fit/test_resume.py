"""Runs that are killed, stopped and resumed. The unbroken run's weights, momentum and scores are the measure."""

import copy
import json
import math
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.fit_runs import Videos, equal_bits, final_bits, finish, log_of, run_one, tiny_config
from train.checkpoint import RunCheckpoints, read_checkpoint
from train.fields import to_plain
from train.fit.learner import Learner
from train.fit.resume import differences
from train.fit.run import Run
from train.fit.stopping import stop_on_signals
from train.metrics import Score
from train.precision import seed_generators
from train.recipes import RECIPES


def scenario(*arguments):
    command = [sys.executable, "-m", "tests.support.fit_runs", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return Videos.make(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory):
    """An unbroken run."""
    config = tiny_config(tmp_path_factory.mktemp("whole") / "run")
    assert run_one(config, videos) == 0
    return config


def test_killed_twenty_times(tmp_path):
    report = scenario("sweep", tmp_path, 1, 20, 0)
    assert len(report["killed"]) == 20
    assert len(set(report["killed"])) >= 4  # at different places
    assert report["ended"]
    assert all(report["ended"])


def test_one_of_two_processes_killed(tmp_path):
    report = scenario("sweep", tmp_path, 2, 4, 1)
    assert len(report["killed"]) == 4
    assert report["survivors"] == [1] * 4  # each ended by itself, with a message
    assert all(report["ended"])
    texts = "".join(path.read_text() for path in tmp_path.glob("run*.txt"))
    assert texts.count("error: another process of the run has died or hangs") >= 1
    assert "Traceback" not in texts


def test_two_processes(tmp_path):
    report = scenario("pair", tmp_path)
    assert report["told to stop"] == [143, 143]
    assert (report["resumed"], report["equal"], report["equal scores"]) == ([0, 0], True, True)
    assert report["alone"] == [0]
    assert "the checkpoint is of 2 processes × 1 parts, this run has 1 × 1" in (tmp_path / "alone.txt").read_text()
    assert report["bad"] == [[1, 1], [1]]  # what one process met counts for all, and after the run is resumed too
    for name in ("bad", "later"):
        said = (tmp_path / f"{name}.txt").read_text()
        assert "error: too many training videos cannot be read: 2 of" in said
        assert len({line["path"] for line in log_of(tiny_config(tmp_path / name), "unreadable")}) == 1  # in a step
    assert report["other recipe"] == [1, 1]
    refusals = (tmp_path / "other.txt").read_text().splitlines()
    assert len([line for line in refusals if "recipe.seed: was 3, is 4" in line]) == 2
    for name in ("whole", "stopped", "alone"):
        log = log_of(tiny_config(tmp_path / name), "epoch")
        assert {(line["train"]["total"], line["val"]["total"]) for line in log} == {(20, 7)}  # no clip twice
    steps = [
        line["step"] for line in log_of(tiny_config(tmp_path / "stopped")) if line["event"] in ("stopped", "resume")
    ]
    assert steps[0] == steps[1]


def at_step(monkeypatch, step, action):
    """Do something after the optimizer's step number `step`."""
    take = Learner.step

    def stepped(self, parts):
        result = take(self, parts)
        if self.steps == step:
            action()
        return result

    monkeypatch.setattr(Learner, "step", stepped)


@pytest.fixture
def hung_up():
    """SIGHUP is heard, even where the suite itself runs under nohup."""
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, former)


@pytest.mark.usefixtures("hung_up")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_stops_after_the_step_with_a_checkpoint(tmp_path, videos, whole, monkeypatch, number, capsys):
    config = tiny_config(tmp_path / "run")
    with monkeypatch.context() as patch:
        at_step(patch, 7, lambda: os.kill(os.getpid(), number))
        assert run_one(config, videos) == 128 + number
    assert "stopped at step 7 of 15; --resume goes on from there" in capsys.readouterr().out
    assert log_of(config)[-1] == {"event": "stopped", "step": 7, "signal": number}
    assert run_one(replace(config, resume=True), videos) == 0
    assert equal_bits(final_bits(config.out), final_bits(whole.out))


@pytest.mark.usefixtures("hung_up")
def test_a_terminal_that_is_closed_leaves_a_checkpoint(tmp_path, videos):
    config = tiny_config(tmp_path / "run")
    child, terminal = pty.fork()
    if child == 0:
        status = 1
        try:
            with open(1, "w") as sys.stdout, open(2, "w") as sys.stderr:  # pytest's own go elsewhere
                status = run_one(config, videos)
        finally:
            os._exit(status)
    while b"step 2/15" not in os.read(terminal, 10_000):
        pass
    os.close(terminal)  # the kernel sends SIGHUP, and every write to the terminal fails
    assert finish([child]) == [128 + signal.SIGHUP]
    assert log_of(config)[-1]["event"] == "stopped"
    assert RunCheckpoints(config.out / "checkpoints", 3).by_age()


def test_nohup_stays(monkeypatch):
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.number is None
    finally:
        signal.signal(signal.SIGHUP, former)


def test_of_equal_accuracies_the_lower_loss_is_best(tmp_path, videos, monkeypatch):
    losses = iter((3.0, 1.0, 2.0))
    monkeypatch.setattr(Run, "_validate", lambda self: (Score(3, 7, 7, next(losses)), []))
    config = tiny_config(tmp_path / "run")
    assert run_one(config, videos) == 0
    assert [line["best"] for line in log_of(config, "checkpoint") if line["step"] in (5, 10, 15)][1::2] == [
        *(True, True, False)
    ]


def test_the_log_has_each_step_once_and_with_its_own_rate(tmp_path, videos, monkeypatch):
    config = tiny_config(tmp_path / "run", log_every=1, checkpoint_every=4)
    with monkeypatch.context() as patch:
        at_step(patch, 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
        run_one(config, videos)
    newest = RunCheckpoints(config.out / "checkpoints", 3).by_age()[-1]
    newest.unlink()  # as if it had been killed before that
    assert run_one(replace(config, resume=True), videos) == 0
    steps = log_of(config, "step")
    assert [line["step"] for line in steps] == list(range(1, 16))
    rates = [0.005 * (1 + math.cos(math.pi * step / 15)) / 2 for step in range(15)]
    assert [line["lr"] for line in steps] == pytest.approx(rates)


def test_nothing_that_others_draw_changes_a_run(tmp_path, videos, whole, monkeypatch):
    """Each step begins with numbers of its own."""
    config = tiny_config(tmp_path / "run")
    validate, step = Run._validate, Learner.step
    drawn = []

    def draw():
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))

    monkeypatch.setattr(Run, "_validate", lambda self: (validate(self), draw())[0])
    monkeypatch.setattr(Learner, "step", lambda self, parts: (step(self, parts), draw())[0])
    assert run_one(config, videos) == 0
    assert len(set(drawn)) == len(drawn) == 18
    assert equal_bits(final_bits(config.out), final_bits(whole.out))


def test_every_step_and_process_draws_other_numbers():
    drawn = []
    for place in ((), (1, 0), (1, 1), (2, 0), (2, 1), (1, 0)):
        seed_generators(torch.device("cpu"), 3, *place)
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert drawn[-1] == drawn[1]
    for numbers in zip(*drawn[:-1], strict=True):
        assert len(set(numbers)) == 5


def test_a_checkpoint_holds_nothing_of_single_processes(whole):
    run = read_checkpoint(RunCheckpoints(whole.out / "checkpoints", 3).by_age()[-1])["run"]
    assert not run.keys() & {"ranks", "generators"}
    assert (run["processes"], run["accumulate"], run["unreadable"]) == (1, 1, [])


def test_a_run_of_an_older_version_is_refused(tmp_path, whole, videos, capsys):
    """Its random states are of another kind, so it would not go on as it began."""
    config = replace(whole, out=tmp_path / "run", resume=True)
    shutil.copytree(whole.out, config.out)
    for path in RunCheckpoints(config.out / "checkpoints", 3).by_age():
        content = read_checkpoint(path)
        torch.save(content | {"run": content["run"] | {"ranks": []}}, path)
    assert run_one(config, videos) == 1
    assert "holds a run of an older version" in capsys.readouterr().err


def test_signal_while_validating(tmp_path, videos, whole, monkeypatch):
    config = tiny_config(tmp_path / "run")
    validate = Run._validate
    with monkeypatch.context() as patch:

        def told_to_stop(self):
            if self.learner.steps == 10:
                os.kill(os.getpid(), signal.SIGTERM)
            return validate(self)

        patch.setattr(Run, "_validate", told_to_stop)
        assert run_one(config, videos) == 143
    assert [line["epoch"] for line in log_of(config, "epoch")] == [1]
    assert run_one(replace(config, resume=True), videos) == 0
    assert [line["epoch"] for line in log_of(config, "epoch")] == [1, 2, 3]
    assert equal_bits(final_bits(config.out), final_bits(whole.out))
    assert log_of(config, "epoch") == log_of(whole, "epoch")


def test_checkpoint_cut_short(tmp_path, videos, whole, monkeypatch, capsys):
    config = tiny_config(tmp_path / "run")
    with monkeypatch.context() as patch:
        at_step(patch, 9, lambda: os.kill(os.getpid(), signal.SIGTERM))
        run_one(config, videos)
    newest = RunCheckpoints(config.out / "checkpoints", 3).by_age()[-1]
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert run_one(replace(config, resume=True), videos) == 0
    (warning,) = log_of(config, "warning")
    assert f"{newest}: is not a checkpoint, or a damaged one; trying the checkpoint before it" in warning["message"]
    assert f"warning: {warning['message']}" in capsys.readouterr().out
    assert log_of(config, "resume")[0]["step"] == 8
    assert equal_bits(final_bits(config.out), final_bits(whole.out))


def test_a_run_can_be_lengthened(tmp_path, videos, whole, capsys):
    """And it says what that means."""
    config = replace(whole, out=tmp_path / "run", resume=True)
    shutil.copytree(whole.out, config.out)

    def with_optimization(**changes):
        recipe = config.recipe
        return replace(config, recipe=replace(recipe, optimization=replace(recipe.optimization, **changes)))

    assert run_one(with_optimization(epochs=2), videos) == 1
    assert "recipe.optimization.epochs: was 3, is 2" in capsys.readouterr().err
    assert run_one(with_optimization(epochs=4), videos) == 0
    said = capsys.readouterr().out
    assert "lengthened from 3 to 4 epochs: the learning rate goes on at 0.146 of what it began with" in said
    assert "where it was 0; so the numbers will not be those of an unbroken run" in said
    assert [line["step"] for line in log_of(config, "epoch")] == [5, 10, 15, 20]
    assert run_one(with_optimization(epochs=4), videos) == 0  # nothing is left to do
    assert "lengthened from" not in capsys.readouterr().out
    assert "done: the best of 4 epochs is number" in said


def test_a_best_checkpoint_that_is_left_alone_is_a_run(tmp_path, videos, whole, capsys):
    """Whoever tidies up keeps `best.pt`: another run of the same folder's name must not begin over it."""
    config = replace(whole, out=tmp_path / "run")
    shutil.copytree(whole.out, config.out)
    for path in RunCheckpoints(config.out / "checkpoints", 3).by_age():
        path.unlink()
    best = config.out / "checkpoints" / "best.pt"
    before, log = best.read_bytes(), (config.out / "log.jsonl").read_bytes()
    assert run_one(config, videos) == 1
    assert "holds a run already; go on with it by --resume" in capsys.readouterr().err
    assert (best.read_bytes(), (config.out / "log.jsonl").read_bytes()) == (before, log)
    step = read_checkpoint(best)["run"]["learner"]["steps"]
    assert 0 < step < 15
    assert run_one(replace(config, resume=True), videos) == 0
    assert log_of(config, "resume")[0]["step"] == step
    assert equal_bits(final_bits(config.out), final_bits(whole.out))


def test_milestones_in_epochs_and_as_shares_are_the_same_run():
    """As those of runs that began before milestones could be shares."""
    now = {"recipe": to_plain(RECIPES["k400-8f"])}
    before = copy.deepcopy(now)
    before["recipe"]["optimization"]["milestones"] = [50, 75, 90]
    assert differences(before, now) == []
    before["recipe"]["optimization"]["milestones"] = [50, 75, 95]
    assert differences(before, now) == ["recipe.optimization.milestones: was [50.0, 75.0, 95.0], is [50.0, 75.0, 90.0]"]


def test_another_recipe_is_refused(tmp_path, videos, monkeypatch, capsys):
    config = tiny_config(tmp_path / "run")
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        run_one(config, videos)
    before = (config.out / "log.jsonl").read_text()
    recipe = config.recipe
    optimization = replace(recipe.optimization, lr=0.02, momentum=0.5)
    others = [
        (
            replace(config, recipe=replace(recipe, optimization=optimization)),
            "recipe.optimization.lr: was 0.005, is 0.02",
        ),
        (replace(config, recipe=replace(recipe, optimization=optimization)), "optimization.momentum: was 0.9, is 0.5"),
        (replace(config, compute=replace(config.compute, ema=0.9)), "compute.ema: was None, is 0.9"),
        (
            replace(config, recipe=replace(recipe, data=replace(recipe.data, balanced=True))),
            "data.classes: was None, is 'balanced'",
        ),
    ]
    for other, message in others:
        assert run_one(replace(other, resume=True), videos) == 1
        assert message in capsys.readouterr().err
    entries = videos.train.entries
    fewer = replace(videos, train=replace(videos.train, entries=(*entries[1:], entries[0])))
    assert run_one(replace(config, resume=True), fewer) == 1
    assert "data.training videos: was '22 entries, digest" in capsys.readouterr().err
    assert run_one(config, videos) == 1
    assert "holds a run already; go on with it by --resume" in capsys.readouterr().err
    assert (config.out / "log.jsonl").read_text() == before
    free = replace(recipe, name="mine", test=replace(recipe.test, placement="spread", clips=2))
    allowed = replace(config, recipe=free, resume=True, log_every=5, loading=replace(config.loading, prefetch=4))
    assert run_one(allowed, videos) == 0


def test_nothing_to_resume_is_a_beginning(tmp_path, videos, whole, capsys):
    config = tiny_config(tmp_path / "run", resume=True)
    assert run_one(config, videos) == 0
    assert "nothing to resume" in capsys.readouterr().out
    assert equal_bits(final_bits(config.out), final_bits(whole.out))
    assert run_one(config, videos) == 0  # it is at its end
    assert equal_bits(final_bits(config.out), final_bits(whole.out))
