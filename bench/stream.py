"""What a new frame of a stream costs, by how many frames are computed again, beside the whole window.

Networks are in evaluation, with weights as they are drawn; the streams check themselves against the window first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench import report
from bench.machine import describe
from bench.networks import CLASSES, check_network
from bench.options import Layout, Options
from bench.shapes import LAYOUTS
from bench.timing import Time, interleaved
from tam_triton.nets import create_model
from tam_triton.nets.video import VideoNetwork
from tam_triton.streaming import NetworkStream


@dataclass(frozen=True)
class Stream(Options):
    """What to measure."""

    clips: int = 1
    """Streams side by side."""
    systems: tuple[str, ...] = ("c2d", "tsm", "tanet")
    """As `list_models` has them, but for SlowFast."""
    backbone: str = "resnet50"
    """Below each."""
    stages: tuple[str, ...] = ()
    """Where TAM is, of systems that can be told: res2 … res5; none: everywhere."""
    recompute: tuple[int, ...] = (1, 2, 4, 8)
    """Frames of a window that go through the layers behind the first temporal module at each new one."""
    pixels: int = 224
    """Frames are squares of this side."""
    layout: Layout = "channels_last"
    """Of the frames and of the network's weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.profile is not None:
            raise ValueError("profile: got a file, expected none: `bench profile` has traces")
        if not self.systems or not self.recompute:
            raise ValueError("systems, recompute: got none, expected at least one of each")
        if bad := [r for r in self.recompute if not 1 <= r <= self.segments]:
            raise ValueError(f"recompute: got {bad[0]}, expected 1 to {self.segments}, the frames of a window")
        for system in self.systems:
            network = check_network(system, self.backbone, self.segments, **self.told)
            if not isinstance(network, VideoNetwork | None):
                raise ValueError(f"systems: got {system!r}, whose first layers span frames, expected one that streams")

    @property
    def told(self) -> dict[str, Any]:
        """Of `create_model`'s options those that are named."""
        return {"stages": self.stages} if self.stages else {}


@dataclass(frozen=True)
class Row:
    """One system at one `recompute`; None: the whole window.

    Attributes:
        gmacs: of one new frame.
        of_window: the share of the window's.
        time: of one new frame.
        time_of_window: the share of the window's.
    """

    system: str
    recompute: int | None
    gmacs: float
    of_window: float
    time: Time
    time_of_window: float

    def __str__(self) -> str:
        name = "window" if self.recompute is None else str(self.recompute)
        return (
            f"{self.system:>16} {name:>10} {self.gmacs:>9.3f} {self.of_window:>10.1%} {self.time!s:>19} "
            f"{self.time_of_window:>10.2f}×"
        )


def run(options: Stream) -> list[Row]:
    """Prints a table while it measures; writes a JSON file if asked to."""
    machine = describe(options.device, options.threads, options.prepare())
    print(machine)
    print(f"{options.backbone}, {options.segments} frames × {options.pixels}², {options.dtype}, {options.layout}\n")
    print(f"{'system':>16} {'recompute':>10} {'GMACs':>9} {'of window':>10} {'ms':>19} {'of window':>11}")
    rows: list[Row] = []
    for system in options.systems:
        measured = measure(system, options)
        print(*measured, sep="\n", flush=True)
        rows += measured
    if options.out is not None:
        report.write_json(options.out, machine, options, rows=rows)
    return rows


def measure(system: str, options: Stream) -> list[Row]:
    """The window, and a new frame at each `recompute`, timed in turn."""
    torch.manual_seed(0)
    network = create_model(
        system, options.backbone, num_classes=CLASSES, num_segments=options.segments, weights=None, **options.told
    )
    network = network.eval().to(options.device).to(memory_format=LAYOUTS[options.layout])
    assert isinstance(network, VideoNetwork)
    frames = torch.randn(options.segments, options.clips, 3, options.pixels, options.pixels, device=options.device)
    clip = frames.transpose(0, 1).flatten(0, 1).contiguous(memory_format=LAYOUTS[options.layout])
    frame = frames[0].contiguous(memory_format=LAYOUTS[options.layout])

    def window() -> Tensor:
        with torch.no_grad(), options.autocast():
            return network(clip)

    calls: dict[int | None, Callable[[], object]] = {None: window}
    for recompute in options.recompute:
        stream = NetworkStream(network, recompute)
        with options.autocast():
            for one in frames:
                stream(one.contiguous(memory_format=LAYOUTS[options.layout]))
        calls[recompute] = next_frame(stream, frame, options)
    gmacs = {recompute: counted(call) for recompute, call in calls.items()}
    named = {str(recompute): call for recompute, call in calls.items()}
    times = interleaved(named, options.device, options.rounds, options.seconds)
    whole = times["None"].median
    return [
        Row(
            system, r, gmacs[r], gmacs[r] / gmacs[None], times[str(r)], times[str(r)].median / whole
        )
        for r in calls
    ]  # fmt: skip


def next_frame(stream: NetworkStream, frame: Tensor, options: Stream) -> Callable[[], object]:
    """A call that gives the stream one more frame."""

    def call() -> object:
        with options.autocast():
            return stream(frame)

    return call


def counted(call: Callable[[], object]) -> float:
    """GMACs of a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 2e9
