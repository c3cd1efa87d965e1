"""Sampling, index for index, against the published rules written again in plain loops."""

import numpy as np
import pytest

from train.data.sampling import Sampling
from train.errors import InputError

LENGTHS = range(1, 401)
both_lengths = pytest.mark.parametrize("T", [8, 16])


def dense_frames(start, n, T):
    stride = 64 // T
    return [(start + i * stride) % n for i in range(T)]


def dense_span(n, T):
    return max(1, 1 + n - 64 // T * T)


def evenly_spread(last, count):
    """`count` numbers from 0 to `last`, as integers."""
    if count == 1:
        return [0]
    return [int(last) if i == count - 1 else int(i * (last / (count - 1))) for i in range(count)]


@both_lengths
def test_dense_training(T):
    """The start is not given away, but it is the first frame; the others follow from it."""
    sampling = Sampling("dense", T)
    rng = np.random.default_rng(T)
    for n in LENGTHS:
        indices = sampling.train(n, rng).tolist()
        assert indices[0] < max(1, dense_span(n, T) - 1)
        assert indices == dense_frames(indices[0], n, T)


@pytest.mark.parametrize(("n", "starts"), [(10, 1), (64, 1), (65, 1), (66, 2), (70, 6), (100, 36)])
def test_dense_training_starts_everywhere_but_at_the_last_place(n, starts):
    rng = np.random.default_rng(0)
    drawn = [int(Sampling("dense").train(n, rng)[0]) for _ in range(100 * starts)]
    counts = np.bincount(drawn)
    assert len(counts) == starts
    assert counts.min() > 60  # 100 expected


@both_lengths
def test_dense_validation(T):
    for n in LENGTHS:
        assert Sampling("dense", T).validate(n).tolist() == dense_frames(dense_span(n, T) // 2, n, T)


@both_lengths
@pytest.mark.parametrize("clips", [1, 2, 3, 4, 10])
def test_dense_test(T, clips):
    for n in LENGTHS:
        starts = evenly_spread(dense_span(n, T) - 1, clips)
        assert Sampling("dense", T).test(n, clips).tolist() == [dense_frames(start, n, T) for start in starts]


@both_lengths
def test_segment_training(T):
    sampling = Sampling("segments", T)
    rng = np.random.default_rng(T)
    for n in LENGTHS:
        indices = sampling.train(n, rng).tolist()
        d = n // T
        if d == 0:
            assert indices == [0] * T
        else:
            for i in range(T):
                assert i * d <= indices[i] < (i + 1) * d


def test_segment_training_takes_every_frame_of_a_segment():
    rng = np.random.default_rng(0)
    drawn = np.stack([Sampling("segments").train(35, rng) for _ in range(400)])
    frames, counts = np.unique(drawn, return_counts=True)
    assert frames.tolist() == list(range(32))  # 35 // 8 = 4, so the last three frames are never taken
    assert counts.min() > 60  # 100 expected
    offsets = drawn % 4
    assert abs(np.corrcoef(offsets[:, 0], offsets[:, 1])[0, 1]) < 0.2  # each segment draws for itself


@both_lengths
def test_segment_validation_and_test_of_one_clip(T):
    for n in LENGTHS:
        expected = [int(n / T / 2 + i * n / T) for i in range(T)]
        assert Sampling("segments", T).validate(n).tolist() == expected
        assert Sampling("segments", T).test(n, 1).tolist() == [expected]


@both_lengths
@pytest.mark.parametrize("clips", [2, 3, 10])
def test_segment_test_of_some_clips(T, clips):
    for n in LENGTHS:
        starts = evenly_spread(n / T - 1, clips)
        expected = [[int(start + i * n / T) % n for i in range(T)] for start in starts]
        assert Sampling("segments", T).test(n, clips).tolist() == expected


@both_lengths
@pytest.mark.parametrize("kind", ["dense", "segments"])
def test_every_index_is_in_the_video_and_segments_are_in_order(kind, T):
    sampling = Sampling(kind, T)
    rng = np.random.default_rng(1)
    for n in (*LENGTHS, 10_000):
        every = np.concatenate([sampling.train(n, rng)[None], sampling.validate(n)[None], sampling.test(n, 10)])
        assert every.shape == (12, T)
        assert every.dtype == np.int64
        assert 0 <= every.min() <= every.max() < n
        if kind == "segments":
            assert (np.diff(every) >= 0).all()
        elif n >= 64:
            assert (np.diff(every) == 64 // T).all()


def test_worked_examples():
    """By hand, so that a mistake made in the rules twice would show."""
    assert Sampling("dense").validate(300).tolist() == [118, 126, 134, 142, 150, 158, 166, 174]
    assert Sampling("dense").test(300, 4)[:, 0].tolist() == [0, 78, 157, 236]
    assert Sampling("dense").validate(20).tolist() == [0, 8, 16, 4, 12, 0, 8, 16]
    assert Sampling("segments").validate(40).tolist() == [2, 7, 12, 17, 22, 27, 32, 37]
    assert Sampling("segments").test(40, 2).tolist() == [list(range(0, 40, 5)), list(range(4, 40, 5))]
    assert Sampling("segments").test(4, 2).tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]] * 2


def test_same_generator_same_frames():
    for kind in ("dense", "segments"):
        first, second = (Sampling(kind, 8).train(300, np.random.default_rng((1, 2, 3))) for _ in range(2))
        assert first.tolist() == second.tolist()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "sparse"}, r"sampling\.kind: got 'sparse', expected one of 'dense', 'segments'"),
        ({"num_segments": 0}, r"sampling\.num_segments: got 0, expected at least 1"),
        ({"num_segments": 8.0}, r"sampling\.num_segments: got 8\.0, expected a whole number"),
        ({"kind": "dense", "num_segments": 32, "reach": 31}, r"sampling\.reach: got 31, expected at least 32"),
    ],
)
def test_impossible_sampling(fields, message):
    with pytest.raises(InputError, match=message):
        Sampling(**fields)


@pytest.mark.parametrize("kind", ["dense", "segments"])
def test_impossible_numbers(kind):
    sampling = Sampling(kind)
    for sample in (lambda: sampling.train(0, np.random.default_rng(0)), lambda: sampling.validate(-1)):
        with pytest.raises(ValueError, match="num_frames must be at least 1, got"):
            sample()
    with pytest.raises(ValueError, match="clips must be at least 1, got 0"):
        sampling.test(10, 0)
