"""The one rule for rounding: a result may be off by at most twice what a plain torch computation is, plus a step.

`truth` is the reference in float64 on the very inputs; `plain` is the same quantity from torch's own operations in the
precision under test. Errors are compared as the largest over the tensor, the step is one of the tensor's largest value.
The largest error of a few elements says little: plain torch may have hit each of them exactly, by luck. So where the
tensor is small, plain torch's error is the largest over more problems of its kind, which differ in their numbers alone.
"""

import itertools
import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

ENOUGH = 64  # elements, of which one by one chance makes errors as small as it makes them large


def assert_close(
    result: Tensor, truth: np.ndarray, plain: Tensor, alike: Iterable[tuple[np.ndarray, Tensor]] = ()
) -> None:
    """Raises AssertionError unless `result` is as near to `truth` as the rule asks, and of `plain`'s shape and dtype.

    Args:
        result: what is tested.
        truth: in float64.
        plain: by torch's own operations, of the result's dtype.
        alike: (truth, plain) of problems that differ in their numbers alone; taken until `ENOUGH` elements were seen.
    """
    assert result.dtype == plain.dtype, (result.dtype, plain.dtype)
    assert tuple(result.shape) == truth.shape == tuple(plain.shape), (result.shape, truth.shape, plain.shape)
    scale = float(np.abs(truth).max())
    # Interpreted stores to bfloat16 truncate: up to a whole step where rounding to nearest is half of one. Below the
    # smallest normal number steps grow no smaller.
    precision = torch.finfo(result.dtype)
    step = precision.eps * max(scale, precision.smallest_normal)
    pairs = itertools.islice(itertools.chain([(truth, plain)], alike), math.ceil(ENOUGH / plain.numel()))
    allowed = 2 * (max(largest_error(computed, exact) for exact, computed in pairs) + step)
    assert math.isfinite(allowed), (
        f"plain torch is not finite here: nothing to compare with (largest value {scale:.3g})"
    )
    error = largest_error(result, truth)
    assert error <= allowed, f"off by {error:.3g} where {allowed:.3g} is allowed (largest value {scale:.3g})"


def largest_error(values: Tensor, truth: np.ndarray) -> float:
    return (values.detach().double() - torch.from_numpy(np.ascontiguousarray(truth))).abs().max().item()
