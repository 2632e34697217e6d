"""A window at t0, t1, …; what it promises in general is in tests/core/test_laws.py."""

from __future__ import annotations

import pytest

from headgate.core.model import DAY, LOST, NEVER, SECOND, UNSENT, Reading, Refused, Signal
from tests.core.caller import Caller

S = SECOND
MS = 1_000
PERIOD = 10 * S + 2 * MS
SLOT = -(-PERIOD // 256)


def window(options: str = "start=full:transit=1s", kind: str = "sliding") -> Caller:
    return Caller(f"tokens=10/10s:kind={kind}:{options}")


@pytest.mark.parametrize("kind", ["sliding", "anchored"])
def test_an_entry_stays_for_a_period_after_its_answer(kind: str) -> None:
    caller = window(kind=kind)
    for grant in caller.granted(0):
        caller.settle(300 * MS, grant)
    until = caller.until(300 * MS)
    assert PERIOD <= until - 300 * MS <= PERIOD + SLOT
    assert len(caller.granted(until)) == 10


def test_an_entry_without_an_answer_stays_for_a_period_after_its_transit() -> None:
    caller = window()
    assert len(caller.granted(0)) == 10
    until = caller.until(0)
    assert PERIOD + S <= until <= PERIOD + S + S // 32 + SLOT
    assert len(caller.granted(until)) == 10


def test_without_an_answer_nothing_leaves_where_usage_counts() -> None:
    caller = window("start=full:charge=usage")
    grants = caller.granted(0)
    assert caller.until(5 * S) == NEVER
    caller.settle(5 * S, grants[0], Signal(usage={"tokens": 0}))
    assert len(caller.granted(5 * S)) == 1


@pytest.mark.parametrize(
    ("start", "left"), [("full", 10), ("empty", 0), ("used-4", 6), ("used-40", 0), ("auto", 1)]
)
def test_how_much_is_there_at_first(start: str, left: int) -> None:
    assert len(window(f"start={start}").granted(0)) == left


def test_an_unknown_start_is_paced_and_a_long_window_is_believed_empty() -> None:
    caller = window("start=auto")
    caller.settle(0, caller.grant(0))
    assert 0 < caller.until(0) <= 2 * S + 2 * SLOT  # the probe, and one more
    assert len(caller.granted(5 * S)) in (3, 4, 5)
    assert len(Caller("tokens=10/h:kind=sliding").granted(0)) == 10


def test_an_answer_tells_what_others_have_left() -> None:
    caller = window("start=full")
    grant = caller.grant(0)
    caller.settle(MS, grant, Signal(readings=(Reading("tokens", 10, 3, None),)))
    assert len(caller.granted(MS)) == 3


def test_the_probes_answer_takes_away_what_nobody_has_used() -> None:
    caller = window("start=auto")
    grant = caller.grant(0)
    caller.settle(MS, grant, Signal(readings=(Reading("tokens", 10, 9, None),)))
    assert len(caller.granted(MS)) == 9


def test_a_report_of_another_window_says_nothing() -> None:
    caller = window("start=full")
    caller.settle(MS, caller.grant(0), Signal(readings=(Reading("tokens", 500, 3, None),)))
    assert len(caller.granted(MS)) == 9


@pytest.mark.parametrize(
    ("options", "signal", "used"),
    [
        ("charge=estimate", Signal(), 6),
        ("charge=estimate", Signal(charged={"tokens": 2}), 2),
        ("charge=estimate", Signal(usage={"tokens": 2}), 6),
        ("charge=estimate", Signal(usage={"tokens": 9}), 9),
        ("charge=estimate", UNSENT, 0),
        ("charge=estimate", LOST, 6),
        ("charge=usage", Signal(usage={"tokens": 2}), 2),
        ("charge=usage", Signal(usage={"tokens": 15}), 15),
        ("charge=usage", UNSENT, 0),
        ("charge=usage", LOST, 6),
    ],
)
@pytest.mark.parametrize("lapsed", [False, True], ids=["at once", "late"])
def test_settle_books_exactly_what_the_rule_allows(
    options: str, signal: Signal, used: int, lapsed: bool
) -> None:
    caller = window(f"start=full:transit=1s:{options}")
    grant = caller.grant(0, 6)
    at = 3 * S if lapsed else MS
    caller.settle(at, grant, signal)
    assert caller.used(at) == (used,)


@pytest.mark.parametrize("idle", [PERIOD, 3 * PERIOD, 255 * SLOT, 260 * SLOT, 261 * SLOT, DAY, 10_000 * DAY])
def test_the_ring_forgets_everything_in_a_long_idleness_and_nothing_in_a_short_one(idle: int) -> None:
    caller = window()
    for grant in caller.granted(0):
        caller.settle(0, grant)
    left = len(caller.granted(idle))
    assert left == (10 if idle >= PERIOD + SLOT else left)
    if idle < PERIOD:
        assert left == 0
    assert caller.used(idle) == (10,)


def test_holds_that_lapse_one_by_one_in_a_long_idleness_are_gone_after_it() -> None:
    caller = window()
    for at in range(0, 2 * S, 200 * MS):
        caller.grant(at)
    assert caller.used(500 * S) == (0,)
    assert len(caller.granted(500 * S)) == 10


def test_a_cost_above_the_amount_is_refused() -> None:
    assert window().ask(0, (11,)) == [Refused(0, 10)]


def test_a_burst_moves_the_window_on_one_by_one() -> None:
    caller = window()
    for at in range(10):
        caller.settle(at * S, caller.grant(at * S))
    for at in range(10):
        until = caller.until(9 * S + MS)
        assert at * S + PERIOD <= until <= at * S + PERIOD + SLOT
        caller.settle(until, caller.grant(until))
        caller.used(until)
        if until > 9 * S + MS:
            break
