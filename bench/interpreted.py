"""Checks every address, and counts the bytes, that kernels ask of memory in Triton's interpreter.

Its loads and stores are wrapped: lanes that the mask leaves out ask for nothing, and lanes of one access that ask for
the same address count once, as they do on a GPU. What torch moves between the launches counts as well: a copy to change
the layout, a sum of partial results, autograd's sum of two gradients.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton import knobs
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

Kind = Literal["loaded", "stored"]


class AddressError(Exception):
    """A kernel touched memory outside the tensors it was given."""


@dataclass
class Moved:
    """Bytes of one tensor that one launch loaded and stored.

    `loaded` and `stored` are what was asked for; `loaded_once` and `stored_once` count every address one time.
    """

    nbytes: int
    loaded: int = 0
    stored: int = 0
    loaded_once: int = 0
    stored_once: int = 0


@dataclass
class Launch:
    """One launch of a kernel, or one operator of torch, by name; tensors by parameter name."""

    kernel: str
    tensors: dict[str, Moved] = field(default_factory=dict)


class Bounds:
    """The memory that one launch was given: each tensor from its first element to its last."""

    def __init__(self, kernel: str, tensors: dict[str, Tensor]) -> None:
        self.kernel = kernel
        self.names = list(tensors)
        self.starts = [tensor.data_ptr() for tensor in tensors.values()]
        self.sizes = [span(tensor) * tensor.itemsize for tensor in tensors.values()]

    def access(self, kind: Kind, addresses: np.ndarray, width: int) -> int:
        """The tensor that holds all `addresses`, each of `width` bytes.

        Raises:
            AddressError: there is none.
        """
        low, high = int(addresses.min()), int(addresses.max()) + width
        for i, (start, size) in enumerate(zip(self.starts, self.sizes, strict=True)):
            if start <= low and high <= start + size:
                return i
        distances = [
            max(start - low, low + width - start - size) for start, size in zip(self.starts, self.sizes, strict=True)
        ]
        nearest = int(np.argmin(distances))
        offsets = np.unique(addresses).astype(np.int64) - self.starts[nearest]
        wrong = offsets[(offsets < 0) | (offsets + width > self.sizes[nearest])]
        raise AddressError(
            f"{self.kernel}: {len(wrong)} of {len(offsets)} addresses {kind} lie outside; the nearest "
            f"argument is {self.names[nearest]} of {self.sizes[nearest]} bytes, the first offset {wrong[0]}"
        )

    def finish(self) -> None:
        """Called when the launch is over, or has failed."""


class Counter(Bounds):
    """Counts the accesses of one launch as well, into a list of launches when it is over."""

    def __init__(self, kernel: str, tensors: dict[str, Tensor], launches: list[Launch]) -> None:
        super().__init__(kernel, tensors)
        self.launch = Launch(kernel, {name: Moved(tensor.nbytes) for name, tensor in tensors.items()})
        self.launches = launches
        self.itemsizes = [tensor.itemsize for tensor in tensors.values()]
        self.touched = {
            kind: [np.zeros(span(tensor), dtype=bool) for tensor in tensors.values()] for kind in ("loaded", "stored")
        }

    def access(self, kind: Kind, addresses: np.ndarray, width: int) -> int:
        """One load or store of a block."""
        addresses = np.unique(addresses)
        of = super().access(kind, addresses, width)
        moved = self.launch.tensors[self.names[of]]
        setattr(moved, kind, getattr(moved, kind) + width * len(addresses))
        offsets = addresses.astype(np.int64) - self.starts[of]
        self.touched[kind][of][offsets // self.itemsizes[of]] = True
        return of

    def finish(self) -> None:
        """Adds up what was touched."""
        for i, moved in enumerate(self.launch.tensors.values()):
            moved.loaded_once = int(self.touched["loaded"][i].sum()) * self.itemsizes[i]
            moved.stored_once = int(self.touched["stored"][i].sum()) * self.itemsizes[i]
        self.launches.append(self.launch)


@contextmanager
def checking(watch: Callable[[str, dict[str, Tensor]], Bounds] = Bounds) -> Iterator[list[Bounds]]:
    """Has every launch inside watched by a `watch` of its own; yields those of the launches in progress.

    Raises:
        RuntimeError: kernels are not interpreted in this process.
        AddressError: an access falls outside all tensors of its launch, before it happens.
    """
    if not knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is not set: set it to 1 before anything imports Triton")
    watches: list[Bounds] = []
    execute = GridExecutor.__call__
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def watched_execute(self: GridExecutor, *args: Any, **kwargs: Any) -> None:
        arguments = {**dict(zip(self.arg_names, args, strict=False)), **kwargs}
        tensors = {name: one for n in self.arg_names for name, one in named_tensors(n, arguments.get(n))}
        watches.append(watch(self.fn.__name__, tensors))
        try:
            execute(self, *args, **kwargs)
        except InterpreterError as error:
            if isinstance(cause := root_cause(error), AddressError):
                raise cause from None
            raise
        finally:
            watches.pop().finish()

    def report(kind: Kind, pointers: Any, mask: Any) -> None:
        active = np.broadcast_to(mask.data.astype(bool, copy=False), pointers.data.shape)
        addresses = pointers.data[active]
        if addresses.size:
            watches[-1].access(kind, addresses, pointers.get_element_ty().primitive_bitwidth // 8)

    def watched_load(self: InterpreterBuilder, ptrs: Any, mask: Any, *rest: Any, **kwargs: Any) -> Any:
        report("loaded", ptrs, mask)
        return load(self, ptrs, mask, *rest, **kwargs)

    def watched_store(self: InterpreterBuilder, ptrs: Any, value: Any, mask: Any, *rest: Any, **kwargs: Any) -> Any:
        report("stored", ptrs, mask)
        return store(self, ptrs, value, mask, *rest, **kwargs)

    def refused(*_: Any) -> None:
        raise NotImplementedError("atomic operations are neither checked nor counted: the library has none")

    with (
        mock.patch.object(GridExecutor, "__call__", watched_execute),
        mock.patch.multiple(
            InterpreterBuilder,
            create_masked_load=watched_load,
            create_masked_store=watched_store,
            create_atomic_rmw=refused,
            create_atomic_cas=refused,
        ),
    ):
        yield watches


@contextmanager
def counting() -> Iterator[list[Launch]]:
    """Counts everything that moves inside, launch by launch, into the list that is yielded; checks as `checking`."""
    traffic: list[Launch] = []
    with (
        checking(lambda kernel, tensors: Counter(kernel, tensors, traffic)) as watches,
        TorchTraffic(traffic, watches),
    ):
        yield traffic


class TorchTraffic(TorchDispatchMode):
    """Counts what torch's own operators read and write, those inside the library's operators too."""

    FREE = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
    CREATING = ("zeros", "zeros_like", "new_zeros", "ones", "ones_like", "new_ones", "full", "full_like", "new_full")
    OVERWRITING = ("copy_", "fill_", "zero_")

    def __init__(self, traffic: list[Launch], watches: list[Bounds]) -> None:
        super().__init__()
        self.traffic = traffic
        self.watches = watches

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch for every operator, below autograd."""
        kwargs = kwargs or {}
        if func.namespace == "tam_triton":
            with self:
                return func.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **kwargs)
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        in_interpreter = bool(self.watches)
        if not in_interpreter and not func.is_view and name not in self.FREE:
            self.record(name, tensors_in((args, kwargs)), tensors_in(result), func._schema.is_mutable)
        return result

    def record(self, name: str, inputs: list[Tensor], outputs: list[Tensor], mutates: bool) -> None:
        """One operator: it reads its inputs and writes its outputs, each element once."""
        storages = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        written = [t for t in outputs if mutates or t.untyped_storage().data_ptr() not in storages]
        if not written:
            return
        if name in self.OVERWRITING:
            inputs = inputs[1:]
        launch = Launch(f"torch {name}")
        for i, tensor in enumerate([] if name in self.CREATING else inputs):
            size = span(tensor) * tensor.itemsize
            launch.tensors[f"input {i}"] = Moved(size, loaded=size, loaded_once=size)
        for i, tensor in enumerate(written):
            size = span(tensor) * tensor.itemsize
            launch.tensors[f"output {i}"] = Moved(size, stored=size, stored_once=size)
        self.traffic.append(launch)


def span(tensor: Tensor) -> int:
    """Elements from the first to the last in memory; a stride of 0 adds none."""
    if tensor.numel() == 0:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def named_tensors(name: str, argument: Any) -> list[tuple[str, Tensor]]:
    """The tensors of an argument by name; those of a tuple are numbered."""
    if isinstance(argument, tuple):
        return [pair for i, one in enumerate(argument) for pair in named_tensors(f"{name}[{i}]", one)]
    return [(name, argument)] if isinstance(argument, Tensor) else []


def tensors_in(tree: Any) -> list[Tensor]:
    """All tensors of nested arguments."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def root_cause(error: BaseException) -> BaseException:
    """What the interpreter wrapped, once for every device function it was inside."""
    while isinstance(error, InterpreterError) and error.__cause__ is not None:
        error = error.__cause__
    return error
