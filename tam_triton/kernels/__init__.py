"""Triton kernels, one file an operator. Importing this package imports Triton."""

from tam_triton.kernels.aggregate import activated_aggregate, aggregate, normalized_aggregate
from tam_triton.kernels.batch_norm import batch_norm_gradients, batch_statistics
from tam_triton.kernels.branch_gradients import branch_gradients
from tam_triton.kernels.branches import branches, training_branches
from tam_triton.kernels.input_gradient import input_gradient, normalized_input_gradient
from tam_triton.kernels.squeeze import activated_squeeze, normalized_squeeze, squeeze
from tam_triton.kernels.weight_gradients import normalized_gradients, weight_gradients

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
