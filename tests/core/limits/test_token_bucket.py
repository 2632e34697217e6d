"""A bucket at t0, t1, …; what it promises in general is in tests/core/test_laws.py."""

from __future__ import annotations

import pytest

from headgate.core.model import LOST, NEVER, SECOND, UNSENT, Reading, Refused, Signal
from tests.core.caller import Caller

S = SECOND
MS = 1_000
TOLD = S + S // 5_000
"""A second of the server's, as long as clocks may make it."""


def bucket(options: str = "start=full:transit=100ms") -> Caller:
    return Caller(f"tokens=10/s:burst=10:{options}")


def test_a_full_bucket_grants_its_burst_and_then_at_its_rate() -> None:
    caller = bucket()
    for grant in caller.granted(0):
        caller.settle(0, grant)
    at = 0
    for _ in range(5):
        until = caller.until(at)
        assert TOLD // 10 <= until - at <= TOLD // 10 + 2
        at = until
        caller.settle(at, caller.grant(at))


@pytest.mark.parametrize(
    ("start", "left"), [("full", 10), ("empty", 0), ("used-4", 6), ("used-40", 0), ("auto", 1)]
)
def test_how_much_is_there_at_first(start: str, left: int) -> None:
    assert len(bucket(f"start={start}").granted(0)) == left


def test_the_first_call_of_an_unknown_state_goes_alone_and_its_answer_tells_the_rest() -> None:
    caller = bucket("start=auto")
    probe = caller.grant(0)
    caller.until(0)
    caller.settle(MS, probe, Signal(readings=(Reading("tokens", 10, 7, None),)))
    assert len(caller.granted(MS)) == 7


def test_a_hold_keeps_depth_but_not_rate() -> None:
    caller = bucket("start=full:transit=500ms")
    caller.granted(0, most=5)
    assert len(caller.granted(0)) == 5
    # at 0.5 s (and a slot) the holds are debited from a bucket that was full all the while
    assert len(caller.granted(530 * MS)) == 0
    assert len(caller.granted(730 * MS)) >= 1


def test_a_cost_above_the_burst_is_refused_and_the_burst_itself_is_not() -> None:
    caller = bucket()
    assert caller.ask(0, (11,)) == [Refused(0, 10)]
    caller.grant(0, 10)


@pytest.mark.parametrize(
    ("options", "signal", "used"),
    [
        ("charge=estimate", Signal(), 6),
        ("charge=estimate", Signal(usage={"tokens": 2}), 6),
        ("charge=estimate", Signal(charged={"tokens": 2}), 2),
        ("charge=estimate", Signal(usage={"tokens": 9}), 9),
        ("charge=estimate", Signal(charged={"tokens": 15}), 15),
        ("charge=estimate", UNSENT, 0),
        ("charge=estimate", LOST, 6),
        ("charge=usage", Signal(usage={"tokens": 2}), 2),
        ("charge=usage", Signal(usage={"tokens": 0}), 0),
        ("charge=usage", Signal(usage={"tokens": 15}), 15),
        ("charge=usage", Signal(), 6),
        ("charge=usage", UNSENT, 0),
        ("charge=usage", LOST, 6),
        ("charge=usage:refund=no", Signal(usage={"tokens": 2}), 6),
        ("refund=yes", Signal(usage={"tokens": 2}), 2),
        ("when=completion", Signal(), 6),
    ],
)
@pytest.mark.parametrize("lapsed", [False, True], ids=["at once", "late"])
def test_settle_books_exactly_what_the_rule_allows(
    options: str, signal: Signal, used: int, lapsed: bool
) -> None:
    caller = Caller(f"tokens=10/100day:burst=10:start=full:transit=1s:{options}")  # refills nothing meanwhile
    grant = caller.grant(0, 6)
    assert caller.used(0) == (6,)
    at = 3 * S if lapsed else MS
    caller.settle(at, grant, signal)
    assert caller.used(at) == (used,)


def test_a_lost_call_stays_a_hold_until_its_transit_is_over() -> None:
    caller = bucket("start=full:transit=1s")
    grant = caller.grant(0, 10)
    caller.settle(MS, grant, LOST)
    until = caller.until(MS)
    assert until >= S  # full only then, and debited at that instant
    caller.grant(until)


def test_what_is_not_answered_where_usage_counts_opens_nothing_by_itself() -> None:
    caller = bucket("start=full:charge=usage")
    grant = caller.grant(0, 10)
    assert caller.until(S) == NEVER
    caller.settle(2 * S, grant, Signal(usage={"tokens": 4}))
    assert len(caller.granted(2 * S)) == 6


def test_a_late_refund_does_not_lift_the_level_above_what_others_have_left() -> None:
    """Full at the server when it charged less: what it would have refunded was poured away."""
    caller = Caller("tokens=10/s:burst=10:start=full:transit=100ms")
    early = caller.grant(0, 5)
    caller.used(200 * MS)  # lapsed, debited
    assert len(caller.granted(2 * S)) == 10
    caller.settle(2 * S, early, UNSENT)
    assert len(caller.granted(2 * S)) == 0


def test_long_idleness_fills_up_and_no_more() -> None:
    caller = bucket("start=empty")
    assert len(caller.granted(10**6 * S)) == 10


@pytest.mark.parametrize(
    ("remaining", "limit", "left"), [(3, 10, 3), (0, 10, 0), (3, None, 3), (50, 10, 9), (3, 77, 3)]
)
def test_a_report_of_less_is_believed(remaining: int, limit: int | None, left: int) -> None:
    caller = bucket()
    grant = caller.grant(0)
    caller.settle(MS, grant, Signal(readings=(Reading("tokens", limit, remaining, None),)))
    # one unit more than told may be there, for servers that round down
    assert left <= len(caller.granted(MS)) <= left + 1


def test_a_report_of_more_counts_what_was_under_way() -> None:
    caller = bucket("start=empty")
    at = 3 * S // 10 + S // 10
    _, second, _ = caller.granted(at, most=3)
    caller.settle(at + MS, second, Signal(readings=(Reading("tokens", 10, 9, None),)))
    # the two others may be charged after this
    assert len(caller.granted(at + MS)) == 7


def test_a_report_out_of_order_does_no_harm() -> None:
    caller = bucket()
    first, *rest = caller.granted(0)
    for grant in rest:
        caller.settle(MS, grant)
    caller.settle(2 * MS, first, Signal(readings=(Reading("tokens", 10, 9, None),)))
    assert len(caller.granted(2 * MS)) == 0


def test_unknown_kinds_get_a_small_bucket() -> None:
    caller = Caller("requests=100/10s:start=full")
    assert len(caller.granted(0)) == 5
    caller = Caller("requests=10/10s:start=full")
    assert len(caller.granted(0)) == 1


def test_a_cost_above_the_small_bucket_gathers_alone_and_leaves_debt() -> None:
    caller = Caller("tokens=100/10s:start=full")
    until = caller.until(0, 20)
    answers = caller.ask(until - 1, (20,), (1,))
    assert [type(answer).__name__ for answer in answers] == ["Wait", "Wait"]
    caller.settle(until, caller.grant(until, 20))
    assert caller.until(until) - until >= 10 * S * 15 // 95
    assert caller.ask(until, (101,)) == [Refused(0, 100)]
