"""What a Chrome trace of torch.profiler says of a GPU's kernels and of memory."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

Event = dict[str, Any]


@dataclass(frozen=True)
class Range:
    """A named stretch of a thread's time, in µs."""

    name: str
    thread: tuple[Any, Any]
    start: float
    end: float


@dataclass(frozen=True)
class Kernel:
    """One launch on a GPU: µs, and the name of the innermost labelled range that it was launched in."""

    name: str
    microseconds: float
    within: str | None


@dataclass(frozen=True)
class Allocation:
    """Memory taken (or, below 0, given back) at a time in µs, and the innermost labelled range that it was in."""

    time: float
    nbytes: int
    within: str | None


def ranges(events: list[Event], *prefixes: str) -> list[Range]:
    """Those that a program labelled with names that begin so, in order of their start."""
    found = [
        Range(event["name"], (event["pid"], event["tid"]), event["ts"], event["ts"] + event["dur"])
        for event in events
        if event.get("ph") == "X" and event.get("cat") == "user_annotation" and event["name"].startswith(prefixes)
    ]
    return sorted(found, key=lambda one: one.start)


class Labels:
    """Ranges, which a trace has thousands of, to be asked thousands of times what was labelled at a time."""

    def __init__(self, found: list[Range]) -> None:
        self.found = found
        self.starts = [one.start for one in found]
        self.latest = list(accumulate((one.end for one in found), max))

    def innermost(self, time: float, thread: tuple[Any, Any] | None = None) -> str | None:
        """The name of the last that began, of those at that time, and of a thread if one is named."""
        number = bisect_right(self.starts, time)
        while number and self.latest[number - 1] >= time:
            number -= 1
            one = self.found[number]
            if one.end >= time and thread in (None, one.thread):
                return one.name
        return None


def kernels(events: list[Event], label: str) -> list[Kernel]:
    """In the order in which they ran; copies and fills of memory are among them."""
    labels = Labels(ranges(events, label))
    launched = {
        event["args"]["correlation"]: event
        for event in events
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in event.get("args", {})
    }
    ran = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    found = []
    for event in sorted(ran, key=lambda one: one["ts"]):
        launch = launched.get(event["args"].get("correlation"))
        within = None if launch is None else labels.innermost(launch["ts"], (launch["pid"], launch["tid"]))
        found.append(Kernel(event["name"], event["dur"], within and within.removeprefix(label)))
    return found


def allocations(events: list[Event], label: str, on_gpu: bool) -> Iterator[Allocation]:
    """What the allocator of the GPU, or of the CPU, gave and took back, in time."""
    labels = Labels(ranges(events, label))
    noted = [
        event for event in events if event.get("name") == "[memory]" and (event["args"]["Device Type"] != 0) == on_gpu
    ]
    for event in sorted(noted, key=lambda one: one["ts"]):
        within = labels.innermost(event["ts"])
        yield Allocation(event["ts"], event["args"]["Bytes"], within and within.removeprefix(label))
