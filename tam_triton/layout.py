"""Memory layouts of a feature map `(N·T, C, H, W)`: which one it has, what a result gets, how wide offsets are."""

from collections.abc import Sequence

import torch
from torch import Tensor

INT32_ELEMENTS = 2**31


def is_channels_last(x: Tensor) -> bool:
    """Whether channels are the fastest dimension of `x`.

    A tensor that is both (one channel, or one pixel) counts as contiguous. One that is neither counts as
    channels_last if its channels are adjacent in memory, as in a crop of a channels_last image.
    """
    if x.is_contiguous():
        return False
    return x.is_contiguous(memory_format=torch.channels_last) or (x.stride(1) == 1 and x.stride(3) != 1)


def memory_format(channels_last: bool) -> torch.memory_format:
    """The torch name of a layout."""
    return torch.channels_last if channels_last else torch.contiguous_format


def to_layout(x: Tensor, channels_last: bool) -> Tensor:
    """`x` itself if it is dense in the given layout, else a copy that is.

    A feature map that a convolution made, and the gradient that its backward sends, never need the copy; a slice or an
    expanded gradient (`.sum().backward()`) does.
    """
    return x.contiguous(memory_format=memory_format(channels_last))


def empty(x: Tensor, channels_last: bool) -> Tensor:
    """An uninitialised tensor of `x`'s shape and dtype on its device, dense in the given layout."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format(channels_last))


def empty_result(x: Tensor) -> Tensor:
    """The same in `x`'s own layout."""
    return empty(x, is_channels_last(x))


def segments(importance: Tensor | None, num_segments: int | None) -> int:
    """T, which V `(N, C, T)` tells where there is one."""
    if num_segments is not None:
        return num_segments
    if importance is None:
        raise ValueError("num_segments: got None, expected T, which no importance tells")
    return importance.shape[-1]


def vectors_and_lines(channels: int, pixels: int, channels_last: bool, vector: int) -> tuple[int, int]:
    """How many vectors of adjacent elements a row has, and how many rows a frame: C or P, whichever is fastest."""
    row, lines = (channels, pixels) if channels_last else (pixels, channels)
    return row // vector, lines


def dense_weights(values: Tensor, channels_last: bool) -> Tensor:
    """V or Θ `(…, C, ·)` as the kernels read it: channels fastest beside a channels_last feature map, else slowest."""
    return values.mT.contiguous().mT if channels_last else values.contiguous()


def readable_weights(values: Sequence[Tensor]) -> tuple[list[Tensor], bool]:
    """V and Θ, or their gradients, and whether channels are fastest in them; copied where they are not dense alike."""
    channels_last = not values[0].is_contiguous() and values[0].mT.is_contiguous()
    return [dense_weights(one, channels_last) for one in values], channels_last


def dense_vectors(*vectors: Tensor) -> tuple[Tensor, ...]:
    """Vectors `(C)`, or several as `(·, C)`, as the kernels read them: a parameter may be a part of another tensor."""
    return tuple(one.contiguous() for one in vectors)


def empty_weights(squeezed: Tensor, length: int, channels_last: bool) -> Tensor:
    """An uninitialised `(N, C, length)` like X̂ `(N, C, T)`, stored as `dense_weights` stores it."""
    clips, channels, _ = squeezed.shape
    if channels_last:
        return squeezed.new_empty((clips, length, channels)).transpose(1, 2)
    return squeezed.new_empty((clips, channels, length))


def needs_int64(elements_per_frame: int, block: int) -> bool:
    """Whether an offset inside one frame of `C·P` elements, rounded up to whole blocks, can pass 2³¹.

    Offsets of a frame or a clip are int64 always.
    """
    return elements_per_frame + block > INT32_ELEMENTS
