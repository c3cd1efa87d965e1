"""Decoded frames as pictures, the way up that a player shows them; and those of a file, decoded straight through.

Needs PyAV (`pip install av`), which nothing else of the library does.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.sidedata.sidedata import SideDataContainer
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from torch import Tensor


def read_frames(path: Path, choose: Callable[[int], Sequence[int]]) -> Tensor:
    """The frames of the video file at `path` that `choose` picks, knowing how many there are: uint8 (T, H, W, 3).

    All of it is decoded, once to count and once to read, so no index of the file is believed. Raises OSError where it
    cannot be read, ValueError where it holds no video, is damaged, or its frames change their size.
    """
    num_frames = sum(1 for _ in _decoded(path))
    if num_frames == 0:
        raise ValueError(f"{path}: no frame of it is ever shown")
    numbers, picture, chosen = list(choose(num_frames)), Pictures(), {}
    for number, frame in enumerate(_decoded(path)):
        if number in numbers:
            chosen[number] = torch.from_numpy(picture(frame).copy())
    if len({frame.shape for frame in chosen.values()}) > 1:
        raise ValueError(f"{path}: its frames change their size")
    return torch.stack([chosen[number] for number in numbers])


def _decoded(path: Path) -> Iterator[Any]:
    try:
        with av.open(str(path.absolute())) as container:  # a relative name with a colon is an address to FFmpeg
            stream = container.streams.best("video")
            if stream is None:
                raise ValueError(f"{path}: has no video stream")
            yield from container.decode(stream)
    except av.InvalidDataError as error:
        raise ValueError(f"{path}: is not a video file, or is damaged or truncated") from error


class Pictures:
    """RGB (H, W, 3) of the decoded frames of one file, which `turned` brings the way up that they are to be shown.

    Its tables serve for all frames. Left to itself PyAV makes new ones for each, and as many threads as the machine has
    cores: five times the work, and readers that wait for one another.
    """

    def __init__(self) -> None:
        self._converter = VideoReformatter()
        self._matrix: NDArray[np.int32] | None = None

    def __call__(self, frame: Any) -> NDArray[np.uint8]:
        """The picture of one frame; it may lie in FFmpeg's memory, which saves a copy, and is not to be written to."""
        if self._matrix is None:
            self._matrix = display_matrix(frame)
        plane: Any = self._converter.reformat(frame, format="rgb24", threads=1).planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        pixels = rows[:, : 3 * plane.width].reshape(plane.height, plane.width, 3)
        return turned(pixels, self._matrix) if self._matrix.size else pixels


def display_matrix(frame: Any) -> NDArray[np.int32]:
    """How a decoded frame is to be turned and mirrored before it is shown, (9,); empty where it is not."""
    # `frame.side_data` would keep the frame, and its decoder's memory with it, until Python looks for cycles.
    sides = SideDataContainer(frame)  # type: ignore[call-arg]
    data = next((bytes(side) for side in sides if side.type.name == "DISPLAYMATRIX"), b"")
    return np.frombuffer(data, np.int32)


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
