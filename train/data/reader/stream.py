"""A video stream of an open file: the one place at which PyAV is asked."""

import itertools
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from train.data.reader.bitstream import look_of
from train.data.reader.errors import VideoError
from train.data.reader.files import name_for_ffmpeg

_PROGRESSIVE = 1  # AV_FIELD_PROGRESSIVE
_MP4_KINDS = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp"}


class Stream:
    """The video stream that players choose of the file at `path`; open until it is not referred to any more.

    `name` is what errors call it, by default `path`. Raises VideoError where there is no such stream, OSError where the
    file cannot be read.
    """

    def __init__(self, path: Path, name: str = "") -> None:
        self.path, self.name = path, name or str(path)
        self._container: Any = None
        try:
            self._container = self._open()
            self._stream: Any = self._container.streams.best("video")
        except (av.FFmpegError, ValueError) as error:
            raise VideoError(self.name, self._why_not_open(error)) from error
        if self._stream is None or self._stream.codec_context is None:
            nothing = "has no video stream (audio only, or not a single frame)"
            raise VideoError(self.name, self._why_not_open(None) or nothing)
        for other in self._container.streams:
            if other is not self._stream:
                other.discard = av.stream.Discard.all  # so that the sound is passed over and not read
        self.codec: Any = self._stream.codec_context
        self.codec.thread_count = 1
        self.look = look_of(self.codec.name, self.codec.extradata, self.codec.field_order == _PROGRESSIVE)

    def __del__(self) -> None:
        if self._container is not None:
            self._container.close()  # its parts refer to one another: without this, files stay open for long

    def _open(self) -> Any:
        return av.open(name_for_ffmpeg(self.path))

    def _why_not_open(self, error: Exception | None) -> str:
        return _why_not_open(self.path, error)

    @property
    def rate(self) -> float | None:
        """Frames a second, as far as the container says."""
        rate = self._stream.average_rate or self._stream.guessed_rate
        return float(rate) if rate else None

    @property
    def container_names(self) -> set[str]:
        """FFmpeg's names of its container, one or several."""
        return set(self._container.format.name.split(","))

    @property
    def num_frames(self) -> int:
        """Frames by an mp4's index, before an edit list leaves out any; 0 where nothing says."""
        return int(self._stream.frames)

    @property
    def num_streams(self) -> int:
        """Video streams of the file."""
        return len(self._container.streams.video)

    @property
    def has_no_duration(self) -> bool:
        """Whether the file does not say how long it is."""
        return self._container.duration is None

    def ends_early(self, num_packets: int) -> bool:
        """Whether the index places a frame behind the end of the file, of which `num_packets` were found."""
        index, size = self._stream.index_entries, self.path.stat().st_size
        return len(index) > num_packets and any(entry.pos + entry.size > size for entry in index)

    def packets(self) -> closing[Generator[Any, None, None]]:
        """The packets that hold anything, from where the stream stands, as a context. Raises VideoError.

        PyAV's generators leak what they hold unless they come to their end or are closed: in a training run, gigabytes.
        """
        return closing(self._packets())

    def _packets(self) -> Generator[Any, None, None]:
        with closing(self._container.demux(self._stream)) as packets:
            try:
                for packet in packets:
                    if packet.size:
                        yield packet
            except (av.FFmpegError, OSError, ValueError) as error:
                raise VideoError(self.name, reason(error)) from error

    def decode(self, packet: Any) -> list[Any]:
        """The frames that `packet` completes; None for those that the decoder holds back. Raises VideoError."""
        try:
            frames = self._stream.decode(packet)
            for frame in frames if packet is None else ():
                frame.time_base = self._stream.time_base
            return frames
        except av.InvalidDataError as error:
            if packet is not None and self.look(memoryview(packet)) == 0:  # no picture: to FFmpeg's H.264 an error
                return []
            raise VideoError(self.name, reason(error)) from error
        except (av.FFmpegError, OSError, ValueError) as error:
            raise VideoError(self.name, reason(error)) from error

    def packets_from(self, time: int, count: int) -> list[Any]:
        """`count` packets from the key frame on to which a seek to `time`, in ticks, leads. Raises VideoError."""
        try:
            self._container.seek(time, stream=self._stream)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise VideoError(self.name, reason(error)) from error
        with self.packets() as packets:
            return list(itertools.islice(packets, count))

    def frames(self) -> Iterator[Any]:
        """All frames that are shown, from where the stream stands on. Raises VideoError."""
        with self.packets() as packets:
            for packet in packets:
                yield from self.decode(packet)
            yield from self.decode(None)

    @staticmethod
    def turns(frame: Any) -> bool:
        """Whether a decoded frame is to be turned or mirrored before it is shown."""
        matrix = _display_matrix(frame)
        probe = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
        return bool(matrix.size) and not np.array_equal(turned(probe, matrix), probe)


def reason(error: Exception) -> str:
    """What an error that PyAV raises says of the file."""
    if isinstance(error, av.InvalidDataError):
        return "is not a video file, or is damaged or truncated"
    return f"cannot be decoded, it is damaged or truncated ({type(error).__name__})"


def _why_not_open(path: Path, error: Exception | None) -> str:
    """Why a file is not opened, or why nothing is found in it: "" where that is not known and there is no `error`."""
    with path.open("rb") as file:
        size, position, kind = path.stat().st_size, 0, b""
        while position + 8 <= size and kind != b"moov":
            file.seek(position)
            header = file.read(16)
            length, kind = int.from_bytes(header[:4]), header[4:8]
            length = int.from_bytes(header[8:16]) if length == 1 else length or size - position
            if (position == 0 and kind not in _MP4_KINDS) or length < 8:
                return "" if error is None else reason(error)
            position += length
    if kind != b"moov" or position > size:
        return "is truncated: its index (the mp4 moov box) is missing or incomplete"
    return "" if error is None else reason(error)


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
            self._matrix = _display_matrix(frame)
        plane: Any = self._converter.reformat(frame, format="rgb24", threads=1).planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        pixels = rows[:, : 3 * plane.width].reshape(plane.height, plane.width, 3)
        return turned(pixels, self._matrix) if self._matrix.size else pixels


class Clip:
    """RGB (T, H, W, 3) of the frames of one file that have `numbers` (T,), in which each may be there several times."""

    def __init__(self, path: Path, numbers: NDArray[np.int64], picture: Pictures) -> None:
        self.path, self._picture = path, picture
        self.frames = np.empty((numbers.size, 0, 0, 3), np.uint8)
        self.rows: dict[int, list[int]] = {}
        """Where the frames come that are still to be added."""
        for row, number in enumerate(numbers.tolist()):
            self.rows.setdefault(number, []).append(row)

    def add(self, number: int, frame: Any) -> None:
        """Write a decoded frame into its rows. Raises VideoError where it has another size than those before.

        At once, so that the memory of its picture serves for the next: fresh memory takes longer than the copy.
        """
        pixels = self._picture(frame)
        if not self.frames.size:
            self.frames = np.empty((len(self.frames), *pixels.shape), np.uint8)
        if pixels.shape != self.frames.shape[1:]:
            raise VideoError(self.path, "its frames change their size")
        for row in self.rows.pop(number, ()):
            self.frames[row] = pixels


def _display_matrix(frame: Any) -> NDArray[np.int32]:
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
