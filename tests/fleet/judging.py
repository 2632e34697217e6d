"""What every test of a fleet asks of its row."""

from __future__ import annotations

import signal

import pytest

from tests.fleet.__main__ import table
from tests.fleet.scenarios import WINDOW, Row, run_scenario
from tests.fleet.stores import Kind, why_not

FULL = 0.95
"""Of full speed: less is not full."""
MOVING = 0.8
"""Of the most that limits allow: below it a run says nothing. How close one comes, others judge."""
KILLED = -signal.SIGKILL


def need(kind: Kind) -> None:
    """Skip the test where the package has no such store yet."""
    if reason := why_not(kind):
        pytest.skip(reason)


def judged(name: str, kind: Kind) -> Row:
    """The row of a scenario, if nothing was refused and all was full speed again in time."""
    need(kind)
    row = run_scenario(name, kind)
    never_over(row)
    fast(row, row.before > MOVING, "it hardly moved before")
    back = all(back is not None and back <= 2 * WINDOW for back in row.back_seconds)
    fast(row, back, f"full speed was back after {row.back_seconds} s")
    enough = all(part is not None and part >= FULL for part in row.after)
    fast(row, enough, f"{row.after} of full speed after it")
    return row


def never_over(row: Row) -> None:
    """Nothing was refused, and the judge was right; skip the test if the machine stood still too long."""
    print(f"\n{table([row])}")
    assert not row.outcome.complaints, row.outcome.complaints
    assert row.outcome.report["disagreements"] == 0, row.outcome.report["first_disagreements"]
    if row.refused and row.too_late:
        pytest.skip(f"{row.name}: the server stood still for {row.stall_ms} ms, {row.late} calls were late")
    assert row.refused == 0, row.outcome.report["refusals"]
    assert not row.slots or row.most_in_flight <= row.slots
    assert set(row.exits.values()) <= {0, KILLED}, row.exits


def fast(row: Row, holds: bool, otherwise: str) -> None:
    """Something about speed holds; if not, and the machine was busy with other things, skip the test."""
    if not holds and row.too_busy:
        pytest.skip(
            f"{row.name}: clients waited for a processor for {row.starved:.0%} of the time: {otherwise}"
        )
    assert holds, otherwise
