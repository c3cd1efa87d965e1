"""Which frames of a video make a clip.

The rules are those of the paper's public code, index for index. *Dense* (Kinetics): T frames with a stride s = 64 // T,
so out of 64 consecutive ones, going round where a video is shorter. *Segments* (Something-Something; TSN): one frame
out of each of T equal parts. n is the number of frames of the video throughout; the frames are 0 to n − 1.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tam_triton.clips import middle_frames
from train.fields import check_types, require

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video a network sees."""

    kind: Literal["dense", "segments"] = "segments"
    """dense: T frames out of `reach` consecutive ones (Kinetics). segments: a frame of each of T equal parts of the
    video (Something-Something)."""
    num_segments: int = 8
    """T, the frames of a clip."""
    reach: int = 64
    """Dense sampling alone: from how many consecutive frames the T are taken; the stride is reach // T. 64 in the paper
    and in both implementations."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "num_segments", self.num_segments >= 1, "at least 1")
        least = self.num_segments if self.kind == "dense" else 1
        require(self, "reach", self.reach >= least, f"at least {least}")

    def train(self, num_frames: int, rng: np.random.Generator) -> Indices:
        """The frames (T,) of a training clip, drawn by `rng`. ValueError if num_frames < 1; so below.

        dense: a random start in [0, span − 1), so never the last that fits, as published; (start + i·s) mod n.
        segments: a random frame of each of T segments of d = n // T frames, i·d + randint(d); frame 0 T times if n < T.
        The n mod T last frames are never taken. Published code has a third case, d = 0 with n > T, which cannot occur
        for clips of single frames.
        """
        n, T = _checked("num_frames", num_frames), self.num_segments
        if self.kind == "dense":
            span = self._span(n)
            return self._dense(np.asarray(rng.integers(span - 1) if span > 1 else 0), n)
        length = n // T
        return np.arange(T) * length + (rng.integers(length, size=T) if length else 0)

    def validate(self, num_frames: int) -> Indices:
        """The frames (T,) of the clip that stands for a video while a network is trained.

        dense: the start in the middle, span // 2. segments: the middles of the segments, int(n/T/2 + i·n/T).
        """
        n, T = _checked("num_frames", num_frames), self.num_segments
        return np.array(middle_frames(n, T, self.reach if self.kind == "dense" else None))

    def test(self, num_frames: int, clips: int) -> Indices:
        """The frames (m, T) of all m `clips` of a test.

        dense: starts spread evenly from the first that fits to the last, linspace(0, span − 1, m).
        segments: int(start + i·n/T) mod n. The starts are linspace(0, n/T − 1, m) cut to integers, so 0 for all if
        n < T: towards zero, as NumPy's linspace did with dtype=int before 1.20; since then it rounds down, and a start
        of −1 would wrap to the end of the video. A single clip is that of `validate`.
        """
        n, T = _checked("num_frames", num_frames), self.num_segments
        _checked("clips", clips)
        if self.kind == "dense":
            return self._dense(_spread(self._span(n) - 1, clips), n)
        return self.validate(n)[None] if clips == 1 else _segments(_spread(n / T - 1, clips), n, T)

    def _span(self, n: int) -> int:
        """How many starts there are from which a dense clip fits into the video; 1 where none does."""
        return max(1, 1 + n - self.reach // self.num_segments * self.num_segments)

    def _dense(self, starts: NDArray[np.int64], n: int) -> Indices:
        return (starts[..., None] + np.arange(self.num_segments) * (self.reach // self.num_segments)) % n


def _segments(starts: NDArray[np.int64] | NDArray[np.float64], n: int, T: int) -> Indices:
    return (starts[..., None] + n / T * np.arange(T)).astype(np.int64) % n


def _spread(last: float, count: int) -> NDArray[np.int64]:
    return np.linspace(0, last, count).astype(np.int64)


def _checked(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value
