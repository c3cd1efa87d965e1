"""Triton kernels, one file an operator. Importing this package imports Triton."""

from tam_triton.kernels.aggregate import aggregate
from tam_triton.kernels.branches import branches
from tam_triton.kernels.input_gradient import input_gradient
from tam_triton.kernels.squeeze import squeeze
from tam_triton.kernels.weight_gradients import weight_gradients

__all__ = ["aggregate", "branches", "input_gradient", "squeeze", "weight_gradients"]
