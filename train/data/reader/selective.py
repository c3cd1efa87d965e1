"""Frames of H.264 by PyAV, which leaves out what no wanted frame needs.

To show a frame a decoder must have seen the key frame before it and, up to its own place in the file, all frames that
others may refer to. As x264 encodes by default that is half of them, the others being B-frames to which nothing refers:
readers that decode every frame on the way spend a third of their time on pictures that nobody sees.
"""

from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from train.data.reader.errors import UnsuitedError, VideoError
from train.data.reader.h264 import is_reference
from train.data.reader.packets import Packets, demuxed, reason, video_stream
from train.data.reader.with_pyav import Pictures


class SelectiveFile:
    """A file of H.264 in which a reader may seek, with its `packets`. Nothing is opened before frames are read."""

    def __init__(self, path: Path, packets: Packets) -> None:
        self.path, self._times = path, packets.times
        self._length_bytes = packets.length_bytes or 0
        self._positions = np.argsort(packets.times, kind="stable")  # in the file, of the frames as they are shown
        self._keys = np.flatnonzero(packets.keys)
        self._picture = Pictures(upright=True)

    def __len__(self) -> int:
        return self._times.size

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """RGB (T, H, W, 3) of the frames at `indices`, which are in range. Raises VideoError or UnsuitedError."""
        positions = self._positions[indices]
        wanted = np.unique(positions)
        groups = np.searchsorted(self._keys, wanted, side="right") - 1
        pictures: dict[int, NDArray[np.uint8]] = {}
        try:
            with av.open(str(self.path)) as container:
                stream = video_stream(self.path, container)
                stream.codec_context.thread_count = 1
                with demuxed(container, stream) as packets:
                    offset = (next(packets).pts or 0) - int(self._times[0])  # an edit list moves all times
                for group in np.unique(groups):
                    key, of_group = int(self._keys[group]), wanted[groups == group]
                    pictures |= self._read_group(container, stream, key, of_group, offset)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise VideoError(self.path, reason(error)) from error
        absent = [int(index) for index, position in zip(indices, positions, strict=True) if position not in pictures]
        if absent:
            raise VideoError(self.path, f"its frame {absent[0]} cannot be decoded, it is damaged")
        if len({pixels.shape for pixels in pictures.values()}) > 1:
            raise VideoError(self.path, "its frames change their size")
        return np.stack([pictures[position] for position in positions.tolist()])

    def _read_group(
        self, container: Any, stream: Any, key: int, wanted: NDArray[np.int64], offset: int
    ) -> dict[int, NDArray[np.uint8]]:
        """The pictures at the places `wanted`, in order, of the group of frames that begins with the one at `key`.

        Raises UnsuitedError where the packets are not those of the index.
        """
        position_at = {int(self._times[position]) + offset: position for position in wanted.tolist()}
        pictures: dict[int, NDArray[np.uint8]] = {}

        def keep(frames: list[Any]) -> None:
            for frame in frames:
                position = position_at.get(frame.pts)
                if position is not None and not frame.is_corrupt:
                    pictures[position] = self._picture(frame)

        container.seek(int(self._times[key]) + offset, stream=stream)
        with demuxed(container, stream) as packets:
            for position in range(key, int(wanted[-1]) + 1):
                packet = next(packets)
                if packet.pts != self._times[position] + offset:
                    raise UnsuitedError("a seek leads elsewhere than its index says")
                if packet.pts in position_at or is_reference(memoryview(packet), self._length_bytes):
                    keep(packet.decode())
        keep(stream.codec_context.decode(None))  # what it holds back for frames that would be shown before
        return pictures
