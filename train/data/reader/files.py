"""What every reader asks of a file and of indices before it starts."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from train.data.reader.errors import VideoError


def check_regular(path: Path) -> None:
    """Raise VideoError unless `path` is a file with something in it that may be read. A pipe is not waited for."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise VideoError(path, "is a directory, not a file")
        if not stat.S_ISREG(mode):
            raise VideoError(path, "is not a regular file")
        with path.open("rb") as file:
            if not file.read(1):
                raise VideoError(path, "is empty (0 bytes)")
    except OSError as error:
        raise VideoError(path, system_reason(error)) from error


def check_indices(path: str, indices: Sequence[int] | NDArray[np.int64], num_frames: int) -> NDArray[np.int64]:
    """`indices` as an array (T,). ValueError unless they are a non-empty list, IndexError outside [0, num_frames)."""
    wanted = np.asarray(indices)
    if wanted.ndim != 1 or wanted.size == 0:
        raise ValueError(f"indices must be a non-empty list of frame numbers, got an array of shape {wanted.shape}")
    if not np.issubdtype(wanted.dtype, np.integer):
        raise ValueError(f"indices must be integers, got {wanted.dtype}")
    if wanted.min() < 0 or wanted.max() >= num_frames:
        raise IndexError(f"{path} has frames 0 to {num_frames - 1}, asked for {wanted.tolist()}")
    return wanted.astype(np.int64)


def name_for_ffmpeg(path: Path) -> str:
    """The name by which FFmpeg opens the file at `path`: a relative one with a colon it takes for an address.

    Writing too: `av.open("10:30.mp4", "w")` finds no protocol of that name.
    """
    return os.path.abspath(path)  # noqa: PTH100 (links stay as they are)


def system_reason(error: OSError) -> str:
    """What the system says, in the lower case of a message's second half."""
    return (error.strerror or str(error)).lower()
