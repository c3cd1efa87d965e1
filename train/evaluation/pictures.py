"""Pictures of a test: what is taken for what, and how good each class is, readable with four classes and with 400."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from numpy.typing import NDArray

from train.figures import figure

# Classes up to which a picture names all of them, and up to which the matrix has its numbers written in.
NAMED, COUNTED = 60, 20
SHOWN = 30
"""Of more classes: the best, the worst, and the pairs most often confused that are named."""

_COLOR, _LIGHT = "#4c78a8", "#e45756"
_LONGEST = 44


def plot_confusion(path: Path, matrix: NDArray[np.int64], class_names: Sequence[str]) -> None:
    """Save the confusion matrix (classes, classes) as a PNG: what share of a row's videos was taken for each class.

    Classes stand in the order of their accuracy, the best first. Of more than `NAMED` the pairs most often confused are
    named below instead.
    """
    order, names = _by_accuracy(matrix), _short(class_names)
    classes, is_named = len(order), len(order) <= NAMED
    shares = _shares(matrix)
    side = 5.5 + 0.16 * classes if is_named else 8.2
    heights = [side] if is_named else [side, 0.16 * SHOWN + 0.9]
    with figure(path, len(heights), 1, "x", heights, width=side + 1 if is_named else 9.5) as axes:
        matrix_axes = axes[0, 0]
        matrix_axes.grid(visible=False)
        ordered = shares[np.ix_(order, order)]
        extent = None if is_named else (0.5, classes + 0.5, classes + 0.5, 0.5)  # counted from 1
        norm = PowerNorm(0.5, 0, 100)  # a few of 100 videos are to be seen, too
        aspect = "equal" if is_named else "auto"
        image = matrix_axes.imshow(ordered, "magma_r", norm, aspect=aspect, interpolation="nearest", extent=extent)
        how = "from the best class to the worst"
        matrix_axes.set(xlabel=f"predicted class, {how}", ylabel=f"true class, {how}")
        matrix_axes.figure.colorbar(image, ax=matrix_axes, shrink=0.8, label="share of the true class' videos (%)")
        if is_named:
            ordered_names = [names[label] for label in order]
            matrix_axes.set_xticks(range(classes), ordered_names, rotation=90, fontsize=7, parse_math=False)
            matrix_axes.set_yticks(range(classes), ordered_names, fontsize=7, parse_math=False)
        else:
            _plot_pairs(axes[1, 0], matrix, names)
        if classes <= COUNTED:
            for (row, column), share in np.ndenumerate(ordered):
                color = "white" if share > 20 else "black"
                count = matrix[order[row], order[column]]
                matrix_axes.text(column, row, count or "", ha="center", va="center", fontsize=7, color=color)


def _plot_pairs(axes: Any, matrix: NDArray[np.int64], names: Sequence[str]) -> None:
    """The pairs most often confused; of equal shares those of more videos."""
    errors = matrix - np.diag(matrix.diagonal())
    shares = _shares(matrix) * (errors > 0)
    rows, columns = np.nonzero(errors)
    first = np.lexsort((columns, rows, -errors[rows, columns], -shares[rows, columns]))[:SHOWN]
    pairs = list(zip(rows[first], columns[first], strict=True))
    values = [float(shares[pair]) for pair in pairs]
    _bars(axes, [""] * len(pairs), values)
    longest = max(values, default=1.0)
    for place, (row, column) in enumerate(pairs):
        text = f"{names[row]}  →  {names[column]}  ({errors[row, column]})"
        axes.text(values[place] + 0.02 * longest, place, text, va="center", fontsize=7, parse_math=False)
    axes.set(xlabel="share of the true class' videos (%)", ylabel="true → predicted class (videos)", yticks=[])
    axes.set_xlim(0, 3.2 * longest)  # the names stand beside the bars
    axes.set_title(f"the {len(pairs)} pairs most often confused" if pairs else "nothing is confused", fontsize=10)


def plot_classes(
    path: Path, matrix: NDArray[np.int64], top5: NDArray[np.float64], class_names: Sequence[str], missing: int = 0
) -> None:
    """Save the accuracy of each class as a PNG, the best first; of more than `NAMED` the best and the worst are named.

    Args:
        matrix: (classes, classes), as `plot_confusion` takes it.
        top5: (classes,) share of a class' videos that have it among the first five, from 0 to 1.
        missing: videos without scores, which are in none of the numbers.
    """
    counts = matrix.sum(1)
    order = [label for label in _by_accuracy(matrix) if counts[label]]
    top1, names = _shares(matrix).diagonal(), _short(class_names)
    labels = [f"{names[label]} ({counts[label]})" for label in order]
    title = f"top-1 of {len(order)} classes, mean {top1[order].mean():.1f} %"
    if len(order) < len(counts):
        title += f"; classes without a video: {len(counts) - len(order)}"
    if missing:
        title += f"; videos without scores: {missing}"
    is_named = len(order) <= NAMED
    parts = {title: slice(None)}
    if not is_named:
        parts = {f"the {SHOWN} best classes": slice(SHOWN), f"the {SHOWN} worst classes": slice(-SHOWN, None)}
    heights = [0.16 * len(order[part]) + 0.9 for part in parts.values()]
    with figure(path, len(heights) + (not is_named), 1, "x", heights if is_named else [2.6, *heights]) as axes:
        has_top5, tick = len(class_names) > 5, {"color": _LIGHT, "ms": 7, "mew": 2}
        if has_top5:
            axes[0, 0].plot([], [], color=_COLOR, lw=6, label="top-1")
            axes[0, 0].plot([], [], "|", **tick, label="top-5")
        if not is_named:
            axes[0, 0].fill_between(range(1, len(order) + 1), top1[order], step="mid", color=_COLOR)
            axes[0, 0].set(xlabel="class, from the best to the worst", ylabel="top-1 (%)", ylim=(0, 102))
            axes[0, 0].set_title(title, fontsize=10)
        for panel, (name, part) in zip(axes[0 if is_named else 1 :, 0], parts.items(), strict=True):
            _bars(panel, labels[part], top1[order[part]].tolist())
            if has_top5:
                panel.plot(100 * top5[order[part]], range(len(order[part])), "|", **tick)
            panel.set(xlabel="accuracy (%)", ylabel="class (videos)", xlim=(0, 102))
            panel.set_title(name, fontsize=10)


def _bars(axes: Any, labels: Sequence[str], values: Sequence[float]) -> None:
    """A bar for each label, from the top down."""
    axes.barh(range(len(values)), values, color=_COLOR, height=0.75)
    axes.set_yticks(range(len(labels)), labels, fontsize=7, parse_math=False)
    axes.set_ylim(len(labels) - 0.4, -0.6)


def _by_accuracy(matrix: NDArray[np.int64]) -> list[int]:
    """The labels, the best class first, of equals that with the lower label; those without videos last."""
    counts = matrix.sum(1)
    return np.lexsort((-_shares(matrix).diagonal(), counts == 0)).tolist()


def _shares(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """In percent of each row's videos."""
    return 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)


def _short(class_names: Sequence[str]) -> list[str]:
    """Names that fit; some are no text."""
    texts = [" ".join(name.encode(errors="backslashreplace").decode().split()) for name in class_names]
    # The end tells as much as the beginning: "… from left to right".
    half = _LONGEST // 2
    return [text if len(text) <= _LONGEST else f"{text[: half - 1]}…{text[-half:]}" for text in texts]
