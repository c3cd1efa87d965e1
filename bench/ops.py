"""Operators of TAM: this library, the eager formulation and torch.compile of either, beside the floor of a copy.

Candidates are checked against one another, then timed in turn. A sum counts each shape as often as TANet-50 has it.
Compiling takes minutes the first time; `--candidates ours eager` leaves it out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from bench import agreement, counters, report
from bench.candidates import PASSES, Candidate, Case, Operator, is_compiled
from bench.machine import describe
from bench.options import Layout, Options, check_taps
from bench.rows import Row, sums
from bench.shapes import DTYPES, Shape, parse, tanet50
from bench.timing import Time, graphed, interleaved
from bench.trace import Trace

NOTHING_COUNTED: dict[str, int | None] = {"saved_bytes": None, "peak_bytes": None, "launches": None}


@dataclass(frozen=True)
class Ops(Options):
    """What to measure of the operators."""

    layouts: tuple[Layout, ...] = ("nchw", "channels_last")
    """Of the feature maps."""
    operators: tuple[Operator, ...] = tuple(PASSES)
    """reversed, filter and shift are the other forms of the aggregation."""
    candidates: tuple[Candidate, ...] = ("ours", "compiled_plain", "eager", "compiled_eager")
    """ours: this library. compiled_plain: its plain torch under torch.compile. eager: the usual formulation, and that
    under torch.compile."""
    kernel_size: int = 3
    """K, the taps; odd."""
    pixels: int = 224
    """Frames of this size through TANet-50 give the shapes, unless `shapes` names others."""
    shapes: tuple[str, ...] = ()
    """CxHxW, such as 64x56x56."""
    plot: Path | None = None
    """A PNG: every time as a multiple of the floor, which is what a copy takes for the bytes that cannot be avoided."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("layouts", "operators", "candidates"):
            if not getattr(self, name):
                raise ValueError(f"{name}: got none, expected at least one")
        check_taps(self.kernel_size)
        if self.pixels < 1:
            raise ValueError(f"pixels: got {self.pixels}, expected at least 1")
        if self.plot is not None and self.plot.suffix != ".png":
            raise ValueError(f"plot: got {self.plot}, expected a name that ends in .png")
        self.sites()

    def sites(self) -> list[Shape]:
        """The shapes asked for."""
        return [parse(text) for text in self.shapes] or tanet50(self.pixels)


def run(options: Ops) -> list[Row]:
    """Prints a table while it measures, then the sums; writes the files that are asked for."""
    keeps_memory = options.prepare(options.plot)
    machine = describe(options.device, options.threads, keeps_memory)
    trace = Trace(options.device)
    print(f"{machine}\n{options.clips} clips × {options.segments} frames, {options.dtype}, K = {options.kernel_size}\n")
    print(report.ops_header(options.candidates))
    rows: list[Row] = []
    for layout in options.layouts:
        for shape in options.sites():
            for operator in options.operators:
                measured = measure(operator, shape, layout, options, trace)
                print(report.ops_line(measured), flush=True)
                rows += measured
    totals = sums(rows)
    print(report.ops_sums(totals, options.device))
    if options.out is not None:
        report.write_json(options.out, machine, options, rows=rows, sums=totals)
    if options.profile is not None:
        trace.write(options.profile)
    if options.plot is not None:
        from bench import plots  # matplotlib is no dependency of the library

        plots.draw(totals, str(machine), options.plot)
    return rows


def measure(operator: Operator, shape: Shape, layout: str, options: Ops, trace: Trace) -> list[Row]:
    """All candidates of one operator at one shape, and the floor.

    Raises:
        DisagreementError: the candidates do not compute the same; nothing was timed.
    """
    if any(map(is_compiled, options.candidates)):
        torch.compiler.reset()  # what was compiled for other shapes
    x = shape.features(options.clips, options.segments, DTYPES[options.dtype], layout, options.device)
    case = Case.random(operator, x, options.segments, options.kernel_size, options.autocast)
    runs: dict[str, agreement.Run] = {candidate: case.run(candidate) for candidate in options.candidates}
    what = f"{operator} at {shape}, {layout}"
    agreement.require(runs, case.run("eager"), case.double().run("eager"), x.dtype, what)

    target = torch.empty_like(x)
    timed: dict[str, Callable[[], object]] = {**runs, "copy": lambda: target.copy_(x)}
    if x.is_cuda:  # without a graph a GPU waits for launches: measured on an H200, up to 30 times the kernels' time
        timed = {name: graphed(call) for name, call in timed.items()}
    times = interleaved(timed, options.device, options.rounds, options.seconds)
    if options.profile is not None:
        for candidate, call in runs.items():
            trace.add(f"{candidate}: {what}", call)

    copy, passes = times.pop("copy"), PASSES[operator]
    times["floor"] = Time(copy.median * passes / 2, copy.spread * passes / 2, copy.rounds)
    traffic = passes * x.nbytes
    return [
        Row(
            shape=str(shape),
            count=shape.count,
            layout=layout,
            operator=operator,
            candidate=name,
            time=time,
            traffic_bytes=traffic,
            gigabytes_per_second=traffic / time.median / 1e6,
            of_copy=times["floor"].median / time.median,
            **(count(case, name, runs[name], options.device) if name in runs else NOTHING_COUNTED),
        )
        for name, time in times.items()
    ]


def count(case: Case, candidate: str, call: Callable[[], object], device: str) -> dict[str, int | None]:
    """What one call costs beside time, by the names of `Row`."""
    training = case.operator.endswith("_training")
    lasting = (*case.module.parameters(), *case.module.buffers())
    countable = torch.device(device).type == "cuda" or not is_compiled(candidate)
    return {
        "saved_bytes": counters.saved_bytes(call, lasting) if training else None,
        "peak_bytes": counters.peak_bytes(call, device),
        "launches": counters.launches(call, device) if countable else None,
    }
