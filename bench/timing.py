"""Times that can be compared: all candidates of one row run in turn, round by round, on one device.

On a GPU each call is timed with events after the L2 cache was flushed; on the CPU with the monotonic clock, with the
number of threads stated in the result. The figure is the median over rounds, the spread half the interquartile range.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

L2_FLUSH_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Time:
    """Milliseconds."""

    median: float
    spread: float

    def __str__(self) -> str:
        return f"{self.median:.3f}±{self.spread:.3f}"


def interleaved(candidates: Mapping[str, Callable[[], object]], device: str, rounds: int) -> dict[str, Time]:
    """The time of each candidate, measured in turn."""
    clock = cuda_milliseconds if torch.device(device).type == "cuda" else cpu_milliseconds
    for run in candidates.values():
        run()
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            samples[name].append(clock(run))
    return {name: summary(values) for name, values in samples.items()}


def summary(samples: list[float]) -> Time:
    """Median and half the interquartile range."""
    if len(samples) < 2:
        return Time(samples[0], 0.0)
    lower, _, upper = statistics.quantiles(samples, n=4)
    return Time(statistics.median(samples), (upper - lower) / 2)


def cpu_milliseconds(run: Callable[[], object]) -> float:
    """One call by the monotonic clock."""
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def cuda_milliseconds(run: Callable[[], object]) -> float:
    """One call between two events, with a cold L2."""
    torch.empty(L2_FLUSH_BYTES, dtype=torch.int8, device="cuda").zero_()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))
