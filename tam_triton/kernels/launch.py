"""Launch rules: block sizes, warps and grids as pure functions of shapes. Nothing is tuned at the first call.

What some rules answer can be replaced by a file of tuned launches, when `tuned.use` is told to.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.runtime import driver

from tam_triton import layout

VECTOR_BYTES = 16  # the widest load and store of one thread
LINE_BYTES = 128  # of the cache
SMALL_MAP = 64  # pixels: a second launch, which adds up parts of them, costs more than it saves
MOST_CHANNELS = 4  # of a thread, in channels_last
LOADS = 4  # of a thread, asked for before the first is used: at least, where there are so many
ALIGNED_ELEMENTS = 16  # Triton proves alignment from sizes that are multiples of this
ROW_THREADS = 128

# Numerics must not depend on a default: a product and a sum are fused, on every backend.
OPTIONS = {"enable_fp_fusion": True}


@dataclass(frozen=True)
class Block:
    """Elements of a frame that one program, a warp, walks through time: `vectors` of `vector` elements.

    `ahead` is how many frames are asked for before the one in use.
    """

    vectors: int
    vector: int
    ahead: int

    @property
    def elements(self) -> int:
        """Of one frame."""
        return self.vectors * self.vector


@dataclass(frozen=True)
class Tile:
    """What one program reduces over pixels: channels × pixels, `unroll` times in each of so many `steps`.

    A thread loads `vector` elements at a time: pixels in NCHW, channels in channels_last. `parts` is how many programs
    share the pixels.
    """

    channels: int
    pixels: int
    vector: int
    warps: int
    parts: int
    steps: int
    unroll: int = 1

    def count(self, channels: int) -> int:
        """How many such tiles hold all channels."""
        return ceil_div(channels, self.channels)

    @property
    def covered(self) -> int:
        """Pixels of all parts, those past the last one among them."""
        return self.parts * self.steps * self.unroll * self.pixels


class Device(NamedTuple):
    """What launch rules ask of a device."""

    multiprocessors: int
    warp_size: int


ASSUMED = Device(132, 32)  # an H100, where kernels are interpreted


P = ParamSpec("P")
R = TypeVar("R")
CHOSEN: dict[tuple[Any, ...], Any] = {}  # answers in place of a rule's, by its name and arguments: `tuned` fills it


def tunable(rule: Callable[P, R]) -> Callable[P, R]:
    """A rule whose answers may stand in `CHOSEN`, which is empty unless a user says otherwise."""

    @wraps(rule)
    def choose(*args: P.args, **kwargs: P.kwargs) -> R:
        chosen: R | None = CHOSEN.get((rule.__name__, *args)) if CHOSEN else None
        return rule(*args, **kwargs) if chosen is None else chosen

    return choose


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """The dtype in which sums over values of `dtype` are taken."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def partial_dtype(dtype: torch.dtype) -> torch.dtype:
    """The same for sums that are kept in memory between two kernels."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@tunable
def temporal_block(channels: int, pixels: int, channels_last: bool, itemsize: int) -> Block:
    """One warp, two vectors a thread where they are single elements.

    As many frames ahead as make 64 bytes a thread. In channels_last, where a thread keeps weights of each of its
    channels, it has four channels at most, and in half precision two frames ahead: more take registers that the warps
    of a multiprocessor share, and older compilers twice as many.
    """
    vector = row_vector(channels, pixels, channels_last, itemsize)
    if channels_last:
        vector = min(MOST_CHANNELS, vector)
        return Block(device().warp_size, vector, 2 if itemsize == 2 else min(8, 64 // (vector * itemsize)))
    of_thread = max(1, 2 // vector)
    return Block(device().warp_size * of_thread, vector, min(8, 64 // (vector * itemsize)) // of_thread)


def frames_of_part(programs: int, num_segments: int, most: int) -> int:
    """How many of a clip's frames one program takes: `most`, and fewer if `programs` leave multiprocessors idle.

    The frames around a part are read again by its neighbours, at about the same time, and so from the cache.
    """
    to_fill = num_segments // ceil_div(device().multiprocessors, max(programs, 1))
    return max(1, min(to_fill, ceil_div(num_segments, ceil_div(num_segments, most))))


@tunable
def squeeze_tile(frames: int, channels: int, pixels: int, channels_last: bool, itemsize: int) -> Tile:
    """For the squeeze of so many frames: rows as they stand, in vectors that divide them.

    NCHW: long rows have programs of their own, short ones half a warp each, and a thread two of them. channels_last:
    lines of the cache, and where these make too few programs several for the pixels of each.
    """
    multiprocessors, lanes = device()
    vector = row_vector(channels, pixels, channels_last, itemsize)
    if channels_last:
        vector = min(MOST_CHANNELS, vector)
        across = min(LINE_BYTES // itemsize, next_power_of_2(channels))
        programs = frames * ceil_div(channels, across)
        enough = 2 * programs >= 3 * multiprocessors
        num_warps = (8 if enough else 4) * 32 // lanes
        while num_warps > 1 and lanes * num_warps * vector // across * 2 * LOADS > next_power_of_2(pixels):
            num_warps //= 2
        down = max(1, lanes * num_warps * vector // across)
        total = ceil_div(pixels, down)
        parts = 1 if enough else max(1, min(total // LOADS, ceil_div(4 * multiprocessors, programs)))
    else:
        vectors = ceil_div(pixels, vector)
        num_warps = 2 if vectors >= 8 * lanes else 1
        width = lanes * num_warps if vectors >= 4 * lanes else min(lanes // 2, next_power_of_2(vectors))
        across = 1 if vectors >= 4 * lanes else 2 * lanes // width
        down, total = width * vector, ceil_div(vectors, width)
        parts = max(1, min(total // LOADS, ceil_div(8 * multiprocessors, frames * ceil_div(channels, across))))
    steps = ceil_div(ceil_div(total, parts), 2 * LOADS)
    unroll = ceil_div(total, parts * steps)
    return Tile(across, down, vector, num_warps, ceil_div(total, steps * unroll), steps, unroll)


@tunable
def moments_tile(frames: int, channels: int, pixels: int, channels_last: bool, itemsize: int) -> Tile:
    """For mean and variance of each channel over all frames: two warps, and a part is of all frames together.

    NCHW: rows, of one channel but where they are short. channels_last: lines of the cache. Tiles are counted through,
    frame after frame, and each part takes as many of them; so there are only as many parts as keep a multiprocessor
    busy.
    """
    multiprocessors, lanes = device()
    vector = row_vector(channels, pixels, channels_last, itemsize)
    num_warps = 2
    if channels_last:
        across, resident = min(LINE_BYTES // itemsize, next_power_of_2(channels)), 12
        down = max(1, lanes * num_warps * vector // across)
        while num_warps > 1 and down > next_power_of_2(pixels):
            num_warps, down = num_warps // 2, max(1, down // 2)
    else:
        width = min(lanes * num_warps, next_power_of_2(ceil_div(pixels, vector)))
        across, down, resident = lanes * num_warps // width, width * vector, 16
    total = frames * ceil_div(pixels, down)
    wanted = ceil_div(resident * multiprocessors, num_warps * ceil_div(channels, across))
    unroll = min(2 * LOADS, next_power_of_2(total))
    steps = ceil_div(total, unroll * max(1, min(total // unroll, wanted)))
    return Tile(across, down, vector, num_warps, ceil_div(total, steps * unroll), steps, unroll)


def row_vector(channels: int, pixels: int, channels_last: bool, itemsize: int) -> int:
    """Elements that a thread loads at once: as many as 128 bits hold and as divide a row."""
    return min(VECTOR_BYTES // itemsize, common_power_of_2(channels if channels_last else pixels))


def band_frames(num_segments: int, kernel_size: int, bands: int = 1) -> int:
    """How many frames' sums of one band, or of two, a thread keeps at a time: K registers each, in channels_last twice.

    All of a clip if they are few; else clips are cut into equal parts of fewer: a part has K − 1 frames of dY more. Of
    two bands they are fewer, but the frames of a usual clip, eight, with the three usual taps.
    """
    whole, cut = (40, 24) if bands == 1 else (24, 16)
    most = num_segments if num_segments * kernel_size <= whole else max(1, cut // kernel_size)
    return ceil_div(num_segments, ceil_div(num_segments, most))


@tunable
def band_tile(clips: int, channels: int, pixels: int, channels_last: bool, itemsize: int, bands: int = 1) -> Tile:
    """For the gradients of V and Θ, where a thread has all frames of its pixels in flight, of X and of dY.

    NCHW: rows as they stand, in vectors that divide them. channels_last: a warp has two pixels of
    32 channels. As many parts as keep every multiprocessor busy, of a few tiles at least.
    """
    lanes = device().warp_size
    if channels_last:
        vector = min(64 // lanes, row_vector(channels, pixels, channels_last, itemsize))
        few = pixels <= SMALL_MAP
        across = min(lanes * vector // 2, next_power_of_2(channels))
        num_warps, resident = 8 if few else 2, 20 if bands == 1 else 12
        down = lanes * num_warps * vector // across
        total = ceil_div(pixels, down)
    else:
        vector = row_vector(channels, pixels, channels_last, itemsize)
        vectors = ceil_div(pixels, vector)
        num_warps = 2 if vectors >= 2 * lanes else 1
        narrow = num_warps == 1 and vector * itemsize == VECTOR_BYTES
        width = min(lanes if narrow else 2 * lanes, next_power_of_2(vectors))
        across, down = max(1, lanes * num_warps // width), width * vector
        total, resident = ceil_div(pixels, down), 16
    programs = max(1, device().multiprocessors * resident // num_warps // max(1, clips * ceil_div(channels, across)))
    most = (total - 1) // 5 if channels_last else total // 2  # parts, whose sums are written and read again
    steps = ceil_div(total, max(1, min(most, programs))) if pixels > SMALL_MAP else total
    return Tile(across, down, vector, num_warps, ceil_div(total, steps), steps)


def warps(threads: int) -> int:
    """How many warps make that many threads."""
    return max(1, threads // device().warp_size)


def registers(most: int | None) -> dict[str, int]:
    """A launch option: a thread may have so many. Untold, NVIDIA's compiler may save them by loading late.

    Other compilers refuse it. The size of warps does not tell whose GPU it is: AMD's have 32 lanes, or 64.
    """
    return {"maxnreg": most} if most is not None and not knobs.runtime.interpret and on_cuda(driver.active) else {}


def device() -> Device:
    """The one that kernels are compiled for, and run on."""
    return ASSUMED if knobs.runtime.interpret else facts(driver.active, driver.active.get_current_device())


@cache
def facts(active: Any, index: int) -> Device:
    """Of one of a driver's devices; asked for once."""
    properties = active.utils.get_device_properties(index)
    return Device(properties["multiprocessor_count"], active.get_current_target().warp_size)


@cache
def on_cuda(active: Any) -> bool:
    """Whether a driver's devices are NVIDIA's; asked for once."""
    return bool(active.get_current_target().backend == "cuda")


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
    """Makes `x`'s device the current one, if it is another: Triton launches there."""
    device = x.device
    if device.type == "cpu" or device.index == driver.active.get_current_device():
        return nullcontext()
    return torch.get_device_module(device).device(device)
