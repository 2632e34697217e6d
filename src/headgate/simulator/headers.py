"""How servers write their limits into the headers of an answer, in the dialects of two of them.

Of several limits on one meter the one with the smallest share left is told. Slots are not told.
Sources: OpenAI, "Rate limits" guide; Anthropic, "Rate limits" page (both read October 2026).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from headgate.simulator.durations import SECOND_US, go_duration


@dataclass(frozen=True, slots=True)
class Reading:
    """One limit as its server reports it. `reset_us` is the time to the full state, None if unknown."""

    meter: str
    limit: int
    remaining: int
    reset_us: int | None


def openai_headers(readings: Iterable[Reading], retry_after_us: int | None = None) -> dict[str, str]:
    """Return `x-ratelimit-{limit,remaining,reset}-METER`; the reset is a Go duration to the full state.

    A refusal adds `retry-after` in whole seconds, rounded up, and `retry-after-ms`.
    """
    headers: dict[str, str] = {}
    for meter, reading in _told(readings):
        headers[f"x-ratelimit-limit-{meter}"] = str(reading.limit)
        headers[f"x-ratelimit-remaining-{meter}"] = str(reading.remaining)
        headers[f"x-ratelimit-reset-{meter}"] = go_duration(reading.reset_us or 0)
    if retry_after_us is not None:
        headers["retry-after"] = str(-(-retry_after_us // SECOND_US))
        headers["retry-after-ms"] = str(-(-retry_after_us // 1_000))
    return headers


def anthropic_headers(
    readings: Iterable[Reading], now_us: int, retry_after_us: int | None = None
) -> dict[str, str]:
    """Return `anthropic-ratelimit-METER-{limit,remaining,reset}`; the reset is an RFC 3339 instant.

    A refusal adds `retry-after` in whole seconds, rounded up.
    """
    headers: dict[str, str] = {}
    for meter, reading in _told(readings):
        headers[f"anthropic-ratelimit-{meter}-limit"] = str(reading.limit)
        headers[f"anthropic-ratelimit-{meter}-remaining"] = str(reading.remaining)
        headers[f"anthropic-ratelimit-{meter}-reset"] = _instant(now_us + (reading.reset_us or 0))
    if retry_after_us is not None:
        headers["retry-after"] = str(-(-retry_after_us // SECOND_US))
    return headers


def _told(readings: Iterable[Reading]) -> Iterable[tuple[str, Reading]]:
    tightest: dict[str, Reading] = {}
    for reading in readings:
        if reading.meter == "concurrency":
            continue
        meter = reading.meter.replace("_", "-")
        other = tightest.get(meter)
        if other is None or reading.remaining * other.limit < other.remaining * reading.limit:
            tightest[meter] = reading
    return tightest.items()


def _instant(at_us: int) -> str:
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=-(-at_us // SECOND_US))
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
