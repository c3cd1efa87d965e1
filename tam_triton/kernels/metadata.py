"""What each launch moves and computes at least, as a profiler shows it (`launch_metadata`, read by Triton's Proton).

Bytes are those that the kernel asks for, by formula: tensors of X's size as often as it reads them, all others once.
Operations are those of the equations, a multiplication and an addition counted apart.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

Arguments = Mapping[str, Any]
Figures = dict[str, Any]


def figures(metadata: Any, detail: str, values: Tensor, moved: int, operations: int) -> Figures:
    """As Proton reads them: operations are counted in the width of the sums over `values`, 32 or 64 bits."""
    return {
        "name": f"{metadata.name} {detail} {str(values.dtype).removeprefix('torch.')}",
        "bytes": moved,
        f"flops{64 if values.itemsize == 8 else 32}": operations,
    }


def nbytes(args: Arguments, *names: str) -> int:
    """Bytes of whole tensors; an argument may be a tuple of them, or None."""
    arguments = [args[name] for name in names]
    tensors = [one for value in arguments for one in (value if isinstance(value, tuple) else (value,))]
    return sum(one.nbytes for one in tensors if one is not None)


def frames_read(num_segments: int, frames: int, kernel_size: int) -> int:
    """Frames that the parts of one clip read, `frames` each and those around them."""
    half = kernel_size // 2
    starts = range(0, num_segments, frames)
    return sum(min(num_segments, min(first + frames, num_segments) + half) - max(0, first - half) for first in starts)


def clip_shape(x: Tensor, num_segments: int) -> str:
    """N×T×C×P."""
    frames, channels, height, width = x.shape
    return f"{frames // num_segments}×{num_segments}×{channels}×{height * width}"


def banded(grid: tuple[int, ...], metadata: Any, args: Arguments) -> Figures:
    """`aggregate` and `input_gradient`: for every element K products with V·Θ and their sum."""
    x, T, K = args["x_ptr"], args["T"], args["K"]
    read = x.nbytes * frames_read(T, args["FRAMES"], K) // T
    small = nbytes(args, "importance_ptr", "kernel_ptr", "offset_ptr", "norm")
    operations = 2 * K + (args["offset_ptr"] is not None) + 3 * (args["norm"] is not None)
    operations += args["importance_ptr"] is not None
    name = "transposed" if args["REVERSED"] else "forward" if args["norm"] is None else "activated"
    detail = f"{name} {clip_shape(x, args['T'])}"
    return figures(metadata, detail, x, read + args["y_ptr"].nbytes + small, operations * x.numel())


def squeeze(grid: tuple[int, ...], metadata: Any, args: Arguments) -> Figures:
    """One addition for every element, three operations more behind a BatchNorm and ReLU."""
    x = args["x_ptr"]
    moved, operations = nbytes(args, "x_ptr", "squeezed_ptr", "norm"), 1 if args["norm"] is None else 4
    return figures(metadata, clip_shape(x, args["T"]), x, moved, operations * x.numel())


def weight_gradients(grid: tuple[int, ...], metadata: Any, args: Arguments) -> Figures:
    """K products of dY and X for every element; the rest is smaller by P."""
    x, T, K = args["x_ptr"], args["T"], args["K"]
    read = args["dy_ptr"].nbytes * frames_read(T, args["FRAMES"], K) // T + x.nbytes
    small = nbytes(args, "importance_ptr", "kernel_ptr", "d_importance_ptr", "d_kernel_ptr")
    return figures(metadata, clip_shape(x, args["T"]), x, read + small, 2 * K * x.numel())


def add_parts(grid: tuple[int, ...], metadata: Any, args: Arguments) -> Figures:
    """An addition for every element of every part."""
    results = [result for result in (args["first"], args["second"]) if result is not None]
    detail = " and ".join(f"{count}×{size}" for _, _, count, size in results)
    moved = sum(parts.nbytes + total.nbytes for parts, total, _, _ in results)
    return figures(metadata, detail, results[0][0], moved, sum(parts.numel() for parts, *_ in results))


def projections(grid: tuple[int, ...], metadata: Any, args: Arguments) -> Figures:
    """The first convolution of the local branch and, in training, the first Linear of the global one."""
    squeezed, T = args["squeezed_ptr"], args["T"]
    names = ["squeezed_ptr", "conv_ptr", "projected_ptr", "local_ptr", "global_ptr"]
    clips_frames = squeezed.numel() // args["C"]
    products = args["conv_ptr"].numel() * clips_frames
    if args["global_ptr"] is not None:
        names.append("first_ptr")
        products += args["first_ptr"].numel() * (squeezed.numel() // T)
    return figures(metadata, branches_shape(args), squeezed, nbytes(args, *names), 2 * products)


def weights(grid: tuple[int, ...], metadata: Any, args: Arguments) -> Figures:
    """The local branch's second convolution and the two linear layers of the global branch."""
    squeezed, T = args["squeezed_ptr"], args["T"]
    moved = nbytes(
        args, "squeezed_ptr", "projected_ptr", "conv_ptr", "first_ptr", "second_ptr", "local_norm", "global_norm",
        "local_ptr", "global_ptr", "local_statistics_ptr", "global_statistics_ptr", "importance_ptr", "kernel_ptr",
    )  # fmt: skip
    rows = squeezed.numel() // T
    products = args["conv_ptr"].numel() * (rows // args["C"]) * T
    products += (args["first_ptr"].numel() + args["second_ptr"].numel()) * rows
    return figures(metadata, branches_shape(args), squeezed, moved, 2 * products)


def output_gradients(grid: tuple[int, ...], metadata: Any, args: Arguments) -> Figures:
    """Back through the second layers of both branches; the global branch's sums over rows are products too."""
    squeezed, T = args["squeezed_ptr"], args["T"]
    moved = nbytes(
        args, "d_importance_ptr", "d_kernel_ptr", "squeezed_ptr", "importance_ptr", "kernel_ptr", "projected_ptr",
        "first_ptr", "second_ptr", "l_second_ptr", "global_norm", "local_norm", "d_output_ptr", "local_ptr",
        "global_ptr",
    )  # fmt: skip
    rows = squeezed.numel() // T
    products = args["l_second_ptr"].numel() * (rows // args["C"]) * T
    products += (3 * args["first_ptr"].numel() + 2 * args["second_ptr"].numel()) * rows
    return figures(metadata, branches_shape(args), squeezed, moved, 2 * products)


def input_gradients(grid: tuple[int, ...], metadata: Any, args: Arguments) -> Figures:
    """Both gradients of the local branch's first convolution, that of its second, dX̂ by way of the global branch."""
    squeezed, T = args["squeezed_ptr"], args["T"]
    moved = nbytes(
        args, "d_importance_ptr", "d_kernel_ptr", "squeezed_ptr", "importance_ptr", "kernel_ptr", "projected_ptr",
        "d_output_ptr", "first_ptr", "second_ptr", "conv_ptr", "global_norm", "local_norm", "local_ptr", "global_ptr",
        "dx_ptr", "global_gradients", "local_gradients",
    )  # fmt: skip
    rows = squeezed.numel() // T
    products = (2 * args["conv_ptr"].numel() + args["HIDDEN"] * args["C"]) * (rows // args["C"]) * T
    products += (2 * args["first_ptr"].numel() + args["second_ptr"].numel()) * rows
    return figures(metadata, branches_shape(args), squeezed, moved, 2 * products)


def branches_shape(args: Arguments) -> str:
    """N×T×C."""
    C, T = args["C"], args["T"]
    return f"{args['squeezed_ptr'].numel() // (C * T)}×{T}×{C}"
