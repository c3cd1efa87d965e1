"""Which frames of a video make a clip: segment sampling, as the paper uses it for Something-Something (section 4.1)."""

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def random_segments(num_frames: int, num_segments: int, rng: np.random.Generator) -> Indices:
    """Training: a random frame of each of T equal segments; with fewer frames than segments, frame 0 T times.

    With d = n // T these are i·d + randint(d), so the n mod T last frames are never taken; as published.
    """
    _check(num_frames, num_segments)
    length = num_frames // num_segments
    if length == 0:
        return np.zeros(num_segments, dtype=np.int64)
    return np.arange(num_segments) * length + rng.integers(length, size=num_segments)


def middle_segments(num_frames: int, num_segments: int) -> Indices:
    """Testing with one clip: the middle frame of each of T equal segments, int(n/T/2 + i·n/T)."""
    _check(num_frames, num_segments)
    length = num_frames / num_segments
    return (length / 2 + length * np.arange(num_segments)).astype(np.int64)


def _check(num_frames: int, num_segments: int) -> None:
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    if num_segments < 1:
        raise ValueError(f"num_segments must be at least 1, got {num_segments}")
