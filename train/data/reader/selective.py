"""Frames by PyAV, which starts at the key frame before each wanted one and leaves out what no wanted frame needs.

To show a frame a decoder must have seen the key frame before it and, up to its own place in the file, all frames that
others may refer to. As x264 encodes by default that is half of them, the others being B-frames to which nothing refers:
readers that decode every frame on the way spend a third of their time on pictures that nobody sees.

Where a seek leads is compared with what a look at the packets has found. In containers without exact seeking, and where
the two do not agree, all packets are read again, of which the decoder gets those that it needs: exact everywhere.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.data.reader.errors import VideoError
from train.data.reader.packets import Packets, ticks
from train.data.reader.stream import Clip, Pictures, Stream

# HEVC is none of them: what nothing of a frame's own layer refers to, frames of a higher layer may.
_KNOWS_REFERENCES = {"h264", "mpeg4", "vp8"}
_MOST_HELD = 1 << 26  # bytes of a file whose packets are held in memory; a trimmed clip has 1 % of that


class SelectiveFile:
    """A video in which decoding may start at each key frame, with its `packets`."""

    def __init__(self, stream: Stream, packets: Packets) -> None:
        self.path, self._stream, self._packets = stream.path, stream, packets
        shown = np.flatnonzero(packets.shown)
        self._positions = shown[np.argsort(packets.times[shown])]  # in the file, of the frames as they are shown
        self._keys = np.flatnonzero(packets.keys)
        # Where a cut has taken references, what a decoder makes up for them depends on all frames before.
        is_whole = np.array_equal(packets.shown, packets.pictures)
        self._leaves_out = is_whole and stream.codec.name in _KNOWS_REFERENCES
        self._picture = Pictures()
        self._held: Sequence[Any] = ()

    def __len__(self) -> int:
        return self._positions.size

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """RGB (T, H, W, 3) of the frames at `indices`, which are in range. Raises VideoError."""
        positions = self._positions[indices]
        wanted = np.unique(positions)
        groups = np.searchsorted(self._keys, wanted, side="right") - 1
        clip = Clip(self.path, positions, self._picture)
        for group in np.unique(groups):
            of_group = wanted[groups == group]
            self._read_group(clip, self._data(int(self._keys[group]), int(of_group[-1]) + 1), of_group)
        if clip.rows:
            absent = indices[min(min(rows) for rows in clip.rows.values())]
            raise VideoError(self.path, f"its frame {absent} cannot be decoded, it is damaged")
        return clip.frames

    def _data(self, start: int, end: int) -> Sequence[Any]:
        """The packets at the places from `start`, a key frame's, to before `end`."""
        if self._packets.may_seek and not self._held:
            times = self._packets.times[start:end].tolist()
            sought = self._stream.packets_from(times[0], end - start)
            if [packet.pts for packet in sought] == times:
                return sought
        if not self._held:
            with Stream(self.path).packets() as packets:
                if self.path.stat().st_size > _MOST_HELD:
                    return self._as_known(list(itertools.islice(packets, start, end)), start, end)
                self._held = self._as_known(list(packets), 0, self._packets.times.size)
        return self._held[start:end]

    def _as_known(self, found: list[Any], start: int, end: int) -> list[Any]:
        """`found`, the packets at these places. Raises VideoError where they are others: an index may say anything."""
        times, keys = self._packets.times[start:end], self._packets.keys[start:end]
        same_times = np.array_equal(ticks([packet.pts for packet in found]), times)
        if not (same_times and np.array_equal([packet.is_keyframe for packet in found], keys)):
            raise VideoError(self.path, "has other packets than were found when it was looked into")
        return found

    def _read_group(self, clip: Clip, packets: Sequence[Any], wanted: NDArray[np.int64]) -> None:
        """Add the frames at the places `wanted`, in order, out of `packets` that begin with a key frame."""
        position_at = dict(zip(self._packets.times[wanted].tolist(), wanted.tolist(), strict=True))

        def keep(frames: list[Any]) -> None:
            for frame in frames:
                if frame.pts in position_at and not frame.is_corrupt:
                    clip.add(position_at[frame.pts], frame)

        self._stream.codec.flush_buffers()
        for packet in packets:
            if self._leaves_out:
                self._stream.codec.skip_frame = "DEFAULT" if packet.pts in position_at else "NONREF"
            keep(self._stream.decode(packet))
        keep(self._stream.decode(None))  # what it holds back for frames that would be shown before
