"""What every part of the reference shares: promotion to float64, checked shapes, windows over time."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def promote(name: str, values: npt.ArrayLike, *, like: Array | None = None) -> Array:
    """Return real `values` of any shape, or of the shape of `like`, as float64.

    Raises TypeError for numbers that are not real and ValueError for another shape than that of `like`.
    """
    array = np.asarray(values)
    if not np.can_cast(array.dtype, np.float64, "same_kind"):
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    if like is not None and array.shape != like.shape:
        raise ValueError(f"{name} must have shape {like.shape}, got {array.shape}")
    return array.astype(np.float64, copy=False)


def shaped(name: str, values: npt.ArrayLike, /, **extents: int | None) -> Array:
    """Return `values` as float64 after checking their shape.

    `extents` are the axes in order, by their names in the legend; None accepts any extent of at least 1. Raises
    TypeError for numbers that are not real and ValueError for another shape.
    """
    array = promote(name, values)
    fits = array.ndim == len(extents) and all(
        got >= 1 if wanted is None else got == wanted for got, wanted in zip(array.shape, extents.values(), strict=True)
    )
    if not fits:
        axes = ", ".join(axis if wanted is None else f"{axis}={wanted}" for axis, wanted in extents.items())
        raise ValueError(f"{name} must have shape ({axes}), every extent at least 1; got {array.shape}")
    return array


def check_odd(name: str, taps: int) -> None:
    """Raise ValueError, naming the argument, unless it has an odd number of taps and so a middle one."""
    if taps % 2 == 0:
        raise ValueError(f"{name} must have an odd number of taps, got {taps}")


def windows(x: Array, taps: int, axis: int) -> Array:
    """Return what each of `taps` (odd) sees along `axis`: `result[…, t, …, k] = x[…, t + k − taps // 2, …]`.

    Outside of `x` the taps see zeros. The result has one axis more than `x`, the last, of extent `taps`.
    """
    padding = [(0, 0)] * x.ndim
    padding[axis] = (taps // 2, taps // 2)
    return np.lib.stride_tricks.sliding_window_view(np.pad(x, padding), taps, axis=axis)
