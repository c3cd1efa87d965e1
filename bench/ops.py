"""Squeeze and aggregation, forward and backward, beside the usual eager formulation and beside a copy.

The traffic that an operator cannot avoid, in passes over a tensor of X's size (DESIGN: the traffic floor): squeeze 1;
aggregation 2; its gradients 4 (X and dY for V and Θ, then dY and dX). GB/s is that traffic over the time, and "of copy"
compares it with what `copy_` reaches on the same tensor in the same run.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

import tam_triton
from bench import peers
from bench.machine import describe
from bench.shapes import DTYPES, Shape, tanet50
from bench.timing import Time, interleaved

PASSES = {"copy": 2, "squeeze": 1, "aggregate": 2, "aggregate+backward": 6}


@dataclass(frozen=True)
class Ops:
    """Operators against the eager formulation and a copy."""

    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    layouts: tuple[Literal["nchw", "channels_last"], ...] = ("nchw", "channels_last")
    clips: int = 2
    segments: int = 8
    kernel_size: int = 3
    pixels: int = 224
    """Frames of this size through TANet-50 give the shapes, unless `shapes` names others."""
    shapes: tuple[tuple[int, int], ...] = ()
    """Pairs of channels and height (= width)."""
    rounds: int = 15
    threads: int = 2
    """torch.set_num_threads, on the CPU."""
    out: Path | None = None
    """A JSON file for the results."""


@dataclass(frozen=True)
class Row:
    """One operator at one shape; times in ms. `count` is how many TAMs of the network have this shape."""

    shape: str
    count: int
    layout: str
    operator: str
    time: Time
    eager: Time | None
    gigabytes_per_second: float
    of_copy: float

    def __str__(self) -> str:
        ratio = f"{self.eager.median / self.time.median:.1f}×" if self.eager else ""
        return (
            f"{self.shape:>12} {self.layout:>14} {self.operator:>19} {self.time!s:>15} "
            f"{self.gigabytes_per_second:>7.1f} {self.of_copy:>8.0%} {ratio:>9}"
        )


HEADER = f"{'shape':>12} {'layout':>14} {'operator':>19} {'ms':>15} {'GB/s':>7} {'of copy':>8} {'vs eager':>9}"


def run(options: Ops) -> list[Row]:
    """Prints a table and, if asked, writes JSON."""
    torch.set_num_threads(options.threads)
    shapes = [Shape(*pair) for pair in options.shapes] or tanet50(options.pixels)
    machine = describe(options.device, options.threads)
    print(f"{machine}\n{options.clips} clips × {options.segments} frames, {options.dtype}, K = {options.kernel_size}")
    print(HEADER)
    rows: list[Row] = []
    for layout in options.layouts:
        for shape in shapes:
            measured = measure(shape, layout, options)
            print(*measured, sep="\n", flush=True)
            rows += measured
        print(*totals([row for row in rows if row.layout == layout]), sep="\n", flush=True)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    return rows


def measure(shape: Shape, layout: str, options: Ops) -> list[Row]:
    """All operators at one shape, timed in turn."""
    x = shape.features(options.clips, options.segments, DTYPES[options.dtype], layout, options.device)
    times = interleaved(candidates(x, options), options.device, options.rounds)
    rates = {name: passes * x.nbytes / times[name].median / 1e6 for name, passes in PASSES.items()}
    return [
        Row(
            str(shape), shape.count, layout, name, times[name], times.get(f"eager {name}"),
            rates[name], rates[name] / rates["copy"],
        )
        for name in PASSES
    ]  # fmt: skip


def candidates(x: Tensor, options: Ops) -> dict[str, Callable[[], object]]:
    """What is run in turn, by name: this library's operators, the peer's, and a copy."""
    segments, channels = options.segments, x.shape[1]
    importance = torch.rand(options.clips, channels, segments, dtype=x.dtype, device=x.device)
    kernel = torch.rand(options.clips, channels, options.kernel_size, dtype=x.dtype, device=x.device)
    leaves = [t.detach().clone().requires_grad_() for t in (x, importance, kernel)]
    dy, copy = torch.randn_like(x), torch.empty_like(x)

    def backward(forward: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(forward(*leaves), leaves, dy)

    return {
        "copy": lambda: copy.copy_(x),
        "squeeze": lambda: tam_triton.squeeze(x, segments),
        "eager squeeze": lambda: peers.squeeze(x, segments),
        "aggregate": lambda: tam_triton.aggregate(x, importance, kernel),
        "eager aggregate": lambda: peers.excite_and_aggregate(x, importance, kernel),
        "aggregate+backward": backward(tam_triton.aggregate),
        "eager aggregate+backward": backward(peers.excite_and_aggregate),
    }


def totals(rows: list[Row]) -> list[str]:
    """Sums over every TAM of the network: each shape as often as it occurs."""
    lines = []
    for operator in PASSES:
        chosen = [row for row in rows if row.operator == operator]
        sites, layout = sum(row.count for row in chosen), chosen[0].layout
        ours = sum(row.count * row.time.median for row in chosen)
        eager = sum(row.count * row.eager.median for row in chosen if row.eager)
        ratio = f"{eager / ours:.1f}×" if eager else ""
        lines.append(f"{f'sum of {sites}':>12} {layout:>14} {operator:>19} {ours:>15.2f} {'':>16} {ratio:>9}")
    return lines
