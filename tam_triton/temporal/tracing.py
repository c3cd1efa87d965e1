"""torch.fx: what stands in a graph where values are not known yet."""

from collections.abc import Callable
from typing import Any

import torch.fx
from torch import nn
from torch.fx import Proxy, Tracer

from tam_triton import functional
from tam_triton.functional import Excitation, aggregate, squeeze

# In a graph they are called with the values, as everywhere else, and check them then.
torch.fx.wrap("aggregate")
torch.fx.wrap("squeeze")


def is_traced(x: object) -> bool:
    """Whether `x` is a value in a graph of torch.fx that is being traced: nothing about it can be checked."""
    return isinstance(x, Proxy)


def node(module: nn.Module, x: Any, alone: Callable[[Any], Any]) -> Any:
    """`module` on the traced `x`: one call of the module, as of torch's own layers, so that it runs as it does eagerly.

    Only where the module itself is what is traced, not a network with it, `alone` puts its layers and operators there.
    """
    path = path_in_root(module, x.tracer)
    if not path:
        return alone(x)
    if module._forward_pre_hooks or module._forward_hooks:  # they are traced beside it: a call would run them again
        return x.tracer.create_proxy("call_method", "forward", (x.tracer.create_proxy("get_attr", path, (), {}), x), {})
    return x.tracer.create_proxy("call_module", path, (x,), {})


def squeeze_and_aggregate(
    x: Any,
    branches: Callable[[Any], Any],
    num_segments: int,
    kernel_size: int,
    *,
    excitation: Excitation | None = "before",
    impl: str | None,
) -> Any:
    """As `functional`'s; a graph gets its two operators, with what the branches call between them."""
    if not is_traced(x):
        return functional.squeeze_and_aggregate(
            x, branches, num_segments, kernel_size, excitation=excitation, impl=impl
        )
    weights = branches(squeeze(x, num_segments, impl=impl))
    return aggregate(x, *weights, num_segments=num_segments, excitation=excitation or "before", impl=impl)


def path_in_root(module: nn.Module, tracer: object) -> str:
    """The name of a module in the one that is traced; "" for that one itself."""
    return tracer.path_of_module(module) if isinstance(tracer, Tracer) else ""
