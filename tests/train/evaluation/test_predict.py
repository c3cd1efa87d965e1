"""`python -m train predict`: a video, many, folders of them, and those that cannot be read."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.video_files import VP9, encode, striped_frames
from tests.train.evaluation.test_testing import ALONE, CLASSES, READING, make_trained, make_video
from train.__main__ import main
from train.checkpoint import load_checkpoint, save_checkpoint
from train.data.dataset import Views
from train.data.entries import Entry, Split
from train.data.index import Index
from train.evaluation.places import find_videos
from train.evaluation.views import score_videos
from train.recipes import RECIPES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    (root / "in" / "deeper").mkdir(parents=True)
    encode(root / "in" / "a b.mp4", striped_frames(20))
    encode(root / "in" / "deeper" / "é.webm", striped_frames(20), VP9)
    (root / "in" / "broken.mp4").write_bytes(b"no video" * 100)
    (root / "in" / "notes.txt").write_text("no video")
    make_video(root / "frames", 12, 1)
    (root / "empty").mkdir()
    sampling = replace(RECIPES["demo"].sampling, num_segments=4)
    save_checkpoint(root / "best.pt", make_trained(sampling=sampling))
    return root


def predicted(capsys, *arguments):
    status = main(["predict", *map(str, arguments), "--device", "cpu"])
    said = capsys.readouterr()
    return status, said.out.splitlines(), said.err


def test_one_video(folder, capsys):
    status, lines, _ = predicted(capsys, folder / "best.pt", folder / "in" / "a b.mp4", "--top", "2")
    assert status == 0
    assert len(lines) == 2  # no heading for one alone
    assert lines[0].split("%  ")[1] in CLASSES


def test_folders_and_what_cannot_be_read(folder, capsys):
    status, lines, errors = predicted(capsys, folder / "best.pt", folder / "in", folder / "frames", "--top", "1")
    assert status == 1
    assert lines[::2] == [
        str(folder / "in" / "a b.mp4"),
        str(folder / "in" / "deeper" / "é.webm"),
        str(folder / "frames"),
    ]
    assert f"cannot be read: {folder / 'in' / 'broken.mp4'}: is not a video file" in errors
    assert "error: 1 of 4 videos cannot be read" in errors


def test_links_to_folders_are_folders(tmp_path):
    """A class on another disk is not passed over, and what is below the folder anyway comes once, by its own name."""
    for name in ("there/one.mp4", "in/a/two.mp4", "in/b/c/three.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for link, target in (("in/d", "there"), ("in/0", "in/b"), ("in/b/c/up", "in"), ("there/again", "there")):
        (tmp_path / link).symlink_to(tmp_path / target)
    found = [entry.path.relative_to(tmp_path).as_posix() for entry in find_videos([str(tmp_path / "in")])]
    assert found == ["in/a/two.mp4", "in/b/c/three.mp4", "in/d/one.mp4"]


def test_a_folder_that_may_not_be_looked_into_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "one.mp4").touch()
    (tmp_path / "lost+found").mkdir()
    listed = Path.iterdir

    def iterdir(folder):
        if folder.name == "lost+found":  # the tests' user may be one who may do anything
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert [entry.path for entry in find_videos([str(tmp_path)])] == [tmp_path / "one.mp4"]
    assert f"note: {tmp_path / 'lost+found'}: may not be looked into" in capsys.readouterr().err


def test_no_numbers_are_no_answer(folder, capsys, tmp_path, monkeypatch):
    """A network that overflows names no class with `nan%`, and leaves no features."""
    trained = make_trained(sampling=replace(RECIPES["demo"].sampling, num_segments=4))
    torch.nn.init.constant_(trained.network.get_parameter("conv1.weight"), float("inf"))
    save_checkpoint(tmp_path / "best.pt", trained)
    monkeypatch.chdir(folder)
    for options in ((), ("--json",), ("--window", "0.5")):
        status, lines, errors = predicted(capsys, tmp_path / "best.pt", "in/a b.mp4", *options)
        assert status == 1
        assert not any("nan" in line.lower() for line in lines)
        assert "error: in/a b.mp4: the network gives it no finite numbers in precision fp32" in errors
    place = ("--out", str(tmp_path / "out"), "--device", "cpu", "--workers", "0")
    assert main(["extract", str(tmp_path / "best.pt"), "in/a b.mp4", *place]) == 1
    assert "error: in/a b.mp4: its features are no finite numbers in precision fp32" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_json(folder, capsys):
    status, lines, _ = predicted(capsys, folder / "best.pt", folder / "in", "--json")
    first, second, third = map(json.loads, lines)
    assert status == 1
    assert first["video"] == str(folder / "in" / "a b.mp4")
    assert sorted(seen["class_name"] for seen in first["predictions"]) == sorted(CLASSES)
    assert sum(seen["probability"] for seen in first["predictions"]) == pytest.approx(1, abs=1e-5)
    assert "is not a video file" in second["error"]
    assert third["video"].endswith("é.webm")


@pytest.mark.parametrize("average", ["logits", "probabilities"])
@pytest.mark.parametrize("batch", [2, 32])
def test_views_are_averaged_as_in_a_test(folder, capsys, average, batch):
    """`score_videos` is what `python -m train test` computes with; a batch of 2 views takes clips apart."""
    views = Views("spread", clips=4, crops=3, short_side=72, crop_size=64, average=average)
    trained = load_checkpoint(folder / "best.pt")
    index = Index(Split("x", (Entry(folder / "in" / "a b.mp4", 0), Entry(folder / "frames", 1, "frames")), CLASSES), ())
    scores = torch.from_numpy(score_videos(trained, index, views, ALONE, READING).scores)
    expected = scores.softmax(1) if average == "logits" else scores
    options = "--views.clips 4 --views.crops 3 --views.short-side 72 --views.crop-size 64 --json --batch-size"
    videos = (folder / "in" / "a b.mp4", folder / "frames")
    named = (*options.split(), batch, "--views.average", average)
    _, lines, _ = predicted(capsys, folder / "best.pt", *videos, *named)
    for line, row in zip(lines, expected, strict=True):
        seen = {pair["class_name"]: pair["probability"] for pair in json.loads(line)["predictions"]}
        torch.testing.assert_close(torch.tensor([seen[name] for name in CLASSES]), row, rtol=1e-4, atol=1e-6)


def test_protocols(folder, capsys):
    _, one, _ = predicted(capsys, folder / "best.pt", folder / "frames", "--json")
    _, recipes, _ = predicted(capsys, folder / "best.pt", folder / "frames", "--json", "--protocol", "recipe")
    _, published, _ = predicted(capsys, folder / "best.pt", folder / "frames", "--json", "--protocol", "2x3")
    assert one == recipes != published


def test_patterns(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    status, lines, _ = predicted(capsys, "best.pt", "in/**/*.webm", "in/a*", "in/a b.mp4", "--top", "1")
    assert status == 0
    assert lines[::2] == ["in/deeper/é.webm", "in/a b.mp4"]  # each once
    encode(folder / "x[1].mp4", striped_frames(8))
    assert len(predicted(capsys, "best.pt", "x[1].mp4", "--top", "1")[1]) == 1  # a file's name is a name
    status, lines, errors = predicted(capsys, "best.pt", "in/a b.mp4", "in/*.mov")
    assert (status, lines) == (1, [])
    assert "error: in/*.mov: matches nothing" in errors


def test_a_checkpoint_of_another_kind(folder, capsys):
    status, _, errors = predicted(capsys, folder / "in" / "a b.mp4", folder / "in" / "a b.mp4")
    assert status == 1
    assert "a b.mp4: is not a checkpoint" in errors
    torch.save({"state_dict": {}}, folder / "other.pt")
    status, _, errors = predicted(capsys, folder / "other.pt", folder / "in" / "a b.mp4")
    assert "other.pt: is not a checkpoint of this program" in errors


def test_nothing_to_look_at(folder, capsys):
    status, lines, errors = predicted(capsys, folder / "best.pt", folder / "empty")
    assert (status, lines) == (1, [])
    assert f"error: {folder / 'empty'}: holds no videos (.mp4, " in errors
    assert predicted(capsys, folder / "best.pt", folder / "absent.mp4")[0] == 1
