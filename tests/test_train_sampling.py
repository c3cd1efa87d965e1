import numpy as np
import pytest

from train.sampling import middle_segments, random_segments


class Draws(np.random.Generator):
    """Stands in for a generator: gives prepared numbers and remembers below what they were to be."""

    def __init__(self, numbers):
        super().__init__(np.random.PCG64())
        self.numbers, self.asked = numbers, []

    def integers(self, high, size):  # type: ignore[override]
        self.asked.append((high, size))
        return np.asarray(self.numbers)


def published_random(n, T, offsets):
    """TSN's rule as both public implementations have it, for clips of single frames."""
    average_duration = n // T
    if average_duration > 0:
        return [i * average_duration + offset for i, offset in enumerate(offsets)]
    return [0] * T


def published_middle(n, T):
    tick = n / float(T)
    return [int(tick / 2.0 + tick * x) for x in range(T)]


@pytest.mark.parametrize("T", [1, 3, 8, 16])
def test_equal_to_the_published_rule(T):
    for n in range(1, 401):
        assert middle_segments(n, T).tolist() == published_middle(n, T)
        offsets = [(7 * i + n) % max(1, n // T) for i in range(T)]
        draws = Draws(offsets)
        assert random_segments(n, T, draws).tolist() == published_random(n, T, offsets)
        assert draws.asked == ([(n // T, T)] if n >= T else [])


def test_indices_are_in_the_video_and_cover_it():
    rng = np.random.default_rng(0)
    for n in (1, 5, 8, 9, 30, 300):
        drawn = np.stack([random_segments(n, 8, rng) for _ in range(400)])
        assert drawn.min() == 0
        assert drawn.max() == (8 * (n // 8) - 1 if n >= 8 else 0)
        assert 0 <= middle_segments(n, 8).min() <= middle_segments(n, 8).max() < n
    counts = np.unique(np.stack([random_segments(32, 8, rng) for _ in range(400)]), return_counts=True)
    assert counts[0].tolist() == list(range(32))
    assert counts[1].min() > 60  # 100 expected


@pytest.mark.parametrize(("n", "T", "name"), [(0, 8, "num_frames"), (-1, 8, "num_frames"), (8, 0, "num_segments")])
def test_impossible_numbers(n, T, name):
    for sample in (lambda: middle_segments(n, T), lambda: random_segments(n, T, np.random.default_rng(0))):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got"):
            sample()
