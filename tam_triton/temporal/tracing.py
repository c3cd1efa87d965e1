"""torch.fx: what stands in a graph where values are not known yet."""

from typing import Any

import torch.fx
from torch import nn
from torch.fx import Proxy, Tracer

from tam_triton.functional import aggregate, squeeze

# In a graph they are called with the values, as everywhere else, and check them then.
torch.fx.wrap("aggregate")
torch.fx.wrap("squeeze")


def is_traced(x: object) -> bool:
    """Whether `x` is a value in a graph of torch.fx that is being traced: nothing about it can be checked."""
    return isinstance(x, Proxy)


def tam_node(tam: Any, x: Any) -> Any:
    """`tam` on the traced `x`: one call of the module, as of torch's own layers, so that it runs as it does eagerly.

    Only where the TAM itself is what is traced, not a network with it, its layers and the two operators come instead.
    """
    path = path_in_root(tam, x.tracer)
    if path:
        return x.tracer.create_proxy("call_module", path, (x,), {})
    return aggregate(x, *tam.branches(squeeze(x, tam.num_segments, impl=tam.impl)), impl=tam.impl)


def path_in_root(module: nn.Module, tracer: object) -> str:
    """The name of a module in the one that is traced; "" for that one itself."""
    return tracer.path_of_module(module) if isinstance(tracer, Tracer) else ""
