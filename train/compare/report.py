"""What a comparison leaves: every run as a line of a table, every system as mean ± std, and accuracy over cost."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from train.atomic import write_csv
from train.figures import figure


@dataclass(frozen=True)
class RunResult:
    """One run. What is not known is None; of one that failed, all but the reason."""

    system: str
    seed: int
    top1: float | None = None
    """From 0 to 1, of the videos that could be read; so top5."""
    top5: float | None = None
    videos: int | None = None
    missing: int | None = None
    """Videos without scores, which are in neither."""
    parameters: int | None = None
    macs: int | None = None
    """Of one clip."""
    clips_per_second: float | None = None
    """Median over the training, waiting for data included; of all processes."""
    problem: str | None = None
    """Why the run failed."""


@dataclass(frozen=True)
class Summary:
    """A system over its seeds. Standard deviations are those of a sample (n − 1), None of less than two runs."""

    system: str
    runs: int
    """That came to their end."""
    failed: int
    top1: float | None
    top1_std: float | None
    top5: float | None
    top5_std: float | None
    parameters: int | None
    macs: int | None
    clips_per_second: float | None
    """Median over the runs."""


def summarize(results: Sequence[RunResult]) -> list[Summary]:
    """A summary for each system, in the order of their first runs."""
    return [_summary(system, [r for r in results if r.system == system]) for system in _systems(results)]


def _summary(system: str, results: Sequence[RunResult]) -> Summary:
    done = [result for result in results if result.problem is None]
    rates = [result.clips_per_second for result in done if result.clips_per_second is not None]
    return Summary(
        system,
        len(done),
        len(results) - len(done),
        *_mean_and_std([result.top1 for result in done if result.top1 is not None]),
        *_mean_and_std([result.top5 for result in done if result.top5 is not None]),
        done[0].parameters if done else None,
        done[0].macs if done else None,
        median(rates) if rates else None,
    )


def _systems(results: Iterable[RunResult]) -> list[str]:
    return list(dict.fromkeys(result.system for result in results))


def _mean_and_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    return (mean(values) if values else None), (stdev(values) if len(values) > 1 else None)


def describe(summaries: Sequence[Summary], results: Sequence[RunResult], remark: str = "") -> str:
    """The table, a line a system, and below it what failed. `remark` stands above."""
    head = f"{'system':<18}{'runs':>5}{'top-1 (%)':>16}{'top-5 (%)':>16}{'parameters':>13}{'GMACs':>9}{'clips/s':>9}"
    lines = ["", *([remark] if remark else []), head]
    for row in summaries:
        macs = "—" if row.macs is None else f"{row.macs / 1e9:.3f}"
        rate = "—" if row.clips_per_second is None else f"{row.clips_per_second:.1f}"
        parameters = "—" if row.parameters is None else f"{row.parameters:,}"
        lines.append(
            f"{row.system:<18}{row.runs:>5}{_percent(row.top1, row.top1_std):>16}{_percent(row.top5, row.top5_std):>16}"
            f"{parameters:>13}{macs:>9}{rate:>9}"
        )
    lines += [f"{r.system}, seed {r.seed} failed: {r.problem}" for r in results if r.problem is not None]
    return "\n".join(lines)


def _percent(value: float | None, std: float | None) -> str:
    if value is None:
        return "—"
    return f"{100 * value:.2f}" + ("" if std is None else f" ± {100 * std:.2f}")


def write_runs(folder: Path, results: Sequence[RunResult]) -> None:
    """Write `runs.csv`, a line a run. Raises OSError."""
    _write_table(folder / "runs.csv", RunResult, results)


def write_summary(folder: Path, summaries: Sequence[Summary], remark: str = "") -> None:
    """Write `table.csv`, a line a system, and `accuracy_over_cost.png`. Raises OSError."""
    _write_table(folder / "table.csv", Summary, summaries)
    plot_accuracy_over_cost(folder / "accuracy_over_cost.png", summaries, remark)


def _write_table(path: Path, kind: type[Any], rows: Iterable[Any]) -> None:
    names = [field.name for field in fields(kind)]
    write_csv(path, [names, *([getattr(row, name) for name in names] for row in rows)])


MARKERS = "osD^vP*X"
COLORS = ("#1f77b4", "#d95f02", "#1b9e77", "#7570b3", "#a6761d")


def plot_accuracy_over_cost(path: Path, summaries: Sequence[Summary], remark: str = "") -> None:
    """Save top-1 by system, and over the MACs of a clip, as a PNG: means and standard deviations over the seeds."""
    rows = [row for row in summaries if row.top1 is not None and row.macs is not None]
    with figure(path, 1, 2, height=max(3.2, 0.6 + 0.26 * len(rows))) as ((by_system, over_cost),):
        for place, row in enumerate(rows):
            top1, error = 100 * (row.top1 or 0), 100 * (row.top1_std or 0)
            # Systems may lie on one another over their cost, so no names stand there: marks are as at the left.
            look = {
                "fmt": MARKERS[place % len(MARKERS)],
                "color": COLORS[place % len(COLORS)],
                "capsize": 3,
                "elinewidth": 1,
            }
            by_system.errorbar(top1, place, xerr=error, **look)
            over_cost.errorbar((row.macs or 0) / 1e9, top1, yerr=error, **look)
        by_system.set_yticks(range(len(rows)), [row.system for row in rows])
        by_system.set(xlabel="top-1 (%), mean ± std over seeds", xlim=(-2, 102), title=remark)
        by_system.invert_yaxis()
        over_cost.set(xlabel="GMACs of one clip", ylabel="top-1 (%)", ylim=(-2, 102))
