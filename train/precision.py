"""How a network computes: in which numbers, from which bytes, and whether the same input gives the same bits."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from train.data.transforms import normalize

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


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
    """
    frames = normalize(clips.to(device, non_blocking=True))
    with autocast(device, precision):
        return network(frames if channels_last else frames.contiguous()).float()


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context of a forward pass in `precision`; fp32 leaves everything as it is."""
    dtype = DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


@contextmanager
def computing(device: torch.device, threads: int | None = None, deterministic: bool | None = None) -> Iterator[None]:
    """Let torch compute on `device` with so many threads, and by algorithms that give the same bits each time or not.

    By default they do on the CPU alone, since GPUs lose speed.
    """
    if deterministic is None:
        deterministic = device.type == "cpu"
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
        with reproducible(threads):
            yield
        return
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
    torch.use_deterministic_algorithms(True)
    # Nothing here reads uninitialised memory, and filling it all the same takes a sixth of the time.
    deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        deterministic.fill_uninitialized_memory = before[2]
