from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import train.demo.synthetic
from tests.support.video_files import decode
from train.data.sampling import Sampling
from train.data.sources import read_class_names, read_list
from train.demo.render import CLASS_NAMES, render
from train.demo.synthetic import DatasetSpec, prepare_dataset, video_generator
from train.errors import InputError

SEGMENTS = Sampling("segments", 8)
SPEC = DatasetSpec("order", train=24, val=12, seed=5)


def clip(task, label, seed):
    return render(task, label, np.random.default_rng(seed))


def as_multiset(frames):
    return sorted(frame.tobytes() for frame in frames)


@pytest.mark.parametrize("seed", range(3))
def test_order_classes_hold_the_same_frames(seed):
    """Of the whole clip, and of what segment sampling takes from it: nothing that averages over frames can help."""
    clips = [clip("order", label, seed) for label in range(6)]
    assert len({frames.tobytes() for frames in clips}) == 6
    for frames in clips[1:]:
        assert as_multiset(frames) == as_multiset(clips[0])
        middle = SEGMENTS.validate(32)
        assert as_multiset(frames[middle]) == as_multiset(clips[0][middle])


@pytest.mark.parametrize("label", range(6))
def test_order_name_is_what_is_seen(label):
    """Random segments hold two frames of each event, in the order of the class's name."""
    frames = clip("order", label, 7).astype(int)
    chosen = frames[SEGMENTS.train(32, np.random.default_rng(1))]
    still = np.median(frames, axis=0)
    seen = []
    for frame in chosen:
        painted = np.abs(frame - still).sum(-1) > 120
        seen.append(("red", "green", "blue")[frame[painted].mean(0).argmax()] if painted.sum() > 40 else "nothing")
    first, second, third = CLASS_NAMES["order"][label].split(" then ")
    assert seen == ["nothing", first, first, second, second, third, third, "nothing"]


@pytest.mark.parametrize("label", [0, 2, 4, 6])
def test_motion_directions_are_time_reversals(label):
    np.testing.assert_array_equal(clip("motion", label, 3), clip("motion", label + 1, 3)[::-1])


def sprite_track(frames):
    """Centre (x, y) on the torus, relative to the middle, and area of the sprite in every frame."""
    brightness = frames.astype(int).mean(-1)
    painted = (brightness < 33) | (brightness > 155)  # the background is between 50 and 145
    areas = painted.sum((1, 2))

    def circular_mean(weights):
        size = weights.shape[1]
        return np.angle((weights * np.exp(2j * np.pi * (np.arange(size) - size / 2) / size)).sum(1)) * size / 2 / np.pi

    return circular_mean(painted.sum(1)), circular_mean(painted.sum(2)), areas


@pytest.mark.parametrize("label", range(8))
def test_motion_name_is_what_is_seen(label):
    """The y axis of an image points down, so a growing angle is clockwise."""
    name = CLASS_NAMES["motion"][label]
    for seed in range(4):
        x, y, area = sprite_track(clip("motion", label, seed))
        step_x, step_y = ((np.diff(track) + size / 2) % size - size / 2 for track, size in ((x, 80), (y, 64)))
        turn = np.diff(np.unwrap(np.arctan2(y, x)))
        measured = {
            "moving right": step_x,
            "moving left": -step_x,
            "moving down": step_y,
            "moving up": -step_y,
            "circling clockwise": turn,
            "circling counterclockwise": -turn,
            "growing": np.diff(area),
            "shrinking": -np.diff(area),
        }[name]
        assert np.median(measured) > 0, (name, seed)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def root(parent):
    return prepare_dataset(parent, SPEC, processes=1)


def test_files_are_what_was_drawn(root):
    names = read_class_names(root / "classes.txt")
    assert names == CLASS_NAMES["order"]
    for split, count in (("train", 24), ("val", 12)):
        entries = read_list(root / f"{split}.txt", names).entries
        assert len(entries) == count
        kinds = Counter((entry.label, entry.path.suffix) for entry in entries)
        assert kinds == {(label, suffix): count // 12 for label in range(6) for suffix in (".mp4", ".webm")}
    for index in (0, 7):  # one of each codec
        entry = read_list(root / "val.txt", names).entries[index]
        decoded = decode(entry.path).astype(int)
        drawn = render("order", entry.label, video_generator(SPEC, "val", index))
        assert np.abs(decoded - drawn).mean() < 6


def test_same_spec_same_bytes_whatever_the_processes(root, tmp_path):
    other = prepare_dataset(tmp_path, SPEC, processes=2)
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    assert len(files) == 24 + 12 + 4
    for file in files:
        assert (root / file).read_bytes() == (other / file).read_bytes(), file


def test_another_seed_gives_other_videos(root, tmp_path):
    other = prepare_dataset(tmp_path, DatasetSpec("order", train=6, val=6, seed=6), processes=1)
    assert (root / "train/00000.mp4").read_bytes() != (other / "train/00000.mp4").read_bytes()
    assert (other / "val/00000.mp4").read_bytes() != (other / "train/00000.mp4").read_bytes()


def test_complete_data_set_is_used_again(root, parent, monkeypatch):
    monkeypatch.setattr(train.demo.synthetic, "write_video", None)  # any writing would fail
    assert prepare_dataset(parent, SPEC, processes=1) == root


def test_interrupted_writer_leaves_no_data_set(tmp_path, monkeypatch):
    spec = DatasetSpec("motion", train=8, val=8, seed=0)
    write_video, written = train.demo.synthetic.write_video, list[Path]()

    def interrupt(path, frames):
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(path)
        write_video(path, frames)

    monkeypatch.setattr(train.demo.synthetic, "write_video", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(tmp_path, spec, processes=1)
    assert not (tmp_path / spec.folder).exists()
    monkeypatch.setattr(train.demo.synthetic, "write_video", write_video)
    root = prepare_dataset(tmp_path, spec, processes=1)
    assert len(list(root.glob("*/*"))) == 16
    assert list(tmp_path.iterdir()) == [root]


def test_stale_format_is_written_again(tmp_path, monkeypatch):
    spec = DatasetSpec("order", train=1, val=1, seed=0)
    root = prepare_dataset(tmp_path, spec, processes=1)
    (root / "train/00000.mp4").write_bytes(b"of an older version")
    monkeypatch.setattr(train.demo.synthetic, "FORMAT", train.demo.synthetic.FORMAT + 1)
    prepare_dataset(tmp_path, spec, processes=1)
    assert len(decode(root / "train/00000.mp4")) == 32


def test_foreign_folder_is_left_alone(tmp_path):
    spec = DatasetSpec("order", train=1, val=1, seed=0)
    (tmp_path / spec.folder).mkdir()
    (tmp_path / spec.folder / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is something else"):
        prepare_dataset(tmp_path, spec, processes=1)
    assert (tmp_path / spec.folder / "thesis.txt").read_text() == "mine"
