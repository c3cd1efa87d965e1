"""Which frames of a video make a clip.

The rules are those of the paper's public code, index for index. *Dense* (Kinetics): T frames with a stride s = 64 // T,
so out of 64 consecutive ones, going round where a video is shorter. *Segments* (Something-Something; TSN): one frame
out of each of T equal parts. n is the number of frames of the video throughout; the frames are 0 to n − 1.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

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
        """The frames (T,) of a training clip, drawn by `rng`. ValueError if num_frames < 1; so below."""
        _check_count("num_frames", num_frames)
        if self.kind == "dense":
            return dense_train(num_frames, self.num_segments, self.reach, rng)
        return segments_train(num_frames, self.num_segments, rng)

    def validate(self, num_frames: int) -> Indices:
        """The frames (T,) of the clip that stands for a video while a network is trained."""
        _check_count("num_frames", num_frames)
        if self.kind == "dense":
            return dense_validate(num_frames, self.num_segments, self.reach)
        return segments_test(num_frames, self.num_segments, 1)[0]

    def test(self, num_frames: int, clips: int) -> Indices:
        """The frames (clips, T) of all clips of a test."""
        _check_count("num_frames", num_frames)
        _check_count("clips", clips)
        if self.kind == "dense":
            return dense_test(num_frames, self.num_segments, self.reach, clips)
        return segments_test(num_frames, self.num_segments, clips)


def dense_train(n: int, T: int, reach: int, rng: np.random.Generator) -> Indices:
    """A random start in [0, span − 1), so never the last that fits, as published; (start + i·s) mod n, (T,)."""
    span = _span(n, T, reach)
    start = rng.integers(span - 1) if span > 1 else 0
    return _dense(np.asarray(start), n, T, reach)


def dense_validate(n: int, T: int, reach: int) -> Indices:
    """The start in the middle, span // 2; (T,)."""
    return _dense(np.asarray(_span(n, T, reach) // 2), n, T, reach)


def dense_test(n: int, T: int, reach: int, clips: int) -> Indices:
    """Starts spread evenly from the first that fits to the last, linspace(0, span − 1, m); (m, T)."""
    return _dense(_spread(_span(n, T, reach) - 1, clips), n, T, reach)


def segments_train(n: int, T: int, rng: np.random.Generator) -> Indices:
    """A random frame of each of T segments of d = n // T frames, i·d + randint(d); frame 0 T times if n < T.

    The n mod T last frames are never taken. Published code has a third case, d = 0 with n > T, which cannot occur for
    clips of single frames.
    """
    length = n // T
    if length == 0:
        return np.zeros(T, dtype=np.int64)
    return np.arange(T) * length + rng.integers(length, size=T)


def segments_test(n: int, T: int, clips: int) -> Indices:
    """One clip: the middles of the segments, int(n/T/2 + i·n/T). m clips: int(start + i·n/T) mod n; (m, T).

    The m starts are linspace(0, n/T − 1, m) cut to integers, so 0 for all if n < T: towards zero, as NumPy's linspace
    did with dtype=int before 1.20; since then it rounds down, and a start of −1 would wrap to the end of the video.
    """
    length = n / T
    starts = np.asarray([length / 2]) if clips == 1 else _spread(length - 1, clips)
    return (starts[:, None] + length * np.arange(T)).astype(np.int64) % n


def _span(n: int, T: int, reach: int) -> int:
    """How many starts there are from which a clip fits into the video; 1 where none does."""
    return max(1, 1 + n - reach // T * T)


def _dense(starts: NDArray[np.int64], n: int, T: int, reach: int) -> Indices:
    return (starts[..., None] + np.arange(T) * (reach // T)) % n


def _spread(last: float, count: int) -> NDArray[np.int64]:
    return np.linspace(0, last, count).astype(np.int64)


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
