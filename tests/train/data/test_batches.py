import ctypes
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch

import train.data.dataset
import train.data.loader
from tests.support.video_files import bad_videos, encode, striped_frames
from train.data.batches import (
    Batch,
    TrainingBatches,
    evaluation_batches,
    evaluation_keys,
    training_batches,
)
from train.data.dataset import ClipKey, EvaluationClips, TrainingClips, ViewKey, Views
from train.data.entries import Entry, Split
from train.data.loader import Loading, WorkerError
from train.data.reader import VideoError
from train.data.sampling import Sampling
from train.data.transforms import Augmentation
from train.errors import InputError

NAMES = ("moving left", "moving right", "moving up")
SAMPLING = Sampling("segments", num_segments=4)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Six good videos and two bad ones."""
    folder = tmp_path_factory.mktemp("videos")
    frames = striped_frames(12, 32, 40) // 2
    good = [Entry(encode(folder / f"{i}.mp4", frames + np.uint8(12 * i)), i % 3) for i in range(6)]
    kinds = bad_videos(folder / "bad")
    bad = [Entry(kinds[kind], 0) for kind in ("absent", "empty")]
    return Split("train", (*good[:4], bad[0], *good[4:], bad[1]), NAMES)


def training(split, workers, start=0, epochs=2, **loading):
    clips = TrainingClips(split, SAMPLING, Augmentation(crop_size=32), seed=3)
    order = TrainingBatches(len(split), batch_size=3, epochs=epochs, seed=3)
    return training_batches(clips, order, Loading(workers, **loading), start)


def evaluation(split, workers, views=Views(short_side=32, crop_size=32), batch_size=3, **options):  # noqa: B008
    return evaluation_batches(EvaluationClips(split, SAMPLING, views), batch_size, Loading(workers), **options)


def assert_equal(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        for name in ("clips", "labels", "indices", "views"):
            assert torch.equal(getattr(a, name), getattr(b, name))
        assert (a.failures, a.missing) == (b.failures, b.missing)


def indices(batches):
    return [[key.index for key in keys] for keys in batches]


def test_an_epoch_is_a_permutation_without_its_rest():
    batches = TrainingBatches(10, batch_size=3, epochs=4, seed=0)
    assert (len(batches), batches.steps_per_epoch) == (12, 3)
    dropped: list[int] = []
    for epoch in range(4):
        keys = [key for i in range(3) for key in batches[3 * epoch + i]]
        assert {key.epoch for key in keys} == {epoch}
        assert len({key.index for key in keys}) == 9
        dropped += {*range(10)} - {key.index for key in keys}
    assert len(set(dropped)) > 1
    assert len({tuple(batch) for batch in indices(batches)}) == 12
    assert list(TrainingBatches(10, 3, 4, seed=0)) == list(batches)
    assert list(TrainingBatches(10, 3, 4, seed=1)) != list(batches)


def test_batches_are_the_same_in_whatever_order_they_are_asked_for():
    batches = TrainingBatches(100, batch_size=7, epochs=5, seed=2)
    expected = list(batches)
    for i in np.random.default_rng(0).permutation(len(batches)).tolist():
        assert batches[i] == expected[i]
    assert TrainingBatches(100, 7, 5, seed=2)[43] == expected[43]  # of one that was asked for nothing before
    with pytest.raises(IndexError):
        batches[len(batches)]


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (2, 1), (4, 1), (1, 3), (2, 2), (3, 4)])
def test_global_batches_do_not_depend_on_who_shares_them(world_size, accumulate):
    alone = TrainingBatches(50, batch_size=12, epochs=2, seed=5)
    ranks = [TrainingBatches(50, 12, 2, 5, rank, world_size, accumulate) for rank in range(world_size)]
    for step in range(len(alone)):
        parts = [ranks[r][step * accumulate + a] for r in range(world_size) for a in range(accumulate)]
        assert {len(part) for part in parts} == {12 // world_size // accumulate}
        assert [key for part in parts for key in part] == alone[step]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "between 1 and the number of videos, 10; got 0"),
        ({"batch_size": 11}, "between 1 and the number of videos, 10; got 11"),
        (
            {"batch_size": 8, "world_size": 3},
            "batch_size: got 8, expected a multiple of 3: 3 processes × 1 accumulated",
        ),
        ({"batch_size": 8, "world_size": 2, "accumulate": 3}, "multiple of 6: 2 processes × 3 accumulated"),
        ({"batch_size": 8, "rank": 2, "world_size": 2}, r"rank: got 2, expected a number from 0 to below world_size"),
        ({"batch_size": 8, "epochs": 0}, "accumulate and epochs must be at least 1, got 1 and 0"),
    ],
)
def test_impossible_batches(arguments, message):
    with pytest.raises(InputError, match=message):
        TrainingBatches(**{"num_entries": 10, "epochs": 1, "seed": 0, **arguments})


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("num_entries", [1, 2, 7, 23])
@pytest.mark.parametrize(
    ("clips", "crops", "batch_size"), [(1, 1, 4), (1, 3, 1), (4, 3, 7), (10, 3, 32), (10, 3, 2), (2, 3, 32)]
)
def test_evaluation_counts_every_clip_once_whoever_computes_it(world_size, num_entries, clips, crops, batch_size):
    views = Views("spread", clips=clips, crops=crops)
    alone = evaluation_keys(num_entries, views, batch_size)
    keys = [key for batch in alone for key in batch]
    assert keys == [ViewKey(index, clip) for index in range(num_entries) for clip in range(clips)]
    assert all(1 <= len(batch) <= max(1, batch_size // crops) for batch in alone)
    shares = [evaluation_keys(num_entries, views, batch_size, rank, world_size) for rank in range(world_size)]
    assert sorted(map(repr, alone)) == sorted(repr(batch) for share in shares for batch in share)
    videos = [{key.index for batch in share for key in batch} for share in shares]
    assert sum(map(len, videos)) == num_entries  # all clips of a video are one process'
    assert max(map(len, videos)) - min(map(len, videos)) <= max(1, batch_size // views.per_video)


@pytest.mark.parametrize(
    ("batch_size", "rank", "message"),
    [(0, 0, "batch_size must be at least 1, got 0"), (4, 2, "rank: got 2, expected a number from 0 to below")],
)
def test_impossible_evaluation(batch_size, rank, message):
    with pytest.raises(InputError, match=message):
        evaluation_keys(7, Views(), batch_size, rank, world_size=2)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
def test_batches_do_not_depend_on_workers(videos):
    expected = list(training(videos, workers=0))
    assert len(expected) == 4
    assert any(batch.failures for batch in expected)
    for workers in (1, 3):
        assert_equal(training(videos, workers), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_run_that_goes_on_gets_the_batches_of_one_that_never_stopped(videos, workers):
    whole = list(training(videos, workers=0, epochs=3))
    rest = training(videos, workers, start=3, epochs=3)
    assert len(rest) == 3
    assert_equal(rest, whole[3:])


def test_training_batch_says_what_is_in_it(videos):
    for batch in training(videos, workers=0):
        assert batch.clips.shape == (3, 4, 32, 32, 3)
        assert batch.clips.dtype == torch.uint8
        assert len(batch) == 3
        assert batch.views.tolist() == [0, 0, 0]
        assert batch.missing == ()
        clips = TrainingClips(videos, SAMPLING, Augmentation(crop_size=32), seed=3)
        assert set(batch.indices.tolist()) <= {0, 1, 2, 3, 5, 6}
        for index, label in zip(batch.indices.tolist(), batch.labels.tolist(), strict=True):
            assert label in (videos.entries[index].label, clips.mirrored[videos.entries[index].label])


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_leaves_bad_videos_out_and_names_them(videos, workers):
    batches = list(evaluation(videos, workers))
    assert [batch.indices.tolist() for batch in batches] == [[0, 1, 2], [3, 5], [6]]
    assert [batch.labels.tolist() for batch in batches] == [[0, 1, 2], [0, 1], [2]]
    assert [batch.missing for batch in batches] == [(), (4,), (7,)]
    named = [failure.path for batch in batches for failure in batch.failures]
    assert named == [str(videos.entries[4].path), str(videos.entries[7].path)]


def test_views_of_several_ranks_make_up_the_whole(videos):
    views = Views("spread", clips=2, crops=3, short_side=32, crop_size=32)
    whole: dict = {}
    for batch in evaluation(videos, workers=0, views=views, batch_size=100):
        whole |= rows(batch)
    assert whole.keys() == {(index, view) for index in (0, 1, 2, 3, 5, 6) for view in range(6)}
    shares: dict = {}
    for rank in range(3):
        for batch in evaluation(videos, 0, views, 7, rank=rank, world_size=3):
            assert len(batch) <= 6
            assert not shares.keys() & rows(batch).keys()
            shares |= rows(batch)
    assert shares.keys() == whole.keys()
    assert all(torch.equal(shares[key], whole[key]) for key in whole)


def rows(batch):
    return dict(zip(zip(batch.indices.tolist(), batch.views.tolist(), strict=True), batch.clips, strict=True))


def test_evaluation_may_be_repeated_with_the_same_workers(videos):
    loader = evaluation(videos, workers=1)
    first = list(loader)
    assert loader._workers is not None
    pids = [slot.pid for slot in loader._workers.slots]
    assert_equal(loader, first)
    assert [slot.pid for slot in loader._workers.slots] == pids
    next(iter(loader))  # given up on in the middle
    assert_equal(loader, first)
    loader.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_batch_without_any_good_video(videos):
    bad = Split("val", (videos.entries[4], videos.entries[7]), NAMES)
    (batch,) = evaluation(bad, workers=0)
    assert (len(batch), len(batch.clips), batch.missing) == (0, 0, (0, 1))
    (batch,) = evaluation(Split("val", bad.entries[:1], NAMES), workers=1)
    assert (len(batch), batch.missing) == (0, (0,))


def test_batch_is_pinned_as_a_whole(videos, monkeypatch):
    batch = next(iter(training(videos, workers=0)))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.to("meta"))
    moved = batch.pin_memory()
    assert {t.device.type for t in (moved.clips, moved.labels, moved.indices, moved.views)} == {"meta"}
    assert (moved.failures, moved.missing) == (batch.failures, batch.missing)


def test_global_generator_and_handlers_are_left_alone(videos):
    before = signal.getsignal(signal.SIGCHLD)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(training(videos, workers=1, epochs=1))
    assert torch.equal(torch.rand(3), expected)
    assert signal.getsignal(signal.SIGCHLD) == before


def test_batches_in_another_thread(videos):
    results: list[Batch] = []
    thread = threading.Thread(target=lambda: results.extend(training(videos, workers=1)))
    thread.start()
    thread.join()
    assert_equal(results, training(videos, workers=0))


def open_or(deed, path):
    """A stand-in for `open_frames`, which workers inherit, that does something else with one file."""
    real = train.data.dataset.open_frames

    def stand_in(entry, decoder="decord"):
        if entry.path == path:
            deed()
        return real(entry, decoder)

    return stand_in


def hang():
    """As decord does: in C, holding the interpreter lock, so that no Python of this process runs any more."""
    ctypes.PyDLL(None).sleep(600)


def crash():
    ctypes.string_at(0)


def vanish():
    """As the system ends a process that takes too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def replaced(batches, path, reason):
    """`batches` of a run in which reading `path` raises VideoError."""

    def refuse():
        raise VideoError(path, reason)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.data.dataset, "open_frames", open_or(refuse, path))
        return list(batches)


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        (hang, "took more than 1 s to be read, its decoder was taken for hung and ended"),
        (crash, "the process that read it crashed or was killed"),
        (vanish, "the process that read it crashed or was killed"),
    ],
)
@pytest.mark.parametrize("make", [training, evaluation])
def test_file_that_hangs_or_crashes_a_worker_is_left_out_and_the_run_goes_on(videos, monkeypatch, make, deed, reason):
    path = videos.entries[2].path
    expected = replaced(make(videos, workers=0), path, reason)
    monkeypatch.setattr(train.data.dataset, "open_frames", open_or(deed, path))
    loader = make(videos, workers=2)
    loader.loading = Loading(workers=2, timeout=1)
    batches = list(loader)
    assert_equal(batches, expected)
    assert (str(path), reason) in [tuple(failure) for batch in batches for failure in batch.failures]
    loader.close()


def test_worker_killed_in_the_middle_of_a_step_does_not_disturb_the_step(videos, monkeypatch):
    """The SIGCHLD handler that torch sets would raise wherever the loop is."""
    path = videos.entries[2].path
    monkeypatch.setattr(train.data.dataset, "open_frames", open_or(crash, path))
    batches = []
    for batch in training(videos, workers=1, epochs=4, timeout=1):
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:  # a step, during which the worker meets the file
            sum(range(1000))
        batches.append(batch)
    assert len(batches) == 8


def test_slow_is_not_hung(videos, monkeypatch):
    """Every file takes half of what one may take, so a batch takes longer than that."""
    real = train.data.dataset.open_frames

    def slow(entry, decoder="decord"):
        time.sleep(0.35)
        return real(entry, decoder)

    expected = list(evaluation(videos, workers=0))
    monkeypatch.setattr(train.data.dataset, "open_frames", slow)
    loader = evaluation(videos, workers=1)
    loader.loading = Loading(workers=1, timeout=0.7)
    assert_equal(loader, expected)
    loader.close()


def test_machine_that_loses_every_worker_ends_the_run(videos, monkeypatch):
    monkeypatch.setattr(train.data.loader, "MAX_RESTARTS", 2)
    monkeypatch.setattr(train.data.dataset, "open_frames", lambda entry, decoder: vanish())
    with pytest.raises(WorkerError, match=r"started anew 2 times, now: .*\.mp4: the process that read it crashed"):
        list(training(videos, workers=1, timeout=1))


def test_error_in_the_code_is_not_taken_for_a_bad_file(videos, monkeypatch):
    def broken(entry, decoder):
        raise RuntimeError("a mistake")

    monkeypatch.setattr(train.data.dataset, "open_frames", broken)
    for workers in (0, 1):
        with pytest.raises(RuntimeError, match="a mistake"):
            list(training(videos, workers))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"workers": -1}, r"loading\.workers: got -1, expected at least 0"),
        ({"prefetch": 0}, r"loading\.prefetch: got 0, expected at least 1"),
        ({"timeout": 0}, r"loading\.timeout: got 0, expected a number of seconds above 0"),
    ],
)
def test_impossible_loading(fields, message):
    with pytest.raises(InputError, match=message):
        Loading(**fields)


def test_start_beyond_the_end(videos):
    assert list(training(videos, workers=0, start=4)) == []
    with pytest.raises(InputError, match="start: got 5, expected a batch number from 0 to 4"):
        training(videos, workers=0, start=5)
    assert TrainingBatches(8, 3, 2, 3)[3] == [ClipKey(1, key.index) for key in TrainingBatches(8, 3, 2, 3)[3]]
