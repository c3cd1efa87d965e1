"""How this project's pictures look."""

from collections.abc import Iterator
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
def figure(path: Path, rows: int, columns: int, grid: str = "both", height: float = 3.2) -> Iterator[NDArray[Any]]:
    """Axes (rows, columns) to draw on, then saved as a PNG with the legend of the first row's last, if any, below.

    `height` is a row's, in inches.
    """
    with mpl.rc_context({**_STYLE, "axes.grid.axis": grid}):
        drawn = Figure(figsize=(9.5, height * rows + 0.4), layout="constrained")
        axes = drawn.subplots(rows, columns, squeeze=False)
        yield axes
        handles, labels = axes[0, -1].get_legend_handles_labels()
        if labels:
            drawn.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), fontsize=9)
        with replacing(path) as unfinished:
            drawn.savefig(unfinished, format="png", dpi=130)
