import errno
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bench import batch_finder
from bench.batch_finder import find_batch, find_largest, report
from tests.support.fit_runs import Videos, equal_bits, final_bits, log_of, run_one, tiny_config, without
from train.__main__ import main
from train.checkpoint import RunCheckpoints, load_checkpoint
from train.data import dataset
from train.data.entries import Split
from train.data.loader import Loading, WorkerError
from train.errors import InputError
from train.fit.config import Compute
from train.fit.learner import Learner, StepResult
from train.fit.stopping import FiniteWatch
from train.recipes import RECIPES
from train.team import Team, choose_device, join_team


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return Videos.make(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory):
    config = tiny_config(tmp_path_factory.mktemp("whole") / "run")
    assert run_one(config, videos) == 0
    return config


def test_what_a_run_leaves(videos, whole):
    checkpoints = RunCheckpoints(whole.out / "checkpoints", 3)
    assert [path.name for path in checkpoints.by_age()] == [f"step-{step:08d}.pt" for step in (12, 14, 15)]
    recipe = whole.recipe.resolve()
    assert (whole.out / "recipe.json").read_text() == recipe.to_json() + "\n"
    epochs = log_of(whole, "epoch")
    assert [line["step"] for line in epochs] == [5, 10, 15]
    assert all(line["train"]["total"] == 20 and line["val"]["total"] == 7 for line in epochs)
    best = max(epochs, key=lambda line: line["val"]["top1"])  # the first of equals
    assert torch.load(checkpoints.best, weights_only=True)["run"]["best"]["epoch"] == best["epoch"]
    assert [line["best"] for line in log_of(whole, "checkpoint")].count(True) >= 1
    trained = load_checkpoint(checkpoints.best)
    assert (trained.recipe, trained.class_names) == (recipe, videos.train.class_names)
    steps = log_of(whole, "step")
    assert [line["step"] for line in steps] == [2, 4, 5, 6, 8, 10, 12, 14, 15]
    assert steps[0].keys() > {"loss", "lr", "grad_norm", "step_seconds", "data_wait_seconds", "clips_per_second"}
    assert all(line["data_wait_seconds"] < line["step_seconds"] for line in steps)


def test_workers_and_parts_change_no_clip(tmp_path, videos, whole):
    workers = tiny_config(tmp_path / "workers", loading=Loading(workers=2))
    assert run_one(workers, videos) == 0
    assert equal_bits(final_bits(workers.out), final_bits(whole.out))
    parts = tiny_config(tmp_path / "parts", compute=Compute(accumulate=2))
    assert run_one(parts, videos) == 0
    assert [line["train"]["total"] for line in log_of(parts, "epoch")] == [20, 20, 20]


def test_from_the_command_line(tmp_path, videos, capsys):
    out = tmp_path / "out"
    options = [*videos.written(tmp_path), "--out", str(out), "--device", "cpu", "--threads", "1"]
    smaller = (
        "--optimization.epochs 2 --optimization.batch-size 4 --sampling.num-segments 4 --augmentation.crop-size 32 "
        "--validation.short-side 36 --validation.crop-size 32 --loading.workers 0 --compute.ema 0.5"
    )
    assert main(["fit", "demo", *options, *smaller.split()]) == 0
    assert "epoch 2/2" in capsys.readouterr().out
    state = torch.load(out / "checkpoints/step-00000010.pt", weights_only=True)
    average, raw = state["state_dict"]["fc.weight"], state["run"]["learner"]["model"]["fc.weight"]
    assert not torch.equal(average, raw)  # what is validated, tested and used is the average
    assert torch.equal(load_checkpoint(out / "checkpoints/step-00000010.pt").network.state_dict()["fc.weight"], average)
    assert main(["fit", "demo", *options, *smaller.split()]) == 1
    assert "holds a run already" in capsys.readouterr().err
    assert main(["fit", "demo", "--data.train", "x"]) == 1
    assert "data.train and data.val: both are needed" in capsys.readouterr().err


def test_balanced_classes_and_names_without_a_mirror_image(tmp_path, videos, capsys):
    names = ("falls left", "rises", "stays")
    skewed = videos.train.entries[:1] + tuple(entry for entry in videos.train.entries if entry.label)
    uneven = replace(
        videos,
        train=replace(videos.train, entries=skewed, class_names=names),
        val=replace(videos.val, class_names=names),
    )
    config = tiny_config(tmp_path / "run")
    recipe = replace(config.recipe, data=replace(config.recipe.data, balanced=True))
    assert run_one(replace(config, recipe=recipe), uneven) == 0
    assert capsys.readouterr().out.count("never flipped, as no single class is their mirror image: 'falls left'\n") == 1
    assert len(log_of(config, "epoch")) == 3


def test_loss_that_is_no_number_names_the_files(tmp_path, videos, monkeypatch, capsys):
    step = Learner.step
    asked: list[list[str]] = []

    def diverging(self, parts):
        result = step(self, parts)
        asked.append([str(videos.train.entries[i].path) for part in parts for i in part.indices.tolist()])
        return StepResult(result.loss * float("nan"), result.grad_norm) if self.steps == 8 else result

    monkeypatch.setattr(Learner, "step", diverging)
    config = tiny_config(tmp_path / "run")
    assert run_one(config, videos) == 1
    expected = f"the loss of step 8 is nan; its clips are of {', '.join(asked[7])}"
    assert f"error: {expected}\n" in capsys.readouterr().err
    assert log_of(config, "failed") == [{"event": "failed", "step": 8, "problems": [expected]}]
    assert (
        RunCheckpoints(config.out / "checkpoints", 3).by_age()[-1].name == "step-00000006.pt"
    )  # none of a diverged network


def test_watch():
    watch = FiniteWatch(norm_may_overflow=False)
    good = StepResult(torch.tensor(1.0), torch.tensor(2.0))
    watch.add(1, good, ["a"])
    assert watch.problem() is None
    watch.add(2, good._replace(grad_norm=torch.tensor(float("inf"))), [f"{i}.mp4" for i in range(20)])
    problem = watch.problem(wait=True)
    assert problem is not None
    assert "gradient norm of step 2 is inf" in problem
    assert problem.endswith("15.mp4 and 4 more")
    scaled = FiniteWatch(norm_may_overflow=True)
    scaled.add(2, good._replace(grad_norm=torch.tensor(float("inf"))), ["a"])
    assert scaled.problem() is None


def save_failing(monkeypatch, steps, error):
    """Let writing the checkpoints of some steps fail midway."""
    save = torch.save

    def failing(content, file):
        if content["run"]["learner"]["steps"] in steps:
            file.write(b"half of it")
            raise error
        save(content, file)

    monkeypatch.setattr(torch, "save", failing)


FULL = OSError(errno.ENOSPC, "No space left on device")


def test_disk_full_for_a_while(tmp_path, videos, whole, monkeypatch, capsys):
    save_failing(monkeypatch, {4, 5, 6}, FULL)
    config = tiny_config(tmp_path / "run")
    assert run_one(config, videos) == 0
    warnings = [line["message"] for line in log_of(config, "warning")]
    assert len(warnings) == 4
    assert "no checkpoint at step 4: " in warnings[0]
    assert "No space left on device; those before it are as they were" in warnings[0]
    assert warnings[0] in capsys.readouterr().out
    assert all(torch.equal(a, b) for a, b in zip(*(weights(c) for c in (config, whole)), strict=True))


def weights(config):
    return [tensor for name, tensor in final_bits(config.out).items() if name.startswith(".state_dict")]


def test_disk_full_at_the_end(tmp_path, videos, monkeypatch, capsys):
    save_failing(monkeypatch, {15}, FULL)
    config = tiny_config(tmp_path / "run")
    assert run_one(config, videos) == 1
    assert "error: no checkpoint at step 15: " in capsys.readouterr().err
    monkeypatch.undo()
    assert RunCheckpoints(config.out / "checkpoints", 3).by_age()[-1].name == "step-00000014.pt"
    assert run_one(replace(config, resume=True), videos) == 0


def test_a_file_that_kills_its_reader_is_replaced(tmp_path, videos, monkeypatch):
    victim, open_frames = videos.train.entries[5], dataset.open_frames

    def deadly(entry, decoder):
        if entry == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        return open_frames(entry, decoder)

    monkeypatch.setattr(dataset, "open_frames", deadly)
    config = tiny_config(tmp_path / "run", loading=Loading(workers=1))
    config = replace(config, recipe=replace(config.recipe, data=replace(config.recipe.data, max_bad_share=0.2)))
    assert run_one(config, videos) == 0
    unreadable = log_of(config, "unreadable")
    assert {line["path"] for line in unreadable} == {str(victim.path)}
    assert "the process that read it crashed or was killed" in unreadable[0]["reason"]


def test_readers_that_die_of_no_file_end_the_run_with_a_checkpoint(tmp_path, videos, whole, monkeypatch, capsys):
    from train.fit import run

    batches = run.training_batches

    class Dying:
        def __init__(self, *arguments):
            self.loader = batches(*arguments)

        def __iter__(self):
            for number, batch in enumerate(self.loader):
                if number == 7:
                    raise WorkerError("a process that reads videos died while it read none")
                yield batch

        def close(self):
            self.loader.close()

    config = tiny_config(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(run, "training_batches", Dying)
        assert run_one(config, videos) == 1
    assert "error: a process that reads videos died" in capsys.readouterr().err
    assert RunCheckpoints(config.out / "checkpoints", 3).by_age()[-1].name == "step-00000007.pt"
    assert run_one(replace(config, resume=True), videos) == 0
    assert equal_bits(final_bits(config.out), final_bits(whole.out))


def test_bad_videos(tmp_path, videos, capsys):
    data = replace(videos, train=without(videos.train, 3), val=without(videos.val, 1, 2))
    config = tiny_config(tmp_path / "strict")
    strict = replace(config.recipe, data=replace(config.recipe.data, max_bad_share=0.0))
    assert run_one(replace(config, recipe=strict), data) == 1
    assert "error: too many training videos cannot be read: 1 of" in capsys.readouterr().err
    config = tiny_config(tmp_path / "run")
    assert run_one(config, data) == 0  # one of 22 is 4.5 %
    unreadable, left_out = log_of(config, "unreadable"), log_of(config, "left_out")
    assert {line["path"].partition("/missing")[0] for line in unreadable} == {str(videos.train.entries[3].path)}
    assert {line["path"].partition("/missing")[0] for line in left_out} == {
        str(videos.val.entries[i].path) for i in (1, 2)
    }
    assert {line["val"]["left_out"] for line in log_of(config, "epoch")} == {2}
    assert {line["val"]["total"] for line in log_of(config, "epoch")} == {5}


def test_tensorboard_gets_the_curves(tmp_path, videos):
    config = tiny_config(tmp_path / "run", tensorboard=True)
    assert run_one(config, videos) == 0
    curves = EventAccumulator(str(config.out / "tensorboard")).Reload()
    steps, epochs = log_of(config, "step"), log_of(config, "epoch")
    assert [event.step for event in curves.Scalars("train/loss")] == [line["step"] for line in steps]
    np.testing.assert_allclose([e.value for e in curves.Scalars("train/loss")], [s["loss"] for s in steps], rtol=1e-6)
    assert [event.value for event in curves.Scalars("epoch/val/top1")] == pytest.approx(
        [e["val"]["top1"] for e in epochs]
    )


def test_data_that_do_not_suit(tmp_path, videos, capsys):
    empty = Split("val", (), videos.val.class_names)
    other = Split("val", videos.val.entries, ("a", "b", "c"))
    four = Split("val", videos.val.entries, (*videos.val.class_names, "d"))
    for split, message in ((empty, "holds no videos"), (other, "different class names"), (four, "has 4 classes")):
        assert run_one(tiny_config(tmp_path / "run"), replace(videos, val=split)) == 1
        assert message in capsys.readouterr().err
    views = tiny_config(tmp_path / "run")
    views = replace(views, recipe=replace(views.recipe, validation=replace(views.recipe.validation, crops=3)))
    assert run_one(views, videos) == 1
    assert "validation: got 3 views of a video, expected 1" in capsys.readouterr().err
    large = tiny_config(tmp_path / "run")
    large = replace(large, recipe=replace(large.recipe, optimization=replace(large.recipe.optimization, batch_size=23)))
    assert run_one(large, videos) == 1
    assert "number of videos, 22; got 23" in capsys.readouterr().err


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 7, 8, 100, 1024, 5000])
def test_largest_batch(limit):
    tried = []

    def fits(count):
        tried.append(count)
        return count <= limit

    assert find_largest(fits) == min(limit, 1024)
    assert len(tried) <= 22


def test_report_of_the_batch_finder():
    text = report(12, {8: 3 * 2**30, 12: 4 * 2**30}, wanted=64)
    assert "12     4.00 GiB" in text
    assert "at most 12 clips fit; one process does the 64 of a step with --compute.accumulate 8" in text
    assert "not even one clip fits" in report(0, {}, wanted=64)


def test_batch_finder_needs_a_gpu(capsys):
    with pytest.raises(InputError, match="not available on the CPU"):
        find_batch(RECIPES["demo"], 3, Compute(), torch.device("cpu"))
    learner = batch_finder._learner(RECIPES["demo"], 3, Compute(), torch.device("cpu"))
    weight = learner.network.get_parameter("fc.weight")
    before = weight.detach().clone()
    assert learner.step([batch_finder._random_batch(RECIPES["demo"], 3, 2)]).loss.isfinite()
    torch.testing.assert_close(weight.detach(), before)
    assert main(["fit", "demo", "--find-batch", "--device", "cpu"]) == 1
    assert "find_batch: is not available on the CPU" in capsys.readouterr().err


@pytest.mark.parametrize("environment", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "two", "RANK": "0"}])
def test_incomplete_environment(environment):
    with pytest.raises(InputError, match="torchrun sets all three"), join_team("cpu", 1, environment):
        pass


def test_devices(monkeypatch):
    assert choose_device("cpu", 7) == torch.device("cpu")
    with pytest.raises(InputError, match="got 'tpu'"):
        choose_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(InputError, match="no GPU here"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="process 3 of this node has no GPU of its own: there are 2"):
        choose_device("cuda", 2)


def test_alone():
    team = Team(torch.device("cpu"))
    assert (team.leads, team.all_reduce_max(3), team.gather("a"), team.on_leader(lambda: "b")) == (True, 3, ["a"], "b")
    assert team.total(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]
    with pytest.raises(InputError, match="no"):
        team.on_leader(lambda: (_ for _ in ()).throw(InputError("no")))
