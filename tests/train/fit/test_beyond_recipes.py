"""Runs with what no published recipe has: resumed to the bit, ended early, and drawn by Weights & Biases.

Two processes that are stopped with all of it on are `test_two_processes` in test_resume.py.
"""

import math
import os
import signal
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.fit_runs import Videos, beyond, equal_bits, final_bits, log_of, run_one, tiny_config
from tests.train.fit.test_resume import at_step
from train.compare.config import CompareConfig
from train.data.loader import Loading
from train.fit.config import Compute
from train.fit.run import Run
from train.log import RunLog
from train.metrics import Score
from train.recipes import RECIPES


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return Videos.make(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory):
    config = beyond(tiny_config(tmp_path_factory.mktemp("whole") / "run"))
    assert run_one(config, videos) == 0
    return config


def test_resumed_in_the_middle_of_an_epoch_it_is_the_same_run(tmp_path, videos, whole, monkeypatch, capsys):
    config = beyond(tiny_config(tmp_path / "run", loading=Loading(workers=1)))
    with monkeypatch.context() as patch:
        at_step(patch, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert run_one(config, videos) == 143
    said = capsys.readouterr().out
    assert (
        "beyond the published recipes: label smoothing 0.1, class weights balanced, color jitter 0.4, RandAugment 2,9, "
        "mixup 0.4, CutMix 1.0"
    ) in said
    assert run_one(replace(config, resume=True), videos) == 0
    assert equal_bits(final_bits(config.out), final_bits(whole.out))
    assert log_of(config, "epoch") == log_of(whole, "epoch")


def test_other_ways_to_compute(tmp_path, videos):
    config = beyond(tiny_config(tmp_path / "run", compute=Compute(accumulate=2, precision="bf16", recompute=True)))
    assert run_one(config, videos) == 0
    epochs = log_of(config, "epoch")
    assert [line["train"]["total"] for line in epochs] == [20, 20, 20]
    assert all(line["train"]["loss"] < 3 for line in epochs)


def test_single_clips_are_not_mixed(tmp_path, videos, capsys):
    config = beyond(tiny_config(tmp_path / "run", compute=Compute(accumulate=4)))
    assert run_one(config, videos) == 1
    assert (
        "error: augmentation.mixup: got 0.4, expected None where a process computes one clip at a time, as of 4 a step"
    ) in capsys.readouterr().err
    assert not (config.out / "recipe.json").exists()


@pytest.mark.parametrize(("randaugment", "is_said"), [("2,9", True), ("2,9,color", False)])
def test_directions_under_randaugment_are_named(tmp_path, videos, capsys, randaugment, is_said):
    names = ("falls left", "falls right", "stays")
    sided = replace(videos, train=replace(videos.train, class_names=names), val=replace(videos.val, class_names=names))
    config = tiny_config(tmp_path / "run")
    recipe = replace(config.recipe, augmentation=replace(config.recipe.augmentation, randaugment=randaugment))
    recipe = replace(recipe, optimization=replace(recipe.optimization, epochs=1))
    assert run_one(replace(config, recipe=recipe), sided) == 0
    said = (
        "RandAugment turns and shears the pictures of 2 classes that mean a direction, such as 'falls left'; "
        "--augmentation.randaugment 2,9,color does not"
    )
    assert (said in capsys.readouterr().out) == is_said


def scored(monkeypatch, *rights):
    """Validations that get so many of 7 right, each with a lower loss than the one before."""
    results = iter([Score(right, 7, 7, 9.0 - number) for number, right in enumerate(rights)])
    monkeypatch.setattr(Run, "_validate", lambda self: (next(results), []))


def six_epochs(out, **changes):
    config = tiny_config(out, **changes)
    return replace(config, recipe=replace(config.recipe, optimization=replace(config.recipe.optimization, epochs=6)))


def test_a_run_ends_early(tmp_path, videos, monkeypatch, capsys):
    """Of equal accuracies the lower loss is the best checkpoint, but no better top-1."""
    config = six_epochs(tmp_path / "run", stop_after=2, log_every=1)
    scored(monkeypatch, 3, 4, 4, 4)
    assert run_one(config, videos) == 0
    said = capsys.readouterr().out
    assert (
        "ended early, after 4 of 6 epochs: top-1 in validation has not become better for 2 (--stop-after 2)\n"
        "done: the best of 4 epochs is number 4, top-1 57.14%"
    ) in said
    assert log_of(config)[-1] == {"event": "ended_early", "step": 20, "epoch": 4, "stale": 2}
    assert run_one(replace(config, resume=True), videos) == 0  # it is at its end
    assert "ended early, after 4 of 6 epochs" in capsys.readouterr().out
    scored(monkeypatch, 4, 4)
    assert run_one(replace(config, resume=True, stop_after=4), videos) == 0
    assert [line["epoch"] for line in log_of(config, "epoch")] == [1, 2, 3, 4, 5, 6]
    assert "ended early, after 6 of 6" not in capsys.readouterr().out
    cosine = [0.005 * (1 + math.cos(math.pi * step / 30)) / 2 for step in range(30)]
    assert [line["lr"] for line in log_of(config, "step")] == pytest.approx(cosine)


def test_what_is_counted_survives_a_stop(tmp_path, videos, monkeypatch):
    config = six_epochs(tmp_path / "run", stop_after=2)
    scored(monkeypatch, 4, 3, 4, 4)
    with monkeypatch.context() as patch:
        at_step(patch, 12, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert run_one(config, videos) == 143
    assert run_one(replace(config, resume=True), videos) == 0
    assert [line["epoch"] for line in log_of(config, "epoch")] == [1, 2, 3]


def test_systems_are_compared_by_equal_numbers_of_epochs():
    config = CompareConfig(recipe=RECIPES["k400-8f"], systems=("tanet",), seeds=(0,))
    assert config.run("tanet", 0).stop_after is None


class FakeWandb(SimpleNamespace):
    """The part of the package `wandb` that a run uses."""

    def __init__(self):
        super().__init__(runs=[], fails=False, refuses=False)

    def Settings(self, **settings):  # noqa: N802 # as theirs
        return settings

    def init(self, **options):
        if self.refuses:
            raise RuntimeError("No API key configured")
        number = options["id"] or f"run{len(self.runs)}"
        run = SimpleNamespace(id=number, options=options, axes={}, points=[], ends=0)

        def log(values):
            if self.fails:
                raise RuntimeError("the service is gone")
            run.points.append(values)

        def finish():
            run.ends += 1

        run.log, run.finish = log, finish
        run.define_metric = lambda name, step_metric: run.axes.update({name: step_metric})
        self.runs.append(run)
        return run


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_gets_what_tensorboard_gets(tmp_path, videos, wandb, monkeypatch):
    config = tiny_config(tmp_path / "run", tensorboard=True, wandb="project")
    with monkeypatch.context() as patch:
        at_step(patch, 9, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert run_one(config, videos) == 143
    assert run_one(replace(config, resume=True), videos) == 0
    assert [run.options["id"] for run in wandb.runs] == [None, "run0"]
    assert [run.options["resume"] for run in wandb.runs] == [None, "allow"]
    assert [run.ends for run in wandb.runs] == [1, 1]
    first = wandb.runs[0]
    assert first.axes == {"train/*": "step", "epoch/*": "epoch"}
    assert (first.options["project"], first.options["dir"]) == ("project", str(config.out))
    assert first.options["config"]["recipe"]["optimization"]["lr"] == 0.005
    assert log_of(config, "wandb") == [{"event": "wandb", "project": "project", "id": "run0"}]
    drawn: dict[str, list[tuple[int, float]]] = {}
    for point in (point for run in wandb.runs for point in run.points):
        position = point["epoch"] if "epoch" in point else point["step"]
        for name, value in point.items():
            drawn.setdefault(name, []).append((position, value))
    curves = EventAccumulator(str(config.out / "tensorboard")).Reload()
    assert set(curves.Tags()["scalars"]) == drawn.keys() - {"step", "epoch"}
    for name in curves.Tags()["scalars"]:
        assert [event.step for event in curves.Scalars(name)] == [position for position, _ in drawn[name]]
        values = [value for _, value in drawn[name]]
        assert [event.value for event in curves.Scalars(name)] == pytest.approx(values, rel=1e-6)
    other = replace(config, resume=True, wandb="another")
    assert run_one(other, videos) == 0
    assert wandb.runs[-1].options["id"] is None


def test_wandb_that_fails_ends_no_run(tmp_path, videos, wandb, capsys):
    wandb.fails = True
    config = tiny_config(tmp_path / "run", wandb="project")
    assert run_one(config, videos) == 0
    assert capsys.readouterr().out.count("warning: wandb: takes no more points: the service is gone") == 1


def test_wandb_that_cannot_begin_is_named(tmp_path, videos, wandb, monkeypatch, capsys):
    wandb.refuses = True
    assert run_one(tiny_config(tmp_path / "run", wandb="project"), videos) == 1
    assert "error: wandb: begins no run: No API key configured; the run can do without it" in capsys.readouterr().err
    for missing in (None, SimpleNamespace()):  # not installed; a folder of that name
        monkeypatch.setitem(sys.modules, "wandb", missing)
        config = tiny_config(tmp_path / "other", wandb="project")
        assert run_one(config, videos) == 1
        assert "error: wandb: is not installed (pip install wandb)" in capsys.readouterr().err
        assert not config.out.exists()


def test_processes_that_do_not_lead_begin_no_run_of_wandb(wandb):
    log = RunLog(None, wandb="project", tensorboard=True)
    log.begin(0, 10)
    log.steps(1, 0.1, {"loss": 1.0}, "")
    log.close()
    assert wandb.runs == []
