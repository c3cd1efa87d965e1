"""Calls of a function in processes that can be killed: one that never returns costs its process and no more.

A thread or a timer is not enough: a decoder that hangs in C++ may hold the interpreter lock, so that no Python code of
its process runs any more, not even a signal's handler.
"""

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


class HungError(Exception):
    """The call had not returned when its time was up."""


class DiedError(Exception):
    """The process ended in the middle of the call."""


@dataclass
class Outcome(Generic[Task, Result]):
    """How the call for a task ended: `result()` returns what it returned, or raises."""

    task: Task
    value: Result | None = None
    error: BaseException | None = None

    def result(self) -> Result:
        """What the call returned. Raises what it raised, or HungError, or DiedError."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]


def call_each(
    function: Callable[[Task], Result], tasks: Sequence[Task], processes: int, timeout: float
) -> Iterator[Outcome[Task, Result]]:
    """Call `function` with each of `tasks` in `processes` processes; outcomes come as they are there, in any order.

    `timeout` is in seconds, for each call. `function`, tasks and results must be picklable.

    Raises RuntimeError where processes cannot even be started.
    """
    waiting = deque(tasks)
    workers = [_Worker(function) for _ in range(min(processes, len(waiting)))]
    try:
        while waiting or any(worker.busy for worker in workers):
            for worker in workers:
                if waiting and worker.idle:
                    worker.give(waiting.popleft(), timeout)
            rest = min((worker.deadline for worker in workers), default=float("inf")) - time.monotonic()
            wait([worker.connection for worker in workers], max(0.0, min(rest, 3600)))
            for i, worker in enumerate(workers):
                outcome = worker.outcome()
                if outcome is not None:
                    yield outcome
                if worker.gone:
                    workers[i] = _Worker(function)
    finally:
        for worker in workers:
            worker.kill()


class _Worker:
    """A process, what it is doing and until when it may."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit locks that other threads hold
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, function), daemon=True)
        self._process.start()
        theirs.close()
        self._started = self.busy = self.gone = False
        self._task: Any = None
        self.deadline = float("inf")

    @property
    def idle(self) -> bool:
        return self._started and not self.busy and not self.gone

    def give(self, task: Any, timeout: float) -> None:
        self._task, self.busy, self.deadline = task, True, time.monotonic() + timeout
        try:
            self.connection.send(task)
        except OSError:  # it died while it waited; `outcome` finds that out
            return

    def outcome(self) -> Outcome[Any, Any] | None:
        """The outcome of its task if there is one by now."""
        try:
            if self.connection.poll():
                message = self.connection.recv()
                if not self._started:
                    self._started = True
                    return None
                return self._ended(*message)
        except (EOFError, OSError):
            self.kill()
            if not self._started:
                raise RuntimeError(f"a process ended at its start, with exit code {self._process.exitcode}") from None
            return self._ended(None, DiedError(f"exit code {self._process.exitcode}")) if self.busy else None
        if time.monotonic() >= self.deadline:
            self.kill()
            return self._ended(None, HungError())
        return None

    def _ended(self, value: Any, error: BaseException | None) -> Outcome[Any, Any]:
        self.busy, self.deadline = False, float("inf")
        return Outcome(self._task, value, error)

    def kill(self) -> None:
        self.gone = True
        self._process.kill()
        self._process.join()
        self.connection.close()


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent, which gets it too, decides
    # Decoders write what they think of a file past Python, into the parent's progress bar; errors are sent back.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    connection.send("started")
    while True:
        try:
            task = connection.recv()
        except EOFError:  # the parent is gone
            return
        try:
            value, raised = function(task), None
        except Exception as error:
            value, raised = None, error
        connection.send((value, raised))
