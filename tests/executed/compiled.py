"""The compiled operators as a backend, so that what is said of interpreted ones can be said of these."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from bench.ptx import Counts, execute
from bench.ptx.driver import Launch, device
from tam_triton import kernels
from tests.support.operators import each_tensor


class Compiled:
    """`tam_triton.kernels` as a GPU of a target has them.

    Tensors go there with their strides, and the distance of their first element from the start of their memory.
    """

    def __init__(self, target: str, run: Callable[..., Counts] = execute, **options: Any) -> None:
        self.target, self.run = target, partial(run, **options)
        self.launches: list[Launch] = []

    def __getattr__(self, name: str) -> Any:
        return partial(self.call, name)

    def call(self, name: str, *arguments: Any) -> Any:
        """One operator."""
        with device(self.target, self.run) as launches:
            there = each_tensor(to_gpu, {str(i): value for i, value in enumerate(arguments)})
            result = getattr(kernels, name)(*there.values())
        self.launches += launches
        return result


def to_gpu(x: Tensor) -> Tensor:
    """A copy of all of its memory, and the same part of that."""
    memory = x.as_strided((x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)
    return memory.to("cuda:0").as_strided(x.shape, x.stride(), x.storage_offset())
