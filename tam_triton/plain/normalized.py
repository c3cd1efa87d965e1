"""BatchNorm and ReLU in front of the operators, in training: A = ReLU(γ·x̂ + β) is part of each, and its gradients too.

`weight` γ and `bias` β are (C), `statistics` (3, C): mean, unbiased variance and 1/σ, in the dtype of sums. They may be
of the batch or of a BatchNorm that is frozen. m = [A > 0], and where A is NaN. Other shapes as in `tam_triton.plain`.
"""

import torch
from torch import Tensor

from tam_triton import layout
from tam_triton.plain import by_tap, operators
from tam_triton.plain.views import inside_clip, widened


def batch_statistics(x: Tensor, eps: float) -> Tensor:
    """Mean, unbiased variance and 1/σ of every channel of x, `(3, C)`."""
    variance, mean = torch.var_mean(widened(x), (0, 2, 3))
    count = x.numel() // x.shape[1]
    return torch.stack([mean, variance, (variance * ((count - 1) / count) + eps).rsqrt()])


def normalized_squeeze(
    x: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor, num_segments: int
) -> tuple[Tensor, Tensor]:
    """X̂ `(N, C, T)` of A, and Σ_p m and Σ_p m·x̂, `(2, N, C, T)` in the dtype of sums."""
    normalized, activated = activation(x, weight, bias, statistics)
    squeezed = operators.squeeze(activated, num_segments).type_as(x)
    mask = mask_of(activated)
    sums = torch.stack([mask.type_as(activated), normalized.where(mask, 0.0)]).sum((3, 4))  # (2, N·T, C)
    return squeezed, sums.unflatten(1, (-1, num_segments)).transpose(2, 3).contiguous()


def normalized_aggregate(
    x: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor, importance: Tensor, kernel: Tensor
) -> Tensor:
    """Excitation and aggregation of A (equations 4 and 5)."""
    _, activated = activation(x, weight, bias, statistics)
    weights = widened(importance)[..., None] * widened(kernel)[:, :, None]
    channels_last = layout.is_channels_last(x)
    return layout.to_layout(
        by_tap.weighted_sum(activated, weights, None, False, channels_last).type_as(x), channels_last
    )


def normalized_gradients(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor, importance: Tensor, kernel: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dV, dΘ, and what dY gives of Σ_p dA·m and of Σ_p dA·m·x̂, `(2, N, C, T)` in the dtype of sums.

    All follow from two bands, B′[s,k] = Σ_p dY[s−k+K//2]·m[s] and B″ with m·x̂: that of dY·Aᵀ is γ·B″ + β·B′.
    """
    T, K = importance.shape[-1], kernel.shape[-1]
    normalized, activated = activation(x, weight, bias, statistics)
    mask = mask_of(activated)
    inside = inside_clip(T, K, x.device)
    of_mask = by_tap.band(dy, mask.type_as(activated), T, K)
    of_normalized = by_tap.band(dy, normalized.where(mask, 0.0), T, K)
    v, theta = widened(importance), widened(kernel)
    gamma, beta = widened(weight)[:, None], widened(bias)[:, None]
    sums = torch.stack([(one * theta[:, :, None]).where(inside, 0.0).sum(-1) for one in (of_mask, of_normalized)])
    d_importance = gamma * sums[1] + beta * sums[0]
    band = gamma[..., None] * of_normalized + beta[..., None] * of_mask
    d_kernel = (band * v[..., None]).where(inside, 0.0).sum(2)
    return d_importance.type_as(importance).contiguous(), d_kernel.type_as(kernel).contiguous(), (v * sums).contiguous()


def batch_norm_gradients(d_sums: Tensor, sums: Tensor, d_squeezed: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
    """dγ = Σ dA·m·x̂ and dβ = Σ dA·m, `(C)` in the dtype of sums.

    Args:
        d_sums: what dY gives of both for each frame, from `normalized_gradients`.
        sums: Σ_p m and Σ_p m·x̂, from `normalized_squeeze`.
        d_squeezed: dX̂ `(N, C, T)`.
        pixels: P.
    """
    d_bias, d_weight = (d_sums + widened(d_squeezed) / pixels * sums).sum((1, 3))
    return d_weight.clone(), d_bias.clone()


def normalized_input_gradient(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: Tensor,
    importance: Tensor,
    kernel: Tensor,
    d_squeezed: Tensor,
    d_weight: Tensor | None,
    d_bias: Tensor | None,
) -> Tensor:
    """dx = γ/σ·(dA − dβ/M − x̂·dγ/M), dense in x's layout, with dA = m·(Mᵀ·dY + dX̂/P) and M values a channel.

    Without dγ and dβ it is γ/σ·dA: the statistics are not those of the batch.
    """
    normalized, activated = activation(x, weight, bias, statistics)
    weights = widened(importance)[..., None] * widened(kernel)[:, :, None]
    offset = widened(d_squeezed) / (x.shape[2] * x.shape[3])
    channels_last = layout.is_channels_last(x)
    centred = by_tap.weighted_sum(widened(dy), weights, offset, True, channels_last).where(mask_of(activated), 0.0)
    if d_weight is not None and d_bias is not None:
        count = x.numel() // x.shape[1]
        centred = centred - (of_channel(d_bias) + normalized * of_channel(d_weight)) / count
    dx = of_channel(widened(weight) * statistics[2]) * centred
    return layout.to_layout(dx.type_as(x), channels_last)


def activation(x: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor) -> tuple[Tensor, Tensor]:
    """x̂ and A, in the dtype of sums."""
    centred = widened(x) - of_channel(statistics[0])
    scale = of_channel(widened(weight) * statistics[2])
    return centred * of_channel(statistics[2]), (centred * scale + of_channel(widened(bias))).relu()


def mask_of(activated: Tensor) -> Tensor:
    """m, where a ReLU lets gradients pass."""
    return ~(activated <= 0)


def of_channel(values: Tensor) -> Tensor:
    """`(C)` to be broadcast over a feature map."""
    return values[:, None, None]
