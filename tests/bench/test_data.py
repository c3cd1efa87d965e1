"""`python -m bench data`: its files are what they are said to be, and both pipelines read the same clips from them."""

import json
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from bench import data, memory, videos
from bench.__main__ import main
from bench.timing import Time
from tam_triton.clips import normalize
from train.data.check import check
from train.data.dataset import ClipKey, TrainingClips
from train.data.entries import Entry, Split
from train.data.index import Checked
from train.data.transforms import Augmentation


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    """Two short VP9 files."""
    return videos.make_files("ssv2", tmp_path_factory.mktemp("files"), 2)


def test_the_files_are_whole_and_differ(entries: list[Entry]) -> None:
    for number, entry in enumerate(entries):
        assert check(number, entry) == Checked(number, entry)
    first, second = (entry.path.read_bytes() for entry in entries)
    assert first != second
    assert 40 < len(first) / 1024 < 200  # the real ones have about 90 KiB


def test_every_kind_can_be_asked_for() -> None:
    assert get_args(data.Files) == tuple(videos.KINDS) == data.Data().files


def pipelines(entries: list[Entry]) -> tuple[TrainingClips, TrainingClips]:
    split, sampling = Split("ssv2", tuple(entries), data.NAMES), videos.KINDS["ssv2"].sampling
    return (
        TrainingClips(split, sampling, Augmentation(), 0),
        data.Usual(split, sampling, data.PerFrame(), 0),
    )


def test_the_pipelines_give_the_same_clips(entries: list[Entry]) -> None:
    ours, usual = pipelines(entries)
    for key in (ClipKey(epoch, 0) for epoch in range(4)):  # some are flipped
        mine, other = ours[key], usual[key]
        assert mine.clips is not None
        assert other.clips is not None
        assert mine.label == other.label
        assert (mine.clips.dtype, other.clips.dtype) == (torch.uint8, torch.float32)
        clips = normalize(mine.clips)
        near = (clips - other.clips).abs().mean()
        assert near < 0.2 * (clips - other.clips.flip(-1)).abs().mean()
    sizes = data.agree("ssv2", ours, usual, [ClipKey(0, 0)])
    assert sizes == {"ours": 8 * 224 * 224 * 3, "usual": 4 * 8 * 224 * 224 * 3}


def test_no_time_is_taken_of_other_clips(entries: list[Entry]) -> None:
    class Shifted(data.PerFrame):
        def draw_crop(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
            top, left, crop_height, crop_width = super().draw_crop(height, width, rng)
            return top, (left + 80) % (width - crop_width + 1), crop_height, crop_width

    ours, usual = pipelines(entries)
    usual.augmentation = Shifted()
    with pytest.raises(RuntimeError, match="clips differ by"):
        data.agree("ssv2", ours, usual, [ClipKey(0, 0), ClipKey(1, 1)])


def test_a_run_writes_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []

    def growth(paths: list[Path], opens: int) -> memory.Growth:
        opened.append(opens)
        return memory.Growth(100, opens, 100.0, 100.5)

    monkeypatch.setattr(data, "growth", growth)
    file = tmp_path / "new" / "data.json"
    arguments = ["--files", "ssv2", "--videos", "1", "--clips", "2", "--rounds", "2", "--workers", "1", "--opens", "9"]
    assert main(["data", *arguments, "--out", str(file)]) == 0
    document = json.loads(file.read_text())
    rows = {(row["pipeline"], row["workers"]): row for row in document["rows"]}
    assert set(rows) == {("decoding", 0), ("ours", 0), ("usual", 0), ("ours", 1), ("usual", 1)}
    for (pipeline, workers), row in rows.items():
        assert math.isclose(row["clips_per_second"] * row["time"]["median"], 1000)
        usual = rows["usual", workers]["clips_per_second"]
        expected = None if pipeline == "decoding" else row["clips_per_second"] / usual
        assert row["over_usual"] == (expected if expected is None else pytest.approx(expected))
    assert rows["decoding", 0]["clip_bytes"] == 8 * 240 * 427 * 3
    assert document["memory"] == [{"warm_up": 100, "opens": 9, "before": 100.0, "after": 100.5}]
    assert opened == [9]


def test_memory_is_measured_in_a_process_of_its_own(entries: list[Entry]) -> None:
    found = memory.growth([entry.path for entry in entries], opens=4, warm_up=3)
    assert (found.warm_up, found.opens) == (3, 4)
    assert 20 < found.before < 2000  # MiB
    assert abs(found.after - found.before) < 50


@pytest.mark.parametrize(
    ("field", "value"), [("videos", 0), ("clips", 0), ("rounds", 0), ("opens", -1), ("workers", (3,)), ("files", ())]
)
def test_what_cannot_be_measured_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field}: got"):
        data.Data(**{field: value})


def test_a_line_shows_the_figures() -> None:
    row = data.Row("ssv2", "ours", 1, Time(20.0, 0.5, 3), 50.0, 1.75, 1_204_224, 90.0)
    for text in ("20.000±0.500", "50.0", "1.75×", "1.20"):
        assert text in data.line(row)
