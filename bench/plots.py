"""The sums of `ops` as a picture, how far each candidate is from the floor; and memory over one call."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.kineto import Allocation, Range
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


PHASES = {"forward": "#dce9f3", "backward": "#f6e0dc", "optimizer": "#e3efdc"}


def draw_memory(held: Sequence[Allocation], phases: Sequence[Range], title: str, machine: str, file: Path) -> str:
    """Memory beyond what was held before, over time; returns a line on its peak."""
    if not held:
        raise ValueError("memory: the profiler saw no allocation, expected at least one")
    start = held[0].time
    times, sizes = [0.0], [0.0]
    for one in held:
        times.append((one.time - start) / 1e3)
        sizes.append(sizes[-1] + one.nbytes / 2**20)
    peak = max(range(len(sizes)), key=sizes.__getitem__)
    within = held[peak - 1].within or "no operator"
    said = f"{sizes[peak]:.1f} MiB at the peak, in {within}"
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 4), layout="constrained")
        axes = figure.subplots()
        for phase in phases:
            name = phase.name.split()[-1]
            begin, end = ((moment - start) / 1e3 for moment in (phase.start, phase.end))
            axes.axvspan(begin, end, color=PHASES[name], label=name, linewidth=0)
        axes.step(times, sizes, where="post", color="#1b6ca8", linewidth=1)
        axes.plot(times[peak], sizes[peak], "o", color="#b03a2e", markersize=4, label=said)
        axes.set_xlabel("ms since the first allocation, under the profiler")
        axes.set_ylabel("MiB beyond what was held before")
        axes.set_ylim(bottom=min(0.0, *sizes), top=1.05 * max(sizes))
        axes.set_title(title, loc="left", fontsize=9, fontweight="bold")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=4, frameon=False)
        figure.supxlabel(machine, fontsize=6, color="gray")
        figure.savefig(file, dpi=150)
    return said
