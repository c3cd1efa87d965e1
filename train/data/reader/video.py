"""Frames of video files: decoders that seek where that is safe, one that reads straight through elsewhere."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from train.data.reader.errors import UnsuitedError, VideoError
from train.data.reader.files import check_indices, check_regular, system_reason
from train.data.reader.known import known_packets
from train.data.reader.packets import only_for_pyav
from train.data.reader.selective import SelectiveFile
from train.data.reader.straight import StraightFile, decoded_frames
from train.data.reader.stream import Stream
from train.data.reader.with_decord import DecordFile
from train.data.reader.with_torchcodec import TorchcodecFile

Decoder = Literal["auto", "decord", "torchcodec", "pyav"]
"""auto: PyAV, which decodes no more of a file than it needs where its packets say that this is exact.
decord, torchcodec: these, where they are exact too. pyav: PyAV, straight through always.
"""


class VideoFile:
    """An open video: `len()` is its number of frames, `read` returns some of them. Holds no file of its own to close.

    Its frames are those that a player shows, the way up that a player shows them, whatever `decoder` is. `num_frames`
    is how many of them there are, if that was counted before: where only decoding tells, it need not be done again.
    `packets` is what an index keeps of it (`train.data.reader.known`), if it does.

    Raises VideoError if the file is absent, unreadable, empty, truncated, not a video, or without video frames.
    """

    def __init__(
        self, path: str | os.PathLike[str], decoder: Decoder = "auto", num_frames: int | None = None, packets: str = ""
    ) -> None:
        self.path = str(path)
        file = Path(path)
        check_regular(file)
        try:
            self._backend = _open(file, decoder, num_frames, packets)
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


def _open(
    path: Path, decoder: Decoder, num_frames: int | None, kept: str
) -> DecordFile | SelectiveFile | StraightFile | TorchcodecFile:
    if decoder not in get_args(Decoder):
        raise ValueError(f"decoder must be one of {', '.join(map(repr, get_args(Decoder)))}, got {decoder!r}")
    stream = Stream(path)
    packets = known_packets(stream, kept)
    if not packets.may_start_at_keys or decoder == "pyav":
        return StraightFile(path, int(packets.shown.sum()) if packets.frames_known else num_frames)
    if decoder == "auto" or only_for_pyav(packets, stream, decoder, next(decoded_frames(path), None)):
        return SelectiveFile(stream, packets)
    try:
        other = DecordFile(path) if decoder == "decord" else TorchcodecFile(path)
    except UnsuitedError:
        return SelectiveFile(stream, packets)
    return other if len(other) == packets.shown.sum() else SelectiveFile(stream, packets)
