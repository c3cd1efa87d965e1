"""From a network and the videos of a data set to scores, over all views of a protocol and all processes of a run.

Whole videos are dealt to the processes, in blocks that do not depend on how many there are: so no clip is counted twice
and one process and eight give the same bits. A video that cannot be read is named and left out, nothing stands in.
"""

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from train.checkpoint import TrainedNetwork
from train.data.batches import Batch, evaluation_batches
from train.data.dataset import EvaluationClips, Views
from train.data.entries import Entry
from train.data.index import Index
from train.data.loader import Loading
from train.errors import InputError
from train.evaluation.scores import Missing, VideoScores
from train.fields import to_plain
from train.metrics import evaluation_mode
from train.precision import Precision, logits_of
from train.team import Team


def score_videos(
    trained: TrainedNetwork,
    index: Index,
    views: Views,
    team: Team,
    loading: Loading,
    batch_size: int = 32,
    precision: Precision = "fp32",
    channels_last: bool = True,
) -> VideoScores:
    """The scores of all videos of `index`, averaged over `views`; the same in all processes of `team`.

    Missing are the videos that `prepare` found unusable, and those of which a clip cannot be read now.

    Args:
        trained: its network is moved to the device of `team`.
        batch_size: views that a process computes at a time.
        precision: other than fp32 computes under autocast.
        channels_last: keep pictures and convolutions in channels_last.

    Raises:
        InputError: the videos' classes are not the network's; there are no videos; workers fail time and again; scores
            are no finite numbers; or another process is lost.
    """
    split, recipe = index.split, trained.recipe
    recipe.data.check_split(split)
    _check_classes(trained.class_names, split.class_names)
    clips = EvaluationClips(split, recipe.sampling, views, recipe.data.decoder)
    loader = evaluation_batches(clips, batch_size, loading.for_device(team.device), team.rank, team.size)
    network = trained.network.to(team.device)
    if channels_last:
        network = network.to(memory_format=torch.channels_last)

    def scores_of(batch: Batch) -> Tensor:
        scores = logits_of(network, batch.clips, team.device, precision, channels_last)
        return (scores.softmax(1) if views.average == "probabilities" else scores).cpu()

    sums, problem = _ViewSums(len(split), len(split.class_names)), None
    try:
        with evaluation_mode(network), torch.inference_mode():
            for batch in tqdm(loader, unit="batch", disable=None if team.leads else True):
                sums.add(batch, scores_of(batch) if len(batch) else None)
    except InputError as error:  # all processes have to hear of it, or the others would wait for this one
        problem = str(error)
    finally:
        loader.close()
    parts = team.gather((problem, *sums.means(views.per_video), sums.reasons))
    if problems := [part[0] for part in parts if part[0]]:
        raise InputError("; ".join(dict.fromkeys(problems)))
    means = {number: row for _, numbers, rows, _ in parts for number, row in zip(numbers, rows, strict=True)}
    reasons = {number: reason for part in parts for number, reason in part[3].items()}
    if sorted([*means, *reasons]) != list(range(len(split))):
        raise RuntimeError(f"{len(means)} scored and {len(reasons)} missing are not each of {len(split)} videos once")
    read = [split.entries[number] for number in sorted(means)]
    base = Path(os.path.commonpath([entry.path.absolute().parent for entry in split.entries]))
    return VideoScores(
        videos=tuple(_name(entry, base) for entry in read),
        labels=np.array([entry.label for entry in read], dtype=np.int64),
        scores=np.array([means[number] for number in sorted(means)], np.float32).reshape(-1, len(split.class_names)),
        class_names=split.class_names,
        kind=views.average,
        missing=_missing(index, reasons, base),
        protocol={
            "recipe": recipe.name,
            "sampling": to_plain(recipe.sampling),
            "views": to_plain(views),
            "precision": precision,
            "split": split.name,
        },
    )


class _ViewSums:
    """Sums over the views of each video, in float64, and what is missing."""

    def __init__(self, num_videos: int, num_classes: int) -> None:
        self.sums = torch.zeros(num_videos, num_classes, dtype=torch.float64)
        self.views = torch.zeros(num_videos, dtype=torch.int64)
        self.reasons: dict[int, str] = {}
        """Why a video is missing, by its number; the reason of its first clip that is."""

    def add(self, batch: Batch, scores: Tensor | None) -> None:
        """Count the scores (views, classes) of what could be read of `batch`; None where nothing could."""
        if scores is not None:
            self.sums.index_add_(0, batch.indices, scores.double())
            self.views.index_add_(0, batch.indices, torch.ones_like(batch.indices))
        for number, failure in zip(batch.missing, batch.failures, strict=True):
            self.reasons.setdefault(number, failure.reason)

    def means(self, per_video: int) -> tuple[list[int], NDArray[np.float32]]:
        """The numbers of the videos of which all views were counted, and their mean scores."""
        complete = (self.views == per_video).nonzero()[:, 0]
        return complete.tolist(), (self.sums[complete] / per_video).float().numpy()


def _check_classes(expected: tuple[str, ...], got: tuple[str, ...]) -> None:
    if len(got) != len(expected):
        raise InputError(f"data: has {len(got)} classes, but the network was trained on {len(expected)}")
    for label, (mine, theirs) in enumerate(zip(expected, got, strict=True)):
        if mine != theirs:
            raise InputError(f"data: class {label} is {theirs!r}, but the network was trained with {mine!r} there")


def _missing(index: Index, reasons: dict[int, str], base: Path) -> tuple[Missing, ...]:
    """The videos that cannot be read now, by their numbers and `reasons`, and those that `prepare` could not use."""
    missing = []
    for number, reason in sorted(reasons.items()):
        entry = index.split.entries[number]
        cause = "unreadable now" if entry.path.exists() else "missing now"
        missing.append(Missing(_name(entry, base), entry.label, reason, cause))
    for checked in index.left_out:
        reason, cause = f"{checked.problem}: {checked.reason}", f"{checked.problem} when the index was made"
        missing.append(Missing(_name(checked.entry, base), checked.entry.label, reason, cause))
    return tuple(missing)


def _name(entry: Entry, base: Path) -> str:
    """The path below `base`, so that a data set in another folder has the same names; else the whole one."""
    path = entry.path.absolute()
    return (path.relative_to(base) if path.is_relative_to(base) else path).as_posix()
