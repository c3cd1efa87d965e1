"""Sums of what several programs have each computed a part of, in a fixed order: the same bits every time."""

import triton
import triton.language as tl
from torch import Tensor

from tam_triton.kernels import launch, metadata

THREADS = 32
LOADS = 16  # of a thread, asked for before the first is used


@triton.jit(launch_metadata=metadata.add_parts)
def add_parts_kernel(first, second, third, blocks, BLOCK: tl.constexpr, LOADS: tl.constexpr, ACC: tl.constexpr):
    """Of up to three results, the first of which has so many blocks."""
    if tl.program_id(0) < blocks:
        add(first, tl.program_id(0), BLOCK, LOADS, ACC)
    elif third is not None:
        block = tl.program_id(0) - blocks
        of_second = tl.cdiv(second[3], BLOCK)
        if block < of_second:
            add(second, block, BLOCK, LOADS, ACC)
        else:
            add(third, block - of_second, BLOCK, LOADS, ACC)
    elif second is not None:
        add(second, tl.program_id(0) - blocks, BLOCK, LOADS, ACC)


@triton.jit
def add(result, block, BLOCK: tl.constexpr, LOADS: tl.constexpr, ACC: tl.constexpr):
    parts_ptr, sum_ptr, parts, size = result
    i = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], ACC)
    for first in range(0, parts, LOADS):
        loaded = ()
        for j in tl.static_range(LOADS):
            inside = (i < size) & (first + j < parts)
            loaded = loaded + (tl.load(parts_ptr + (first + j) * tl.cast(size, tl.int64) + i, mask=inside, other=0.0),)
        for j in tl.static_range(LOADS):
            total += loaded[j]
    tl.store(sum_ptr + i, total.to(sum_ptr.dtype.element_ty), mask=i < size)


def room(result: Tensor, parts: int) -> Tensor:
    """Where programs write: `result` itself if there is one part, else `(parts, *result.shape)` in the sums' dtype."""
    if parts == 1:
        return result
    return result.new_empty((parts, *result.shape), dtype=launch.partial_dtype(result.dtype))


def add_parts(*pairs: tuple[Tensor, Tensor]) -> None:
    """result = Σ parts `(parts, *result.shape)`, for one pair of these, two or three, in one launch.

    Nothing is left to do where `room` gave `result` itself.
    """
    left = [(parts, result, parts.shape[0], result.numel()) for parts, result in pairs if parts is not result]
    if not left:
        return
    blocks = [launch.ceil_div(size, THREADS) for *_, size in left]
    add_parts_kernel[(sum(blocks),)](
        *left, *(None,) * (3 - len(left)), blocks[0],
        BLOCK=THREADS, LOADS=LOADS, ACC=launch.accumulator(left[0][1].dtype),
        num_warps=launch.warps(THREADS), **launch.OPTIONS,
    )  # fmt: skip
