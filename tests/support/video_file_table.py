"""Writes docs/video-files.md, what each reader does with each kind of file: `python -m
tests.support.video_file_table`."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.support.odd_files import in_fields, packed_mpeg4, with_hidden_frames, with_notes
from tests.support.video_files import (
    HEVC,
    OPEN_GOP,
    VP9,
    bad_videos,
    cut_without_encoding,
    decode,
    encode,
    striped_frames,
    with_display_matrix,
    with_edits,
)
from train.data.check import check
from train.data.entries import Entry
from train.data.killable import call_each
from train.data.reader import VideoError, VideoFile
from train.data.reader.with_decord import import_decord

PAGE = Path(__file__).parents[2] / "docs" / "video-files.md"

INTRODUCTION = """# What readers do with video files

Written by `python -m tests.support.video_file_table` from small files of each kind; a test compares the last two
columns with what the code does. Frames are *right* where they are those that PyAV decodes, read in random order.
*decord alone* is decord 0.6.0, asked for its number of frames and for all of them in random order, in a process that is
killed after ten seconds; *reader* is `train.data.reader`, with the decoder that it chose; *prepare* is the verdict of
`python -m train prepare`.

A file that the reader refuses raises `VideoError`, which names it: in training another sample takes its place and is
counted, in evaluation it is reported as missing. What is `short` reads without an error as far as it goes: Matroska
says nothing at its start about how many frames follow; only `prepare`, which compares times, sees that the end is lost.

Which decoder reads a file is decided before any of it is decoded, by its packets. *Selective* is PyAV, which starts at
the key frame before each wanted one and leaves out what no wanted frame needs: on the way, it decodes those frames of
H.264, MPEG-4 and VP8 alone that others may refer to, which saves a third of the time in files that x264 encodes.
*Straight* is PyAV from the first frame on, for files in which decoding cannot start at each key frame, or in which
packets do not tell.
`--data.decoder decord` and `torchcodec` take these for the files in which they are exact as well, and PyAV for all
others: those in containers without exact seeking, with an edit list that leaves out frames, with hidden frames, several
video streams or pictures to be turned; decord also not for those that do not say how long they are, and for H.264 in
4:4:4. `pyav` goes straight always.

A packet is no frame: VP8 and VP9 store some that are never shown, XviD and DivX pack two into one, others hold no
picture. Such files read as decoding shows them. Where packets do not tell how many frames there are (H.264 that may be
coded in fields, MPEG-2, WMV and other codecs of old), a file is decoded once to count them, unless an index of
`prepare` says how many there are.

A process looks at all packets of a file when it first meets it. An index of `prepare` saves that look: of each regular
file, in which every packet is one frame that is shown and decoding may start at each key frame, it keeps the times of
the packets, which are key frames and whether decoders may seek, packed into some 50 to 220 letters with a checksum. It
counts while the file has the size and the time of change that it had then (`cp -p`, `rsync -t` and `mv` keep both).
Every other file is looked into as without an index: one that was changed or copied without its time, one that is not
regular, one of an index that was made before there was such a thing. Frames are the same either way.

A file's name is a name: `10:30.mp4` and `http:x.mp4` are no addresses, whatever the decoder.

Frames are turned and mirrored as the container says (mp4 and mov display matrices by quarter turns), as players do.

| file | decord alone | reader | prepare |
|---|---|---|---|
"""


def files(folder: Path) -> dict[str, Path]:
    """One file of each kind, by what it is."""
    whole = encode(folder / "whole.mp4", striped_frames(60), ("libx264", {"crf": "18", "g": "12", "bf": "3"}))
    gop240 = encode(folder / "gop240.mp4", striped_frames(240), ("libx264", {"crf": "30", "g": "240", "bf": "3"}))
    lying = encode(folder / "lying.mp4", striped_frames(20, 48, 80))
    times = np.cumsum(np.random.default_rng(3).integers(1, 120, size=40)).tolist()
    colon = folder / "10:30.mp4"
    colon.write_bytes(whole.read_bytes())
    good = {
        "H.264 with B-frames, mp4": whole,
        "VP9, webm": encode(folder / "vp9.webm", striped_frames(60), VP9),
        "MPEG-4, avi": encode(folder / "mpeg4.avi", striped_frames(60), ("mpeg4", {"g": "12"})),
        "variable frame rate, mkv": encode(folder / "varying.mkv", striped_frames(40), times=times),
        "fragmented mp4": encode(
            folder / "fragments.mp4", striped_frames(60), container_options={"movflags": "frag_keyframe+empty_moov"}
        ),
        "10 bits": encode(folder / "ten.mp4", striped_frames(20), pixels="yuv420p10le"),
        "cut without encoding (pre-roll)": cut_without_encoding(folder / "cut.mp4", gop240, first=150, last=210),
        "edit list that trims the end": with_edits(folder / "end.mp4", whole, [(15, 0)]),
        "edit list that trims both ends": with_edits(folder / "both.mp4", whole, [(21, 24)]),
        "edit list with two stretches": with_edits(folder / "two.mp4", whole, [(9, 0), (12, 30)]),
        "edit list that shows nothing": with_edits(folder / "nothing.mp4", whole, [(0, 0)]),
        "display matrix: quarter turn": with_display_matrix(folder / "turned.mp4", lying, 0, 1, -1, 0),
        "H.264 with open groups of pictures": encode(folder / "open.mp4", striped_frames(60), OPEN_GOP),
        "HEVC with open groups of pictures": encode(folder / "hevc.mkv", striped_frames(60), HEVC),
        "VP8 with hidden frames, webm": with_hidden_frames(folder / "hidden.webm"),
        "VP8 with hidden frames, mkv": with_hidden_frames(folder / "hidden.mkv"),
        "no duration, webm": encode(folder / "live.webm", striped_frames(60), VP9, {"live": "1"}),
        "no duration, mkv": encode(folder / "live.mkv", striped_frames(60), container_options={"live": "1"}),
        "MPEG-4 packed as by XviD, avi": packed_mpeg4(folder / "packed.avi"),
        "packets without a picture": with_notes(folder / "notes.mp4"),
        "H.264 with a packet for each field": in_fields(folder / "two_a_frame.mkv"),
        "H.264 that may be of fields": encode(
            folder / "fields.mp4",
            striped_frames(20),
            ("libx264", {"flags": "+ildct+ilme", "x264-params": "tff=1"}),
        ),
        "MPEG-2, mkv": encode(folder / "mpeg2.mkv", striped_frames(20), ("mpeg2video", {"g": "12", "bf": "2"})),
        "name with a colon": colon,
        "AV1, mkv": encode(folder / "av1.mkv", striped_frames(10), ("libsvtav1", {"preset": "12"})),
        "MPEG transport stream": encode(folder / "stream.ts", striped_frames(40)),
        "one frame": encode(folder / "single.mp4", striped_frames(1)),
        "48 pixels wide": encode(folder / "narrow.mp4", striped_frames(20, 64, 48)),
    }
    bad = {kind.replace("_", " "): path for kind, path in bad_videos(folder / "bad").items()}
    return good | {
        kind.replace("cut ", "").replace(".", " % of an ") if "cut" in kind else kind: bad[kind] for kind in bad
    }


def rows(kinds: dict[str, Path]) -> Iterator[tuple[str, str, str]]:
    """(file, reader, prepare) for each kind."""
    for kind, path in kinds.items():
        checked = check(0, Entry(path, 0))
        verdict = (
            f"{checked.entry.num_frames} frames" if checked.problem is None else f"{checked.problem}: {checked.reason}"
        )
        yield kind, by_reader(path), verdict


def by_reader(path: Path) -> str:
    """What `train.data.reader` does."""
    try:
        video = VideoFile(path)
        frames = video.read(order := _order(len(video)))
    except VideoError as error:
        return error.reason
    return f"{_verdict(path, len(video), order, frames)} ({video.read_by.removesuffix('File')})"


def by_decord_alone(path: Path) -> str:
    """What decord does without any guard. May hang, or crash."""
    decord = import_decord()

    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        order = _order(len(reader))
        return _verdict(path, len(reader), order, reader.get_batch(order).asnumpy())
    except Exception as error:
        return f"raises {type(error).__name__}"


def _order(count: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(count)


def _verdict(path: Path, count: int, order: np.ndarray, frames: np.ndarray) -> str:
    """How many frames, and how many of these are right."""
    try:
        expected = decode(path)
    except Exception:
        return f"{count} frames"
    if frames.shape[1:] != expected.shape[1:]:
        expected = np.rot90(expected, -1, (1, 2))  # of the one file that is to be turned, clockwise
    near = [
        i < len(expected) and np.abs(f.astype(int) - expected[i]).mean() < 5 for i, f in zip(order, frames, strict=True)
    ]
    right = "right" if all(near) else f"{sum(near)} of them right"
    return f"{count} frames, {right}"


def main() -> None:
    """Write the page."""
    with tempfile.TemporaryDirectory() as name:
        kinds = files(Path(name))
        alone = {}
        for path, outcome in call_each(by_decord_alone, [p for p in kinds.values() if p.is_file()], 2, timeout=10.0):
            is_hung = isinstance(outcome, TimeoutError)
            alone[path] = "**hangs**" if is_hung else "**crashes**" if isinstance(outcome, Exception) else outcome
        lines = [
            f"| {kind} | {alone.get(kinds[kind], '–')} | {reader} | {verdict} |"
            for kind, reader, verdict in rows(kinds)
        ]
    PAGE.write_text(INTRODUCTION + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
