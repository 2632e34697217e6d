"""What a limit lets through in a time."""

from __future__ import annotations

from headgate.core.model import SECOND, Limit


def possible_units(limit: Limit, seconds: float) -> float:
    """The most that a limit lets through in a time, from an empty start; slot-seconds for concurrency."""
    if limit.kind == "concurrency":
        return limit.amount * seconds
    return limit.amount * seconds * SECOND / limit.period_us
