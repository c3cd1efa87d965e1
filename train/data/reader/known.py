"""What is known of the packets of a file without a look into it: from memory, or from a text that an index keeps.

That look costs as much as a tenth of the time of decoding a clip. The text is of regular files alone, in which every
packet is one frame that is shown, and decoding may start at each key frame. It has the file's size and time, so that it
says nothing of another file in its place, and a checksum against damage.
"""

import base64
import struct
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from train.data.reader.errors import VideoError
from train.data.reader.packets import Packets, groups_are_closed, read_packets
from train.data.reader.stream import Stream
from train.errors import InputError

_LONGEST = 4096  # letters of a text; files whose packets take more are looked into. A clip of 10 s takes 50 to 220.
_HEAD = struct.Struct("<qq?")  # the fields of `Version`, and `Packets.may_seek`
_ROW = np.dtype([("step", "<i8"), ("key", "u1")])  # of a packet: its time less that of the one before it in the file


class Version(NamedTuple):
    """What differs where a file is another than before."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """What the system says of the file at `path`. Raises OSError."""
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns)


class _Known:
    """What was found of the files that were looked into last."""

    def __init__(self, most: int) -> None:
        self.most, self.total = most, 0  # packets of all files together
        self.found: OrderedDict[tuple[str, Version], Packets] = OrderedDict()

    def get(self, key: tuple[str, Version]) -> Packets | None:
        if key in self.found:
            self.found.move_to_end(key)
        return self.found.get(key)

    def add(self, key: tuple[str, Version], packets: Packets) -> None:
        self.found[key] = packets
        self.total += packets.times.size
        while self.total > self.most:
            self.total -= self.found.popitem(last=False)[1].times.size


_KNOWN = _Known(most=2_000_000)  # 22 MB


def known_packets(stream: Stream, text: str = "") -> Packets:
    """As `read_packets`; where this process has met the same file before, or `text` is of it, without a look into it.

    It is met again in the next epoch, or for its next clip in an evaluation. Raises VideoError, InputError for a text
    that is damaged.
    """
    version = Version.of(stream.path)
    key = str(stream.path.absolute()), version
    packets = _KNOWN.get(key)
    if packets is None:
        packets = (unpack(text).packets_of(version) if text else None) or read_packets(stream)
        _KNOWN.add(key, packets)
    return packets


class _Unpacked(NamedTuple):
    """What a text says. Its checksum is right, and so it is not damaged; what is untrue in it is not believed."""

    version: Version
    may_seek: bool
    rows: NDArray[np.void]

    def packets_of(self, version: Version) -> Packets | None:
        """None where they are of another version, or of a file that is not regular."""
        times, keys, every = np.cumsum(self.rows["step"]), self.rows["key"] == 1, np.ones(self.rows.size, np.bool_)
        if version != self.version or not groups_are_closed(times, keys, every):
            return None
        return Packets(times, keys, every, every, may_seek=self.may_seek)


def text_of(path: Path) -> str:
    """What an index may keep of the video file at `path`: a text, "" where it is not regular, or has just changed."""
    try:
        version = Version.of(path)  # before the look: where the file is changed during it, the text is of neither
        return pack(version, known_packets(Stream(path)))
    except (OSError, VideoError, struct.error):  # the last for a time that no 64 bits hold
        return ""


def pack(version: Version, packets: Packets) -> str:
    """A text that says what the packets of a file of that `version` are, or "": of some, or where it would be long."""
    if not (packets.may_start_at_keys and packets.shown.all()):
        return ""
    rows = np.empty(packets.times.size, _ROW)
    rows["step"], rows["key"] = np.diff(packets.times, prepend=0), packets.keys
    text = base64.b64encode(zlib.compress(_HEAD.pack(*version, packets.may_seek) + rows.tobytes(), 9)).decode()
    return text if len(text) <= _LONGEST else ""


def unpack(text: str) -> _Unpacked:
    """What a text of `pack` says. Raises InputError for one that is none, or damaged."""
    try:
        if len(text) > _LONGEST:  # nothing packs 800 times as much
            raise ValueError(f"has more than {_LONGEST} letters")
        data = zlib.decompress(base64.b64decode(text, validate=True))
        size, mtime_ns, may_seek = _HEAD.unpack_from(data)
        return _Unpacked(Version(size, mtime_ns), may_seek, np.frombuffer(data, _ROW, offset=_HEAD.size))
    except (ValueError, zlib.error, struct.error) as error:
        raise InputError(f"packets: got {text[:80]!r}, expected what `prepare` keeps of a file's ({error})") from error
