"""Excitation and depthwise temporal aggregation (TAM, arXiv 2005.06803, equations 4 and 5)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tritonbench.utils.triton_op import BenchmarkOperatorMetrics, register_benchmark, register_metric

import tam_triton
from bench import peers
from bench.tritonbench.maps import OnMaps, compiled


class Operator(OnMaps):
    """y[n,t,c] = Σ_k Θ[n,c,k] · V[n,c,t+k−K//2] · x[n,t+k−K//2,c]: X is read and Y written; of the gradients, X and dY
    are read for those of V and Θ, dY again for dX, which is written.
    """

    forward_passes, backward_passes = 2, 4

    def beside(self, x: Tensor) -> tuple[Tensor, ...]:
        """V `(N, C, T)` in (0, 1) and Θ `(N, C, K)`, whose taps sum to 1, as TAM's branches give them."""
        clips, channels = self.options.clips, x.shape[1]
        importance = torch.rand(clips, channels, self.options.segments, device=x.device).to(x.dtype)
        kernel = torch.rand(clips, channels, self.options.kernel_size, device=x.device).softmax(-1).to(x.dtype)
        return importance, kernel

    @register_benchmark(baseline=True)
    def eager(self, x: Tensor, importance: Tensor, kernel: Tensor) -> Callable[[], Tensor]:
        """As the public implementations formulate it: permute, multiply, grouped convolution, permute."""
        return lambda: peers.excite_and_aggregate(x, importance, kernel)

    @register_benchmark()
    def compiled_eager(self, x: Tensor, importance: Tensor, kernel: Tensor) -> Callable[[], Tensor]:
        """The same under torch.compile."""
        function = compiled(peers.excite_and_aggregate)
        return lambda: function(x, importance, kernel)

    @register_benchmark()
    def tam_triton(self, x: Tensor, importance: Tensor, kernel: Tensor) -> Callable[[], Tensor]:
        """This library: Triton on a GPU, plain torch elsewhere."""
        return lambda: tam_triton.aggregate(x, importance, kernel)

    @register_metric()
    def gbps(self, fn: Callable[..., Any], example_inputs: Any, metrics: BenchmarkOperatorMetrics) -> float:
        """Of the traffic that cannot be avoided."""
        return self.bandwidth(metrics.latency)
