"""Frames by decord, which seeks: only for files of which `packets` says that it may."""

import contextlib
import importlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.data.reader.errors import UnsuitedError, VideoError
from train.data.reader.files import name_for_ffmpeg
from train.errors import InputError


class DecordFile:
    """A video file opened by decord. Raises VideoError, or UnsuitedError where decord has no decoder for it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        decord = import_decord()
        try:
            # The tolerance makes reading raise at the first frame that decord would have to make up.
            self._reader: Any = decord.VideoReader(name_for_ffmpeg(path), num_threads=1, fault_tol=1e-6)
            self._num_frames = len(self._reader)
        except Exception as error:  # decord's own errors derive from Exception directly
            if "cannot find video stream" in str(error) or isinstance(error, UnicodeEncodeError):
                raise UnsuitedError("has no decoder for it, or takes no such name") from error
            raise VideoError(path, _reason(error)) from error

    def __len__(self) -> int:
        return self._num_frames

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """RGB (T, H, W, 3) of the frames at `indices`, which are in range. Raises VideoError or UnsuitedError."""
        try:
            return self._reader.get_batch(indices).asnumpy()
        except Exception as error:
            if "The size must exactly match" in str(error):  # it forgets the padding of rows 16, 24, 48 or 72 wide
                raise UnsuitedError("cannot copy frames of this width") from error
            raise VideoError(self.path, _reason(error)) from error


def import_decord() -> Any:
    """decord, imported where it is needed first: it costs a tenth of a second. InputError where it is not installed.

    It opens its own old libvpx to every library loaded after it, and PyAV's VP9 encoder does not start on that one.
    So PyAV, where it is installed, comes first.
    """
    with contextlib.suppress(ImportError):
        import av  # noqa: F401
    try:
        decord: Any = importlib.import_module("decord")
    except (ImportError, OSError) as error:
        raise InputError(f"decoder: decord cannot be used here, {error}") from error
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _reason(error: Exception) -> str:
    if type(error).__name__ == "DECORDLimitReachedError":
        return "promises frames that it does not hold"
    if "Error reading" in str(error):
        return "is not a video file, or is damaged at its beginning"
    return f"cannot be decoded, it is damaged or truncated ({type(error).__name__})"
