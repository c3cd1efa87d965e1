"""Systems are compared on equal data, by equal seeds; what was done stays, what fails is a row."""

import csv
import json
import re
import shutil
from dataclasses import fields, replace
from statistics import mean, stdev

import matplotlib.image
import pytest

import train.compare.compare
import train.fit.fit
from tests.support.fit_runs import Videos, tiny_config
from train.__main__ import main
from train.compare.compare import run_compare
from train.compare.config import SMALL_SCALE, CompareConfig
from train.compare.report import RunResult, describe, summarize
from train.errors import InputError
from train.fit.config import FitConfig
from train.fit.stopping import FiniteWatch
from train.networks import build_network, check_network
from train.recipes import RECIPES

SYSTEMS, SEEDS = ("c2d", "tanet"), (0, 5)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    options = Videos.make(folder).written(folder)
    return {"train": options[1], "val": options[3]}


def config_for(out, data, **changes):
    fit = tiny_config(out)
    recipe = fit.recipe
    recipe = replace(
        recipe,
        data=replace(recipe.data, train=out.parent / data["train"], val=out.parent / data["val"]),
        optimization=replace(recipe.optimization, epochs=1),
        test=recipe.validation,
        seed=0,
    )
    options = {field.name: getattr(fit, field.name) for field in fields(FitConfig)}
    del options["resume"]
    return CompareConfig(**options | {"recipe": recipe, "systems": SYSTEMS, "seeds": SEEDS} | changes)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def compared(tmp_path_factory, data):
    """(its configuration, the files of each run's steps in their order)."""
    config = config_for(tmp_path_factory.mktemp("compared") / "out", data)
    orders: list[list[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        add, fit = FiniteWatch.add, train.compare.compare.fit

        def noted_add(self, step, result, files):
            orders[-1] += files
            add(self, step, result, files)

        def noted_fit(*arguments, **options):
            orders.append([])
            return fit(*arguments, **options)

        patch.setattr(FiniteWatch, "add", noted_add)
        patch.setattr(train.compare.compare, "fit", noted_fit)
        assert run_compare(config) is None
    return config, orders


def test_all_systems_see_the_same_videos_in_the_same_order(compared):
    (first_c2d, first_tanet, second_c2d, second_tanet) = compared[1]
    assert len(first_c2d) == 20  # 5 steps of 4 clips
    assert first_c2d == first_tanet
    assert second_c2d == second_tanet
    assert first_c2d != second_c2d


def test_tables(compared):
    out = compared[0].out
    runs = rows(out / "runs.csv")
    assert [(row["system"], row["seed"]) for row in runs] == [(s, str(n)) for n in SEEDS for s in SYSTEMS]
    for row in runs:
        folder = out / row["system"] / f"seed-{row['seed']}"
        tested = json.loads((folder / "test/result.json").read_text())
        validated = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        (val,) = [line["val"] for line in validated if line["event"] == "epoch"]
        assert float(row["top1"]) == tested["top1"] == val["top1"]
        assert row["problem"] == ""
    table = rows(out / "table.csv")
    assert [row["system"] for row in table] == list(SYSTEMS)
    for row in table:
        top1 = [float(run["top1"]) for run in runs if run["system"] == row["system"]]
        assert float(row["top1"]) == pytest.approx(mean(top1))
        assert float(row["top1_std"]) == pytest.approx(stdev(top1))
        recipe = compared[0].run(row["system"], 0).recipe
        network = build_network(recipe.model, 3, 4)
        assert int(row["parameters"]) == sum(parameter.numel() for parameter in network.parameters())
        assert float(row["clips_per_second"]) > 0
    c2d, tanet = (int(row["macs"]) for row in table)
    assert c2d < tanet < 1.1 * c2d
    assert matplotlib.image.imread(out / "accuracy_over_cost.png").std() > 0.02


def test_what_is_done_is_not_done_again(compared, monkeypatch, capsys):
    config, _ = compared
    before = (config.out / "table.csv").read_text()
    monkeypatch.setattr(train.compare.compare, "fit", None)  # any training would fail
    assert run_compare(config) is None
    assert (config.out / "table.csv").read_text() == before
    printed = capsys.readouterr().out
    assert printed.count("is there already") == 4
    assert SMALL_SCALE in printed
    assert re.search(r"tanet +2 +\d+\.\d\d ± \d+\.\d\d", printed)


def test_what_was_done_before_a_field_was_added_is_not_done_again(compared, tmp_path, monkeypatch):
    config, _ = compared
    older = replace(config, out=tmp_path / "older")
    shutil.copytree(config.out, older.out)
    for path in older.out.glob("*/seed-*/comparison.json"):
        noted = json.loads(path.read_text())
        for group, field in (("optimization", "nesterov"), ("optimization", "norm_decay"), ("data", "balanced")):
            del noted["identity"]["recipe"][group][field]
        path.write_text(json.dumps(noted))
    monkeypatch.setattr(train.compare.compare, "fit", None)  # any training would fail
    assert run_compare(older) is None


def test_runs_of_another_schedule_are_not_lengthened(compared, tmp_path, data, capsys):
    """They would stand beside others that learned by the whole of the new one."""
    config, _ = compared
    recipe = replace(config.recipe, optimization=replace(config.recipe.optimization, epochs=2))
    longer = replace(config, out=tmp_path / "longer", recipe=recipe, systems=("c2d",), seeds=(0, 7))
    shutil.copytree(config.out / "c2d" / "seed-0", longer.out / "c2d" / "seed-0")
    assert run_compare(longer) is None
    refused, done = rows(longer.out / "runs.csv")
    assert "these settings: recipe.optimization.epochs: was 1, is 2" in refused["problem"]
    assert not refused["problem"].endswith("more")
    assert (done["seed"], done["problem"]) == ("7", "")


def test_a_run_that_fails_is_a_row_and_the_others_go_on(compared, tmp_path, data, capsys, monkeypatch):
    check = train.fit.fit.check_network

    def refusing(model, *args):
        if model.system == "tsm":
            raise InputError("model: nothing to shift")
        return check(model, *args)

    monkeypatch.setattr(train.fit.fit, "check_network", refusing)
    config = config_for(tmp_path / "out", data, systems=("tsm", "c2d"), seeds=(0,))
    assert run_compare(config) is None
    failed, done = rows(config.out / "runs.csv")
    assert failed["problem"] == "model: nothing to shift"
    assert (failed["system"], failed["top1"]) == ("tsm", "")
    assert done["problem"] == ""
    table = rows(config.out / "table.csv")
    assert [(row["system"], row["runs"], row["failed"]) for row in table] == [("tsm", "0", "1"), ("c2d", "1", "0")]
    assert "tsm, seed 0 failed: model: " in capsys.readouterr().out


def test_a_stopped_comparison_goes_on(compared, tmp_path, data, monkeypatch):
    """Stopped within the second run: the first stays, the second goes on to what the unbroken one gave."""
    config = config_for(tmp_path / "out", data, seeds=(0,))
    fit, calls = train.compare.compare.fit, []

    def stopping(config, train, val, team, stop, **options):
        calls.append(config.out)
        if len(calls) == 2:
            stop.receive(15)
        return fit(config, train, val, team, stop, **options)

    monkeypatch.setattr(train.compare.compare, "fit", stopping)
    assert run_compare(config) == 15
    assert len(rows(config.out / "runs.csv")) == 1
    assert run_compare(config) is None
    assert calls == [config.out / "c2d/seed-0", *[config.out / "tanet/seed-0"] * 2]
    unbroken = [row for row in rows(compared[0].out / "runs.csv") if row["seed"] == "0"]
    assert [row["top1"] for row in rows(config.out / "runs.csv")] == [row["top1"] for row in unbroken]


def test_one_run_has_no_deviation():
    (summary,) = summarize([RunResult("tsm", 0, 0.5, 1.0, 8, 0, 10, 2_000_000_000, 3.0)])
    assert (summary.top1, summary.top1_std, summary.top5_std) == (0.5, None, None)
    assert re.search(r"tsm +1 +50\.00 +100\.00 +10 +2\.000 +3\.0", describe([summary], []))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"systems": ("c2d", "i4d")}, r"compareconfig\.systems: got \('c2d', 'i4d'\), expected a tuple, .*'tanet'"),
        ({"systems": ()}, r"systems: got \(\), expected at least one, none of them twice"),
        ({"seeds": (1, 1)}, r"seeds: got \(1, 1\), expected at least one, none of them twice"),
        ({"seeds": (-1,)}, r"recipe\.seed: got -1, expected at least 0"),
        ({"systems": ("slowfast_8x8",)}, r"model\.backbone: got 'small', expected resnet50 for slowfast_8x8"),
    ],
)
def test_what_cannot_be_compared(changes, message, tmp_path, data):
    with pytest.raises(InputError, match=message):
        config_for(tmp_path / "out", data, **changes)
    assert not (tmp_path / "out").exists()


def test_slowfast_beside_others_needs_a_recipe_that_both_can_have(tmp_path, data):
    """Refused while the options are read, so before anything is trained; by a recipe of SlowFast's own it goes."""

    def config_of(recipe, **changes):
        return CompareConfig(recipe=recipe, out=tmp_path / "out", systems=("c2d", "tanet", "slowfast_4x16"), **changes)

    kinetics, slowfast = RECIPES["k400-8f"], RECIPES["k400-slowfast-8x8"]
    with pytest.raises(InputError, match=r"model\.weights: got 'IMAGENET1K_V1', expected None for slowfast_4x16"):
        config_of(kinetics)
    with pytest.raises(InputError, match=r"num_segments: got 8, expected 32 for slowfast_4x16, its fast pathway"):
        config_of(replace(kinetics, model=replace(kinetics.model, weights=None)))
    config = config_of(slowfast)
    models = [config.run(system, 0).recipe.model for system in config.systems]
    assert [(model.system, model.backbone, model.weights) for model in models] == [
        (system, "resnet50", None) for system in config.systems
    ]
    for model in models:
        check_network(model, 3, slowfast.sampling.num_segments)


def test_on_the_command_line(compared, data, capsys):
    options = ["--data.train", data["train"], "--data.val", data["val"], "--out", "unused", "--systems", "c2d", "i4d"]
    with pytest.raises(SystemExit):
        main(["compare", "demo", *options])
    assert "i4d" in capsys.readouterr().err
    assert main(["compare", "demo", "--systems", "c2d", "--seeds", "0", "--out", "unused", "--device", "cpu"]) == 1
    assert "data.train and data.val: both are needed" in capsys.readouterr().err
