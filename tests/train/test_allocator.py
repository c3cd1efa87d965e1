"""Large tensors on the CPU: memory that was freed serves again, where the C library can be told so."""

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from train import allocator
from train.allocator import keep_freed_memory

FAULTS = """
import resource
import sys
import torch
from train.precision import computing

torch.set_num_threads(1)
x = torch.ones(2**24)  # 64 MiB
with computing(torch.device(sys.argv[1])):
    for _ in range(12):  # what malloc keeps for small blocks lies between them at first
        x + 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        x + 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in allocator._OWN:
        monkeypatch.delenv(name, raising=False)


def faults(device):
    """Pages that are mapped anew for three tensors of 64 MiB, after others of that size."""
    command = [sys.executable, "-c", FAULTS, device]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="a C library without mallopt")
def test_freed_memory_is_kept_on_the_cpu():
    kept = faults("cpu")
    assert kept < 1000
    assert kept <= faults("meta")  # as it was: on Linux with glibc 3 × 16384


def test_where_there_is_no_mallopt(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert not keep_freed_memory()


def test_one_that_refuses(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=lambda parameter, value: 0))
    assert not keep_freed_memory()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=lambda parameter, value: 1))
    assert keep_freed_memory()


def test_what_users_have_set_counts(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("asked"))
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    assert not keep_freed_memory()
