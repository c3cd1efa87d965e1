"""`python -m train ensemble`: the mean of several networks' scores, such as those of 8 and of 16 frames."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from train.errors import InputError
from train.evaluation.report import SCORES, check_folder, describe, write_report
from train.evaluation.scores import Accuracy, Kind, Missing, VideoScores
from train.lock import Lock

# Names of videos that are given where files differ.
_SHOWN = 3


@dataclass(frozen=True)
class EnsembleConfig:
    """Average the scores that several tests have saved, and report as a test does."""

    files: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="SCORES …")]
    """The `scores.npz` of two tests or more, of the same videos and classes, or the folders that hold them."""
    weights: tuple[float, ...] = ()
    """How much each file counts, in their order; by default all the same."""
    average: Kind | None = None
    """What is averaged. By default what the files hold; probabilities can be had of logits too, not the other way."""
    common: bool = False
    """Score the videos that all files have scores for, and count the others as missing; without, all files must have
    the same videos."""
    out: Path = Path("runs/ensemble")
    """Folder for the scores and tables."""
    overwrite: bool = False
    """Write over the scores that are in `out`."""


def files_first(arguments: Sequence[str]) -> list[str]:
    """The command line with the files before the options, also those that stand behind the numbers of `--weights`."""
    words = list(arguments)
    if "--weights" not in words:
        return words
    start = words.index("--weights") + 1
    end = next((i for i in range(start, len(words)) if words[i].startswith("--")), len(words))
    numbers = list(itertools.takewhile(_is_number, words[start:end]))
    return [*words[start + len(numbers) : end], *words[:start], *numbers, *words[end:]]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def run_ensemble(config: EnsembleConfig) -> Accuracy:
    """Do what the command line asks for: print the accuracy and write scores, tables and picture.

    Raises:
        InputError: a file that cannot be read, files that do not belong together, or `out` holds scores.
    """
    with Lock(config.out):
        check_folder(config.out, config.overwrite)
        files = [path / SCORES if path.is_dir() else path for path in config.files]
        if len({path.resolve() for path in files}) < len(files):
            raise InputError(f"files: got {', '.join(map(str, files))}, expected each once")
        members = {str(path): VideoScores.load(path) for path in files}
        joined = average_scores(members, config.weights, config.average, config.common)
        accuracy = joined.accuracy()
        print(f"ensemble of {len(members)}, {joined.kind} averaged")
        print(describe(joined, whole="of all files"))
        print(write_report(config.out, joined))
        return accuracy


def average_scores(
    members: Mapping[str, VideoScores],
    weights: tuple[float, ...] = (),
    average: Kind | None = None,
    common: bool = False,
) -> VideoScores:
    """The weighted mean of the scores `members`, two at least, known by their keys; the options as `EnsembleConfig`'s.

    Raises:
        InputError: the members' classes, labels or videos differ, some hold logits where others hold probabilities,
            or a weight is missing or is not above 0.
    """
    if len(members) < 2:
        raise InputError(f"files: got {len(members)}, expected at least 2")
    weights = weights or (1.0,) * len(members)
    if len(weights) != len(members) or not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise InputError(f"weights: got {weights}, expected {len(members)} numbers above 0, one for each file")
    kind = _common_kind(members, average)
    labels = _common_labels(members)
    if not common:
        _check_same_videos(members)
    rows = {name: {video: row for row, video in enumerate(member.videos)} for name, member in members.items()}
    absent = {video: name for video in labels for name in members if video not in rows[name]}
    read = [video for video in labels if video not in absent]
    reasons = {missing.video: missing for member in members.values() for missing in member.missing}
    every = [_scores_as(kind, member, [rows[name][video] for video in read]) for name, member in members.items()]
    return VideoScores(
        videos=tuple(read),
        labels=np.array([labels[video] for video in read], dtype=np.int64),
        scores=np.average(every, axis=0, weights=weights).astype(np.float32),
        class_names=next(iter(members.values())).class_names,
        kind=kind,
        missing=tuple(
            reasons.get(video) or Missing(video, labels[video], f"is not in {name}", f"not in {name}")
            for video, name in absent.items()
        ),
        protocol={
            "ensemble": {name: member.protocol for name, member in members.items()},
            "weights": list(weights),
            "average": kind,
        },
    )


def _common_kind(members: Mapping[str, VideoScores], average: Kind | None) -> Kind:
    kinds = {member.kind for member in members.values()}
    if average == "probabilities":
        return average
    if len(kinds) > 1 or average not in (None, *kinds):
        held = ", ".join(f"{name} holds {member.kind}" for name, member in members.items())
        raise InputError(f"average: got {average}, but {held}; probabilities can be had of both")
    return kinds.pop()


def _scores_as(kind: Kind, member: VideoScores, rows: list[int]) -> NDArray[np.float64]:
    scores = torch.from_numpy(member.scores[rows]).double()
    return (scores if member.kind == kind else scores.softmax(1)).numpy()


def _entries(member: VideoScores) -> dict[str, int]:
    """The label of every video, of those without scores too."""
    known = dict(zip(member.videos, member.labels.tolist(), strict=True))
    return known | {missing.video: missing.label for missing in member.missing}


def _common_labels(members: Mapping[str, VideoScores]) -> dict[str, int]:
    """The label of every video that any member knows, in the order of the first. InputError where two disagree."""
    (first_name, first), *_ = members.items()
    labels: dict[str, int] = {}
    for name, member in members.items():
        if member.class_names != first.class_names:
            raise InputError(f"{name}: the classes are others, or in another order, than those of {first_name}")
        for video, label in _entries(member).items():
            if labels.setdefault(video, label) != label:
                raise InputError(f"{name}: {video} has label {label}, in a file before it {labels[video]}")
    return labels


def _check_same_videos(members: Mapping[str, VideoScores]) -> None:
    """Raise InputError unless all members have scores for the same videos, and miss the same ones besides."""
    (first_name, first), *others = members.items()
    for name, member in others:
        compared = {
            "scores": (set(first.videos), set(member.videos)),
            "entries": (set(_entries(first)), set(_entries(member))),
        }
        for what, (mine, theirs) in compared.items():
            found = {"lacking": sorted(mine - theirs), "only there": sorted(theirs - mine)}
            if difference := ", ".join(f"{len(names)} {how} ({_some(names)})" for how, names in found.items() if names):
                raise InputError(
                    f"{name}: has {what} for other videos than {first_name}, {len(member)} of {member.entries} against "
                    f"{len(first)} of {first.entries}: {difference}; --common scores the videos that all have and "
                    "counts the others as missing"
                )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
