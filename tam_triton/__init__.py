"""TAM: Temporal Adaptive Module for Video Recognition (arXiv 2005.06803), as Triton kernels and modules for PyTorch."""

from tam_triton.classifier import VideoClassifier, load
from tam_triton.functional import aggregate, squeeze, squeeze_and_aggregate
from tam_triton.temporal import TAM

__version__ = "0.1.0"

__all__ = ["TAM", "VideoClassifier", "aggregate", "load", "squeeze", "squeeze_and_aggregate"]
