"""What shows that a kernel writes all of its result and nothing else, in whatever order its programs run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import InterpreterBuilder

from bench.interpreted import span

BORDER = 64  # elements: a multiple of every alignment that anything here looks at
aten = torch.ops.aten
NAN = float("nan")
EMPTY = (
    aten.empty.memory_format,
    aten.empty_strided.default,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
)


@dataclass(frozen=True)
class Guarded:
    """A buffer, what it was filled with, and the part of it that may change."""

    what: str
    buffer: Tensor
    before: Tensor
    writable: slice

    def is_intact(self) -> bool:
        after = self.buffer.clone()
        after[self.writable] = self.before[self.writable]
        return torch.equal(after.view(torch.uint8), self.before.view(torch.uint8))


class Guards(TorchDispatchMode):
    """Inside, memory allocated without values holds NaN, between borders that `check` looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.buffers: list[Guarded] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in EMPTY or not result.is_floating_point() or not result.numel():
            return result
        return self.between_borders(
            result, "a new tensor", result.new_full((span(result),), NAN), slice(BORDER, -BORDER)
        )

    def surround(self, argument: Tensor) -> Tensor:
        """The same values and strides between borders of NaN, which nothing may read, and no byte of it may change."""
        values = argument.as_strided((span(argument),), (1,))
        return self.between_borders(argument, "an argument", values, slice(0, 0))

    def between_borders(self, like: Tensor, what: str, values: Tensor, writable: slice) -> Tensor:
        border = like.new_full((BORDER,), NAN)
        buffer = torch.cat([border, values, border])
        self.buffers.append(Guarded(f"{what} of shape {tuple(like.shape)}", buffer, buffer.clone(), writable))
        return buffer.as_strided(like.shape, like.stride(), BORDER)

    def check(self) -> None:
        """Raises AssertionError if anything but the insides of new tensors was written."""
        broken = [guarded.what for guarded in self.buffers if not guarded.is_intact()]
        assert not broken, f"written outside, or to an argument: {broken}"


@contextmanager
def shuffled_programs(seed: int) -> Iterator[None]:
    """Interprets the programs of every grid in another order."""
    set_grid_idx = InterpreterBuilder.set_grid_idx

    def set_shuffled(self: InterpreterBuilder, *index: int) -> None:
        place = np.ravel_multi_index(index, self.grid_dim)
        order = np.random.default_rng(seed).permutation(int(np.prod(self.grid_dim)))
        set_grid_idx(self, *(int(i) for i in np.unravel_index(order[place], self.grid_dim)))

    with mock.patch.object(InterpreterBuilder, "set_grid_idx", set_shuffled):
        yield
