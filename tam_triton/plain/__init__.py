"""The operators in plain torch, for the CPU and for any device without Triton.

Shapes: `x`, `dy` `(N·T, C, H, W)`; importance V `(N, C, T)`; kernel Θ `(N, C, K)`. Sums accumulate in float32
(float64 for float64) and are rounded once.

Each of the two formulas over pixels stands here four times. `by_tap` says what is computed, on anything that torch
runs on, with derivatives. Executed as it stands it crosses memory several times, so the CPU has forms that cross it
about once: `in_cache` where torch executes call by call, `by_frame` and `by_shift` where Inductor generates code.
"""

from tam_triton.plain.evaluation import activated_aggregate, activated_squeeze, branches
from tam_triton.plain.normalized import (
    batch_norm_gradients,
    batch_statistics,
    normalized_aggregate,
    normalized_gradients,
    normalized_input_gradient,
    normalized_squeeze,
)
from tam_triton.plain.operators import aggregate, input_gradient, squeeze, weight_gradients
from tam_triton.plain.training import branch_gradients, training_branches

__all__ = [
    "activated_aggregate",
    "activated_squeeze",
    "aggregate",
    "batch_norm_gradients",
    "batch_statistics",
    "branch_gradients",
    "branches",
    "input_gradient",
    "normalized_aggregate",
    "normalized_gradients",
    "normalized_input_gradient",
    "normalized_squeeze",
    "squeeze",
    "training_branches",
    "weight_gradients",
]
