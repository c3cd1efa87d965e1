"""The branches in training, where BatchNorm takes the batch's statistics, and their gradients (equations 2 and 3)."""

import torch
from torch import Tensor
from torch.nn import functional

from tam_triton import layout
from tam_triton.plain.views import widened


def training_branches(
    squeezed: Tensor,
    g_first: Tensor, g_weight: Tensor, g_bias: Tensor, g_second: Tensor,
    l_first: Tensor, l_weight: Tensor, l_bias: Tensor, l_second: Tensor,
    eps: float, channels_last: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """V `(N, C, T)`, Θ `(N, C, K)`, z₃ `(N, C/β, T)`, then mean, unbiased variance and 1/σ of G and of L, `(3, ·)`.

    Each branch is its first weight, BatchNorm's weight and bias, and its second weight, shaped as in the published
    checkpoints. z₃, which enters BatchNorm, and the statistics are in the dtype of sums. V and Θ are stored channels
    fastest beside a channels_last feature map. Differentiable in both.
    """
    g_first, g_weight, g_bias, g_second = map(widened, (g_first, g_weight, g_bias, g_second))
    l_first, l_weight, l_bias, l_second = map(widened, (l_first, l_weight, l_bias, l_second))
    rows = functional.linear(widened(squeezed).flatten(0, 1), g_first)
    projected = functional.conv1d(widened(squeezed), l_first, padding=l_first.shape[-1] // 2)
    activated, hidden = (
        functional.batch_norm(values, None, None, weight, bias, training=True, eps=eps).relu()
        for values, weight, bias in ((rows, g_weight, g_bias), (projected, l_weight, l_bias))
    )
    kernel = functional.linear(activated, g_second).softmax(-1).unflatten(0, squeezed.shape[:2])
    importance = functional.conv1d(hidden, l_second).sigmoid()
    return (
        layout.dense_weights(importance.type_as(squeezed), channels_last),
        layout.dense_weights(kernel.type_as(squeezed), channels_last),
        projected,
        statistics(rows.detach(), eps),
        statistics(projected.detach(), eps),
    )


def statistics(values: Tensor, eps: float) -> Tensor:
    """Mean, unbiased variance and 1/σ of each channel of `(N, C)` or `(N, C, T)`."""
    variance, mean = torch.var_mean(values.transpose(0, 1).flatten(1), 1)
    count = values.numel() // values.shape[1]
    return torch.stack([mean, variance, (variance * ((count - 1) / count) + eps).rsqrt()])


def branch_gradients(
    d_importance: Tensor, d_kernel: Tensor, squeezed: Tensor, importance: Tensor, kernel: Tensor, projected: Tensor,
    g_first: Tensor, g_weight: Tensor, g_bias: Tensor, g_second: Tensor,
    l_first: Tensor, l_weight: Tensor, l_bias: Tensor, l_second: Tensor,
    g_statistics: Tensor, l_statistics: Tensor, channels_last: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dX̂ and the gradients of both branches' parameters, in the order of `training_branches`, from its results.

    dX̂ is stored as V is.
    """
    x, v, dv = widened(squeezed), widened(importance), widened(d_importance)
    taps = l_first.shape[-1]
    d_scores = dv * v * (1 - v)
    d_hidden = torch.einsum("ch,nct->nht", widened(l_second).squeeze(-1), d_scores)
    d_projected, dl_weight, dl_bias, hidden = norm_gradients(d_hidden, projected, l_weight, l_bias, l_statistics)
    dl_second = torch.einsum("nct,nht->ch", d_scores, hidden)[..., None]
    windows = functional.pad(x, (taps // 2, taps // 2)).unfold(-1, taps, 1)
    dl_first = torch.einsum("nht,nctj->hcj", d_projected, windows)
    dx = functional.conv1d(d_projected, widened(l_first).transpose(0, 1).flip(-1), padding=taps // 2)

    rows, theta, d_theta = (widened(value).flatten(0, 1) for value in (squeezed, kernel, d_kernel))
    d_scores = theta * (d_theta - (theta * d_theta).sum(-1, keepdim=True))
    d_activated = d_scores @ widened(g_second)
    wide = functional.linear(rows, widened(g_first))
    d_wide, dg_weight, dg_bias, activated = norm_gradients(d_activated, wide, g_weight, g_bias, g_statistics)
    dx = dx + (d_wide @ widened(g_first)).view(dx.shape)
    gradients = (d_wide.mT @ rows, dg_weight, dg_bias, d_scores.mT @ activated, dl_first, dl_weight, dl_bias, dl_second)
    parameters = (g_first, g_weight, g_bias, g_second, l_first, l_weight, l_bias, l_second)
    dx = layout.dense_weights(dx.type_as(squeezed), channels_last)
    return dx, *(one.type_as(p) for one, p in zip(gradients, parameters, strict=True))  # type: ignore[return-value]


def norm_gradients(
    d_activated: Tensor, values: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Through ReLU and BatchNorm of `(N, C)` or `(N, C, T)`: to its input, weight and bias; and the ReLU's output."""
    shape = (1, -1, 1)[: values.dim()]
    others = [dim for dim in range(values.dim()) if dim != 1]
    mean, inverse, scale = (one.view(shape) for one in (statistics[0], statistics[2], widened(weight)))
    normalized = (values - mean) * inverse
    activated = (normalized * scale + widened(bias).view(shape)).relu()
    d_output = torch.where(activated <= 0, 0.0, d_activated)
    d_weight, d_bias = (d_output * normalized).sum(others), d_output.sum(others)
    count = values.numel() // values.shape[1]
    d_centred = d_output - (d_bias.view(shape) + normalized * d_weight.view(shape)) / count
    return scale * inverse * d_centred, d_weight, d_bias, activated
