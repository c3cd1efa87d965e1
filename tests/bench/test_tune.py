"""`python -m bench tune`: the search, what it refuses, and a file from the command line."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from bench import offline, tune
from bench.__main__ import main
from tam_triton.kernels import launch, tuned
from tam_triton.kernels.launch import Block
from tests.bench.test_static import run_bench

KEY = ("temporal_block", 64, 3136, False, 2)


def test_the_search_goes_from_best_to_best() -> None:
    """A valley two steps away; what was tried once is not tried again."""
    tried: list[Block] = []

    def cost(block: Any) -> float:
        tried.append(block)
        return abs(block.vectors - 128) + abs(block.ahead - 4)

    start = Block(32, 8, 1)
    costs = tune.climb(KEY, start, {start: cost(start)}, cost, tries=100)
    assert min(costs, key=costs.__getitem__) == Block(128, 8, 4)
    assert len(tried) == len(set(tried)) == len(costs)
    assert len(tune.climb(KEY, start, {start: 0.0}, cost, tries=3)) == 3


@dataclass
class Stand:
    """A site whose times are known."""

    options: Any = field(default_factory=lambda: SimpleNamespace(measure=True))
    tries: int = 12

    def call(self, operator: str) -> Any:
        return lambda: operator

    def time(self, operator: str) -> float:
        block = launch.temporal_block(*KEY[1:])
        if block.vectors > 64:
            raise RuntimeError("out of registers\nand more")
        return 100.0 / block.vectors

    def require_agreement(self, operator: str, usual: object) -> None:
        assert launch.temporal_block(*KEY[1:]).ahead < 8, "other results"


def test_what_fails_is_refused_and_told() -> None:
    """Results that are others, and what the compiler refuses; two operators count together."""
    site: Any = Stand()
    with mock.patch.object(launch, "ASSUMED", launch.Device(132, 32)):
        found = tune.best(site, KEY, ["aggregate", "input_gradient"])
    assert found.usual == launch.temporal_block(*KEY[1:])
    assert found.best == replace(found.usual, vectors=64)
    assert (found.usual_time, found.best_time) == (200 / 32, 200 / 64)
    assert found.gain == pytest.approx(0.5)
    assert {"out of registers", "other results"} <= set(found.refused.values())
    assert "vectors 32 → 64" in str(found)
    assert launch.CHOSEN == {}


def test_a_file_that_the_library_reads(tmp_path: Path) -> None:
    """Predicted, of one small shape, in a process that compiles; the library takes it in one that interprets."""
    file = tmp_path / "new" / "tuned.json"
    done = run_bench(
        "tune", "--out", str(file), "--shapes", "64", "14", "--operators", "squeeze", "--tries", "5", "--jobs", "1",
        "--least", "0", "--no-measure", "--layouts", "nchw",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "PREDICTED" in done.stdout
    document = json.loads(file.read_text())
    assert document["where"] == {"target": "cuda:90", "multiprocessors": 132, "warp_size": 32}
    for entry in document["launches"]:
        assert entry["rule"] == "squeeze_tile"
        assert entry["times"] == "predicted"
        assert entry["microseconds"] < entry["usual_microseconds"]
    assert len(tuned.read(file)) == len(document["launches"])
    assert f"wrote {file}: {len(document['launches'])} of 1 launches" in done.stdout


def test_what_was_found_is_kept_where_a_later_shape_ends_all(tmp_path: Path) -> None:
    """Such as a GPU that is lost, or a user who has no more time."""
    usual = launch.temporal_block(*KEY[1:])
    found = tune.Found(KEY, ("aggregate",), usual, replace(usual, vectors=64), 2.0, 1.0, 3)

    def parts(*_: Any) -> Iterator[list[tune.Found]]:
        yield [found]
        raise KeyboardInterrupt

    file = tmp_path / "tuned.json"
    with mock.patch.object(tune.predict, "in_parallel", parts), pytest.raises(KeyboardInterrupt):
        tune.run(tune.Tune(file, measure=False))
    assert tuned.read(file) == {KEY: replace(usual, vectors=64)}


def test_what_is_asked_is_seen() -> None:
    asked = tune.Asked()
    with mock.patch.object(launch, "CHOSEN", asked), offline.absent("sm_90"):
        usual = launch.temporal_block(*KEY[1:])
        launch.band_tile(8, 64, 49, True, 4, 2)
        launch.temporal_block(*KEY[1:])
    assert asked.keys_asked == [KEY, ("band_tile", 8, 64, 49, True, 4, 2)]
    assert usual == Block(32, 8, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "gfx942"], "target: got gfx942"),
        (["--rules", "squeeze"], "rules: got squeeze, expected some of temporal_block"),
        (["--operators", "squeezed"], "operators: got squeezed"),
        (["--tries", "0"], "tries: got 0, expected at least 1"),
        (["--least", "1"], "least: got 1.0"),
        (["--measure"], "measure: got True, but torch finds no GPU here"),
    ],
)
def test_wrong_options_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["tune", "--out", "t.json", *arguments])
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.gpu
def test_times_and_results_on_a_gpu(tmp_path: Path) -> None:
    file = tmp_path / "tuned.json"
    arguments = ["--shapes", "64", "14", "--operators", "squeeze", "batch_statistics", "--tries", "4"]
    assert main(["tune", "--out", str(file), *arguments, "--layouts", "channels_last", "--least", "0"]) == 0
    entries = json.loads(file.read_text())["launches"]
    assert all(entry["times"] == "measured" for entry in entries)
    assert tuned.use(file) == len(entries)
    assert tuned.use(None) == 0
