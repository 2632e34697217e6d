"""Starts in intervals: never more than was said, and never later than the told instant."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headgate import ConfigurationError, Interval
from headgate.core.model import SECOND
from headgate.runner.interval import Anchored, Spacing, Strict, spacing

DEEP = os.environ.get("HEADGATE_EXAMPLES")
"""Set it to a large number to look for what the usual examples, the same each time, do not show."""

examples = settings(max_examples=int(DEEP or 200), derandomize=DEEP is None, deadline=None)

S = SECOND
MANY = [("strict", Strict), ("anchored", Anchored), ("carryover", Anchored)]


def keeper(seconds: float, cap: int, kind: Any = "strict") -> Spacing:
    kept = spacing(Interval(seconds, cap, kind))
    assert kept is not None
    return kept


def starts_of(kept: Spacing, wishes: list[int], running: int = 0) -> list[int]:
    """When calls start that may do so from the wished instants on, one after the other."""
    starts: list[int] = []
    for wish in wishes:
        instant = max(wish, starts[-1] if starts else 0)
        while (opens := kept.opens_at(instant, running)) > instant:
            instant = opens
        kept.take(instant)
        starts.append(instant)
    return starts


class TestInterval:
    @pytest.mark.parametrize(("kind", "kept"), MANY)
    def test_each_kind_has_its_keeper(self, kind: Any, kept: type) -> None:
        assert type(spacing(Interval(1, 1, kind))) is kept

    def test_no_interval_has_none(self) -> None:
        assert spacing(None) is None

    def test_it_is_one_start_in_any_interval_if_nothing_else_is_said(self) -> None:
        assert Interval(2) == Interval(2, cap=1, kind="strict")

    @pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan"), 400 * 86_400])
    def test_it_lasts_more_than_nothing_and_less_than_400_days(self, seconds: float) -> None:
        with pytest.raises(ConfigurationError, match="400 days"):
            Interval(seconds)

    @pytest.mark.parametrize(("kind", "_"), MANY)
    def test_it_lasts_a_microsecond_at_least(self, kind: Any, _: type) -> None:
        with pytest.raises(ConfigurationError):
            Interval(1e-7, 1, kind)
        kept = keeper(1e-6, 1, kind)
        assert starts_of(kept, [0, 0, 0]) == [0, 1, 2]

    @pytest.mark.parametrize("cap", [0, -1, 1.0, float("inf"), True, None])
    def test_its_cap_is_a_whole_number_of_1_or_more(self, cap: Any) -> None:
        with pytest.raises(ConfigurationError, match="cap"):
            Interval(1, cap)

    def test_its_kind_is_one_of_three(self) -> None:
        kind: Any = "sliding"
        with pytest.raises(ConfigurationError, match="strict, anchored or carryover"):
            Interval(1, 1, kind)


class TestStrict:
    def test_a_place_frees_when_its_own_start_is_an_interval_old(self) -> None:
        kept = keeper(10, 2)
        assert starts_of(kept, [0, 4 * S, 5 * S, 5 * S, 30 * S]) == [0, 4 * S, 10 * S, 14 * S, 30 * S]

    def test_asking_changes_nothing(self) -> None:
        kept = keeper(10, 1)
        kept.take(0)
        assert [kept.opens_at(now, 0) for now in (9, 3, 10 * S - 1, 10 * S, 5)] == [
            10 * S,
            10 * S,
            10 * S,
            10 * S,
            10 * S,
        ]

    def test_what_is_given_back_is_the_start_it_was(self) -> None:
        kept = keeper(10, 2)
        kept.take(0)
        kept.take(2 * S)
        kept.give_back(0)
        kept.take(3 * S)
        assert kept.opens_at(3 * S, 0) == 12 * S

    def test_what_is_too_old_to_count_can_be_given_back(self) -> None:
        kept = keeper(10, 1)
        kept.take(0)
        kept.take(10 * S)
        kept.give_back(0)
        assert kept.opens_at(11 * S, 0) == 20 * S

    def test_a_keeper_can_be_taken_up_by_another(self) -> None:
        kept, other = keeper(10, 2), keeper(10, 2)
        for start in (0, 11 * S, 13 * S):
            kept.take(start)
        other.load([start + 5 for start in kept.dump()])
        assert other.opens_at(14 * S, 0) == 21 * S + 5


STARTS = st.lists(
    st.tuples(
        st.integers(0, 15),  # time passes
        st.sampled_from(("start", "start", "start", "ask", "give back")),
        st.integers(0, 9),  # which
    ),
    max_size=60,
)


@examples
@example(1, 2, [(0, "start", 0), (2, "start", 0), (0, "give back", 0), (1, "start", 0), (8, "start", 0)])
@given(st.integers(1, 20), st.integers(1, 5), STARTS)
def test_strict_lets_no_more_than_its_cap_into_any_interval_and_opens_at_the_told_instant(
    length: int, cap: int, steps: list[tuple[int, str, int]]
) -> None:
    kept = keeper(length / SECOND, cap)
    starts: list[int] = []  # that really happened
    now = 0
    for passes, step, which in steps:
        now += passes
        if step == "give back" and starts:
            kept.give_back(starts.pop(which % len(starts)))
            continue
        counting = sorted(start for start in starts if start > now - length)
        due = now if len(counting) < cap else counting[-cap] + length
        told = kept.opens_at(now, 0)
        assert told == due
        if told > now:
            assert kept.opens_at(told - 1, 0) > told - 1
        assert kept.opens_at(told, 0) == told
        if step == "start":
            now = told
            kept.take(now)
            starts.append(now)
    for start in starts:
        assert sum(start <= other < start + length for other in starts) <= cap


class TestAnchored:
    def test_windows_begin_with_the_first_start_and_follow_each_other_while_work_waits(self) -> None:
        kept = keeper(10, 2, "anchored")
        assert starts_of(kept, [3 * S, 4 * S, 5 * S, 5 * S, 5 * S]) == [3 * S, 4 * S, 13 * S, 13 * S, 23 * S]

    def test_a_rest_ends_them(self) -> None:
        kept = keeper(10, 2, "anchored")
        assert starts_of(kept, [0, 9 * S, 17 * S, 26 * S, 26 * S]) == [0, 9 * S, 17 * S, 26 * S, 27 * S]

    def test_a_window_for_which_work_waited_that_then_left_ends_with_a_rest_as_well(self) -> None:
        kept = keeper(10, 1, "anchored")
        assert starts_of(kept, [0]) == [0]
        assert kept.opens_at(5 * S, 0) == 10 * S
        assert starts_of(kept, [95 * S, 95 * S]) == [95 * S, 105 * S]

    def test_what_is_given_back_makes_room_in_its_own_window(self) -> None:
        kept = keeper(10, 2, "anchored")
        kept.take(0)
        kept.take(9 * S)
        assert kept.opens_at(9 * S, 0) == 10 * S
        kept.give_back(9 * S)
        assert kept.opens_at(9 * S, 0) == 9 * S

    def test_what_is_given_back_makes_no_room_in_a_later_window(self) -> None:
        kept = keeper(10, 2, "anchored")
        kept.take(0)
        kept.take(9 * S)
        assert kept.opens_at(9 * S, 0) == 10 * S
        assert kept.opens_at(10 * S, 0) == 10 * S
        kept.take(10 * S)
        kept.give_back(9 * S)
        kept.take(11 * S)
        assert kept.opens_at(11 * S, 0) == 20 * S

    def test_a_keeper_can_be_taken_up_by_another(self) -> None:
        kept, other = keeper(10, 2, "anchored"), keeper(10, 2, "anchored")
        kept.take(0)
        kept.take(3 * S)
        other.load([start + 5 for start in kept.dump()])
        assert other.opens_at(4 * S, 0) == 10 * S + 5
        fresh = keeper(10, 2, "anchored")
        fresh.load(keeper(10, 2, "anchored").dump())
        assert fresh.opens_at(4 * S, 0) == 4 * S


class TestCarryover:
    def test_calls_that_run_when_a_window_begins_count_in_it(self) -> None:
        kept = keeper(10, 3, "carryover")
        assert starts_of(kept, [0, 0, 0]) == [0, 0, 0]
        assert kept.opens_at(1 * S, 3) == 10 * S
        assert kept.opens_at(10 * S, 2) == 10 * S
        kept.take(10 * S)
        assert kept.opens_at(10 * S, 3) == 20 * S
        assert kept.opens_at(20 * S, 3) == 30 * S
        assert kept.opens_at(30 * S, 0) == 30 * S

    def test_with_nothing_running_it_is_as_anchored(self) -> None:
        wishes = [0, 0, 3 * S, 27 * S, 28 * S, 28 * S]
        assert starts_of(keeper(10, 2, "carryover"), wishes) == starts_of(keeper(10, 2, "anchored"), wishes)

    def test_its_windows_follow_each_other_while_calls_run(self) -> None:
        kept = keeper(10, 2, "carryover")
        kept.take(0)
        kept.take(0)
        assert kept.opens_at(13 * S, 2) == 20 * S  # nobody waited at 10, but two ran there


ASKS = st.lists(
    st.tuples(
        st.integers(0, 25),
        st.sampled_from(("start", "start", "start", "ask", "give back")),
        st.integers(0, 9),
    ),
    max_size=60,
)


@examples
@given(st.integers(1, 20), st.integers(1, 5), ASKS)
def test_anchored_keeps_its_cap_in_each_window_and_twice_the_cap_in_any_interval(
    length: int, cap: int, steps: list[tuple[int, str, int]]
) -> None:
    kept = keeper(length / SECOND, cap, "anchored")
    assert isinstance(kept, Anchored)
    starts: list[tuple[int, int]] = []  # that really happened: their windows' beginnings, and their instants
    begins: set[int] = set()
    now = 0
    for passes, step, which in steps:
        now += passes
        if step == "give back" and starts:
            kept.give_back(starts.pop(which % len(starts))[1])
            continue
        told = kept.opens_at(now, 0)
        if told > now:
            begin = kept._begin_us
            assert begin is not None
            assert told == begin + length  # full to the end of its window, and no longer
            assert sum(start[0] == begin for start in starts) == cap
            assert kept.opens_at(told - 1, 0) == told
        if step == "start":
            now = told
            assert kept.opens_at(now, 0) == now
            kept.take(now)
            assert kept._begin_us is not None
            starts.append((kept._begin_us, now))
            begins.add(kept._begin_us)
    for begin, start in starts:
        assert begin <= start < begin + length
    for begin in begins:
        assert sum(start[0] == begin for start in starts) <= cap
        assert not any(begin < other < begin + length for other in begins)
    for _, start in starts:
        assert sum(start <= other < start + length for _, other in starts) <= 2 * cap


@examples
@given(
    st.integers(1, 20),
    st.integers(1, 5),
    st.lists(st.tuples(st.integers(0, 25), st.integers(0, 40)), max_size=40),
)
def test_carryover_keeps_its_cap_in_each_window_with_those_that_ran_when_it_was_first_looked_at(
    length: int, cap: int, steps: list[tuple[int, int]]
) -> None:
    kept = keeper(length / SECOND, cap, "carryover")
    assert isinstance(kept, Anchored)
    ends: list[int] = []
    starts: list[tuple[int, int]] = []
    carried: dict[int | None, int] = {}  # by the beginning of the window
    now = 0

    def ask() -> int:
        running = sum(end > now for end in ends)
        opens = kept.opens_at(now, running)
        carried.setdefault(kept._begin_us, running)
        return opens

    for passes, takes in steps:
        now += passes
        while (opens := ask()) > now:
            assert opens - now <= length
            now = opens
        kept.take(now)
        assert kept._begin_us is not None
        carried.setdefault(kept._begin_us, 0)
        ends.append(now + takes)
        starts.append((kept._begin_us, now))
    for begin in {begin for begin, _ in starts}:
        fresh = [start for at, start in starts if at == begin]
        assert len(fresh) + carried[begin] <= cap
        assert all(begin <= start < begin + length for start in fresh)
