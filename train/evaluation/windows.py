"""Windows of time over frames that come one after the other, of which about a window's are held."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from train.data.sampling import Sampling
from train.errors import InputError

TOLERANCE = 0.002
"""Seconds by which a frame may come early and still count as in time: Matroska rounds times to milliseconds."""


@dataclass(frozen=True)
class Window:
    """The frames from `start` to before `end`, in seconds since the first frame of all."""

    start: float
    end: float
    frames: tuple[Tensor, ...]
    """Each uint8 (H, W, 3); at least one."""


class WindowCutter:
    """Cuts frames into windows of `length` seconds that begin every `stride` seconds, from 0 on.

    What is left at the end is in a window that ends with the last frame, and overlaps the one before it by more than
    the others do; frames that last less than a window are in one shorter window.
    """

    def __init__(self, length: float, stride: float) -> None:
        self.length, self.stride = length, stride
        self.empty = 0
        """Windows in whose time no frame came, which are left out."""
        self._number = 0  # of the window that is next
        self._frames: deque[tuple[float, Tensor]] = deque()
        self._covered = 0.0
        self._newest = 0.0

    def add(self, time: float, frame: Tensor) -> Iterator[Window]:
        """The windows that are complete now that a frame at `time`, later than those before it, is there."""
        while time >= self._start + self.length - TOLERANCE:
            yield from self._cut(self._start)
            self._number += 1
            if not self._frames or self._frames[-1][0] < self._start - TOLERANCE:  # nothing until this frame
                first = max(self._number, int((time - self.length) / self.stride))
                self.empty += first - self._number
                self._number = first
        self._newest = time
        self._frames.append((time, frame))
        # Before the next window's start frames are kept for the last window alone, which ends with the last frame.
        oldest = min(self._start, time - self.length) - 2 * TOLERANCE
        while self._frames[0][0] < oldest:
            self._frames.popleft()

    def finish(self, frame_seconds: float) -> Iterator[Window]:
        """The windows at the end, where the last frame lasts `frame_seconds`."""
        if not self._frames:
            return
        end = self._newest + frame_seconds
        while self._start + self.length <= end + TOLERANCE:
            yield from self._cut(self._start)
            self._number += 1
        if max(self._covered, self._start) < end - TOLERANCE:  # and not in the time between windows
            yield from self._cut(max(0.0, end - self.length), end)

    @property
    def _start(self) -> float:
        return self._number * self.stride

    def _cut(self, start: float, end: float | None = None) -> Iterator[Window]:
        end = start + self.length if end is None else end
        times = (start - TOLERANCE, end - TOLERANCE)
        frames = tuple(frame for time, frame in self._frames if times[0] <= time < times[1])
        self._covered = end
        if frames:
            yield Window(start, end, frames)
        else:
            self.empty += 1


def window_length(sampling: Sampling, rate: float | None, asked: float | None) -> float:
    """Seconds of a window: `asked`, or what the frames of a clip span at `rate` frames a second.

    Raises InputError where neither says.
    """
    if asked is not None:
        return asked
    if sampling.kind != "dense":
        raise InputError(
            f"window: got none, expected seconds: this network saw whole videos, a frame of each of "
            f"{sampling.num_segments} parts, so a window is to be as long as these were (--window 4)"
        )
    if rate is None:
        raise InputError("window: got none, expected seconds, as the stream does not say how many frames a second has")
    return sampling.reach / rate


def stride_length(rate: float | None, every: int | None) -> float | None:
    """Seconds of `every` frames at `rate` a second; None where nothing is asked. Raises InputError without a rate."""
    if every is not None and rate is None:
        raise InputError(f"every: got {every}, but the stream does not say how many frames a second has; use --stride")
    return None if every is None or rate is None else every / rate
