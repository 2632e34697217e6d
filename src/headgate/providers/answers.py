"""What an answer says, from its status, fields and body: the error's class, usage, rate-limit fields.

The words are OpenAI's, which many other APIs speak, and what is known of some that do not.

Sources: OpenAI "Rate limits" and "Error codes" guides, read October 2026. Error classes: money that is gone
comes as 429 with one of the codes below; ``slow_down`` is a ramp limit; 429 texts carry "Limit L, Used U,
Requested R", where R above L can never pass. Anthropic: 529 is an overload, ``usage`` has ``input_tokens``
and ``output_tokens``; "Errors" page, read October 2026. AWS: codes that mean a throttle whatever the status;
Boto3 guide, "Retries", read November 2026. GitHub: a throttle may be a 403, with ``retry-after``, or with
nothing remaining until ``x-ratelimit-reset``, or with neither, and then it asks for a minute;
"Troubleshooting the REST API", read November 2026.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from headgate.core.headers import answered_at_us, delay_us, openai_readings, retry_after_us
from headgate.core.model import MINUTE, Reading
from headgate.core.retry import SPENDS_NO_ATTEMPT, ErrorClass, class_of_status
from headgate.providers.resets import LONGEST_PAUSE_US, Resets

MONEY_CODES = frozenset(
    "credit_balance_exhausted organization_spend_limit_exceeded project_spend_limit_exceeded "
    "organization_usage_limit_exceeded insufficient_quota billing_not_active".split()
)
RAMP_CODES = frozenset({"slow_down"})
THROTTLE_CODES = frozenset(
    "Throttling ThrottlingException ThrottledException RequestThrottled RequestThrottledException "
    "TooManyRequestsException RequestLimitExceeded BandwidthLimitExceeded EC2ThrottledException "
    "ProvisionedThroughputExceededException SlowDown".split()
)
"""AWS's."""
SIZE_CODES = frozenset({"context_length_exceeded", "string_above_max_length"})

_LONG_WINDOW = re.compile(r"per ?day|per ?month|daily|monthly|\b[RT]PD\b|quota_exceeded", re.IGNORECASE)
_LIMIT = re.compile(r"\bLimit:? ([\d,]{1,24})(?!\d)")
_REQUESTED = re.compile(r"\bRequested:? ([\d,]{1,24})(?!\d)")
_TRY_AGAIN = re.compile(r"try again in ((?:\d{1,9}(?:\.\d{1,9})?(?:ms|h|m|s)){1,4})")
_MOST_TOKENS = 1 << 40
"""A usage above it is no usage."""
_TOKEN_FIELDS = (("prompt_tokens", "completion_tokens"), ("input_tokens", "output_tokens"))


class Usage(NamedTuple):
    """Tokens that a call really used."""

    input_tokens: int
    output_tokens: int


class Answer(NamedTuple):
    """What an answer says, in headgate's words.

    ``message`` is the error's text, empty if there is none; ``meter`` the meter that a refusal named;
    ``status`` the HTTP status, None if no answer came; ``is_whole`` whether ``retry_after_us`` is known to be
    enough, though the window may be a long one.
    """

    error: ErrorClass
    message: str
    code: str
    meter: str | None
    retry_after_us: int | None
    readings: tuple[Reading, ...]
    usage: Usage | None
    status: int | None = None
    is_whole: bool = False


def read_answer(
    status: int,
    fields: Mapping[str, str],
    body: Any,
    wall_us: int,
    meters: Collection[str],
    resets: Resets | None = None,
) -> Answer:
    """Read an answer.

    Args:
        status: HTTP status.
        fields: header fields, names in lower case.
        body: the parsed JSON, or None if it was none.
        wall_us: our wall clock.
        meters: the meters to look for in ``x-ratelimit-*`` fields.
        resets: fields that tell how long a throttle lasts, and for which meter; None to go by Retry-After.
    """
    readings = openai_readings(fields, wall_us, meters)
    if status < 400:
        error = ErrorClass.OK if status < 300 else ErrorClass.CALLER
        message = "" if status < 300 else f"redirected to {fields.get('location', 'nowhere')}"
        return Answer(error, message, "", None, None, readings, read_usage(body), status)
    code, kind, message = _error_of(body)
    error = _class_of(status, code, kind, message)
    if status == 403 and error is ErrorClass.CALLER and _is_throttle(fields, message):
        error = ErrorClass.THROTTLED
    pause = retry_after_us(fields, wall_us)
    if pause is None:
        pause = _told_in_text(message, wall_us)
    meter, is_whole = _meter_of(kind, fields), False
    if resets is not None and error in SPENDS_NO_ATTEMPT:
        named = (kind, fields.get("x-ratelimit-type"))
        pause, meter, is_whole = resets.closed(fields, pause, named, wall_us, meters)
    if pause is None and error is ErrorClass.THROTTLED:
        pause = _told_by_github(status, fields, wall_us)
    return Answer(error, message, code, meter, pause, readings, None, status, is_whole)


def read_usage(body: Any) -> Usage | None:
    """The ``usage`` of an answer's body; None if it has none."""
    if not isinstance(body, dict):
        return None
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return None
    for given, made in _TOKEN_FIELDS:
        found = whole_tokens(usage.get(given))
        if found is not None:
            return Usage(found, whole_tokens(usage.get(made)) or 0)
    return None


def whole_tokens(value: object) -> int | None:
    """A number of tokens that can be believed; None if it is no such thing."""
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None


def _error_of(body: Any) -> tuple[str, str, str]:
    """Code, type and message of an error's body, empty where it tells none."""
    if not isinstance(body, dict):
        return "", "", ""
    error = body.get("error")
    if isinstance(error, str):
        return "", "", error
    if isinstance(error, dict):
        return _text(error, "code"), _text(error, "type"), _text(error, "message")
    error = body.get("Error")
    if isinstance(error, dict):  # AWS
        return _text(error, "Code"), "", _text(error, "Message")
    return "", "", _text(body, "message")  # GitHub


def _text(error: dict[Any, Any], name: str) -> str:
    return str(error.get(name) or "")


def _class_of(status: int, code: str, kind: str, message: str) -> ErrorClass:
    if code in MONEY_CODES or kind in MONEY_CODES:
        return ErrorClass.MONEY_GONE
    if code in SIZE_CODES:
        return ErrorClass.NEVER_FITS
    if code in THROTTLE_CODES:
        return ErrorClass.THROTTLED
    if status == 429:
        if code in RAMP_CODES or kind in RAMP_CODES:
            return ErrorClass.RAMP
        limit, requested = _LIMIT.search(message), _REQUESTED.search(message)
        if limit and requested and _whole(requested[1]) > _whole(limit[1]):
            return ErrorClass.NEVER_FITS
        if _LONG_WINDOW.search(f"{code} {kind} {message}"):
            return ErrorClass.WINDOW_GONE
    return class_of_status(status)


def _is_throttle(fields: Mapping[str, str], message: str) -> bool:
    """Whether a 403 forbids the rate, not the request."""
    return "retry-after" in fields or _nothing_remains(fields) or "rate limit" in message.lower()


def _nothing_remains(fields: Mapping[str, str]) -> bool:
    return fields.get("x-ratelimit-remaining", "").strip() == "0"


def _told_in_text(message: str, wall_us: int) -> int | None:
    again = _TRY_AGAIN.search(message)
    return delay_us(again[1], wall_us) if again else None


def _told_by_github(status: int, fields: Mapping[str, str], wall_us: int) -> int | None:
    """How long to stay away, where no Retry-After says it."""
    reset = fields.get("x-ratelimit-reset")
    if reset is not None and _nothing_remains(fields):
        found = delay_us(reset, answered_at_us(fields, wall_us))
        if found is not None and found <= LONGEST_PAUSE_US:
            return found
    return MINUTE if status == 403 else None


def _whole(text: str) -> int:
    return int(text.replace(",", "") or 0)


def _meter_of(kind: str, fields: Mapping[str, str]) -> str | None:
    return kind or fields.get("x-ratelimit-type")
