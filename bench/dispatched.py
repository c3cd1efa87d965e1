"""The operators that a call reaches below autograd: what each moves and computes, and on the CPU how long it takes."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from triton import knobs

LABEL = "operator "  # of a range in a trace
VIEWS = ("aten::_unsafe_view", "aten::_reshape_alias")  # that torch does not call so
UNTOUCHED = ("aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided")
# Of what is overwritten, or gives no more than a shape or a dtype, no value is read: of these operators the first
# argument, or the second.
UNREAD = {
    **dict.fromkeys((
        "aten::copy_", "aten::fill_", "aten::zero_", "aten::_foreach_copy_", "aten::_foreach_zero_",
        "aten::bernoulli_", "aten::cauchy_", "aten::exponential_", "aten::geometric_", "aten::log_normal_",
        "aten::normal_", "aten::random_", "aten::uniform_",
        "aten::full_like", "aten::ones_like", "aten::zeros_like", "aten::rand_like", "aten::randint_like",
        "aten::randn_like", "aten::new_full", "aten::new_ones", "aten::new_zeros",
    ), 0),
    **dict.fromkeys((
        "aten::type_as", "aten::_adaptive_avg_pool2d_backward", "aten::_adaptive_avg_pool3d_backward",
        "aten::avg_pool2d_backward", "aten::avg_pool3d_backward", "aten::max_pool2d_with_indices_backward",
        "aten::max_pool3d_with_indices_backward",
    ), 1),
}  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """One operator that was called.

    Attributes:
        name: such as aten::convolution.
        moved: bytes of the tensors that it reads and of those that it makes or changes, each once; none of memory that
            it only allocates.
        flops: by torch's own formulas, and the library's for its operators; None where neither has one.
        milliseconds: on the CPU; None where the device goes on by itself.
    """

    name: str
    moved: int
    flops: int | None
    milliseconds: float | None


class Operations(TorchDispatchMode):
    """Notes every operator that is no view, and names its range in a trace."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.timed = torch.device(device).type == "cpu"
        self.called: list[Operation] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What torch calls in place of each operator."""
        kwargs = kwargs or {}
        name = func.name().partition(".")[0]
        if func.is_view or name in VIEWS or name.startswith("profiler::"):
            return func(*args, **kwargs)
        with record_function(LABEL + name):
            began = time.perf_counter()
            result = func(*args, **kwargs)
            milliseconds = 1e3 * (time.perf_counter() - began) if self.timed else None
        reads, writes = touched(func, args, kwargs, result)
        if any(result is one for one in reads) and not writes:
            return result  # as it was given: nothing was done
        formula = flop_registry.get(func.overloadpacket)
        flops = None if formula is None else int(formula(*args, **kwargs, out_val=result))
        self.called.append(Operation(name, 0 if name in UNTOUCHED else size(reads) + size(writes), flops, milliseconds))
        return result


def touched(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Tensors that an operator reads, and those that it makes or changes; one that it adds to is among both."""
    schema = func._schema
    named = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
    unread = {a.name for a in schema.arguments if a.is_out}
    if (place := UNREAD.get(func.name().partition(".")[0])) is not None:
        unread.add(schema.arguments[place].name)
    reads = tensors([value for name, value in named.items() if name not in unread])
    changed = [named.get(a.name) for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    results = result if isinstance(result, tuple) else (result,)
    made = [one for one, returned in zip(results, schema.returns, strict=False) if returned.alias_info is None]
    given = tensors(args, kwargs)
    return reads, tensors(changed) + [one for one in tensors(made) if all(one is not other for other in given)]


def tensors(*values: Any) -> list[Tensor]:
    """All inside."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def size(those: Iterable[Tensor]) -> int:
    """Bytes of tensors, each once, however often it is named."""
    unlike = {(tensor.data_ptr(), tensor.shape, tensor.stride()): tensor for tensor in those}
    return sum(elements(tensor) * tensor.itemsize for tensor in unlike.values())


def elements(tensor: Tensor) -> int:
    """That lie in memory: an expanded dimension has one."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return 0 if tensor.numel() == 0 else torch.Size([size if stride else 1 for size, stride in pairs]).numel()


@dataclass(frozen=True)
class Stated:
    """What a Triton kernel says of one of its launches; None where it says nothing."""

    kernel: str
    detail: str
    moved: int | None
    flops: int | None


@contextmanager
def stating() -> Iterator[list[Stated]]:
    """Triton's launches inside, in order, by their `launch_metadata`, which is made for no launch outside."""
    found: list[Stated] = []

    def enter(metadata: Any) -> None:
        kernel = metadata.data["name"]
        said = metadata.get()
        flops = [value for name, value in said.items() if name.startswith("flops")]
        detail = str(said["name"]).removeprefix(kernel).strip()
        found.append(Stated(kernel, detail, said.get("bytes"), sum(flops) if flops else None))

    knobs.runtime.launch_enter_hook.add(enter)
    try:
        yield found
    finally:
        knobs.runtime.launch_enter_hook.remove(enter)


def operations(run: Callable[[], object], device: str) -> list[Operation]:
    """Of one call."""
    with Operations(device) as mode:
        run()
    return mode.called
