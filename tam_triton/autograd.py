"""What all derivatives stand on: Functions that are called at the least cost, and mapped clip by clip."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tam_triton.checks import transforming

no_jvp: Any = staticmethod(torch.autograd.Function.jvp)  # torch.compile refuses a Function that has one of its own


class Operator(torch.autograd.Function):
    """An operator of either implementation, its last argument."""

    operator: str  # its name in `ops.OPERATORS`

    @classmethod
    def call(cls, *args: Any) -> Any:
        """`apply`, at the least cost to the host that what torch does now allows."""
        if torch.compiler.is_compiling() or transforming():
            return cls.apply(*args)
        if torch.jit.is_tracing():  # what is in the forward has derivatives, and is what a graph can hold and save
            return cls.forward(*args)
        if torch.is_grad_enabled() and any(isinstance(one, Tensor) and one.requires_grad for one in args):
            # What `apply` itself ends in, after it has looked for transforms once more.
            return super(torch.autograd.Function, at_once(cls)).apply(*args)  # type: ignore[misc]
        with below_autograd():
            return cls.forward(*args)

    @classmethod
    def vmap(cls, info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
        """As torch.func calls it."""
        return mapped(cls.apply, info.batch_size, in_dims, args)


@cache
def at_once(function: type[Operator]) -> type[Operator]:
    """The same with its context made in the forward: where it is made apart, torch binds arguments anew, for 40 µs."""

    def forward(ctx: Any, *args: Any) -> Any:
        with below_autograd():
            output = function.forward(*args)
        function.setup_context(ctx, args, output)
        return output

    apart = {"forward": staticmethod(forward), "setup_context": staticmethod(torch.autograd.Function.setup_context)}
    return type(function.__name__, (function,), apart)


def below_autograd() -> AbstractContextManager[object]:
    """Where nothing is recorded operators need not be asked for their derivatives; a compiler's graph has them all."""
    return nullcontext() if torch.compiler.is_compiling() else torch._C._AutoDispatchBelowAutograd()


def no_gradient(dy: Tensor) -> Tensor | None:
    """What a backward returns for an input like dY whose gradient leaves by another way."""
    if torch.compiler.is_compiling() and torch._dynamo.compiled_autograd.in_compiled_autograd_region:
        return dy.new_zeros(()).expand(dy.shape)  # it adds up what comes without looking whether it is a tensor
    return None


def gradient(function: type[Operator], *args: Any) -> Any:
    """A function as a backward calls it: in a compiled graph, where gradients have no derivative, the mere operator."""
    if torch.compiler.is_compiling():
        return function.forward(*args)
    batched = [isinstance(one, Tensor) and torch._C._functorch.is_legacy_batchedtensor(one) for one in args]
    return of_batched(function, batched, args) if any(batched) else function.call(*args)


def mapped(
    function: Callable[..., Any], samples: int, in_dims: Sequence[int | None], args: Sequence[Any]
) -> tuple[Any, Any]:
    """The clips of all samples, one after another; results and the dimension of their samples.

    A Θ `(C, K)` is one for the clips of a sample: among those of all it is given to each, and its gradient added up.
    """
    of_samples = [
        value if not isinstance(value, Tensor) else value.expand(samples, *value.shape) if dim is None
        else value.movedim(dim, 0) for value, dim in zip(args, in_dims, strict=True)
    ]  # fmt: skip
    shared = any(isinstance(value, Tensor) and value.dim() == 3 for value in of_samples)

    def folded(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.dim() == 3:
            T = next(one for one in args if isinstance(one, int | torch.SymInt) and not isinstance(one, bool))
            value = value[:, None].expand(-1, of_samples[0].shape[1] // T, -1, -1)
        return value.flatten(0, 1)

    results = function(*map(folded, of_samples))
    if isinstance(results, Tensor):
        return results.unflatten(0, (samples, -1)), 0
    unfolded = [one.unflatten(0, (samples, -1)) for one in results]
    if shared:
        unfolded[-1] = unfolded[-1].sum(1)
    return tuple(unfolded), (0,) * len(unfolded)


def of_batched(function: type[Operator], batched: list[bool], args: tuple[Any, ...]) -> Any:
    """Under `is_grads_batched`, whose vmap is older than that of torch.func and asks no Function for its rule."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    pairs = list(zip(args, batched, strict=True))
    unwrapped = [torch._remove_batch_dim(one, level, 1, 0) if yes else one for one, yes in pairs]
    samples = unwrapped[batched.index(True)].shape[0]
    results, _ = mapped(function.call, samples, [0 if yes else None for yes in batched], unwrapped)
    if isinstance(results, Tensor):
        return torch._add_batch_dim(results, 0, level)
    return tuple(torch._add_batch_dim(one, 0, level) for one in results)
