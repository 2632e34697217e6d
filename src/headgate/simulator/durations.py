"""Lengths of time as text: `250ms`, `1.5s`, `10min` in, Go's `6m0s` out.

Everything inside is integer microseconds. This file knows no limits and no clock.
"""

import re
from decimal import Decimal

SECOND_US = 1_000_000
UNITS_US = {
    "us": 1,
    "ms": 1_000,
    "s": SECOND_US,
    "min": 60 * SECOND_US,
    "h": 3_600 * SECOND_US,
    "day": 86_400 * SECOND_US,
}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)?(us|ms|s|min|h|day)")


def parse_duration(text: str) -> int:
    """Read `s`, `3s`, `0.5s`, `250ms`, `10min`, `2h` or `day` as microseconds; a unit alone means one of it.

    `0` needs no unit. Raises ValueError for anything else, and for a part of a microsecond.
    """
    if text == "0":
        return 0
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"expected a length of time such as 250ms, 3s or 10min, got {text!r}")
    length = Decimal(match[1] or 1) * UNITS_US[match[2]]
    if length != int(length):
        raise ValueError(f"expected whole microseconds, got {text!r}")
    return int(length)


def seconds_to_us(seconds: float) -> int:
    """Round float seconds to integer microseconds."""
    return round(seconds * SECOND_US)


def go_duration(length_us: int) -> str:
    """Write a length as Go prints it: `0s`, `17ms`, `1.2s`, `6m0s`, `1h2m3.5s`.

    Rounded up to whole milliseconds, so that a caller who waits this long has waited long enough.
    """
    length_ms = -(-length_us // 1_000)
    if 0 < length_ms < 1_000:
        return f"{length_ms}ms"
    whole, ms = divmod(length_ms, 1_000)
    minutes, seconds = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{seconds}.{ms:03}".rstrip("0").rstrip(".") if ms else str(seconds)
    if hours:
        return f"{hours}h{minutes}m{text}s"
    return f"{minutes}m{text}s" if minutes else f"{text}s"
