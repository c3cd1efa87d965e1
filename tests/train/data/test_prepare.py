import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from tests.support.video_files import (
    VP9,
    audio_only,
    cut_without_encoding,
    decode,
    encode,
    striped_frames,
    with_display_matrix,
    with_edits,
)
from tests.train.data.test_frame_folder import write_folder
from train.data.check import check
from train.data.entries import Entry, Split
from train.data.index import Checked, IndexWriter, read_index
from train.data.prepare import PrepareConfig, prepare
from train.data.reader import VideoFile, open_frames
from train.data.reader.packets import read_packets
from train.data.reader.stream import Stream
from train.data.transcode import crf_of, scaled_size
from train.errors import InputError

B_FRAMES = ("libx264", {"crf": "18", "g": "12", "bf": "3"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set with every fate: `list.txt`, its classes in `classes.txt`."""
    root = tmp_path_factory.mktemp("data")
    videos = root / "videos"
    videos.mkdir()
    whole = encode(videos / "a good one.mp4", striped_frames(40), B_FRAMES)
    encode(videos / "b.webm", striped_frames(30), VP9)
    with_edits(videos / "c.mp4", whole, [(15, 5)])
    (videos / "d.webm").write_bytes((videos / "b.webm").read_bytes()[:9000])
    (videos / "e.mp4").write_bytes(whole.read_bytes()[:2000])
    audio_only(videos / "f.mp4")
    names = ["a good one.mp4", "b.webm", "c.mp4", "d.webm", "e.mp4", "f.mp4", "gone.mp4"]
    (root / "list.txt").write_text("".join(f"{name} {i % 2}\n" for i, name in enumerate(names)))
    (root / "classes.txt").write_text("even\nodd\n")
    return root


def config(folder, out, **options):
    defaults = {"root": folder / "videos", "classes": folder / "classes.txt", "processes": 2, "timeout": 60.0}
    return PrepareConfig(folder / "list.txt", "list", out=out, **(defaults | options))


def test_what_is_found_is_in_the_index_and_in_the_report(folder, tmp_path, capsys):
    index = prepare(config(folder, tmp_path / "index.jsonl"))
    videos = folder / "videos"
    assert index.split == Split(
        "list",
        (
            Entry(videos / "a good one.mp4", 0, num_frames=40),
            Entry(videos / "b.webm", 1, num_frames=30),
            Entry(videos / "c.mp4", 0, num_frames=15),
        ),
        ("even", "odd"),
    )
    fates = [(item.number, item.entry.path.name, item.problem) for item in index.left_out]
    assert fates == [
        (3, "d.webm", "short"),
        (4, "e.mp4", "corrupt"),
        (5, "f.mp4", "corrupt"),
        (6, "gone.mp4", "missing"),
    ]
    assert index.counts == {"missing": 1, "short": 1, "corrupt": 2, "hung": 0}
    assert index == read_index(tmp_path / "index.jsonl")
    report = capsys.readouterr().out
    assert "list: 3 of 7 usable; left out: 4 (57.1%), 1 missing, 1 short, 2 corrupt" in report
    assert f"missing: {videos / 'gone.mp4'}: no such file" in report
    moved = read_index(tmp_path / "index.jsonl", root=Path("/elsewhere"))
    assert moved.split.entries[1].path == Path("/elsewhere/b.webm")


def test_hung_files_are_killed_named_and_tried_again_on_request(folder, tmp_path):
    (tmp_path / "list.txt").write_text("b.webm 0\n")
    hasty = replace(config(folder, tmp_path / "index.jsonl", timeout=1e-4), dataset=tmp_path / "list.txt")
    index = prepare(hasty)
    assert len(index.split) == 0
    assert [(item.problem, item.reason) for item in index.left_out] == [
        ("hung", "took more than 0.0001 s to be read, its decoder was taken for hung and ended")
    ]
    assert prepare(hasty) == index  # nothing is left to do
    patient = prepare(replace(hasty, timeout=60.0, retry=True))
    assert [entry.path.name for entry in patient.split.entries] == ["b.webm"]
    assert patient.counts == {"missing": 0, "short": 0, "corrupt": 0, "hung": 0}


RUN = """
import sys
from pathlib import Path
from typing import Any
from train.data.prepare import PrepareConfig, prepare
if __name__ == "__main__":
    root = Path(sys.argv[1])
    prepare(PrepareConfig(root / "list.txt", "list", root / "videos", root / "classes.txt", None,
                          Path(sys.argv[2]), processes=1))
"""


def is_running(pid):
    status = Path("/proc", pid, "stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_killed_and_continued(folder, tmp_path):
    path = tmp_path / "index.jsonl"
    script = tmp_path / "run.py"
    script.write_text(RUN)
    command = [sys.executable, str(script), str(folder), str(path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (path.exists() and path.read_bytes().count(b"\n") >= 3):
        time.sleep(0.005)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    while time.monotonic() < deadline and any(map(is_running, children)):
        time.sleep(0.005)
    assert children
    assert not any(map(is_running, children))
    before = path.read_bytes()
    index = prepare(config(folder, path))
    assert path.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert index == prepare(config(folder, tmp_path / "unbroken.jsonl"))


def some_split(count=5):
    return Split("train", tuple(Entry(Path(f"/data/clip {i}, ü.mp4"), i % 2) for i in range(count)), ("a", "b"))


def write_index(path, split, numbers):
    with IndexWriter(path, split, Path("/data"), {"min_frames": 1}) as writer:
        for number in numbers:
            entry = replace(split.entries[number], num_frames=10 + number)
            writer.write(Checked(number, entry, "corrupt" if number == 2 else None, "why" if number == 2 else ""))
    return writer


def test_index_cut_at_any_byte_is_continued(tmp_path):
    split, path = some_split(), tmp_path / "index.jsonl"
    write_index(path, split, [3, 0, 2, 1, 4])
    whole, expected = path.read_bytes(), read_index(path)
    assert [entry.num_frames for entry in expected.split.entries] == [10, 11, 13, 14]
    assert [(item.number, item.reason) for item in expected.left_out] == [(2, "why")]
    for cut in sorted({*range(0, len(whole), 17), *(end + i for end in _line_ends(whole) for i in (-1, 0, 1))}):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"is not finished, \d of 5|holds no complete line"):
            read_index(path)
        writer = IndexWriter(path, split, Path("/data"), {"min_frames": 1})
        left = [number for number in range(5) if number not in writer.problems]
        assert len(left) == 5 - max(0, whole[:cut].count(b"\n") - 1)
        write_index(path, split, left)
        assert read_index(path) == expected


def _line_ends(data):
    return [i for i, byte in enumerate(data[:-2]) if byte == ord("\n")]


def test_index_of_something_else_is_not_overwritten(tmp_path):
    path = tmp_path / "index.jsonl"
    write_index(path, some_split(), range(5))
    before = path.read_bytes()
    others = tuple(replace(entry, path=Path("/others") / entry.path.name) for entry in some_split(6).entries)
    for split, root, settings, message in (
        (replace(some_split(), name="val"), "/data", {"min_frames": 1}, r"of another split \(train\)"),
        (replace(some_split(), entries=others), "/others", {"min_frames": 1}, r"of another root \(/data\)"),
        (some_split(), "/data", {"min_frames": 8}, "made with {'min_frames': 1}"),
    ):
        with pytest.raises(InputError, match=message):
            IndexWriter(path, split, Path(root), settings)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b'{"Holding something": "0"}', b"\x89PNG", b"{", b"x\n"])
def test_nothing_but_an_index_is_overwritten(folder, tmp_path, content):
    """A file of labels in one line without an end is no beginning of an index."""
    path = tmp_path / "labels.json"
    path.write_bytes(content)
    if content == b"{":  # as a writer leaves it that was killed at once
        assert len(prepare(config(folder, path)).split) == 3
        return
    with pytest.raises(InputError, match=r"is no index, and is not overwritten|is no line of an index"):
        prepare(config(folder, path))
    assert path.read_bytes() == content


def test_videos_are_not_transcoded_over_themselves(folder, tmp_path):
    with pytest.raises(InputError, match="the folder of the videos themselves"):
        prepare(config(folder, tmp_path / "i.jsonl", transcode=folder / "list.txt" / ".." / "videos"))


HEADER = b'{"format": 1, "split": "val", "entries": 1, "root": ".", "settings": {}, "list": "", "class_names": ["a"]}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no complete line"),
        (b"no json\n", "line 1: is no line of an index"),
        (b"[]\n", "line 1: is no line of an index"),
        (b'{"format": 99}\n', "is of format 99"),
        (HEADER + b'{"number": 1}\n', "line 2: is no line of an index"),
        (HEADER + b"\xff\n", "line 2: is no line of an index"),
        (b'{"format": 1, "entries": 1}\n', "line 1: .* fields .* are missing"),
    ],
)
def test_no_index(tmp_path, content, message):
    path = tmp_path / "index.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_index(path)
    with pytest.raises(InputError, match="absent: no such file"):
        read_index(tmp_path / "absent")


def test_reader_that_shows_other_frames_is_found_out(folder, monkeypatch):
    entry = Entry(folder / "videos" / "a good one.mp4", 0)
    assert check(0, entry) == Checked(0, replace(entry, num_frames=40))
    true_read, true_length = VideoFile.read, VideoFile.__len__
    monkeypatch.setattr(VideoFile, "read", lambda self, i: true_read(self, np.minimum(np.asarray(i) + 1, 39)))
    assert "disagree about what its frame 0 shows" in check(0, entry).reason
    monkeypatch.setattr(VideoFile, "read", true_read)
    monkeypatch.setattr(VideoFile, "__len__", lambda self: true_length(self) - 1)
    assert "counts 39 frames, 40 can be decoded" in check(0, entry).reason


def test_damaged_frames_are_found(folder, tmp_path):
    data = bytearray((folder / "videos" / "a good one.mp4").read_bytes())
    for position in range(len(data) // 3, len(data) * 2 // 3, 50):
        data[position] ^= 0xFF
    (tmp_path / "flipped.mp4").write_bytes(data)
    checked = check(0, Entry(tmp_path / "flipped.mp4", 0))
    assert checked.problem == "corrupt"
    assert checked.reason


def test_frame_folders_with_wrong_counts(tmp_path):
    write_folder(tmp_path / "six")
    write_folder(tmp_path / "gap")
    (tmp_path / "gap" / "00002.jpg").unlink()
    write_folder(tmp_path / "damaged")
    (tmp_path / "damaged" / "00004.jpg").write_bytes(b"\xff\xd8 no")
    (tmp_path / "list.txt").write_text("six 6 0\ngap 6 0\ndamaged 6 0\nabsent 6 0\n")
    (tmp_path / "classes.txt").write_text("a\n")
    settings = PrepareConfig(tmp_path / "list.txt", "frames_list", classes=tmp_path / "classes.txt", processes=1)
    index = prepare(settings)
    assert index.split.entries == (Entry(tmp_path / "six", 0, "frames", 6),)
    assert [(item.problem, item.reason) for item in index.left_out] == [
        ("corrupt", "00002.jpg: is missing, later frames to 6 exist"),
        ("corrupt", "00004.jpg: is no picture, or is damaged or truncated"),
        ("missing", "no such file or directory"),
    ]
    for listed, problem in ((4, None), (6, None), (7, "short")):
        checked = check(0, Entry(tmp_path / "six", 0, "frames", listed))
        assert (checked.problem, checked.entry.num_frames) == (problem, listed)
    assert check(0, Entry(tmp_path / "six", 0, "frames")).entry.num_frames == 6
    assert check(0, Entry(tmp_path / "six", 0, "frames"), min_frames=7).reason == (
        "has 6 frames, there should be at least 7"
    )


def referred_to(path):
    """Times of the frames to which others may refer: those that are left when FFmpeg leaves out the others."""
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.skip_frame = "NONREF"
        return [frame.pts for frame in container.decode(video=0)]


def test_transcode(tmp_path):
    source = tmp_path / "tree" / "class"
    source.mkdir(parents=True)
    whole = encode(source / "wide.mp4", striped_frames(30, 96, 150), B_FRAMES)
    encode(source / "wide.webm", striped_frames(20, 90, 160), VP9)
    with_display_matrix(source / "turned.mp4", whole, 0, 1, -1, 0)
    gop240 = encode(tmp_path / "gop240.mp4", striped_frames(120), ("libx264", {"crf": "30", "g": "240", "bf": "3"}))
    cut_without_encoding(source / "cut.mp4", gop240, first=80, last=100)
    write_folder(source / "frames", count=12)
    (source / "bad.mp4").write_bytes(b"bad")
    settings = PrepareConfig(
        tmp_path / "tree", "tree", processes=2, transcode=tmp_path / "small", short_side=64, out=tmp_path / "i.jsonl"
    )
    index = prepare(settings)
    assert [(item.entry.path.name, item.problem) for item in index.left_out] == [("bad.mp4", "corrupt")]
    sizes = {}
    for entry in index.split.entries:
        frames = open_frames(entry)
        assert isinstance(frames, VideoFile)
        assert (frames.read_by, len(frames)) == ("SelectiveFile", entry.num_frames)
        height, width = frames.read([0]).shape[1:3]
        sizes[entry.path.relative_to(tmp_path / "small" / "class").as_posix()] = (entry.num_frames, width, height)
        packets = read_packets(Stream(entry.path))
        assert np.diff(np.flatnonzero(packets.keys), append=len(packets.keys)).max() <= 16
        shown_earlier = packets.times < np.maximum.accumulate(packets.times)
        assert shown_earlier.mean() > 0.25  # B-frames, to which nothing refers; x264 places them as it sees fit
        assert referred_to(entry.path) == packets.times[~shown_earlier].tolist()
    assert sizes == {
        "cut.mp4": (21, 64, 64),
        "frames.mp4": (12, 64, 48),  # smaller already
        "turned.mp4": (30, 64, 100),
        "wide.mp4": (30, 100, 64),
        "wide.webm.mp4": (20, 114, 64),
    }
    cut = VideoFile(tmp_path / "small/class/cut.mp4").read(range(21)).astype(float)
    assert np.abs(cut - decode(source / "cut.mp4")).mean() < 12  # the same frames, encoded twice
    assert not [path for path in (tmp_path / "small").rglob("*") if "unfinished" in path.name]

    # As if it had been killed before it could note anything: complete files are taken as they are, others are not.
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "small").rglob("*.mp4")}
    settings.index.unlink()
    broken = tmp_path / "small/class/wide.mp4"
    broken.write_bytes(broken.read_bytes()[:1500])
    assert prepare(settings) == index
    again = {path: path.stat().st_mtime_ns for path in (tmp_path / "small").rglob("*.mp4")}
    assert [path for path in done if done[path] != again[path]] == [broken]

    # Of another quality they are none of this index, which would say what they are not.
    bytes_before = {path: path.stat().st_size for path in done}
    settings.index.unlink()
    prepare(replace(settings, crf=40))
    assert {crf_of(path) for path in done} == {40}
    assert sum(path.stat().st_size for path in done) < 0.8 * sum(bytes_before.values())


def test_scaled_size():
    assert scaled_size((1280, 720), 256) == (456, 256)
    assert scaled_size((720, 1280), 256) == (256, 456)
    assert scaled_size((320, 240), 256) == (320, 240)
    assert scaled_size((47, 65), 256) == (48, 64)  # even, as 4:2:0 needs
    assert scaled_size((1, 9), 256) == (2, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"processes": 0}, "processes"), ({"timeout": 0.0}, "timeout"), ({"min_frames": 0}, "min_frames")],
)
def test_options_are_checked(folder, tmp_path, options, message):
    with pytest.raises(InputError, match=f"{message}: must be"):
        config(folder, tmp_path / "index.jsonl", **options)


def test_transcode_needs_places(folder, tmp_path):
    (tmp_path / "list.txt").write_text(f"{folder / 'videos' / 'b.webm'} 0\n")
    settings = PrepareConfig(tmp_path / "list.txt", "list", classes=folder / "classes.txt", transcode=tmp_path / "t")
    with pytest.raises(InputError, match="is not inside"):
        prepare(settings)


def test_lines_are_plain_json(tmp_path):
    write_index(tmp_path / "index.jsonl", some_split(), range(5))
    first, second, *_ = map(json.loads, (tmp_path / "index.jsonl").read_text().splitlines())
    assert (first["split"], first["entries"], first["root"]) == ("train", 5, "/data")
    assert (second["path"], second["num_frames"], second["problem"]) == ("clip 0, ü.mp4", 10, None)
