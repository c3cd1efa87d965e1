"""How much of its index a score is of: what vanished is counted wherever it went, in print and in what is saved."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from tests.support.fit_runs import Videos
from tests.train.evaluation.test_scores import make_scores
from tests.train.evaluation.test_testing import SMALL, make_trained, make_video
from train.__main__ import main
from train.checkpoint import save_checkpoint
from train.data.dataset import Views
from train.data.entries import Split
from train.data.index import Checked, IndexWriter
from train.errors import InputError
from train.evaluation.ensemble import average_scores
from train.evaluation.scores import Missing, VideoScores
from train.fit.config import Compute
from train.fit.resume import describe_run
from train.recipes import RECIPES

NAMES = ("falls", "rises", "stays")
GONE = "missing when the index was made"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six videos, the last of which `prepare` found missing, and a network that was validated on the five."""
    folder = tmp_path_factory.mktemp("whole")
    entries = tuple(make_video(folder / "videos" / f"{number}", 8, number) for number in range(5))
    gone = replace(entries[0], path=folder / "videos" / "gone")
    write_index(folder / "val.jsonl", (*entries, gone), gone)
    sampling = replace(RECIPES["demo"].sampling, num_segments=4)
    trained = make_trained(sampling=sampling, test=Views("spread", 1, 1, short_side=40, crop_size=40))
    recipe = replace(trained.recipe, data=replace(trained.recipe.data, val=folder / "val.jsonl"))
    usable = Split("val", entries, NAMES)
    run = {"identity": describe_run(recipe, Compute(), usable, usable, None)}
    save_checkpoint(folder / "network.pt", replace(trained, recipe=recipe), run)
    return folder


@pytest.fixture
def folder(data, tmp_path):
    """A copy of it; the index and the checkpoint's `data.val` are those of `data`."""
    return shutil.copytree(data, tmp_path / "whole")


def write_index(path, entries, gone=None):
    with IndexWriter(path, Split("val", entries, NAMES), path.parent, {}) as writer:
        for number, entry in enumerate(entries):
            writer.write(Checked(number, entry, *(("missing", "no such folder") if entry == gone else ())))


def test_each_way_to_vanish_is_counted(folder, capsys):
    shutil.rmtree(folder / "videos" / "1")
    for picture in (folder / "videos" / "3").iterdir():
        picture.write_bytes(b"no picture")
    command = ["test", str(folder / "network.pt"), "--data", str(folder / "val.jsonl"), "--root", str(folder), *SMALL]
    assert main([*command, "--out", str(folder / "out")]) == 0
    causes = {"missing now": 1, "unreadable now": 1, GONE: 1}
    text = "".join(f", 1 {cause}" for cause in causes)
    assert f"\ntested 3 of 6 videos of the index{text}\ntop-1 " in capsys.readouterr().out
    result = json.loads((folder / "out" / "result.json").read_text())
    assert (result["entries"], result["videos"], result["missing"], result["not_tested"]) == (6, 3, 3, causes)
    scores = VideoScores.load(folder / "out" / "scores.npz")
    assert (scores.entries, len(scores), scores.causes) == (6, 3, causes)


def test_an_index_made_of_fewer_videos_than_the_run_validated_on(data, tmp_path, capsys):
    command = ["test", str(data / "network.pt"), *SMALL, "--out"]
    assert main([*command, str(tmp_path / "all")]) == 0
    out = capsys.readouterr().out
    assert f"\ntested 5 of 6 videos of the index, 1 {GONE}\n" in out
    assert "warning" not in out
    before = (data / "val.jsonl").read_bytes()
    (data / "val.jsonl").unlink()
    write_index(data / "val.jsonl", tuple(make_video(tmp_path / f"{number}", 8, number) for number in range(3)))
    try:
        assert main([*command, str(tmp_path / "fewer")]) == 0
    finally:
        (data / "val.jsonl").write_bytes(before)
    out = capsys.readouterr().out
    assert "\ntested 3 of 3 videos of the index\n" in out
    assert f"\nwarning: {data / 'val.jsonl'} has other videos than the run validated on: 3 entries, digest" in out
    assert "; then 5 entries, digest" in out
    assert VideoScores.load(tmp_path / "fewer" / "scores.npz").protocol["in_training"].startswith("5 entries, digest")


def test_lines_that_vanished_from_an_index(folder, capsys):
    lines = (folder / "val.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "val.jsonl").write_bytes(b"".join(lines[:3] + lines[4:]))
    assert main(["test", str(folder / "network.pt"), "--data", str(folder / "val.jsonl"), *SMALL]) == 1
    assert "is not finished, 5 of 6 entries are checked" in capsys.readouterr().err


def test_rows_that_vanished_from_a_file_of_scores(tmp_path):
    path = tmp_path / "scores.npz"
    make_scores(missing=(Missing("x", 6, "torn"),)).save(path)
    with np.load(path) as arrays:
        content = dict(arrays)
    assert content["entries"] == 31
    rows = {name: content[name][:25] for name in ("videos", "labels", "scores")}
    np.savez(path, **(content | rows))
    with pytest.raises(InputError, match=r"scores.npz: has scores of 25 videos and lacks those of 1, expected 31 in"):
        VideoScores.load(path)
    older = {name: content[name] for name in content if name not in ("entries", "missing_causes")}
    np.savez(path, **older)  # as before there were these two
    assert VideoScores.load(path).missing == (Missing("x", 6, "torn", "missing"),)


def test_scores_of_unlike_lists_are_not_combined(tmp_path, capsys):
    names = tuple(f"v{number:02d}.mp4" for number in range(30))
    whole, part = make_scores(1), make_scores(2, 24, videos=("w.mp4", *names[5:28]), labels=np.arange(30)[4:28] % 5)
    whole.save(tmp_path / "a.npz")
    part.save(tmp_path / "b.npz")
    command = ["ensemble", str(tmp_path / "a.npz"), str(tmp_path / "b.npz"), "--out", str(tmp_path / "out")]
    assert main(command) == 1
    expected = (
        "b.npz: has scores for other videos than {}a.npz, 24 of 24 against 30 of 30: 7 lacking (v00.mp4, v01.mp4, "
        "v02.mp4 and 4 more), 1 only there (w.mp4); --common"
    )
    assert expected.format(f"{tmp_path}/") in capsys.readouterr().err
    assert main([*command, "--common"]) == 0
    out = capsys.readouterr().out
    assert "\ntested 23 of 31 videos of all files, 7 not in" in out
    assert f", 1 not in {tmp_path / 'a.npz'}\n" in out


def test_lists_that_differ_by_videos_without_scores_only():
    """Both have scores for the same videos, but of 30 in all and of 33."""
    gone = tuple(Missing(f"x{number}.mp4", 0, "torn", "unreadable now") for number in range(3))
    members = {"a": make_scores(1), "b": make_scores(2, missing=gone)}
    message = r"b: has entries for other videos than a, 30 of 33 against 30 of 30: 3 only there \(x0.mp4, x1.mp4, x2"
    with pytest.raises(InputError, match=message):
        average_scores(members)
    assert average_scores(members, common=True).entries == 33
    assert average_scores({"b": members["b"], "c": make_scores(3, missing=gone)}).causes == {"unreadable now": 3}


def test_training_says_what_its_indices_lack(tmp_path, capsys):
    videos = Videos.make(tmp_path)
    videos.written(tmp_path)
    gone = videos.val.entries[2]
    (tmp_path / "val.jsonl").unlink()
    write_index(tmp_path / "val.jsonl", videos.val.entries, gone)
    options = ["--data.train", str(tmp_path / "train.jsonl"), "--data.val", str(tmp_path / "val.jsonl")]
    options += ["--data.num-classes", "4", "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["fit", "demo", *options]) == 1  # there are three classes
    told = capsys.readouterr()
    assert (
        told.out == "train: 22 of 22 usable; left out: 0 (0.0%)\nval: 6 of 7 usable; left out: 1 (14.3%), 1 missing\n"
    )
    assert "data.num_classes: got 4" in told.err
