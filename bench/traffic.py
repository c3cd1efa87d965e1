"""Bytes that the operators ask of memory, counted in passes over a tensor of X's size, beside what they cannot avoid.

A tensor of X's size comes from memory every time it is read. A small one (weights, partial sums) stays in the cache
while a kernel runs: of it, the bytes that a kernel touches count once a launch. Pixels and frames are those of
TANet-50; channels are fewer, since kernels run in the interpreter.
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor

import tam_triton
from bench.interpreted import Launch, counting
from bench.shapes import DTYPES, LAYOUTS, tanet50
from tam_triton import functional
from tam_triton.kernels import launch as rules

IDEAL = {"forward": 3, "backward": 4}  # DESIGN, section 2
IDEAL_BEHIND_NORM = {"forward": 4, "backward": 5}
"""With BatchNorm in training and ReLU in front: statistics, squeeze, aggregation; dY and x twice, dx."""
LARGE = 0.25  # from this share of X's bytes on, no cache is counted on to hold a tensor


@dataclass(frozen=True)
class Traffic:
    """Passes of the forward and the backward, kernel by kernel."""

    dtypes: tuple[Literal["float32", "float16", "bfloat16"], ...] = ("float32", "bfloat16")
    """Of the feature maps."""
    layouts: tuple[Literal["nchw", "channels_last"], ...] = ("nchw", "channels_last")
    """The same."""
    pixels: int = 224
    """Frames of this size through TANet-50 give the feature maps."""
    channels: int = 16
    """C, the same at every size: passes hardly depend on it, the interpreter's time does."""
    clips: int = 1
    """N, the clips of a call."""
    segments: int = 8
    """T, the frames of a clip."""
    kernel_size: int = 3
    """K, the taps."""
    jobs: int = 2
    """Processes that count at the same time."""


@dataclass(frozen=True)
class Row:
    """Passes at one shape, by kernel; `torch …` is an operator of torch."""

    dtype: str
    layout: str
    shape: str
    direction: str
    passes: float
    kernels: dict[str, float]

    def __str__(self) -> str:
        parts = " + ".join(
            f"{name.removesuffix('_kernel')} {value:.3f}" for name, value in self.kernels.items() if value >= 5e-4
        )
        excess = self.passes / IDEAL[self.direction] - 1
        return (
            f"{self.dtype:>8} {self.layout:>13} {self.shape:>10} {self.direction:>9} {self.passes:>7.3f} "
            f"{IDEAL[self.direction]:>6} {excess:>7.1%}  {parts}"
        )


HEADER = f"{'dtype':>8} {'layout':>13} {'shape':>10} {'direction':>9} {'passes':>7} {'ideal':>6} {'excess':>7}  kernels"


def run(options: Traffic) -> list[Row]:
    """Prints a table. Processes of its own count, since TRITON_INTERPRET must be set before kernels are imported."""
    sizes = sorted({shape.size for shape in tanet50(options.pixels)}, reverse=True)
    parts = [(options, dtype, layout, size) for dtype in options.dtypes for layout in options.layouts for size in sizes]
    print(f"{options.clips} clips × {options.segments} frames, K = {options.kernel_size}")
    print(HEADER)
    rows: list[Row] = []
    with (
        mock.patch.dict(os.environ, TRITON_INTERPRET="1"),
        ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool,
    ):
        for counted in pool.map(count_part, *zip(*parts, strict=True)):
            print(*counted, sep="\n", flush=True)
            rows += counted
    return rows


def count_part(options: Traffic, dtype: str, layout: str, size: int) -> list[Row]:
    """Both directions at one shape."""
    torch.set_num_threads(1)
    x = torch.zeros(options.clips * options.segments, options.channels, size, size, dtype=DTYPES[dtype])
    x = x.contiguous(memory_format=LAYOUTS[layout])
    counted = dict(zip(IDEAL, forward_and_backward(x, options.segments, options.kernel_size), strict=True))
    shape = f"{options.channels}×{size}×{size}"
    return [
        Row(dtype, layout, shape, direction, passes(launches, x), by_kernel(launches, x))
        for direction, launches in counted.items()
    ]


def forward_and_backward(x: Tensor, num_segments: int, kernel_size: int) -> tuple[list[Launch], list[Launch]]:
    """What `squeeze_and_aggregate` moves in either direction, with branches that move nothing themselves."""
    x = x.detach().requires_grad_()
    clips, channels = x.shape[0] // num_segments, x.shape[1]
    importance = x.new_zeros(clips, channels, num_segments)
    kernel = x.new_zeros(clips, channels, kernel_size)
    dy = torch.zeros_like(x)
    # As channels are fewer here, so are the multiprocessors to fill: no clip is split as if X were as small as this.
    with mock.patch.object(rules, "ASSUMED", rules.Device(1, 32)), counting() as forward:
        y = tam_triton.squeeze_and_aggregate(
            x,
            lambda squeezed: FreeBranches.apply(squeezed, importance, kernel),
            num_segments,
            kernel_size,
            impl="triton",
        )
    with mock.patch.object(rules, "ASSUMED", rules.Device(1, 32)), counting() as backward:
        torch.autograd.grad(y, x, dy)
    return forward, backward


def behind_norm(x: Tensor, num_segments: int, kernel_size: int) -> tuple[list[Launch], list[Launch]]:
    """The same of a TAM behind BatchNorm, with the batch's statistics, and ReLU."""
    x = x.detach().requires_grad_()
    clips, channels = x.shape[0] // num_segments, x.shape[1]
    importance = x.new_zeros(clips, channels, num_segments)
    kernel = x.new_zeros(clips, channels, kernel_size)
    weight, bias = (x.new_ones(channels, dtype=torch.float32, requires_grad=True) for _ in range(2))
    dy = torch.zeros_like(x)
    with mock.patch.object(rules, "ASSUMED", rules.Device(1, 32)), counting() as forward:
        y = functional.normalize_squeeze_and_aggregate(
            x, weight, bias, functional.batch_statistics(x, 1e-5, impl="triton"),
            lambda squeezed: FreeBranches.apply(squeezed, importance, kernel), num_segments, kernel_size,
            of_batch=True, eps=1e-5, wide=False, impl="triton",
        )  # fmt: skip
    with mock.patch.object(rules, "ASSUMED", rules.Device(1, 32)), counting() as backward:
        torch.autograd.grad(y, (x, weight, bias), dy)
    return forward, backward


class FreeBranches(torch.autograd.Function):
    """Given V and Θ in place of computed ones."""

    @staticmethod
    def forward(ctx: Any, squeezed: Tensor, importance: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
        """V and Θ as they are."""
        return importance, kernel

    @staticmethod
    def backward(ctx: Any, d_importance: Tensor, d_kernel: Tensor) -> tuple[Tensor, None, None]:
        """dV in place of dX̂, whose shape it has."""
        return d_importance, None, None


def passes(launches: list[Launch], x: Tensor) -> float:
    """All that moved, in units of X's bytes."""
    return sum(by_kernel(launches, x).values())


def by_kernel(launches: list[Launch], x: Tensor) -> dict[str, float]:
    """The same for every kernel."""
    sums: dict[str, float] = {}
    for launch in launches:
        for moved in launch.tensors.values():
            large = moved.nbytes >= LARGE * x.nbytes
            size = moved.loaded + moved.stored if large else moved.loaded_once + moved.stored_once
            sums[launch.kernel] = sums.get(launch.kernel, 0.0) + size / x.nbytes
    return sums
