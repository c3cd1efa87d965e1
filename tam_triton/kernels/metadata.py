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
    small = nbytes(args, "importance_ptr", "kernel_ptr", "offset_ptr", "norm", "features_ptr", "batch_norm")
    normed = args["norm"] is not None or args["batch_norm"] is not None
    operations = 2 * K + (args["offset_ptr"] is not None) + 3 * normed
    operations += args["importance_ptr"] is not None
    if (gradients := args["norm_gradients"]) is not None:
        small += gradients[0].nbytes + gradients[1].nbytes
        operations += 3
    name = "transposed" if args["REVERSED"] else "activated" if normed else "forward"
    detail = f"{name} {clip_shape(x, args['T'])}"
    return figures(metadata, detail, x, read + args["y_ptr"].nbytes + small, operations * x.numel())


def squeeze(grid: tuple[int, ...], metadata: Any, args: Arguments) -> Figures:
    """One addition for every element, three operations more behind a BatchNorm and ReLU; two sums more in training."""
    x = args["x_ptr"]
    moved = nbytes(args, "x_ptr", "squeezed_ptr", "sums_ptr", "norm", "batch_norm")
    operations = 1 + 3 * (args["norm"] is not None) + 5 * (args["batch_norm"] is not None)
    return figures(metadata, clip_shape(x, args["T"]), x, moved, operations * x.numel())


def weight_gradients(grid: tuple[int, ...], metadata: Any, args: Arguments) -> Figures:
    """K products of dY and X for every element, K sums and ReLU and BatchNorm more in training; the rest is smaller."""
    x, T, K = args["x_ptr"], args["T"], args["K"]
    read = args["dy_ptr"].nbytes * frames_read(T, args["FRAMES"], K) // T + x.nbytes
    names = ("importance_ptr", "kernel_ptr", "d_importance_ptr", "d_kernel_ptr", "d_sums_ptr", "batch_norm")
    operations = 2 * K + (K + 3) * (args["batch_norm"] is not None)
    return figures(metadata, clip_shape(x, args["T"]), x, read + nbytes(args, *names), operations * x.numel())


def moments(grid: tuple[int, ...], metadata: Any, args: Arguments) -> Figures:
    """A subtraction, a square and two additions for every element."""
    x = args["x_ptr"]
    frames, channels, height, width = x.shape
    detail = f"{frames}×{channels}×{height * width}"
    return figures(metadata, detail, x, nbytes(args, "x_ptr", "parts_ptr"), 4 * x.numel())


def statistics(grid: tuple[int, ...], metadata: Any, args: Arguments) -> Figures:
    """Each part's mean and variance, put together."""
    parts = args["parts_ptr"]
    detail = f"{parts.shape[1]}×{parts.shape[2]}"
    return figures(metadata, detail, parts, nbytes(args, "parts_ptr", "statistics_ptr"), 8 * parts.numel())


def norm_gradients(grid: tuple[int, ...], metadata: Any, args: Arguments) -> Figures:
    """Two sums over clips and frames, of a sum and a product each."""
    squeezed = args["d_squeezed_ptr"]
    clips, channels, T = squeezed.shape
    names = ("d_sums_ptr", "sums_ptr", "d_squeezed_ptr", "d_weight_ptr", "d_bias_ptr")
    return figures(metadata, f"{clips}×{T}×{channels}", args["sums_ptr"], nbytes(args, *names), 6 * squeezed.numel())


def add_parts(grid: tuple[int, ...], metadata: Any, args: Arguments) -> Figures:
    """An addition for every element of every part."""
    results = [result for result in (args["first"], args["second"], args["third"]) if result is not None]
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
