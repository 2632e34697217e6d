"""Calendar windows join without gap or overlap, in every zone and through every change of clocks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.core.calendar import clock_text, window, zone
from headgate.core.model import HOUR, SECOND, CalendarUnit
from headgate.errors import ConfigurationError

ZONES = (
    "UTC",
    "America/Los_Angeles",
    "Europe/Berlin",
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Africa/Cairo",  # clocks change at midnight
    "America/Havana",  # and here midnight comes twice
    "Asia/Beirut",
    "Pacific/Apia",  # 30 December 2011 did not happen
    "America/Sao_Paulo",
)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def unix_us(text: str, name: str = "UTC", fold: int = 0) -> int:
    local = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(name), fold=fold)
    return (local.astimezone(UTC) - EPOCH) // timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("name", "unit", "inside", "hours"),
    [
        ("UTC", "day", "2026-10-03T12:00", 24),
        ("America/Los_Angeles", "day", "2026-03-08T12:00", 23),
        ("America/Los_Angeles", "day", "2026-11-01T00:30", 25),
        ("Europe/Berlin", "day", "2026-03-29T12:00", 23),
        ("Europe/Berlin", "day", "2026-10-25T02:30", 25),
        ("Africa/Cairo", "day", "2026-04-24T12:00", 23),
        ("America/Havana", "day", "2026-11-01T00:30", 25),
        ("Pacific/Apia", "day", "2011-12-29T12:00", 24),
        ("Pacific/Apia", "day", "2011-12-31T12:00", 24),
        ("UTC", "month", "2026-02-28T23:59", 28 * 24),
        ("UTC", "month", "2028-02-29T23:59", 29 * 24),
        ("UTC", "month", "2026-12-31T23:59", 31 * 24),
        ("Europe/Berlin", "month", "2026-10-10T12:00", 31 * 24 + 1),
        ("Europe/Berlin", "month", "2026-03-10T12:00", 31 * 24 - 1),
        ("Asia/Kolkata", "hour", "2026-10-03T12:45", 1),
    ],
)
def test_windows_have_the_length_that_the_calendar_gives(
    name: str, unit: CalendarUnit, inside: str, hours: int
) -> None:
    at = unix_us(inside, name)
    start, end = window(at, unit, name)
    assert start <= at < end
    assert end - start == hours * HOUR


def test_the_hour_that_autumn_repeats_counts_as_two() -> None:
    first = unix_us("2026-10-25T02:30", "Europe/Berlin")
    second = unix_us("2026-10-25T02:30", "Europe/Berlin", fold=1)
    assert second - first == HOUR
    assert window(first, "hour", "Europe/Berlin")[1] == window(second, "hour", "Europe/Berlin")[0]


def test_hours_start_where_the_zone_puts_them() -> None:
    start, _ = window(unix_us("2026-10-03T12:45", "Asia/Kolkata"), "hour", "Asia/Kolkata")
    assert start == unix_us("2026-10-03T12:00", "Asia/Kolkata") == unix_us("2026-10-03T06:30")


@given(
    at=st.integers(unix_us("2000-01-01"), unix_us("2037-01-01")),
    unit=st.sampled_from(("hour", "day", "month")),
    name=st.sampled_from(ZONES),
)
def test_windows_join(at: int, unit: CalendarUnit, name: str) -> None:
    start, end = window(at, unit, name)
    assert start <= at < end
    assert window(start, unit, name) == window(end - 1, unit, name) == (start, end)
    assert window(end, unit, name)[0] == end
    assert window(start - 1, unit, name)[1] == start


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "../etc/passwd", "America/Los Angeles"])
def test_an_unknown_zone_is_named(name: str) -> None:
    with pytest.raises(ConfigurationError, match="IANA"):
        zone(name)


def test_clock_text() -> None:
    at = unix_us("2026-10-03T07:00")
    assert clock_text(at, "America/Los_Angeles") == "00:00 America/Los_Angeles"
    assert clock_text(at + 5 * SECOND, "America/Los_Angeles") == "00:00:05 America/Los_Angeles"
