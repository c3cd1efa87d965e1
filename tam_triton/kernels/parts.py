"""Sums of what several programs have each computed a part of, in a fixed order: the same bits every time."""

import triton
import triton.language as tl
from torch import Tensor

from tam_triton.kernels import launch, metadata


@triton.jit(launch_metadata=metadata.add_parts)
def add_parts_kernel(parts_ptr, sum_ptr, parts, size: tl.int64, BLOCK: tl.constexpr, ACC: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], ACC)
    for part in range(parts):
        total += tl.load(parts_ptr + part * size + i, mask=i < size, other=0.0)
    tl.store(sum_ptr + i, total.to(sum_ptr.dtype.element_ty), mask=i < size)


def room(result: Tensor, parts: int) -> Tensor:
    """Where programs write: `result` itself if there is one part, else `(parts, *result.shape)` in the sums' dtype."""
    if parts == 1:
        return result
    return result.new_empty((parts, *result.shape), dtype=launch.partial_dtype(result.dtype))


def add_parts(parts: Tensor, result: Tensor) -> None:
    """result = Σ parts `(parts, *result.shape)`; nothing is left to do where `room` gave `result` itself."""
    if parts is result:
        return
    add_parts_kernel[(launch.ceil_div(result.numel(), launch.ROW_THREADS),)](
        parts, result, parts.shape[0], result.numel(), BLOCK=launch.ROW_THREADS, ACC=launch.accumulator(result.dtype),
        num_warps=launch.warps(launch.ROW_THREADS), **launch.OPTIONS,
    )  # fmt: skip
