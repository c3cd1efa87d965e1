"""Frames of videos, whether these are video files or folders of pictures: `open_frames(entry).read(indices)`.

Whatever cannot be read raises `VideoError`, which names the file.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from train.data.entries import Entry
from train.data.reader.errors import VideoError
from train.data.reader.folder import FrameFolder
from train.data.reader.video import Decoder, VideoFile

__all__ = ["Decoder", "FrameFolder", "Frames", "VideoError", "VideoFile", "open_frames"]


class Frames(Protocol):
    """An open video. Holds nothing that must be closed."""

    path: str
    """The video file, or the folder of frames."""

    def __len__(self) -> int:
        """The number of frames T₀; their indices are 0 to T₀ − 1."""

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """The frames at `indices` (T,), in any order and with repetitions, as RGB (T, H, W, 3).

        Raises IndexError for an index outside [0, T₀), ValueError for no indices, VideoError where reading fails.
        """


def open_frames(entry: Entry, decoder: Decoder = "auto") -> Frames:
    """Open the video of `entry`. `decoder` reads video files; frame folders need none.

    Raises VideoError where there is no such video, what is there cannot be read, or a video file has another number of
    frames than `entry` says.
    """
    if entry.kind == "frames":
        return FrameFolder(entry.path, entry.num_frames, entry.pattern, entry.first)
    video = VideoFile(entry.path, decoder, entry.num_frames, entry.packets)
    if entry.num_frames not in (None, len(video)):
        reason = f"has {len(video)} frames where {entry.num_frames} were counted: it has changed since"
        raise VideoError(entry.path, reason)
    return video
