"""From entries of a split to clips: decode, sample, augment.

All that is random is a function of the seed, the epoch and the entry's number, so workers change nothing.

A video that cannot be read never ends a run and is never passed over in silence: in training another one stands in for
it, in evaluation it is left out, and either way a `Failure` that names it travels with the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tam_triton.clips import resize_short_side, slide_crops
from train.data.entries import Entry, Split
from train.data.mirroring import mirrored_labels, read_mirrored
from train.data.reader import Decoder, VideoError, open_frames
from train.data.sampling import Indices, Sampling
from train.data.transforms import Augmentation
from train.fields import check_types, require

# How many videos in a row may stand in for one another before a sample counts as missing.
MAX_ATTEMPTS = 8


@dataclass(frozen=True)
class Views:
    """As how many clips and crops a network sees a video when it is scored; the scores of all views are averaged."""

    placement: Literal["middle", "spread"] = "middle"
    """middle: the one clip of `Sampling.validate`. spread: the `clips` of `Sampling.test`."""
    clips: int = 1
    """Clips out of a video."""
    crops: int = 1
    """Squares out of a clip: one in the center, or several side by side along the long side."""
    short_side: int = 256
    """Frames are resized so that their shorter side has this many pixels, …"""
    crop_size: int = 224
    """… and squares of this many are cut out of them."""
    average: Literal["logits", "probabilities"] = "logits"
    """What is averaged over the views: logits in the authors' code, probabilities in mmaction2's."""

    def __post_init__(self) -> None:
        check_types(self)
        for field in ("clips", "crops", "crop_size"):
            require(self, field, getattr(self, field) >= 1, "at least 1")
        require(self, "clips", self.clips == 1 or self.placement == "spread", "1 where the placement is middle")
        fits = self.crop_size <= self.short_side
        require(self, "crop_size", fits, f"at most the short side of {self.short_side}")

    @property
    def per_video(self) -> int:
        """Views of a video; the number of one of them is clip · crops + crop."""
        return self.clips * self.crops


class Failure(NamedTuple):
    """A video that could not be read, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Sample:
    """Crops of one clip (V, T, S, S, 3) uint8, or None where no video could be read."""

    clips: Tensor | None
    label: int
    index: int
    """Number of the entry that the clip was read from; of the one asked for where there is none."""
    view: int = 0
    """Number of the first of the V views."""
    failures: tuple[Failure, ...] = ()
    """What could not be read on the way to this clip."""


@dataclass(frozen=True, slots=True)
class ClipKey:
    """Which training clip: its randomness is a function of this and the run's seed."""

    epoch: int
    index: int
    """Number of the entry."""
    turn: int = 0
    """How often the epoch has had the entry before: where classes are balanced, those of rare ones come again."""


@dataclass(frozen=True, slots=True)
class ViewKey:
    """Which clip of an evaluation; all its crops come with it, as they share what costs, the decoding."""

    index: int
    """Number of the entry."""
    clip: int


class _Clips:
    """What training and evaluation share: opening entries, and telling a watcher which file is being read."""

    def __init__(self, split: Split, decoder: Decoder) -> None:
        self.split, self.decoder = split, decoder
        self.avoided: dict[str, str] = {}
        """Files that must not be opened again, with the reason: opening one of them fails with it."""
        self.watch: Callable[[str], None] = _unwatched
        """Called with the path before a file is opened, and with "" when its frames are read."""

    def __len__(self) -> int:
        return len(self.split)

    def read(self, entry: Entry, choose: Callable[[int], Indices]) -> Tensor:
        """The frames (T, H, W, 3) of `entry` that `choose` picks, knowing how many there are. Raises VideoError."""
        path = str(entry.path)
        if path in self.avoided:
            raise VideoError(path, self.avoided[path])
        self.watch(path)
        try:
            frames = open_frames(entry, self.decoder)
            return torch.from_numpy(frames.read(choose(len(frames))))
        finally:
            self.watch("")


def _unwatched(path: str) -> None:
    """Nobody watches."""


class TrainingClips(_Clips, Dataset[Sample]):
    """A clip of a video for each `ClipKey`: random frames, one random crop, a random flip where the label allows it."""

    def __init__(
        self,
        split: Split,
        sampling: Sampling,
        augmentation: Augmentation,
        seed: int,
        decoder: Decoder = "auto",
    ) -> None:
        super().__init__(split, decoder)
        self.sampling, self.augmentation, self.seed = sampling, augmentation, seed
        names, path = split.class_names, augmentation.mirrored
        self.mirrored = mirrored_labels(names, read_mirrored(path, names) if path else None)

    def __getitem__(self, key: ClipKey) -> Sample:
        failures: list[Failure] = []
        index = key.index
        for attempt in range(MAX_ATTEMPTS):
            turn = (key.turn,) if key.turn else ()
            rng = np.random.default_rng((self.seed, key.epoch, key.index, attempt, *turn))
            if attempt > 0:
                index = int(rng.integers(len(self.split)))
            try:
                return replace(self._clip(index, rng), failures=tuple(failures))
            except VideoError as error:
                failures.append(Failure(error.path, error.reason))
        return Sample(None, self.split.entries[key.index].label, key.index, failures=tuple(failures))

    def _clip(self, index: int, rng: np.random.Generator) -> Sample:
        entry = self.split.entries[index]
        frames = self.read(entry, lambda num_frames: self.sampling.train(num_frames, rng))
        clip, label = self.augmentation(frames, entry.label, self.mirrored, rng)
        return Sample(clip[None], label, index)


class EvaluationClips(_Clips, Dataset[Sample]):
    """All crops of one clip of a video for each `ViewKey`, without randomness."""

    def __init__(self, split: Split, sampling: Sampling, views: Views, decoder: Decoder = "auto") -> None:
        super().__init__(split, decoder)
        self.sampling, self.views = sampling, views

    def __getitem__(self, key: ViewKey) -> Sample:
        entry, view = self.split.entries[key.index], key.clip * self.views.crops
        try:
            frames = self.read(entry, lambda num_frames: choose_frames(self.sampling, self.views, num_frames)[key.clip])
        except VideoError as error:
            return Sample(None, entry.label, key.index, view, (Failure(error.path, error.reason),))
        return Sample(crop_views(frames, self.views), entry.label, key.index, view)


def choose_frames(sampling: Sampling, views: Views, num_frames: int) -> Indices:
    """The frames (clips, T) of all clips out of a video of `num_frames`."""
    if views.placement == "middle":
        return sampling.validate(num_frames)[None]
    return sampling.test(num_frames, views.clips)


def crop_views(frames: Tensor, views: Views) -> Tensor:
    """All crops uint8 (crops, T, S, S, 3) of the frames (T, H, W, 3) of one clip."""
    return torch.stack(slide_crops(resize_short_side(frames, views.short_side), views.crop_size, views.crops))
