"""BatchNorm and ReLU before the module, as a TA-Block has them: A = ReLU(γ·x̂ + β), then TAM of A.

The backward takes BatchNorm's two sums from bands of dY instead of from dA. With m = [A > 0], A = m·(γ·x̂ + β), so

    B′[s,k] = Σ_p dY[s−k+K//2]·m[s],  B″[s,k] = Σ_p dY[s−k+K//2]·m[s]·x̂[s],  and B = γ·B″ + β·B′ is the band of dY·Aᵀ,
    D′[s] = V[s]·Σ_k Θ[k]·B′[s,k],  D″[s] = V[s]·Σ_k Θ[k]·B″[s,k]  are what dY gives of Σ_p dA·m and Σ_p dA·m·x̂,
    dβ = Σ_{n,s} (D′ + dX̂/P·Σ_p m),  dγ = Σ_{n,s} (D″ + dX̂/P·Σ_p m·x̂).

Legend as in `operators`; weight γ and bias β are (C,).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reference.arrays import Array, promote, shaped, windows
from reference.layers import EPSILON, MOMENTUM
from reference.operators import excite_and_aggregate_backward
from reference.tam import (
    Parameters,
    TAMForward,
    adaptive_kernel_backward,
    importance_map_backward,
    tam_forward,
)

PIXELS = (3, 4)  # of a clip view
ALL_BUT_CHANNELS = (0, 1, 3, 4)


@dataclass(frozen=True)
class Normalized:
    """A BatchNorm's input less its mean over its deviation, x̂, its deviation (C,) and what follows the ReLU.

    `mask` is m, 1 where A is above 0.
    """

    normalized: Array
    deviation: Array
    weight: Array
    bias: Array
    activated: Array

    @property
    def mask(self) -> Array:
        """m."""
        return (self.activated > 0).astype(np.float64)

    def sums(self) -> tuple[Array, Array]:
        """Σ_p m and Σ_p m·x̂, (N, C, T)."""
        counts, projections = self.mask.sum(PIXELS), (self.mask * self.normalized).sum(PIXELS)
        return counts.swapaxes(1, 2), projections.swapaxes(1, 2)


@dataclass(frozen=True)
class ActivatedForward:
    """BatchNorm and ReLU, the module after them, the running statistics after the call, and how it was called."""

    norm: Normalized
    tam: TAMForward
    running_mean: Array
    running_var: Array
    training: bool


def batch_statistics(x: npt.ArrayLike) -> tuple[Array, Array]:
    """Return the mean and the biased variance of every channel of x, (C,) each."""
    x = shaped("x", x, N=None, T=None, C=None, H=None, W=None)
    return x.mean(ALL_BUT_CHANNELS), x.var(ALL_BUT_CHANNELS)


def normalize(
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    bias: npt.ArrayLike,
    mean: npt.ArrayLike,
    deviation: npt.ArrayLike,
) -> Normalized:
    """Return x̂ = (x − mean)/deviation and A = ReLU(γ·x̂ + β)."""
    x = shaped("x", x, N=None, T=None, C=None, H=None, W=None)
    named = {"weight": weight, "bias": bias, "mean": mean, "deviation": deviation}
    weight, bias, mean, deviation = (shaped(name, values, C=x.shape[2]) for name, values in named.items())
    normalized = (x - of_channel(mean)) / of_channel(deviation)
    activated = np.maximum(of_channel(weight) * normalized + of_channel(bias), 0)
    return Normalized(normalized, deviation, weight, bias, activated)


def norm_bands(
    dy: npt.ArrayLike, norm: Normalized, importance: npt.ArrayLike, kernel: npt.ArrayLike
) -> tuple[Array, Array, Array, Array]:
    """Return dV, dΘ, D′ and D″ from the bands B′ and B″."""
    dy = promote("dy", dy, like=norm.activated)
    N, T, C, _, _ = dy.shape
    importance = shaped("importance", importance, N=N, C=C, T=T)
    kernel = shaped("kernel", kernel, N=N, C=C, K=None)
    later = windows(dy, kernel.shape[2], axis=1)[..., ::-1]  # dY[s−k+K//2] in the place k
    of_mask = np.einsum("nschwk,nschw->ncsk", later, norm.mask)
    of_normalized = np.einsum("nschwk,nschw->ncsk", later, norm.mask * norm.normalized)
    band = norm.weight[:, None, None] * of_normalized + norm.bias[:, None, None] * of_mask
    d_importance = np.einsum("nck,ncsk->ncs", kernel, band)
    d_kernel = np.einsum("ncs,ncsk->nck", importance, band)
    of_mask, of_normalized = (importance * np.einsum("nck,ncsk->ncs", kernel, one) for one in (of_mask, of_normalized))
    return d_importance, d_kernel, of_mask, of_normalized


def norm_gradients(
    of_mask: npt.ArrayLike,
    of_normalized: npt.ArrayLike,
    counts: npt.ArrayLike,
    projections: npt.ArrayLike,
    d_squeezed: npt.ArrayLike,
    pixels: int,
) -> tuple[Array, Array]:
    """Return dγ and dβ, (C,), from D′, D″, Σ_p m, Σ_p m·x̂ and dX̂, (N, C, T), of P pixels."""
    of_mask = shaped("of_mask", of_mask, N=None, C=None, T=None)
    others = {"of_normalized": of_normalized, "counts": counts, "projections": projections, "d_squeezed": d_squeezed}
    of_normalized, counts, projections, spread = (promote(name, one, like=of_mask) for name, one in others.items())
    d_bias = (of_mask + spread / pixels * counts).sum((0, 2))
    return (of_normalized + spread / pixels * projections).sum((0, 2)), d_bias


def norm_input_gradient(
    dy: npt.ArrayLike,
    norm: Normalized,
    importance: npt.ArrayLike,
    kernel: npt.ArrayLike,
    d_squeezed: npt.ArrayLike,
    gradients: tuple[Array, Array] | None,
) -> Array:
    """Return dx = γ/σ·(dA − dβ/M − x̂·dγ/M) with dA = m·(Mᵀ·dY + dX̂/P), M values a channel.

    `gradients` are dγ and dβ; None: the statistics are not the batch's, and dx is γ/σ·dA.
    """
    d_activated, _, _ = excite_and_aggregate_backward(dy, norm.activated, importance, kernel)
    N, T, C, H, W = d_activated.shape
    spread = shaped("d_squeezed", d_squeezed, N=N, C=C, T=T).swapaxes(1, 2)[..., None, None] / (H * W)
    d_centred = norm.mask * (d_activated + spread)
    if gradients is not None:
        d_weight, d_bias = (of_channel(one) / (N * T * H * W) for one in gradients)
        d_centred = d_centred - d_bias - norm.normalized * d_weight
    return of_channel(norm.weight / norm.deviation) * d_centred


def activated_forward(
    x: npt.ArrayLike,
    norm: Mapping[str, npt.ArrayLike],
    parameters: Mapping[str, npt.ArrayLike],
    *,
    training: bool,
    norm_training: bool,
) -> ActivatedForward:
    """Apply BatchNorm, ReLU and the module to clips x, (N, T, C, H, W).

    Args:
        x: the clips, of any real dtype.
        norm: `weight`, `bias`, `running_mean` and `running_var` (C,).
        parameters: of the module, as `tam_forward` takes them.
        training: of the module's own BatchNorms.
        norm_training: whether the BatchNorm in front takes the batch's statistics.

    Raises:
        TypeError: an argument does not hold real numbers.
        ValueError: as `tam_forward`; x has a single value a channel and `norm_training` asks for its variance.
    """
    x = shaped("x", x, N=None, T=None, C=None, H=None, W=None)
    running_mean, running_var = (shaped(name, norm[name], C=x.shape[2]) for name in ("running_mean", "running_var"))
    mean, variance = running_mean, running_var
    if norm_training:
        count = x.size // x.shape[2]
        if count == 1:
            raise ValueError(f"x must have more than 1 value per channel in training, got shape {x.shape}")
        mean, variance = batch_statistics(x)
        running_mean = (1 - MOMENTUM) * running_mean + MOMENTUM * mean
        running_var = (1 - MOMENTUM) * running_var + MOMENTUM * variance * count / (count - 1)
    normalized = normalize(x, norm["weight"], norm["bias"], mean, np.sqrt(variance + EPSILON))
    tam = tam_forward(normalized.activated, parameters, training=training)
    return ActivatedForward(normalized, tam, running_mean, running_var, norm_training)


def activated_backward(dy: npt.ArrayLike, forward: ActivatedForward) -> tuple[Array, Parameters]:
    """Return dx and the gradients of all parameters, those of the BatchNorm in front as `weight` and `bias`."""
    norm, tam = forward.norm, forward.tam
    H, W = norm.activated.shape[3:]
    d_importance, d_kernel, of_mask, of_normalized = norm_bands(dy, norm, tam.importance, tam.kernel)
    by_local, local_gradients = importance_map_backward(d_importance, tam.local_branch, tam.parameters)
    by_global, global_gradients = adaptive_kernel_backward(d_kernel, tam.global_branch, tam.parameters)
    d_squeezed = by_local + by_global
    d_weight, d_bias = norm_gradients(of_mask, of_normalized, *norm.sums(), d_squeezed, H * W)
    gradients = (d_weight, d_bias) if forward.training else None
    dx = norm_input_gradient(dy, norm, tam.importance, tam.kernel, d_squeezed, gradients)
    return dx, {"weight": d_weight, "bias": d_bias} | global_gradients | local_gradients


def of_channel(values: Array) -> Array:
    """(C,) to be broadcast over a clip view."""
    return values[:, None, None]
