"""torch.fx: what stands in a graph where values are not known yet."""

from collections.abc import Callable
from typing import Any

import torch.fx
from torch import Tensor, nn
from torch.fx import Proxy, Tracer

from tam_triton import functional
from tam_triton.functional import squeeze

# In a graph they are called with the values, as everywhere else, and check them then.
torch.fx.wrap("aggregate")
torch.fx.wrap("squeeze")


def aggregate(
    x: Tensor,
    importance: Tensor | None,
    kernel: Tensor,
    *,
    num_segments: int,
    excitation: str | None = "before",
    impl: str | None = None,
) -> Tensor:
    """`functional.aggregate`, also with Θ `(C, K)` for all clips, no importance map, or one that comes after."""
    clips, channels = x.shape[0] // num_segments, x.shape[1]
    kernel = kernel.expand(clips, -1, -1) if kernel.dim() == 2 else kernel
    ones = kernel.new_ones(clips, channels, num_segments)
    if importance is None:
        return functional.aggregate(x, ones, kernel, impl=impl)
    if excitation == "before":
        return functional.aggregate(x, importance, kernel, impl=impl)
    y = functional.aggregate(x, ones, kernel, impl=impl)
    return functional.aggregate(y, importance, ones[..., :1], impl=impl)


def is_traced(x: object) -> bool:
    """Whether `x` is a value in a graph of torch.fx that is being traced: nothing about it can be checked."""
    return isinstance(x, Proxy)


def node(module: nn.Module, x: Any, alone: Callable[[Any], Any]) -> Any:
    """`module` on the traced `x`: one call of the module, as of torch's own layers, so that it runs as it does eagerly.

    Only where the module itself is what is traced, not a network with it, `alone` puts its layers and operators there.
    """
    path = path_in_root(module, x.tracer)
    return x.tracer.create_proxy("call_module", path, (x,), {}) if path else alone(x)


def squeeze_and_aggregate(
    x: Any, branches: Callable[[Any], Any], num_segments: int, kernel_size: int, **options: Any
) -> Any:
    """As `functional`'s; a graph gets its two operators, with what the branches call between them."""
    if not is_traced(x) and options.get("excitation", "before") == "before":
        return functional.squeeze_and_aggregate(x, branches, num_segments, kernel_size, impl=options.get("impl"))
    importance, kernel = branches(squeeze(x, num_segments, impl=options.get("impl")))
    return aggregate(x, importance, kernel, num_segments=num_segments, **options)


def path_in_root(module: nn.Module, tracer: object) -> str:
    """The name of a module in the one that is traced; "" for that one itself."""
    return tracer.path_of_module(module) if isinstance(tracer, Tracer) else ""
