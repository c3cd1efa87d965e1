"""Frames by PyAV, read from the start of the file on, never by seeking: slower, and right for every file.

What counts as a frame is what a player shows: frames that an edit list leaves out are not there, and frames that the
container says to rotate or mirror are rotated and mirrored.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from train.data.reader.errors import VideoError
from train.data.reader.packets import demuxed, read_packets, reason, video_stream


class StraightFile:
    """A video file opened by PyAV. Raises VideoError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._frames: Iterator[Any] = iter(())
        self._position = 0  # of the frame that comes next
        self._picture = Pictures()
        self._num_frames = int(read_packets(path).shown.sum())
        if self._num_frames == 0:
            raise VideoError(path, "no frame of it is ever shown")

    def __len__(self) -> int:
        return self._num_frames

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """RGB (T, H, W, 3) of the frames at `indices`, which are in range. Raises VideoError."""
        if self._position == 0 or indices.min() < self._position:
            self._frames, self._position = decoded_frames(self.path), 0
        wanted = set(indices.tolist())
        pictures: dict[int, NDArray[np.uint8]] = {}
        while len(pictures) < len(wanted):
            frame = next(self._frames, None)
            if frame is None:
                self._position = 0
                raise VideoError(self.path, f"ends before frame {max(wanted)} of {self._num_frames}")
            if self._position in wanted:
                pictures[self._position] = self._picture(frame)
            self._position += 1
        size = pictures[int(indices[0])].shape
        if any(other.shape != size for other in pictures.values()):
            raise VideoError(self.path, "its frames change their size")
        return np.stack([pictures[i] for i in indices.tolist()])


def decoded_frames(path: Path) -> Iterator[Any]:
    """The frames that a player shows, one after the other, as `av.VideoFrame`s. Raises VideoError."""
    try:
        with av.open(str(path)) as container:
            stream = video_stream(path, container)
            stream.codec_context.thread_count = 1
            with demuxed(container, stream) as packets:
                for packet in packets:
                    yield from packet.decode()
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(path, reason(error)) from error


class Pictures:
    """RGB (H, W, 3) of the decoded frames of one file, which `turned` brings the way up that they are to be shown.

    Its tables serve for all frames. Left to itself PyAV makes new ones for each, and as many threads as the machine has
    cores: five times the work, and readers that wait for one another. A frame that was asked for its display matrix
    stays in memory until Python looks for cycles, so only the first is asked, and none where all are `upright`.
    """

    def __init__(self, upright: bool = False) -> None:
        self._converter = VideoReformatter()
        self._matrix = np.zeros(0, np.int32) if upright else None

    def __call__(self, frame: Any) -> NDArray[np.uint8]:
        """The picture of one frame."""
        if self._matrix is None:
            data = next((bytes(side) for side in frame.side_data if side.type.name == "DISPLAYMATRIX"), b"")
            self._matrix = np.frombuffer(data, np.int32)
        pixels = self._converter.reformat(frame, format="rgb24", threads=1).to_ndarray().view(np.uint8)
        return turned(pixels, self._matrix) if self._matrix.size else pixels


def turned(pixels: NDArray[np.uint8], matrix: NDArray[np.int32]) -> NDArray[np.uint8]:
    """`pixels` (H, W, 3) as the display matrix (9,) says: a pixel at (x, y) comes to (ax + cy, bx + dy).

    Only quarter turns and mirrors are followed; a matrix that scales or turns by less is as none, as in most players.
    """
    a, b, c, d = (int(matrix[i]) for i in (0, 1, 3, 4))
    if a and d and not b and not c:
        columns, rows = a, d
    elif b and c and not a and not d:
        pixels = pixels.swapaxes(0, 1)
        columns, rows = c, b
    else:
        return pixels
    return np.ascontiguousarray(pixels[:: 1 if rows > 0 else -1, :: 1 if columns > 0 else -1])
