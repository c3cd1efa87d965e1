"""What the packets of a video say before any is decoded: how many frames there are, and where a reader may seek.

A reader that seeks takes packets for frames, and the frames before a key frame in the file for those that are shown
before it. Where that is wrong it returns other frames than were asked for, or, decord, waits for ever for one that
never comes, in C++ with the interpreter lock held. It is wrong
- where a packet is no frame (`bitstream`);
- where an mp4's edit list shows less than was stored: clips cut without encoding them again, as Kinetics clips are,
  begin with frames that are decoded and never shown, and may end with some;
- in "open" groups of pictures, the ordinary ones of x265: frames stored behind a key frame are shown before it;
- where an mp4's key frame is decoded before the one before it is shown: a seek to the earlier ends at the later;
- where a key frame of H.264 is no full restart, so that a decoder gives out frames late or not at all after a seek.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from train.data.reader.bitstream import RESTART, first_slice, length_bytes_of
from train.data.reader.errors import VideoError
from train.data.reader.stream import Stream

_SEEKABLE = {"mp4", "matroska", "avi"}  # containers in which seeking is exact
_NO_TIME = np.iinfo(np.int64).min


class Packets(NamedTuple):
    """The packets of a video in the order of the file, which is that of decoding."""

    times: NDArray[np.int64]
    """When each is to be shown, in ticks of the stream; the least integer where the file does not say."""
    keys: NDArray[np.bool_]
    """Whether a reader may seek to it."""
    shown: NDArray[np.bool_]
    """Whether it holds a frame that is shown: others serve as references, or an edit list leaves them out."""
    frames_known: bool = True
    """Whether each that is shown is one frame for sure; if not, decoding alone tells how many there are."""
    why_not_seek: str | None = None
    """Why the file may only be read from its start to its end; None where a reader may seek in it."""


def read_packets(stream: Stream) -> Packets:
    """All packets of an open video; takes a tenth of the time of decoding a clip. Raises VideoError.

    An mp4 of which the end is lost raises, too: its index says where every frame lies.
    """
    codec = stream.codec
    length_bytes = length_bytes_of(codec.extradata) if codec.name == "h264" else 0
    rows: list[tuple[int, int, bool, bool, int | None]] = []
    restarts = damaged = False
    with stream.packets() as packets:
        for packet in packets:
            pts, dts, key = packet.pts, packet.dts, packet.is_keyframe
            data = memoryview(packet)
            damaged |= packet.is_corrupt
            rows.append(
                (
                    _NO_TIME if pts is None else pts,
                    _NO_TIME if dts is None else dts,
                    key,
                    not packet.is_discard,
                    stream.look(data),
                )
            )
            if key and length_bytes and first_slice(data, length_bytes) != RESTART:
                restarts = True
    if stream.ends_early() or (damaged and "mp4" in stream.container_names):
        raise VideoError(stream.path, "is truncated: it ends before the last of its frames")
    if not rows:
        raise VideoError(stream.path, "has no video stream (audio only, or not a single frame)")
    times, decoded_at, keys, kept, frames = zip(*rows, strict=True)
    known = None not in frames
    shown = np.array(kept, np.bool_) & np.array([count != 0 for count in frames])
    found = Packets(np.array(times, np.int64), np.array(keys, np.bool_), shown)
    why_not = _why_not_seek(stream.container_names, stream.num_frames, known, restarts, all(kept), len(rows))
    if why_not is None and not may_seek(found, np.array(decoded_at, np.int64)):
        why_not = "decoding cannot start afresh at each of its key frames"
    begins_whole = bool(keys[0]) and min(times) == times[0]  # frames shown before the first key frame cannot be decoded
    return found._replace(frames_known=known and begins_whole, why_not_seek=why_not)


def _why_not_seek(
    names: set[str], promised: int, known: bool, restarts: bool, all_kept: bool, count: int
) -> str | None:
    if not names & _SEEKABLE:
        return "its container is none in which seeking is exact"
    if not known:
        return "its packets are not known to be a frame each"
    if restarts:
        return "its key frames are no full restarts"
    if "mp4" in names and promised == 0:
        return "its frames are indexed in fragments"
    if not all_kept or ("mp4" in names and promised != count):
        return "its edit list leaves out frames"
    return None


def may_seek(packets: Packets, decoded_at: NDArray[np.int64] | None = None) -> bool:
    """Whether every frame has a time of its own, and those before a key frame in the file are shown before it.

    `decoded_at` says when each packet is to be decoded. Readers that seek take that for granted, and return other
    frames than were asked for where it does not hold.
    """
    shown, keys = packets.shown, packets.keys
    if not shown.any() or not keys[0] or not shown[keys].all():
        return False
    times, starts = packets.times[shown], np.flatnonzero(keys[shown])
    if times.min() == _NO_TIME or np.unique(times).size < times.size:
        return False
    # FFmpeg seeks to the last key frame that is decoded by the time at which the wanted one is shown.
    if decoded_at is not None and (decoded_at[keys][1:] <= packets.times[keys][:-1]).any():
        return False
    shown_before = np.maximum.accumulate(times)
    shown_after = np.minimum.accumulate(times[::-1])[::-1]
    return bool(
        (shown_before[starts[1:] - 1] < times[starts[1:]]).all() and (times[starts] == shown_after[starts]).all()
    )


def only_for_pyav(packets: Packets, stream: Stream, decoder: str, frame: Any) -> bool:
    """Whether PyAV alone may seek in a file of whose first frame is `frame`, though another `decoder` was asked for.

    Others count hidden frames, take another of several streams, turn no frames; decord refuses a file that does not say
    how long it is, and gives garbage after a seek in 4:4:4 H.264 of old encoders, as it never sees their first note.
    """
    if not packets.shown.all() or stream.num_streams > 1 or frame is None or stream.turns(frame):
        return True
    if decoder != "decord":
        return False
    is_444 = stream.codec.name == "h264" and "444" in str(stream.codec.pix_fmt)
    return is_444 or stream.has_no_duration
