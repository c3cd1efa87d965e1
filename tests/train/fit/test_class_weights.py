import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.fit_runs import Videos, run_one, tiny_config
from train.data.entries import Entry, Split
from train.errors import InputError
from train.fit.class_weights import class_weights
from train.recipe import BALANCED
from train.recipes import RECIPES

NAMES = ("falls", "é steigt", "stays, still", "never")


def split_of(*labels):
    return Split("train", tuple(Entry(Path(f"{i}.mp4"), label) for i, label in enumerate(labels)), NAMES)


TRAIN = split_of(0, 0, 0, 1, 1, 2)


def test_balanced():
    """n / (k · nₖ), 1 on average over the videos; a class without a video weighs as with one."""
    weights = class_weights(BALANCED, TRAIN)
    assert weights is not None
    assert weights.tolist() == pytest.approx([2 / 3, 1, 2, 2])
    assert sum(weights[entry.label].item() for entry in TRAIN.entries) / 6 == pytest.approx(1)
    assert class_weights(None, TRAIN) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("w.json", '{"stays, still": 0, "falls": 1.5, "never": 3, "e\u0301 steigt": 2e-1}'),
        ("w.csv", 'class,weight\nfalls,1.5\n"stays, still", 0\n\ne\u0301 steigt,0.2\nnever,3\n'),
        ("w.txt", '\ufefffalls,1.5\r\nnever,3\r\n"stays, still",0\r\n\u00e9 steigt,0.2'),
    ],
)
def test_of_a_file(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    weights = class_weights(str(path), TRAIN)
    assert weights is not None
    assert weights.tolist() == pytest.approx([1.5, 0.2, 0, 3])


def as_json(**changes):
    return json.dumps(dict.fromkeys(NAMES, 1) | changes)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("w.json", as_json(rises=1), r"w\.json: 'rises' is none of the 4 classes"),
        (
            "w.json",
            '{"falls": 1, "never": 2}',
            r"w\.json: has no weight for 'é steigt', one of 2 classes that it lacks",
        ),
        ("w.json", as_json(falls=-1), r"w\.json: the weight of 'falls' must be a finite number from 0 on, got -1"),
        ("w.json", as_json(falls=True), r"must be a finite number from 0 on, got True"),
        ("w.json", as_json(falls=[1]), r"must be a finite number from 0 on, got \[1\]"),
        ("w.json", as_json(falls=10**400), r"must be a finite number from 0 on, got 1000"),
        ("w.json", as_json(falls=1e39), r"must be a finite number from 0 on, got 1e\+39"),
        ("w.json", '{"falls": NaN}', r"must be a finite number from 0 on, got nan"),
        ("w.json", '{"falls": 1, "falls": 2}', r"w\.json: 'falls' is there twice"),
        ("w.json", json.dumps(dict.fromkeys(NAMES, 0)), r"w\.json: all weights are 0, expected one above 0 at least"),
        ("w.json", "[1, 2, 3, 4]", r"w\.json: expected an object of names and weights"),
        ("w.json", "{}", r"w\.json: expected an object of names and weights"),
        ("w.json", '{"falls": 1', r"w\.json, line 1: is not JSON"),
        ("w.csv", "falls,1\nrises,1\n", r"w\.csv, line 2: 'rises' is none of the 4 classes"),
        ("w.csv", "falls\n", r"w\.csv, line 1: expected a class and its weight, got 1 fields"),
        ("w.csv", "falls,much\n", r"line 1: the weight of 'falls' must be a finite number from 0 on, got 'much'"),
        ("w.csv", "falls,inf\n", r"line 1: the weight of 'falls' must be a finite number from 0 on, got 'inf'"),
        ("w.csv", "", r"w\.csv: has no weight for 'falls', one of 4 classes that it lacks"),
        ("w.csv", "\udcff", r"w\.csv: is not a text file in UTF-8"),
    ],
)
def test_files_that_are_refused(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=message):
        class_weights(str(path), TRAIN)


def test_balanced_twice_is_refused():
    recipe = RECIPES["own"]
    weighted = replace(recipe, optimization=replace(recipe.optimization, class_weights=BALANCED))
    with pytest.raises(
        InputError, match=r"class_weights: got 'balanced', expected None or a file where data\.balanced"
    ):
        replace(weighted, data=replace(recipe.data, balanced=True))


def test_a_run_by_them(tmp_path, capsys):
    """Refused before anything is written; and the file's content, not its name, makes a run another."""
    videos, path = Videos.make(tmp_path), tmp_path / "weights.json"
    config = tiny_config(tmp_path / "run")
    optimization = replace(config.recipe.optimization, class_weights=str(path), epochs=1)
    config = replace(config, recipe=replace(config.recipe, optimization=optimization))
    assert run_one(config, videos) == 1
    assert f"error: {path}: no such file or directory" in capsys.readouterr().err
    path.write_text('{"falls": 1, "rises": 2}')
    assert run_one(config, videos) == 1
    assert "has no weight for 'stays'" in capsys.readouterr().err
    assert not config.out.exists()
    path.write_text('{"falls": 1, "rises": 2, "stays": 0.5}')
    assert run_one(config, videos) == 0
    assert f"beyond the published recipes: class weights {path}" in capsys.readouterr().out
    moved = path.rename(tmp_path / "moved.json")
    again = replace(config, resume=True)
    optimization = replace(optimization, class_weights=str(moved))
    again = replace(again, recipe=replace(config.recipe, optimization=optimization))
    assert run_one(again, videos) == 0
    moved.write_text('{"falls": 1, "rises": 2, "stays": 1}')
    assert run_one(again, videos) == 1
    assert "data.class weights: was '3 weights, digest" in capsys.readouterr().err
