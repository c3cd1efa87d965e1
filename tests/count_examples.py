"""A pytest plugin, `-p tests.count_examples`: how many examples Hypothesis drew, in the summary's last lines."""

import re
from collections import Counter

import pytest

DRAWN: Counter[str] = Counter()  # by file


def pytest_runtest_teardown(item: pytest.Item) -> None:
    # What `--hypothesis-show-statistics` prints of a test.
    statistics = getattr(item, "hypothesis_statistics", "")
    DRAWN[item.nodeid.split("::")[0]] += sum(map(int, re.findall(r"- (\d+) passing", statistics)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("examples drawn")
    for path, count in sorted(DRAWN.items()):
        if count:
            terminalreporter.line(f"{count:8} {path}")
    terminalreporter.line(f"{DRAWN.total():8} in all")
