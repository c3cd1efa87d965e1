"""How the suite runs: kernels interpreted on the CPU, unless `pytest -m gpu` or `-m executed` asks otherwise."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "ci", derandomize=True, deadline=None, max_examples=16, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "thorough", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

COMPILED = ("gpu", "executed")  # kernels are interpreted in a process or compiled, not both


def first_mark(config: pytest.Config) -> str:
    """With which `-m` begins, such as `executed` in "executed and not deep"."""
    return str(config.getoption("markexpr")).partition(" ")[0]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "out_of_bounds: launches kernels that leave their tensors on purpose")
    if first_mark(config) in COMPILED:
        return
    if "triton" in sys.modules:
        raise RuntimeError("triton was imported before TRITON_INTERPRET could be set")
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated
    # glibc's own default, so that `keep_freed_memory` leaves a worker as it is: one whose heap has held maps of 2³¹
    # elements, and keeps them, is too large to fork.
    os.environ.setdefault("MALLOC_TOP_PAD_", str(128 * 1024))

    import torch

    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)  # the other core has a process of its own

    from bench.interpreted import checking
    from tests.support.interpreter import hurried

    net = ExitStack()
    net.enter_context(hurried())
    net.enter_context(checking())
    config.add_cleanup(net.close)


@pytest.fixture(autouse=True)
def addresses(request: pytest.FixtureRequest) -> Iterator[None]:
    """Interpreted kernels fail a test if they load or store outside their tensors, unless it is there to do so."""
    if not request.node.get_closest_marker("out_of_bounds"):
        yield
        return
    from bench.interpreted import Bounds

    with mock.patch.object(Bounds, "access"):
        yield


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    for mark in COMPILED:
        if mark == "gpu" and not torch.cuda.is_available():
            reason = "no GPU"
        elif first_mark(config) != mark:
            reason = f"kernels are interpreted in this run; use `pytest -m {mark}`"
        else:
            continue
        for item in items:
            if item.get_closest_marker(mark):  # a folder's name is among its keywords
                item.add_marker(pytest.mark.skip(reason=reason))
