"""The packets of a video stream: what stands in the file, before anything is decoded."""

from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from train.reader.errors import VideoError

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


def read_packets(path: Path) -> Packets:
    """All packets of the video at `path`; takes about a tenth of the time of decoding a clip. Raises VideoError."""
    try:
        with av.open(str(path)) as container:
            stream = video_stream(path, container)
            length_bytes = _nal_length_bytes(stream.codec_context)
            packets, keys_restart = [], True
            for packet in container.demux(stream):
                if not packet.size:  # the last one, which tells a decoder to give out what it holds back
                    continue
                packets.append(
                    (_NO_TIME if packet.pts is None else packet.pts, packet.is_keyframe, not packet.is_discard)
                )
                if packet.is_keyframe and length_bytes is not None:
                    keys_restart = keys_restart and is_restart(bytes(packet), length_bytes)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(path, reason(error)) from error
    times, keys, shown = zip(*packets, strict=True) if packets else ((), (), ())
    return Packets(np.array(times, np.int64), np.array(keys, np.bool_), np.array(shown, np.bool_), keys_restart)


def may_seek(packets: Packets) -> bool:
    """Whether every packet is shown, and the packets before a key packet are those whose frames are shown before its.

    Readers that seek take that for granted, and return other frames than were asked for where it does not hold.
    """
    times, keys, shown, keys_restart = packets
    if not (times.size and shown.all() and keys[0] and keys_restart) or times.min() == _NO_TIME:
        return False
    shown_before = np.maximum.accumulate(times)[:-1]
    shown_after = np.minimum.accumulate(times[::-1])[::-1]
    starts = np.flatnonzero(keys)[1:]
    return bool((shown_before[starts - 1] < times[starts]).all() and (times[starts] == shown_after[starts]).all())


def is_restart(sample: bytes, length_bytes: int) -> bool:
    """Whether a frame of H.264 (units that each begin with their length) is an IDR picture, from which on no frame
    refers to an earlier one. Its first few kilobytes suffice: only units without picture data come before the first
    slice (H.264, table 7-1: types 1 to 5 are slices, 5 those of IDR pictures).
    """
    position = 0
    while length_bytes and position + length_bytes < len(sample):
        kind = sample[position + length_bytes] & 31
        if 1 <= kind <= 5:
            return kind == 5
        position += length_bytes + int.from_bytes(sample[position : position + length_bytes])
    return False


def _nal_length_bytes(codec_context: Any) -> int | None:
    """None for codecs other than H.264. 0, with which no frame is found to be a restart, for H.264 without lengths."""
    if codec_context.name != "h264":
        return None
    configuration = codec_context.extradata or b""
    return (configuration[4] & 3) + 1 if len(configuration) > 4 and configuration[0] == 1 else 0


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
