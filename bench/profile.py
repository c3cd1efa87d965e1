"""One call of an operator, of a network or of a training step, taken apart: what ran, how long, and what it moved.

On a GPU the rows are kernels, timed by torch.profiler, with the bytes that Triton's kernels state of themselves
(`launch_metadata`), or else those of the operator that launched no other kernel. On the CPU they are operators below
autograd, views apart, timed one by one. Bytes are those of the tensors taken and made, GB/s over these; `of copy` is
their share of what copy_ reaches in this process, above 1 where a cache helps. The share is of the sum of all rows,
which stands beside the time of an undisturbed call: the rest is Python's, autograd's and the gaps'.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
import tyro

from bench import report
from bench.candidates import PASSES, Case, Operator
from bench.dispatched import LABEL, Operation, Operations, Stated, operations, stating
from bench.kineto import Kernel, allocations, kernels, ranges
from bench.machine import Machine, describe
from bench.networks import CLASSES, Batch, Work, check_network
from bench.options import Layout, Options, check_taps
from bench.shapes import DTYPES, LAYOUTS, parse
from bench.timing import Time, interleaved, summary
from bench.trace import Trace
from tam_triton.nets import create_model

NETWORK = ("evaluation", "step")
PHASE = "phase "
COPIED_BYTES = 2**28


@dataclass(frozen=True)
class Profile(Options):
    """What to take apart."""

    subject: tyro.conf.Positional[str] = "step"
    """An operator of `bench ops`, such as aggregate or tam_training; or evaluation, or step: a network's."""
    shape: str = "64x56x56"
    """CxHxW of an operator's feature maps."""
    kernel_size: int = 3
    """K, the taps of an operator; odd."""
    system: str = "tanet"
    """The network's, such as c2d or tsm."""
    backbone: str = "resnet50"
    """The network's."""
    pixels: int = 224
    """Its frames are squares of this side."""
    layout: Layout = "nchw"
    """Of feature maps, or of frames and weights."""
    rounds: int = 5
    """Calls that each row's time is the median of."""
    rows: int = 20
    """Printed of the table; the file has all."""
    memory: Path | None = None
    """A PNG: memory held over one call, by its parts, and at its peak."""
    proton: Path | None = None
    """On a GPU: a profile of one call by Triton's Proton, for proton-viewer; ends in .hatchet."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.subject not in (*PASSES, *NETWORK):
            raise ValueError(f"subject: got {self.subject!r}, expected one of {', '.join((*PASSES, *NETWORK))}")
        check_taps(self.kernel_size)
        parse(self.shape)
        if self.subject in NETWORK:
            check_network(self.system, self.backbone, self.segments)
        for name, suffix in (("memory", ".png"), ("proton", ".hatchet")):
            if (file := getattr(self, name)) is not None and file.suffix != suffix:
                raise ValueError(f"{name}: got {file}, expected a name that ends in {suffix}")
        if self.proton is not None and torch.device(self.device).type != "cuda":
            raise ValueError(f"proton: got device {self.device!r}, expected a GPU: Proton sees no other device")


@dataclass(frozen=True)
class Row:
    """All launches of one kernel, or all calls of one operator.

    Attributes:
        name: the kernel's, with what it says of itself, or the operator's.
        operator: that launched the kernel, if it is known.
        launches: of one call.
        time: of all of them together, in ms.
        share: of the sum of all rows.
        moved: bytes; None where they are not known.
        gigabytes_per_second, of_copy: of these bytes.
        teraflops: a second, by torch's formulas or the kernel's own; None where there is none.
    """

    name: str
    operator: str | None
    launches: int
    time: Time
    share: float
    moved: int | None
    gigabytes_per_second: float | None
    of_copy: float | None
    teraflops: float | None

    def __str__(self) -> str:
        def text(value: float | None, form: str) -> str:
            return report.MISSING if value is None else format(value, form)

        megabytes = None if self.moved is None else self.moved / 1e6
        name = self.name if self.operator is None else f"{self.name} ({self.operator})"
        return (
            f"{self.launches:>8} {self.time!s:>17} {self.share:>6.1%} {text(megabytes, '.1f'):>9} "
            f"{text(self.gigabytes_per_second, '.1f'):>8} {text(self.of_copy, '.0%'):>8} "
            f"{text(self.teraflops, '.3f'):>8}  {name}"
        )


@dataclass(frozen=True)
class Whole:
    """An undisturbed call, in ms."""

    name: str
    time: Time


HEADING = f"{'launches':>8} {'ms':>17} {'share':>6} {'MB':>9} {'GB/s':>8} {'of copy':>8} {'TFLOP/s':>8}"


@dataclass(frozen=True)
class Launch:
    """One kernel or operator that ran once."""

    name: str
    operator: str | None
    milliseconds: float
    moved: int | None
    flops: int | None


def run(options: Profile) -> list[Row]:
    """Prints the table; writes the files that are asked for."""
    keeps_memory = options.prepare(options.memory, options.proton)
    machine = describe(options.device, options.threads, keeps_memory)
    call = subject(options)
    whole = interleaved({"call": call}, options.device, options.rounds, options.seconds)["call"]
    traces = [traced(call, options) for _ in range(options.rounds if on_gpu(options) else 1)]
    seen = [launches for launches, _ in traces]
    if not on_gpu(options):
        seen = [[of_operation(one) for one in operations(call, options.device)] for _ in range(options.rounds)]
    rows = table(seen, copied(options))
    print(page(machine, options, rows, whole))
    events = traces[-1][1].document["traceEvents"]
    if options.out is not None:
        report.write_json(options.out, machine, options, rows=rows, whole=[Whole(options.subject, whole)])
    if options.profile is not None:
        traces[-1][1].write(options.profile)
    if options.memory is not None:
        from bench import plots  # matplotlib is no dependency of the library

        held = list(allocations(events, LABEL, on_gpu(options)))
        print(plots.draw_memory(held, ranges(events, PHASE), title(options), str(machine), options.memory))
    if options.proton is not None:
        write_proton(options)
    return rows


def on_gpu(options: Profile) -> bool:
    """Whether kernels can be seen."""
    return torch.device(options.device).type == "cuda"


def subject(options: Profile) -> Callable[[], object]:
    """One call of it."""
    torch.manual_seed(0)
    if options.subject in PASSES:
        x = parse(options.shape).features(
            options.clips, options.segments, DTYPES[options.dtype], options.layout, options.device
        )
        case = Case.random(cast(Operator, options.subject), x, options.segments, options.kernel_size, options.autocast)
        return case.run("ours")
    network = create_model(options.system, options.backbone, CLASSES, options.segments, dropout=0.0)
    network.to(options.device).to(memory_format=LAYOUTS[options.layout]).train(options.subject == "step")
    batch = Batch.random(options, options.pixels, options.layout)
    clips = batch.frames.unflatten(0, (options.clips, options.segments))
    work = Work.of(network, replace(batch, frames=clips), options)
    return work.evaluate if options.subject == "evaluation" else lambda: in_phases(work)


def in_phases(work: Work) -> None:
    """A step whose parts have names in a trace."""
    phases = iter(("forward", "backward", "optimizer"))
    open_range: list[torch.profiler.record_function] = []

    def mark() -> None:
        if open_range:
            open_range.pop().__exit__(None, None, None)
        if (name := next(phases, None)) is not None:
            open_range.append(torch.profiler.record_function(PHASE + name))
            open_range[0].__enter__()

    work.step(mark)


def traced(call: Callable[[], object], options: Profile) -> tuple[list[Launch], Trace]:
    """One call under torch.profiler; on a GPU its kernels."""
    trace = Trace(options.device, memory=options.memory is not None)
    with Operations(options.device) as mode, stating() as stated:
        trace.add(title(options), call)
    events = trace.document["traceEvents"]
    return of_kernels(kernels(events, LABEL), mode.called, stated), trace


def of_operation(operation: Operation) -> Launch:
    """An operator as a row's part."""
    assert operation.milliseconds is not None
    return Launch(operation.name, None, operation.milliseconds, operation.moved, operation.flops)


def of_kernels(ran: Sequence[Kernel], called: Sequence[Operation], stated: Sequence[Stated]) -> list[Launch]:
    """Kernels with what they state, in the order of their launches, or what their operator moved.

    The latter only where every call of the operator launched one kernel and no more: several share its bytes, nobody
    knows how.
    """
    waiting: dict[str, list[Stated]] = {}
    for one in stated:
        waiting.setdefault(one.kernel, []).append(one)
    calls: dict[str, list[Operation]] = {}
    for operation in called:
        calls.setdefault(operation.name, []).append(operation)
    counts: dict[str | None, int] = {}
    for kernel in ran:
        counts[kernel.within] = counts.get(kernel.within, 0) + 1
    alone: dict[str | None, list[Operation]] = {
        name: list(those) for name, those in calls.items() if len(those) == counts.get(name)
    }
    found = []
    for kernel in ran:
        operator, milliseconds = kernel.within, kernel.microseconds / 1e3
        if waiting.get(kernel.name):
            said = waiting[kernel.name].pop(0)
            name = f"{kernel.name} {said.detail}".strip()
            found.append(Launch(name, operator, milliseconds, said.moved, said.flops))
        else:
            caller = alone[operator].pop(0) if operator in alone else None
            moved, flops = (None, None) if caller is None else (caller.moved, caller.flops)
            found.append(Launch(kernel.name, operator, milliseconds, moved, flops))
    return found


def table(seen: Sequence[Sequence[Launch]], copy: float) -> list[Row]:
    """What took the longest first; times are medians over calls, `copy` is GB/s."""
    groups: dict[tuple[str, str | None], list[list[Launch]]] = {}
    for number, launches in enumerate(seen):
        for launch in launches:
            groups.setdefault((launch.name, launch.operator), [[] for _ in seen])[number].append(launch)
    rows = []
    for (name, operator), calls in groups.items():
        time = summary([sum(launch.milliseconds for launch in call) for call in calls])
        moved, flops = (total([getattr(launch, what) for launch in calls[-1]]) for what in ("moved", "flops"))
        speed = moved / time.median / 1e6 if moved and time.median else None
        rows.append(
            Row(
                name, operator, len(calls[-1]), time, 0.0, moved, speed, speed and speed / copy,
                flops / time.median / 1e9 if flops and time.median else None,
            )
        )  # fmt: skip
    everything = sum(row.time.median for row in rows)
    shares = [replace(row, share=row.time.median / everything if everything else 0.0) for row in rows]
    return sorted(shares, key=lambda row: -row.time.median)


def total(values: Sequence[int | None]) -> int | None:
    """The sum; None if any is."""
    known = [value for value in values if value is not None]
    return sum(known) if values and len(known) == len(values) else None


def copied(options: Profile) -> float:
    """GB/s of copy_, of maps larger than caches: what it reads and what it writes."""
    source = torch.zeros(COPIED_BYTES // 4, device=options.device)
    target = torch.zeros_like(source)
    time = interleaved({"copy": lambda: target.copy_(source)}, options.device, options.rounds)["copy"]
    return 2 * COPIED_BYTES / time.median / 1e6


def write_proton(options: Profile) -> None:
    """In a process of its own: CUPTI has one subscriber a process, and here torch.profiler is, once it was used."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(profiled_by_proton, options).result()


def profiled_by_proton(options: Profile) -> None:
    """One call, after one that compiles, by kernel, with bytes and operations that kernels state.

    Raises:
        RuntimeError: Proton wrote no file.
    """
    import triton.profiler as proton

    assert options.proton is not None
    options.prepare()
    call = subject(options)
    call()
    torch.cuda.synchronize()
    options.proton.unlink(missing_ok=True)
    proton.start(str(options.proton.with_suffix("")), hook="triton")
    call()
    torch.cuda.synchronize()
    proton.finalize()
    if not options.proton.exists():
        raise RuntimeError(f"proton: {options.proton} was not written; is TRITON_PROTON_DISABLE set?")


def title(options: Profile) -> str:
    """What is taken apart."""
    if options.subject in PASSES:
        return f"{options.subject} at {parse(options.shape)}, {options.layout}, {options.dtype}"
    return f"{options.system} {options.backbone}, {options.subject}, {options.layout}, {options.dtype}"


def page(machine: Machine, options: Profile, rows: Sequence[Row], whole: Time) -> str:
    """The table, and what stands around it."""
    size = f"{options.clips} clips × {options.segments} frames"
    everything = sum(row.time.median for row in rows)
    shown = rows[: options.rows]
    lines = [str(machine), f"{title(options)}, {size}", "", HEADING, *map(str, shown)]
    if rest := rows[options.rows :]:
        lines.append(f"{len(rest)} more, {sum(row.share for row in rest):.1%} together")
    kinds = "kernels" if on_gpu(options) else "operators"
    lines += [
        "",
        f"{sum(row.launches for row in rows)} launches of {len(rows)} {kinds}, {everything:.3f} ms together; "
        f"an undisturbed call: {whole} ms.",
    ]
    return "\n".join(lines)
