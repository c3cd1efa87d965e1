"""Whole networks: C2D, TANet by this library, and TANet with the same weights in the usual eager formulation.

Evaluation is a forward without gradients; training is forward, backward and a step of SGD. Dropout is off, so that
the two TANets can be required to agree before they are timed.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

from bench import agreement, counters, report
from bench.machine import Machine, describe
from bench.networks import CLASSES, Batch, Work, eager_twin, results
from bench.options import Layout, Options
from bench.shapes import DTYPES, LAYOUTS
from bench.timing import Time, graphed, interleaved
from bench.trace import Trace
from tam_triton.nets import C2D, c2d, tanet

Mode = Literal["evaluation", "training"]

# Cost of TANet-50 in units of C2D ResNet-50, 8 frames of 224², float32, on a CPU of two cores.
TARGETS: dict[Mode, float] = {"evaluation": 1.08, "training": 1.15}
PUBLISHED: dict[Mode, float] = {"evaluation": 1.46, "training": 1.53}  # measured of the public eager TANet


@dataclass(frozen=True)
class Model(Options):
    """What to measure of whole networks."""

    clips: int = 1
    """N, the clips of a call."""
    depth: Literal[18, 34, 50, 101, 152] = 50
    """Of the ResNet."""
    pixels: int = 224
    """Frames are squares of this side."""
    modes: tuple[Mode, ...] = ("evaluation", "training")
    """evaluation: a forward pass without gradients. training: forward and backward."""
    layouts: tuple[Layout, ...] = ("nchw", "channels_last")
    """Of the frames and of the network's weights."""
    compile: bool = False
    """Measure every network under torch.compile too; compiling takes minutes."""
    graphs: bool = False
    """On a GPU every call is a CUDA graph, so that what the host needs for its launches is not in the time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pixels < 32:
            raise ValueError(f"pixels: got {self.pixels}, expected at least 32, what a ResNet reduces to one pixel")
        for name in ("modes", "layouts"):
            if not getattr(self, name):
                raise ValueError(f"{name}: got none, expected at least one")
        if self.graphs and torch.device(self.device).type != "cuda":
            raise ValueError(f"graphs: got device {self.device!r}, expected a GPU: no other device has CUDA graphs")


@dataclass(frozen=True)
class Row:
    """One network in one mode.

    Attributes:
        time: of one batch.
        clips_per_second: at the median time.
        of_c2d: the time in units of C2D's, compiled or not as this network is.
        saved_bytes: held by autograd between forward and backward, parameters apart; None in evaluation.
        peak_bytes: the most allocated at once; None on the CPU.
        target: the `of_c2d` to reach; None where none was set for these options.
    """

    network: str
    mode: Mode
    layout: str
    time: Time
    clips_per_second: float
    of_c2d: float
    saved_bytes: int | None
    peak_bytes: int | None
    target: float | None


def run(options: Model) -> list[Row]:
    """Prints a table while it measures; writes the files that are asked for."""
    keeps_memory = options.prepare()
    machine = describe(options.device, options.threads, keeps_memory)
    trace = Trace(options.device)
    print(heading(machine, options))
    rows: list[Row] = []
    for layout in options.layouts:
        for mode in options.modes:
            measured = measure(mode, layout, options, trace)
            print(*map(line, measured), sep="\n", flush=True)
            rows += measured
    print(footnotes(rows))
    if options.out is not None:
        report.write_json(options.out, machine, options, rows=rows)
    if options.profile is not None:
        trace.write(options.profile)
    return rows


def measure(mode: Mode, layout: str, options: Model, trace: Trace) -> list[Row]:
    """All networks in one mode, timed in turn.

    Raises:
        DisagreementError: the two TANets do not compute the same; nothing was timed.
    """
    if options.compile:
        torch.compiler.reset()
    networks = build(mode, layout, options)
    batch = Batch.random(options, options.pixels, layout)
    require_agreement(networks["TANet"], networks["TANet, eager"], batch, options)
    work = {name: Work.of(network, batch, options) for name, network in networks.items()}
    if options.compile:
        work |= {f"{name}, compiled": Work.of(network, batch, options, True) for name, network in networks.items()}
    calls: dict[str, Callable[[], object]] = {
        name: one.evaluate if mode == "evaluation" else one.step for name, one in work.items()
    }
    timed = {name: graphed(call) for name, call in calls.items()} if options.graphs else calls
    times = interleaved(timed, options.device, options.rounds, options.seconds)
    if options.profile is not None:
        for name, call in calls.items():
            trace.add(f"{name}: {mode}, {layout}", call)
    lasting = [tensor for network in networks.values() for tensor in network.state_dict().values()]
    rows = []
    for name, call in calls.items():
        baseline = times["C2D, compiled" if name.endswith(", compiled") else "C2D"].median
        rows.append(
            Row(
                network=name,
                mode=mode,
                layout=layout,
                time=times[name],
                clips_per_second=1e3 * options.clips / times[name].median,
                of_c2d=times[name].median / baseline,
                saved_bytes=counters.saved_bytes(call, lasting) if mode == "training" else None,
                peak_bytes=counters.peak_bytes(call, options.device),
                target=TARGETS[mode] if name == "TANet" and has_target(options) else None,
            )
        )
    return rows


def build(mode: Mode, layout: str, options: Model) -> dict[str, C2D]:
    """The networks by name, in the mode; the two TANets share their weights."""
    torch.manual_seed(0)
    plain = c2d(options.depth, CLASSES, options.segments, dropout=0.0)
    ours = tanet(options.depth, CLASSES, options.segments, dropout=0.0)
    for network in (plain, ours):
        network.to(options.device).to(memory_format=LAYOUTS[layout]).train(mode == "training")
    return {"C2D": plain, "TANet": ours, "TANet, eager": eager_twin(ours)}


def require_agreement(ours: C2D, eager: C2D, batch: Batch, options: Options) -> None:
    """Raises DisagreementError unless both give the same logits, or the same loss and gradients in training."""
    exact = copy.deepcopy(eager).double()
    agreement.require(
        {"TANet": lambda: results(ours, batch, options.autocast)},
        plain=lambda: results(eager, batch, options.autocast),
        truth=lambda: results(exact, batch.double(), nullcontext),
        dtype=DTYPES[options.dtype],
        what="training" if ours.training else "evaluation",
    )


def has_target(options: Model) -> bool:
    """Whether the targets were set for these options."""
    usual = (options.depth, options.segments, options.pixels, options.dtype) == (50, 8, 224, "float32")
    return usual and torch.device(options.device).type == "cpu"


def heading(machine: Machine, options: Model) -> str:
    """What is measured, on what, and the names of the columns."""
    return (
        f"{machine}\nResNet-{options.depth}, {options.clips} clips × {options.segments} frames × {options.pixels}², "
        f"{options.dtype}\n\n{'network':>24} {'mode':>10} {'layout':>14} {'ms':>19} {'clips/s':>8} {'of C2D':>7} "
        f"{'saved MiB':>10} {'peak MiB':>9}  target"
    )


def line(row: Row) -> str:
    """One row of the table."""
    verdict = f"≤ {row.target}: {'met' if row.of_c2d <= row.target else 'missed'}" if row.target else ""
    return (
        f"{row.network:>24} {row.mode:>10} {row.layout:>14} {row.time!s:>19} {row.clips_per_second:>8.2f} "
        f"{row.of_c2d:>6.2f}× {report.mebibytes(row.saved_bytes):>10} {report.mebibytes(row.peak_bytes):>9}  {verdict}"
    ).rstrip()


def footnotes(rows: list[Row]) -> str:
    """What the columns mean."""
    lines = ["TANet, eager: the same weights; every TAM permutes, multiplies, runs a grouped convolution and permutes."]
    if any(row.target for row in rows):
        known = ", ".join(f"{ratio}× in {mode}" for mode, ratio in PUBLISHED.items())
        lines.append(f"The public eager TANet was measured at {known} on a CPU of two cores.")
    if all(row.peak_bytes is None for row in rows):
        lines.append(report.NO_PEAK)
    return "\n".join(lines)
