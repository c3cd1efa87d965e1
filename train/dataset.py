"""From list entries to batches of clips: decode, sample, augment.

All that is random is a function of seed, epoch and index, so the number of workers changes nothing.

A video that cannot be read never ends a run and is never passed over in silence: in training another one stands in for
it, in evaluation it is left out, and either way a `Failure` that names it travels with the batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from train.errors import InputError
from train.lists import VideoEntry
from train.reader import VideoError, VideoFile
from train.sampling import middle_segments, random_segments
from train.transforms import center_crop, mirrored_labels, random_crop, random_flip, resize_short_side

# How long a batch may take before its worker is taken for hung, in seconds.
HANG_TIMEOUT = 120

# How many videos in a row may stand in for one another before a training run gives up on its data.
MAX_ATTEMPTS = 8


@dataclass(frozen=True)
class ClipFormat:
    """What a network expects of a clip. Saved in its checkpoints."""

    num_segments: int = 8
    """T, the frames of a clip, one of each of T equal segments of the video."""
    short_side: int = 64
    """Frames are resized so that their shorter side has this many pixels, …"""
    crop: int = 64
    """… and a square of this many is cut out of them."""

    def __post_init__(self) -> None:
        if self.num_segments < 1 or not 1 <= self.crop <= self.short_side:
            raise InputError(f"a clip needs at least a segment, and a crop within the short side; got {self}")


class Failure(NamedTuple):
    """A video that could not be read, and why."""

    path: str
    reason: str


class Sample(NamedTuple):
    """A clip (T, S, S, 3) uint8, or None where no video could be read, with the failures on the way to it."""

    clip: Tensor | None
    label: int
    failures: tuple[Failure, ...] = ()


class Batch(NamedTuple):
    """The clips that could be read (N, T, S, S, 3) uint8, their labels (N,), and what could not be read."""

    clips: Tensor
    labels: Tensor
    failures: tuple[Failure, ...]
    missing: int
    """Samples that are left out because neither their video nor, in training, a substitute could be read."""


class ClipKey(NamedTuple):
    """Which sample of a training run: its randomness is a function of this and the run's seed."""

    epoch: int
    video: int
    """Number of the list entry."""


class TrainingClips(Dataset[Sample]):
    """A clip of a video for each `ClipKey`: random frames, one random crop, a random flip where the label allows it."""

    def __init__(
        self, entries: Sequence[VideoEntry], class_names: Sequence[str], clip_format: ClipFormat, seed: int
    ) -> None:
        self.entries, self.clip_format, self.seed = entries, clip_format, seed
        self.mirrored = mirrored_labels(class_names)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, key: ClipKey) -> Sample:
        failures: list[Failure] = []
        video = key.video
        for attempt in range(MAX_ATTEMPTS):
            rng = np.random.default_rng((self.seed, key.epoch, key.video, attempt))
            if attempt > 0:
                video = int(rng.integers(len(self.entries)))
            try:
                return self._clip(self.entries[video], rng)._replace(failures=tuple(failures))
            except VideoError as error:
                failures.append(Failure(error.path, error.reason))
        return Sample(None, self.entries[key.video].label, tuple(failures))

    def _clip(self, entry: VideoEntry, rng: np.random.Generator) -> Sample:
        video = VideoFile(entry.path)
        frames = torch.from_numpy(video.read(random_segments(len(video), self.clip_format.num_segments, rng)))
        frames = resize_short_side(frames, self.clip_format.short_side)
        frames = random_crop(frames, self.clip_format.crop, rng)
        return Sample(*random_flip(frames, entry.label, self.mirrored, rng))


class EvaluationClips(Dataset[Sample]):
    """One clip of each video, without randomness: the middle frame of each segment, the crop in the centre."""

    def __init__(self, entries: Sequence[VideoEntry], clip_format: ClipFormat) -> None:
        self.entries, self.clip_format = entries, clip_format

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        entry = self.entries[index]
        try:
            return Sample(evaluation_clip(entry.path, self.clip_format), entry.label)
        except VideoError as error:
            return Sample(None, entry.label, (Failure(error.path, error.reason),))


def evaluation_clip(path: Path, clip_format: ClipFormat) -> Tensor:
    """The clip (T, S, S, 3) uint8 that stands for the video at `path` in a test. Raises VideoError."""
    video = VideoFile(path)
    frames = torch.from_numpy(video.read(middle_segments(len(video), clip_format.num_segments)))
    return center_crop(resize_short_side(frames, clip_format.short_side), clip_format.crop)


class EpochBatches(Sampler[list[ClipKey]]):
    """The batches of a whole training run, epoch after epoch, each epoch in an order of its own.

    One iterator for all epochs keeps the workers busy over their ends. The rest of an epoch that fills no batch is
    dropped; another rest is dropped in the next epoch. Raises InputError if one batch needs more videos than there are.
    """

    def __init__(self, num_videos: int, batch_size: int, epochs: int, seed: int) -> None:
        if not 1 <= batch_size <= num_videos:
            raise InputError(f"batch_size must be between 1 and the number of videos, {num_videos}; got {batch_size}")
        self.num_videos, self.batch_size, self.epochs, self.seed = num_videos, batch_size, epochs, seed

    @property
    def per_epoch(self) -> int:
        """Batches of one epoch."""
        return self.num_videos // self.batch_size

    def __len__(self) -> int:
        return self.per_epoch * self.epochs

    def __iter__(self) -> Iterator[list[ClipKey]]:
        for epoch in range(self.epochs):
            order = np.random.default_rng((self.seed, epoch)).permutation(self.num_videos).tolist()
            for start in range(0, self.per_epoch * self.batch_size, self.batch_size):
                yield [ClipKey(epoch, video) for video in order[start : start + self.batch_size]]


def training_batches(clips: TrainingClips, batches: EpochBatches, workers: int) -> Iterator[Batch]:
    """Batches of the whole run. Their content does not depend on `workers`; 0 decodes in this process.

    Raises InputError where a worker hangs or dies.
    """
    return _iterate(clips, workers, batch_sampler=batches)


def evaluation_batches(clips: EvaluationClips, batch_size: int, workers: int) -> Iterator[Batch]:
    """Every video once, in the list's order. Raises InputError where a worker hangs or dies."""
    return _iterate(clips, workers, batch_size=batch_size)


def _iterate(clips: Dataset[Sample], workers: int, **batching: Any) -> Iterator[Batch]:
    loader = DataLoader(
        clips,
        collate_fn=collate,
        num_workers=workers,
        timeout=HANG_TIMEOUT if workers else 0,
        # A generator of its own, so that the loader draws nothing from torch's global one.
        generator=torch.Generator(),
        **batching,
    )
    try:
        yield from loader
    except RuntimeError as error:
        # The net below the reader's guard: a decoder that hangs or crashes all the same ends here.
        if workers and "DataLoader" in str(error):
            raise InputError(f"a process that reads videos has hung or died: {error}") from error
        raise


def collate(samples: list[Sample]) -> Batch:
    """Stack what could be read."""
    clips = [sample.clip for sample in samples if sample.clip is not None]
    return Batch(
        clips=torch.stack(clips) if clips else torch.empty(0),
        labels=torch.tensor([sample.label for sample in samples if sample.clip is not None], dtype=torch.int64),
        failures=tuple(failure for sample in samples for failure in sample.failures),
        missing=len(samples) - len(clips),
    )
