"""What a user would run instead: TAM as its public implementations formulate it, written anew.

Permute, multiply, one grouped conv2d with N·C groups, permute back: about nine passes over a tensor of X's size.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 — its usual name

from tam_triton import TAM


def squeeze(x: Tensor, num_segments: int) -> Tensor:
    """(N·T, C, H, W) → (N, C, T)."""
    pooled = F.adaptive_avg_pool2d(x, 1)
    return pooled.reshape(-1, num_segments, x.shape[1]).permute(0, 2, 1).contiguous()


def excite_and_aggregate(x: Tensor, importance: Tensor, kernel: Tensor) -> Tensor:
    """One convolution over (T, P) with N·C groups."""
    (N, C, T), K = importance.shape, kernel.shape[-1]
    H, W = x.shape[2:]
    z = x.reshape(N, T, C, H, W).permute(0, 2, 1, 3, 4).contiguous() * importance[..., None, None]
    y = F.conv2d(z.view(1, N * C, T, H * W), kernel.reshape(N * C, 1, K, 1), padding=(K // 2, 0), groups=N * C)
    return y.view(N, C, T, H, W).permute(0, 2, 1, 3, 4).contiguous().view(N * T, C, H, W)


def aggregate_and_excite(x: Tensor, importance: Tensor, kernel: Tensor) -> Tensor:
    """The same convolution, and V after it (TANet-R)."""
    y = excite_and_aggregate(x, torch.ones_like(importance), kernel)
    return y * importance.transpose(1, 2).reshape(-1, x.shape[1], 1, 1)


def filtered(x: Tensor, kernel: Tensor, num_segments: int) -> Tensor:
    """Channelwise temporal convolution by Θ `(C, K)`, as TEINet's public code has it: a Conv1d over `(N·H·W, C, T)`."""
    clips = x.reshape(-1, num_segments, *x.shape[1:]).permute(0, 3, 4, 2, 1)  # (N, H, W, C, T)
    y = F.conv1d(clips.flatten(0, 2), kernel[:, None], padding=kernel.shape[-1] // 2, groups=x.shape[1])
    return y.view(clips.shape).permute(0, 4, 3, 1, 2).reshape(x.shape)


def shift(x: Tensor, num_segments: int, shift_div: int = 8) -> Tensor:
    """TSM's shift as its public code has it: three slices into zeros."""
    clips, fold = x.view(-1, num_segments, *x.shape[1:]), x.shape[1] // shift_div
    out = torch.zeros_like(clips)
    out[:, :-1, :fold] = clips[:, 1:, :fold]
    out[:, 1:, fold : 2 * fold] = clips[:, :-1, fold : 2 * fold]
    out[:, :, 2 * fold :] = clips[:, :, 2 * fold :]
    return out.view(x.shape)


def tam(module: TAM, x: Tensor) -> Tensor:
    """The whole of TAM with `module`'s parameters and buffers, through none of its code."""
    weight = module.get_parameter
    pooled = squeeze(x, module.num_segments)
    hidden = F.relu(batch_norm(module.G[1], F.linear(pooled.flatten(0, 1), weight("G.0.weight"))))
    kernel = torch.softmax(F.linear(hidden, weight("G.3.weight")), -1).view(*pooled.shape[:2], -1)
    reduced = F.relu(batch_norm(module.L[1], F.conv1d(pooled, weight("L.0.weight"), padding="same")))
    importance = torch.sigmoid(F.conv1d(reduced, weight("L.3.weight")))
    return excite_and_aggregate(x, importance, kernel)


def batch_norm(layer: nn.Module, x: Tensor) -> Tensor:
    """Its statistics are updated in training mode."""
    assert isinstance(layer, nn.BatchNorm1d)
    return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.training, 0.1, 1e-5)
