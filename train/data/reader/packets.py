"""The packets of a video stream: what stands in the file, before anything is decoded."""

from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from train.data.reader.errors import VideoError
from train.data.reader.h264 import is_restart, length_bytes_of

_NO_TIME = np.iinfo(np.int64).min


class Packets(NamedTuple):
    """The packets of a video in the order of the file, which is that of decoding, each holding one frame."""

    times: NDArray[np.int64]
    """When each is to be shown, in ticks of the stream; the least integer where the file does not say."""
    keys: NDArray[np.bool_]
    """Whether a reader may seek to it."""
    shown: NDArray[np.bool_]
    """Whether it is shown at all: an edit list may leave it out."""
    keys_restart: bool = True
    """Whether decoding starts afresh at every key packet."""
    length_bytes: int | None = None
    """H.264 alone: how many bytes say the length of each of its units; 0 where none do."""


def read_packets(path: Path) -> Packets:
    """All packets of the video at `path`; takes about a tenth of the time of decoding a clip. Raises VideoError."""
    try:
        with av.open(str(path)) as container:
            stream = video_stream(path, container)
            codec = stream.codec_context
            length_bytes = length_bytes_of(codec.extradata) if codec.name == "h264" else None
            packets, keys_restart = [], True
            for packet in container.demux(stream):
                if not packet.size:  # the last one, which tells a decoder to give out what it holds back
                    continue
                packets.append(
                    (_NO_TIME if packet.pts is None else packet.pts, packet.is_keyframe, not packet.is_discard)
                )
                if packet.is_keyframe and length_bytes is not None:
                    keys_restart = keys_restart and is_restart(memoryview(packet), length_bytes)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(path, reason(error)) from error
    times, keys, shown = zip(*packets, strict=True) if packets else ((), (), ())
    arrays = np.array(times, np.int64), np.array(keys, np.bool_), np.array(shown, np.bool_)
    return Packets(*arrays, keys_restart, length_bytes)


def may_seek(packets: Packets) -> bool:
    """Whether every packet is shown, each at a time of its own, and those before a key packet before that.

    Readers that seek take that for granted, and return other frames than were asked for where it does not hold.
    """
    times, keys, shown, keys_restart, _ = packets
    if not (times.size and shown.all() and keys[0] and keys_restart) or times.min() == _NO_TIME:
        return False
    if np.unique(times).size < times.size:
        return False
    shown_before = np.maximum.accumulate(times)[:-1]
    shown_after = np.minimum.accumulate(times[::-1])[::-1]
    starts = np.flatnonzero(keys)[1:]
    return bool((shown_before[starts - 1] < times[starts]).all() and (times[starts] == shown_after[starts]).all())


def demuxed(container: Any, stream: Any) -> closing[Any]:
    """The packets of a stream of an open `av` container from where it stands, as a context.

    PyAV's generators leak what they hold unless they come to their end or are closed: in a training run, gigabytes.
    """
    return closing(container.demux(stream))


def video_stream(path: Path, container: Any) -> Any:
    """The video stream of an open `av` container that players choose. Raises VideoError where there is none."""
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:
        raise VideoError(path, "has no video stream (audio only, or not a single frame)")
    return stream


def reason(error: Exception) -> str:
    """What an error that PyAV raises says of the file."""
    if isinstance(error, VideoError):
        return error.reason
    if isinstance(error, av.InvalidDataError):
        return "is not a video file, or is damaged or truncated"
    return f"cannot be decoded, it is damaged or truncated ({type(error).__name__})"
