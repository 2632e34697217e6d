"""Each rule against an oracle that looks at the whole log of what was accepted and nothing else.

Amounts and periods are tiny, so that random arrivals meet every edge.
"""

from collections.abc import Callable
from copy import deepcopy
from datetime import datetime
from fractions import Fraction
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from headgate.simulator.rules import (
    AnchoredWindow,
    Concurrency,
    FixedWindow,
    Rule,
    SlidingCounter,
    SlidingLog,
    TokenBucket,
)
from headgate.simulator.windows import Calendar, Grid

Log = list[tuple[int, int]]
Oracle = Callable[[Log, int, int], bool]
HOUR_US = 3_600_000_000

amounts = st.integers(1, 6)
periods = st.integers(1, 20)
phases = st.integers(0, 25)
starts = st.integers(0, 100)
arrivals = st.lists(st.tuples(st.integers(0, 25), st.integers(1, 7)), max_size=25)


def bucket(amount: int, period: int, burst: int, tick: int, phase: int) -> tuple[Rule, Oracle]:
    """Fluid definition: since any earlier charge, at most the burst and what was gained since."""

    def gained(start: int, end: int) -> Fraction:
        ticks = (end - phase) // tick - (start - phase) // tick
        return ticks * Fraction(amount * tick, period)

    def admits(log: Log, now: int, cost: int) -> bool:
        spans = [(now, cost)]
        spans += [(t, cost + sum(units for _, units in log[i:])) for i, (t, _) in enumerate(log)]
        return all(units <= burst + gained(start, now) for start, units in spans)

    return TokenBucket(amount, period, burst, tick_us=tick, phase_us=phase), admits


def sliding(amount: int, period: int) -> tuple[Rule, Oracle]:
    def admits(log: Log, now: int, cost: int) -> bool:
        return cost + sum(units for t, units in log if t > now - period) <= amount

    return SlidingLog(amount, period), admits


def counter(amount: int, period: int, phase: int) -> tuple[Rule, Oracle]:
    def admits(log: Log, now: int, cost: int) -> bool:
        start = phase + (now - phase) // period * period
        part = Fraction(now - start, period)
        previous = sum(units for t, units in log if start - period <= t < start)
        current = sum(units for t, units in log if start <= t)
        return previous * (1 - part) + current + cost <= amount

    return SlidingCounter(amount, period, phase), admits


def fixed(amount: int, period: int, phase: int) -> tuple[Rule, Oracle]:
    def admits(log: Log, now: int, cost: int) -> bool:
        start = phase + (now - phase) // period * period
        return cost + sum(units for t, units in log if t >= start) <= amount

    return FixedWindow(amount, Grid(period, phase)), admits


def anchored(amount: int, period: int) -> tuple[Rule, Oracle]:
    def admits(log: Log, now: int, cost: int) -> bool:
        opened, used = now, 0
        for number, (t, units) in enumerate(log):
            if number == 0 or t >= opened + period:
                opened, used = t, 0
            used += units
        return cost + (used if now < opened + period else 0) <= amount

    return AnchoredWindow(amount, period), admits


cases = st.one_of(
    st.builds(bucket, amounts, periods, amounts, st.just(1), st.just(0)),
    st.builds(bucket, amounts, periods, amounts, st.integers(1, 9), phases),
    st.builds(sliding, amounts, periods),
    st.builds(counter, amounts, periods, phases),
    st.builds(fixed, amounts, periods, phases),
    st.builds(anchored, amounts, periods),
)


def drive(rule: Rule, start: int, steps: list[tuple[int, int]]) -> tuple[Log, int]:
    """Charge whatever is admitted; return the log and the last instant."""
    log, now = [], start
    for gap, cost in steps:
        now += gap
        if rule.admits(now, cost):
            rule.charge(now, cost)
            log.append((now, cost))
    return log, now


def accepted_without_pause(rule: Rule, start: int, elapsed: int) -> int:
    """Offer more single units than fit at every instant of a span; return how many were admitted."""
    steps = [(int(offer == 0 and instant > 0), 1) for instant in range(elapsed + 1) for offer in range(7)]
    log, _ = drive(rule, start, steps)
    return len(log)


@given(cases, starts, arrivals)
def test_admits_exactly_what_its_definition_does(
    case: tuple[Rule, Oracle], start: int, steps: list[tuple[int, int]]
) -> None:
    rule, oracle = case
    log: Log = []
    now = start
    for gap, cost in steps:
        now += gap
        admitted = rule.admits(now, cost)
        assert admitted == oracle(log, now, cost), f"{cost} at {now} after {log}"
        if admitted:
            rule.charge(now, cost)
            log.append((now, cost))


@given(cases, starts, arrivals, st.integers(1, 7))
def test_refuses_until_the_told_instant_and_admits_at_it(
    case: tuple[Rule, Oracle], start: int, steps: list[tuple[int, int]], cost: int
) -> None:
    rule, _ = case
    _, now = drive(rule, start, steps)
    wait = rule.retry_after_us(now, cost)
    if cost > rule.capacity:
        assert wait is None
        return
    assert wait is not None
    assert deepcopy(rule).admits(now + wait, cost)
    if wait:
        assert not deepcopy(rule).admits(now + wait - 1, cost)


@given(cases, starts, arrivals)
def test_remaining_is_the_largest_cost_admitted(
    case: tuple[Rule, Oracle], start: int, steps: list[tuple[int, int]]
) -> None:
    rule, _ = case
    _, now = drive(rule, start, steps)
    remaining = rule.remaining(now)
    assert remaining >= 0
    assert not remaining or rule.admits(now, remaining)
    assert not rule.admits(now, remaining + 1)


@given(cases, starts, arrivals, st.integers(0, 12))
def test_is_full_at_the_told_reset_and_not_before(
    case: tuple[Rule, Oracle], start: int, steps: list[tuple[int, int]], debt: int
) -> None:
    rule, _ = case
    _, now = drive(rule, start, steps)
    if debt:
        rule.charge(now, debt)
    reset = rule.reset_us(now)
    assert reset is not None
    later = deepcopy(rule)
    assert later.remaining(now + reset) == rule.capacity
    if reset:
        assert rule.remaining(now + reset - 1) < rule.capacity


@given(cases, starts, arrivals, st.integers(1, 7))
def test_a_refund_at_once_restores_what_was_left(
    case: tuple[Rule, Oracle], start: int, steps: list[tuple[int, int]], cost: int
) -> None:
    rule, _ = case
    _, now = drive(rule, start, steps)
    before = rule.remaining(now)
    rule.charge(now, cost)
    assert rule.remaining(now) == before - cost
    rule.refund(now, cost, now)
    assert rule.remaining(now) == before


@given(cases, starts, arrivals)
def test_never_accepts_more_than_the_ideal(
    case: tuple[Rule, Oracle], start: int, steps: list[tuple[int, int]]
) -> None:
    rule, _ = case
    log, now = drive(rule, start, steps)
    ideal = rule.ideal_units(now - start, start)
    assert ideal is not None
    assert sum(units for _, units in log) <= ideal


@given(
    st.one_of(
        st.builds(sliding, amounts, periods),
        st.builds(fixed, amounts, periods, phases),
        st.builds(anchored, amounts, periods),
    ),
    starts,
    st.integers(0, 60),
)
def test_a_caller_that_never_waits_reaches_the_ideal(
    case: tuple[Rule, Oracle], start: int, elapsed: int
) -> None:
    rule, _ = case
    assert accepted_without_pause(rule, start, elapsed) == rule.ideal_units(elapsed, start)


@given(amounts, periods, amounts, st.integers(1, 9), phases, starts, st.integers(0, 60))
def test_a_caller_that_never_waits_reaches_the_ideal_of_a_bucket(
    amount: int, period: int, burst: int, tick: int, phase: int, start: int, elapsed: int
) -> None:
    # A caller of whole units needs room beside the part of one that is left.
    assume(amount * tick <= (burst - 1) * period)
    rule = TokenBucket(amount, period, burst, tick_us=tick, phase_us=phase)
    assert accepted_without_pause(rule, start, elapsed) == rule.ideal_units(elapsed, start)


def test_a_caller_that_sends_at_window_ends_reaches_the_ideal_of_a_counter() -> None:
    rule = SlidingCounter(10, 1_000_000)
    log, now = drive(rule, 0, [(999_999, 10), (999_999, 9), (500_001, 5)])
    assert [units for _, units in log] == [10, 9, 5]
    assert now == 2_499_999
    # Half of the third window is over, so the second one weighs 9 / 2 there: 24 of the 24.99 units.
    assert rule.ideal_units(now, 0) == 24


def test_a_bucket_mints_nothing_by_rounding() -> None:
    rule = TokenBucket(1, 3, 1)  # a third of a unit each microsecond
    rule.charge(0, 1)
    assert [rule.admits(t, 1) for t in (1, 2, 3)] == [False, False, True]
    for now in range(3, 3_000_000, 2_999):
        rule.remaining(now)  # looking often changes nothing
    assert rule.remaining(3_000_000) == 1


def test_a_bucket_in_debt_must_first_pay() -> None:
    rule = TokenBucket(10, 1_000_000)
    rule.charge(0, 15)
    assert rule.remaining(0) == -5
    assert rule.retry_after_us(0, 1) == 600_000
    assert rule.reset_us(0) == 1_500_000


def test_a_bucket_refilled_in_ticks_gains_nothing_between_them() -> None:
    rule = TokenBucket(10, 1_000, 10, tick_us=500, phase_us=100)
    rule.charge(300, 10)
    assert [rule.remaining(t) for t in (300, 599, 600, 1_099, 1_100, 5_000)] == [0, 0, 5, 5, 10, 10]


def test_a_refund_to_a_full_bucket_is_lost() -> None:
    rule = TokenBucket(10, 1_000)
    rule.charge(0, 5)
    rule.refund(2_000, 5, 0)
    assert rule.remaining(2_000) == 10


@pytest.mark.parametrize(
    "rule",
    [SlidingLog(10, 100), FixedWindow(10, Grid(100)), AnchoredWindow(10, 100), SlidingCounter(10, 100)],
)
def test_a_refund_after_the_charge_has_aged_out_does_not_touch_later_ones(rule: Rule) -> None:
    rule.charge(0, 8)
    rule.charge(300, 3)
    rule.refund(300, 8, 0)
    assert rule.remaining(300) == 7


def test_a_refund_to_a_log_lightens_the_charge_it_was_for() -> None:
    rule = SlidingLog(10, 100)
    rule.charge(0, 6)
    rule.charge(50, 4)
    rule.refund(60, 5, 0)
    assert [rule.remaining(t) for t in (60, 99, 100, 150)] == [5, 5, 6, 10]


def test_a_log_entry_no_longer_counts_at_the_end_of_its_period() -> None:
    rule = SlidingLog(1, 100)
    rule.charge(7, 1)
    assert [rule.admits(t, 1) for t in (106, 107)] == [False, True]


def test_a_refund_to_a_counter_reaches_the_window_before() -> None:
    rule = SlidingCounter(10, 100)
    rule.charge(50, 10)
    rule.refund(100, 4, 50)
    assert rule.remaining(100) == 4


def test_a_daily_limit_renews_at_midnight_on_a_day_of_23_hours() -> None:
    zone = ZoneInfo("Europe/Berlin")
    midnight_us = int(datetime(2026, 3, 29, tzinfo=zone).timestamp()) * 1_000_000
    rule = FixedWindow(3, Calendar("day", "Europe/Berlin"))
    rule.charge(midnight_us, 3)
    assert rule.retry_after_us(midnight_us, 1) == 23 * HOUR_US
    assert not rule.admits(midnight_us + 23 * HOUR_US - 1, 1)
    assert rule.admits(midnight_us + 23 * HOUR_US, 3)
    assert rule.ideal_units(23 * HOUR_US - 1, midnight_us) == 3
    assert rule.ideal_units(23 * HOUR_US, midnight_us) == 6


def test_slots_are_held_until_they_are_given_back() -> None:
    rule = Concurrency(2)
    rule.charge(0, 2)
    assert not rule.admits(10**12, 1)
    assert rule.retry_after_us(0, 1) is None
    assert rule.reset_us(0) is None
    rule.refund(5, 1, 0)
    assert rule.remaining(5) == 1
    assert rule.ideal_units(100) is None
