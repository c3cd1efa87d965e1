"""Spatial squeeze (equation 1): X̂[n,c,t] = mean over pixels of X[n,t,c,·], one pass over X.

Where channels and frames alone make too few programs to fill a device, the pixels are cut into parts whose sums are
added in a fixed order.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from tam_triton import layout
from tam_triton.kernels import launch, metadata
from tam_triton.kernels.frames import folded_norm, load_tile, relu
from tam_triton.kernels.parts import add_parts, room


@triton.jit(launch_metadata=metadata.squeeze)
def squeeze_kernel(
    x_ptr, squeezed_ptr, norm,
    C, P, T, tiles, splits, steps, eps: tl.float64, frame: tl.int64, part: tl.int64,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, RUN: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(0) % splits
    tile = tl.program_id(0) // splits
    c0 = (tile % tiles).to(INDEX) * BLOCK_C
    b = (tile // tiles).to(tl.int64)
    total = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    c = c0 + tl.arange(0, BLOCK_C)
    if norm is not None:
        present = (c < C)[:, None]
        scale, shift = folded_norm(norm, eps, c[:, None], present, ACC)
    for step in range(steps):
        p0 = (split * steps + step).to(INDEX) * BLOCK_P
        x = load_tile(x_ptr + b * frame, c0, p0, C, P, True, CHANNELS_LAST, BLOCK_C, BLOCK_P, RUN, INDEX).to(ACC)
        if norm is not None:
            x = tl.where(p0 + tl.arange(0, BLOCK_P)[None, :] < P, relu(x * scale + shift), 0.0)
        total += x
    mean = (tl.sum(total, axis=1) / P).to(squeezed_ptr.dtype.element_ty)
    tl.store(squeezed_ptr + split * part + ((b // T) * C + c) * T + b % T, mean, mask=c < C)


def squeeze(x: Tensor, num_segments: int, norm: Sequence[Tensor] | None = None, eps: float = 0.0) -> Tensor:
    """X̂ `(N, C, T)` of x `(N·T, C, H, W)`, in x's dtype.

    With `norm` (weight, bias, running mean and variance of a BatchNorm) of ReLU(BN(x)), which is never written.
    """
    channels_last = layout.is_channels_last(x)
    x = layout.to_layout(x, channels_last)
    frames, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    tile = launch.reduction_tile(channels, pixels, channels_last, x.element_size())
    tiles, steps = launch.ceil_div(channels, tile.channels), launch.ceil_div(pixels, tile.pixels)
    splits = launch.pixel_splits(frames * tiles, steps)
    steps = launch.ceil_div(steps, splits)
    squeezed = x.new_empty((frames // num_segments, channels, num_segments))
    parts = room(squeezed, splits)
    with launch.on_device(x):
        squeeze_kernel[(frames * tiles * splits,)](
            x, parts, None if norm is None else tuple(norm),
            channels, pixels, num_segments, tiles, splits, steps, eps, channels * pixels, frames * channels,
            CHANNELS_LAST=channels_last,
            BLOCK_C=tile.channels, BLOCK_P=tile.pixels, RUN=tile.run, ACC=launch.accumulator(x.dtype),
            INDEX=launch.offset_dtype(channels * splits * steps * tile.pixels, tile.channels * tile.pixels),
            num_warps=launch.warps(tile.threads), **launch.OPTIONS,
        )  # fmt: skip
        add_parts(parts, squeezed)
    return squeezed


def activated_squeeze(x: Tensor, norm: Sequence[Tensor], eps: float, num_segments: int) -> Tensor:
    """`squeeze` of ReLU(BN(x)) with running statistics."""
    return squeeze(x, num_segments, norm, eps)
