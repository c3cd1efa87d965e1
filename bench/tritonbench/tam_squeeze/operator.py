"""Spatial squeeze: the mean over pixels of every channel and frame (TAM, arXiv 2005.06803, equation 1)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from tritonbench.utils.triton_op import BenchmarkOperatorMetrics, register_benchmark, register_metric

import tam_triton
from bench import peers
from bench.tritonbench.maps import OnMaps, compiled


class Operator(OnMaps):
    """(N·T, C, H, W) → (N, C, T): X is read; of the gradients, dX is written."""

    forward_passes, backward_passes = 1, 1

    @register_benchmark(baseline=True)
    def eager(self, x: Tensor) -> Callable[[], Tensor]:
        """Pooling to one pixel, then a permuted copy."""
        return lambda: peers.squeeze(x, self.options.segments)

    @register_benchmark()
    def compiled_eager(self, x: Tensor) -> Callable[[], Tensor]:
        """The same under torch.compile."""
        function = compiled(peers.squeeze)
        return lambda: function(x, self.options.segments)

    @register_benchmark()
    def tam_triton(self, x: Tensor) -> Callable[[], Tensor]:
        """This library: Triton on a GPU, plain torch elsewhere."""
        return lambda: tam_triton.squeeze(x, self.options.segments)

    @register_metric()
    def gbps(self, fn: Callable[..., Any], example_inputs: Any, metrics: BenchmarkOperatorMetrics) -> float:
        """Of the traffic that cannot be avoided."""
        return self.bandwidth(metrics.latency)
