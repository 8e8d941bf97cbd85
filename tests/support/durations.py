"""Seconds by test file, printed at the end of a run: what makes a suite slow is a file more often than a test.

conftest.py takes the hooks from here. With several workers the seconds are those of all of them together.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

LARGEST = 15

_SECONDS: dict[str, float] = defaultdict(float)
_TESTS: Counter[str] = Counter()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Called for each test's setup, call and teardown; with xdist also in the process that prints the summary."""
    file = report.nodeid.partition("::")[0]
    _SECONDS[file] += report.duration
    _TESTS[file] += report.when == "setup"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if len(_SECONDS) < 2:
        return
    terminalreporter.section("seconds by test file")
    for file, seconds in sorted(_SECONDS.items(), key=lambda entry: -entry[1])[:LARGEST]:
        terminalreporter.write_line(f"{seconds:8.1f}  {_TESTS[file]:4d} tests  {file}")
    terminalreporter.write_line(f"{sum(_SECONDS.values()):8.1f}  {_TESTS.total():4d} tests  in {len(_SECONDS)} files")
