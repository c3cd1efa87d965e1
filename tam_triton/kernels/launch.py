"""Launch rules: block sizes, warps and grids as pure functions of shapes. Nothing is tuned at the first call."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.runtime import driver

from tam_triton import layout

VECTOR_BYTES = 16  # the widest load and store of one thread
ALIGNED_ELEMENTS = 16  # Triton proves alignment from sizes that are multiples of this
ROW_THREADS = 128
HALF_OCCUPANCY_REGISTERS = 64  # of a thread, on NVIDIA: 65,536 for 1,024 of 2,048 threads
MULTIPROCESSORS = 132  # of an H100; the others that are known have between 108 and 304
FULL_GRID = 2 * MULTIPROCESSORS

# Numerics must not depend on a default: a product and a sum are fused, on every backend.
OPTIONS = {"enable_fp_fusion": True}


@dataclass(frozen=True)
class Block:
    """Elements of a frame that one program walks through time: `vectors`, one a thread, of `vector` elements.

    `span` is how many channels a vector touches: 1 (in channels_last: as many as it has elements, adjacent ones),
    2 where a row of pixels ends inside it, 0 for any number. `ahead` is how many frames are loaded before the one in
    use; more in flight cost registers, and with them occupancy.
    """

    vectors: int
    vector: int
    span: int
    ahead: int

    @property
    def elements(self) -> int:
        """Of one frame."""
        return self.vectors * self.vector


@dataclass(frozen=True)
class Tile:
    """Channels × pixels that one program reduces over pixels.

    `run` is the number of adjacent elements to load when rows of `P` pixels start misaligned: 0 means that rows are
    loaded as they stand. `vector` is how many elements a thread loads at a time.
    """

    channels: int
    pixels: int
    run: int
    vector: int

    @property
    def threads(self) -> int:
        """One vector each: more would cost registers, and with them occupancy."""
        return min(512, max(self.run, self.channels * self.pixels) // self.vector)


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """The dtype in which sums over values of `dtype` are taken."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def partial_dtype(dtype: torch.dtype) -> torch.dtype:
    """The same for sums that are kept in memory between two kernels."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def temporal_block(channels: int, pixels: int, channels_last: bool, itemsize: int) -> Block:
    """One warp, one 128-bit vector a thread."""
    vector = VECTOR_BYTES // itemsize
    row = channels if channels_last else pixels
    span = 1 if row % vector == 0 else 2 if pixels >= vector and not channels_last else 0
    return Block(warp_size(), vector, span, ahead=2 if span == 1 and not channels_last else 0)


def frames_of_part(programs: int, num_segments: int) -> int:
    """How many of a clip's frames one program takes: all, unless `programs` of that kind leave multiprocessors idle.

    The frames around a part are read again by its neighbours. It happens to tensors that lie in the cache as a whole,
    being smaller than the tiles of so many programs.
    """
    return max(1, num_segments // ceil_div(MULTIPROCESSORS, max(programs, 1)))


def reduction_tile(channels: int, pixels: int, channels_last: bool, itemsize: int) -> Tile:
    """A tile whose loads are 128 bits wide in either layout, at any `P`.

    channels_last: 32 bytes of adjacent channels, a sector of the cache, by many pixels. NCHW: rows of pixels; where a
    row of `P` is no multiple of a vector, as many whole channels as make an aligned run.
    """
    vector = VECTOR_BYTES // itemsize
    if channels_last:
        return Tile(32 // itemsize, min(128, next_power_of_2(pixels)), run=0, vector=vector)
    whole = ALIGNED_ELEMENTS // common_power_of_2(pixels)
    if whole > 1 and channels > 1 and whole * pixels <= 4096:
        whole = max(whole, vector)  # the run's length, which masks the load, is aligned too
        return Tile(whole, next_power_of_2(pixels), run=next_power_of_2(whole * pixels), vector=vector)
    width = min(128, next_power_of_2(pixels))
    return Tile(min(1024 // width, next_power_of_2(channels)), width, run=0, vector=vector)


def register_limit(
    tile: Tile, dtype: torch.dtype, num_segments: int, kernel_size: int, excited: bool
) -> dict[str, int]:
    """A launch option for the gradients of V and Θ, where the compiler would leave less than half the threads a place.

    Only where it keeps the limit without spills, which `bench static` shows; AMD's compiler has no such option. Without
    V the compiler finds half by itself, and in one case needs to be told that it may take more than it spills for.
    """
    fits = tile.threads >= 256 and (tile.run == 0 or dtype == torch.float16)
    if not fits or tile.vector < 8 or num_segments > 8 or kernel_size > 3 or warp_size() != 32:
        return {}
    if not excited:
        return {"maxnreg": HALF_OCCUPANCY_REGISTERS + 8} if tile.run else {}
    return {"maxnreg": HALF_OCCUPANCY_REGISTERS}


def pixel_splits(programs: int, steps: int) -> int:
    """Into how many parts to cut a loop of `steps` tiles over pixels, so that few channels still fill the device."""
    return max(1, min(steps, FULL_GRID // max(programs, 1)))


def warp_size() -> int:
    """Threads of a warp (a wavefront) of the device that kernels are compiled for."""
    if knobs.runtime.interpret:
        return 32
    return int(driver.active.get_current_target().warp_size)


def warps(threads: int) -> int:
    """How many warps make that many threads."""
    return max(1, threads // warp_size())


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is not below `n`."""
    return 1 << (n - 1).bit_length()


def product_size(n: int) -> int:
    """A dimension of a matrix product: a power of two, 16 at least."""
    return max(16, next_power_of_2(n))


def common_power_of_2(n: int) -> int:
    """The largest power of two up to 16 that divides `n`."""
    return min(ALIGNED_ELEMENTS, n & -n)


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def offset_dtype(elements_per_frame: int, block: int) -> tl.dtype:
    """The dtype of offsets inside a frame."""
    return tl.int64 if layout.needs_int64(elements_per_frame, block) else tl.int32


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Makes `x`'s device the current one: Triton launches there."""
    return nullcontext() if x.device.type == "cpu" else torch.get_device_module(x.device).device(x.device)
