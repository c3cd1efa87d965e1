"""Processes that read clips, and a guard over them: no file can hang or crash a run.

torch's DataLoader feeds the workers. Beside it every worker notes, in memory that it shares with the main process,
which file it reads and since when. So when one is found to be hung or dead, the file is known: it is put on the
dataset's list of files to be avoided, the workers are started anew, and the run goes on with the batch it waited for,
in which that file counts as one that cannot be read.
"""

import contextlib
import ctypes
import functools
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, get_worker_info

from train.data.killable import CRASHED, kill, took_too_long
from train.errors import InputError
from train.fields import check_types, require

Batch = TypeVar("Batch")

# How often a run starts its workers anew before it takes the machine, not the files, for the cause.
MAX_RESTARTS = 10

# Seconds after which a wait for a batch is interrupted to look at the workers.
LOOK_INTERVAL = 5.0


@dataclass(frozen=True)
class Loading:
    """How clips are read: it changes how fast batches come, not what is in them."""

    workers: int = field(default_factory=lambda: min(4, len(os.sched_getaffinity(0))))
    """Processes that read, for each process that trains. With 0 the training process reads, in between, and nothing
    guards it: a decoder that hangs or crashes takes the run with it. By default 4, on smaller machines one a core."""
    prefetch: int = 2
    """Batches that each worker holds ready."""
    pin_memory: bool | None = None
    """Put batches into page-locked memory, from which a GPU fetches them without waiting; by default where a GPU
    computes."""
    timeout: float = 120.0
    """Seconds that one clip may take to be read before its file is taken for one that hangs the decoder."""

    @property
    def pins(self) -> bool:
        """Whether batches go into page-locked memory."""
        return torch.cuda.is_available() if self.pin_memory is None else self.pin_memory

    def for_device(self, device: torch.device) -> "Loading":
        """The same, with `pin_memory` decided for batches that go to `device`: what was asked for, else by its kind.

        Raises InputError where page-locked memory is asked for and there is no GPU, whose driver gives it.
        """
        if self.pin_memory and not torch.cuda.is_available():
            raise InputError("loading.pin_memory: got True, but torch finds no GPU here")
        return replace(self, pin_memory=device.type == "cuda") if self.pin_memory is None else self

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "workers", self.workers >= 0, "at least 0")
        require(self, "prefetch", self.prefetch >= 1, "at least 1")
        require(self, "timeout", self.timeout > 0, "a number of seconds above 0")


class WorkerError(InputError):
    """Processes that read clips have hung or died time and again; leaving out files did not cure it."""


class Watched(Protocol):
    """A dataset that says what it reads, and leaves out what it is told to."""

    avoided: dict[str, str]
    watch: Callable[[str], None]

    def __getitem__(self, key: Any) -> Any: ...


class GuardedLoader(Generic[Batch]):
    """The batches of `keys` from number `start` on, each the `collate` of what `dataset` gives for its keys.

    May be iterated again and again, one iteration at a time; the workers stay until `close` or an iteration that is
    not finished. Iterating raises WorkerError where workers hang or die more than `MAX_RESTARTS` times.
    """

    def __init__(
        self,
        dataset: Watched,
        keys: Sequence[list[Any]],
        collate: Callable[[list[Any]], Batch],
        loading: Loading,
        start: int = 0,
    ) -> None:
        if not 0 <= start <= len(keys):
            raise InputError(f"start: got {start}, expected a batch number from 0 to {len(keys)}")
        self.dataset, self.keys, self.collate, self.loading, self.start = dataset, keys, collate, loading, start
        self._workers: _Workers | None = None
        self._restarts = 0

    def __len__(self) -> int:
        return len(self.keys) - self.start

    def __iter__(self) -> Iterator[Batch]:
        if self.loading.workers == 0:
            for number in range(self.start, len(self.keys)):
                batch: Any = self.collate([self.dataset[key] for key in self.keys[number]])
                yield batch.pin_memory() if self.loading.pins else batch
            return
        position, finished = self.start, False
        try:
            while not finished:
                if self._workers is None:
                    self._workers = _Workers(self.dataset, self.keys, self.collate, self.loading)
                try:
                    for batch in self._workers.batches(position):
                        position += 1
                        yield batch
                    finished = True
                except _TroubleError as trouble:
                    self.close()
                    self._leave_out(trouble)
        finally:
            if not finished:
                self.close()

    def close(self) -> None:
        """End the workers."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def _leave_out(self, trouble: "_TroubleError") -> None:
        self.dataset.avoided.update(trouble.reasons)
        self._restarts += 1
        if self._restarts > MAX_RESTARTS:
            named = "".join(f"; {path}: {reason}" for path, reason in self.dataset.avoided.items())
            raise WorkerError(
                f"the processes that read videos were started anew {MAX_RESTARTS} times, now: {trouble}{named}"
            )


class _TroubleError(Exception):
    """Workers that are no longer of use, and the files that hung or killed them, with the reasons."""

    def __init__(self, message: str, reasons: dict[str, str]) -> None:
        super().__init__(message)
        self.reasons = reasons


class _Slot(ctypes.Structure):
    """What a worker is doing: its process, the file it reads (empty: none) and since when (time.monotonic)."""

    _fields_ = (("pid", ctypes.c_int64), ("since", ctypes.c_double), ("path", ctypes.c_char * 4096))


def _watch(slots: Any, worker: int) -> None:
    """In a worker, lets the dataset write into the worker's slot."""
    info: Any = get_worker_info()
    slots[worker].pid = os.getpid()
    info.dataset.watch = functools.partial(_write, slots[worker])


def _write(slot: _Slot, path: str) -> None:
    slot.since = time.monotonic()
    slot.path = os.fsencode(path)[:4095]


class _From:
    """The keys from a number on that may be set anew before each iteration."""

    def __init__(self, keys: Sequence[list[Any]]) -> None:
        self.keys, self.start = keys, 0

    def __iter__(self) -> Iterator[list[Any]]:
        return (self.keys[i] for i in range(self.start, len(self.keys)))


class _Workers:
    """One set of worker processes; those of a set that had trouble are not used again."""

    def __init__(
        self, dataset: Watched, keys: Sequence[list[Any]], collate: Callable[[list[Any]], Any], loading: Loading
    ) -> None:
        self.timeout = loading.timeout
        self.slots: Any = multiprocessing.RawArray(_Slot, loading.workers)
        self.keys = _From(keys)
        self.loader: DataLoader[Any] = DataLoader(
            dataset,  # type: ignore[arg-type]
            batch_sampler=self.keys,
            collate_fn=collate,
            num_workers=loading.workers,
            prefetch_factor=loading.prefetch,
            persistent_workers=True,
            pin_memory=loading.pins,
            timeout=min(LOOK_INTERVAL, loading.timeout / 2),
            worker_init_fn=functools.partial(_watch, self.slots),
            # A generator of its own, so that the loader draws nothing from torch's global one.
            generator=torch.Generator(),
        )
        self.iterator: Any = None

    def batches(self, start: int) -> Iterator[Any]:
        self.keys.start = start
        with _child_signals_kept():
            self.iterator = iter(self.loader)
        waiting_since = time.monotonic()
        while True:
            try:
                batch = next(self.iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                self._look(str(error), waiting_since, error)
                continue
            yield batch
            waiting_since = time.monotonic()

    def _look(self, message: str, waiting_since: float, error: RuntimeError) -> None:
        """Find out why no batch came; returns if there is nothing but slowness."""
        now = time.monotonic()
        busy = [(slot.pid, os.fsdecode(slot.path), now - slot.since) for slot in self.slots if slot.path]
        if message.startswith("DataLoader worker (pid"):
            dead = [int(number) for number in re.findall(r"\d+", message)]
            raise _TroubleError(message, {path: CRASHED for pid, path, _ in busy if pid in dead}) from error
        if not message.startswith("DataLoader timed out"):
            raise error
        hung = [(pid, path) for pid, path, age in busy if age > self.timeout]
        for pid, _ in hung:
            kill(pid)
        if hung:
            reason = took_too_long(self.timeout)
            raise _TroubleError("a decoder hangs", {path: reason for _, path in hung}) from error
        if not busy and now - waiting_since > self.timeout:
            raise _TroubleError(f"they gave nothing for {self.timeout:g} s", {}) from error

    def close(self) -> None:
        if self.iterator is not None:
            # Not left to the garbage collector: the iterator may be held by a traceback for long.
            self.iterator._shutdown_workers()
        self.iterator = None
        del self.loader


@contextlib.contextmanager
def _child_signals_kept() -> Iterator[None]:
    """Keep torch from raising an error wherever the main process happens to be when a worker dies.

    The DataLoader sets a handler of SIGCHLD for that. Without it a death is found at the next wait for a batch, where
    the run can go on from.
    """
    if threading.current_thread() is not threading.main_thread():  # where torch sets no handler either
        yield
        return
    former = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, former if former is not None else signal.SIG_DFL)
