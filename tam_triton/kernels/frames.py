"""Device functions that more than one kernel uses: folded BatchNorm, activation, loading a tile."""

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


@triton.jit
def load_tile(
    frame_ptr, c0, p0, C, P, present,
    CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, RUN: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Channels c0… by pixels p0… of a frame as (BLOCK_C, BLOCK_P); zeros outside, or where not `present`."""
    c = tl.arange(0, BLOCK_C)
    p = tl.arange(0, BLOCK_P)
    if RUN > 0:
        # A row of P pixels may start misaligned, a run of BLOCK_C rows does not: load the run, then cut it into rows.
        q = tl.arange(0, RUN)
        inside = present & (q < tl.minimum(C - c0, BLOCK_C) * P)
        first = tl.multiple_of(c0.to(INDEX) * P, 16)
        run = tl.load(frame_ptr + first + q, mask=inside, other=0.0)
        source = tl.minimum(c[:, None] * P + p[None, :], RUN - 1)
        rows = tl.gather(run, tl.reshape(source, [BLOCK_C * BLOCK_P]), 0)
        return tl.where(p[None, :] < P, tl.reshape(rows, [BLOCK_C, BLOCK_P]), 0.0)
    inside = present & ((c0 + c < C)[:, None] & (p0 + p < P)[None, :])
    cs = (c0 + c).to(INDEX)[:, None]
    ps = (p0 + p).to(INDEX)[None, :]
    q = ps * C + cs if CHANNELS_LAST else cs * P + ps
    return tl.load(frame_ptr + q, mask=inside, other=0.0)
