"""How this project's pictures look."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from numpy.typing import NDArray

from train.atomic import replacing

_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


@contextmanager
def figure(
    path: Path,
    rows: int,
    columns: int,
    grid: str = "both",
    height: float | Sequence[float] = 3.2,
    width: float = 9.5,
) -> Iterator[NDArray[Any]]:
    """Axes (rows, columns) to draw on, then saved as a PNG with the legend of the first row's last, if any, below.

    `height` is a row's, or that of each row, and `width` the figure's, in inches.
    """
    heights = [height] * rows if isinstance(height, int | float) else list(height)
    with mpl.rc_context({**_STYLE, "axes.grid.axis": grid}):
        drawn = Figure(figsize=(width, sum(heights) + 0.4), layout="constrained")
        axes = drawn.subplots(rows, columns, squeeze=False, height_ratios=heights)
        yield axes
        handles, labels = axes[0, -1].get_legend_handles_labels()
        if labels:
            drawn.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), fontsize=9)
        with replacing(path) as unfinished, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # names may be in any script
            drawn.savefig(unfinished, format="png", dpi=130)
