"""The numbers that a network computes in, and whether the same input gives the same bits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


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
