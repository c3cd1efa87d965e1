"""Frames of a video file, decoded straight through, the way up that a player shows them.

Needs PyAV (`pip install av`), which nothing else of the library does.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor


def read_frames(path: Path, choose: Callable[[int], Sequence[int]]) -> Tensor:
    """The frames of the video file at `path` that `choose` picks, knowing how many there are: uint8 (T, H, W, 3).

    All of it is decoded, once to count and once to read, so no index of the file is believed. Raises OSError where it
    cannot be read, ValueError where it holds no video, is damaged, or its frames change their size.
    """
    num_frames = sum(1 for _ in _decoded(path))
    if num_frames == 0:
        raise ValueError(f"{path}: no frame of it is ever shown")
    numbers = list(choose(num_frames))
    chosen = {number: _picture(frame) for number, frame in enumerate(_decoded(path)) if number in numbers}
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


def _picture(frame: Any) -> Tensor:
    """RGB (H, W, 3) of a decoded frame. Quarter turns and mirrors of its display matrix are followed, as by players.

    The matrix brings a pixel at (x, y) to (ax + cy, bx + dy).
    """
    pixels = frame.to_ndarray(format="rgb24")
    matrix = next((np.frombuffer(bytes(side), np.int32) for side in frame.side_data if _turns(side)), None)
    a, b, c, d = (1, 0, 0, 1) if matrix is None else (int(matrix[i]) for i in (0, 1, 3, 4))
    columns, rows = a, d
    if b and c and not a and not d:
        pixels, columns, rows = pixels.swapaxes(0, 1), c, b
    elif b or c or not a or not d:  # turned by less, which players do not follow
        columns, rows = 1, 1
    pixels = pixels[:: 1 if rows > 0 else -1, :: 1 if columns > 0 else -1]
    return torch.from_numpy(np.ascontiguousarray(pixels))


def _turns(side: Any) -> bool:
    return bool(side.type.name == "DISPLAYMATRIX")
