"""Rate-limit fields of an answer, whoever sent it: Retry-After and the OpenAI dialect.

Only syntax: from a mapping of lower-case field names to text, to numbers. What they mean for a limit is in
the rules. Nothing here raises: a field that cannot be read is as good as none.

Sources: RFC 9110 10.2.3 (Retry-After: seconds or a date); OpenAI "Rate limits" guide, read October 2026
(``x-ratelimit-*``; reset is a Go duration until the *full* state; ``retry-after-ms`` goes first). Groq and
Shopify send decimals in Retry-After; some APIs send Unix times, in seconds or milliseconds, as resets, and
some what JavaScript's ``Date`` prints (ECMA-262 21.4.4.41).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from headgate.core.durations import go_duration_us
from headgate.core.model import DAY, SECOND, Reading

_NUMBER = re.compile(r"\d{1,30}(?:\.\d{1,30})?\Z")
_ASCTIME = re.compile(r"[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}\Z")
_JAVASCRIPT_ZONE = re.compile(r"\bGMT(?=[+-]\d{4}\b)")
_LONGEST_US = 400 * DAY
_EPOCH_MS = 1e11
_EPOCH_S = 1e9


def delay_us(text: str, wall_us: int, *, unit_us: int = SECOND) -> int | None:
    """How long from ``wall_us`` (Unix time of the answer) until what a reset field says.

    Understands dates (RFC 3339, HTTP), Go durations, Unix times in seconds or milliseconds (told by their
    size) and plain numbers of ``unit_us``. Past instants mean now.

    Returns:
        Microseconds, 0 or more and at most 400 days; None if it cannot be read.
    """
    text = text.strip()
    if _NUMBER.match(text):
        value = float(text)
        if unit_us == SECOND and value > _EPOCH_MS:
            us = value * 1_000 - wall_us
        elif unit_us == SECOND and value > _EPOCH_S:
            us = value * SECOND - wall_us
        else:
            us = value * unit_us
    else:
        duration = go_duration_us(text)
        if duration is not None:
            us = float(duration)
        else:
            instant = instant_us(text)
            if instant is None:
                return None
            us = float(instant - wall_us)
    return round(min(max(us, 0.0), float(_LONGEST_US)))


def instant_us(text: str) -> int | None:
    """Unix time in µs of an RFC 3339 date, of an HTTP date (all forms of RFC 9110 5.6.7) or of one that
    JavaScript printed; None if it is none of these. One without a zone is none, but for that of C's
    ``asctime``, which HTTP takes for UTC.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        try:
            found = parsedate_to_datetime(_JAVASCRIPT_ZONE.sub("", text))
        except ValueError:
            return None
        if _ASCTIME.match(text):
            found = found.replace(tzinfo=UTC)
    if found.tzinfo is None:
        return None
    return round(found.timestamp() * SECOND)


def answered_at_us(fields: Mapping[str, str], wall_us: int) -> int:
    """The server's clock when it answered, from its Date field; ``wall_us`` without one."""
    return instant_us(fields.get("date", "")) or wall_us


def retry_after_us(fields: Mapping[str, str], wall_us: int) -> int | None:
    """How long the server asks us to stay away: ``retry-after-ms`` first, else ``retry-after``."""
    ms = fields.get("retry-after-ms")
    if ms is not None:
        found = delay_us(ms, wall_us, unit_us=1_000)
        if found is not None:
            return found
    text = fields.get("retry-after")
    return None if text is None else delay_us(text, answered_at_us(fields, wall_us))


def openai_readings(
    fields: Mapping[str, str], wall_us: int, meters: Iterable[str] = ("requests", "tokens")
) -> tuple[Reading, ...]:
    """The ``x-ratelimit-{limit,remaining,reset}-{meter}`` fields that are there."""
    found = []
    for meter in meters:
        limit = _whole(fields.get(f"x-ratelimit-limit-{meter}"))
        remaining = _whole(fields.get(f"x-ratelimit-remaining-{meter}"))
        if limit is None and remaining is None:
            continue
        reset = fields.get(f"x-ratelimit-reset-{meter}")
        found.append(
            Reading(
                meter,
                limit,
                remaining,
                None if reset is None else delay_us(reset, answered_at_us(fields, wall_us)),
            )
        )
    return tuple(found)


def _whole(text: str | None) -> int | None:
    if text is None or not _NUMBER.match(text.strip()):
        return None
    return int(float(text))
