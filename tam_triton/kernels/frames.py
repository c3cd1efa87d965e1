"""Device functions that more than one kernel uses: folded BatchNorm and activation."""

import triton
import triton.language as tl


@triton.jit
def folded_norm(norm, eps, index, mask, ACC: tl.constexpr):
    """BatchNorm (weight, bias, running mean and variance) as a scale and a shift."""
    weight_ptr, bias_ptr, mean_ptr, variance_ptr = norm
    variance = tl.load(variance_ptr + index, mask=mask, other=1.0).to(ACC)
    scale = tl.load(weight_ptr + index, mask=mask, other=0.0).to(ACC) / tl.sqrt(variance + tl.full([], eps, ACC))
    mean = tl.load(mean_ptr + index, mask=mask, other=0.0).to(ACC)
    return scale, tl.load(bias_ptr + index, mask=mask, other=0.0).to(ACC) - mean * scale


@triton.jit
def relu(x):
    """max(x, 0); NaN stays NaN."""
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
