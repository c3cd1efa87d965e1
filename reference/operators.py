"""Equations 1, 4 and 5, which touch every pixel, with their gradients: what the kernels must compute.

N clips, T frames, C channels, H × W pixels, P = H·W, K taps. Throughout, `x`, `z`, `y` and their gradients are clip
views (N, T, C, H, W), `squeezed` and `importance` are (N, C, T), `kernel` is (N, C, K). Arguments may be of any real
dtype and are promoted to float64. Every function raises TypeError for numbers that are not real, and ValueError for
shapes that disagree, an empty axis, or an even K; the error names the argument.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from reference.arrays import Array, check_odd, promote, shaped, windows


def squeeze(x: npt.ArrayLike) -> Array:
    """Average every frame over its pixels (equation 1): `X̂[n,c,t] = mean_p X[n,t,c,p]`."""
    return _clips("x", x).mean(axis=(3, 4)).swapaxes(1, 2)


def squeeze_backward(d_squeezed: npt.ArrayLike, shape: Sequence[int]) -> Array:
    """Spread the gradient of equation 1 evenly over the pixels: `dX[n,t,c,p] = dX̂[n,c,t] / P`.

    `shape` is that of x, (N, T, C, H, W).
    """
    if len(shape) != 5 or min(shape) < 1:
        raise ValueError(f"shape must be (N, T, C, H, W), every extent at least 1; got {tuple(shape)}")
    N, T, C, H, W = shape
    d_squeezed = shaped("d_squeezed", d_squeezed, N=N, C=C, T=T)
    per_frame = d_squeezed.swapaxes(1, 2)[:, :, :, None, None]
    return np.broadcast_to(per_frame, (N, T, C, H, W)) / (H * W)


def excite(x: npt.ArrayLike, importance: npt.ArrayLike) -> Array:
    """Scale every frame by its importance (equation 4): `Z[n,t,c,p] = V[n,c,t] · X[n,t,c,p]`."""
    x = _clips("x", x)
    return np.einsum("nct,ntchw->ntchw", _importance_of(importance, x), x)


def excite_backward(dz: npt.ArrayLike, x: npt.ArrayLike, importance: npt.ArrayLike) -> tuple[Array, Array]:
    """Return the gradients of equation 4, `dX[t] = V[t] · dZ[t]` and `dV[t] = Σ_p dZ[t] · X[t]`."""
    x = _clips("x", x)
    dz = promote("dz", dz, like=x)
    dx = np.einsum("nct,ntchw->ntchw", _importance_of(importance, x), dz)
    d_importance = np.einsum("ntchw,ntchw->nct", dz, x)
    return dx, d_importance


def aggregate(z: npt.ArrayLike, kernel: npt.ArrayLike) -> Array:
    """Sum over neighbouring frames with every channel's own kernel (equation 5).

    `Y[n,t,c,p] = Σ_k Θ[n,c,k] · Z[n, t+k−K//2, c, p]`: a cross-correlation with zeros outside the clip, so that for
    K = 3 tap 0 multiplies frame t−1.
    """
    z = _clips("z", z)
    kernel = _kernel_of(kernel, z)
    return np.einsum("nck,ntchwk->ntchw", kernel, windows(z, kernel.shape[2], axis=1))


def aggregate_backward(dy: npt.ArrayLike, z: npt.ArrayLike, kernel: npt.ArrayLike) -> tuple[Array, Array]:
    """Return the gradients of equation 5, `dZ[t] = Σ_k Θ[k] · dY[t−k+K//2]` and `dΘ[k] = Σ_{t,p} dY[t] · Z[t+k−K//2]`.

    The former is equation 5 again, with the kernel's taps in reverse.
    """
    z = _clips("z", z)
    dy = promote("dy", dy, like=z)
    kernel = _kernel_of(kernel, z)
    dz = aggregate(dy, kernel[:, :, ::-1])
    d_kernel = np.einsum("ntchw,ntchwk->nck", dy, windows(z, kernel.shape[2], axis=1))
    return dz, d_kernel


def excite_and_aggregate(x: npt.ArrayLike, importance: npt.ArrayLike, kernel: npt.ArrayLike) -> Array:
    """Apply equations 4 and 5, one after the other: `Y[t] = Σ_k Θ[k] · V[t+k−K//2] · X[t+k−K//2]`."""
    return aggregate(excite(x, importance), kernel)


def excite_and_aggregate_backward(
    dy: npt.ArrayLike, x: npt.ArrayLike, importance: npt.ArrayLike, kernel: npt.ArrayLike
) -> tuple[Array, Array, Array]:
    """Return `(dX, dV, dΘ)`, the gradients of equations 4 and 5 together."""
    dz, d_kernel = aggregate_backward(dy, excite(x, importance), kernel)
    dx, d_importance = excite_backward(dz, x, importance)
    return dx, d_importance, d_kernel


def band_matrix(importance: npt.ArrayLike, kernel: npt.ArrayLike) -> Array:
    """Return equations 4 and 5 as one matrix per channel, (N, C, T, T): `M[t,s] = Θ[s−t+K//2] · V[s]`.

    `Y = M·X` and `dX = Mᵀ·dY`, where the columns of X are a channel's pixels.
    """
    importance = shaped("importance", importance, N=None, C=None, T=None)
    N, C, T = importance.shape
    kernel = shaped("kernel", kernel, N=N, C=C, K=None)
    K = kernel.shape[2]
    check_odd("kernel", K)
    diagonals = np.stack([np.eye(T, k=k - K // 2) for k in range(K)])
    return np.einsum("nck,kts,ncs->ncts", kernel, diagonals, importance)


def _clips(name: str, values: npt.ArrayLike) -> Array:
    return shaped(name, values, N=None, T=None, C=None, H=None, W=None)


def _importance_of(importance: npt.ArrayLike, clips: Array) -> Array:
    N, T, C, _, _ = clips.shape
    return shaped("importance", importance, N=N, C=C, T=T)


def _kernel_of(kernel: npt.ArrayLike, clips: Array) -> Array:
    N, _, C, _, _ = clips.shape
    kernel = shaped("kernel", kernel, N=N, C=C, K=None)
    check_odd("kernel", kernel.shape[2])
    return kernel
