"""Frames of video files, read by decord behind a guard.

decord alone can hang for ever, in C++ with the interpreter lock held, on mp4 files that were cut without encoding them
again, as Kinetics clips are: such a file begins with frames to be decoded and not shown ("pre-roll", marked by negative
presentation times), decord counts them, and a seek to one never arrives. Where it does not hang it returns other frames
than were asked for. So the timestamps, which need no decoding, are looked at first, and such a file is only ever walked
from its start.
"""

import contextlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from train.errors import InputError

_MP4_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"}


class VideoError(InputError):
    """A video file that cannot be read; the message names it and says why. `path` and `reason` hold both."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(str(path), reason)  # both, so that it survives pickling on its way out of a worker
        self.path, self.reason = str(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class VideoFile:
    """An open video: `len()` is its number of frames, `read` returns some of them. Holds no file of its own to close.

    Raises VideoError if the file is absent, unreadable, empty, truncated, not a video, or without video frames.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = str(path)
        is_mp4 = _check_file(Path(path))
        decord = _import_decord()
        try:
            # The tolerance makes a walk raise at the first frame that decord would have to make up.
            self._reader: Any = decord.VideoReader(self.path, num_threads=1, fault_tol=1e-6)
            starts = self._reader.get_frame_timestamp(np.arange(len(self._reader)))[:, 0]
        except Exception as error:  # decord's own errors derive from Exception directly
            raise VideoError(path, _reason(error)) from error
        preroll = int(np.cumprod(starts < 0).sum()) if is_mp4 else 0
        self._has_preroll = preroll > 0
        self._num_frames = len(starts) - preroll
        if self._num_frames == 0:
            raise VideoError(path, "no frame of it is ever shown")

    def __len__(self) -> int:
        return self._num_frames

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """The frames at `indices`, in any order and with repetitions, as RGB (T, H, W, 3).

        Raises IndexError for an index outside [0, len), VideoError where decoding fails.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.ndim != 1 or wanted.size == 0:
            raise ValueError(f"indices must be a non-empty list of frame numbers, got an array of shape {wanted.shape}")
        if wanted.min() < 0 or wanted.max() >= self._num_frames:
            raise IndexError(f"{self.path} has frames 0 to {self._num_frames - 1}, asked for {wanted.tolist()}")
        try:
            return self._walk(wanted) if self._has_preroll else self._reader.get_batch(wanted).asnumpy()
        except StopIteration as error:
            raise VideoError(self.path, f"ends before frame {wanted.max()} of {self._num_frames}") from error
        except Exception as error:
            raise VideoError(self.path, _reason(error)) from error

    def _walk(self, wanted: NDArray[np.int64]) -> NDArray[np.uint8]:
        self._reader.seek(0)
        keep = set(wanted.tolist())
        frames: dict[int, NDArray[np.uint8]] = {}
        for i in range(int(wanted.max()) + 1):
            frame = self._reader.next()
            if i in keep:
                frames[i] = frame.asnumpy()
        return np.stack([frames[i] for i in wanted.tolist()])


def _import_decord() -> Any:
    """decord, imported where it is needed first: it costs a tenth of a second.

    It opens its own old libvpx to every library loaded after it, and PyAV's VP9 encoder does not start on that one.
    So PyAV, where it is installed, comes first.
    """
    with contextlib.suppress(ImportError):
        import av  # noqa: F401
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _check_file(path: Path) -> bool:
    """Whether the file at `path` is an mp4 or mov by its content; VideoError for all that decord says nothing about."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise VideoError(path, "is a directory, not a video file")
        if not stat.S_ISREG(mode):  # to open a pipe would wait for its writer
            raise VideoError(path, "is not a regular file")
        with path.open("rb") as file:
            head = file.read(8)
            if not head:
                raise VideoError(path, "is empty (0 bytes)")
            is_mp4 = head[4:8] in _MP4_BOXES
            if is_mp4 and not _has_index(file):
                raise VideoError(path, "is truncated: its index (the mp4 moov box) is missing or incomplete")
    except OSError as error:
        raise VideoError(path, (error.strerror or str(error)).lower()) from error
    return is_mp4


def _has_index(file: BinaryIO) -> bool:
    """Whether one of the top-level boxes of an mp4 is a complete `moov`, without which nothing of it can be decoded."""
    size, position = file.seek(0, os.SEEK_END), 0
    while position + 8 <= size:
        file.seek(position)
        header = file.read(16)
        length, kind = int.from_bytes(header[:4]), header[4:8]
        if length == 1:  # a 64-bit length follows
            length = int.from_bytes(header[8:16])
        elif length == 0:  # reaches to the end of the file
            length = size - position
        if kind == b"moov":
            return position + length <= size
        if length < 8:
            return False
        position += length
    return False


def _reason(error: Exception) -> str:
    message = str(error)
    if "cannot find video stream" in message:
        return "has no video stream (audio only, or not a single frame)"
    if type(error).__name__ == "DECORDLimitReachedError":
        return "promises frames that it does not hold"
    if "Error reading" in message:
        return "is not a video file, or is damaged at its beginning"
    return f"cannot be decoded, it is damaged or truncated ({type(error).__name__})"
