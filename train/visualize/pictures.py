"""The figures, after figures 4 to 8 of the paper."""

import io
import re
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from train.evaluation.places import spread
from train.figures import figure
from train.visualize.collect import Collected, Seen
from train.visualize.filters import Filters

Values = NDArray[np.float32]

COLORS = ("#0b6e99", "#d9730d", "#3f7d3a", "#8b3fa0", "#b3272d", "#8a6d1f")
"""Of data sets, and of blocks."""
_MOTIONS = ("#9ecae1", "#4292c6", "#08306b")
_TAPS, _I3D = "#2f6f9f", "#7a7a7a"
MOTION = "mean |ΔY′| of sampled frames (levels of 0…255)"
_FEW = 4
"""Videos that have a column or a row of their own."""
_DENSE = 48
"""Violins that have room side by side; of more, medians and a band are drawn."""
_NARROW = 0.01
"""The least range of an axis of weights: networks that have learned nothing give one weight to all."""
_DRAWN = 4000
"""Values that a violin is drawn of; of more, as many quantiles, the extrema among them."""


def label(block: str) -> str:
    """A TAM's name, with the paper's for its block: `layer3.5.tam (stage4_6b)`."""
    found = re.search(r"(?:^|\.)layer(\d+)\.(\d+)\.", block)
    return f"{block} (stage{int(found[1]) + 1}_{int(found[2]) + 1}b)" if found else block


def offsets(taps: int) -> list[str]:
    """What the taps of a kernel are called: t−1, t, t+1."""
    return [f"t{offset:+d}".replace("-", "−") if offset else "t" for offset in range(-(taps // 2), taps - taps // 2)]


def plot_kernels(path: Path, seen: Collected, filters: Mapping[str, Filters]) -> None:
    """Save the distributions of Θ over channels, at each offset, as violins: a row a TAM (figure 4 of the paper).

    A column each for some videos, for all of each data set and for I3D's filters, which have a scale of their own.
    """
    few = [] if len(seen.videos) == 1 else spread(len(seen.videos), _FEW)
    sets = seen.data_sets
    columns = len(few) + len(sets) + bool(filters)
    taps = max(weights.kernel.shape[2] for weights in seen.weights.values())
    with figure(path, len(seen.weights), columns, "y", width=max(6.0, columns * (0.66 * taps + 0.75))) as rows:
        for axes, (block, weights) in zip(rows, seen.weights.items(), strict=True):
            kernel = weights.kernel
            for ax, number in zip(axes, few, strict=False):
                video = seen.videos[number]
                _violins(ax, kernel[number], _TAPS)
                name = seen.name_of(video)
                name = f"{video.data_set}: {name}" if len(sets) > 1 else name
                class_name = video.class_name or f"predicted {video.prediction.class_name}"
                _title(ax, f"{_short(name, 28)}\n{_short(class_name, 32)}")
            for ax, (name, numbers), color in zip(axes[len(few) :], sets.items(), cycle(COLORS), strict=False):
                _violins(ax, kernel[numbers].flatten(0, 1), color)
                _title(ax, f"{_short(name, 24)}\n{count(len(numbers))}")
            own = axes[: len(few) + len(sets)]
            limits = [limit for ax in own for limit in ax.get_ylim()]
            low, high = _widened(min(limits), max(limits))
            for ax in own:
                ax.set_ylim(low, high)
            axes[0].set_ylabel(f"{label(block)}\nweight Θ of the tap")
            if filters:
                _violins(axes[-1], filters[block].taps, _I3D)
                _title(axes[-1], f"I3D 3×1×1: {filters[block].name}\nany video")
                axes[-1].set_ylabel("weight of the filter")
        for ax in rows[-1]:
            ax.set_xlabel("frame")


def _violins(ax: Axes, values: Tensor, color: str) -> None:
    """A violin a column of `values` (any, K), with its least, middle and greatest value written beside it."""
    columns = _thinned(values)
    positions = list(range(len(columns)))
    drawn = ax.violinplot(columns, positions, widths=0.5, showmedians=True, showextrema=True)
    for body in _bodies(drawn):
        body.set(facecolor=color, edgecolor="none", alpha=0.6)
    for name in ("cmedians", "cmins", "cmaxes", "cbars"):
        drawn[name].set(color=color, linewidth=1.0)
    for x, column in zip(positions, columns, strict=True):
        for value, offset, side in ((column[0], -3, "top"), (column[-1], 3, "bottom")):
            ax.annotate(
                _number(value), (x, value), (0, offset), textcoords="offset points", ha="center", va=side, fontsize=7
            )
        middle = float(np.median(column))
        ax.annotate(
            _number(middle), (x, middle), (9, 1), textcoords="offset points", ha="left", va="bottom", fontsize=7
        )
    ax.set_xticks(positions, offsets(len(columns)))
    ax.set_xlim(-0.6, len(columns) - 0.2)
    ax.margins(y=0.12)


def plot_distributions(path: Path, seen: Collected) -> None:
    """Save the distributions of V at each frame and of Θ at each offset, a row a TAM, by data set (figures 5 and 6)."""
    with figure(path, len(seen.weights), 2, "y", width=12.0) as rows:
        for (left, right), (block, (importance, kernel)) in zip(rows, seen.weights.items(), strict=True):
            left.set(ylabel="importance V", xlabel="sampled frame")
            right.set(ylabel="weight Θ of the tap", xlabel="frame")
            _title(left, f"{label(block)}: importance map V")
            _title(right, f"{label(block)}: kernel Θ")
            if importance is None:
                left.text(0.5, 0.5, "has no importance map", transform=left.transAxes, ha="center")
                left.set(xticks=[], yticks=[])
            else:
                _by_data_set(left, seen, importance, [str(t + 1) for t in range(importance.shape[2])])
            _by_data_set(right, seen, kernel, offsets(kernel.shape[2]))
        for (name, numbers), color in zip(seen.data_sets.items(), cycle(COLORS), strict=False):
            rows[0, -1].scatter([], [], marker="s", color=color, label=f"{_in_legend(name)}, {count(len(numbers))}")


def _by_data_set(ax: Axes, seen: Collected, values: Tensor, names: Sequence[str]) -> None:
    sets, places = seen.data_sets, len(names)
    for number, (numbers, color) in enumerate(zip(sets.values(), cycle(COLORS), strict=False)):
        columns = _thinned(values[numbers].flatten(0, 1))
        positions = np.arange(places) + 0.8 * (number - (len(sets) - 1) / 2) / len(sets)
        if places * len(sets) > _DENSE:
            low, middle, high = (np.quantile(columns, q, axis=1) for q in (0.05, 0.5, 0.95))
            ax.fill_between(range(places), low, high, color=color, alpha=0.2, linewidth=0)
            ax.plot(range(places), middle, color=color, marker="o", markersize=3)
            continue
        drawn = ax.violinplot(columns, positions, widths=0.75 / len(sets), showmedians=True, showextrema=False)
        for body in _bodies(drawn):
            body.set(facecolor=color, edgecolor="none", alpha=0.6)
        drawn["cmedians"].set(color="#222222", linewidth=1.2)
    step = -(-places // 16)
    ax.set_xticks(range(0, places, step), names[::step])


def plot_motion(path: Path, seen: Collected) -> None:
    """Save Θ at t = 0 against how much moves: its mean of each video, and histograms of it by thirds of the videos.

    After figures 7 and 8 of the paper.
    """
    motion = np.array([video.motion for video in seen.videos])
    thirds = [part for part in np.array_split(motion.argsort(kind="stable"), 3) if len(part)]
    with figure(path, len(seen.weights), 2, width=11.0, height=3.4) as rows:
        for (left, right), (block, (_, kernel)) in zip(rows, seen.weights.items(), strict=True):
            central = kernel[:, :, kernel.shape[2] // 2].numpy()  # (N, C)
            means = central.mean(1)
            for (name, numbers), color in zip(seen.data_sets.items(), cycle(COLORS), strict=False):
                left.scatter(motion[numbers], means[numbers], s=16, color=color, alpha=0.75, label=_in_legend(name))
            if len(seen.data_sets) > 1:
                left.legend(fontsize=8)
            rho = rank_correlation(motion, means)
            _title(left, f"{label(block)}: rank correlation " + ("none" if rho is None else f"{rho:+.2f}"))
            left.set(xlabel=f"motion: {MOTION}", ylabel="mean over channels of Θ(t)")
            edges = np.linspace(*_widened(float(central.min()), float(central.max())), 41)
            for part, color in zip(thirds, _MOTIONS[-len(thirds) :], strict=True):
                values = central[part].ravel()
                text = f"motion {motion[part].min():.1f} … {motion[part].max():.1f}: {count(len(part))}"
                shares = np.full(len(values), 100 / len(values))
                right.hist(values, edges, weights=shares, histtype="stepfilled", color=color, alpha=0.35)
                right.hist(values, edges, weights=shares, histtype="step", color=color, linewidth=1.4)
                right.scatter([], [], marker="s", color=color, label=text)
            _title(right, f"{label(block)}: {count(len(motion))}")
            right.set(xlabel="weight Θ of the tap at frame t", ylabel="share of channels (%)")


def plot_filmstrips(path: Path, seen: Collected) -> None:
    """Save the sampled frames of some videos, V over time below: its mean over channels, and a band of 10 to 90 %."""
    few, width = spread(len(seen.videos), _FEW), 11.0
    T = seen.num_segments
    heights = [(width - 0.9) / T + 0.35, 1.9] * len(few)
    with figure(path, 2 * len(few), 1, "y", height=heights, width=width) as rows:
        for number, (strip, below) in zip(few, rows[:, 0].reshape(-1, 2), strict=True):
            video = seen.videos[number]
            strip.imshow(picture(video), extent=(0.5, T + 0.5, 0, 1), aspect="auto", interpolation="lanczos")
            strip.vlines([t + 0.5 for t in range(1, T)], 0, 1, color="white", linewidth=2)
            strip.grid(visible=False)
            strip.set(xticks=[], yticks=[], xlim=(0.5, T + 0.5))
            for side in ("left", "bottom"):
                strip.spines[side].set_visible(False)
            name = _short(seen.name_of(video), 40)
            _title(strip, f"{name} ({video.data_set}): {video.about}; motion {video.motion:.1f}")
            for (block, (importance, _)), color in zip(seen.weights.items(), cycle(COLORS), strict=False):
                if importance is not None:
                    _over_time(below, importance[number].numpy(), T, color, label(block))
            step = -(-T // 32)
            below.set_xticks(range(1, T + 1, step))
            below.set(xlim=(0.5, T + 0.5), ylabel="importance V")
            if all(importance is None for importance, _ in seen.weights.values()):
                below.text(0.5, 0.5, "no importance map", transform=below.transAxes, ha="center")
        rows[-1, 0].set_xlabel("sampled frame")
        # The figure's legend is that of the first row.
        for block, color in islice(zip(seen.weights, cycle(COLORS), strict=False), len(seen.weights)):
            rows[0, 0].plot([], [], color=color, label=label(block))


def _over_time(ax: Axes, importance: Values, T: int, color: str, name: str) -> None:
    frames = 1 + np.arange(importance.shape[1]) * (T // importance.shape[1])
    low, high = np.quantile(importance, (0.1, 0.9), axis=0)
    ax.fill_between(frames, low, high, color=color, alpha=0.15, linewidth=0)
    ax.plot(frames, importance.mean(0), color=color, marker="o", markersize=3.5)


def picture(video: Seen) -> NDArray[np.uint8]:
    """The filmstrip (side, T·side, 3)."""
    return np.asarray(Image.open(io.BytesIO(video.strip)).convert("RGB"))


def rank_correlation(x: NDArray[Any], y: NDArray[Any]) -> float | None:
    """Spearman's ρ of two rows; None of fewer than three values, and where one row is constant."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(_ranks(x), _ranks(y))[0, 1])


def _ranks(row: NDArray[Any]) -> NDArray[np.float64]:
    """The places of the values in order; equal ones, as videos in which nothing moves, share the mean of theirs."""
    _, places, counts = np.unique(row, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[places]


def _thinned(values: Tensor) -> list[Values]:
    """The columns of (any, K), each sorted and, if it is long, at even quantiles."""
    rows = np.sort(values.numpy(), 0)
    if len(rows) > _DRAWN:
        rows = rows[np.linspace(0, len(rows) - 1, _DRAWN).round().astype(int)]
    return list(rows.T)


def _widened(low: float, high: float) -> tuple[float, float]:
    room = max(0.0, _NARROW - (high - low)) / 2
    return low - room, high + room


def _bodies(drawn: dict[str, Any]) -> list[Any]:
    return list(drawn["bodies"])


def _number(value: float) -> str:
    text = f"{value:.3f}" if abs(value) < 0.1 else f"{value:.2f}"
    return "0" if float(text) == 0 else text.replace("-", "−")


def count(number: int) -> str:
    """`number` videos, in words."""
    return f"{number} video{'s' * (number != 1)}"


def _title(ax: Axes, text: str) -> None:
    ax.set_title(_plain(text), fontsize=9, parse_math=False)


def _plain(text: str) -> str:
    """`text`, with what is no text in a file's name escaped."""
    return text.encode(errors="backslashreplace").decode()


def _in_legend(text: str) -> str:
    return _plain(text).replace("$", r"\$")


def _short(text: str, most: int) -> str:
    """`text`, or its beginning and end."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"
