"""Calls of a function in processes that can be killed: one that never returns costs its process and no more.

A thread or a timer is not enough: a decoder that hangs in C++ may hold the interpreter lock, so that no Python code of
its process runs any more, not even a signal's handler. Each process has an executor of its own: in a pool of several
processes it is not certain, on a busy machine, which call has ended one of them.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from queue import SimpleQueue
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

CRASHED = "the process that read it crashed or was killed"


def took_too_long(seconds: float) -> str:
    """Why a video that was not read in this time is left out."""
    return f"took more than {seconds:g} s to be read, its decoder was taken for hung and ended"


def kill(pid: int) -> None:
    """End a process that may hold the interpreter lock, and so hear of nothing else."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def call_each(
    function: Callable[[Task], Result], tasks: Sequence[Task], processes: int, timeout: float
) -> Iterator[tuple[Task, Result | Exception]]:
    """Call `function` with each of `tasks` in `processes` processes; outcomes come as they are there, in any order.

    An outcome is what the call returned or the exception that it raised: TimeoutError where it did not return within
    `timeout` seconds, BrokenProcessPool where its process ended. `function`, tasks and results must be picklable.

    Raises RuntimeError where processes cannot even be started.
    """
    waiting, outcomes = deque(tasks), SimpleQueue[tuple[Any, Any]]()
    callers = [_Caller(function, timeout) for _ in range(min(processes, len(waiting)))]
    for caller in callers:
        threading.Thread(target=caller.work, args=(waiting, outcomes), daemon=True).start()
    try:
        for _ in range(len(tasks)):
            task, outcome = outcomes.get()
            if task is None:
                raise RuntimeError("a process ended at its start") from outcome
            yield task, outcome
    finally:
        waiting.clear()
        for caller in callers:
            caller.kill()


class _Caller:
    """A process that makes one call after another; a new one after a call that it does not survive."""

    def __init__(self, function: Callable[[Any], Any], timeout: float) -> None:
        self.function, self.timeout = function, timeout
        self.start()

    def start(self) -> None:
        spawn = multiprocessing.get_context("spawn")  # a fork would inherit locks that other threads hold
        # With `function` at its start, so that it imports what that needs before the first call.
        self.executor = ProcessPoolExecutor(1, spawn, initializer=_begin, initargs=(self.function,))
        self.pid = self.executor.submit(os.getpid)

    def work(self, waiting: deque[Any], outcomes: SimpleQueue[tuple[Any, Any]]) -> None:
        try:
            with contextlib.suppress(IndexError):  # nothing is waiting any more
                while True:
                    self.pid.result()
                    task = waiting.popleft()
                    outcomes.put((task, self.call(task)))
            self.executor.shutdown(wait=False)
        except Exception as error:
            outcomes.put((None, error))

    def call(self, task: Any) -> Any:
        try:
            future = self.executor.submit(self.function, task)
        except BrokenProcessPool:  # it has ended since the call before
            self.start()
            self.pid.result()
            return self.call(task)
        try:
            return future.result(self.timeout)
        except Exception as error:
            if not future.done():
                self.kill()
                self.start()
            return error

    def kill(self) -> None:
        if self.pid.done() and self.pid.exception() is None:
            kill(self.pid.result())
        self.executor.shutdown(wait=False)


def _begin(_: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent, which gets it too, decides
    # Decoders write what they think of a file past Python, into the parent's progress bar; errors are sent back.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
