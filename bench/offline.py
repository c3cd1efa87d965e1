"""Compiles kernels as their launchers launch them, on a machine without a GPU.

The wheel of Triton carries the compilers of both vendors, so only a device is missing: a driver that names a target
takes its place, and a launch stops after compilation. Launchers run unchanged, on CPU tensors whose memory is never
touched, so block sizes, warps and specialisation are those of a real call.
"""

import functools
import inspect
import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx950": GPUTarget("hip", "gfx950", 64),
}

# Of an A100, H100, B200, GeForce RTX 5090, MI300X and MI350X, by their data sheets.
MULTIPROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148, "sm_120": 170, "gfx942": 304, "gfx950": 256}


@dataclass(frozen=True)
class Bytes:
    """A tensor argument, of which a compiled kernel sees no more than memory."""

    nbytes: int


@dataclass(frozen=True)
class Launch:
    """One launch that a GPU would have made, or has.

    Attributes:
        kernel: its name.
        grid: programs along each axis.
        compiled: for the target.
        arguments: what the compiled kernel has parameters for, by name, in order: numbers, and tensors' bytes.
    """

    kernel: str
    grid: tuple[int, ...]
    compiled: CompiledKernel
    arguments: dict[str, Any]

    @property
    def num_warps(self) -> int:
        """Of a program."""
        return int(self.compiled.metadata.num_warps)

    @property
    def programs(self) -> int:
        """Of the grid."""
        return math.prod(self.grid)

    @property
    def tensors(self) -> dict[str, int]:
        """Bytes of every tensor argument by name."""
        return {name: value.nbytes for name, value in self.arguments.items() if isinstance(value, Bytes)}


class AbsentDevice:
    """What Triton, and the launch rules, ask of an active driver before it launches."""

    def __init__(self, target: str) -> None:
        self.name, self.target = target, TARGETS[target]
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        """Decides the backend and the architecture."""
        return self.target

    def get_device_properties(self, device: int | str) -> dict[str, int]:
        """Asked for once."""
        return {"multiprocessor_count": MULTIPROCESSORS[self.name]}

    def get_current_device(self) -> int | str:
        """Keys the caches of compiled kernels."""
        return 0

    def get_current_stream(self, device: int | str) -> int:
        """Asked for before any launch, used by none."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Where the launchers' tensors are."""
        return torch.device("cpu")


CACHE = tempfile.TemporaryDirectory(prefix="tam-triton-")  # of compiled kernels, while this process lives


@contextmanager
def own_cache() -> Iterator[None]:
    """Kernels compiled inside neither come from the user's cache of Triton nor go there.

    What lies there under the same key may have been left by another tool, in another textual form.
    """
    with knobs.cache.scope():
        knobs.cache.dir = CACHE.name
        yield


def absent(target: str) -> AbstractContextManager[object]:
    """Launch rules inside answer for the target."""
    return mock.patch.object(driver, "_active", AbsentDevice(target))


@contextmanager
def launches(target: str) -> Iterator[list[Launch]]:
    """Turns every launch inside into a compilation for `target`, and appends it to the list that is yielded.

    One specialisation is compiled once within the context. Nothing compiled here is seen outside it, or the reverse.

    Raises:
        ValueError: `target` is none of `TARGETS`.
        RuntimeError: kernels are interpreted in this process.
    """
    if target not in TARGETS:
        raise ValueError(f"target: got {target!r}, expected one of {', '.join(TARGETS)}")
    if knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: interpreted kernels cannot be compiled; unset it and start again")
    compiled: list[Launch] = []
    caches: list[tuple[JITFunction, Any]] = []
    run = JITFunction.run

    def compile_only(function: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> CompiledKernel:
        if all(function is not known for known, _ in caches):
            caches.append((function, function.device_caches))
            function.device_caches = defaultdict(function.create_binder)
        binary = run(function, *args, grid=grid, warmup=True, **kwargs)
        compiled.append(launch_of(function, args, kwargs, grid, binary)[0])
        return binary

    with (
        own_cache(),
        absent(target),
        mock.patch.object(JITFunction, "run", compile_only),
    ):
        try:
            yield compiled
        finally:
            for function, cache in caches:
                function.device_caches = cache


@contextmanager
def made() -> Iterator[list[tuple[Launch, Callable[[], object]]]]:
    """Launches are made as ever, and appended to the list that is yielded, each with what makes it once more."""
    done: list[tuple[Launch, Callable[[], object]]] = []
    run = JITFunction.run

    def make(function: JITFunction, *args: Any, grid: Any, **kwargs: Any) -> CompiledKernel:
        again = functools.partial(run, function, *args, grid=grid, **kwargs)
        binary = again()
        done.append((launch_of(function, args, kwargs, grid, binary)[0], again))
        return binary

    with own_cache(), mock.patch.object(JITFunction, "run", make):
        yield done


def launch_of(
    function: JITFunction, args: tuple[Any, ...], kwargs: dict[str, Any], grid: Any, compiled: CompiledKernel
) -> tuple[Launch, dict[str, Any]]:
    """What a call launches, and the values that it gives to the compiled kernel's parameters, by name."""
    options = {name: value for name, value in kwargs.items() if name in function.arg_names}
    named = inspect.signature(function.fn).bind(*args, **options).arguments
    values = dict(parameters(compiled.src.signature, named))
    flat = {name: Bytes(value.nbytes) if isinstance(value, torch.Tensor) else value for name, value in values.items()}
    blocks = tuple(grid(named) if callable(grid) else grid)
    return Launch(function.__name__, blocks, compiled, flat), values


def parameters(signature: dict[Any, Any], values: dict[Any, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """Those that the compiled kernel has, by name: no constants, tuples taken apart."""
    for name, kind in signature.items():
        if isinstance(kind, tuple):
            yield from parameters(dict(enumerate(kind)), dict(enumerate(values[name])), f"{within}{name}.")
        elif kind != "constexpr":
            yield f"{within}{name}", values[name]
