"""FLOPs of the operators, for `torch.utils.flop_counter.FlopCounterMode`.

A product and a sum are two FLOPs, as torch has it, and one MAC. Of an operator the sum over taps and pixels counts, as
padded taps of a convolution do: K for every element of X. The mean of the squeeze, V's product with each element,
BatchNorms and activation functions do not: no such is a MAC of fvcore's or of torch's either.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula

from tam_triton.ops import BY_NAME

Size = Sequence[int]


def aggregation(x: Size, kernel: Size) -> int:
    """FLOPs of K taps at every element of X `(N·T, C, H, W)`; Θ is `(…, K)`."""
    return 2 * kernel[-1] * math.prod(x)


def squeeze(x: Size, *_: Any, **__: Any) -> int:
    """None: sums without products."""
    return 0


def aggregate(x: Size, importance: Size | None, kernel: Size, *_: Any, **__: Any) -> int:
    """Equation 5."""
    return aggregation(x, kernel)


def weight_gradients(dy: Size, x: Size, importance: Size | None, kernel: Size, *_: Any, **__: Any) -> int:
    """The band of dY·Xᵀ, K wide, which holds the gradients of V and of Θ."""
    return aggregation(x, kernel)


def input_gradient(dy: Size, importance: Size | None, kernel: Size, *_: Any, **__: Any) -> int:
    """Equation 5 with its taps reversed."""
    return aggregation(dy, kernel)


def branches(squeezed: Size, global_branch: Sequence[Size], local_branch: Sequence[Size], *_: Any, **__: Any) -> int:
    """The Linears and convolutions of equations 2 and 3, of which the first and the last tensors are the weights."""
    rows, frames = math.prod(squeezed[:2]), squeezed[0] * squeezed[2]
    of_global = rows * (math.prod(global_branch[0]) + math.prod(global_branch[-1]))
    return 2 * (of_global + frames * (math.prod(local_branch[0]) + math.prod(local_branch[-1])))


def training_branches(squeezed: Size, *parameters: Any, **__: Any) -> int:
    """As `branches`."""
    return branches(squeezed, (parameters[0], parameters[3]), (parameters[4], parameters[7]))


def branch_gradients(
    d_importance: Size, d_kernel: Size, squeezed: Size, importance: Size, kernel: Size, projected: Size,
    *parameters: Any, **__: Any,
) -> int:  # fmt: skip
    """Each product of `training_branches` has two factors, and each a gradient."""
    return 2 * training_branches(squeezed, *parameters)


def activated_squeeze(x: Size, *_: Any, **__: Any) -> int:
    """None, as `squeeze`: a folded BatchNorm is not counted, as one that is not folded."""
    return 0


def activated_aggregate(
    x: Size, norm: Sequence[Size], eps: float, importance: Size, kernel: Size, *_: Any, **__: Any
) -> int:
    """As `aggregate`."""
    return aggregation(x, kernel)


def batch_statistics(x: Size, *_: Any, **__: Any) -> int:
    """None, as any BatchNorm."""
    return 0


def normalized_squeeze(x: Size, *_: Any, **__: Any) -> int:
    """None, as `squeeze`."""
    return 0


def normalized_aggregate(
    x: Size, weight: Size, bias: Size, statistics: Size, importance: Size, kernel: Size, *_: Any, **__: Any
) -> int:
    """As `aggregate`."""
    return aggregation(x, kernel)


def normalized_gradients(
    dy: Size, x: Size, weight: Size, bias: Size, statistics: Size, importance: Size, kernel: Size, *_: Any, **__: Any
) -> int:
    """As `weight_gradients`; the second band is BatchNorm's."""
    return aggregation(x, kernel)


def batch_norm_gradients(*_: Any, **__: Any) -> int:
    """None, as any BatchNorm."""
    return 0


def normalized_input_gradient(
    dy: Size, x: Size, weight: Size, bias: Size, statistics: Size, importance: Size, kernel: Size, *_: Any, **__: Any
) -> int:
    """As `input_gradient`."""
    return aggregation(dy, kernel)


FORMULAS: dict[str, Callable[..., int]] = {
    formula.__name__: formula
    for formula in (
        squeeze,
        aggregate,
        weight_gradients,
        input_gradient,
        branches,
        training_branches,
        branch_gradients,
        activated_squeeze,
        activated_aggregate,
        batch_statistics,
        normalized_squeeze,
        normalized_aggregate,
        normalized_gradients,
        batch_norm_gradients,
        normalized_input_gradient,
    )
}
"""FLOPs from the shapes of an operator's arguments, by its name."""


def register() -> None:
    """Puts the formulas into torch's registry; runs once, when this module is imported."""
    for name, formula in FORMULAS.items():
        for operators in BY_NAME.values():
            register_flop_formula(getattr(operators, name))(formula)


register()


def is_counting() -> bool:
    """Whether a FLOP counter watches; one that was made before this module was imported is told the formulas."""
    modes = (getattr(mode, "counter", None) for mode in _get_current_dispatch_mode_stack())
    counters = [mode for mode in modes if isinstance(mode, FlopCounterMode)]
    for counter in counters:
        counter.flop_registry = flop_registry | counter.flop_registry
    return bool(counters)
