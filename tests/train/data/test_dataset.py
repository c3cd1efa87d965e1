import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.video_files import bad_videos, decode, encode, striped_frames
from train.data.dataset import MAX_ATTEMPTS, ClipKey, EvaluationClips, TrainingClips, ViewKey, Views
from train.data.entries import Entry, Split
from train.data.sampling import Sampling
from train.data.transforms import Augmentation
from train.errors import InputError

NAMES = ("moving left", "moving right", "moving up")
SAMPLING = Sampling("segments", num_segments=4)
CROP_48 = Augmentation(crop_size=48, scales=(0.75,), positions="any")


def split_of(entries, names=NAMES):
    return Split("test", tuple(entries), names)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Nine videos of 64 × 80 pixels and 20 frames, each brighter than the one before; odd ones as folders of PNGs."""
    folder = tmp_path_factory.mktemp("good")
    frames = striped_frames(20, 64, 80) // 2
    return [entry_of(folder, i, frames + np.uint8(12 * i)) for i in range(9)]


def entry_of(folder, i, frames):
    if i % 2 == 0:
        return Entry(encode(folder / f"{i}.mp4", frames), i % 3)
    (folder / str(i)).mkdir()
    for number, frame in enumerate(frames, start=1):
        Image.fromarray(frame).save(folder / str(i) / f"img_{number:05d}.png", compress_level=1)
    return Entry(folder / str(i), i % 3, "frames", len(frames), "img_{:05d}.png")


def frames_of(entry):
    if entry.kind == "video":
        return torch.from_numpy(decode(entry.path))
    pictures = [np.asarray(Image.open(path)) for path in sorted(entry.path.iterdir())]
    return torch.from_numpy(np.stack(pictures))


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    kinds = bad_videos(tmp_path_factory.mktemp("bad"))
    return [Entry(kinds[kind], 0) for kind in ("absent", "empty", "garbage", "audio_only")]


def training(entries, seed=0, names=NAMES, augmentation=CROP_48):
    return TrainingClips(split_of(entries, names), SAMPLING, augmentation, seed)


def test_randomness_is_a_function_of_seed_epoch_and_index(good):
    def clip(seed, epoch, index):
        return training(good, seed)[ClipKey(epoch, index)].clips

    clips = training(good, seed=1)
    for epoch, index in ((5, 2), (0, 0), (5, 2)):  # in whatever order
        assert torch.equal(clips[ClipKey(epoch, index)].clips, clip(1, epoch, index))
    assert not torch.equal(clip(1, 0, 0), clip(1, 1, 0))
    assert not torch.equal(clip(1, 0, 0), clip(2, 0, 0))
    again = clips[ClipKey(0, 0, turn=1)].clips  # a second time in an epoch that is balanced
    assert not torch.equal(again, clip(1, 0, 0))
    assert torch.equal(again, training(good, 1)[ClipKey(0, 0, 1)].clips)


@pytest.mark.parametrize("index", [1, 2])
def test_training_clip_is_a_crop_of_frames_in_order(good, index):
    """Frame by frame the same place of the video, possibly flipped, one frame of each segment."""
    video = frames_of(good[index])
    clips = training(good)
    flips = set()
    for epoch in range(10):
        sample = clips[ClipKey(epoch, index)]
        assert (sample.index, sample.view, sample.failures) == (index, 0, ())
        (clip,) = sample.clips
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
    clips = training(good)
    for index, labels in ((0, {0, 1}), (1, {0, 1}), (2, {2})):
        assert {clips[ClipKey(epoch, index)].label for epoch in range(20)} == labels
    alone = training(good, names=("moving left", "standing", "moving up"))
    assert {alone[ClipKey(epoch, 0)].label for epoch in range(20)} == {0}


def test_bad_video_in_training_is_replaced_and_named(good, bad):
    clips = training([*good[:4], *bad])
    substitutes = set()
    for epoch in range(6):
        for index in range(8):
            sample = clips[ClipKey(epoch, index)]
            assert sample.clips.shape == (1, 4, 48, 48, 3)
            if index < 4:
                assert (sample.index, sample.failures) == (index, ())
            else:
                assert sample.failures[0].path == str(bad[index - 4].path)
                assert all(failure.reason for failure in sample.failures)
                assert sample.index < 4
                substitutes.add(sample.index)
                assert sample.label in ((2,) if sample.index == 2 else (0, 1))
    assert substitutes == {0, 1, 2, 3}


def test_training_gives_up_on_a_sample_after_some_attempts(bad):
    sample = training(bad)[ClipKey(0, 0)]
    assert (sample.clips, sample.index) == (None, 0)
    assert len(sample.failures) == MAX_ATTEMPTS
    assert sample.failures[0].path == str(bad[0].path)


def test_file_to_be_avoided_is_not_opened(good):
    clips = training(good)
    opened: list[str] = []
    clips.watch = opened.append
    path = str(good[3].path)
    clips.avoided[path] = "hung before"
    sample = clips[ClipKey(0, 3)]
    assert [tuple(failure) for failure in sample.failures] == [(path, "hung before")]
    assert sample.index != 3
    assert opened == [str(good[sample.index].path), ""]


@pytest.mark.parametrize("index", [0, 5])
def test_validation_clip_is_the_middle_of_everything(good, index):
    clips = EvaluationClips(split_of(good), SAMPLING, Views(short_side=64, crop_size=56))
    sample = clips[ViewKey(index, 0)]
    expected = frames_of(good[index])[[2, 7, 12, 17], 4:60, 12:68]
    assert sample.clips is not None
    assert torch.equal(sample.clips, expected[None])
    assert (sample.label, sample.index, sample.view) == (index % 3, index, 0)


@pytest.mark.parametrize("index", [0, 5])
def test_test_clips_are_spread_over_time_and_space(good, index):
    views = Views("spread", clips=2, crops=3, short_side=64, crop_size=64)
    clips = EvaluationClips(split_of(good), SAMPLING, views)
    video = frames_of(good[index])
    assert views.per_video == 6
    for clip, times in enumerate(([0, 5, 10, 15], [4, 9, 14, 19])):
        sample = clips[ViewKey(index, clip)]
        assert (sample.index, sample.view) == (index, 3 * clip)
        assert sample.clips is not None
        for crop, left in zip(sample.clips, (0, 8, 16), strict=True):
            assert torch.equal(crop, video[times, :, left : left + 64])


def test_dense_views(good):
    clips = EvaluationClips(split_of(good), Sampling("dense", 2, reach=8), Views(short_side=64, crop_size=64))
    sample = clips[ViewKey(1, 0)]
    assert sample.clips is not None
    assert torch.equal(sample.clips[0], frames_of(good[1])[[6, 10], :, 8:72])


def test_bad_video_in_evaluation_is_left_out_and_named(bad):
    clips = EvaluationClips(split_of(bad), SAMPLING, Views("spread", clips=2, crops=3))
    for index, entry in enumerate(bad):
        sample = clips[ViewKey(index, 1)]
        assert (sample.clips, sample.label, sample.index, sample.view) == (None, 0, index, 3)
        assert [failure.path for failure in sample.failures] == [str(entry.path)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clips": 2}, r"views\.clips: got 2, expected 1 where the placement is middle"),
        ({"crop_size": 257}, r"views\.crop_size: got 257, expected at most the short side of 256"),
        ({"crops": 0}, r"views\.crops: got 0, expected at least 1"),
        ({"average": "scores"}, r"views\.average: got 'scores', expected one of 'logits', 'probabilities'"),
        ({"crops": True}, r"views\.crops: got True, expected a whole number"),
    ],
)
def test_impossible_views(fields, message):
    with pytest.raises(InputError, match=message):
        Views(**fields)
