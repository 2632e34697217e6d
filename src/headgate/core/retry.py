"""What to do after an attempt: done, again at an instant, or give up.

Errors are told apart, because the same status means different things: a throttle says nothing about the call
and spends no attempt; an overload is the server's trouble and spends one; a caller's mistake is never sent
again. The pause after a failure is drawn evenly from 0 to ``min(cap, first × 2^(attempt - 1))`` ("full
jitter"), so that callers who failed together do not come back together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from headgate.core.model import SECOND


class ErrorClass(Enum):
    """What an answer, or its absence, means for the call and for everybody else."""

    OK = "ok"
    THROTTLED = "throttled"
    """Over a rate limit: wait for it, spend no attempt."""
    RAMP = "ramp"
    """Growing too fast: like a throttle."""
    OVERLOADED = "overloaded"
    """The server's own trouble: back off, spend an attempt."""
    WINDOW_GONE = "window gone"
    """A day's or month's limit is used up: wait for its next window."""
    MONEY_GONE = "money gone"
    """No credit left: nothing of this account will pass until somebody pays."""
    NEVER_FITS = "never fits"
    """Larger than the limit or the model can take."""
    CALLER = "caller"
    """The request itself is wrong."""
    KEY = "key"
    """The key is wrong: no other request will fare better."""
    TRANSPORT = "transport"
    """No answer: it may or may not have been done."""
    MALFORMED = "malformed"
    """An answer that cannot be read: done, perhaps charged, of no use."""


SPENDS_NO_ATTEMPT = frozenset({ErrorClass.THROTTLED, ErrorClass.RAMP, ErrorClass.WINDOW_GONE})
WORTH_ANOTHER = SPENDS_NO_ATTEMPT | {ErrorClass.OVERLOADED, ErrorClass.TRANSPORT, ErrorClass.MALFORMED}

_BY_STATUS: Mapping[int, ErrorClass] = MappingProxyType(
    {
        401: ErrorClass.KEY,
        402: ErrorClass.MONEY_GONE,
        408: ErrorClass.TRANSPORT,
        409: ErrorClass.OVERLOADED,
        413: ErrorClass.NEVER_FITS,
        425: ErrorClass.OVERLOADED,
        429: ErrorClass.THROTTLED,
    }
)


def class_of_status(status: int) -> ErrorClass:
    """The class of a status where nothing else is known of the answer."""
    if status < 400:
        return ErrorClass.OK
    return _BY_STATUS.get(status) or (ErrorClass.OVERLOADED if status >= 500 else ErrorClass.CALLER)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long.

    Attributes:
        max_attempts: attempts that may fail before the call is given up, 1 or more.
        first_backoff_us, longest_backoff_us: bounds of the pause's ceiling.
        max_throttled_us: how long one call may be refused for its rate, over all its attempts.
    """

    max_attempts: int = 6
    first_backoff_us: int = SECOND // 2
    longest_backoff_us: int = 60 * SECOND
    max_throttled_us: int = 3600 * SECOND


class Done(NamedTuple):
    """The call has succeeded."""


class RetryAt(NamedTuple):
    """Ask for a permit again at this instant; ``attempt`` is the number it will bear."""

    at_us: int
    attempt: int


class GiveUp(NamedTuple):
    """The call has failed for good; ``reason`` is for people."""

    reason: str


Verdict: TypeAlias = Done | RetryAt | GiveUp


def after(
    policy: RetryPolicy,
    error: ErrorClass,
    *,
    attempt: int,
    first_throttled_us: int | None,
    retry_after_us: int | None,
    now_us: int,
    random: float,
) -> Verdict:
    """What follows an attempt.

    Args:
        error: the class of its answer.
        attempt: its number, from 1.
        first_throttled_us: instant at which this call was first refused for its rate, or None.
        retry_after_us: what the server asked for, from now.
        now_us: the present instant.
        random: a number from [0, 1).
    """
    if error is ErrorClass.OK:
        return Done()
    if error in SPENDS_NO_ATTEMPT:
        # No pause of its own: the limit that was hit is shut for everybody, and opens in order.
        if first_throttled_us is not None and now_us - first_throttled_us > policy.max_throttled_us:
            return GiveUp(f"refused for its rate for more than {policy.max_throttled_us // SECOND} s")
        return RetryAt(now_us, attempt)
    if error not in WORTH_ANOTHER:
        return GiveUp(error.value)
    if attempt >= policy.max_attempts:
        return GiveUp(f"{error.value}, {attempt} attempts")
    ceiling = min(policy.longest_backoff_us, policy.first_backoff_us << min(attempt - 1, 30))
    pause = max(round(random * ceiling), min(retry_after_us or 0, 3600 * SECOND))
    return RetryAt(now_us + pause, attempt + 1)
