"""A window with known edges at t0, t1, …; what it promises in general is in tests/core/test_laws.py."""

from __future__ import annotations

from datetime import datetime

import pytest

from headgate.core import decide
from headgate.core.model import HOUR, LOST, NEVER, SECOND, UNSENT, Now, Reading, Refused, Signal
from tests.core.caller import Caller

S = SECOND
MS = 1_000
GUARD = 5 * MS


def window(options: str = "start=full:transit=1s") -> Caller:
    return Caller(f"tokens=10/10s:kind=fixed:{options}", at=S)


def test_the_whole_amount_goes_out_in_each_window_and_nothing_behind_its_first_edge() -> None:
    caller = window()
    for grant in caller.granted(S):
        caller.settle(2 * S, grant)
    assert caller.used(2 * S) == (10,)
    assert caller.until(2 * S) == 10 * S + GUARD
    assert len(caller.granted(10 * S)) == 0
    assert len(caller.granted(10 * S + GUARD - 1)) == 0
    assert len(caller.granted(10 * S + GUARD)) == 10


def test_what_is_on_its_way_over_an_edge_counts_on_both_sides() -> None:
    caller = window()
    grants = [caller.grant(9_500 * MS) for _ in range(4)]
    caller.settle(9_600 * MS, grants[0])
    assert len(caller.granted(10 * S + GUARD)) == 7


@pytest.mark.parametrize(
    ("answered", "left"), [(10 * S - GUARD - 1, 10), (10 * S - GUARD, 9), (10 * S - 1, 9)]
)
def test_what_was_answered_within_the_clock_error_counts_on_both_sides(answered: int, left: int) -> None:
    caller = window()
    caller.settle(answered, caller.grant(9 * S))
    assert len(caller.granted(10 * S + GUARD)) == left


@pytest.mark.parametrize(("sent", "left"), [(8 * S, 10), (9 * S, 9), (10 * S - 1, 9)])
def test_what_was_not_answered_counts_on_both_sides_while_it_may_be_on_its_way(sent: int, left: int) -> None:
    caller = window()
    caller.grant(sent)
    assert len(caller.granted(10 * S + GUARD)) == left
    assert len(caller.granted(20 * S + GUARD)) == 10 if left == 10 else 9


def test_the_clock_error_widens_the_guard() -> None:
    caller = Caller("tokens=10/10s:kind=fixed:start=full:error=1s", at=S)
    caller.granted(S)
    assert caller.until(S) == 11 * S


@pytest.mark.parametrize(
    ("start", "left"), [("full", 10), ("empty", 0), ("used-4", 6), ("used-40", 0), ("auto", 1)]
)
def test_how_much_is_there_at_first(start: str, left: int) -> None:
    assert len(window(f"start={start}").granted(S)) == left


def test_an_unknown_start_is_paced_to_the_edge() -> None:
    caller = window("start=auto")
    caller.settle(S, caller.grant(S))
    assert caller.until(S) == S + 2 * S  # one a second, and the probe counts
    assert len(caller.granted(6 * S)) == 4
    caller.used(9 * S)
    assert len(caller.granted(20 * S + GUARD)) == 10


def test_the_probes_answer_ends_the_pacing() -> None:
    caller = window("start=auto")
    caller.settle(S, caller.grant(S), Signal(readings=(Reading("tokens", 10, 6, None),)))
    assert len(caller.granted(S)) == 6


def test_a_report_from_the_window_before_says_nothing() -> None:
    caller = window()
    grant = caller.grant(9 * S)
    caller.settle(11 * S, grant, Signal(readings=(Reading("tokens", 10, 0, None),)))
    assert caller.used(11 * S) == (1,)


@pytest.mark.parametrize(
    ("options", "signal", "used"),
    [
        ("charge=estimate", Signal(), 6),
        ("charge=estimate", Signal(charged={"tokens": 2}), 2),
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
    grant = caller.grant(S, 6)
    at = 4 * S if lapsed else S + MS
    caller.settle(at, grant, signal)
    assert caller.used(at) == (used,)


def test_only_an_answer_opens_where_usage_counts_and_everything_is_out() -> None:
    caller = window("start=full:charge=usage")
    grants = caller.granted(S)
    assert caller.until(S) == NEVER
    caller.settle(15 * S, grants[0], Signal(usage={"tokens": 0}))
    assert len(caller.granted(15 * S)) == 1


def test_a_cost_above_the_amount_is_refused() -> None:
    assert window().ask(S, (11,)) == [Refused(0, 10)]


def test_windows_that_nobody_used_are_skipped() -> None:
    caller = window()
    caller.granted(S)
    assert len(caller.granted(1_000 * S + GUARD)) == 10


@pytest.mark.parametrize(
    ("text", "now", "edge"),
    [
        ("requests=2/day:kind=calendar:zone=America/Los_Angeles", (2026, 11, 1, 12), (2026, 11, 2, 8)),
        ("requests=2/day:kind=calendar:zone=America/Los_Angeles", (2026, 3, 8, 12), (2026, 3, 9, 7)),
        ("requests=2/month:kind=calendar", (2026, 2, 10, 0), (2026, 3, 1, 0)),
        ("requests=2/month:kind=calendar:zone=Europe/Berlin", (2026, 10, 10, 0), (2026, 10, 31, 23)),
        ("requests=2/h:kind=calendar:zone=Asia/Kolkata", (2026, 10, 10, 0), (2026, 10, 10, 0, 30)),
    ],
)
def test_calendar_windows_open_a_second_after_their_edge(
    text: str, now: tuple[int, ...], edge: tuple[int, ...]
) -> None:
    def unix_us(parts: tuple[int, ...]) -> int:
        text = "{:04}-{:02}-{:02}T{:02}:{:02}+00:00".format(*parts, *(0,) * (5 - len(parts)))
        return int(datetime.fromisoformat(text).timestamp()) * S

    caller = Caller(text)
    caller.wall_us = unix_us(now)
    caller.state = decide.fresh(caller.plan, Now(0, caller.wall_us))
    caller.granted(0)
    until = caller.until(0)
    assert until == unix_us(edge) - unix_us(now) + S
    assert isinstance(caller.copy().until(until - 1), int)
    assert len(caller.granted(until)) == 2


def test_a_long_transit_counts_in_every_window_that_it_may_reach() -> None:
    caller = Caller("tokens=10/s:kind=fixed:start=full:transit=1h", at=0)
    caller.grant(100 * MS, 10)
    assert caller.until(200 * MS) >= HOUR
