from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.simulator.windows import Calendar, CalendarUnit, Grid

HOUR_US = 3_600_000_000

# Zones whose clocks have done something odd since 1970: skipped or repeated midnights, lost a whole day,
# moved by half an hour, moved twice around Ramadan.
ODD_ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/Sao_Paulo",
    "America/Havana",
    "America/St_Johns",
    "Asia/Beirut",
    "Asia/Kolkata",
    "Pacific/Apia",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
]
instants = st.integers(0, 2_100_000_000).map(lambda seconds: seconds * 1_000_000)


def at(zone: str, *fields: int) -> int:
    return int(datetime(*fields, tzinfo=ZoneInfo(zone)).timestamp()) * 1_000_000  # type: ignore[arg-type, misc]  # year, month, day, …


@pytest.mark.parametrize(
    ("now_us", "window"), [(0, (-7, 3)), (2, (-7, 3)), (3, (3, 13)), (12, (3, 13)), (13, (13, 23))]
)
def test_a_grid_begins_windows_at_its_phase(now_us: int, window: tuple[int, int]) -> None:
    assert Grid(10, 3).around(now_us) == window


@given(st.integers(1, 9), st.integers(0, 20), st.integers(0, 50), st.integers(0, 50))
def test_a_grid_counts_the_windows_a_span_touches(period: int, phase: int, start: int, length: int) -> None:
    grid = Grid(period, phase)
    windows = {grid.around(instant) for instant in range(start, start + length + 1)}
    assert grid.touched(start, start + length) == len(windows)


@pytest.mark.parametrize(
    ("unit", "zone", "noon", "hours"),
    [
        ("day", "UTC", (2026, 3, 29, 12), 24),
        ("day", "Europe/Berlin", (2026, 3, 28, 12), 24),
        ("day", "Europe/Berlin", (2026, 3, 29, 12), 23),
        ("day", "Europe/Berlin", (2026, 10, 25, 12), 25),
        ("day", "America/Sao_Paulo", (2018, 11, 4, 12), 23),  # midnight was skipped
        ("day", "America/Havana", (2025, 11, 2, 12), 25),  # midnight came twice
        ("month", "UTC", (2024, 2, 10, 12), 29 * 24),
        ("month", "UTC", (2026, 2, 10, 12), 28 * 24),
        ("month", "UTC", (2026, 12, 10, 12), 31 * 24),
        ("month", "Europe/Berlin", (2026, 3, 10, 12), 31 * 24 - 1),
        ("month", "Europe/Berlin", (2026, 10, 10, 12), 31 * 24 + 1),
    ],
)
def test_days_and_months_have_their_true_length(
    unit: CalendarUnit, zone: str, noon: tuple[int, ...], hours: int
) -> None:
    start_us, end_us = Calendar(unit, zone).around(at(zone, *noon))
    assert end_us - start_us == hours * HOUR_US


def test_a_day_begins_at_local_midnight() -> None:
    zone = "America/Los_Angeles"
    start_us, end_us = Calendar("day", zone).around(at(zone, 2026, 7, 4, 23, 59))
    assert (start_us, end_us) == (at(zone, 2026, 7, 4), at(zone, 2026, 7, 5))


def test_an_hour_begins_with_the_local_hour() -> None:
    zone = "Asia/Kolkata"  # half an hour off
    start_us, end_us = Calendar("h", zone).around(at(zone, 2026, 7, 4, 10, 59))
    assert (start_us, end_us) == (at(zone, 2026, 7, 4, 10), at(zone, 2026, 7, 4, 11))


def test_a_day_that_is_over_stays_over_when_clocks_go_back_past_midnight() -> None:
    # In 2006 clocks went back in St. John's at 00:01 on 29 October, to 23:01 on the 28th.
    begins_us = at("UTC", 2006, 10, 29, 2, 30)
    start_us, end_us = Calendar("day", "America/St_Johns").around(begins_us + HOUR_US // 4)
    assert (start_us, end_us - start_us) == (begins_us, 25 * HOUR_US)


@given(st.sampled_from(ODD_ZONES), st.sampled_from(["day", "month"]), instants)
def test_windows_follow_each_other_without_gap_or_overlap(zone: str, unit: CalendarUnit, now_us: int) -> None:
    calendar = Calendar(unit, zone)
    start_us, end_us = calendar.around(now_us)
    assert start_us <= now_us < end_us
    assert calendar.around(start_us) == calendar.around(end_us - 1) == (start_us, end_us)
    assert calendar.around(end_us)[0] == end_us
    assert calendar.touched(now_us, end_us - 1) == 1
    assert calendar.touched(now_us, end_us) == 2


@given(st.sampled_from(ODD_ZONES), instants)
def test_every_instant_is_in_its_hour(zone: str, now_us: int) -> None:
    start_us, end_us = Calendar("h", zone).around(now_us)
    assert start_us <= now_us < end_us == start_us + HOUR_US
