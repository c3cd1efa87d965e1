"""What a test leaves: scores, accuracy by class and the confusion matrix as tables and pictures, and who is missing."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.atomic import write_csv, write_text
from train.errors import InputError
from train.evaluation.scores import VideoScores
from train.log import accuracy_text

SCORES = "scores.npz"

# Missing videos that are named on the console; a file has them all.
_SHOWN = 10


def check_folder(folder: Path, overwrite: bool) -> None:
    """Raise InputError if `folder` holds scores that are not to be written over."""
    if (folder / SCORES).exists() and not overwrite:
        raise InputError(f"out: {folder} holds scores already; take another folder, or --overwrite")


def describe(scores: VideoScores, whole: str = "of the index") -> str:
    """The accuracy in words, how many of all videos, those `whole`, it is of, and what it leaves out.

    Raises InputError if no video has scores.
    """
    accuracy, classes = scores.accuracy(), len(scores.class_names)
    causes = "".join(f", {count} {cause}" for cause, count in scores.causes.items())
    lines = [
        f"tested {accuracy.videos} of {scores.entries} videos {whole}{causes}",
        f"{accuracy_text(accuracy.top1, accuracy.top5, classes)} of {accuracy.videos} videos",
    ]
    if scores.missing:
        lines.append(
            f"missing: {accuracy.missing} of {scores.entries} videos, which are in neither number; "
            f"{accuracy_text(accuracy.top1_of_all, accuracy.top5_of_all, classes)} if they count as wrong"
        )
        lines += [f"  {missing.video}: {missing.reason}" for missing in scores.missing[:_SHOWN]]
        if len(scores.missing) > _SHOWN:
            lines.append(f"  and {len(scores.missing) - _SHOWN} more, all of them in missing.csv")
    return "\n".join(lines)


def write_report(folder: Path, scores: VideoScores) -> str:
    """Write `scores.npz`, `result.json`, `classes.csv`, `per_class.png`, `confusion.csv`, `confusion.png` and
    `missing.csv` to `folder`.

    Returns a line that says so. Raises OSError, and InputError if no video has scores.
    """
    counts = {"entries": scores.entries, "not_tested": scores.causes}
    result = {**counts, **asdict(scores.accuracy()), "protocol": scores.protocol}
    names, matrix = scores.class_names, confusion_matrix(scores)
    folder.mkdir(parents=True, exist_ok=True)
    scores.save(folder / SCORES)
    write_text(folder / "result.json", json.dumps(result, indent=1) + "\n")
    write_csv(folder / "classes.csv", _class_rows(scores, matrix))
    write_csv(
        folder / "confusion.csv",
        [("true \\ predicted", *names), *((name, *row) for name, row in zip(names, matrix.tolist(), strict=True))],
    )
    write_csv(
        folder / "missing.csv",
        [("video", "class", "reason"), *((row.video, names[row.label], row.reason) for row in scores.missing)],
    )
    from train.evaluation.pictures import plot_classes, plot_confusion  # a second that `--help` need not wait for

    plot_confusion(folder / "confusion.png", matrix, names)
    right = np.bincount(scores.labels[scores.ranks < 5], minlength=len(names))
    plot_classes(
        folder / "per_class.png", matrix, right / np.maximum(matrix.sum(1), 1), names, missing=len(scores.missing)
    )
    return (
        f"written to {folder}: {SCORES}, result.json, classes.csv, per_class.png, confusion.csv, confusion.png, "
        "missing.csv"
    )


def confusion_matrix(scores: VideoScores) -> NDArray[np.int64]:
    """How many videos of each class, the row, were taken for which class, the column."""
    classes = len(scores.class_names)
    pairs = scores.labels * classes + scores.predicted
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def _class_rows(scores: VideoScores, matrix: NDArray[np.int64]) -> Iterable[tuple[Any, ...]]:
    """The columns' names, then a row for each class. Top-1 and top-5 are from 0 to 1, and empty without a video."""
    yield ("label", "class", "videos", "missing", "top1", "top5", "most often taken for", "times")
    missing = Counter(video.label for video in scores.missing)
    ranks, errors = scores.ranks, matrix - np.diag(matrix.diagonal())
    for label, name in enumerate(scores.class_names):
        own = ranks[scores.labels == label]
        shares = [f"{(own < k).mean():.4f}" if len(own) else "" for k in (1, 5)]
        most, times = int(errors[label].argmax()), int(errors[label].max())
        yield (label, name, len(own), missing[label], *shares, scores.class_names[most] if times else "", times)
