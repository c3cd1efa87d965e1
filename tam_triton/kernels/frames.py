"""Device functions that more than one kernel uses: BatchNorm, folded or by itself, activation, sums of a vector."""

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
def centred_norm(norm, C, index, mask, ACC: tl.constexpr):
    """BatchNorm (weight, bias, and statistics `(3, C)`: mean, variance, 1/σ) as its mean, γ/σ, β and 1/σ.

    (x − mean)·γ/σ + β loses no digits to a large mean. Kernels that need the sign of this all compute it so.
    """
    weight_ptr, bias_ptr, statistics_ptr = norm
    mean = tl.load(statistics_ptr + index, mask=mask, other=0.0).to(ACC)
    inverse = tl.load(statistics_ptr + 2 * tl.cast(C, tl.int64) + index, mask=mask, other=0.0).to(ACC)
    scale = tl.load(weight_ptr + index, mask=mask, other=0.0).to(ACC) * inverse
    return mean, scale, tl.load(bias_ptr + index, mask=mask, other=0.0).to(ACC), inverse


@triton.jit
def relu(x):
    """max(x, 0); NaN stays NaN."""
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def within_vectors(x, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr):
    """What one thread holds of each channel, added up: of pixels in NCHW."""
    return x if CHANNELS_LAST else tl.sum(tl.reshape(x, [x.shape[0], x.shape[1] // VECTOR, VECTOR]), axis=2)
