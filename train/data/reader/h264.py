"""What the units of H.264 say of a frame without being decoded (ITU-T H.264, 7.3.1 and table 7-1).

In mp4 and Matroska a frame's data, its sample, is a list of units, each behind its length in `length_bytes` bytes.
"""

from collections.abc import Iterator

_SLICES = range(1, 6)  # the kinds of units that hold picture data
_RESTART = 5


def is_restart(sample: bytes | memoryview, length_bytes: int) -> bool:
    """Whether a frame is an IDR picture, from which on no frame refers to an earlier one.

    The first few kilobytes of a sample suffice: only units without picture data come before the first slice.
    """
    return next((kind == _RESTART for kind, _ in _slices(sample, length_bytes)), False)


def is_reference(sample: bytes | memoryview, length_bytes: int) -> bool:
    """Whether other frames may refer to this one; True where the sample does not say."""
    references = [refers for _, refers in _slices(sample, length_bytes)]
    return any(references) or not references


def _slices(sample: bytes | memoryview, length_bytes: int) -> Iterator[tuple[int, bool]]:
    """The kind of each slice, and whether it may be referred to."""
    position = 0
    while length_bytes and position + length_bytes < len(sample):
        header = sample[position + length_bytes]
        if header & 31 in _SLICES:
            yield header & 31, header & 0x60 != 0
        position += length_bytes + int.from_bytes(sample[position : position + length_bytes])


def length_bytes_of(configuration: bytes | memoryview | None) -> int:
    """How many bytes say the length of each unit, by the decoder configuration (ISO/IEC 14496-15, 5.3.3.1); 0 where it
    is none of that form.
    """
    return (configuration[4] & 3) + 1 if configuration and len(configuration) > 4 and configuration[0] == 1 else 0
