"""Triton kernels, one file an operator. Importing this package imports Triton."""

from tam_triton.kernels.aggregate import activated_aggregate, aggregate
from tam_triton.kernels.branch_gradients import branch_gradients
from tam_triton.kernels.branches import branches, training_branches
from tam_triton.kernels.input_gradient import input_gradient
from tam_triton.kernels.squeeze import activated_squeeze, squeeze
from tam_triton.kernels.weight_gradients import weight_gradients

__all__ = [
    "activated_aggregate",
    "activated_squeeze",
    "aggregate",
    "branch_gradients",
    "branches",
    "input_gradient",
    "squeeze",
    "training_branches",
    "weight_gradients",
]
