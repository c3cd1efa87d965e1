"""Plugin of pytest, `-p tests.support.count_examples`: how many examples Hypothesis drew, at the summary's end."""

import re
from collections import Counter
from collections.abc import Generator

import pytest

DRAWN: Counter[str] = Counter()  # by file


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Sends the number with the test's last report, to the process that prints the summary."""
    report = yield
    if call.when == "teardown":
        # What `--hypothesis-show-statistics` prints of a test.
        statistics = getattr(item, "hypothesis_statistics", "")
        report.user_properties.append(("examples", sum(map(int, re.findall(r"- (\d+) passing", statistics)))))
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for name, count in report.user_properties:
        if name == "examples" and isinstance(count, int):
            DRAWN[report.nodeid.split("::")[0]] += count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("examples drawn")
    for path, count in sorted(DRAWN.items()):
        if count:
            terminalreporter.line(f"{count:8} {path}")
    terminalreporter.line(f"{DRAWN.total():8} in all")
