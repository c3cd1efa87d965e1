"""Sums of what several programs have each computed a part of, in a fixed order: the same bits every time."""

import triton
import triton.language as tl
from torch import Tensor

from tam_triton.kernels import launch, metadata

ELEMENTS = 32  # of a program
MOST_PARTS = 64  # of them that it reads at once


@triton.jit(launch_metadata=metadata.add_parts)
def add_parts_kernel(first, second, third, blocks, BLOCK: tl.constexpr, PARTS: tl.constexpr, ACC: tl.constexpr):
    """Of up to three results, the first of which has so many blocks."""
    if tl.program_id(0) < blocks:
        add(first, tl.program_id(0), BLOCK, PARTS, ACC)
    elif third is not None:
        block = tl.program_id(0) - blocks
        of_second = tl.cdiv(second[3], BLOCK)
        if block < of_second:
            add(second, block, BLOCK, PARTS, ACC)
        else:
            add(third, block - of_second, BLOCK, PARTS, ACC)
    elif second is not None:
        add(second, tl.program_id(0) - blocks, BLOCK, PARTS, ACC)


@triton.jit
def add(result, block, BLOCK: tl.constexpr, PARTS: tl.constexpr, ACC: tl.constexpr):
    parts_ptr, sum_ptr, parts, size = result
    i = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[None, :]
    total = tl.zeros([PARTS, BLOCK], ACC)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)[:, None]
        total += tl.load(parts_ptr + part.to(tl.int64) * size + i, mask=(i < size) & (part < parts), other=0.0)
    tl.store(sum_ptr + i, tl.sum(total, axis=0)[None, :].to(sum_ptr.dtype.element_ty), mask=i < size)


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
    blocks = [launch.ceil_div(size, ELEMENTS) for *_, size in left]
    at_once = min(MOST_PARTS, launch.next_power_of_2(max(count for _, _, count, _ in left)))
    add_parts_kernel[(sum(blocks),)](
        *left, *(None,) * (3 - len(left)), blocks[0],
        BLOCK=ELEMENTS, PARTS=at_once, ACC=launch.accumulator(left[0][1].dtype),
        num_warps=launch.warps(min(launch.ROW_THREADS, at_once * ELEMENTS)), **launch.OPTIONS,
    )  # fmt: skip
