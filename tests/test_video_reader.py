import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from tests.video_files import VP9, bad_videos, cut_without_encoding, decode, encode, run_python, striped_frames
from train.errors import InputError
from train.reader import VideoError, VideoFile

READ = """
import sys, numpy as np
from train.reader import VideoFile
video = VideoFile(sys.argv[1])
np.save(sys.argv[2], video.read([int(i) for i in sys.argv[3].split(",")]))
print(len(video))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def bad(folder):
    return bad_videos(folder / "bad")


@pytest.mark.parametrize(
    ("name", "codec", "count"),
    [
        ("b_frames.mp4", ("libx264", {"crf": "18", "g": "12", "bf": "3"}), 50),
        ("one_gop.mp4", ("libx264", {"crf": "18", "g": "250", "bf": "3"}), 50),
        ("b_frames.mkv", ("libx264", {"crf": "18", "g": "12", "bf": "2"}), 50),
        ("vp9.webm", VP9, 50),
        ("mpeg4.avi", ("mpeg4", {"g": "12"}), 50),
        ("single.mp4", ("libx264", {"crf": "18"}), 1),
        ("two.webm", VP9, 2),
    ],
)
def test_frames_are_those_asked_for(folder, name, codec, count):
    path = encode(folder / name, striped_frames(count), codec)
    expected = decode(path)
    video = VideoFile(path)
    assert len(video) == len(expected) == count
    rng = np.random.default_rng(0)
    for indices in (
        np.arange(count),
        np.sort(rng.integers(count, size=8)),
        rng.integers(count, size=8),
        [count - 1, 0],
    ):
        np.testing.assert_array_equal(video.read(indices), expected[indices])


def test_cut_without_encoding_neither_hangs_nor_lies(folder):
    source = encode(folder / "gop240.mp4", striped_frames(240), ("libx264", {"crf": "30", "g": "240", "bf": "3"}))
    path = cut_without_encoding(folder / "cut.mp4", source, first=150, last=210)
    expected = decode(path)
    indices = [7, 0, 60, 33, 34, 35, 7, 59]
    printed = run_python(READ, path, folder / "frames.npy", ",".join(map(str, indices)))
    assert int(printed) == len(expected) == 61
    np.testing.assert_array_equal(np.load(folder / "frames.npy"), expected[indices])


class FakeReader:
    """A decord.VideoReader with three frames of pre-roll and two to show, on which a seek would hang."""

    hangs = False

    def __init__(self, *_, **__):
        self.position = -1

    def __len__(self):
        return 5

    def get_frame_timestamp(self, indices):
        return np.array([[-3.0, -2], [-2, -1], [-1, 0], [0, 1], [1, 2]])[indices]

    def get_batch(self, indices):
        if self.hangs:
            raise AssertionError("get_batch would hang on a file with pre-roll")
        return SimpleNamespace(asnumpy=lambda: np.zeros((len(indices), 2, 2, 3), np.uint8))

    def seek(self, position):
        assert position == 0
        self.position = 0

    def next(self):
        self.position += 1
        return SimpleNamespace(asnumpy=lambda frame=self.position - 1: np.full((2, 2, 3), frame, np.uint8))


def test_videos_can_be_written_after_reading(folder):
    """decord must not push its own codec libraries on PyAV."""
    path = encode(folder / "short.mp4", striped_frames(4))
    code = """
import sys
from pathlib import Path
from train.reader import VideoFile
frames = VideoFile(sys.argv[1]).read([0, 1, 2, 3])
from train.synthetic import write_video
write_video(Path(sys.argv[2]), frames)
print(len(VideoFile(sys.argv[2])))
"""
    assert int(run_python(code, path, folder / "written.webm")) == 4


@pytest.mark.parametrize(("head", "is_mp4"), [(b"\0\0\0\x08ftyp\0\0\0\x08moov", True), (b"\x1aE\xdf\xa3 webm", False)])
def test_guard_comes_before_any_seek(monkeypatch, tmp_path, head, is_mp4):
    """Negative times mean pre-roll in mp4 and mov alone; elsewhere such frames are shown like all others."""
    reader = type("Reader", (FakeReader,), {"hangs": is_mp4})
    logging = SimpleNamespace(set_level=lambda _: None, QUIET=-8)
    monkeypatch.setitem(sys.modules, "decord", SimpleNamespace(VideoReader=reader, logging=logging))
    path = tmp_path / "video"
    path.write_bytes(head)
    video = VideoFile(path)
    if is_mp4:
        assert len(video) == 2
        assert video.read([1, 0, 1])[:, 0, 0, 0].tolist() == [1, 0, 1]
        with pytest.raises(IndexError, match="frames 0 to 1"):
            video.read([2])
    else:
        assert len(video) == 5
        assert len(video.read([4, 0])) == 2


KINDS = {
    "absent": "no such file",
    "directory": "is a directory",
    "empty": "is empty",
    "garbage": "not a video file",
    "text": "not a video file",
    "no_index": "truncated",
    "cut_5": "truncated",
    "cut_30": "damaged or truncated",
    "cut_60": "damaged or truncated",
    "cut_90": "damaged or truncated",
    "audio_only": "no video stream",
    "no_frames": "no video stream",
    "no_frames_webm": "not a video file",
}


@pytest.mark.parametrize("kind", KINDS)
def test_bad_file_raises(bad, kind):
    with pytest.raises(VideoError, match=KINDS[kind]) as caught:
        VideoFile(bad[kind]).read([0, 80, 40])
    assert caught.value.path == str(bad[kind]) in str(caught.value)
    assert isinstance(caught.value, InputError)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.path, copy.reason, str(copy)) == (caught.value.path, caught.value.reason, str(caught.value))


def test_every_bad_kind_is_tested(bad):
    assert set(bad) == set(KINDS)


def test_unreadable_file(monkeypatch, tmp_path):
    """Whoever runs the tests may be allowed to read everything, so the system's refusal is made up."""
    path = tmp_path / "secret.mp4"
    path.write_bytes(b"x")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(path), "open", refuse)
    with pytest.raises(VideoError, match="permission denied"):
        VideoFile(path)


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes")
def test_pipe_does_not_wait_for_a_writer(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match="not a regular file"):
        VideoFile(tmp_path / "pipe.mp4")


def test_wrong_indices(folder):
    video = VideoFile(encode(folder / "ten.mp4", striped_frames(10)))
    for outside in ([10], [-1], [0, 99]):
        with pytest.raises(IndexError, match="frames 0 to 9"):
            video.read(outside)
    for shapeless in (np.zeros(0, np.int64), np.zeros((2, 2), np.int64)):
        with pytest.raises(ValueError, match="non-empty list"):
            video.read(shapeless)
