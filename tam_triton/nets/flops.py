"""What a network computes, counted from shapes: multiply-accumulates and activations, nothing run.

torch counts convolutions, linears and matrix products, and knows the formulas in `tam_triton.flops`.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

CONVOLUTIONS = ("convolution", "_convolution", "cudnn_convolution", "_slow_conv2d_forward")
LINEARS = ("mm", "addmm")
OURS = ("tam_triton", "tam_triton_plain")


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
        elif func.namespace in OURS:
            raise ValueError(
                f"operators: no formula for {func._overloadpacket}; add it to FORMULAS in tam_triton/flops.py"
            )
        return result


def count(call: Callable[[], object]) -> Counts:
    """What one call computes, on meta tensors or others; with gradients, if it runs a backward."""
    counter = FlopCounterMode(display=False)
    with Activations(counter) as activations, counter:  # the inner one takes operators apart
        call()
    sums = dict.fromkeys(("convolutions", "linears", "products", "aggregation"), 0)
    for packet, flops in counter.get_flop_counts().get("Global", {}).items():
        sums[kind(packet)] += flops // 2
    return Counts(**sums, activations=activations.elements)


def kind(packet: Any) -> str:
    """The attribute of `Counts` that an operator's MACs go to."""
    namespace, _, name = packet._qualified_op_name.partition("::")
    if namespace in OURS:
        return "aggregation"
    if name.startswith(CONVOLUTIONS):
        return "convolutions"
    return "linears" if name in LINEARS else "products"
