"""What the demo prints: a table of the tasks, and which videos could not be read."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from train.data.dataset import Failure
from train.demo.plots import Kernels
from train.demo.render import Task
from train.demo.side_by_side import EpochResult


@dataclass(frozen=True)
class TaskResult:
    """What the demo shows of one task."""

    task: Task
    chance: float
    videos: tuple[int, int]
    """Of training and of validation."""
    seconds: float
    history: list[EpochResult]
    kernels: Kernels
    """Of TANet; empty where there is none."""
    substituted: Mapping[Failure, int]
    """Training videos that could not be read, and how often another stood in."""
    left_out: Mapping[Failure, int]
    """Validation videos that could not be read; the accuracies are without them."""

    @property
    def accuracies(self) -> dict[str, float]:
        """Top-1 of each network after the last epoch, from 0 to 1."""
        return {result.network: result.val.accuracy for result in self.history}


def describe_results(results: Sequence[TaskResult], out: Path) -> str:
    """The table, a line a task, and below it what could not be read."""
    widths = {name: max(9, len(name) + 2) for name in results[0].accuracies}
    names = "".join(f"{name:>{width}}" for name, width in widths.items())
    lines = ["", f"{'task':<10}{'chance':>9}{names}{'videos':>14}{'seconds':>10}"]
    for result in results:
        shares = "".join(f"{result.accuracies[name]:>{width}.1%}" for name, width in widths.items())
        videos = "{} + {}".format(*result.videos)
        lines.append(f"{result.task:<10}{result.chance:>9.1%}{shares}{videos:>14}{result.seconds:>10.0f}")
    lines += ["", f"Pictures, checkpoints and log are in {out}, its videos in {out / 'data'}."]
    checkpoint = out / f"{results[0].task}-tanet.pt"
    if checkpoint.exists():
        lines += [
            f"  to use one:         python -m train predict {shlex.quote(str(checkpoint))} VIDEO",
            f"  to see its kernels: python -m train visualize {shlex.quote(str(checkpoint))} VIDEO …",
        ]
    lines.append("  your own videos:    docs/own-data-set.md")
    for result in results:
        for failures, fate in (
            (result.substituted, "training videos replaced by others"),
            (result.left_out, "validation videos left out of the accuracy"),
        ):
            if failures:
                lines.append(f"{result.task}: {fate} because they cannot be read: {len(failures)}")
                lines += [f"  {path}: {reason} ({times} ×)" for (path, reason), times in sorted(failures.items())]
    return "\n".join(lines)
