"""The sums of `ops` as a picture: how far each candidate is from the floor."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.rows import Row

COLORS = {"ours": "#1b6ca8", "compiled_plain": "#7fb3d5", "eager": "#b03a2e", "compiled_eager": "#e6a57e"}


def draw(totals: Sequence[Row], machine: str, file: Path) -> None:
    """One panel a layout, one group of bars an operator; a bar is the time in units of the floor, on a log scale."""
    layouts = list(dict.fromkeys(row.layout for row in totals))
    operators = list(dict.fromkeys(row.operator for row in totals))
    candidates = [name for name in dict.fromkeys(row.candidate for row in totals) if name != "floor"]
    width = 0.8 / len(candidates)
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 0.6 + 3 * len(layouts)), layout="constrained")
        panels = figure.subplots(len(layouts), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for panel, layout in zip(panels, layouts, strict=True):
            for index, name in enumerate(candidates):
                times = {r.operator: 1 / r.of_copy for r in totals if (r.layout, r.candidate) == (layout, name)}
                places = [place + (index - (len(candidates) - 1) / 2) * width for place in range(len(operators))]
                heights = [times[operator] for operator in operators]
                bars = panel.bar(places, heights, 0.92 * width, label=name.replace("_", " "), color=COLORS[name])
                panel.bar_label(bars, [f"{height:.1f}" for height in heights], padding=1, fontsize=7)
            panel.axhline(1, color="black", linewidth=1, label="floor: a copy's bandwidth")
            panel.set_yscale("log")
            panel.set_ylabel("time / floor")
            panel.set_title(layout, loc="left", fontsize=9, fontweight="bold")
        panels[-1].set_xticks(range(len(operators)), [operator.replace("_", "\n") for operator in operators])
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
        figure.supxlabel(machine, fontsize=6, color="gray")
        figure.savefig(file, dpi=150)
