"""What the tests found, kernel by kernel, printed at the end of a run, in however many processes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

KERNEL = "kernel"


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Takes a line to print."""
    return partial(record_property, KERNEL)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    tests = [test for outcome in ("passed", "failed") for test in terminalreporter.getreports(outcome)]
    lines = sorted(line for test in tests for name, line in test.user_properties if name == KERNEL)
    if lines:
        terminalreporter.section("kernels")
        for line in lines:
            terminalreporter.write_line(line)
