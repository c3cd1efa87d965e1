"""Calls in processes that can be killed: what hangs, dies or raises costs its own call and no other."""

import ctypes
import multiprocessing
import os
import signal
import time
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pytest

from train.data.killable import call_each


def act(task):
    if task == "hang":
        ctypes.PyDLL(None).sleep(1000)  # holds the interpreter lock, as decoders do
    if task == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "raise":
        raise ValueError("no")
    return task.upper()


def test_calls_that_hang_die_or_raise(tmp_path):
    outcomes: dict[str, list] = {}
    started = time.monotonic()
    tasks = ["a", "hang", "b", "die", "raise", "c", "die", "d"]
    for task, outcome in call_each(act, tasks, processes=2, timeout=1.0):
        result = type(outcome) if isinstance(outcome, Exception) else outcome
        outcomes.setdefault(task, []).append(result)
    assert outcomes == {
        **{task: [task.upper()] for task in "abcd"},
        "hang": [TimeoutError],
        "die": 2 * [BrokenProcessPool],
        "raise": [ValueError],
    }
    assert time.monotonic() - started < 60
    assert list(call_each(act, [], processes=2, timeout=1.0)) == []


def test_calls_that_are_not_waited_for_are_ended():
    started = time.monotonic()
    calls: Any = call_each(act, ["hang", "a", "hang", "hang"], processes=2, timeout=60.0)
    assert next(calls) == ("a", "A")
    calls.close()
    while multiprocessing.active_children() and time.monotonic() < started + 30:
        time.sleep(0.01)
    assert time.monotonic() < started + 30


class EndsItsProcess:
    """A function that is not even unpickled."""

    def __reduce__(self):
        return os._exit, (3,)

    def __call__(self, task):
        return task


def test_processes_that_do_not_start():
    with pytest.raises(RuntimeError, match="ended at its start"):
        list(call_each(EndsItsProcess(), range(10), processes=2, timeout=1.0))
