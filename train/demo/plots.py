"""Pictures of a training run: its curves, and the kernels that its temporal adaptive modules give."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import cast

import torch
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from tam_triton import inspect
from train.data.batches import Batch
from train.demo.side_by_side import EpochResult
from train.figures import figure
from train.metrics import Score, tally_batches

Kernels = dict[str, Tensor]

_COLORS = {"TANet": "#0b6e99", "C2D": "#d9730d"}
_OTHER_COLORS = ("#3f7d3a", "#8b3fa0", "#b3272d", "#8a6d1f", "#5f6f8c", "#c2528b")
# Of the taps on frames before t, the nearest first; on t; and after it.
_PAST, _PRESENT, _FUTURE = ("#5aa7c7", "#2f6f9f", "#1b3f66"), "#4f5b66", ("#d9730d", "#ad4a0a", "#702c06")


def plot_curves(path: Path, tasks: Mapping[str, tuple[Sequence[EpochResult], float]]) -> None:
    """Save loss and accuracy over the epochs as a PNG, a row a task, every network a color.

    `tasks` has for each task what all networks did in all epochs, and the accuracy of a guess.
    """
    with figure(path, len(tasks), 2) as rows:
        for (loss, accuracy), (task, (history, chance)) in zip(rows, tasks.items(), strict=True):
            networks = list(dict.fromkeys(result.network for result in history))
            others = [network for network in networks if network not in _COLORS]
            colors = _COLORS | dict(zip(others, cycle(_OTHER_COLORS), strict=False))
            for network in networks:
                results = [result for result in history if result.network == network]
                _plot_network(loss, results, colors[network], lambda score: score.loss)
                _plot_network(accuracy, results, colors[network], lambda score: 100 * score.accuracy)
            accuracy.axhline(100 * chance, color="#888888", linestyle=":", label="chance")
            loss.set(title=f"{task}: loss", xlabel="epoch", ylabel="cross-entropy", ylim=(0, None))
            accuracy.set(title=f"{task}: accuracy", xlabel="epoch", ylabel="top-1 (%)", ylim=(0, 103))


def _plot_network(axes: Axes, results: Sequence[EpochResult], color: str, value: Callable[[Score], float]) -> None:
    epochs, name = [result.epoch for result in results], results[0].network
    axes.plot(epochs, [value(r.val) for r in results], color=color, marker="o", ms=3.5, label=f"{name}, validation")
    axes.plot(epochs, [value(r.train) for r in results], color=color, ls="--", alpha=0.6, label=f"{name}, training")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def plot_kernels(path: Path, kernels: Mapping[str, Kernels]) -> None:
    """Save the distribution of the kernels Θ as a PNG, a row a task, a group of violins a TAM, one a tap.

    After figure 4 of the paper. `kernels` holds for each task what `learned_kernels` returns.
    """
    with figure(path, len(kernels), 1, grid="y") as rows:
        for (axes,), (task, modules) in zip(rows, kernels.items(), strict=True):
            _plot_violins(axes, modules)
            axes.set(title=f"{task}: kernels Θ over all validation clips and channels", ylabel="weight of the tap")


def _plot_violins(axes: Axes, modules: Kernels) -> None:
    num_taps = next(iter(modules.values())).shape[1]
    for tap in range(num_taps):
        offset = tap - num_taps // 2
        violins = axes.violinplot(
            [kernel[:, tap].numpy() for kernel in modules.values()],
            positions=[group + 0.8 * offset / num_taps for group in range(len(modules))],
            widths=0.75 / num_taps,
            showmedians=True,
            showextrema=False,
        )
        color = _PRESENT if offset == 0 else (_PAST if offset < 0 else _FUTURE)[(abs(offset) - 1) % 3]
        for body in cast(list[Collection], violins["bodies"]):
            body.set(facecolor=color, edgecolor="none", alpha=0.85)
        violins["cmedians"].set(color="#222222", linewidth=1.2)
        label = "frame t" if offset == 0 else f"frame t {'+' if offset > 0 else '−'} {abs(offset)}"
        axes.scatter([], [], marker="s", color=color, label=label)
    axes.axhline(1 / num_taps, color="#888888", linestyle=":", label="plain average")
    axes.set_xticks(range(len(modules)), [name.removesuffix(".tam") for name in modules])
    axes.set_ylim(-0.02, 1.02)


@torch.inference_mode()
def learned_kernels(network: nn.Module, batches: Iterable[Batch]) -> Kernels:
    """For each TAM of `network`, by name, the kernels Θ (N·C, K) that it gives for all clips and channels."""
    with inspect.collecting(network, ["*"]) as seen:
        tally_batches(network, batches)
    return {name: torch.cat([weights.kernel.flatten(0, 1) for weights in rows]) for name, rows in seen.items()}
