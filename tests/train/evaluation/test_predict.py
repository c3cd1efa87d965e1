"""`python -m train predict`: a video, many, folders of them, and those that cannot be read."""

import json
from dataclasses import replace

import pytest

from tests.support.video_files import VP9, encode, striped_frames
from tests.train.evaluation.test_testing import CLASSES, make_trained, make_video
from train.__main__ import main
from train.checkpoint import save_checkpoint
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


def test_json(folder, capsys):
    status, lines, _ = predicted(capsys, folder / "best.pt", folder / "in", "--json")
    first, second, third = map(json.loads, lines)
    assert status == 1
    assert first["video"] == str(folder / "in" / "a b.mp4")
    assert sorted(seen["class_name"] for seen in first["predictions"]) == sorted(CLASSES)
    assert sum(seen["probability"] for seen in first["predictions"]) == pytest.approx(1, abs=1e-5)
    assert "is not a video file" in second["error"]
    assert third["video"].endswith("é.webm")


def test_nothing_to_look_at(folder, capsys):
    status, lines, errors = predicted(capsys, folder / "best.pt", folder / "empty")
    assert (status, lines) == (1, [])
    assert f"error: {folder / 'empty'}: holds no videos (.mp4, " in errors
    assert predicted(capsys, folder / "best.pt", folder / "absent.mp4")[0] == 1
