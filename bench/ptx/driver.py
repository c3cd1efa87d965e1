"""A stand-in for a GPU: tensors on `cuda` devices, and a driver of Triton's whose launches execute PTX.

Inside `device(target)` the library runs as on a GPU: it finds x on `cuda`, chooses Triton, makes x's device the current
one, launches by its own rules. Triton specializes on the real pointers and compiles for the target. Only what is below
that is another: tensors lie in memory of the CPU, where torch's own operators run, and a launch goes to `execute`.

Each tensor is one of torch's own, whose property `device` tells where its memory was said to be: a subclass would be
refused where kernels take the place of layers, and autograd has no engine for a GPU where there is none.

Not as on a GPU: autocast, which torch decides by what a tensor is, and `to("cpu")`, which finds it there already.
"""

import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton import knobs
from triton.runtime import driver
from triton.runtime.cache import get_cache_manager

from bench import offline
from bench.compiled import MULTIPROCESSORS
from bench.ptx.machine import execute
from bench.ptx.memory import Counts, Region

TARGETS = {name: target for name, target in offline.TARGETS.items() if target.backend == "cuda"}
MOST_THREADS = 1024
DEVICES = 2  # enough to tell whether a launch is where its tensors are

Argument = int | float | Region
Execute = Callable[[str, tuple[int, int, int], Sequence[Argument], int], Counts]
"""Takes PTX, the grid, the arguments that the PTX has parameters for, and bytes of dynamic shared memory."""


@dataclass(frozen=True)
class Launch:
    """One launch, after it was executed.

    Attributes:
        kernel: its name.
        grid: programs along x, y and z.
        num_warps: of a program.
        device: that was the current one.
        ptx: what was executed.
        counts: what `execute` gave.
    """

    kernel: str
    grid: tuple[int, int, int]
    num_warps: int
    device: torch.device
    ptx: str
    counts: Counts


@contextmanager
def device(target: str, execute: Execute = execute) -> Iterator[list[Launch]]:
    """Puts `cuda:0` and `cuda:1` of a target into this process, and yields the list of launches there.

    `cpu()` brings tensors back; outside, all are the CPU's.

    Args:
        target: "sm_90", or another of `TARGETS`.
        execute: what runs a launch, and writes into its regions.

    Raises:
        ValueError: `target` is none of these.
        RuntimeError: kernels are interpreted in this process.
    """
    if target not in TARGETS:
        raise ValueError(f"target: got {target!r}, expected one of {', '.join(TARGETS)}")
    if knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: interpreted kernels cannot be compiled; unset it and start again")
    torch._C._ensureCUDADeviceGuardSet()  # where there is no GPU: "cuda" without a number is then no call of its driver
    gpu = GPU()
    stand_in = Driver(target, gpu, execute)
    with (
        offline.own_cache(),
        mock.patch.object(driver, "_active", stand_in),
        mock.patch.object(torch.Tensor, "device", property(gpu.where)),
        mock.patch.object(torch.Tensor, "cpu", lambda tensor: gpu.to_host(tensor)),
        mock.patch.object(torch.cuda, "_lazy_init"),
        mock.patch.object(torch.cuda, "_exchange_device", gpu.exchange),
        mock.patch.object(torch.cuda, "_maybe_exchange_device", gpu.exchange),
        gpu,
    ):
        yield stand_in.launches


class GPU(TorchDispatchMode):
    """Which tensors are on a device, by their storages; runs torch's operators on them, and the library's own.

    Attributes:
        current: the number of the current device.
        latest: on which the last operator ran.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = 0
        self.latest = torch.device("cuda", 0)
        self.devices: dict[int, tuple[StorageWeakRef, torch.device]] = {}

    def where(self, tensor: Tensor) -> torch.device:
        """`tensor.device`."""
        known = self.devices.get(tensor.untyped_storage()._cdata)
        return REAL_DEVICE(tensor) if known is None else known[1]

    def to_host(self, tensor: Tensor) -> Tensor:
        """`tensor.cpu()`: torch would not copy what it finds to be there already."""
        return torch.ops.aten._to_copy(tensor, device="cpu") if self.where(tensor).type == "cuda" else tensor

    def exchange(self, index: int) -> int:
        """Makes another device the current one, if `index` is one; the one before."""
        before = self.current
        if index >= 0:
            self.current = self.numbered(torch.device("cuda", index)).index
        return before

    def numbered(self, device: torch.device) -> torch.device:
        """A device with its number, which by itself `cuda` leaves open."""
        index = self.current if device.index is None else device.index
        if index >= DEVICES:
            raise RuntimeError(f"invalid device ordinal: got cuda:{index}, expected below {DEVICES}")
        return torch.device("cuda", index)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        devices = [place for place in map(self.where, inputs) if place.type == "cuda"]
        if func.namespace == "tam_triton" and devices:
            with self:  # the launcher's own tensors
                return func._op_dk(torch._C.DispatchKey.CUDA, *args, **kwargs)
        told, in_backward = kwargs.get("device"), torch._C._current_graph_task_id() != -1
        self.latest = devices[0] if devices else self.latest
        place: torch.device | None = self.latest
        if told is not None and told.type == "cuda":
            place, kwargs["device"] = self.numbered(told), torch.device("cpu")
        elif not (in_backward if told is not None else devices):
            place = None  # in backward, autograd makes tensors where it takes the forward's to have been
        storages = {leaf.untyped_storage()._cdata for leaf in inputs}
        results = func(*args, **kwargs)
        for result in tree_leaves(results):
            if place is not None and isinstance(result, Tensor) and result.untyped_storage()._cdata not in storages:
                storage = result.untyped_storage()
                self.devices[storage._cdata] = StorageWeakRef(storage), place
        return results


REAL_DEVICE = Tensor.device.__get__


class Driver(offline.AbsentDevice):
    """What Triton asks of a driver, beside compilers.

    Where Triton wants a device's number it gets the target's name with it, by which it keeps compiled kernels apart.
    """

    def __init__(self, target: str, gpu: GPU, execute: Execute) -> None:
        super().__init__(target)
        self.gpu, self.execute = gpu, execute
        self.launches: list[Launch] = []
        self.launcher_cls = Launcher

    def get_current_device(self) -> str:
        """Keys the caches of compiled kernels."""
        return f"{self.name}, cuda:{self.gpu.current}"

    def get_device_properties(self, device: int | str) -> dict[str, int]:
        """Asked for once a kernel, too: one block may have all but what the system takes."""
        multiprocessor = MULTIPROCESSORS[self.name]
        most = multiprocessor.shared - multiprocessor.shared_reserved
        return {"max_shared_mem": most, **super().get_device_properties(device)}

    def load_binary(self, name: str, kernel: bytes, shared: int, device: str) -> tuple[None, str, int, int, int]:
        """Module, function, registers, spills, and the most threads of a block."""
        return None, name, 0, 0, MOST_THREADS

    def launch(self, kernel: str, metadata: Any, grid: tuple[int, int, int], ptx: str, values: dict[str, Any]) -> None:
        """Executes one."""
        current = torch.device("cuda", self.gpu.current)
        arguments = [self.argument(name, value, current) for name, value in values.items()]
        if math.prod(grid):
            counts = self.execute(ptx, grid, arguments, metadata.shared)
            self.launches.append(Launch(kernel, grid, metadata.num_warps, current, ptx, counts))

    def argument(self, name: str, value: Any, current: torch.device) -> Argument:
        """A number, or a tensor's memory.

        Raises:
            RuntimeError: the tensor is not on the current device, which a GPU would tell by an illegal access.
        """
        if not isinstance(value, Tensor):
            return value
        if self.gpu.where(value) != current:
            raise RuntimeError(f"{name}: got a tensor on {self.gpu.where(value)}, launched on {current}")
        last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
        size = (last + 1) * value.element_size() if value.numel() else 0
        memory = (ctypes.c_uint8 * size).from_address(value.data_ptr())
        return Region(name, value.data_ptr(), np.ctypeslib.as_array(memory))


class Launcher:
    """What Triton makes of each compiled kernel, to call it; for whichever driver is then active."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.source, self.metadata = source, metadata
        if metadata.global_scratch_size or metadata.profile_scratch_size:
            raise NotImplementedError(f"{metadata.name} needs scratch memory")
        self.ptx = Path(get_cache_manager(metadata.hash).get_file(f"{metadata.name}.ptx")).read_text()

    def __call__(
        self, x: int, y: int, z: int, stream: int, function: str, packed: Any, launch_metadata: Any,
        enter_hook: Any, exit_hook: Any, *values: Any,
    ) -> None:  # fmt: skip
        """One launch; its values are those of the signature."""
        named = dict(zip(self.source.signature, values, strict=True))
        flat = dict(offline.parameters(self.source.signature, named))
        driver.active.launch(function, self.metadata, (x, y, z), self.ptx, flat)
