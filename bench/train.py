"""A training step of TANet taken apart: forward, backward, optimizer; how much of it is TAM.

Two series of steps: one undisturbed, for the times of the parts; one with hooks at the entry and exit of every TAM, for
TAM's share. On a GPU the hooks part TAM from the BatchNorm and ReLU that its kernels else take with them, so that its
times and its share are those of a TAM by itself, in a step that takes longer than the undisturbed one. The step is that
of `model`: SGD at a learning rate of 0, so that every step is the same work.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from bench import counters, report
from bench.machine import Machine, describe
from bench.networks import CLASSES, Batch, Work, eager_twin
from bench.options import Layout, Options
from bench.shapes import LAYOUTS
from bench.timing import Clock, Time, clock, enough, summary
from bench.trace import Trace
from tam_triton import TAM
from tam_triton.nets import C2D, tanet

WARM_UP = 2  # steps: the second finds the optimizer's state and the allocator's blocks in place
BY_ITSELF = "TAM by itself: parted by hooks from the BatchNorm and ReLU that its kernels take with them in the step."


@dataclass(frozen=True)
class Train(Options):
    """What to measure of a training step."""

    depth: Literal[18, 34, 50, 101, 152] = 50
    """Of the ResNet."""
    pixels: int = 224
    """Frames are squares of this side."""
    layouts: tuple[Layout, ...] = ("nchw", "channels_last")
    """Of the frames and of the network's weights."""
    eager: bool = False
    """Every TAM in the usual eager formulation instead of this library's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pixels < 32:
            raise ValueError(f"pixels: got {self.pixels}, expected at least 32, what a ResNet reduces to one pixel")
        if not self.layouts:
            raise ValueError("layouts: got none, expected at least one")


@dataclass(frozen=True)
class Step:
    """The parts of a step in one layout.

    Attributes:
        forward, backward, optimizer, total: without hooks.
        tam_forward, tam_backward: between entry and exit, summed over all TAMs of a step.
        tam_share: of forward and backward, both taken with the hooks.
        clips_per_second: at the median of `total`.
        saved_bytes: held by autograd between forward and backward, parameters apart.
        peak_bytes: the most allocated at once; None on the CPU.
    """

    layout: str
    forward: Time
    backward: Time
    optimizer: Time
    total: Time
    tam_forward: Time
    tam_backward: Time
    tam_share: float
    clips_per_second: float
    saved_bytes: int
    peak_bytes: int | None


def run(options: Train) -> list[Step]:
    """Prints each layout's step; writes the files that are asked for."""
    keeps_memory = options.prepare()
    machine = describe(options.device, options.threads, keeps_memory)
    trace = Trace(options.device)
    print(heading(machine, options))
    steps = []
    for layout in options.layouts:
        steps.append(measure(layout, options, trace))
        print(line(steps[-1]), flush=True)
    print(*footnotes(options), sep="\n")
    if options.out is not None:
        report.write_json(options.out, machine, options, steps=steps)
    if options.profile is not None:
        trace.write(options.profile)
    return steps


def measure(layout: str, options: Train, trace: Trace) -> Step:
    """One network in one layout."""
    torch.manual_seed(0)
    network: C2D = tanet(options.depth, CLASSES, options.segments)
    network.to(options.device).to(memory_format=LAYOUTS[layout]).train()
    if options.eager:
        network = eager_twin(network)
    work = Work.of(network, Batch.random(options, options.pixels, layout), options)
    timer = clock(options.device)
    for _ in range(WARM_UP):
        work.step()
    parts = [phases(work, timer) for _ in enough(options.rounds, options.seconds)]
    if options.profile is not None:
        trace.add(f"step, {layout}", work.step)
    saved = counters.saved_bytes(work.step, network.state_dict().values())
    peak = counters.peak_bytes(work.step, options.device)

    stopwatch = Stopwatch(network, timer)
    inside: list[tuple[float, float]] = []
    around: list[float] = []
    for _ in enough(options.rounds, options.seconds):
        forward, backward, _ = phases(work, timer)
        around.append(forward + backward)
        inside.append(stopwatch.take())
    stopwatch.remove()
    tam_forward, tam_backward = (summary(list(column)) for column in zip(*inside, strict=True))
    total = summary([sum(part) for part in parts])
    forward_time, backward_time, optimizer_time = (summary(list(column)) for column in zip(*parts, strict=True))
    return Step(
        layout=layout,
        forward=forward_time,
        backward=backward_time,
        optimizer=optimizer_time,
        total=total,
        tam_forward=tam_forward,
        tam_backward=tam_backward,
        tam_share=(tam_forward.median + tam_backward.median) / summary(around).median,
        clips_per_second=1e3 * options.clips / total.median,
        saved_bytes=saved,
        peak_bytes=peak,
    )


def phases(work: Work, timer: Clock) -> tuple[float, float, float]:
    """Milliseconds of forward, backward and optimizer in one step."""
    marks: list[Any] = []
    work.step(lambda: marks.append(timer.mark()))
    start, loss, gradients, end = marks
    return timer.between(start, loss), timer.between(loss, gradients), timer.between(gradients, end)


class Stopwatch:
    """Times between entry and exit of every TAM, forward and backward.

    The backward of a TAM runs without interruption: autograd takes the nodes that were made last first.
    """

    def __init__(self, network: nn.Module, timer: Clock) -> None:
        self.timer = timer
        self.forward: list[Any] = []
        self.backward: list[Any] = []
        modules = [module for module in network.modules() if isinstance(module, TAM)]
        self.handles = [handle for module in modules for handle in self.attach(module)]

    def attach(self, module: nn.Module) -> list[Any]:
        """Four hooks, each of which leaves a mark and changes nothing."""

        def marker(marks: list[Any]) -> Callable[..., None]:
            return lambda *_: marks.append(self.timer.mark())

        return [
            module.register_forward_pre_hook(marker(self.forward)),
            module.register_forward_hook(marker(self.forward)),
            module.register_full_backward_pre_hook(marker(self.backward)),
            module.register_full_backward_hook(marker(self.backward)),
        ]

    def take(self) -> tuple[float, float]:
        """Milliseconds in TAM since the last call, forward and backward."""
        spent = self.sum(self.forward), self.sum(self.backward)
        self.forward.clear()
        self.backward.clear()
        return spent

    def sum(self, marks: list[Any]) -> float:
        """Over pairs of entry and exit."""
        pairs = zip(marks[::2], marks[1::2], strict=True)
        return sum(self.timer.between(entry, leave) for entry, leave in pairs)

    def remove(self) -> None:
        """Takes the hooks off."""
        for handle in self.handles:
            handle.remove()


def heading(machine: Machine, options: Train) -> str:
    """What is measured, on what, and the names of the columns."""
    names = ("forward", "backward", "optimizer", "step", "TAM forward", "TAM backward")
    kind = "eager TAM" if options.eager else "this library's TAM"
    return (
        f"{machine}\nTANet-{options.depth} with {kind}, {options.clips} clips × {options.segments} frames × "
        f"{options.pixels}², {options.dtype}; ms\n\n{'layout':>14}{''.join(f'{name:>19}' for name in names)} "
        f"{'TAM share':>10} {'clips/s':>8} {'saved MiB':>10} {'peak MiB':>9}"
    )


def footnotes(options: Train) -> list[str]:
    """What the columns mean there."""
    if torch.device(options.device).type == "cpu":
        return [report.NO_PEAK]
    return [] if options.eager else [BY_ITSELF]


def line(step: Step) -> str:
    """One row of the table."""
    times = (step.forward, step.backward, step.optimizer, step.total, step.tam_forward, step.tam_backward)
    return (
        f"{step.layout:>14}{''.join(f'{time!s:>19}' for time in times)} {step.tam_share:>10.1%} "
        f"{step.clips_per_second:>8.2f} {report.mebibytes(step.saved_bytes):>10} "
        f"{report.mebibytes(step.peak_bytes):>9}"
    )
