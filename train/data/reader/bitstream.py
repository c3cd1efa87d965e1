"""What the first bytes of a packet say of the frames in it, where FFmpeg's flags do not.

A packet is no frame: VP8 and VP9 store frames that are never shown, to refer to; a packet of MPEG-4 may hold two frames
and the next none; one of H.264 may hold notes alone. None of that is in the flags, and all of it in a few bytes.
"""

from collections.abc import Callable

Look = Callable[[memoryview], int | None]
"""How many frames a packet shows: 0 or 1, None where that is not known."""

_VOP = b"\0\0\1\xb6"  # begins a picture of MPEG-4
_EMPTY_VOP = 19  # bytes up to which one may say no more than "as before"
_SLICES = range(1, 6)  # the kinds of H.264's units that hold picture data
RESTART = 5
"""The kind of slices from which on no frame refers to an earlier one."""


def look_of(codec: str, configuration: bytes | None, progressive: bool) -> Look:
    """How to look at the packets of a codec as FFmpeg names it, of which the container says `configuration`.

    `progressive`: whether FFmpeg has found that H.264 is not coded in fields, of which a frame has two.
    """
    if codec == "h264":
        length_bytes = length_bytes_of(configuration)
        return _of_h264(length_bytes) if length_bytes and progressive else _unknown
    return _LOOKS.get(codec, _unknown)


def first_slice(sample: memoryview, length_bytes: int) -> int | None:
    """The kind of the first slice of H.264 (ITU-T H.264, 7.3.1 and table 7-1); None where there is none.

    In mp4 and Matroska a frame's data, its sample, is a list of units, each behind its length in `length_bytes` bytes.
    """
    position = 0
    while length_bytes and position + length_bytes < len(sample):
        kind = sample[position + length_bytes] & 31
        if kind in _SLICES:
            return kind
        position += length_bytes + int.from_bytes(sample[position : position + length_bytes])
    return None


def length_bytes_of(configuration: bytes | None) -> int:
    """How many bytes say the length of each unit, by the decoder configuration (ISO/IEC 14496-15, 5.3.3.1); 0 where it
    is none of that form.
    """
    return (configuration[4] & 3) + 1 if configuration and len(configuration) > 4 and configuration[0] == 1 else 0


def _of_h264(length_bytes: int) -> Look:
    def look(data: memoryview) -> int:
        if len(data) > length_bytes and data[length_bytes] & 31 == 1:  # the first unit, nearly always
            return 1
        return 0 if first_slice(data, length_bytes) is None else 1

    return look


def _of_mpeg4(data: memoryview) -> int | None:
    return 1 if len(data) > _EMPTY_VOP and bytes(data).count(_VOP) == 1 else None


def _of_vp8(data: memoryview) -> int:
    """The `show_frame` bit (RFC 6386, 9.1)."""
    return data[0] >> 4 & 1


def _of_vp9(data: memoryview) -> int | None:
    """The bits `show_existing_frame` and `show_frame`; a superframe (its last byte is 110…) ends with what it shows."""
    if data[0] >> 6 != 2 or data[0] & 0x30 == 0x30:
        return None
    return 1 if data[-1] >> 5 == 6 or data[0] & 0x0A else 0


def _one(_: memoryview) -> int:
    return 1


def _unknown(_: memoryview) -> None:
    return None


_LOOKS: dict[str, Look] = {
    "vp8": _of_vp8,
    "vp9": _of_vp9,
    "mpeg4": _of_mpeg4,
} | dict.fromkeys(("hevc", "av1", "libdav1d", "mjpeg"), _one)
