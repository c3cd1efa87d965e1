"""Encodes videos again so that they are small and quick to read: H.264 with a key frame in every sixteen."""

import re
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np

from train.atomic import replacing
from train.data.check import chunks
from train.data.entries import Entry
from train.data.reader import VideoError, open_frames
from train.data.reader.files import name_for_ffmpeg

# Most frames are B-frames to which nothing refers, so that `train.data.reader.selective` decodes three to reach one, on
# average. With no B-frames and a key frame in every eight it would be five, and files would be larger by four tenths.
_GROUPS = {"g": "16", "sc_threshold": "0", "bf": "3", "b-pyramid": "none"}
OPTIONS = {**_GROUPS, "tune": "fastdecode", "preset": "medium"}

_NOTED = 1 << 16  # bytes, in which the first frame begins
_FRAME_RATE = Fraction(12)  # of folders of frames: what Something-Something's were taken at


def transcode(entry: Entry, target: Path, short_side: int, crf: int = 23) -> None:
    """Encode the video of `entry`, as it is shown, into the mp4 file `target`, which is there complete or not at all.

    Frames stay the same in number and order, upright and evenly timed at the mean rate; sound is left out. The shorter
    side becomes `short_side` pixels, unless it has fewer; both sides become even. `crf` is x264's constant quality.

    Raises VideoError where the source cannot be read, OSError where the target cannot be written.
    """
    frames = open_frames(entry, "pyav")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(target) as unfinished, av.open(name_for_ffmpeg(unfinished), "w", format="mp4") as container:
            stream: Any = None
            for chunk in chunks(frames):
                if stream is None:
                    size = scaled_size((chunk.shape[2], chunk.shape[1]), short_side)
                    stream = _add_stream(container, size, _frame_rate(entry), crf)
                for pixels in chunk:
                    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                    size = stream.width, stream.height
                    container.mux(stream.encode(frame.reformat(*size, "yuv420p", interpolation="BICUBIC", threads=1)))
            container.mux(stream.encode())
    except av.FFmpegError as error:
        raise OSError(f"{target}: cannot be encoded ({error})") from error


def crf_of(path: Path) -> float | None:
    """The `crf` that x264 encoded a file by; None where none is noted.

    It stands with x264's options beside the first frame, 0 as a qp of 0.
    """
    with path.open("rb") as file:
        found = re.search(rb" (?:crf|qp)=([\d.]+)", file.read(_NOTED))
    return float(found[1]) if found else None


def scaled_size(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """(width, height) of a video whose shorter side is to be at most `short_side`: even, as 4:2:0 needs."""
    scale = min(1.0, short_side / min(size))
    width, height = (max(2, 2 * round(side * scale / 2)) for side in size)
    return width, height


def _add_stream(container: Any, size: tuple[int, int], rate: Fraction, crf: int) -> Any:
    stream = cast(av.VideoStream, container.add_stream("libx264", rate=rate, options={**OPTIONS, "crf": str(crf)}))
    stream.codec_context.thread_count = 1
    stream.pix_fmt = "yuv420p"
    stream.width, stream.height = size
    return stream


def _frame_rate(entry: Entry) -> Fraction:
    if entry.kind == "frames":
        return _FRAME_RATE
    try:
        with av.open(name_for_ffmpeg(entry.path)) as container:
            rate = container.streams.video[0].average_rate
    except (av.FFmpegError, OSError, IndexError) as error:
        raise VideoError(entry.path, "cannot be read") from error
    return Fraction(rate).limit_denominator(1001) if rate else Fraction(30)
