"""How a network computes: in which numbers, from which bytes, and whether the same input gives the same bits."""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tam_triton.clips import normalize
from train.allocator import keep_freed_memory

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TakesBytes(nn.Module):
    """A network that has normalization, and its precision, in itself: called with clips uint8 (N, T, S, S, 3)."""


def logits_of(
    network: Callable[[Tensor], Tensor],
    clips: Tensor,
    device: torch.device,
    precision: Precision = "fp32",
    channels_last: bool = True,
) -> Tensor:
    """float32 logits (N, classes) of uint8 clips (N, T, H, W, 3), by a network on `device`.

    Args:
        precision: other than fp32 computes under autocast.
        channels_last: leave the frames as they were decoded; otherwise they become contiguous.

    Neither says anything to a network that `TakesBytes`.
    """
    if isinstance(network, TakesBytes):
        return network(clips.to(device, non_blocking=True)).float()
    frames = normalize(clips.to(device, non_blocking=True))
    with autocast(device, precision):
        return network(frames if channels_last else frames.contiguous()).float()


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """What `precision` computes under: nothing for fp32."""
    dtype = DTYPES.get(precision)
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


@contextmanager
def computing(device: torch.device, threads: int | None = None, deterministic: bool | None = None) -> Iterator[None]:
    """Let torch compute on `device` with so many threads, and by algorithms that give the same bits each time or not.

    By default they do on the CPU alone, since GPUs lose speed. There the process keeps freed memory from then on.
    """
    if device.type == "cpu":
        keep_freed_memory()
    if deterministic is None:
        deterministic = device.type == "cpu"
    with reproducible() if deterministic else nullcontext():
        if threads is not None:
            torch.set_num_threads(threads)
        yield


@contextmanager
def reproducible(threads: int | None = None) -> Iterator[None]:
    """Let torch take only algorithms that give the same bits each time, with a fixed number of threads, for a while."""
    deterministic: Any = torch.utils.deterministic  # a module with a property, which type checkers do not see
    before = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        deterministic.fill_uninitialized_memory,
    )
    if threads is not None:
        torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
    torch.use_deterministic_algorithms(True)
    # Nothing here reads uninitialized memory, and filling it all the same takes a sixth of the time.
    deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        deterministic.fill_uninitialized_memory = before[2]


def seed_generators(device: torch.device, seed: int, step: int = 0, rank: int = 0) -> None:
    """Seed Python's, NumPy's and torch's generators, those of `device` too, for what a process draws in a step.

    Takes some 12 µs on the CPU. Steps count from 1; before the first, at 0, all processes draw the same.
    """
    number = int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0])
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.default_generator.manual_seed(number)  # torch.manual_seed looks for every kind of device, for 70 µs
    if device.type == "cuda":
        torch.cuda.manual_seed(number)
