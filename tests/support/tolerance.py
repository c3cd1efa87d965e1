"""The one rule for rounding: a result may be off by at most twice what a plain torch computation is, plus a step.

`truth` is the reference in float64 on the very inputs; `plain` is the same quantity from torch's own operations in the
precision under test. Errors are compared as the largest over the tensor, the step is one of the tensor's largest value.

The largest error on one input says little: plain torch may have hit a few elements exactly, or all that share a sum, a
BatchNorm or a branch, by luck, also where the sum cancels or the BatchNorm divides by almost nothing. So properties
take the largest over several inputs that differ from the given one by a rounding: no computation in that precision can
be blamed for less.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ELEMENTS = 64  # at least, over all inputs
INPUTS = 8  # at least


@dataclass(frozen=True)
class Error:
    """How far a result is from the truth, what the rule allows, and the truth's largest value; all absolute."""

    largest: float
    allowed: float
    scale: float

    @property
    def in_units(self) -> float:
        """Of what is allowed: the rule asks for 1 at most. NaN where the result is, and the truth is not."""
        return self.largest / self.allowed

    def __str__(self) -> str:
        return f"off by {self.largest:.3g} where {self.allowed:.3g} is allowed (largest value {self.scale:.3g})"


def assert_close(
    result: Tensor,
    truth: np.ndarray,
    plain: Tensor,
    again: Callable[[int], Tensor] | None = None,
) -> None:
    """Raises AssertionError unless `result` is as near to `truth` as the rule asks; takes what `error_of` takes."""
    error = error_of(result, truth, plain, again)
    assert error.in_units <= 1, str(error)


def error_of(
    result: Tensor,
    truth: np.ndarray,
    plain: Tensor,
    again: Callable[[int], Tensor] | None = None,
) -> Error:
    """The error of `result`, beside the one that the rule allows.

    Args:
        result: what is tested.
        truth: in float64.
        plain: by torch's own operations, of the result's dtype.
        again: the same as `plain` of inputs that `nudged` moved, by number. Without it luck decides where the result is
            small: for inputs that stay the same.

    Raises:
        AssertionError: `result` is not of `plain`'s shape and dtype, or plain torch is not finite.
    """
    assert result.dtype == plain.dtype, (result.dtype, plain.dtype)
    assert tuple(result.shape) == truth.shape == tuple(plain.shape), (result.shape, truth.shape, plain.shape)
    exact = torch.from_numpy(np.ascontiguousarray(truth))
    scale = exact.abs().max().item()
    # Interpreted stores to bfloat16 truncate: up to a whole step where rounding to nearest is half of one. Below the
    # smallest normal number steps grow no smaller.
    precision = torch.finfo(result.dtype)
    step = precision.eps * max(scale, precision.smallest_normal)
    computed = [plain]
    if again is not None:
        computed += map(again, range(1, max(INPUTS, math.ceil(ELEMENTS / plain.numel()))))
    allowed = 2 * (max(largest_error(values, exact) for values in computed) + step)
    assert math.isfinite(allowed), (
        f"plain torch is not finite here: nothing to compare with (largest value {scale:.3g})"
    )
    return Error(largest_error(result, exact), allowed, scale)


def largest_error(values: Tensor, exact: Tensor) -> float:
    return (values.detach().double() - exact).abs().max().item()


def nudged(x: Tensor, number: int) -> Tensor:
    """`x` with every element moved up or down by about one rounding, in another way for each number."""
    generator = torch.Generator().manual_seed(number)
    up_or_down = torch.randint(0, 2, x.shape, generator=generator, dtype=torch.float64).mul_(2).sub_(1)
    return (x.double() * (1 + torch.finfo(x.dtype).eps * up_or_down)).to(x.dtype)
