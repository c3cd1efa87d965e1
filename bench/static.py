"""The compiled kernels, read without a GPU: registers, spills, shared memory, occupancy, width of accesses.

Every public launcher is called as the operators call it, on TANet-50's shapes, and what it launches is compiled for
every target; on the first shape and on the smallest maps for clips of many frames, too. Occupancy is the share of a
multiprocessor's warps that registers, shared memory and block slots allow: a fact, and no goal, as are the widths of
accesses; what they are worth is for `bench predict` to say. `widest` and `128-bit` are about tensors of
X's size: the widest access, and whether no access is narrower than 16 bytes. `int64` says that every address in them
starts from a 64-bit product. A dash stands where a kernel has no tensor of that size. `copies` says of NVIDIA's targets
that lanes which store to one address store one value, or that `bench.ptx.replicas` cannot tell.
"""

import csv
import itertools
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import triton
from torch import Tensor
from triton.compiler import CompiledKernel

from bench import compiled, offline
from bench.offline import Launch
from bench.options import check_least, check_taps
from bench.ptx.replicas import disagreements
from bench.shapes import DTYPES, LAYOUTS, Shape, tanet50
from tam_triton import kernels, ops
from tam_triton.layout import is_channels_last

RESULTS = Path(__file__).parent / "results" / "static.csv"
VECTOR_BYTES = 16
EPS = 1e-5

Target = Literal["sm_80", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950"]


def batch_norm(x: Tensor) -> list[Tensor]:
    """Weight, bias, mean and variance of each channel of x, in float32 as a module holds them."""
    return [*torch.ones(4, x.shape[1], device=x.device)]


def branch_weights(
    squeezed: Tensor, kernel: Tensor, alpha: int = 2, beta: int = 4
) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and BatchNorm of the global and of the local branch, in float32 too."""
    (_, channels, segments), taps = squeezed.shape, kernel.shape[-1]
    width, hidden = alpha * segments, channels // beta

    def ones(*shape: int) -> Tensor:
        return torch.ones(shape, device=squeezed.device)

    def norm(size: int) -> list[Tensor]:
        return [ones(size) for _ in range(4)]

    global_branch = [ones(width, segments), *norm(width), ones(taps, width)]
    return global_branch, [ones(hidden, channels, 3), *norm(hidden), ones(channels, hidden, 1)]


def another(x: Tensor) -> Tensor:
    """dY, of x's size; on a GPU not x itself, which would come from the cache when it is read once more."""
    return x if x.device.type == "cpu" else x.clone()


def training_weights(squeezed: Tensor, kernel: Tensor) -> list[Tensor]:
    """The same without running statistics, one after another."""
    return [
        tensor
        for first, weight, bias, _, _, second in branch_weights(squeezed, kernel)
        for tensor in (first, weight, bias, second)
    ]


def training_branches(squeezed: Tensor, kernel: Tensor, channels_last: bool) -> object:
    """Both branches with the statistics of the batch."""
    arguments: list[Any] = [squeezed, *training_weights(squeezed, kernel), EPS, channels_last]
    return kernels.training_branches(*arguments)


def branch_gradients(squeezed: Tensor, kernel: Tensor, channels_last: bool) -> object:
    """Gradients from what the forward gives, which is not computed here."""
    weights = training_weights(squeezed, kernel)
    results = ops.OPERATORS["training_branches"].fake(squeezed, *weights, EPS, channels_last)
    importance, theta, projected, *statistics = map(torch.zeros_like, results)
    given = (squeezed, importance, theta, projected)
    arguments: list[Any] = [squeezed.clone(), kernel, *given, *weights, *statistics, channels_last]
    return kernels.branch_gradients(*arguments)


def trained_norm(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weight and bias of each channel of x, and the batch's statistics."""
    weight, bias = torch.ones(2, x.shape[1], device=x.device)
    return weight, bias, torch.ones(3, x.shape[1], device=x.device)


def norm_sums(v: Tensor) -> Tensor:
    """Two sums of each frame, in float32."""
    return torch.ones(2, *v.shape, device=v.device)


def normalized_input_gradient(x: Tensor, v: Tensor, theta: Tensor, of_batch: bool) -> object:
    """From gradients of γ and β, unless the statistics are not the batch's."""
    d_weight, d_bias = torch.ones(2, x.shape[1], device=x.device) if of_batch else (None, None)
    return kernels.normalized_input_gradient(another(x), x, *trained_norm(x), v, theta, v, d_weight, d_bias)


# How the operators call each public launcher, in each form: x, V (also as X̂ and dX̂), Θ.
CALLS: dict[str, Callable[[Tensor, Tensor, Tensor], object]] = {
    "squeeze": lambda x, v, theta: kernels.squeeze(x, v.shape[-1]),
    "activated_squeeze": lambda x, v, theta: kernels.activated_squeeze(x, batch_norm(x), EPS, v.shape[-1]),
    "branches": lambda x, v, theta: kernels.branches(v, *branch_weights(v, theta), EPS, is_channels_last(x)),
    "training_branches": lambda x, v, theta: training_branches(v, theta, is_channels_last(x)),
    "branch_gradients": lambda x, v, theta: branch_gradients(v, theta, is_channels_last(x)),
    "aggregate": lambda x, v, theta: kernels.aggregate(x, v, theta),
    "aggregate, shared": lambda x, v, theta: kernels.aggregate(x, None, theta[0], v.shape[-1]),
    "aggregate, after": lambda x, v, theta: kernels.aggregate(x, v, theta, after=True),
    "activated_aggregate": lambda x, v, theta: kernels.activated_aggregate(x, batch_norm(x), EPS, v, theta),
    "weight_gradients": lambda x, v, theta: kernels.weight_gradients(another(x), x, v, theta),
    "weight_gradients, shared": lambda x, v, theta: kernels.weight_gradients(
        another(x), x, None, theta[0], v.shape[-1]
    ),
    "weight_gradients, after": lambda x, v, theta: kernels.weight_gradients(another(x), x, v, theta, after=True),
    "input_gradient": lambda x, v, theta: kernels.input_gradient(x, v, theta, v, is_channels_last(x)),
    "batch_statistics": lambda x, v, theta: kernels.batch_statistics(x, EPS),
    "normalized_squeeze": lambda x, v, theta: kernels.normalized_squeeze(x, *trained_norm(x), v.shape[-1]),
    "normalized_aggregate": lambda x, v, theta: kernels.normalized_aggregate(x, *trained_norm(x), v, theta),
    "normalized_gradients": lambda x, v, theta: kernels.normalized_gradients(another(x), x, *trained_norm(x), v, theta),
    "batch_norm_gradients": lambda x, v, theta: kernels.batch_norm_gradients(
        norm_sums(v), norm_sums(v), v, x.shape[2] * x.shape[3]
    ),
    "normalized_input_gradient": lambda x, v, theta: normalized_input_gradient(x, v, theta, of_batch=True),
    "normalized_input_gradient, frozen": lambda x, v, theta: normalized_input_gradient(x, v, theta, of_batch=False),
}


@dataclass(frozen=True)
class Static:
    """Everything by default; each option selects a part."""

    targets: tuple[Target, ...] = ("sm_90", "gfx942")
    """Architectures to compile for, which may be NVIDIA's from the A100 to the RTX 50 series, AMD's MI300 and MI350."""
    dtypes: tuple[Literal["float32", "float16", "bfloat16"], ...] = ("float32", "float16", "bfloat16")
    """Of X, V and Θ."""
    layouts: tuple[Literal["nchw", "channels_last"], ...] = ("nchw", "channels_last")
    """Of X."""
    pixels: tuple[int, ...] = (224, 256)
    """Frames of these sizes through TANet-50 give the shapes, unless `shapes` names others."""
    shapes: tuple[tuple[int, int], ...] = ()
    """Pairs of channels and height (= width)."""
    clips: int = 8
    """Clips in X (N)."""
    segments: int = 8
    """Frames of a clip (T)."""
    long: tuple[int, ...] = (64, 128)
    """Frames of longer clips, for the first shape and the smallest maps alone; `--long` without a number: none."""
    kernel_size: int = 3
    """Taps of Θ (K)."""
    operators: tuple[str, ...] = ()
    """By name, as the table has them; none: all."""
    jobs: int = 2
    """Processes that compile at the same time; 1 compiles in this one."""
    out: Path | None = None
    """The CSV to write. None: bench/results/static.csv, if nothing was left out."""

    def __post_init__(self) -> None:
        check_least(self, clips=1, segments=1, jobs=1)
        check_taps(self.kernel_size)


@dataclass(frozen=True)
class Row:
    """One kernel that one launcher launches for one shape; `-` where a figure has no meaning."""

    target: str
    dtype: str
    layout: str
    segments: int
    shape: str
    operator: str
    kernel: str
    programs: int
    warps: int
    registers: int
    accumulation: int
    spills: int
    local_bytes: int
    shared_bytes: int
    occupancy: str
    widest: str
    all_128_bit: str
    int64: str
    copies: str
    triton: str = triton.__version__

    def __str__(self) -> str:
        return " ".join(f"{value!s:>{width}}" for value, width in zip(asdict(self).values(), WIDTHS, strict=True))


COLUMNS = tuple(field.name for field in fields(Row))
HEADINGS = (
    "target", "dtype", "layout", "frames", "shape", "operator", "kernel", "programs", "warps", "regs", "agprs",
    "spills", "local", "shared", "occupancy", "widest", "128-bit", "int64", "copies", "triton",
)  # fmt: skip
WIDTHS = (6, 8, 13, 6, 10, 24, 23, 8, 5, 4, 5, 6, 5, 6, 9, 6, 7, 5, 6, 6)


def run(options: Static) -> list[Row]:
    """Prints a table, and writes it as CSV.

    Raises:
        RuntimeError: TRITON_INTERPRET is set.
        ValueError: a launcher of the library is missing in `CALLS`, or an operator is not there.
    """
    if missing := set(kernels.__all__) - set(CALLS):
        raise ValueError(f"kernels: no call is known for {', '.join(sorted(missing))}; add it to CALLS in {__file__}")
    if unknown := set(options.operators) - set(CALLS):
        raise ValueError(f"operators: got {', '.join(sorted(unknown))}, expected some of {', '.join(CALLS)}")
    out = options.out or (RESULTS if options == Static(jobs=options.jobs) else None)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    parts = [(options, target, dtype) for target in options.targets for dtype in options.dtypes]
    print(" ".join(f"{heading:>{width}}" for heading, width in zip(HEADINGS, WIDTHS, strict=True)))
    rows: list[Row] = []
    if options.jobs == 1:
        for part in parts:
            rows += printed(compile_part(*part))
    else:
        with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
            for measured in pool.map(compile_part, *zip(*parts, strict=True)):
                rows += printed(measured)
    print(summary(rows))
    if out is not None:
        write(rows, out)
        print(f"wrote {out}")
    return rows


def compile_part(options: Static, target: str, dtype: str) -> list[Row]:
    """All rows of one target and dtype."""
    shapes = [Shape(*pair) for pair in options.shapes] or [shape for p in options.pixels for shape in tanet50(p)]
    rows = []
    with offline.launches(target) as launched:
        for layout in options.layouts:
            usual = itertools.product((options.segments,), shapes)
            of_long = dict.fromkeys((shapes[0], min(shapes, key=lambda shape: shape.size)))
            long = itertools.product(options.long, of_long)
            for segments, shape in (*usual, *long):
                size = (options.clips * segments, shape.channels, shape.size, shape.size)
                x = torch.empty(size, dtype=DTYPES[dtype], memory_format=LAYOUTS[layout])
                v = torch.empty(options.clips, shape.channels, segments, dtype=x.dtype)
                theta = torch.empty(options.clips, shape.channels, options.kernel_size, dtype=x.dtype)
                for operator in options.operators or CALLS:
                    launched.clear()
                    CALLS[operator](x, v, theta)
                    described = (target, dtype, layout, segments, str(shape), operator)
                    rows += [row(described, launch, x.nbytes) for launch in launched]
    return rows


def row(described: tuple[str, str, str, int, str, str], launch: Launch, size: int) -> Row:
    """What one launch shows; tensors of at least `size` bytes are of X's size."""
    used, accesses, copies = inspect(launch.compiled)
    large = [name for name, nbytes in launch.tensors.items() if nbytes >= size and name in accesses]
    widths = [width for name in large for width in accesses[name]]
    occupancy = compiled.MULTIPROCESSORS[described[0]].occupancy(used.registers, used.shared_bytes, launch.num_warps)
    programs = 1
    for extent in launch.grid:
        programs *= extent
    return Row(
        *described, launch.kernel, programs, launch.num_warps,
        used.registers, used.accumulation, used.spills, used.local_bytes, used.shared_bytes, f"{occupancy:.0%}",
        widest=str(max(widths)) if large else "-",
        all_128_bit=yes(min(widths) >= VECTOR_BYTES) if large else "-",
        int64=yes(all(compiled.has_int64_base(launch.compiled, name) for name in large)) if large else "-",
        copies=copies,
    )  # fmt: skip


@cache
def inspect(kernel: CompiledKernel) -> tuple[compiled.Resources, dict[str, dict[int, int]], str]:
    """The figures that do not depend on a launch, taken once a specialisation."""
    copies = "-" if "ptx" not in kernel.asm else "unproven" if disagreements(kernel.asm["ptx"]) else "agree"
    return compiled.resources(kernel), dict(compiled.access_bytes(kernel)), copies


def summary(rows: list[Row]) -> str:
    """What a reader looks for first: how many rows fall short of each goal."""
    counts = {
        "spills or local memory": sum(bool(row.spills or row.local_bytes) for row in rows),
        "32-bit base offsets": sum(row.int64 == "no" for row in rows),
        "copies of a result that are not proven to agree": sum(row.copies == "unproven" for row in rows),
    }
    return f"{len(rows)} rows; " + "; ".join(f"{name}: {count}" for name, count in counts.items())


def write(rows: list[Row], path: Path) -> None:
    """One line a row, in the order of the table."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(asdict(row).values() for row in rows)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a file that `write` wrote, as text."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def printed(rows: list[Row]) -> list[Row]:
    """Prints rows as soon as they are there."""
    print(*rows, sep="\n", flush=True)
    return rows


def yes(value: bool) -> str:
    """As a table shows it."""
    return "yes" if value else "no"
