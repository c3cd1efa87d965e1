"""Frames as they come, each once, with their times: of files, and of streams, which have no way back."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from train.data.reader.stream import Pictures, Stream


class TimedFrame(NamedTuple):
    """A frame that is shown."""

    time: float
    """Seconds since the first frame."""
    pixels: NDArray[np.uint8]
    """RGB (H, W, 3), the way up that a player shows it."""


class Clock:
    """Times that begin at 0 and only grow, of timestamps that need not: some are missing, and cameras start anew.

    A frame without a later time than the one before it comes one frame's length behind it, and those that follow are
    moved with it. `rate`: frames a second, where that is known.
    """

    def __init__(self, rate: float | None) -> None:
        self.frame_seconds = 1 / rate if rate else 1 / 25
        self._last: float | None = None
        self._offset = 0.0

    def __call__(self, timestamp: float | None) -> float:
        """Seconds since the first frame, of a frame with `timestamp` in seconds."""
        if self._last is None:
            self._offset, self._last = -(timestamp or 0.0), 0.0
            return 0.0
        time = self._last + self.frame_seconds if timestamp is None else timestamp + self._offset
        if time <= self._last and timestamp is not None:
            time = self._last + self.frame_seconds
            self._offset = time - timestamp
        self._last = time
        return time


def timed_frames(stream: Stream) -> Iterator[TimedFrame]:
    """All frames of `stream` from where it stands on, each in memory of its own. Raises VideoError."""
    clock, picture = Clock(stream.rate), Pictures()
    for frame in stream.frames():
        yield TimedFrame(clock(frame.time), np.array(picture(frame)))
