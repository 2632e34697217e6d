"""Where calendar windows begin and end, in a named zone, daylight saving included."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from headgate.core.model import HOUR, SECOND, CalendarUnit
from headgate.errors import ConfigurationError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@lru_cache(maxsize=64)
def zone(name: str) -> ZoneInfo:
    """The zone of that IANA name.

    Raises:
        ConfigurationError: no such zone on this machine.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigurationError(
            f"expected the IANA name of a time zone, such as America/Los_Angeles; got {name!r}"
        ) from error


def window(wall_us: int, unit: CalendarUnit, zone_name: str) -> tuple[int, int]:
    """The calendar hour, day or month that holds an instant: (start, end), Unix time in µs, half open."""
    tz = zone(zone_name)
    local = (_EPOCH + timedelta(microseconds=wall_us)).astimezone(tz)
    if unit == "hour":
        # By the zone's offset from full hours (some are half an hour off), not by local arithmetic,
        # so that the hour repeated in autumn counts as two.
        offset = round((local.utcoffset() or timedelta()) / timedelta(microseconds=1))
        start = (wall_us + offset) // HOUR * HOUR - offset
        return start, start + HOUR
    first = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    if unit == "month":
        first = first.replace(day=1)
        following = (first + timedelta(days=32)).replace(day=1)
    else:
        following = first + timedelta(days=1)
    return _unix_us(first), _unix_us(following)


def _unix_us(local: datetime) -> int:
    return (local.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)


def clock_text(wall_us: int, zone_name: str) -> str:
    """An instant as people of the zone say it: ``00:00 America/Los_Angeles``, with the date if not today's.

    Seconds are left out where they are zero.
    """
    local = (_EPOCH + timedelta(microseconds=wall_us)).astimezone(zone(zone_name))
    form = "%H:%M" if wall_us % (60 * SECOND) == 0 else "%H:%M:%S"
    return f"{local.strftime(form)} {zone_name}"
