"""Lengths of time as text: Go durations (``1h2m3.5s``), plain numbers, and how people read them."""

from __future__ import annotations

import re

_UNITS_US = {
    "ns": 0.001,
    "us": 1.0,
    "µs": 1.0,
    "μs": 1.0,
    "ms": 1e3,
    "s": 1e6,
    "m": 60e6,
    "h": 3600e6,
    "d": 86400e6,
}
# Longest unit first: `6ms` is milliseconds, not minutes followed by rubbish.
_PART = re.compile(r"(\d{1,18}(?:\.\d{0,30})?|\.\d{1,30})(ms|ns|us|µs|μs|h|m|s|d)")


def go_duration_us(text: str) -> int | None:
    """Microseconds of a Go duration such as ``17ms``, ``6m0s`` or ``1h2m3.5s``; None if it is none."""
    at = 0
    total = 0.0
    for part in _PART.finditer(text):
        if part.start() != at:
            return None
        total += float(part[1]) * _UNITS_US[part[2]]
        at = part.end()
    return round(total) if at and at == len(text) else None


def seconds_text(seconds: float) -> str:
    """A length of time for people: ``0.8 s``, ``45 s``, ``3 min 20 s``, ``2 h 05 min``, ``3 d 4 h``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
