"""A slow start: never ahead of the growing rate by more than a call, and never slower than need be."""

from __future__ import annotations

import os
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headgate import ConfigurationError, Limit, Runner, parse_limit
from headgate.core.model import DAY, SECOND
from headgate.runner.ramp import FIRST_SHARE, Ramp

DEEP = os.environ.get("HEADGATE_EXAMPLES")
"""Set it to a large number to look for what the usual examples, the same each time, do not show."""

examples = settings(max_examples=int(DEEP or 200), derandomize=DEEP is None, deadline=None)

S = SECOND
SHARE = Fraction(FIRST_SHARE)


def brought(length_us: int, passed_us: int) -> Fraction:
    """The integral of the share of the rate, exactly, in µs of the full rate."""
    passed = min(passed_us, length_us)
    return SHARE * passed + (1 - SHARE) * Fraction(passed * passed, 2 * length_us)


def starts_of(ramp: Ramp, costs: tuple[int, ...], until_us: int, begin_us: int = 0) -> list[int]:
    """When calls start that all wait from the beginning on, until the ramp is over."""
    starts: list[int] = []
    now = begin_us
    while (now := ramp.opens_at(now)) < until_us:
        ramp.take(costs, now)
        starts.append(now)
    return starts


def test_the_rate_grows_in_a_straight_line() -> None:
    ramp = Ramp(10, [parse_limit("requests=1000/s:burst=1000")])
    starts = starts_of(ramp, (1,), 10 * S)
    for second in range(10):
        within = sum(second * S <= start < (second + 1) * S for start in starts)
        share = FIRST_SHARE + (1 - FIRST_SHARE) * (second + 0.5) / 10
        assert within == pytest.approx(1000 * share, abs=2)


def test_it_begins_with_the_first_call_whenever_that_is() -> None:
    early, late = (Ramp(10, [parse_limit("requests=10/s:burst=10")]) for _ in range(2))
    assert early.opens_at(7) == 7
    at_once = starts_of(early, (1,), 10 * S)
    later = starts_of(late, (1,), 110 * S, begin_us=100 * S)
    assert at_once[0] == 0
    assert [start - 100 * S for start in later] == at_once


def test_after_its_length_it_lets_everything_through() -> None:
    ramp = Ramp(10, [parse_limit("requests=1/s:burst=1")])
    ramp.take((10**9,), 0)
    assert ramp.opens_at(5 * S) == 10 * S
    assert ramp.opens_at(10 * S - 1) == 10 * S
    assert ramp.opens_at(10 * S) == 10 * S
    assert ramp.opens_at(11 * S) == 11 * S


def test_the_slowest_of_several_limits_decides() -> None:
    requests, tokens = parse_limit("requests=10/s:burst=10"), parse_limit("tokens=100/s:burst=100")
    both, first, second = Ramp(60, [requests, tokens]), Ramp(60, [requests]), Ramp(60, [tokens])
    both.take((1, 30), 0)
    first.take((1,), 0)
    second.take((30,), 0)
    assert both.opens_at(1) == max(first.opens_at(1), second.opens_at(1)) == second.opens_at(1)
    assert first.opens_at(1) < second.opens_at(1)


def test_a_new_start_begins_anew() -> None:
    ramp = Ramp(10, [parse_limit("requests=1/s:burst=1")])
    ramp.take((5,), 0)
    assert ramp.opens_at(1) > 1
    ramp.begin()
    assert ramp.opens_at(100 * S) == 100 * S
    ramp.take((1,), 100 * S)
    assert 100 * S < ramp.opens_at(100 * S) <= 110 * S


def test_a_call_that_did_not_start_brings_the_next_one_forward() -> None:
    ramp = Ramp(10, [parse_limit("requests=1/s:burst=1")])
    ramp.take((1,), 0)
    alone = ramp.opens_at(1)
    ramp.take((3,), 1)
    assert ramp.opens_at(1) > alone
    ramp.give_back((3,))
    assert ramp.opens_at(1) == alone


def test_slots_are_no_rate() -> None:
    ramp = Ramp(10, [parse_limit("concurrency=5")])
    ramp.take((1,), 0)
    assert ramp.opens_at(1) == 1


class TestSlots:
    @pytest.mark.parametrize("limits", [[], [parse_limit("concurrency=8")]])
    def test_without_a_rate_the_calls_at_once_grow(self, limits: list[Limit]) -> None:
        ramp = Ramp(10, limits)
        assert ramp.most_running(5 * S, 100) == 100  # nothing has begun yet
        ramp.take((1,) * len(limits), 5 * S)
        grown = [ramp.most_running((5 + second) * S, 100) for second in range(12)]
        assert grown == [1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 100]

    def test_one_at_least_may_run(self) -> None:
        ramp = Ramp(10, [])
        ramp.take((), 0)
        assert [ramp.most_running(second * S, 1) for second in range(12)] == [1] * 12

    def test_under_a_rate_as_many_run_as_may(self) -> None:
        ramp = Ramp(10, [parse_limit("requests=1/s:burst=1")])
        ramp.take((1,), 0)
        assert ramp.most_running(1, 100) == 100


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "1"])
def test_a_ramp_is_a_finite_number_of_seconds_above_0(seconds: Any) -> None:
    with pytest.raises(ConfigurationError, match="ramp"):
        Runner(print, ramp=seconds, progress=False)


def test_a_ramp_lasts_a_microsecond_at_least() -> None:
    with pytest.raises(ConfigurationError):
        Runner(print, ramp=1e-7, progress=False)
    ramp = Ramp(1e-6, [])
    ramp.take((), 0)
    assert [ramp.most_running(now, 9) for now in (0, 1)] == [1, 9]


LENGTHS = st.integers(1, 40).map(lambda tenths: tenths * S // 10) | st.integers(1, 3 * DAY)
LIMITS = st.builds(
    Limit,
    meter=st.just("units"),
    amount=st.integers(1, 10**6),
    period_us=st.sampled_from((S, 60 * S, DAY)),
    kind=st.just("sliding"),
)


@examples
@given(LENGTHS, LIMITS, st.lists(st.tuples(st.floats(0, 0.2), st.integers(0, 10**5)), max_size=40))
def test_units_never_exceed_the_integral_of_the_growing_rate_by_more_than_a_call(
    length: int, limit: Limit, steps: list[tuple[float, int]]
) -> None:
    ramp = Ramp(length / S, [limit])
    rate = Fraction(limit.amount, limit.period_us)
    now, used = 0, 0
    for share, cost in steps:
        now += round(share * length)
        told = ramp.opens_at(now)
        if told > now:
            assert ramp.opens_at(told - 2) >= told - 1  # refused until then, to the microsecond
        assert ramp.opens_at(told) == told
        now = told
        if now < length:  # floats may be a hair ahead of the exact integral
            most = rate * brought(length, now)
            assert used <= most * (1 + Fraction(1, 10**9)) + rate * Fraction(1, 100)
        ramp.take((cost,), now)
        used += cost


@examples
@given(LENGTHS, LIMITS, st.integers(1, 10**5))
def test_the_told_instant_is_the_first_at_which_the_growing_rate_has_brought_what_was_used(
    length: int, limit: Limit, cost: int
) -> None:
    ramp = Ramp(length / S, [limit])
    rate = Fraction(limit.amount, limit.period_us)
    ramp.take((cost,), 0)
    told = ramp.opens_at(0)
    assert 0 < told <= length
    if told < length:
        assert rate * brought(length, told + 1) >= cost
    assert rate * brought(length, max(told - 2, 0)) < cost


@examples
@given(LENGTHS, LIMITS, st.integers(0, 10**9))
def test_after_its_length_the_rate_is_full_whatever_was_used(length: int, limit: Limit, used: int) -> None:
    ramp = Ramp(length / S, [limit])
    ramp.take((used,), 3)
    assert ramp.opens_at(3) <= 3 + length
    assert ramp.opens_at(3 + length) == 3 + length
    ramp.take((used,), 3 + length)
    assert ramp.opens_at(4 + length) == 4 + length
