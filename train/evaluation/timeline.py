"""The classes of a video over time, as picture, table and JSON."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tam_triton.classifier import Prediction
from train.atomic import write_csv, write_text

SUFFIXES = (".png", ".csv", ".json")
# Classes up to which the picture has a row for each that was ever the most probable one.
_ROWS = 12


class Span(NamedTuple):
    """A stretch of time in which one class is the most probable."""

    start: float
    end: float
    class_name: str


@dataclass(frozen=True)
class Seen:
    """What a network sees in one window."""

    start: float
    end: float
    num_frames: int
    probabilities: NDArray[np.float32]
    """(classes,)."""
    best: list[Prediction]
    """The most probable classes, best first."""
    seconds: float
    """That it took to compute."""

    def to_plain(self) -> dict[str, Any]:
        """For JSON, where times are rounded to milliseconds."""
        return {
            "start": round(self.start, 3),
            "end": round(self.end, 3),
            "frames": self.num_frames,
            "predictions": [prediction._asdict() for prediction in self.best],
        }


@dataclass
class Timeline:
    """What was seen of `video`, window by window, in the order of time."""

    video: str
    class_names: Sequence[str]
    origin: dict[str, Any]
    """What made it, for the JSON."""
    seen: list[Seen] = field(default_factory=list)

    @property
    def edges(self) -> list[float]:
        """(windows + 1,) times between which each window decides: halfway between the middles of two neighbors."""
        middles = [(seen.start + seen.end) / 2 for seen in self.seen]
        between = [(a + b) / 2 for a, b in itertools.pairwise(middles)]
        return [self.seen[0].start, *between, self.seen[-1].end]

    @property
    def spans(self) -> list[Span]:
        """The most probable class over time: neighboring windows of one class are one span."""
        edges, spans = self.edges if self.seen else [], list[Span]()
        for start, end, seen in zip(edges, edges[1:], self.seen, strict=False):
            name = seen.best[0].class_name
            if spans and spans[-1].class_name == name:
                start = spans.pop().start
            spans.append(Span(start, end, name))
        return spans

    def write(self, path: Path, counts: dict[str, Any]) -> str:
        """Write `path` with each of `SUFFIXES`, each complete or not at all; returns a line that says so.

        `counts` go into the JSON. Nothing is written where nothing was seen. Raises OSError.
        """
        if not self.seen:
            return f"{path}: nothing to write, there was no window"
        path.parent.mkdir(parents=True, exist_ok=True)
        png, csv, plain = (with_suffix(path, suffix) for suffix in SUFFIXES)
        write_text(plain, json.dumps(self._to_plain() | counts, ensure_ascii=False, indent=1) + "\n")
        write_csv(csv, self._rows())
        _plot(png, self)
        return f"written: {png}, {csv.name}, {plain.name}"

    def _to_plain(self) -> dict[str, Any]:
        windows = [seen.to_plain() for seen in self.seen]
        spans = [{"start": round(s.start, 3), "end": round(s.end, 3), "class_name": s.class_name} for s in self.spans]
        return {"video": self.video, **self.origin, "spans": spans, "windows": windows}

    def _rows(self) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = [("start", "end", "frames", "class", "probability", *self.class_names)]
        for seen in self.seen:
            times, probabilities = (f"{seen.start:.3f}", f"{seen.end:.3f}"), seen.probabilities.tolist()
            rows.append((*times, seen.num_frames, *seen.best[0], *(f"{value:.6f}" for value in probabilities)))
        return rows


def with_suffix(path: Path, suffix: str) -> Path:
    """`path` with `suffix` behind its whole name, which may have a dot."""
    return path.with_name(path.name + suffix)


def _plot(path: Path, timeline: Timeline) -> None:
    """Save the probabilities over time as a PNG: a row a class, those that were ever best, in the order of their time.

    Of more than `_ROWS` the ones that were best for longest. A line marks the best class of each span.
    """
    from train.figures import figure  # matplotlib, a second that a stream need not wait for

    spans, edges = timeline.spans, timeline.edges
    lengths = dict.fromkeys((span.class_name for span in spans), 0.0)
    for span in spans:
        lengths[span.class_name] += span.end - span.start
    longest = sorted(lengths, key=lambda name: -lengths[name])[:_ROWS]
    rows = [name for name in lengths if name in longest]
    labels = {name: label for label, name in reversed(list(enumerate(timeline.class_names)))}
    shares = 100 * np.stack([seen.probabilities for seen in timeline.seen])[:, [labels[name] for name in rows]].T
    with figure(path, 1, 1, grid="x", height=1.2 + 0.3 * len(rows)) as axes:
        axis = axes[0, 0]
        borders = np.arange(len(rows) + 1) - 0.5
        mesh = axis.pcolormesh(edges, borders, shares, vmin=0, vmax=100, cmap="Blues", rasterized=True)
        for span in spans:
            if span.class_name in longest:
                row = rows.index(span.class_name)
                axis.plot((span.start, span.end), (row, row), color="#d62728", linewidth=2.5, solid_capstyle="butt")
        shown = [name.encode(errors="backslashreplace").decode() for name in rows]
        axis.set_yticks(range(len(rows)), shown, parse_math=False)
        axis.set(xlim=(edges[0], edges[-1]), ylim=(len(rows) - 0.5, -0.5), xlabel="time (s)")
        more = f", {len(rows)} of {len(lengths)} classes" if len(lengths) > len(rows) else ""
        title = Path(timeline.video).name.encode(errors="backslashreplace").decode()
        axis.set_title(f"{title}: the most probable class (red) over time{more}", fontsize=10, parse_math=False)
        axis.figure.colorbar(mesh, ax=axis, label="probability (%)")
