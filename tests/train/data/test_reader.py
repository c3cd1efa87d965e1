import os
import pickle
import sys

import numpy as np
import pytest

from tests.support import video_file_table
from tests.support.odd_files import VP8
from tests.support.video_files import (
    HEVC,
    OPEN_GOP,
    VP9,
    bad_videos,
    cut_without_encoding,
    decode,
    encode,
    run_python,
    striped_frames,
    with_display_matrix,
    with_edits,
)
from train.data.entries import Entry
from train.data.reader import VideoError, VideoFile, open_frames
from train.data.reader.packets import groups_are_closed
from train.errors import InputError

CLOSED_HEVC = "log-level=none:keyint=12:min-keyint=12:open-gop=0"
LAYERED_HEVC = f"{CLOSED_HEVC}:temporal-layers=3:b-adapt=0:bframes=3:b-pyramid=1"
VP9_LAG = ("libvpx-vp9", {"g": "20", "b": "0", "lag-in-frames": "16", "cpu-used": "5"})

READ = """
import sys, numpy as np
from train.data.reader import VideoFile
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


def assert_frames_are_those_asked_for(video, expected, tolerance=0.0):
    """Any frames, in any order, repeated or not. Decoders interpolate colours differently where frames have odd sizes
    or 10 bits, so `tolerance` bounds the mean difference in luma, and each frame must be nearest to its own.
    """
    assert len(video) == len(expected)
    rng = np.random.default_rng(0)
    last = len(expected) - 1
    requests: list = [np.arange(len(expected)), [last, 0], rng.permutation(len(expected))]
    for _ in range(4):
        requests += [rng.integers(len(expected), size=8), np.sort(rng.integers(len(expected), size=8))]
    for indices in requests:
        frames = video.read(indices)
        if not tolerance:
            np.testing.assert_array_equal(frames, expected[indices])
            continue
        assert frames.shape == expected[indices].shape
        for index, frame in zip(list(indices), list(luma(frames)), strict=True):
            distances = np.abs(luma(expected) - frame).mean((1, 2))
            assert distances.argmin() == index
            assert distances[index] < tolerance


def luma(frames):
    return frames.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


@pytest.mark.parametrize(
    ("name", "codec", "count", "reader"),
    [
        ("as_it_comes.mp4", ("libx264", {}), 60, "SelectiveFile"),
        ("all_referred_to.mp4", ("libx264", {"g": "12", "bf": "0"}), 30, "SelectiveFile"),
        ("many_b_frames.mp4", ("libx264", {"g": "16", "bf": "7", "b-pyramid": "none"}), 60, "SelectiveFile"),
        ("b_frames.mp4", ("libx264", {"crf": "18", "g": "12", "bf": "3"}), 50, "SelectiveFile"),
        ("one_gop.mp4", ("libx264", {"crf": "18", "g": "250", "bf": "3"}), 50, "SelectiveFile"),
        ("b_frames.mkv", ("libx264", {"crf": "18", "g": "12", "bf": "2"}), 50, "SelectiveFile"),
        ("vp9.webm", VP9, 50, "SelectiveFile"),
        ("vp9.mkv", VP9, 50, "SelectiveFile"),
        ("mpeg4.avi", ("mpeg4", {"g": "12"}), 50, "SelectiveFile"),
        ("mpeg4_b_frames.avi", ("mpeg4", {"g": "12", "bf": "2"}), 50, "StraightFile"),
        ("open_gop.mp4", OPEN_GOP, 60, "StraightFile"),
        ("open_gop.mkv", OPEN_GOP, 60, "StraightFile"),
        ("hevc.mp4", HEVC, 60, "StraightFile"),
        ("hevc.mkv", HEVC, 60, "StraightFile"),
        ("stream.ts", ("libx264", {"g": "12", "bf": "2"}), 40, "StraightFile"),
        (
            "closed.mp4",
            ("libx265", {"x265-params": "log-level=none:keyint=12:min-keyint=12:open-gop=0"}),
            50,
            "SelectiveFile",
        ),
        ("layers.mkv", ("libx265", {"x265-params": LAYERED_HEVC}), 50, "SelectiveFile"),
        ("vp8.webm", VP8, 60, "SelectiveFile"),
        ("vp8_lag.mkv", ("libvpx", {"g": "20", "lag-in-frames": "16", "auto-alt-ref": "1"}), 60, "SelectiveFile"),
        (
            "vp9_lag.webm",
            ("libvpx-vp9", {"g": "20", "b": "0", "lag-in-frames": "16", "cpu-used": "5"}),
            60,
            "SelectiveFile",
        ),
        ("av1.mp4", ("libsvtav1", {"preset": "12", "g": "16", "svtav1-params": "lp=1"}), 50, "SelectiveFile"),
        ("refreshed.mp4", ("libx264", {"g": "12", "x264-params": "intra-refresh=1:bframes=0"}), 50, "StraightFile"),
        ("single.mp4", ("libx264", {"crf": "18"}), 1, "SelectiveFile"),
        ("two.webm", VP9, 2, "SelectiveFile"),
    ],
)
def test_frames_are_those_asked_for(folder, name, codec, count, reader):
    path = encode(folder / name, striped_frames(count), codec)
    expected = decode(path)
    video = VideoFile(path)
    assert_frames_are_those_asked_for(video, expected)
    assert video.read_by == reader
    if reader == "SelectiveFile":
        other = VideoFile(path, "decord")
        assert_frames_are_those_asked_for(other, expected)
        assert other.read_by == ("SelectiveFile" if "av1" in name else "DecordFile")  # decord does not know AV1


@pytest.mark.parametrize(
    ("name", "codec", "size", "pixels", "tolerance"),
    [
        ("portrait.mp4", ("libx264", {"g": "12"}), (112, 64), "yuv420p", 0.0),
        ("odd.mp4", ("libx264", {"g": "12"}), (47, 65), "yuv444p", 0.0),
        ("odd.webm", VP9, (47, 65), "yuv420p", 1.0),
        ("odd.avi", ("mpeg4", {"g": "12"}), (47, 65), "yuv420p", 1.0),
        ("narrow.mp4", ("libx264", {"g": "12"}), (64, 48), "yuv420p", 0.0),
        ("ten_bits.mp4", ("libx264", {"g": "12"}), (64, 64), "yuv420p10le", 1.0),
        ("fields.mp4", ("libx264", {"flags": "+ildct+ilme", "x264-params": "tff=1"}), (64, 64), "yuv420p", 3.0),
        ("pictures.avi", ("mjpeg", {}), (64, 64), "yuvj420p", 1.0),
        ("full_range.mp4", ("libx264", {"g": "12"}), (64, 64), "yuvj420p", 0.0),
    ],
)
def test_sizes_and_pixel_formats(folder, name, codec, size, pixels, tolerance):
    path = encode(folder / name, striped_frames(20, *size), codec, pixels=pixels)
    for decoder in ("auto", "decord"):
        video = VideoFile(path, decoder)
        assert_frames_are_those_asked_for(video, decode(path), tolerance)
        assert video.read([0]).shape == (1, *size, 3)


@pytest.mark.parametrize("name", ["varying.mp4", "varying.mkv", "varying.webm"])
def test_variable_frame_rate(folder, name):
    times = np.cumsum(np.random.default_rng(3).integers(1, 120, size=40)).tolist()
    codec = VP9 if name.endswith("webm") else ("libx264", {"g": "12", "bf": "2"})
    path = encode(folder / name, striped_frames(40), codec, times=times)
    for decoder in ("auto", "decord"):
        video = VideoFile(path, decoder)
        assert_frames_are_those_asked_for(video, decode(path))
        assert video.read_by == ("SelectiveFile" if decoder == "auto" else "DecordFile")


def test_key_frames_close_to_one_another(folder):
    """decord returns frame 32 for frame 31 here, asked for a few frames in order too."""
    times = np.cumsum(np.random.default_rng(3).integers(1, 120, size=40)).tolist()
    codec = ("libx264", {"g": "12", "bf": "2", "sc_threshold": "40"})
    path = encode(folder / "close.mp4", striped_frames(40), codec, times=times)
    video = VideoFile(path)
    np.testing.assert_array_equal(video.read([15, 31]), decode(path)[[15, 31]])
    assert_frames_are_those_asked_for(video, decode(path))
    assert video.read_by == VideoFile(path, "decord").read_by == "SelectiveFile"


@pytest.mark.parametrize(
    ("edits", "shown"),
    [
        ([(60, 0)], range(60)),
        ([(90, 0)], range(60)),
        ([(10, None), (60, 0)], range(60)),
        ([(30, 0)], range(30)),
        ([(15, 0)], range(15)),
        ([(17.5, 0)], range(18)),
        ([(1, 0)], range(1)),
        ([(47, 13)], range(13, 60)),
        ([(21, 24)], range(24, 45)),
        ([(9, 0), (12, 30)], [*range(9), *range(30, 42)]),
        ([(9, 3), (9, 3)], [*range(3, 12), *range(3, 12)]),
    ],
)
def test_edit_lists_show_what_players_show(folder, edits, shown):
    """decord alone counts up to 35 frames too many here, and repeats the last that it finds."""
    source = encode(folder / "whole.mp4", striped_frames(60), ("libx264", {"crf": "18", "g": "12", "bf": "3"}))
    path = with_edits(folder / "edited.mp4", source, edits)
    expected = decode(path)
    np.testing.assert_array_equal(expected, decode(source)[list(shown)])
    by_pyav = "StraightFile" if len(edits) > 1 and len(expected) < 60 else "SelectiveFile"  # frames are stored twice
    by_decord = "DecordFile" if len(expected) == 60 else by_pyav
    for video, reader in ((VideoFile(path), by_pyav), (VideoFile(path, "decord"), by_decord)):
        assert_frames_are_those_asked_for(video, expected)
        assert video.read_by == reader


def test_nothing_shown(folder):
    source = encode(folder / "whole.mp4", striped_frames(20))
    with pytest.raises(VideoError, match="no frame of it is ever shown"):
        VideoFile(with_edits(folder / "nothing.mp4", source, [(0, 0)]))


@pytest.mark.parametrize("options", ["frag_keyframe+empty_moov", "frag_keyframe+empty_moov+delay_moov"])
def test_fragmented_mp4(folder, options):
    path = encode(folder / "fragments.mp4", striped_frames(40), container_options={"movflags": options})
    video = VideoFile(path)
    assert_frames_are_those_asked_for(video, decode(path))
    assert video.read_by == VideoFile(path, "decord").read_by == "SelectiveFile"


@pytest.mark.parametrize("decoder", ["auto", "decord", "pyav"])
@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0, 1, -1, 0), lambda frames: np.rot90(frames, -1, (1, 2))),  # phones held upright: clockwise
        ((-1, 0, 0, -1), lambda frames: np.rot90(frames, 2, (1, 2))),
        ((0, -1, 1, 0), lambda frames: np.rot90(frames, 1, (1, 2))),
        ((-1, 0, 0, 1), lambda frames: frames[:, :, ::-1]),  # selfies
        ((1, 0, 0, -1), lambda frames: frames[:, ::-1]),
        ((0, 1, 1, 0), lambda frames: frames.swapaxes(1, 2)),
        ((1, 0, 0, 1), lambda frames: frames),
    ],
)
def test_frames_are_the_way_up_that_players_show(folder, matrix, turn, decoder):
    source = encode(folder / "lying.mp4", striped_frames(12, 48, 80))
    path = with_display_matrix(folder / "turned.mp4", source, *matrix)
    assert_frames_are_those_asked_for(VideoFile(path, decoder), turn(decode(source)))


def test_ten_thousand_frames(folder):
    frames = np.repeat(striped_frames(100, 32, 32), 100, axis=0)
    path = encode(folder / "long.mp4", frames, ("libx264", {"preset": "ultrafast", "g": "250"}))
    video = VideoFile(path)
    assert len(video) == 10_000
    indices = [0, 9_999, 5_050, 101]
    got = luma(video.read(indices))
    for index, frame in zip(indices, list(got), strict=True):
        distances = np.abs(luma(frames[::100]) - frame).mean((1, 2))  # every 32nd of the hundred is the same
        assert distances[index // 100] == distances.min() < 0.5 * np.median(distances)


def test_cut_without_encoding_neither_hangs_nor_lies(folder):
    source = encode(folder / "gop240.mp4", striped_frames(240), ("libx264", {"crf": "30", "g": "240", "bf": "3"}))
    path = cut_without_encoding(folder / "cut.mp4", source, first=150, last=210)
    expected = decode(path)
    indices = [7, 0, 60, 33, 34, 35, 7, 59]
    printed = run_python(READ, path, folder / "frames.npy", ",".join(map(str, indices)))
    assert int(printed) == len(expected) == 61
    np.testing.assert_array_equal(np.load(folder / "frames.npy"), expected[indices])


def test_videos_can_be_written_after_reading(folder):
    """decord must not push its own codec libraries on PyAV."""
    path = encode(folder / "short.mp4", striped_frames(4))
    code = """
import sys
from pathlib import Path
from train.data.reader import VideoFile
frames = VideoFile(sys.argv[1]).read([0, 1, 2, 3])
from train.demo.synthetic import write_video
write_video(Path(sys.argv[2]), frames)
print(len(VideoFile(sys.argv[2])))
"""
    assert int(run_python(code, path, folder / "written.webm")) == 4


def closed(times, keys, hidden=()):
    places = np.arange(len(times))
    return groups_are_closed(np.array(times), np.isin(places, keys), ~np.isin(places, hidden))


def test_where_decoding_may_start():
    assert closed([0, 3, 1, 2, 4, 6, 5], [0, 4])
    assert not closed([0, 1, 2, 6, 4, 5, 7], [0, 3])  # 4 and 5 are stored behind the key frame 6
    assert not closed([0, 3, 1, 2], [1])  # begins in the middle
    assert not closed([0, 1, np.iinfo(np.int64).min, 3], [0])
    assert not closed([0, 2, 2, 3], [0])  # two at the same time
    assert closed([0, 2, 2, 3], [0], hidden=[2])  # a reference at another's time
    assert not closed([0, 1, 2, 3], [0, 2], hidden=[2])
    assert not closed([], [])


def test_decord_never_sees_what_it_must_not_seek_in(folder, monkeypatch):
    """It might hang with the interpreter lock held, and nothing could be done from inside."""
    source = encode(folder / "whole.mp4", striped_frames(30), ("libx264", {"g": "12", "bf": "3"}))
    path = with_edits(folder / "start.mp4", source, [(10, 5)])

    def refuse(*_, **__):
        raise AssertionError("decord was asked")

    monkeypatch.setattr("train.data.reader.video.DecordFile", refuse)
    np.testing.assert_array_equal(VideoFile(path, "decord").read([3, 0]), decode(source)[[8, 5]])
    with pytest.raises(AssertionError, match="decord was asked"):
        VideoFile(source, "decord")


def test_codec_that_decord_does_not_know(folder):
    path = encode(folder / "av1.mkv", striped_frames(10), ("libsvtav1", {"preset": "12", "svtav1-params": "lp=1"}))
    assert_frames_are_those_asked_for(VideoFile(path), decode(path))


def test_entry_that_has_changed_since_it_was_counted(folder):
    path = encode(folder / "counted.mp4", striped_frames(10))
    assert len(open_frames(Entry(path, 0, num_frames=10))) == 10
    with pytest.raises(VideoError, match="has 10 frames where 12 were counted"):
        open_frames(Entry(path, 0, num_frames=12))


def test_vanished_while_it_is_opened(folder, monkeypatch):
    path = encode(folder / "vanishing.mp4", striped_frames(5))

    def open_late(path):
        path.unlink()
        raise VideoError(path, "damaged")

    monkeypatch.setattr("train.data.reader.video.Stream", open_late)
    with pytest.raises(VideoError, match="no such file"):
        VideoFile(path)


CUTS = (1, 5, 10, 20, 30, 45, 60, 75, 90, 99)
KINDS = {
    "absent": "no such file",
    "directory": "is a directory",
    "empty": "is empty",
    "garbage": "not a video file",
    "text": "not a video file",
    "no_index": "truncated",
    "cut_1.webm": "damaged or truncated",
    "audio_only": "no video stream",
    "no_frames": "no video stream",
    "no_frames_webm": "damaged or truncated",
} | {f"cut_{percent}.mp4": "truncated" for percent in CUTS}


@pytest.mark.parametrize("kind", KINDS)
def test_bad_file_raises(bad, kind):
    with pytest.raises(VideoError, match=KINDS[kind]) as caught:
        VideoFile(bad[kind]).read([0, 80, 40])
    assert caught.value.path == str(bad[kind]) in str(caught.value)
    assert isinstance(caught.value, InputError)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.path, copy.reason, str(copy)) == (caught.value.path, caught.value.reason, str(caught.value))


def test_every_bad_kind_is_tested(bad):
    assert set(bad) == set(KINDS) | {f"cut_{percent}.webm" for percent in CUTS}


@pytest.mark.parametrize("percent", CUTS[1:])
def test_beginning_of_a_webm_is_read_as_far_as_it_goes(bad, folder, percent):
    """Matroska says nothing at its start about how many frames follow; `prepare` compares times and calls it short."""
    whole = decode(bad["cut_99.webm"])
    video = VideoFile(bad[f"cut_{percent}.webm"])
    assert 1 < len(video) <= len(whole)
    np.testing.assert_array_equal(video.read([len(video) - 1, 0]), whole[[len(video) - 1, 0]])


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


def test_the_table_in_the_docs_is_what_happens(tmp_path):
    """The column about decord alone is not made again: it takes files on which decord may hang."""
    written = [line.split(" | ") for line in video_file_table.PAGE.read_text().splitlines() if line.startswith("| ")]
    kinds = video_file_table.files(tmp_path)
    made = list(video_file_table.rows(kinds))
    assert [
        (kind.removeprefix("| "), reader, verdict.removesuffix(" |")) for kind, _, reader, verdict in written[1:]
    ] == made
