"""The index of an mp4 or mov file (ISO/IEC 14496-12 and, for H.264, 14496-15), as far as reading frames depends on it.

Whatever is not as the standard has it raises ValueError or IndexError.
"""

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from train.data.reader.h264 import length_bytes_of

IDENTITY = (1 << 16, 0, 0, 1 << 16)
"""The display matrix of a video that is shown as it is stored: how x and y turn into x and y, 16.16 fixed-point."""

_MOST_SAMPLES = 10_000_000  # of a track; more are not believed


class Edit(NamedTuple):
    """A stretch of a track that is shown."""

    length: int
    """In ticks of the movie."""
    start: int
    """In ticks of the track; −1 where nothing is shown for that long."""
    rate: int
    """Speed, 16.16 fixed-point."""


class Track:
    """A video track: the content of its `trak` box."""

    def __init__(self, content: memoryview) -> None:
        self._content = content
        self._table = _child(content, b"mdia", b"minf", b"stbl")

    @property
    def ticks_per_second(self) -> int:
        """The unit of its times."""
        return _timescale(_child(self._content, b"mdia", b"mdhd"))

    @property
    def display_matrix(self) -> tuple[int, int, int, int]:
        """(a, b, c, d): a pixel at (x, y) is shown at (ax + cy, bx + dy); 16.16 fixed-point."""
        header = _child(self._content, b"tkhd")
        start = 52 if header[0] == 1 else 40
        a, b, _, c, d = (int.from_bytes(header[i : i + 4], signed=True) for i in range(start, start + 20, 4))
        return a, b, c, d

    def edits(self) -> list[Edit]:
        """What is shown, one stretch after the other; empty where all of the track is."""
        box = _child(self._content, b"edts", b"elst")
        if not box:
            return []
        wide = 8 if box[0] == 1 else 4
        size = 2 * wide + 4
        entries = (box[8 + i * size : 8 + (i + 1) * size] for i in range(min(_number(box[4:8]), len(box) // size)))
        return [
            Edit(_number(e[:wide]), int.from_bytes(e[wide : 2 * wide], signed=True), _number(e[2 * wide :]))
            for e in entries
        ]

    def decoding_times(self) -> NDArray[np.int64]:
        """When each frame is to be decoded, from the track's beginning."""
        steps = _runs(_child(self._table, b"stts"))
        return np.cumsum(steps) - steps

    def composition_times(self) -> NDArray[np.int64]:
        """When each frame is to be shown, from the track's beginning, in the order of decoding."""
        times = self.decoding_times()
        offsets = _runs(_child(self._table, b"ctts"))
        return times + offsets if offsets.size == times.size else times

    def key_samples(self) -> NDArray[np.int64]:
        """Numbers, from 0, of the frames at which decoding may start: all of them where there is no list."""
        listed = _child(self._table, b"stss")
        if not listed:
            return np.arange(self._num_samples())
        return _array(listed, ">u4") - 1

    def sample_places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where each frame's data starts and ends in the file."""
        sizes_box, count = _child(self._table, b"stsz"), self._num_samples()
        size = _number(sizes_box[4:8])
        sizes = np.full(count, size) if size else np.frombuffer(sizes_box[12:], ">u4", count).astype(np.int64)
        wide = _child(self._table, b"co64")
        chunks = _array(wide, ">u8") if wide else _array(_child(self._table, b"stco"), ">u4")
        runs = np.frombuffer(_child(self._table, b"stsc")[8:], ">u4").reshape(-1, 3).astype(np.int64)
        last = np.append(runs[1:, 0] - 1, len(chunks))
        per_chunk = np.repeat(runs[:, 1], last - (runs[:, 0] - 1))
        first = np.cumsum(per_chunk) - per_chunk  # sample of each chunk
        before = np.cumsum(sizes) - sizes
        starts = np.repeat(chunks - before[first], per_chunk)[:count] + before
        return starts, starts + sizes

    def _num_samples(self) -> int:
        count = _number(_child(self._table, b"stsz")[8:12])
        if count > _MOST_SAMPLES:
            raise ValueError(f"{count} frames")
        return count

    def nal_length_bytes(self) -> int | None:
        """How many bytes say the length of each unit of H.264 data; None for another codec."""
        description = _child(self._table, b"stsd")[8:]
        kind, entry = next(_boxes(description))
        return length_bytes_of(_child(entry[78:], b"avcC")) if kind in (b"avc1", b"avc3") else None


def read_moov(file: BinaryIO) -> bytes | None:
    """The index: what is in the outermost box `moov`. None where there is none, or not all of it."""
    size, position = file.seek(0, 2), 0
    while position + 8 <= size:
        file.seek(position)
        header = file.read(16)
        length, start = int.from_bytes(header[:4]), 8
        if length == 1:  # a 64-bit length follows
            length, start = int.from_bytes(header[8:16]), 16
        elif length == 0:  # reaches to the end of the file
            length = size - position
        if length < start:
            return None
        if header[4:8] == b"moov":
            file.seek(position + start)
            content = file.read(length - start)
            return content if len(content) == length - start else None
        position += length
    return None


def is_fragmented(moov: memoryview) -> bool:
    """Whether the frames are indexed in pieces, each beside its part of the file, and not here."""
    return any(kind == b"mvex" for kind, _ in _boxes(moov))


def movie_ticks_per_second(moov: memoryview) -> int:
    """The unit of the lengths of edits."""
    return _timescale(_child(moov, b"mvhd"))


def video_tracks(moov: memoryview) -> list[Track]:
    """The video tracks of a file, in its order."""
    tracks = [content for kind, content in _boxes(moov) if kind == b"trak"]
    return [Track(content) for content in tracks if bytes(_child(content, b"mdia", b"hdlr")[8:12]) == b"vide"]


def _timescale(header: memoryview) -> int:
    start = 20 if header[0] == 1 else 12
    ticks = _number(header[start : start + 4])
    if ticks == 0:
        raise ValueError("0 ticks a second")
    return ticks


def _runs(box: memoryview) -> NDArray[np.int64]:
    """A run-length table (number, value) written out. Values are signed: offsets may be, steps never get so large."""
    if not box:
        return np.zeros(0, np.int64)
    pairs = np.frombuffer(box[8:], ">i4", 2 * _number(box[4:8])).reshape(-1, 2).astype(np.int64)
    if (pairs[:, 0] < 0).any() or pairs[:, 0].sum() > _MOST_SAMPLES:
        raise ValueError(f"{pairs[:, 0].sum()} frames")
    return np.repeat(pairs[:, 1], pairs[:, 0])


def _array(box: memoryview, dtype: str) -> NDArray[np.int64]:
    return np.frombuffer(box[8:], dtype, _number(box[4:8])).astype(np.int64)


def _child(box: memoryview, *kinds: bytes) -> memoryview:
    """What is in the first box of this kind, of the next kind in that, …; empty where there is none."""
    for wanted in kinds:
        box = next((content for kind, content in _boxes(box) if kind == wanted), memoryview(b""))
    return box


def _boxes(content: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    position = 0
    while position + 8 <= len(content):
        length, start = _number(content[position : position + 4]), 8
        if length == 1:
            length, start = _number(content[position + 8 : position + 16]), 16
        elif length == 0:
            length = len(content) - position
        if length < start:
            raise ValueError(f"a box of {length} bytes")
        yield bytes(content[position + 4 : position + 8]), content[position + start : position + length]
        position += length


def _number(data: memoryview) -> int:
    return int.from_bytes(data)
