"""The one rule for rounding: a result may be off by at most twice what a plain torch computation is, plus a step.

`truth` is the reference in float64 on the very inputs; `plain` is the same quantity from torch's own operations in the
precision under test. Errors are compared as the largest over the tensor, in units of the tensor's own size.
"""

import math

import numpy as np
import torch
from torch import Tensor


def assert_close(result: Tensor, truth: np.ndarray, plain: Tensor) -> None:
    assert result.dtype == plain.dtype, (result.dtype, plain.dtype)
    assert tuple(result.shape) == truth.shape == tuple(plain.shape), (result.shape, truth.shape, plain.shape)
    exact = torch.from_numpy(np.ascontiguousarray(truth))
    scale = exact.abs().max().item()
    # Interpreted stores to bfloat16 truncate: up to a whole step where rounding to nearest is half of one. Below the
    # smallest normal number steps grow no smaller.
    precision = torch.finfo(result.dtype)
    step = precision.eps * max(scale, precision.smallest_normal)
    allowed = 2 * ((plain.detach().double() - exact).abs().max().item() + step)
    assert math.isfinite(allowed), (
        f"plain torch is not finite here: nothing to compare with (largest value {scale:.3g})"
    )
    error = (result.detach().double() - exact).abs().max().item()
    assert error <= allowed, f"off by {error:.3g} where {allowed:.3g} is allowed (largest value {scale:.3g})"
