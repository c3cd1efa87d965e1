"""Frames by PyAV, read from the start of the file on, never by seeking: slower, and right for every file.

What counts as a frame is what a player shows: frames that an edit list leaves out are not there, and frames that the
container says to rotate or mirror are rotated and mirrored.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.data.reader.errors import VideoError
from train.data.reader.stream import Clip, Pictures, Stream


class StraightFile:
    """A video file of `num_frames` frames; if None, they are counted by decoding them all. Raises VideoError."""

    def __init__(self, path: Path, num_frames: int | None = None) -> None:
        self.path = path
        self._frames: Iterator[Any] = iter(())
        self._position = 0  # of the frame that comes next
        self._picture = Pictures()
        self._num_frames = _count(path) if num_frames is None else num_frames

    def __len__(self) -> int:
        return self._num_frames

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """RGB (T, H, W, 3) of the frames at `indices`, which are in range. Raises VideoError."""
        if self._position == 0 or indices.min() < self._position:
            self._frames, self._position = decoded_frames(self.path), 0
        clip = Clip(self.path, indices, self._picture)
        while clip.rows:
            frame = next(self._frames, None)
            if frame is None:
                self._position = 0
                raise VideoError(self.path, f"ends before frame {indices.max()} of {self._num_frames}")
            if self._position in clip.rows:
                clip.add(self._position, frame)
            self._position += 1
        return clip.frames


def _count(path: Path) -> int:
    return sum(1 for _ in decoded_frames(path))


def decoded_frames(path: Path) -> Iterator[Any]:
    """The frames that a player shows, one after the other, as `av.VideoFrame`s. Raises VideoError, OSError."""
    yield from Stream(path).frames()
