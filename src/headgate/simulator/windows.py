"""Where a fixed window begins and ends: on the clock grid, or in a calendar.

An instant is microseconds since 1970 (UTC); a window is half open, `[start, end)`. What is counted in
a window is not known here.
"""

from datetime import UTC, date, datetime, timedelta
from typing import Literal, Protocol
from zoneinfo import ZoneInfo

from headgate.simulator.durations import UNITS_US

CalendarUnit = Literal["h", "day", "month"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Windows(Protocol):
    """A division of time into windows, each beginning where the one before ends."""

    def around(self, now_us: int) -> tuple[int, int]:
        """Return the window that holds this instant, as (start, end)."""

    def touched(self, start_us: int, end_us: int) -> int:
        """Count the windows that hold an instant of `[start_us, end_us]`."""


class Grid:
    """Windows of one length on the clock's grid: every `k * period_us + phase_us` begins one."""

    def __init__(self, period_us: int, phase_us: int = 0) -> None:
        self._period_us = period_us
        self._phase_us = phase_us

    def around(self, now_us: int) -> tuple[int, int]:
        start_us = now_us - (now_us - self._phase_us) % self._period_us
        return start_us, start_us + self._period_us

    def touched(self, start_us: int, end_us: int) -> int:
        first = (start_us - self._phase_us) // self._period_us
        return (end_us - self._phase_us) // self._period_us - first + 1


class Calendar:
    """Hours, days or months of a zone's own calendar.

    A day is 23 or 25 hours long where the clocks are changed. An hour is always an hour of real time; a
    change of the clocks begins a new one.
    """

    def __init__(self, unit: CalendarUnit, zone: str = "UTC") -> None:
        """Take a zone by its IANA name. Raises `zoneinfo.ZoneInfoNotFoundError` for an unknown one."""
        self._unit = unit
        self._zone = ZoneInfo(zone)

    def around(self, now_us: int) -> tuple[int, int]:
        local = (_EPOCH + now_us * _MICROSECOND).astimezone(self._zone)
        if self._unit == "h":
            hour_us = UNITS_US["h"]
            offset_us = (local.utcoffset() or timedelta()) // _MICROSECOND
            start_us = now_us - (now_us + offset_us) % hour_us
            return start_us, start_us + hour_us
        first = local.date() if self._unit == "day" else local.date().replace(day=1)
        start_us, end_us = self._midnight_us(first), self._midnight_us(self._next(first))
        # Clocks set back over midnight repeat the end of a day that is already over: it stays over.
        return (start_us, end_us) if now_us < end_us else self.around(now_us + UNITS_US["h"])

    def touched(self, start_us: int, end_us: int) -> int:
        count = 1
        _, edge_us = self.around(start_us)
        while edge_us <= end_us:
            count += 1
            _, edge_us = self.around(edge_us)
        return count

    def _next(self, first: date) -> date:
        if self._unit == "day":
            return first + timedelta(days=1)
        return (first.replace(day=28) + timedelta(days=4)).replace(day=1)

    def _midnight_us(self, day: date) -> int:
        # fold=0: the first of two midnights; where clocks skip midnight, the instant they do.
        midnight = datetime(day.year, day.month, day.day, tzinfo=self._zone)
        return (midnight - _EPOCH) // _MICROSECOND
