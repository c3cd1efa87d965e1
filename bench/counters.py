"""What a call costs beside time: memory at its peak, memory held for backward, launches."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

MEMORY_EVENTS = ("Memcpy", "Memset")


def saved_bytes(run: Callable[[], object], parameters: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd holds between the forward and the backward of `run`.

    Each storage counts once and whole, the input's among them; those of `parameters` do not count.
    """
    lasting = {storage_of(tensor) for tensor in parameters}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[storage_of(tensor)] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(tensor.untyped_storage().nbytes() for storage, tensor in saved.items() if storage not in lasting)


def storage_of(tensor: Tensor) -> int:
    """Tells the storages of living tensors apart, on the meta device too, where none has an address."""
    return tensor.untyped_storage()._cdata


def peak_bytes(run: Callable[[], object], device: str) -> int | None:
    """The most memory that `run` held at once, beyond what was allocated before it.

    None on the CPU, where torch keeps no account of its memory.
    """
    if torch.device(device).type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def launches(run: Callable[[], object], device: str) -> int:
    """On a GPU the kernels that `run` launches, copies and fills of memory apart; elsewhere the operators it calls.

    An operator counts where it reaches the dispatcher below autograd and is no view. The loops that `torch.compile`
    generates for the CPU never do: of them this says nothing.
    """
    if torch.device(device).type == "cuda":
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            run()
            torch.cuda.synchronize(device)
        kernels = [e.name for e in profiler.events() or () if e.device_type == torch.autograd.DeviceType.CUDA]
        return sum(not name.startswith(MEMORY_EVENTS) for name in kernels)
    with OperatorCalls() as calls:
        run()
    return calls.count


class OperatorCalls(TorchDispatchMode):
    """Counts the operators that reach the dispatcher, views apart."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What torch calls in place of each operator."""
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))
