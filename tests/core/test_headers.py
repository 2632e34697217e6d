from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.core.headers import answered_at_us, delay_us, instant_us, openai_readings, retry_after_us
from headgate.core.model import DAY, SECOND, Reading

WALL = 1_790_000_000_000_000  # Mon, 21 Sep 2026 14:13:20 GMT


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("0", 0),
        ("5", 5 * SECOND),
        (" 5 ", 5 * SECOND),
        ("1.25", 1_250_000),
        ("17ms", 17_000),
        ("6ms", 6_000),
        ("6m0s", 360 * SECOND),
        ("2m59.56s", 179_560_000),
        ("1h2m3.5s", 3_723_500_000),
        ("7.66", 7_660_000),
        ("1790000007", 7 * SECOND),
        ("1790000007.5", 7_500_000),
        ("1790000007000", 7 * SECOND),
        ("1789999990", 0),
        ("Mon, 21 Sep 2026 14:13:30 GMT", 10 * SECOND),
        ("Mon, 21 Sep 2026 14:13:10 GMT", 0),
        ("2026-09-21T14:13:30Z", 10 * SECOND),
        ("2026-09-21T16:13:30.5+02:00", 10_500_000),
        ("Monday, 21-Sep-26 14:13:30 GMT", 10 * SECOND),
        ("Mon Sep 21 14:13:30 2026", 10 * SECOND),
        ("Mon Sep 21 2026 16:13:30 GMT+0200 (Central European Summer Time)", 10 * SECOND),
        ("Mon Sep 21 2026 14:13:30 GMT+0000 (Coordinated Universal Time)", 10 * SECOND),
        ("999999999", 400 * DAY),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("2026-09-21T14:13:30", None),
        ("Mon, 21 Sep 2026 14:13:30", None),
        ("nan", None),
        ("inf", None),
    ],
)
def test_delays(text: str, us: int | None) -> None:
    assert delay_us(text, WALL) == us


def test_milliseconds_go_first() -> None:
    assert retry_after_us({"retry-after-ms": "250", "retry-after": "1"}, WALL) == 250_000
    assert retry_after_us({"retry-after-ms": "x", "retry-after": "1"}, WALL) == SECOND
    assert retry_after_us({}, WALL) is None


def test_dates_are_told_by_the_clock_that_set_them() -> None:
    """Our clock is an hour slow; the server's Date says so."""
    fields = {"date": "Mon, 21 Sep 2026 15:13:20 GMT", "retry-after": "Mon, 21 Sep 2026 15:13:30 GMT"}
    assert answered_at_us(fields, WALL) == WALL + 3600 * SECOND
    assert retry_after_us(fields, WALL) == 10 * SECOND


def test_the_openai_dialect() -> None:
    fields = {
        "x-ratelimit-limit-requests": "500",
        "x-ratelimit-remaining-requests": "499",
        "x-ratelimit-reset-requests": "120ms",
        "x-ratelimit-remaining-tokens": "39000.0",
        "x-ratelimit-reset-tokens": "nonsense",
    }
    assert openai_readings(fields, WALL) == (
        Reading("requests", 500, 499, 120_000),
        Reading("tokens", None, 39_000, None),
    )
    assert openai_readings({}, WALL) == ()
    assert openai_readings({"x-ratelimit-limit-requests": "many"}, WALL) == ()


@given(st.one_of(st.text(), st.from_regex(r"[0-9T:+\-. ,A-Za-z]{0,40}"), st.datetimes().map(str)))
def test_no_field_raises(text: str) -> None:
    found = delay_us(text, WALL)
    assert found is None or 0 <= found <= 400 * DAY
    instant_us(text)
    retry_after_us({"retry-after": text, "retry-after-ms": text, "date": text}, WALL)
    openai_readings({f"x-ratelimit-{part}-requests": text for part in ("limit", "remaining", "reset")}, WALL)


@pytest.mark.parametrize(
    "text", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "Mon, 01 Jan 0001 00:00:00 +2359"]
)
def test_dates_at_the_ends_of_time_do_not_raise(text: str) -> None:
    instant_us(text)
    delay_us(text, WALL)
