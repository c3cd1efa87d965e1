import time
from itertools import islice

import numpy as np
import pytest
import torch

import train.dataset
from tests.video_files import bad_videos, decode, encode, striped_frames
from train.dataset import (
    MAX_ATTEMPTS,
    ClipFormat,
    ClipKey,
    EpochBatches,
    EvaluationClips,
    TrainingClips,
    evaluation_batches,
    training_batches,
)
from train.errors import InputError
from train.lists import VideoEntry

FORMAT = ClipFormat(num_segments=4, short_side=32, crop=32)
NAMES = ("moving left", "moving right", "moving up")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Nine videos of 64 × 80 pixels, each brighter than the one before."""
    folder = tmp_path_factory.mktemp("good")
    frames = striped_frames(20, 64, 80) // 2
    return [VideoEntry(encode(folder / f"{i}.mp4", frames + np.uint8(12 * i)), i % 3) for i in range(9)]


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    kinds = bad_videos(tmp_path_factory.mktemp("bad"))
    return [VideoEntry(kinds[kind], 0) for kind in ("absent", "empty", "cut_60", "audio_only")]


def batches_of(entries, workers, seed=3, epochs=2, batch_size=4):
    clips = TrainingClips(entries, NAMES, FORMAT, seed)
    return list(training_batches(clips, EpochBatches(len(entries), batch_size, epochs, seed), workers))


def read(clips, epoch, video):
    clip, _, failures = clips[ClipKey(epoch, video)]
    assert clip is not None
    assert clip.dtype == torch.uint8
    assert failures == ()
    return clip


def assert_equal(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.clips, b.clips)
        assert torch.equal(a.labels, b.labels)
        assert a.failures == b.failures


def test_randomness_does_not_depend_on_workers(good, bad):
    entries = [*good, *bad[:2]]
    assert_equal(batches_of(entries, workers=0), batches_of(entries, workers=2))


def test_randomness_is_a_function_of_seed_epoch_and_video(good):
    def clip(seed, epoch, video):
        return read(TrainingClips(good, NAMES, FORMAT, seed), epoch, video)

    clips = TrainingClips(good, NAMES, FORMAT, seed=1)
    for epoch, video in ((5, 2), (0, 0), (5, 2)):  # in whatever order
        assert torch.equal(read(clips, epoch, video), clip(1, epoch, video))
    assert not torch.equal(clip(1, 0, 0), clip(1, 1, 0))
    assert not torch.equal(clip(1, 0, 0), clip(2, 0, 0))


def test_every_epoch_has_its_own_order():
    batches = EpochBatches(num_videos=10, batch_size=3, epochs=2, seed=0)
    keys = list(batches)
    assert len(keys) == len(batches) == 6
    assert batches.per_epoch == 3
    for epoch in range(2):
        videos = [key.video for batch in keys[3 * epoch : 3 * epoch + 3] for key in batch]
        assert len(set(videos)) == 9  # none twice
        assert {key.epoch for batch in keys[3 * epoch : 3 * epoch + 3] for key in batch} == {epoch}
    assert [key.video for key in keys[0]] != [key.video for key in keys[3]]
    assert list(EpochBatches(10, 3, 2, seed=0)) == keys
    assert list(EpochBatches(10, 3, 2, seed=1)) != keys


@pytest.mark.parametrize("batch_size", [0, 11])
def test_batch_size_that_does_not_fit(batch_size):
    with pytest.raises(InputError, match=f"between 1 and the number of videos, 10; got {batch_size}"):
        EpochBatches(10, batch_size, 1, 0)


def test_training_clip_is_a_crop_of_frames_in_order(good):
    """Frame by frame the same place of the video, possibly flipped, one frame of each segment."""
    video = torch.from_numpy(decode(good[2].path))
    small = TrainingClips(good, NAMES, ClipFormat(num_segments=4, short_side=64, crop=48), seed=0)
    flips = set()
    for epoch in range(12):
        clip = read(small, epoch, 2)
        places = [
            (flip, top, left)
            for flip in (False, True)
            for top in range(17)
            for left in range(33)
            if _is_crop(clip, video, top, left, flip)
        ]
        assert len(places) == 1
        flips.add(places[0][0])
    assert flips == {False, True}


def _is_crop(clip, video, top, left, flip):
    clip = clip.flip(2) if flip else clip
    crops = video[:, top : top + 48, left : left + 48]
    return all(
        any(torch.equal(frame, crop) for crop in crops[5 * segment : 5 * segment + 5])
        for segment, frame in enumerate(clip)
    )


def test_flip_swaps_directions(good):
    clips = TrainingClips(good, NAMES, FORMAT, seed=0)
    for video, labels in ((0, {0, 1}), (1, {0, 1}), (2, {2})):
        assert {clips[ClipKey(epoch, video)].label for epoch in range(20)} == labels
    alone = TrainingClips(good, ("moving left", "standing", "moving up"), FORMAT, seed=0)
    assert {alone[ClipKey(epoch, 0)].label for epoch in range(20)} == {0}


def test_bad_video_in_training_is_replaced_and_named(good, bad):
    entries = [*good[:4], *bad]
    batches = batches_of(entries, workers=0, epochs=2, batch_size=8)
    again = batches_of(entries, workers=2, epochs=2, batch_size=8)
    assert_equal(batches, again)
    for batch in batches:
        assert batch.clips.shape == (8, 4, 32, 32, 3)
        assert batch.labels.shape == (8,)
        assert batch.missing == 0
        assert {failure.path for failure in batch.failures} == {str(entry.path) for entry in bad}
        assert all(failure.reason for failure in batch.failures)


def test_training_gives_up_on_a_sample_after_some_attempts(bad):
    sample = TrainingClips(bad, NAMES, FORMAT, seed=0)[ClipKey(0, 0)]
    assert sample.clip is None
    assert len(sample.failures) == MAX_ATTEMPTS
    (batch,) = batches_of(bad, workers=0, epochs=1)
    assert (batch.missing, len(batch.labels), len(batch.failures)) == (4, 0, 4 * MAX_ATTEMPTS)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_video_in_evaluation_is_left_out_and_named(good, bad, workers):
    entries = [good[4], bad[0], bad[1], bad[2], good[1], good[2], bad[3], good[0]]
    batches = list(evaluation_batches(EvaluationClips(entries, FORMAT), batch_size=3, workers=workers))
    assert [batch.labels.tolist() for batch in batches] == [[1], [1, 2], [0]]
    assert [len(batch.clips) for batch in batches] == [1, 2, 1]
    assert [batch.missing for batch in batches] == [2, 1, 1]
    assert [failure.path for batch in batches for failure in batch.failures] == [str(entry.path) for entry in bad]


def test_evaluation_clip_is_the_middle_of_everything(good):
    clips = EvaluationClips(good, ClipFormat(num_segments=4, short_side=64, crop=64))
    for index in (0, 5):
        expected = decode(good[index].path)[[2, 7, 12, 17], :, 8:72]
        np.testing.assert_array_equal(clips[index].clip, expected)


def test_batches_without_any_good_video(bad):
    (batch,) = evaluation_batches(EvaluationClips(bad, FORMAT), batch_size=4, workers=0)
    assert (len(batch.clips), len(batch.labels), batch.missing) == (0, 0, 4)


def test_global_generator_is_left_alone(good):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(evaluation_batches(EvaluationClips(good, FORMAT), 4, workers=0))
    batches_of(good, workers=1, epochs=1)
    assert torch.equal(torch.rand(3), expected)


def test_hung_decoder_ends_in_an_error(good, monkeypatch):
    """A worker inherits the stand-in, so it hangs as decord might."""

    def hang(_):
        time.sleep(600)

    monkeypatch.setattr(train.dataset, "VideoFile", hang)
    monkeypatch.setattr(train.dataset, "HANG_TIMEOUT", 1)
    with pytest.raises(InputError, match="has hung or died"):
        list(islice(evaluation_batches(EvaluationClips(good, FORMAT), 4, workers=1), 1))
