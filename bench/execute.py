"""Executes the compiled kernels on a CPU and counts what they do: instructions, sectors of memory, conflicts of banks.

Each operator runs once on a small problem. A request is one instruction of one warp; a sector is 32 bytes. `sectors` of
a request beside `needed`, what its bytes would fill, tells how much of each sector is used; `wavefronts` beside
requests tells the conflicts in shared memory, where vectors of 16 bytes need four. `instructions` are those of warps,
`a byte` of them by the bytes of global memory that are used. Nothing here is a time.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from bench import static
from bench.options import check_least, check_taps
from bench.ptx.driver import Launch, device
from bench.ptx.memory import SECTOR
from bench.shapes import DTYPES, LAYOUTS

COLUMNS = (
    ("operator", 24), ("kernel", 23), ("layout", 13), ("programs", 8), ("instructions", 12), ("a byte", 6),
    ("loads", 7), ("sectors", 7), ("needed", 6), ("stores", 7), ("sectors", 7), ("needed", 6), ("shared", 7),
    ("wavefronts", 10),
)  # fmt: skip


@dataclass(frozen=True)
class Execute:
    """A few seconds by default; larger maps and more clips take longer in proportion."""

    target: Literal["sm_80", "sm_90", "sm_100", "sm_120"] = "sm_90"
    """Compiled for this GPU."""
    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16"
    """Of the tensors."""
    layouts: tuple[Literal["nchw", "channels_last"], ...] = ("nchw", "channels_last")
    """Of the feature maps in memory."""
    channels: int = 64
    """C."""
    size: int = 14
    """Height and width of the feature maps."""
    clips: int = 2
    """N."""
    segments: int = 8
    """Frames of a clip (T)."""
    kernel_size: int = 3
    """Taps of Θ (K)."""
    mix: bool = False
    """Beside each row the instructions by kind, the most frequent first."""
    out: Path | None = None
    """A file to write the table to. None: it is printed alone."""

    def __post_init__(self) -> None:
        check_least(self, channels=1, size=1, clips=1, segments=1)
        check_taps(self.kernel_size)


def run(options: Execute) -> list[str]:
    """Prints a table, and writes it if asked to; its rows."""
    lines = [" ".join(f"{name:>{width}}" for name, width in COLUMNS)]
    print(lines[0])
    for layout in options.layouts:
        for operator, call in static.CALLS.items():
            with device(options.target) as launches:
                x = torch.randn(
                    options.clips * options.segments, options.channels, options.size, options.size, device="cuda:0"
                )
                x = x.to(DTYPES[options.dtype]).contiguous(memory_format=LAYOUTS[layout])
                v = torch.rand(options.clips, options.channels, options.segments, device="cuda:0").to(x.dtype)
                theta = torch.rand(options.clips, options.channels, options.kernel_size, device="cuda:0").to(x.dtype)
                call(x, v, theta)
            for launch in launches:
                lines.append(row(operator, layout, launch))
                if options.mix:
                    lines.append("    " + mix(launch.counts.instructions))
                print(*lines[-1 - options.mix :], sep="\n", flush=True)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines) + "\n")
        print(f"wrote {options.out}")
    return lines


def row(operator: str, layout: str, launch: Launch) -> str:
    """What one launch did."""
    counts = launch.counts
    figures = []
    for kind in ("load", "store"):
        traffic = counts.requested(kind)
        parts = (traffic.sectors, traffic.bytes / SECTOR)
        figures += [str(traffic.requests), *(f"{part / max(traffic.requests, 1):.2f}" for part in parts)]
    used = counts.requested("load", "store").bytes
    instructions = sum(counts.instructions.values())
    cells = (
        operator, launch.kernel, layout, launch.grid[0], instructions, f"{instructions / max(used, 1):.2f}", *figures,
        counts.shared_requests, counts.shared_wavefronts,
    )  # fmt: skip
    return " ".join(f"{cell!s:>{width}}" for cell, (_, width) in zip(cells, COLUMNS, strict=True))


def mix(instructions: Counter[str]) -> str:
    """By kind."""
    return ", ".join(f"{name} {count}" for name, count in instructions.most_common())
