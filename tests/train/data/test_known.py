"""What an index keeps of a file's packets is what a look into it finds, or nothing; it changes no frame."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import video_file_table
from tests.support.video_files import decode, encode, striped_frames
from train.data.entries import Entry
from train.data.index import read_index
from train.data.prepare import PrepareConfig, prepare
from train.data.reader import VideoError, VideoFile, open_frames
from train.data.reader.known import Version, _Known, known_packets, pack, text_of, unpack
from train.data.reader.packets import Packets, groups_are_closed, read_packets
from train.data.reader.stream import Stream

B_FRAMES = ("libx264", {"crf": "18", "g": "12", "bf": "3"})
NOT_REGULAR = {
    "cut without encoding (pre-roll)",
    "edit list that trims the end",
    "edit list that trims both ends",
    "edit list with two stretches",
    "edit list that shows nothing",
    "H.264 with open groups of pictures",
    "HEVC with open groups of pictures",
    "VP8 with hidden frames, webm",
    "VP8 with hidden frames, mkv",
    "MPEG-4 packed as by XviD, avi",
    "packets without a picture",
    "H.264 with a packet for each field",
    "H.264 that may be of fields",
    "MPEG-2, mkv",
    "MPEG transport stream",
}


@pytest.fixture(autouse=True)
def nothing_is_remembered(monkeypatch):
    monkeypatch.setattr("train.data.reader.known._KNOWN", _Known(most=0))


@pytest.fixture
def no_look(monkeypatch):
    """Looking into a file fails."""

    def turn_on():
        monkeypatch.setattr("train.data.reader.known.read_packets", lambda stream: pytest.fail("looked into"))

    return turn_on


def assert_equal(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs, strict=True)


def test_each_kind_of_file(tmp_path, no_look):
    kinds = video_file_table.files(tmp_path)
    texts = {}
    for kind, path in kinds.items():
        try:
            video = VideoFile(path)
        except VideoError:
            continue
        if text := text_of(path):
            texts[kind] = text, video.read(np.arange(len(video)))
            assert_equal(unpack(text).packets_of(Version.of(path)), read_packets(Stream(path)))
            assert len(text) < 250
    no_look()
    for kind, (text, expected) in texts.items():
        video = VideoFile(kinds[kind], packets=text)
        order = np.random.default_rng(0).permutation(len(expected))
        np.testing.assert_array_equal(video.read(order), expected[order], err_msg=kind)
    assert {kind for kind in kinds if kind not in texts} >= NOT_REGULAR
    assert not NOT_REGULAR & texts.keys()
    assert {"H.264 with B-frames, mp4", "VP9, webm", "MPEG-4, avi", "variable frame rate, mkv"} <= texts.keys()


@given(data=st.data(), most=st.sampled_from((30, 2**20, 2**61)))
def test_any_packets(data, most):
    count = data.draw(st.integers(1, 40))
    times = data.draw(st.lists(st.integers(-most, most), min_size=count, max_size=count, unique=True))
    if data.draw(st.booleans()):
        times = sorted(times)
    flags = [np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count))) for _ in range(3)]
    if data.draw(st.booleans()):
        flags[1:] = [np.ones(count, bool)] * 2
    keys, pictures, kept = flags
    known, restart = data.draw(st.booleans()), data.draw(st.booleans())
    times = np.array(times)
    may_start = known and restart and groups_are_closed(times, keys, pictures)
    packets = Packets(
        times,
        keys,
        pictures,
        pictures & kept,
        frames_known=bool(known and keys[0] and times[0] == times.min()),
        may_start_at_keys=may_start,
        may_seek=may_start and data.draw(st.booleans()),
    )
    version = Version(data.draw(st.integers(0, 2**62)), data.draw(st.integers(-(2**62), 2**62)))
    if text := pack(version, packets):
        found = unpack(text).packets_of(version)
        assert found
        assert_equal(found, packets)
        assert unpack(text).packets_of(version._replace(size=version.size + 1)) is None
    assert bool(text) == (may_start and bool((pictures & kept).all()))


def test_a_file_that_is_another_is_looked_into(tmp_path, no_look):
    path, other = tmp_path / "a.mp4", tmp_path / "b.mp4"
    text = text_of(encode(path, striped_frames(40), B_FRAMES))
    encode(path, striped_frames(30)).touch()
    np.testing.assert_array_equal(VideoFile(path, packets=text).read([7]), decode(path)[[7]])
    encode(other, striped_frames(40), B_FRAMES)
    assert known_packets(Stream(other), text).times.size == 40
    no_look()
    with pytest.raises(BaseException, match="looked into"):
        known_packets(Stream(other), text)


def test_prepare_keeps_them_and_training_uses_them(tmp_path, no_look):
    folder = tmp_path / "tree" / "class"
    folder.mkdir(parents=True)
    path = encode(folder / "a.mp4", striped_frames(40), B_FRAMES)
    for out, target in (("i.jsonl", None), ("small.jsonl", tmp_path / "small")):
        prepare(PrepareConfig(tmp_path / "tree", processes=1, transcode=target, short_side=32, out=tmp_path / out))
    (entry,), (small,) = (read_index(tmp_path / out).split.entries for out in ("i.jsonl", "small.jsonl"))
    assert entry == Entry(path, 0, num_frames=40)
    expected, expected_small = decode(path)[[9, 3]], decode(small.path)[[9, 3]]
    no_look()
    np.testing.assert_array_equal(open_frames(entry).read([9, 3]), expected)
    np.testing.assert_array_equal(open_frames(small).read([9, 3]), expected_small)
    # An index that is taken up again, for more videos, keeps them as well.
    encode(folder / "b.mp4", striped_frames(20))
    taken_up = prepare(PrepareConfig(tmp_path / "tree", processes=1, out=tmp_path / "i.jsonl"))
    assert [bool(item.packets) for item in taken_up.split.entries] == [True, True]
    np.testing.assert_array_equal(open_frames(taken_up.split.entries[0]).read([9, 3]), expected)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize("held", [1 << 26, 100])
def test_packets_that_are_made_up_lead_to_no_wrong_frame(tmp_path, monkeypatch, suffix, held):
    """A text whose checksum is right, and which says what is not so: other key frames, other times, more frames."""
    monkeypatch.setattr("train.data.reader.selective._MOST_HELD", held)
    codec = ("libx265", {"x265-params": "log-level=none:keyint=12:min-keyint=12:open-gop=0"})
    path = encode(tmp_path / f"a{suffix}", striped_frames(40), codec if suffix == ".ts" else B_FRAMES)
    expected, packets, version = decode(path), read_packets(Stream(path)), Version.of(path)
    assert packets.may_start_at_keys
    keys = packets.keys.copy()
    keys[np.flatnonzero(groups_may_start(packets))] = True
    longer = np.concatenate([packets.times, packets.times.max() + 512 * np.arange(1, 5)])
    lies = [
        packets._replace(keys=keys),
        packets._replace(times=packets.times + 1),
        packets._replace(times=2 * packets.times),
        Packets(longer, np.resize(keys, 44) & (np.arange(44) < 40), np.ones(44, bool), np.ones(44, bool)),
    ]
    for lie in lies + [lie._replace(may_seek=not lie.may_seek) for lie in lies]:
        video = VideoFile(path, packets=pack(version, lie))
        wanted = np.arange(len(expected))
        for order in (wanted, wanted[::-3], wanted[-2:]):
            try:
                found = video.read(order)
            except VideoError:
                continue
            np.testing.assert_array_equal(found, expected[order])


def groups_may_start(packets):
    """(packets,) bool: whether a key frame at the place would leave the groups closed."""
    found = []
    for place in range(packets.times.size):
        keys = packets.keys.copy()
        keys[place] = True
        found.append(groups_are_closed(packets.times, keys, packets.pictures))
    return np.array(found)


def test_older_indices_and_readers(tmp_path):
    """Entries are the same videos with and without what is kept of their packets."""
    entry = Entry(tmp_path / "a.mp4", 0, num_frames=40)
    assert entry == replace(entry, packets="text")
    assert "text" not in repr(replace(entry, packets="text"))
