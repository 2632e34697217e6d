"""What every test of a fleet asks of its row."""

from __future__ import annotations

import signal

import pytest

from tests.fleet.__main__ import table
from tests.fleet.scenarios import SCENARIOS, WINDOW, Row, run_scenario
from tests.fleet.stores import Kind, why_not

FULL = 0.95
"""Of full speed: less is not full. Slots are counted over a second and a half, which is not quite exact."""
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
    if reason := SCENARIOS[name].why_not:
        pytest.skip(reason)
    row = run_scenario(name, kind)
    never_over(row)
    assert all(back is not None and back <= 2 * WINDOW for back in row.back_seconds), row.back_seconds
    assert all(part >= FULL for part in row.after), row.after
    return row


def never_over(row: Row) -> None:
    """Nothing was refused, and the judge was right; skip the test if the machine stood still too long."""
    print(f"\n{table([row])}")
    assert not row.outcome.complaints, row.outcome.complaints
    assert row.outcome.report["disagreements"] == 0, row.outcome.report["first_disagreements"]
    if row.refused and row.machine_too_slow:
        pytest.skip(
            f"the server stood still for {row.stall_ms} ms, {row.late} calls were late: no plan can bear"
        )
    assert row.refused == 0, row.outcome.report["refusals"]
    assert not row.slots or row.most_in_flight <= row.slots
    assert row.before > MOVING, "it hardly moved before"
    assert set(row.exits.values()) <= {0, KILLED}, row.exits
