"""Times that can be compared: the candidates of one comparison run in turn, round by round, on one device.

A timed call follows one of the same candidate that is not timed, so that it finds the allocator's heap as its own last
call left it: on the CPU a candidate that frees more than the heap keeps pays for fresh pages, and no other one does.

On a GPU a call lies between two events, after the L2 cache was flushed; on the CPU between two readings of the
monotonic clock. The figure is the median over rounds, the spread half the interquartile range. The order is reversed
every other round, so that no candidate always finds the caches as the same other one left them.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

L2_FLUSH_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Time:
    """Milliseconds, and how many rounds they come from."""

    median: float
    spread: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median:.3f}±{self.spread:.3f}"


@dataclass(frozen=True)
class Clock:
    """Marks in the stream of work of one device, and the milliseconds between two of them."""

    mark: Callable[[], Any]
    between: Callable[[Any, Any], float]


def clock(device: str) -> Clock:
    """Events on a GPU, the monotonic clock elsewhere."""
    if torch.device(device).type == "cuda":
        return Clock(functools.partial(cuda_mark, device), cuda_milliseconds)
    return Clock(time.perf_counter, lambda start, end: 1e3 * (end - start))


def cuda_mark(device: str) -> torch.cuda.Event:
    """An event in the device's current stream, also where another device is the current one."""
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def cuda_milliseconds(start: torch.cuda.Event, end: torch.cuda.Event) -> float:
    """Waits until both have passed."""
    end.synchronize()
    return float(start.elapsed_time(end))


def interleaved(
    candidates: Mapping[str, Callable[[], object]], device: str, rounds: int, seconds: float = 0.0
) -> dict[str, Time]:
    """The time of each candidate.

    Args:
        candidates: what to run, by name.
        device: where they run.
        rounds: at least so many.
        seconds: at least so long, over all candidates and rounds.
    """
    timer = clock(device)
    on_gpu = torch.device(device).type == "cuda"
    for run in candidates.values():
        run()
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    order = list(candidates)
    for _ in enough(rounds, seconds):
        for name in order:
            candidates[name]()
            if on_gpu:
                flush(device)
            start = timer.mark()
            candidates[name]()
            samples[name].append(timer.between(start, timer.mark()))
        order.reverse()
    return {name: summary(values) for name, values in samples.items()}


def enough(rounds: int, seconds: float) -> Iterator[int]:
    """Counts the rounds: at least so many, and at least so long."""
    began, done = time.perf_counter(), 0
    while done < rounds or time.perf_counter() - began < seconds:
        yield done
        done += 1


def summary(samples: list[float]) -> Time:
    """Median and half the interquartile range."""
    if len(samples) < 2:
        return Time(samples[0], 0.0, 1)
    lower, _, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return Time(statistics.median(samples), (upper - lower) / 2, len(samples))


@functools.cache
def flush_buffer(device: str) -> Tensor:
    """Larger than any L2 cache."""
    return torch.empty(L2_FLUSH_BYTES, dtype=torch.int8, device=device)


def flush(device: str) -> None:
    """Drives everything else out of the L2 cache; its own time also gives the host a head start on the launches."""
    flush_buffer(device).zero_()


def graphed(run: Callable[[], object]) -> Callable[[], None]:
    """`run` as a CUDA graph: replayed, it costs the device's time alone and not the host's launches."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
