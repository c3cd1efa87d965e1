"""Launches recorded where they are made, and executed again: what a device measured beside what its PTX means.

The PTX is what that device was given, the memory that of the very call. Results agree to the bit, unless the code
leaves something open: functions that PTX only promises within bounds, which say how far results may differ, and
products without a rounding of their own, which ptxas may fuse with a sum; then one rounding of the largest is allowed.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

from bench.offline import Launch, launch_of, own_cache
from bench.ptx.driver import Argument
from bench.ptx.machine import execute
from bench.ptx.memory import Bytes, Region

OPEN = re.compile(r"\b(?:\w+\.(?:approx|full)\b|mul\.f(?:32(?:x2)?|64)\s)")


@dataclass(frozen=True)
class Recorded:
    """One launch.

    Attributes:
        launch: what the device was given.
        arguments: as `execute` takes them; regions hold what was there before.
        after: what was there afterwards, by the region's name.
        dtypes: of the tensors, in the same way.
        again: launches it once more, on the same memory.
    """

    launch: Launch
    arguments: list[Argument]
    after: dict[str, Bytes]
    dtypes: dict[str, torch.dtype]
    again: Callable[[], object]


@dataclass(frozen=True)
class Comparison:
    """Measured values beside executed ones.

    Attributes:
        exact: whether they must be the same bits.
        different: elements that are not.
        error: the largest difference, as a share of what is allowed where `exact` is False.
    """

    exact: bool
    different: int
    error: float

    @property
    def agrees(self) -> bool:
        """Whether the device did what PTX says."""
        return self.different == 0 if self.exact else self.error <= 1

    def __str__(self) -> str:
        if self.exact:
            return "same bits" if self.agrees else f"{self.different} elements differ, by {self.error:.3g}"
        return f"{self.different} elements differ, by {self.error:.2f} of what is allowed"


@contextmanager
def recording() -> Iterator[list[Recorded]]:
    """Launches are made as ever, and appended to the list that is yielded."""
    recorded: list[Recorded] = []
    run = JITFunction.run

    def record(function: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        compiled = run(function, *args, grid=grid, warmup=True, **kwargs)
        launch, values = launch_of(function, args, kwargs, grid, compiled)
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}

        def again() -> Any:
            return run(function, *args, grid=grid, warmup=warmup, **kwargs)

        before = {name: Region(name, tensor.data_ptr(), copied(tensor)) for name, tensor in tensors.items()}
        again()
        recorded.append(
            Recorded(
                launch,
                [before.get(name, value) for name, value in values.items()],
                {name: copied(tensor) for name, tensor in tensors.items()},
                {name: tensor.dtype for name, tensor in tensors.items()},
                again,
            )
        )  # fmt: skip
        return compiled

    with own_cache(), mock.patch.object(JITFunction, "run", record):
        yield recorded


def copied(tensor: Tensor) -> Bytes:
    """The bytes from its first element to the last that its strides reach."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.detach().as_strided((last + 1,), (1,)).cpu().view(torch.uint8).numpy()


def compare(recorded: Recorded) -> Comparison:
    """Executes a launch on a copy of the memory that it found."""
    exact = OPEN.search(recorded.launch.compiled.asm["ptx"]) is None
    executed, *extremes = (executed_with(recorded, error) for error in ((0.0,) if exact else (0.0, -1.0, 1.0)))
    different, worst = 0, 0.0
    for name, dtype in recorded.dtypes.items():
        ours, measured = (numbers(memory[name], dtype) for memory in (executed, recorded.after))
        unlike = ours.view(torch.uint8) != measured.view(torch.uint8)
        unlike = unlike.view(-1, dtype.itemsize).any(1)
        if not unlike.any():
            continue
        different += int(unlike.sum())
        error = largest(ours[unlike], measured[unlike])
        if not exact:
            # What bounds make of a result may be less than one rounding of it, or cancel.
            spread = max(largest(numbers(memory[name], dtype), ours) for memory in extremes)
            error /= 2 * spread + torch.finfo(dtype).eps * float(ours[unlike].double().abs().max())
        worst = max(worst, error)
    return Comparison(exact, different, worst)


def executed_with(recorded: Recorded, error: float) -> dict[str, Bytes]:
    """Memory after the execution, by name, with approximate functions off by a share of their bounds."""
    copies = [replace(one, data=one.data.copy()) if isinstance(one, Region) else one for one in recorded.arguments]
    compiled = recorded.launch.compiled
    execute(compiled.asm["ptx"], recorded.launch.grid, copies, compiled.metadata.shared, error=error)
    return {one.name: one.data for one in copies if isinstance(one, Region)}


def numbers(memory: Bytes, dtype: torch.dtype) -> Tensor:
    """Memory as a tensor."""
    return torch.from_numpy(memory).view(dtype)


def largest(a: Tensor, b: Tensor) -> float:
    """The largest difference; infinite where one of the two is no number."""
    return float((a.double() - b.double()).abs().nan_to_num(torch.inf).max())
