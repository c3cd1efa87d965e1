"""Temporal modules on frames `(N·T, C, H, W)`."""

from tam_triton.temporal.tam import TAM

__all__ = ["TAM"]
