from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.core.model import SECOND
from headgate.core.retry import (
    SPENDS_NO_ATTEMPT,
    WORTH_ANOTHER,
    Done,
    ErrorClass,
    GiveUp,
    RetryAt,
    RetryPolicy,
    after,
    class_of_status,
)  # fmt: skip

POLICY = RetryPolicy(max_attempts=3)


@pytest.mark.parametrize(
    ("status", "found"),
    [
        (200, ErrorClass.OK),
        (304, ErrorClass.OK),
        (400, ErrorClass.CALLER),
        (401, ErrorClass.KEY),
        (402, ErrorClass.MONEY_GONE),
        (404, ErrorClass.CALLER),
        (408, ErrorClass.TRANSPORT),
        (409, ErrorClass.OVERLOADED),
        (413, ErrorClass.NEVER_FITS),
        (429, ErrorClass.THROTTLED),
        (500, ErrorClass.OVERLOADED),
        (529, ErrorClass.OVERLOADED),
    ],
)
def test_classes_of_statuses(status: int, found: ErrorClass) -> None:
    assert class_of_status(status) is found


def verdict(error: ErrorClass, attempt: int = 1, **facts: float | None) -> Done | RetryAt | GiveUp:
    known = {"first_throttled_us": None, "retry_after_us": None, "now_us": 1_000, "random": 0.5, **facts}
    return after(POLICY, error, attempt=attempt, **known)  # type: ignore[arg-type]


def test_success_is_done() -> None:
    assert verdict(ErrorClass.OK, attempt=99) == Done()


@pytest.mark.parametrize("error", sorted(SPENDS_NO_ATTEMPT, key=str))
def test_a_throttle_spends_no_attempt_and_does_not_pause(error: ErrorClass) -> None:
    assert verdict(error, attempt=3, retry_after_us=9 * SECOND) == RetryAt(1_000, 3)


def test_a_call_is_not_throttled_for_ever() -> None:
    longest = POLICY.max_throttled_us
    assert verdict(ErrorClass.THROTTLED, first_throttled_us=1_000 - longest) == RetryAt(1_000, 1)
    assert isinstance(verdict(ErrorClass.THROTTLED, first_throttled_us=999 - longest), GiveUp)


@pytest.mark.parametrize("error", sorted(set(ErrorClass) - WORTH_ANOTHER - {ErrorClass.OK}, key=str))
def test_what_would_fail_again_is_given_up(error: ErrorClass) -> None:
    assert isinstance(verdict(error), GiveUp)


def test_attempts_are_counted() -> None:
    assert verdict(ErrorClass.OVERLOADED, attempt=2, random=0.0) == RetryAt(1_000, 3)
    assert isinstance(verdict(ErrorClass.OVERLOADED, attempt=3), GiveUp)


@given(attempt=st.integers(1, 10**6), random=st.floats(0, 1, exclude_max=True))
def test_pauses_are_drawn_from_the_whole_range_below_the_ceiling(attempt: int, random: float) -> None:
    policy = RetryPolicy(max_attempts=10**7)
    found = after(
        policy, ErrorClass.TRANSPORT, attempt=attempt, first_throttled_us=None, retry_after_us=None,
        now_us=0, random=random,
    )  # fmt: skip
    assert isinstance(found, RetryAt)
    ceiling = min(60 * SECOND, SECOND // 2 * 2 ** min(attempt - 1, 20))
    assert found == RetryAt(round(random * ceiling), attempt + 1)


def test_a_server_that_says_when_is_believed_up_to_an_hour() -> None:
    assert verdict(ErrorClass.OVERLOADED, retry_after_us=7 * SECOND) == RetryAt(1_000 + 7 * SECOND, 2)
    assert verdict(ErrorClass.OVERLOADED, retry_after_us=10**12) == RetryAt(1_000 + 3600 * SECOND, 2)
