"""Files whose packets are not what they seem: every decoder's reader counts and shows what decoding shows."""

import tempfile
from pathlib import Path

import av
import numpy as np
import pytest

from tests.support.odd_files import VP8, in_fields, packed_mpeg4, with_hidden_frames, with_notes
from tests.support.video_files import VP9, decode, encode, striped_frames, with_display_matrix, with_edits
from train.data.check import check
from train.data.entries import Entry
from train.data.reader import Decoder, VideoError, VideoFile
from train.data.reader.bitstream import first_slice, look_of
from train.data.reader.known import _Known, known_packets
from train.data.reader.packets import read_packets
from train.data.reader.selective import SelectiveFile
from train.data.reader.stream import Stream
from train.data.reader.with_torchcodec import TorchcodecFile
from train.errors import InputError

CLOSED_HEVC = "log-level=none:keyint=12:min-keyint=12:open-gop=0"


def usable_decoders() -> tuple[Decoder, ...]:
    """torchcodec is an option: FFmpeg's shared libraries are the system's to give."""
    with tempfile.TemporaryDirectory() as folder:
        path = encode(Path(folder, "two.mp4"), striped_frames(2))
        try:
            TorchcodecFile(path)
        except InputError:
            return ("auto", "decord", "pyav")
    return ("auto", "decord", "pyav", "torchcodec")


DECODERS = usable_decoders()


def assert_read_right(path, expected):
    order = np.random.default_rng(0).permutation(len(expected))
    for decoder in DECODERS:
        video = VideoFile(path, decoder)
        assert len(video) == len(expected)
        np.testing.assert_array_equal(video.read(order), expected[order])
        np.testing.assert_array_equal(VideoFile(path, decoder).read(order[:3]), expected[order[:3]])
        checked = check(0, Entry(path, 0), decoder=decoder)
        assert (checked.problem, checked.reason, checked.entry.num_frames) == (None, "", len(expected))


@pytest.mark.parametrize("suffix", [".webm", ".mkv"])
def test_frames_that_are_never_shown(tmp_path, suffix):
    path = with_hidden_frames(tmp_path / f"hidden{suffix}")
    expected = decode(path)
    assert len(expected) == 54
    assert_read_right(path, expected)
    assert VideoFile(path).read_by == VideoFile(path, "decord").read_by == "SelectiveFile"


def test_packets_without_a_picture(tmp_path):
    path = with_notes(tmp_path / "notes.mp4")
    assert_read_right(path, decode(tmp_path / "without_notes.mp4"))
    assert len(read_packets(Stream(path)).times) == 50


def test_packets_of_two_frames_and_of_none(tmp_path):
    path = packed_mpeg4(tmp_path / "packed.avi")
    expected = decode(path)
    np.testing.assert_array_equal(expected, decode(tmp_path / "unpacked.avi"))
    assert_read_right(path, expected)
    assert VideoFile(path, "decord").read_by == "StraightFile"


@pytest.mark.parametrize(
    ("name", "codec"), [("a.webm", VP8), ("b.webm", VP9), ("c.mkv", VP9), ("d.mkv", ("libx264", {"g": "12"}))]
)
def test_no_duration_in_the_header(tmp_path, name, codec):
    """As live muxers and browsers write."""
    path = encode(tmp_path / name, striped_frames(50), codec, container_options={"live": "1"})
    stream = Stream(path)
    assert stream.has_no_duration
    assert_read_right(path, decode(path))
    assert VideoFile(path, "decord").read_by == "SelectiveFile"


@pytest.mark.parametrize("suffix", [".mkv", ".ts"])
def test_two_packets_that_are_one_frame(tmp_path, suffix):
    path = in_fields(tmp_path / f"fields{suffix}")
    assert len(read_packets(Stream(path)).times) == 24
    expected = decode(path)
    assert np.diff(expected[:, ::2].mean((1, 2, 3))).min() > 5  # each frame is brighter than the one before, …
    assert len(expected) == 12
    assert (expected[:, 1::2] > expected[:, ::2]).all()  # … and so is its second field than its first
    assert_read_right(path, expected)


def test_frames_of_fields_are_counted_by_decoding(tmp_path):
    """H.264 that may be coded in fields: two packets a frame, or one; nothing short of decoding tells."""
    codec = ("libx264", {"flags": "+ildct+ilme", "x264-params": "tff=1"})
    for name in ("fields.mp4", "fields.ts", "fields.mkv"):
        path = encode(tmp_path / name, striped_frames(20), codec)
        assert not read_packets(Stream(path)).frames_known
        assert_read_right(path, decode(path))


def test_a_count_that_is_known_is_not_made_again(tmp_path, monkeypatch):
    path = encode(tmp_path / "stream.ts", striped_frames(20))
    expected = decode(path)
    monkeypatch.setattr("train.data.reader.straight._count", lambda path: pytest.fail("counted again"))
    np.testing.assert_array_equal(VideoFile(path, num_frames=20).read([7]), expected[[7]])


def with_two_streams(path):
    """A small video and a larger one, which players choose, in one file."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=30) for _ in range(2)]
        for stream, size in zip(streams, (32, 64), strict=True):
            stream.height = stream.width = size
            stream.pix_fmt = "yuv420p"
        for frame in striped_frames(20):
            for stream in streams:
                picture = np.ascontiguousarray(frame[: stream.height, : stream.width])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize("kind", ["two streams", "turned", "444", "fragments", "edited"])
def test_what_decord_is_not_given(tmp_path, kind):
    whole = encode(tmp_path / "whole.mp4", striped_frames(60), ("libx264", {"g": "12", "bf": "3"}))
    assert VideoFile(whole, "decord").read_by == "DecordFile"
    path = {
        "two streams": lambda: with_two_streams(tmp_path / "two.mkv"),
        "turned": lambda: with_display_matrix(tmp_path / "turned.mp4", whole, 0, 1, -1, 0),
        "444": lambda: encode(tmp_path / "444.mp4", striped_frames(30), ("libx264", {"g": "12"}), pixels="yuv444p"),
        "fragments": lambda: encode(
            tmp_path / "fragments.mp4", striped_frames(30), container_options={"movflags": "frag_keyframe+empty_moov"}
        ),
        "edited": lambda: with_edits(tmp_path / "edited.mp4", whole, [(21, 24)]),
    }[kind]()
    video = VideoFile(path, "decord")
    assert video.read_by == "SelectiveFile"
    expected = np.stack([frame.to_ndarray(format="rgb24") for frame in Stream(path).frames()])
    if kind == "turned":
        expected = np.rot90(expected, -1, (1, 2))
    order = np.random.default_rng(0).permutation(len(expected))
    np.testing.assert_array_equal(video.read(order), expected[order])


def test_a_decoder_that_is_wrong_after_a_seek_is_found_out(tmp_path, monkeypatch):
    """decord is, in some files: asked for rising frames by one reader, it shows the right ones."""
    path = encode(tmp_path / "a.mp4", striped_frames(60), ("libx264", {"g": "12"}))
    true_read = SelectiveFile.read

    def read(self, indices):
        frames = true_read(self, indices)
        has_begun = getattr(self, "has_begun", False) or indices.min() == 0
        self.has_begun = has_begun
        return frames if has_begun else np.full_like(frames, 128)

    monkeypatch.setattr(SelectiveFile, "read", read)
    assert check(0, Entry(path, 0)).reason.startswith("two decoders disagree")


def test_what_was_found_of_a_file_is_kept_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr("train.data.reader.known._KNOWN", _Known(most=70))
    path = encode(tmp_path / "a.mp4", striped_frames(60), ("libx264", {"g": "12", "bf": "3"}))
    first = known_packets(Stream(path))
    assert known_packets(Stream(path)) is first
    expected = decode(path)
    order = np.random.default_rng(0).permutation(60)
    np.testing.assert_array_equal(VideoFile(path).read(order), expected[order])
    other = encode(tmp_path / "b.mp4", striped_frames(20))
    assert known_packets(Stream(other)).times.size == 20
    assert known_packets(Stream(path)) is not first  # both are too many
    encode(path, striped_frames(30))
    assert len(VideoFile(path)) == 30
    monkeypatch.setattr(Stream, "packets_from", lambda self, time, count: [])  # a seek leads elsewhere
    np.testing.assert_array_equal(VideoFile(path).read([7, 3]), decode(path)[[7, 3]])


@pytest.mark.parametrize("kind", ["mp4", "edited", "ts"])
def test_a_file_too_large_to_be_held_is_read_again(tmp_path, monkeypatch, kind):
    path = encode(tmp_path / "long.mp4", striped_frames(60), ("libx264", {"g": "12", "bf": "3"}))
    if kind == "edited":
        path = with_edits(tmp_path / "edited.mp4", path, [(21, 24)])
    if kind == "ts":
        path = encode(tmp_path / "hevc.ts", striped_frames(60), ("libx265", {"x265-params": CLOSED_HEVC}))
    monkeypatch.setattr("train.data.reader.selective._MOST_HELD", 100)
    assert_read_right(path, decode(path))
    assert VideoFile(path).read_by == "SelectiveFile"


def test_what_the_first_bytes_say():
    def unit(kind, importance=3):
        return b"\0\0\0\5" + bytes([importance << 5 | kind]) + bytes(4)

    def look(codec, data, configuration=None, progressive=True):
        return look_of(codec, configuration, progressive)(memoryview(data))

    four = bytes([1, 100, 0, 30, 0xFF])
    assert first_slice(memoryview(unit(6) + unit(7) + unit(5)), 4) == 5
    assert first_slice(memoryview(unit(6) + unit(1) + unit(5)), 4) == 1
    assert first_slice(memoryview(unit(6)), 4) is None
    assert look("h264", unit(9) + unit(1), four) == 1
    assert look("h264", unit(9) + unit(6), four) == 0
    assert look("h264", unit(1), four, progressive=False) is None
    assert look("h264", b"\0\0\0\1" + unit(1)) is None  # units that nothing measures
    assert (look("vp8", b"\x10\0"), look("vp8", b"\0\0")) == (1, 0)
    assert (look("vp9", b"\x82\0"), look("vp9", b"\x88\0"), look("vp9", b"\x84\0")) == (1, 1, 0)
    assert look("vp9", b"\x84\0\xc1") == 1  # a superframe, of which the last is shown
    assert look("vp9", b"\xb4\0") is None
    assert look("mpeg4", b"\0\0\1\xb6" + bytes(30)) == 1
    assert look("mpeg4", b"\0\0\1\xb6" + bytes(9)) is None
    assert look("mpeg4", 2 * (b"\0\0\1\xb6" + bytes(30))) is None
    assert look("wmv3", bytes(30)) is None


@pytest.mark.parametrize("flags", ["faststart", "frag_keyframe+empty_moov", "faststart+no_such_table"])
@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_mp4_cut_behind_its_index(tmp_path, flags, share):
    """Also where the index is one that this project would not know how to read by itself."""
    whole = encode(
        tmp_path / "whole.mp4",
        striped_frames(90),
        container_options={"movflags": flags.replace("+no_such_table", "")},
    ).read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole.replace(b"hdlr", b"hdlR", 1 if "no_such" in flags else 0)[: int(len(whole) * share)])
    for decoder in DECODERS:
        with pytest.raises(VideoError, match="truncated"):
            VideoFile(path, decoder)
    assert check(0, Entry(path, 0)).problem == "corrupt"
