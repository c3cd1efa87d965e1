"""What a training step holds between forward and backward, by network; counted without memory, and nothing is computed.

Networks are built on torch's meta device, and their tensors have shapes alone. Each storage that autograd keeps counts
once and whole, the frames among them; parameters, their gradients and the optimizer's state come on top, alike for all.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 — its usual name

from bench import counters, report
from bench.machine import describe
from bench.networks import CLASSES, eager_twin, separate_twin
from bench.options import DType, check_least
from bench.shapes import DTYPES, LAYOUTS
from tam_triton import functional
from tam_triton.nets import C2D, c2d, tanet

NETWORKS = {
    "C2D": "no temporal module; ReLU in place",
    "TANet, fused": "BatchNorm, ReLU and TAM in one, as on a GPU",
    "TANet, separate": "BatchNorm, then ReLU in place, then TAM by this library's operators",
    "TANet, eager": "TAM as its public implementations formulate it",
}


@dataclass(frozen=True)
class Saved:
    """What to count."""

    clips: int = 8
    """N, the clips of a step."""
    depth: Literal[18, 34, 50, 101, 152] = 50
    """Of the ResNet."""
    segments: int = 8
    """T, the frames of a clip."""
    pixels: int = 224
    """Frames are squares of this side."""
    dtype: DType = "float32"
    """Of everything, parameters too: there is no autocast on the meta device."""
    out: Path | None = None
    """A JSON file for the results."""

    def __post_init__(self) -> None:
        check_least(self, clips=1, segments=1, pixels=32)


@dataclass(frozen=True)
class Row:
    """One network; bytes held for the backward, and these in units of C2D's."""

    network: str
    layout: str
    saved_bytes: int
    of_c2d: float

    def __str__(self) -> str:
        return f"{self.network:>16} {self.layout:>14} {self.saved_bytes / 2**20:>10.1f} {self.of_c2d:>7.3f}×"


def run(options: Saved) -> list[Row]:
    """Prints a table; writes the file that is asked for."""
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    print(
        f"ResNet-{options.depth}, {options.clips} clips × {options.segments} frames × {options.pixels}², "
        f"{options.dtype}\n{'network':>16} {'layout':>14} {'saved MiB':>10} {'of C2D':>8}"
    )
    rows = []
    for row in measure(options):
        print(row, flush=True)
        rows.append(row)
    print(*(f"{name}: {meaning}." for name, meaning in NETWORKS.items()), sep="\n")
    if options.out is not None:
        report.write_json(options.out, describe("cpu", 1, False), options, rows=rows)
    return rows


def measure(options: Saved) -> Iterator[Row]:
    """All networks in both layouts, C2D first."""
    for layout in LAYOUTS:
        of_c2d = 0
        for name, network in networks(options).items():
            size = saved_bytes(network.to(DTYPES[options.dtype]), layout, options)
            of_c2d = of_c2d or size
            yield Row(name, layout, size, size / of_c2d)


def networks(options: Saved) -> dict[str, C2D]:
    """By name, in training."""
    with torch.device("meta"):
        plain = c2d(options.depth, CLASSES, options.segments, dropout=0.0)
        fused = tanet(options.depth, CLASSES, options.segments, dropout=0.0, impl="triton")
    twins = {"TANet, fused": fused, "TANet, separate": separate_twin(fused), "TANet, eager": eager_twin(fused)}
    return {name: network.train() for name, network in {"C2D": plain, **twins}.items()}


def saved_bytes(network: C2D, layout: str, options: Saved) -> int:
    """Of one step on random frames."""
    memory_format = LAYOUTS[layout]
    network.to(memory_format=memory_format)
    shape = (options.clips * options.segments, 3, options.pixels, options.pixels)
    frames = torch.empty(shape, device="meta", dtype=DTYPES[options.dtype]).contiguous(memory_format=memory_format)
    labels = torch.empty(options.clips, device="meta", dtype=torch.long)

    def forward() -> Tensor:
        return F.cross_entropy(network(frames), labels)

    with triton_without_memory():
        return counters.saved_bytes(forward, network.state_dict().values())


@contextmanager
def triton_without_memory() -> Iterator[None]:
    """Lets `impl="triton"` stand for tensors of the meta device, which it else refuses, as no kernel can run there."""
    choose: Callable[[str | None, Tensor], str] = functional.choose
    with mock.patch.object(
        functional, "choose", lambda impl, x: impl if impl and x.device.type == "meta" else choose(impl, x)
    ):
        yield
