"""No time is taken of a wrong result: candidates must agree before they are timed.

The truth is the eager formulation in float64. A candidate may differ from it by half the digits of its dtype, or by
twice what the eager formulation does in that dtype: another order of summation passes, another formula does not. (How
exact the library is, is for its tests to say.)
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Run = Callable[[], Sequence[Tensor]]


class DisagreementError(RuntimeError):
    """A candidate computes something else than the others."""


def require(candidates: Mapping[str, Run], plain: Run, truth: Run, dtype: torch.dtype, what: str) -> None:
    """Runs every candidate once.

    Args:
        candidates: by name; each returns the same tensors in the same order.
        plain: the eager formulation on the same values, in `dtype`.
        truth: the same in float64.
        dtype: of the candidates' inputs.
        what: is measured, for the message.

    Raises:
        DisagreementError: for the first candidate that is off.
    """
    exact = truth()
    half = torch.finfo(dtype).eps ** 0.5
    allowed = [max(half * norm(t), 2 * distance(p, t)) for p, t in zip(plain(), exact, strict=True)]
    for name, run in candidates.items():
        for position, (result, true, most) in enumerate(zip(run(), exact, allowed, strict=True)):
            if result.shape != true.shape:
                raise DisagreementError(
                    f"{what}: result {position} of {name!r} is {tuple(result.shape)}, expected {tuple(true.shape)}"
                )
            off = distance(result, true)
            if not off <= most:
                raise DisagreementError(
                    f"{what}: result {position} of {name!r} is off by {off:.3g} in norm where {most:.3g} is allowed "
                    f"(its norm is {norm(true):.3g}); nothing was timed"
                )


def norm(x: Tensor) -> float:
    """Euclidean, over all elements."""
    return float(torch.linalg.vector_norm(x.detach().double()))


def distance(a: Tensor, b: Tensor) -> float:
    """The norm of the difference."""
    return norm(a.detach().double() - b.detach().double())
