"""What the packets of a video say before any is decoded: how many frames there are, and where decoding may start.

A reader that does not decode all of a video takes packets for frames, and the frames before a key frame in the file for
those that are shown before it. Where that is wrong it returns other frames than were asked for, or, decord, waits for
ever for one that never comes, in C++ with the interpreter lock held. It is wrong
- where a packet is no frame (`bitstream`);
- in "open" groups of pictures, the ordinary ones of x265: frames stored behind a key frame are shown before it;
- where a key frame of H.264 is no full restart, so that a decoder gives out frames late or not at all after it;
and, for decoders that seek in the file, of whose own mind they are about it,
- where an mp4's edit list shows less than was stored: clips cut without encoding them again, as Kinetics clips are,
  begin with frames that are decoded and never shown, and may end with some;
- where an mp4's key frame is decoded before the one before it is shown: a seek to the earlier ends at the later.
"""

from collections.abc import Sequence
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
    """Whether it is a key frame."""
    pictures: NDArray[np.bool_]
    """Whether it holds a frame that is to be shown, by the codec: others serve as references, or as notes."""
    shown: NDArray[np.bool_]
    """Whether it is shown: an edit list leaves out some of the `pictures`."""
    frames_known: bool = True
    """Whether each of the `pictures` is one frame for sure; if not, decoding alone tells how many there are."""
    may_start_at_keys: bool = True
    """Whether decoding may start at each key frame."""
    may_seek: bool = True
    """Whether decoders may seek in the file, too, which have their own mind about containers."""


def read_packets(stream: Stream) -> Packets:
    """All packets of an open video; takes a tenth of the time of decoding a clip. Raises VideoError.

    An mp4 of which the end is lost raises, too: its index says where every frame lies.
    """
    length_bytes = length_bytes_of(stream.codec.extradata) if stream.codec.name == "h264" else 0
    look, rows, restart, damaged = stream.look, [], True, False
    with stream.packets() as packets:
        for packet in packets:
            data, key = memoryview(packet), packet.is_keyframe
            rows.append((packet.pts, packet.dts, key, not packet.is_discard, look(data)))
            damaged |= packet.is_corrupt
            if key and length_bytes and first_slice(data, length_bytes) != RESTART:
                restart = False
    if stream.ends_early(len(rows)) or (damaged and "mp4" in stream.container_names):
        raise VideoError(stream.path, "is truncated: it ends before the last of its frames")
    if not rows:
        raise VideoError(stream.path, "has no video stream (audio only, or not a single frame)")
    pts, dts, key_flags, kept_flags, frames = zip(*rows, strict=True)
    times, keys, kept = ticks(pts), np.array(key_flags), np.array(kept_flags)
    pictures = np.array([count != 0 for count in frames])
    known = None not in frames
    first_first = bool(keys[0] and times[0] == times.min())  # what is shown before the first key frame is never decoded
    may_start = known and restart and groups_are_closed(times, keys, pictures)
    return Packets(
        times,
        keys,
        pictures,
        pictures & kept,
        frames_known=known and first_first,
        may_start_at_keys=may_start,
        may_seek=may_start and bool(kept.all()) and _lets_seek(stream, times[keys], ticks(dts)[keys], len(rows)),
    )


def ticks(times: Sequence[int | None]) -> NDArray[np.int64]:
    """The `times` that PyAV gives as `Packets` has them."""
    return np.array([_NO_TIME if time is None else time for time in times] if None in times else times, np.int64)


def groups_are_closed(times: NDArray[np.int64], keys: NDArray[np.bool_], pictures: NDArray[np.bool_]) -> bool:
    """Whether every frame has a time of its own, and those before a key frame in the file are shown before it.

    The arguments, (packets,) each, are those of `Packets`.
    """
    if not keys[:1].any() or not pictures[keys].all():
        return False
    shown_at, starts = times[pictures], np.flatnonzero(keys[pictures])
    if shown_at.min() == _NO_TIME or np.unique(shown_at).size < shown_at.size:
        return False
    shown_before = np.maximum.accumulate(shown_at)
    shown_after = np.minimum.accumulate(shown_at[::-1])[::-1]
    in_order = (shown_before[starts[1:] - 1] < shown_at[starts[1:]]).all()
    return bool(in_order and (shown_at[starts] == shown_after[starts]).all())


def _lets_seek(stream: Stream, shown_at: NDArray[np.int64], decoded_at: NDArray[np.int64], count: int) -> bool:
    """Whether seeking is exact in a file of `count` packets whose key frames are shown and decoded at these times."""
    names = stream.container_names
    if not names & _SEEKABLE or ("mp4" in names and stream.num_frames != count):  # in fragments, or cut by an edit list
        return False
    # FFmpeg seeks to the last key frame that is decoded by the time at which the wanted one is shown.
    return not (decoded_at[1:] <= shown_at[:-1]).any()


def only_for_pyav(packets: Packets, stream: Stream, decoder: str, frame: Any) -> bool:
    """Whether PyAV alone is exact in a file of whose first frame is `frame`, though another `decoder` was asked for.

    Others count hidden frames, take another of several streams, turn no frames; decord refuses a file that does not say
    how long it is, and gives garbage after a seek in 4:4:4 H.264 of old encoders, as it never sees their first note.
    """
    if not packets.may_seek or not packets.shown.all() or stream.num_streams > 1:
        return True
    if frame is None or stream.turns(frame):
        return True
    if decoder != "decord":
        return False
    is_444 = stream.codec.name == "h264" and "444" in str(stream.codec.pix_fmt)
    return is_444 or stream.has_no_duration
