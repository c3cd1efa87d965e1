"""Frames of video files: decoders that seek where that is safe, one that reads straight through elsewhere."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from train.data.reader.container import look_into
from train.data.reader.errors import UnsuitedError, VideoError
from train.data.reader.files import check_indices, check_regular, system_reason
from train.data.reader.selective import SelectiveFile
from train.data.reader.with_decord import DecordFile
from train.data.reader.with_pyav import StraightFile
from train.data.reader.with_torchcodec import TorchcodecFile

Decoder = Literal["auto", "decord", "torchcodec", "pyav"]
"""auto: H.264 by PyAV, which decodes no more of it than is needed, everything else by decord. decord, torchcodec: all
files by these. Whichever it is, files in which seeking is not safe are read straight through by PyAV; pyav: so are all.
"""


class _Backend(Protocol):
    def __len__(self) -> int: ...

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]: ...


class VideoFile:
    """An open video: `len()` is its number of frames, `read` returns some of them. Holds no file of its own to close.

    Its frames are those that a player shows, the way up that a player shows them, whatever `decoder` is: files in which
    that differs from what is stored (edit lists, rotation), files without exact seeking, and what decord has no decoder
    for are read straight through.

    Raises VideoError if the file is absent, unreadable, empty, truncated, not a video, or without video frames.
    """

    def __init__(self, path: str | os.PathLike[str], decoder: Decoder = "auto") -> None:
        self.path = str(path)
        file = Path(path)
        check_regular(file)
        try:
            self._backend = _open(file, decoder)
        except VideoError:
            check_regular(file)  # it may have vanished, which says more
            raise
        except OSError as error:
            raise VideoError(path, system_reason(error)) from error
        self._num_frames = len(self._backend)
        if self._num_frames == 0:
            raise VideoError(path, "no frame of it is ever shown")

    @property
    def read_by(self) -> str:
        """The name of the class that reads it."""
        return type(self._backend).__name__

    def __len__(self) -> int:
        return self._num_frames

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """The frames at `indices` (T,), in any order and with repetitions, as RGB (T, H, W, 3).

        Raises IndexError for an index outside [0, len), ValueError for no indices, VideoError where decoding fails.
        """
        wanted = check_indices(self.path, indices, self._num_frames)
        try:
            return self._backend.read(wanted)
        except UnsuitedError:
            self._backend = StraightFile(Path(self.path))
            return self._backend.read(wanted)


def _open(path: Path, decoder: Decoder) -> _Backend:
    if decoder not in get_args(Decoder):
        raise ValueError(f"decoder must be one of {', '.join(map(repr, get_args(Decoder)))}, got {decoder!r}")
    why_not_seek, packets = look_into(path)
    if why_not_seek or decoder == "pyav":
        return StraightFile(path)
    if decoder == "torchcodec":
        return TorchcodecFile(path)
    if decoder == "auto" and packets is not None:
        return SelectiveFile(path, packets)
    try:
        return DecordFile(path)
    except UnsuitedError:
        return StraightFile(path)
