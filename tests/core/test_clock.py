"""Steady time cannot be pushed; alive time stands still with the server and never runs ahead."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.core.clock import (
    CROWD,
    HELD,
    LEAP_US,
    LEARNED,
    alive_time,
    fresh_alive,
    fresh_steady,
    record_answer,
    record_departure,
    record_end,
    steady_of_alive,
    steady_time,
    touch,
)  # fmt: skip
from headgate.core.model import HOUR, SECOND, Now

MS = 1_000


@pytest.mark.parametrize(
    ("elapsed", "wall", "passed"),
    [
        (10, 10, 10),
        (5 * SECOND, 5 * SECOND, 5 * SECOND),
        (5 * SECOND, HOUR, 5 * SECOND),  # the wall clock was set ahead
        (SECOND // 2, -HOUR, SECOND // 2),  # … or back
        (0, HOUR, 0),
        (-HOUR, 10, 0),  # the elapsed clock started anew
        (-HOUR, HOUR, 0),
        (HOUR, 7 * SECOND, 7 * SECOND),  # it leapt ahead
        (HOUR, 0, 0),
        (HOUR, -HOUR, 0),
        (LEAP_US, 0, LEAP_US),  # not told from slewing
        (HOUR + LEAP_US, HOUR, HOUR + LEAP_US),
        (HOUR + LEAP_US + 1, HOUR, HOUR),
    ],
)
def test_steady_time_passes_as_both_clocks_agree(elapsed: int, wall: int, passed: int) -> None:
    steady = fresh_steady(Now(2 * HOUR, 500 * HOUR))
    start = steady_time(steady, Now(2 * HOUR, 500 * HOUR))
    at = steady_time(steady, Now(2 * HOUR + elapsed, 500 * HOUR + wall))
    assert at - start == passed
    assert steady_time(steady, Now(2 * HOUR + elapsed, 500 * HOUR + wall)) == at


@given(
    st.lists(
        st.tuples(
            st.integers(0, 30 * SECOND),
            st.sampled_from((0, 0, 0, -HOUR, HOUR, -SECOND, 3 * SECOND)),
            st.booleans(),
        )
    )
)
def test_steady_time_never_runs_back_nor_ahead_of_true_time_when_one_clock_jumps(
    steps: list[tuple[int, int, bool]],
) -> None:
    elapsed, wall = 10 * HOUR, 500 * HOUR
    steady = fresh_steady(Now(elapsed, wall))
    last = steady_time(steady, Now(elapsed, wall))
    for passed, jump, which in steps:
        elapsed += passed + (jump if which else 0)
        wall += passed + (0 if which else jump)
        at = steady_time(steady, Now(elapsed, wall))
        assert last <= at <= last + passed
        last = at


def crowd(transit: int = SECOND) -> tuple[list[int], int]:
    """Twenty calls in flight, answered one a millisecond until what is usual is known."""
    at = SECOND
    alive = fresh_alive(at, transit)
    sent = []
    for _ in range(20):
        record_departure(alive, at)
        sent.append(at)
    for _ in range(3 * LEARNED):
        at += MS
        record_answer(alive, sent.pop(0), at)
        record_end(alive)
        record_departure(alive, at)
        sent.append(at)
    return alive, at


def test_alive_time_runs_while_answers_come() -> None:
    alive, at = crowd()
    touch(alive, at)
    assert alive_time(alive, at) == at
    assert alive_time(alive, at + MS) == at + MS


def test_alive_time_stands_still_in_a_silence_and_goes_on_with_the_answers() -> None:
    alive, at = crowd()
    later = at + SECOND
    touch(alive, later)
    stood = alive_time(alive, later)
    touch(alive, later + SECOND)
    assert alive_time(alive, later + SECOND) == stood
    for step in range(2000):  # the server works off what has piled up
        record_answer(alive, at, later + SECOND + step)
    assert later - SECOND < alive_time(alive, later + SECOND + 2000) <= stood + 2000


def test_a_silence_is_not_believed_for_ever() -> None:
    alive, at = crowd()
    touch(alive, at + SECOND)
    stood = alive_time(alive, at + SECOND)
    assert alive_time(alive, at + HOUR) > stood + HOUR - 10 * SECOND


def test_few_in_flight_prove_no_silence() -> None:
    at = SECOND
    alive = fresh_alive(at, SECOND)
    for _ in range(CROWD - 1):
        record_departure(alive, at)
    touch(alive, at + HOUR)
    assert alive_time(alive, at + HOUR) == at + HOUR


def later(alive: list[int], at: int) -> int:
    """The alive time at ``at`` if nothing else happens."""
    copy = list(alive)
    touch(copy, at)
    return alive_time(copy, at)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("grant", "grant", "grant", "answer", "answer", "lost", "ask")),
            st.sampled_from((0, 1, 100, MS, 20 * MS, 300 * MS, 3 * SECOND)),
        ),
        max_size=150,
    ),
    st.sampled_from((MS, SECOND)),
)
def test_alive_time_never_runs_back_and_never_faster_than_time(
    steps: list[tuple[str, int]], transit: int
) -> None:
    """Whatever happens: else a hold would lapse before its ``D`` is over."""
    alive, at = crowd(transit)
    sent = [at] * 20
    last, then = alive_time(alive, at), at
    for verb, passed in steps:
        at += passed
        touch(alive, at)
        before = alive_time(alive, at)
        if alive[HELD] >= 0:
            told = steady_of_alive(alive, before + 50 * MS)
            assert later(alive, told - 1) < before + 50 * MS == later(alive, told)
        if verb == "grant":
            record_departure(alive, at)
            sent.append(at)
        elif verb == "answer" and sent:
            record_answer(alive, sent.pop(0), at)
            record_end(alive)
        elif verb == "lost" and sent:
            sent.pop()
            record_end(alive)
        now = alive_time(alive, at)
        assert now == before
        assert 0 <= now - last <= at - then
        last, then = now, at
