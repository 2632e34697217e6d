"""Shows the table of every pair after the run."""

from __future__ import annotations

import pytest

from tests.simulation import table


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in table.LINES:
        terminalreporter.write_line(line)
