"""What a network computes, counted from shapes: multiply-accumulates and activations, nothing run.

torch counts convolutions, linears and matrix products; the formulas here, of `torch.ops.tam_triton`, join torch's
registry when this module is imported, so any `FlopCounterMode` knows them then. A product and a sum are two FLOPs, as
torch has it, and one MAC.

Of an operator the sum over taps and pixels counts, as padded taps of a convolution do: K for every element of X. The
mean of the squeeze, V's product with each element, BatchNorms and activation functions do not: no such is a MAC of
fvcore's or of torch's either.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from tam_triton import ops

Size = Sequence[int]

CONVOLUTIONS = ("convolution", "_convolution", "cudnn_convolution", "_slow_conv2d_forward")
LINEARS = ("mm", "addmm")


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


def activated_squeeze(x: Size, *_: Any, **__: Any) -> int:
    """None, as `squeeze`: a folded BatchNorm is not counted, as one that is not folded."""
    return 0


def activated_aggregate(
    x: Size, norm: Sequence[Size], eps: float, importance: Size, kernel: Size, *_: Any, **__: Any
) -> int:
    """As `aggregate`."""
    return aggregation(x, kernel)


FORMULAS: dict[str, Callable[..., int]] = {
    formula.__name__: formula
    for formula in (
        squeeze,
        aggregate,
        weight_gradients,
        input_gradient,
        branches,
        activated_squeeze,
        activated_aggregate,
    )
}
"""FLOPs from the shapes of an operator's arguments, by its name."""


def register() -> None:
    """Puts the formulas into torch's registry; runs once, when this module is imported."""
    for name, formula in FORMULAS.items():
        register_flop_formula(getattr(torch.ops.tam_triton, name))(formula)


register()


@dataclass(frozen=True)
class Counts:
    """What was counted; MACs by what they are for.

    Attributes:
        convolutions: of every rank.
        linears: products with a matrix of weights.
        products: of two matrices that both depend on the input, as in attention.
        aggregation: of this library's operators.
        activations: elements of the results of all of these.
    """

    convolutions: int = 0
    linears: int = 0
    products: int = 0
    aggregation: int = 0
    activations: int = 0

    @property
    def macs(self) -> int:
        """All of them."""
        return sum(getattr(self, field.name) for field in fields(self) if field.name != "activations")


class Activations(TorchDispatchMode):
    """Sums the elements of the results of what a FLOP counter has a formula for.

    Raises:
        ValueError: an operator of this library runs that has none, and would be counted as nothing.
    """

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()
        self.counter, self.elements = counter, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in self.counter.flop_registry:
            self.elements += sum(one.numel() for one in pytree.tree_leaves(result) if isinstance(one, Tensor))
        elif func.namespace == "tam_triton":
            raise ValueError(
                f"operators: no formula for {func._overloadpacket}; add it to FORMULAS in tam_triton/nets/flops.py"
            )
        return result


@contextmanager
def operators_by_name() -> Iterator[None]:
    """Plain torch, which a counter would see as products and sums, gives way to the operators by their names.

    So both implementations count the same, and what plain torch does for speed does not matter. On meta nothing
    runs: the operators' fakes give the shapes.
    """
    with mock.patch.dict(ops.IMPLEMENTATIONS, torch=ops.IMPLEMENTATIONS["triton"]):
        yield


def count(call: Callable[[], object]) -> Counts:
    """What one call computes, on meta tensors or others; with gradients, if it runs a backward."""
    counter = FlopCounterMode(display=False)
    with operators_by_name(), Activations(counter) as activations, counter:  # the inner one takes operators apart
        call()
    sums = dict.fromkeys(("convolutions", "linears", "products", "aggregation"), 0)
    for packet, flops in counter.get_flop_counts().get("Global", {}).items():
        sums[kind(packet)] += flops // 2
    return Counts(**sums, activations=activations.elements)


def kind(packet: Any) -> str:
    """The attribute of `Counts` that an operator's MACs go to."""
    namespace, _, name = packet._qualified_op_name.partition("::")
    if namespace == "tam_triton":
        return "aggregation"
    if name.startswith(CONVOLUTIONS):
        return "convolutions"
    return "linears" if name in LINEARS else "products"
