"""What a file's container and its packets say, found without a decoder: above all, whether a reader may seek in it.

A reader that seeks takes a file's packets for its frames, and the frames before a key frame in the file for those that
are shown before it. Where that is wrong decord counts too many frames, returns others than were asked for, or waits for
ever for one that never comes, in C++ with the interpreter lock held. It is wrong
- where an mp4's edit list shows less than was stored: clips cut without encoding them again, as Kinetics clips are,
  begin with frames that are decoded and never shown, and may end with some;
- in "open" groups of pictures, the ordinary ones of x265: frames stored behind a key frame are shown before it;
- where an mp4's key frame is decoded before the one before it is shown: a seek to the earlier ends at the later;
- where a key frame of H.264 is no full restart, so that a decoder gives out frames late or not at all after a seek.

So such a file must be known for what it is before decord sees it. An mp4's index tells that in a fraction of a
millisecond; in other files the packets do.
"""

from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from train.data.reader import mp4
from train.data.reader.errors import VideoError
from train.data.reader.h264 import is_restart
from train.data.reader.packets import Packets, may_seek, read_packets

_MP4_KINDS = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp"}
_MATROSKA = b"\x1aE\xdf\xa3"  # webm too
_SAMPLE_HEAD = 4096  # bytes of a frame in which the first part of the picture itself begins

_NOT_IN_ORDER = "decoding cannot start afresh at each of its key frames"


class Contents(NamedTuple):
    """What is known of a video file before any of it is decoded."""

    why_not_seek: str | None
    """Why it may only be read from its start to its end; None where a reader may seek in it."""
    packets: Packets | None = None
    """Those of H.264 in which a reader may seek."""


def look_into(path: Path) -> Contents:
    """Raises VideoError where nothing of the file at `path` can be decoded, OSError where it cannot be read."""
    with path.open("rb") as file:
        head = file.read(64)
        if head[4:8] in _MP4_KINDS:
            moov = mp4.read_moov(file)
            if moov is None:
                raise VideoError(path, "is truncated: its index (the mp4 moov box) is missing or incomplete")
            try:
                return _look_into_mp4(file, memoryview(moov))
            except EOFError:
                raise VideoError(path, "is truncated: it ends before the last of its frames") from None
            except (ValueError, IndexError, StopIteration) as error:
                return Contents(f"its index is not understood ({error})")
        elif head.startswith(_MATROSKA):
            if b"webm" in head:  # none of its codecs shows frames in another order than that of the file
                return Contents(None)
        elif head[:4] != b"RIFF" or head[8:12] != b"AVI ":
            return Contents("its container is none in which seeking is exact")
    return _of_packets(read_packets(path))


def _of_packets(packets: Packets) -> Contents:
    if not may_seek(packets):
        return Contents(_NOT_IN_ORDER)
    return Contents(None, packets if packets.length_bytes else None)


def _look_into_mp4(file: BinaryIO, moov: memoryview) -> Contents:
    """As `look_into`. Raises EOFError where the file ends too early, ValueError or IndexError for a broken index."""
    if mp4.is_fragmented(moov):
        return Contents("its frames are indexed in fragments, which are not looked into")
    size = file.seek(0, 2)
    contents = [_of_track(file, size, track, mp4.movie_ticks_per_second(moov)) for track in mp4.video_tracks(moov)]
    if len(contents) == 1:
        return contents[0]
    return next((found for found in contents if found.why_not_seek), Contents(None))  # which one is shown, players say


def _of_track(file: BinaryIO, size: int, track: mp4.Track, movie_ticks_per_second: int) -> Contents:
    """As `look_into`, of a track in a file of `size` bytes."""
    starts, ends = track.sample_places()
    if ends.max(initial=0) > size:
        raise EOFError
    if track.display_matrix != mp4.IDENTITY:
        return Contents("its frames are to be shown rotated")
    times = track.composition_times()
    if _is_trimmed(track, times, movie_ticks_per_second):
        return Contents("its edit list leaves out frames")
    keys = np.zeros(times.size, np.bool_)
    keys[track.key_samples()] = True
    # FFmpeg seeks to the last key frame that is decoded by the time at which the wanted one is shown.
    if (track.decoding_times()[keys][1:] <= times[keys][:-1]).any():
        return Contents("its key frames follow too closely on one another")
    length_bytes = track.nal_length_bytes()
    restart = _all_restart(file, starts[keys], length_bytes)
    return _of_packets(Packets(times, keys, np.ones(times.size, np.bool_), restart, length_bytes))


def _is_trimmed(track: mp4.Track, times: NDArray[np.int64], movie_ticks_per_second: int) -> bool:
    """Whether the edit list of a track does anything but show every frame once. An edit is [start, start + length)."""
    edits = [edit for edit in track.edits() if edit.start != -1]
    if not edits:
        return False
    if len(edits) > 1 or edits[0].rate != 1 << 16 or times.size == 0:
        return True
    end = edits[0].start + edits[0].length * track.ticks_per_second / movie_ticks_per_second
    return bool(times.min() < edits[0].start or times.max() >= end)


def _all_restart(file: BinaryIO, starts: NDArray[np.int64], length_bytes: int | None) -> bool:
    """Whether the frames whose data starts there are all full restarts; codecs other than H.264 have no other keys."""
    if length_bytes is None:
        return True
    for start in starts.tolist():
        file.seek(start)
        if not is_restart(file.read(_SAMPLE_HEAD), length_bytes):
            return False
    return True
