"""The processes of a run: one of them alone, or those that `torchrun` starts, one a device, on one node or on several.

What has to be agreed between steps (stop now? did something fail? how often was which file unreadable?) travels over
gloo, between the processes' main memories, so it never waits for a device. Gradients travel by NCCL on GPUs.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from train.errors import InputError
from train.lock import Lock

Value = TypeVar("Value")

# How gloo and NCCL say that another process has died or does not answer.
_LOST = re.compile(r"gloo|nccl|connection (was )?(closed|reset|refused)|broken pipe|timed out|closed by peer", re.I)


class PeerLostError(InputError):
    """Another process of the run has died or no longer answers, so this one cannot go on either."""


@dataclass(frozen=True)
class Team:
    """This process' place among those of the run."""

    device: torch.device
    rank: int = 0
    """Its number among all of them."""
    size: int = 1
    """How many they are."""
    group: Any = field(default=None, repr=False)
    """The process group for what lies in main memory; None for a process alone."""

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes files and prints."""
        return self.rank == 0

    def all_reduce_max(self, number: int) -> int:
        """The greatest `number` that any process gave. All have to call it, and those below; waits for the slowest."""
        if self.size == 1:
            return number
        result = torch.tensor(int(number))
        dist.all_reduce(result, dist.ReduceOp.MAX, group=self.group)
        return int(result)

    def total(self, numbers: Tensor) -> Tensor:
        """The sum of every process' `numbers`, on this process' CPU."""
        result = numbers.detach().cpu().clone()
        if self.size > 1:
            dist.all_reduce(result, group=self.group)
        return result

    def gather(self, value: Value) -> list[Value]:
        """Every process' `value`, in the order of their ranks; `value` has to be picklable."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value, group=self.group)
        return values

    def on_leader(self, action: Callable[[], Value]) -> Value:
        """What `action` gives in the leading process, which alone calls it.

        An InputError or OSError of its is raised in all of them, as an InputError.
        """
        answer: list[Any] = [None, None]
        if self.leads:
            try:
                answer[0] = action()
            except (InputError, OSError) as error:
                answer[1] = str(error)
        if self.size > 1:
            dist.broadcast_object_list(answer, src=0, group=self.group)
        value, problem = answer
        if problem is not None:
            raise InputError(problem)
        return value

    @contextmanager
    def holding(self, lock: Lock) -> Iterator[None]:
        """For a while the leading process holds `lock` for all of them. InputError in all where another has it."""
        try:
            self.on_leader(lock.take)
            yield
        finally:
            lock.release()

    def share_buffers(self, network: nn.Module) -> None:
        """Give all processes the leading one's buffers: BatchNorm's running statistics, each process having its own.

        DistributedDataParallel does so before each training step; evaluation, which runs without it, needs it too.
        """
        if self.size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)


@contextmanager
def join_team(
    device: str = "auto", timeout: float = 600.0, environment: Mapping[str, str] = os.environ
) -> Iterator[Team]:
    """Meet the other processes, if `torchrun` (or something that sets its variables) started this one.

    Args:
        device: "cpu", "cuda", or "auto": GPUs where there are some.
        timeout: seconds without an answer after which another process is taken for lost.
        environment: where RANK, WORLD_SIZE and LOCAL_RANK stand; without them this process is alone.

    Raises:
        InputError: no such device, fewer GPUs than processes on this node, or a variable missing.
        PeerLostError: the others did not come, or one is lost while the team is together.
    """
    rank, size, local_rank = _place(environment)
    chosen = choose_device(device, local_rank)
    if size == 1:
        yield Team(chosen)
        return
    with _naming_lost_peers():
        limit = timedelta(seconds=timeout)
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=limit, rank=rank, world_size=size)
        group = dist.new_group(backend="gloo", timeout=limit) if chosen.type == "cuda" else dist.group.WORLD
        yield Team(chosen, rank, size, group)
    # Only where all went well: after an error the others may have died, and taking leave of them would wait for them.
    dist.destroy_process_group()


@contextmanager
def _naming_lost_peers() -> Iterator[None]:
    """Turn what gloo and NCCL raise when a peer has died into a PeerLostError that says so."""
    try:
        yield
    except InputError:
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not (dist.is_initialized() and _LOST.search(str(error))):
            raise
        reason = str(error).strip().splitlines()[0][:200] or type(error).__name__
        raise PeerLostError(
            f"another process of the run has died or hangs; its own last lines say why. Seen from here: {reason}"
        ) from error


def choose_device(device: str, local_rank: int = 0) -> torch.device:
    """The device that "cpu", "cuda" or "auto" stands for in the process `local_rank` of a node.

    Raises InputError where it does not exist.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device: got {device!r}, expected auto, cpu or cuda")
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError("device: got cuda, but torch finds no GPU here")
    if local_rank >= torch.cuda.device_count():
        raise InputError(
            f"process {local_rank + 1} of this node has no GPU of its own: there are {torch.cuda.device_count()}; "
            "start as many processes as GPUs (torchrun --nproc-per-node)"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _place(environment: Mapping[str, str]) -> tuple[int, int, int]:
    """(rank, size, local rank) from torchrun's variables."""
    if "WORLD_SIZE" not in environment:
        return 0, 1, 0
    try:
        rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        return rank, size, int(environment.get("LOCAL_RANK", "0"))
    except (KeyError, ValueError) as error:
        raise InputError(
            f"WORLD_SIZE is set, but RANK, WORLD_SIZE or LOCAL_RANK is missing or no number ({error}); "
            "torchrun sets all three"
        ) from error
