"""What the operators' arguments are drawn as, from a problem, by name and in order."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.support.strategies import Problem, weights_in_layout

Arguments = dict[str, Any]
EPS = 1e-5


def weights(p: Problem) -> Arguments:
    return {"importance": p.importance(), "kernel": p.kernel()}


def shared(p: Problem) -> Arguments:
    """No V, and one Θ for all clips, as learned or fixed filters have it; T has to be told."""
    return {"importance": None, "kernel": p.kernel()[0], "num_segments": p.T}


def after(p: Problem) -> Arguments:
    """V of the frame written (TANet-R)."""
    return {**weights(p), "num_segments": p.T, "after": True}


def norm(p: Problem) -> Arguments:
    """A BatchNorm of values like X's, of a variance about 1: that of huge ones has no float. Exact on integers."""
    weight, bias, mean, variance = (p.tensor(p.C, salt=10 + i) for i in range(4))
    integers = p.values == "integers"
    variance = torch.ones_like(variance) if integers else variance.abs() + 0.5
    return {"norm": [weight, bias * p.magnitude, mean * p.magnitude, variance], "eps": 0.0 if integers else EPS}


def branch(p: Problem, salt: int, first: tuple[int, ...], last: tuple[int, ...]) -> list[Tensor]:
    """A branch's first weight, BatchNorm's four vectors and its second weight, of the order that keeps sums near 1."""
    weight, bias, mean, variance = (p.tensor(first[0], salt=salt + i) for i in range(4))
    statistics = [weight, bias, mean, variance.abs() + 0.5]
    first_weight, last_weight = p.tensor(*first, salt=salt + 4), p.tensor(*last, salt=salt + 5)
    return [first_weight * math.prod(first[1:]) ** -0.5, *statistics, last_weight * last[1] ** -0.5]


def branch_parameters(p: Problem) -> Arguments:
    hidden, width = max(1, p.C // 4), 2 * p.T
    return {
        "global_branch": branch(p, 30, (width, p.T), (p.K, width)),
        "local_branch": branch(p, 40, (hidden, p.C, 3), (p.C, hidden, 1)),
    }


def d_squeezed(p: Problem) -> Tensor:
    return p.tensor(p.N, p.C, p.T, salt=4) * p.dy_magnitude


def batch_norm(p: Problem) -> Arguments:
    """A BatchNorm in training, with statistics that are about those of X."""
    (weight, bias, mean, variance), eps = norm(p).values()
    wide = torch.promote_types(p.dtype, torch.float32)
    statistics = torch.stack([mean.to(wide), variance.to(wide), (variance.to(wide) + eps).rsqrt()])
    return {"weight": weight, "bias": bias, "statistics": statistics}


def batch_sums(p: Problem, salt: int) -> Tensor:
    return p.tensor(2, p.N, p.C, p.T, salt=salt).to(torch.promote_types(p.dtype, torch.float32))


def input_gradient_arguments(p: Problem, of_batch: bool) -> Arguments:
    """dγ and dβ are absent where the statistics are not the batch's."""
    d_weight, d_bias = (batch_sums(p, salt)[0, 0, :, 0] if of_batch else None for salt in (70, 71))
    return {
        "dy": p.gradient(), "x": p.features(), **batch_norm(p), **weights(p),
        "d_squeezed": weights_in_layout(d_squeezed(p), p.weights_layout), "d_weight": d_weight, "d_bias": d_bias,
    }  # fmt: skip


NORMALIZED: dict[str, Callable[[Problem], Arguments]] = {
    "batch_statistics": lambda p: {"x": replace(p, N=p.N + 1).features(), "eps": EPS},
    "normalized_squeeze": lambda p: {"x": p.features(), **batch_norm(p), "num_segments": p.T},
    "normalized_aggregate": lambda p: {"x": p.features(), **batch_norm(p), **weights(p)},
    "normalized_gradients": lambda p: {"dy": p.gradient(), "x": p.features(), **batch_norm(p), **weights(p)},
    "batch_norm_gradients": lambda p: {
        "d_sums": batch_sums(p, 60),
        "sums": batch_sums(p, 61),
        "d_squeezed": weights_in_layout(d_squeezed(p), p.weights_layout),
        "pixels": p.H * p.W,
    },
    "normalized_input_gradient": lambda p: input_gradient_arguments(p, of_batch=True),
    "normalized_input_gradient+frozen": lambda p: input_gradient_arguments(p, of_batch=False),
}
"""Of a TAM behind BatchNorm and ReLU, in training: rows of operators. A variance needs a clip more."""
