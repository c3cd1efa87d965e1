"""`python -m train …` where no file can be larger than a disk that is full would have it.

Each run is forked from a server that has imported what it needs and computed nothing: a process in which autograd has
started threads cannot be forked and then train.
"""

import multiprocessing
import os
import resource
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from unittest.mock import patch

import torch

from train.__main__ import main

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__, "train.compare.compare", "train.demo.demo", "train.evaluation.test"])


def run_limited(most: int, command: list[str]) -> tuple[int, str]:
    """Its exit status, 70 for an exception, and what it prints; a file can have `most` bytes."""
    receiving, sending = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_run, args=(sending, most, command))
    process.start()
    sending.close()
    with os.fdopen(os.dup(receiving.fileno())) as pipe:
        text = pipe.read()
    receiving.close()
    process.join()
    assert process.exitcode is not None
    return process.exitcode, text


def _run(sending: Connection, most: int, command: list[str]) -> None:
    status = 70
    try:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(sending.fileno(), number)
            setattr(sys, name, os.fdopen(number, "w", buffering=1, closefd=False))
        torch.set_num_threads(1)
        signal.alarm(60)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
        with patch("train.convert.published_state", lambda network, _: network.state_dict()):
            status = main(command)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
