"""The compiled kernels' time on a GPU, predicted without one, and the facts of their machine code that decide it.

Every launch is compiled for the target, its machine code followed for the program in the middle of the grid, and what
that does put through a model of one multiprocessor (bench/sm/model.py says what it has and what it leaves out). All
times are predicted, for an empty L2 cache; ratios deserve more trust than values. `floor` is what the tensors of X's
size take at 93 % of DRAM's bandwidth, `launched` adds what a launch takes beside. Where there is a GPU, each launch is
measured too, by the profiler, after the L2 cache was flushed. For gfx942 there are facts alone, and no time.
"""

import csv
import multiprocessing
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
import triton
from torch.profiler import ProfilerActivity, profile

from bench import offline, timing
from bench.compiled import resources
from bench.offline import Launch
from bench.options import DType, Layout, check_least, check_taps
from bench.shapes import DTYPES, LAYOUTS, Shape, tanet50
from bench.sm import amdgcn, devices, model, sass, walk
from bench.sm.devices import Device
from bench.sm.facts import Facts, facts
from bench.static import CALLS

VARIED = ("latency", "L1", "bandwidth")
VARIATION = 0.3
ROUNDS = 20
TAM = ("squeeze", "aggregate", "weight_gradients", "input_gradient")
"""The operators of a TAM in training whose kernels read tensors of X's size."""


T = TypeVar("T")
Target = Literal["sm_80", "sm_90", "sm_100", "gfx942"]
HERE = cast(Target | None, devices.here())


@dataclass(frozen=True)
class Predict:
    """TANet-50's TAMs by default, in bfloat16, on the GPU that is there, or else an H100."""

    target: Target = HERE or "sm_90"
    """Compiled for an A100, H100, B200 or MI300X."""
    dtypes: tuple[DType, ...] = ("bfloat16",)
    """Of X, V and Θ."""
    layouts: tuple[Layout, ...] = ("nchw", "channels_last")
    """Of X."""
    operators: tuple[str, ...] = ()
    """Those of `bench static`, such as aggregate; none: all."""
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
    measure: bool = HERE is not None
    """Time each launch on this machine's GPU, and predict for that one."""
    jobs: int = 2
    """Processes that compile at the same time; 1, as where a GPU is measured, compiles in this one."""
    out: Path | None = None
    """A CSV to write. None: the table is printed alone."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.operators if name not in CALLS]:
            raise ValueError(f"operators: got {', '.join(unknown)}, expected some of {', '.join(CALLS)}")
        check_least(self, clips=1, segments=1, jobs=1)
        check_taps(self.kernel_size)
        if self.measure and not torch.cuda.is_available():
            raise ValueError("measure: got True, but torch finds no GPU here")
        if self.measure and devices.present().target != self.target:
            raise ValueError(
                f"target: got {self.target}, but the GPU here is {devices.present().target}; "
                "name that one, or predict for another with --no-measure"
            )

    @property
    def device(self) -> Device:
        """What times are predicted for."""
        return devices.present() if self.measure else devices.DEVICES[self.target]

    def sites(self) -> list[tuple[DType, Layout, Shape]]:
        """All that is asked for."""
        shapes = [Shape(*pair) for pair in self.shapes] or tanet50()
        return [(dtype, layout, shape) for dtype in self.dtypes for layout in self.layouts for shape in shapes]

    def operands(self, dtype: DType, layout: Layout, shape: Shape) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """X, V and Θ, empty; on the GPU where it is measured."""
        where = "cuda" if self.measure else "cpu"
        size = (self.clips * self.segments, shape.channels, shape.size, shape.size)
        x = torch.empty(size, dtype=DTYPES[dtype], memory_format=LAYOUTS[layout], device=where)
        v = torch.empty(self.clips, shape.channels, self.segments, dtype=x.dtype, device=where)
        return x, v, torch.empty(self.clips, shape.channels, self.kernel_size, dtype=x.dtype, device=where)


@dataclass(frozen=True)
class Row:
    """One launch; None where a figure has no meaning, as those of X's vectors where it loads no tensor of X's size.

    Attributes:
        triton: the release that compiled it.
        tams: of the network that have this shape.
        launch: its number within the operator.
        resident: warps of a multiprocessor at once.
        instructions: of a warp for each 16 bytes a lane that it loads of X or dY.
        shuffles, barriers, shared: of these kinds.
        passes: over the banks of shared memory.
        in_flight: KB that a multiprocessor has asked for when its warps wait.
        needed: KB that latency × bandwidth asks for.
        ceiling: TB/s if every slot for instructions were used.
        sectors: used of the four of each 128-byte line.
        issue: share of the slots for instructions.
        predicted: µs.
        floor: µs.
        launched: µs, predicted, with what a launch takes beside.
        measured: µs.
        varied: predicted µs with one assumption lower and higher.
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
    needed: float
    instructions: float | None = None
    shuffles: float | None = None
    barriers: float | None = None
    shared: float | None = None
    passes: float | None = None
    in_flight: float | None = None
    ceiling: float | None = None
    sectors: float | None = None
    issue: float | None = None
    predicted: float | None = None
    floor: float | None = None
    launched: float | None = None
    measured: float | None = None
    varied: dict[str, tuple[float, float]] | None = None
    mix: dict[str, float] | None = None

    def __str__(self) -> str:
        def share(part: float | None, whole: float | None) -> str:
            return "-" if part is None or whole is None else f"{part / whole:.0%}"

        cells = (
            self.layout, self.shape, self.operator, self.kernel, self.programs, self.warps, self.registers,
            self.resident, text(self.instructions, 0), text(self.shuffles, 1), text(self.barriers, 1),
            text(self.shared, 1), text(self.passes, 1), text(self.in_flight, 1), text(self.ceiling, 1),
            text(self.sectors, 1),
            share(self.issue, 1), text(self.predicted, 2), text(self.floor, 1), share(self.floor, self.predicted),
            text(self.launched, 2), text(self.measured, 2), share(self.launched, self.measured),
        )  # fmt: skip
        line = " ".join(f"{cell!s:>{width}}" for cell, (_, width) in zip(cells, HEADINGS, strict=True))
        return line + "".join(f"  {name} {low:.1f}–{high:.1f}" for name, (low, high) in (self.varied or {}).items())


HEADINGS = (
    ("layout", 13), ("shape", 10), ("operator", 24), ("kernel", 23), ("programs", 8), ("warps", 5), ("regs", 4),
    ("res.", 4), ("instr", 5), ("shfl", 5), ("bar", 5), ("lds", 5), ("pass", 5), ("KB", 5), ("TB/s", 5), ("sect", 4),
    ("issue", 5), ("µs", 7), ("floor", 6), ("share", 5), ("launched", 8), ("measured", 8), ("of it", 5),
)  # fmt: skip
COLUMNS = tuple(field.name for field in fields(Row))[:-2]


def run(options: Predict) -> list[Row]:
    """Prints what is assumed, a table, and sums over the network; writes a CSV if asked to.

    Raises:
        RuntimeError: TRITON_INTERPRET is set, or there is no C compiler.
        ValueError: a kernel's machine code has something that is not known here.
    """
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    print(header(options))
    parts = [(options, *site) for site in options.sites()]
    rows: list[Row] = []
    for found in in_parallel(rows_of, parts, 1 if options.measure else options.jobs):
        rows += found
        for row in found:
            print(row)
            if options.mix and row.mix:
                print("    " + ", ".join(f"{name} {count:.1f}" for name, count in row.mix.items()))
    print(*sums(rows), sep="\n")
    if options.out is not None:
        write(rows, options.out)
        print(f"wrote {options.out}")
    return rows


def header(options: Predict) -> str:
    """The assumptions, and the table's head."""
    device = options.device
    amd = device.target not in sass_targets()
    return "\n".join(
        (
            f"PREDICTED for {device.name} ({options.target}), compiled by triton {triton.__version__}, "
            f"{options.clips} clips of {options.segments} frames, {options.kernel_size} taps",
            f"{device.multiprocessors} multiprocessors at {device.gigahertz} GHz; DRAM {device.bandwidth / 1e12:.2f} "
            f"TB/s, {device.reached:.0%} of them reached, after {device.dram:.0f} cycles"
            + ("" if amd else f"; L2 after {device.l2:.0f}, L1 after {device.l1:.0f}; a launch {device.overhead} µs"),
            f"KB: asked for ahead, {device.needed_in_flight / 1000:.1f} suffice; instr, shfl, bar, lds, pass: "
            + ("for each 16 bytes a lane of X or dY, in the main loop; no times here" if amd else
               "for each 16 bytes a lane of X or dY; TB/s: if instructions alone were the limit"),
            " ".join(f"{name:>{width}}" for name, width in HEADINGS),
        )
    )  # fmt: skip


def sass_targets() -> set[str]:
    """Those whose machine code the model runs."""
    return {name for name in devices.DEVICES if name.startswith("sm_")}


def in_parallel(work: Callable[..., T], parts: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[T]:
    """What `work` gives of each part, in order, from so many processes; of one, from this."""
    if min(jobs, len(parts)) == 1:
        yield from (work(*part) for part in parts)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, *zip(*parts, strict=True))


def rows_of(options: Predict, dtype: DType, layout: Layout, shape: Shape) -> list[Row]:
    """All launches of one shape."""
    x, v, theta = options.operands(dtype, layout, shape)
    for tensor in (x, v, theta) if options.measure else ():  # elsewhere their memory is never touched
        tensor.fill_(1)
    rows = []
    for operator in options.operators or CALLS:
        for number, (launch, again) in enumerate(launches(options, partial(CALLS[operator], x, v, theta))):
            row = described(launch, options.device, x.nbytes, options.sensitivity)
            measured = None if again is None else microseconds(launch.kernel, again)
            rows.append(
                replace(
                    row, dtype=dtype, layout=layout, shape=str(shape), tams=shape.count, operator=operator,
                    launch=number, measured=measured,
                )
            )  # fmt: skip
    return rows


def launches(options: Predict, call: Callable[[], object]) -> Iterable[tuple[Launch, Callable[[], object] | None]]:
    """What a call launches; where it is measured, with what launches it again."""
    if options.measure:
        with offline.made() as done:
            call()
        return done
    with offline.launches(options.target) as compiled:
        call()
    return [(launch, None) for launch in compiled]


def microseconds(kernel: str, again: Callable[[], object]) -> float:
    """Of one launch, the median of some, each with an empty L2 cache, as the profiler of the driver times them.

    Raises:
        RuntimeError: it saw none.
    """
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(ROUNDS):
            timing.flush("cuda")
            again()
        torch.cuda.synchronize()
    times = [event.time_range.elapsed_us() for event in profiler.events() or () if event.name == kernel]
    if not times:
        raise RuntimeError(f"{kernel}: torch.profiler saw no launch of it; is CUPTI there? --no-measure predicts alone")
    return statistics.median(times)


def described(launch: Launch, device: Device, size: int, sensitivity: bool = False) -> Row:
    """What one launch shows; tensors of at least `size` bytes are of X's size."""
    resident = model.resident(launch, device) * launch.num_warps
    row = Row(
        device.target, triton.__version__, "", "", "", 1, "", 0, launch.kernel, launch.programs, launch.num_warps,
        resources(launch.compiled).registers, resident, device.needed_in_flight / 1000,
    )  # fmt: skip
    if device.target not in sass_targets():
        large = {name for name, nbytes in launch.tensors.items() if nbytes >= size}
        found = amdgcn.facts(launch.compiled.asm["amdgcn"], resident, list(launch.arguments), large)
        return row if found is None else with_facts(row, found)
    walked = walk.middle(launch, sass.read(launch.compiled.asm["cubin"]))
    large = {name for name, touched in walked.touched.items() if touched and launch.tensors[name] >= size}
    prediction = model.predict(walked, launch, device)
    varied = {}
    for name in VARIED if sensitivity else ():
        others = (devices.varied(device, name, factor) for factor in (1 - VARIATION, 1 + VARIATION))
        times = sorted(model.predict(walked, launch, other).microseconds for other in others)
        varied[name] = (times[0], times[1])
    floor = 1e6 * sum(launch.tensors[name] for name in large) / device.copied
    row = replace(
        row, issue=prediction.issue_share, predicted=prediction.microseconds, floor=floor or None, varied=varied,
        launched=prediction.microseconds + device.overhead,
    )  # fmt: skip
    walked_facts = facts(walked, launch, device, large)
    return row if walked_facts is None else with_facts(row, walked_facts)


def with_facts(row: Row, found: Facts) -> Row:
    """The row with these."""
    return replace(
        row, instructions=found.instructions, shuffles=found.shuffles, barriers=found.barriers, shared=found.shared,
        passes=found.passes, in_flight=found.in_flight / 1000,
        ceiling=None if found.ceiling is None else found.ceiling / 1e12,
        sectors=found.sectors, mix=found.mix,
    )  # fmt: skip


def sums(rows: list[Row]) -> Iterator[str]:
    """Over the network's TAMs, by operator and layout; what is varied, of kernels on tensors of X's size."""
    if not rows or rows[0].predicted is None:
        return
    table: dict[tuple[str, str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in rows:
        figures = {"floor": row.floor, "all": row.predicted, "launched": row.launched, "measured": row.measured}
        if row.floor is not None:
            figures["X's size"] = row.predicted
            figures |= {f"{name}{end}": pair[end] for name, pair in (row.varied or {}).items() for end in (0, 1)}
        for name in (row.operator, *([FOUR] if row.operator in TAM else [])):
            for key, value in figures.items():
                table[row.dtype, name, row.layout][key] += row.tams * (value or 0)
    tams = sum({row.shape: row.tams for row in rows}.values())
    yield f"\nsums over {tams} TAMs, predicted µs"
    yield " ".join(f"{name:>{width}}" for name, width in SUMS)
    for described, entry in sorted(table.items(), key=lambda item: item[0][1] == FOUR):
        cells = (*described, *(text(entry[name] or None, 1) for name, _ in SUMS[3:]))
        line = " ".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, SUMS, strict=True))
        spans = [(name, entry[f"{name}0"], entry[f"{name}1"]) for name in VARIED if f"{name}0" in entry]
        yield line + "".join(f"  {name} {low:.0f}–{high:.0f}" for name, low, high in spans)


FOUR = "the four of a TAM"
SUMS = (
    ("dtype", 9), ("operator", 24), ("layout", 13), ("floor", 8), ("X's size", 9), ("all", 8), ("launched", 9),
    ("measured", 9),
)  # fmt: skip


def text(value: float | None, digits: int) -> str:
    """A figure, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def write(rows: list[Row], path: Path) -> None:
    """One line a row, in the order of the table; figures rounded to what they are worth."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        mixes = sorted({name for row in rows for name in row.mix or ()})
        spans = [(name, end) for name in VARIED if any(row.varied for row in rows) for end in (0, 1)]
        writer.writerow([*COLUMNS, *(f"{name} {('lower', 'higher')[end]}" for name, end in spans), *mixes])
        for row in rows:
            cells = [*list(asdict(row).values())[:-2]]
            cells += [(row.varied or {})[name][end] for name, end in spans]
            cells += [(row.mix or {}).get(name) for name in mixes]
            writer.writerow([f"{cell:.4g}" if isinstance(cell, float) else cell for cell in cells])


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a file that `write` wrote, as text."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
