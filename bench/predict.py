"""The compiled kernels' time on a GPU, predicted without one, and the facts of their machine code that decide it.

Every launch is compiled for the target, its machine code followed for the program in the middle of the grid, and what
that does put through a model of one multiprocessor (bench/sm/model.py says what it has and what it leaves out). All
times are predicted ones, of the L2 cache empty, without what passes between launches; ratios deserve more trust than
values. `floor` is what the tensors of X's size take at 93 % of DRAM's bandwidth. For AMD's targets there are facts alone.
"""

import csv
import math
import multiprocessing
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
import triton

from bench import compiled, offline
from bench.shapes import DTYPES, LAYOUTS, Shape, tanet50
from bench.sm import model, sass
from bench.sm.facts import facts
from bench.sm.walk import launch_walk
from bench.static import CALLS

VARIED = ("latency", "L1", "bandwidth")
STEP = 0.3
TAM = ("squeeze", "aggregate", "weight_gradients", "input_gradient")
"""The operators of a TAM in training whose kernels read tensors of X's size."""

DType = Literal["float32", "float16", "bfloat16"]
Layout = Literal["nchw", "channels_last"]


@dataclass(frozen=True)
class Predict:
    """TANet-50's TAMs by default, in bfloat16 on an H100."""

    target: Literal["sm_80", "sm_90", "sm_100"] = "sm_90"
    """Compiled for, and predicted of: an A100, H100 or B200."""
    dtypes: tuple[DType, ...] = ("bfloat16",)
    """Of X, V and Θ."""
    layouts: tuple[Layout, ...] = ("nchw", "channels_last")
    """Of X."""
    operators: tuple[str, ...] = ()
    """Names of `bench static`'s operators, such as aggregate; none: all."""
    shapes: tuple[tuple[int, int], ...] = ()
    """Pairs of channels and height (= width); none: those of TANet-50 at 224 pixels."""
    clips: int = 8
    """Clips in X (N)."""
    segments: int = 8
    """Frames of a clip (T)."""
    kernel_size: int = 3
    """Taps of Θ (K)."""
    sensitivity: bool = False
    """Predict again with latency, L1's latency and bandwidth 30 % lower and higher."""
    mix: bool = False
    """Below each row the instructions by pipe."""
    jobs: int = 2
    """Processes that compile at the same time; 1 compiles in this one."""
    out: Path | None = None
    """A CSV to write. None: the table is printed alone."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.operators if name not in CALLS]:
            raise ValueError(f"operators: got {', '.join(unknown)}, expected some of {', '.join(CALLS)}")
        for name in ("clips", "segments", "kernel_size", "jobs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")


@dataclass(frozen=True)
class Row:
    """One launch; figures of X's vectors and the floor are None where it has no tensor of X's size.

    Attributes:
        triton: the release that compiled it.
        tams: of the network that have this shape.
        launch: its number within the operator.
        resident: warps of a multiprocessor at once.
        instructions: of a warp for each 16 bytes a lane that it loads of X (or dY).
        in_flight: KB that a multiprocessor asks for ahead, at most.
        needed: KB that latency × bandwidth asks for.
        ceiling: TB/s if every slot for instructions were used.
        sectors: used of the four of each 128-byte line.
        issue: share of the slots for instructions, predicted.
        predicted: µs.
        floor: µs.
        varied: predicted µs with one assumption 30 % lower and higher.
        mix: instructions as above, by pipe.
    """

    target: str
    triton: str
    dtype: str
    layout: str
    shape: str
    tams: int
    operator: str
    launch: int
    kernel: str
    programs: int
    warps: int
    registers: int
    resident: int
    instructions: float | None
    shuffles: float | None
    barriers: float | None
    shared: float | None
    in_flight: float | None
    needed: float
    ceiling: float | None
    sectors: float | None
    issue: float
    predicted: float
    floor: float | None
    varied: dict[str, tuple[float, float]]
    mix: dict[str, float]

    @property
    def share(self) -> float | None:
        """Of the floor in the predicted time."""
        return None if self.floor is None else self.floor / self.predicted

    def __str__(self) -> str:
        cells = [
            self.layout, self.shape, self.operator, self.kernel, self.programs, self.warps, self.registers,
            self.resident, text(self.instructions, 0), text(self.shuffles, 1), text(self.barriers, 1),
            text(self.shared, 1), text(self.in_flight, 1), text(self.ceiling, 1), text(self.sectors, 1),
            f"{self.issue:.0%}", text(self.predicted, 2), text(self.floor, 1),
            "-" if self.share is None else f"{self.share:.0%}",
        ]  # fmt: skip
        line = " ".join(f"{cell!s:>{width}}" for cell, (_, width) in zip(cells, HEADINGS, strict=True))
        for name, (low, high) in self.varied.items():
            line += f"  {name} {low:.1f}–{high:.1f}"
        return line


HEADINGS = (
    ("layout", 13), ("shape", 10), ("operator", 24), ("kernel", 23), ("programs", 8), ("warps", 5), ("regs", 4),
    ("res.", 4), ("instr", 5), ("shfl", 5), ("bar", 5), ("lds", 5), ("KB", 5), ("TB/s", 5), ("sect", 4), ("issue", 5),
    ("µs", 7), ("floor", 6), ("share", 5),
)  # fmt: skip


def run(options: Predict) -> list[Row]:
    """Prints what it assumes, a table, and sums over the network; writes a CSV if asked to.

    Raises:
        RuntimeError: TRITON_INTERPRET is set, or there is no C compiler.
        ValueError: a kernel's machine code has something that is not known to the model.
    """
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    device = model.DEVICES[options.target]
    print(header(options, device))
    parts = [
        (options, dtype, layout, shape)
        for dtype in options.dtypes
        for layout in options.layouts
        for shape in [Shape(*pair) for pair in options.shapes] or tanet50()
    ]
    rows: list[Row] = []
    for found in predicted(parts, options.jobs):
        rows += found
        for row in found:
            print(row)
            if options.mix:
                print("    " + ", ".join(f"{name} {count:.1f}" for name, count in row.mix.items()))
    for line in sums(rows, device):
        print(line)
    if options.out is not None:
        write(rows, options.out)
        print(f"wrote {options.out}")
    return rows


def header(options: Predict, device: model.Device) -> str:
    """The model's assumptions, and the table's."""
    return "\n".join(
        [
            f"PREDICTED for {device.name} ({options.target}), compiled by triton {triton.__version__}, "
            f"{options.clips} clips of {options.segments} frames, {options.kernel_size} taps",
            f"{device.multiprocessors} multiprocessors at {device.gigahertz} GHz; DRAM {device.bandwidth / 1e12:.2f} TB/s, "
            f"of which {device.reached:.0%} are reached, after {device.dram:.0f} cycles; L2 after {device.l2:.0f}, L1 after "
            f"{device.l1:.0f}",
            f"asking for {device.needed_in_flight / 1000:.1f} KB ahead a multiprocessor uses its share of that (KB); "
            "instr, shfl, bar, lds: for each 16 bytes a lane of X or dY; TB/s: if only issue limited",
            " ".join(f"{name:>{width}}" for name, width in HEADINGS),
        ]
    )


def predicted(parts: list[tuple[Predict, str, str, Shape]], jobs: int) -> Iterator[list[Row]]:
    """The rows of each part, in order."""
    if jobs == 1 or len(parts) == 1:
        for part in parts:
            yield rows_of(*part)
        return
    with ProcessPoolExecutor(min(jobs, len(parts)), multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(rows_of, *zip(*parts, strict=True))


def rows_of(options: Predict, dtype: str, layout: str, shape: Shape) -> list[Row]:
    """All launches of one shape."""
    size = (options.clips * options.segments, shape.channels, shape.size, shape.size)
    x = torch.empty(size, dtype=DTYPES[dtype], memory_format=LAYOUTS[layout])
    v = torch.empty(options.clips, shape.channels, options.segments, dtype=x.dtype)
    theta = torch.empty(options.clips, shape.channels, options.kernel_size, dtype=x.dtype)
    rows = []
    with offline.launches(options.target) as launched:
        for operator in options.operators or CALLS:
            launched.clear()
            CALLS[operator](x, v, theta)
            for number, launch in enumerate(launched):
                described = (options.target, triton.__version__, dtype, layout, str(shape), shape.count, operator, number)
                rows.append(row(described, launch, x.nbytes, options.sensitivity))
    return rows


def row(described: tuple[Any, ...], launch: offline.Launch, size: int, sensitivity: bool) -> Row:
    """What one launch shows; tensors of at least `size` bytes are of X's size."""
    target = described[0]
    device, used = model.DEVICES[target], compiled.resources(launch.compiled)
    limits = compiled.MULTIPROCESSORS[target]
    occupancy = limits.occupancy(used.registers, used.shared_bytes, launch.num_warps)
    resident = round(occupancy * limits.warps / launch.num_warps)
    walked = launch_walk(launch, sass.read(launch.compiled.asm["cubin"]))
    prediction = model.predict(walked, launch, device, resident)
    large = {name for name in walked.touched if launch.arguments[name].nbytes >= size and walked.touched[name]}
    found = facts(walked, launch, device, resident, large)
    moved = sum(launch.arguments[name].nbytes for name in large)
    programs = math.prod(launch.grid)
    varied: dict[str, tuple[float, float]] = {}
    for name in VARIED if sensitivity else ():
        times = [
            model.predict(walked, launch, model.varied(device, name, factor), resident).microseconds
            for factor in (1 - STEP, 1 + STEP)
        ]
        varied[name] = min(times), max(times)
    return Row(
        *described, launch.kernel, programs, launch.num_warps, used.registers,
        min(resident, math.ceil(programs / device.multiprocessors)) * launch.num_warps,
        *((None,) * 4 if found is None else (found.instructions, found.shuffles, found.barriers, found.shared)),
        in_flight=found and found.in_flight / 1000, needed=device.needed_in_flight / 1000,
        ceiling=found and found.ceiling / 1e12, sectors=found and found.sectors,
        issue=prediction.issue_share, predicted=prediction.microseconds,
        floor=1e6 * moved / device.copied if moved else None, varied=varied, mix=found.mix if found else {},
    )  # fmt: skip


def sums(rows: list[Row], device: model.Device) -> Iterator[str]:
    """Over the network's TAMs: each operator, its kernels on tensors of X's size and all its launches, by layout."""
    table: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0] * 4))
    for one in rows:
        figures = table[one.dtype, one.operator][one.layout]
        figures[0] += one.tams * (one.floor or 0)
        figures[1] += one.tams * one.predicted * (one.floor is not None)
        figures[2] += one.tams * one.predicted
        figures[3] += one.tams * (one.predicted + device.overhead)
    layouts = list(dict.fromkeys(one.layout for one in rows))
    tams = sum({(one.shape, one.tams) for one in rows} and [t for _, t in sorted({(o.shape, o.tams) for o in rows})])
    yield f"\nsums over {tams} TAMs, predicted µs: floor | kernels on tensors of X's size | all launches | and "
    yield f"{device.overhead} µs for each of them"
    for dtype in dict.fromkeys(one.dtype for one in rows):
        totals = {layout: [0.0] * 4 for layout in layouts}
        for (kind, operator), by_layout in table.items():
            if kind != dtype:
                continue
            yield f"{dtype:9} {operator:24} " + "   ".join(f"{l:>13} {line(by_layout[l])}" for l in layouts)
            for layout in layouts if operator in TAM else ():
                totals[layout] = [a + b for a, b in zip(totals[layout], by_layout[layout], strict=True)]
        yield f"{dtype:9} {'these of ' + str(len(TAM)):24} " + "   ".join(f"{l:>13} {line(totals[l])}" for l in layouts)


def line(figures: list[float]) -> str:
    """Of a sum."""
    return " | ".join(f"{figure:7.1f}" for figure in figures)


def text(value: float | None, digits: int) -> str:
    """A figure, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


COLUMNS = [field.name for field in fields(Row)]


def write(rows: list[Row], path: Path) -> None:
    """One line a row, in the order of the table; figures rounded to what they are worth."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        mixes = sorted({name for one in rows for name in one.mix})
        spans = [(name, end) for name in VARIED if any(name in one.varied for one in rows) for end in ("low", "high")]
        writer.writerow([*COLUMNS[:-2], *(f"{name} {end}" for name, end in spans), *mixes])
        for one in rows:
            cells = list(asdict(one).values())[:-2]
            cells += [one.varied[name][end == "high"] for name, end in spans]
            cells += [one.mix.get(name) for name in mixes]
            writer.writerow([f"{cell:.4g}" if isinstance(cell, float) else cell for cell in cells])


