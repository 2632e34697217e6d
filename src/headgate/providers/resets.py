"""How long a refusal closes an API for everybody, where its fields say when there is room again.

The rule, for an answer that refused a call for its rate:

1. What the server asks of this call always counts: ``retry-after-ms``, else ``retry-after``, else "try again
   in" of its text.
2. Reset fields count for the meters that the refusal is about: those with nothing remaining, and the one that
   the error names. Of several limits on one meter, those count with nothing remaining. If there is no such
   meter, all count that it may be about: not requests of which some remain, since a call takes one of them.
3. Some APIs tell the time until a meter is *full*, which is longer than any one call has to wait. Beside 1 it
   counts only where nothing remains, and only up to a minute, the time that a minute's bucket takes. What
   takes longer is a day's bucket, and that has room again long before it is full.
4. A window whose length is told counts whole where nothing remains, or where its reset cannot be read.
5. The longest of these is the pause. What cannot be read, or is above 31 days, is as good as not there. A
   pause of nothing is none: the limiter's own backoff takes its place.
6. The refusal is of one meter if 2 finds exactly one that has nothing left or is named, and of all if not.

Sources, as read in November 2026. OpenAI "Rate limits": retry-after comes first, and is a minimum; resets are
Go durations to the full state (fields of projects: as clients have recorded them). Azure "Azure OpenAI 429:
token and request rate limits explained", and recorded answers: resets in seconds; without tokens remaining,
``retry-after: 1`` and ``retry-after-ms: 0`` came while the window of 60 s was still shut, hence 4. Groq "Rate
Limits": as OpenAI, but its requests are those of a day. Anthropic "Rate limits": resets are RFC 3339 instants
of the full state; ``tokens`` repeats the tightest limit on tokens, so it is none of its own beside the
others. Mistral: seconds, as clients have recorded them. GitHub "Rate limits for the REST API" and X "Rate
limits": the end of the window in Unix time; GitHub's secondary limits leave requests remaining, and
retry-after alone tells how long they last. Discord "Rate Limits" and Reddit's archived wiki: seconds, with
decimals.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeAlias

from headgate.core.headers import answered_at_us, delay_us
from headgate.core.model import DAY, MINUTE, SECOND
from headgate.errors import ConfigurationError

log = logging.getLogger("headgate")

Parser: TypeAlias = Callable[[str], float | timedelta | datetime | None]
"""Makes a delay or an instant of a field's text: seconds, a timedelta, a datetime (without a zone: UTC), or
None if it cannot be read."""

Provider: TypeAlias = Literal[
    "anthropic", "azure", "discord", "github", "groq", "mistral", "openai", "reddit", "x"
]

LONGEST_PAUSE_US = 31 * DAY
"""The longest window that APIs have is a month."""
FULL_MINUTE_US = MINUTE + 5 * SECOND
"""Time to full of a minute's bucket; dates are rounded to seconds."""
LONGEST_FIELD = 256
"""Characters of a reset field; no date is longer."""

_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}\Z")  # RFC 9110 5.1
_NUMBER = re.compile(r"-?\d{1,30}(?:\.\d{1,30})?\Z")


@dataclass(frozen=True, slots=True)
class ResetField:
    """Where an API says of one meter when there is room again.

    Attributes:
        meter: as limits name it, such as ``tokens``.
        reset: name of the field that tells it, in lower case, as the two others.
        remaining: of that which tells how many units are left; empty if there is none.
        period: of that which tells the length of the window, in seconds; empty if there is none.
        to_full: the reset is when all is there again, not when some is.
        parser: reads the reset; None for :func:`~headgate.core.headers.delay_us`.
    """

    meter: str
    reset: str
    remaining: str = ""
    period: str = ""
    to_full: bool = False
    parser: Parser | None = None


class Closed(NamedTuple):
    """What a refusal closes.

    ``pause_us`` is above 0, None if nothing tells it; ``meter`` the one that is closed, None for all;
    ``is_whole`` whether the pause is known to be enough, so that no edge of a window has to be awaited.
    """

    pause_us: int | None
    meter: str | None
    is_whole: bool


class _Shown(NamedTuple):
    """What an answer has of one meter; each None if it has not."""

    field: ResetField
    left: float | None
    delay_us: int | None

    @property
    def is_spent(self) -> bool:
        return self.left is not None and self.left < 1


@dataclass(frozen=True, slots=True)
class Resets:
    """The reset fields of an API; :func:`resets_of` makes it."""

    fields: tuple[ResetField, ...]
    _complaints: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def closed(
        self,
        fields: Mapping[str, str],
        asked_us: int | None,
        named: Iterable[str | None],
        wall_us: int,
        meters: Collection[str],
    ) -> Closed:
        """What an answer that refused a call closes, by the rule above.

        Args:
            fields: of the answer, names in lower case.
            asked_us: how long the server asks us to stay away (1 of the rule), None if it does not.
            named: what the error may name a meter by; the first that is known as one is believed.
            wall_us: our wall clock.
            meters: those that limits count.
        """
        shown = list(self._shown(fields, wall_us))
        known = {each.field.meter for each in shown}.union(meters)
        words = (word.lower().replace("-", "_") for word in named if word)
        name = next((word for word in words if word in known), None)
        spent = {each.field.meter for each in shown if each.is_spent}
        asked_us = _bounded(asked_us) or 0
        told_us = 0
        for each in shown:
            meter = each.field.meter
            if meter in spent:
                counts = each.is_spent or each.left is None
            elif spent or name is not None:
                counts = meter == name
            else:
                counts = meter != "requests" or each.left is None
            if each.field.to_full and asked_us:
                counts = counts and each.is_spent and (each.delay_us or 0) <= FULL_MINUTE_US
            if counts:
                told_us = max(told_us, each.delay_us or 0)
        meant = spent if name is None else spent | {name}
        if not meant.isdisjoint(("input_tokens", "output_tokens")):
            meant.discard("tokens")
        only = meant.pop() if len(meant) == 1 else None
        is_bucket = any(each.is_spent and each.field.to_full for each in shown)
        is_whole = told_us >= asked_us if told_us else is_bucket and asked_us > 0
        return Closed(max(told_us, asked_us) or None, only if only in meters else None, is_whole)

    def _shown(self, fields: Mapping[str, str], wall_us: int) -> Iterator[_Shown]:
        """What the answer has of the fields, where it has any."""
        for each in self.fields:
            reset, left = fields.get(each.reset), _number(fields.get(each.remaining))
            period_us = _seconds(fields.get(each.period))
            if reset is None and left is None and period_us is None:
                continue
            found = None if reset is None else self._delay(each, reset, fields, wall_us)
            if period_us is not None and (found is None or (left is not None and left < 1)):
                found = max(found or 0, period_us)
            yield _Shown(each, left, found)

    def _delay(self, each: ResetField, text: str, fields: Mapping[str, str], wall_us: int) -> int | None:
        if len(text) > LONGEST_FIELD:
            return None
        at_us = answered_at_us(fields, wall_us)
        if each.parser is None:
            return _bounded(delay_us(text, at_us))
        try:
            return _bounded(_parsed_us(each.parser(text), at_us))
        except Exception:
            if not self._complaints:  # a mistake in a parser is the same for all answers
                self._complaints.add(each.reset)
                log.warning(
                    "parser= failed on %s; fields are ignored where it does", each.reset, exc_info=True
                )
            return None


def resets_of(
    headers: str | None = None,
    token_header: str | None = None,
    requests_header: str | None = None,
    parser: Parser | None = None,
) -> Resets | None:
    """The reset fields of a provider, and the user's own; None if none are named.

    Args:
        headers: name of a provider, one of :data:`PROVIDERS`.
        token_header, requests_header: fields that tell when there are tokens and requests again, each in the
            place of the provider's for that meter. How many remain is told by the provider's field; without a
            provider, by that of the same name with ``remaining`` for ``reset``.
        parser: reads the user's own fields, or the provider's if there are none; None for RFC 3339 and HTTP
            dates, Go durations, Unix times in seconds or milliseconds, and plain seconds.

    Raises:
        ConfigurationError: no such provider, no name of a field, or a parser with nothing to read.
    """
    if headers is not None and (type(headers) is not str or headers not in PROVIDERS):
        raise ConfigurationError(f"headers= is one of {', '.join(sorted(PROVIDERS))}; got {_name(headers)}")
    if parser is not None and not callable(parser):
        raise ConfigurationError(f"parser= is a callable that reads a field's text; got {_name(parser)}")
    given = (("tokens", "token_header", token_header), ("requests", "requests_header", requests_header))
    own = {meter: _field_name(option, name) for meter, option, name in given if name is not None}
    if headers is None and not own:
        if parser is not None:
            raise ConfigurationError(
                "parser= reads what headers=, token_header= or requests_header= name; got none of them"
            )
        return None
    theirs = PROVIDERS[headers] if headers is not None else ()
    told = {each.meter for each in theirs}
    fields = [
        ResetField(meter, name, name.replace("reset", "remaining") if "reset" in name else "", parser=parser)
        for meter, name in own.items()
        if meter not in told
    ]
    for each in theirs:
        if each.meter in own:
            fields.append(ResetField(each.meter, own[each.meter], each.remaining, parser=parser))
        else:
            fields.append(each if own else replace(each, parser=parser))
    return Resets(tuple(fields))


def _field_name(option: str, name: object) -> str:
    if not isinstance(name, str) or not _FIELD_NAME.match(name):
        raise ConfigurationError(
            f"{option}= is the name of a header field, of letters, digits and '-'; got {_name(name)}"
        )
    return name.lower()


def _name(given: object) -> str:
    """For errors; whoever takes ``headers=`` for a request's may have put a key into it."""
    return repr(given[:80]) if isinstance(given, str) else f"a {type(given).__name__}"


def _parsed_us(found: object, at_us: int) -> int | None:
    """What a parser returned as a delay from ``at_us``.

    Raises:
        TypeError, ValueError, OverflowError: it is none.
    """
    if found is None:
        return None
    if isinstance(found, datetime):
        instant = found if found.tzinfo is not None else found.replace(tzinfo=UTC)
        return max(round(instant.timestamp() * SECOND) - at_us, 0)
    seconds = found.total_seconds() if isinstance(found, timedelta) else found
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(
            "a parser returns seconds, a timedelta, a datetime or None; this one returned "
            f"a {type(found).__name__}"
        )
    if not math.isfinite(seconds):
        raise ValueError(f"a parser returns a number of seconds; this one returned {seconds}")
    return max(round(seconds * SECOND), 0)


def _bounded(us: int | None) -> int | None:
    return us if us is not None and us <= LONGEST_PAUSE_US else None


def _number(text: str | None) -> float | None:
    return float(text) if text is not None and _NUMBER.match(text := text.strip()) else None


def _seconds(text: str | None) -> int | None:
    found = _number(text)
    return None if found is None or found < 0 else _bounded(round(found * SECOND))


def _x_ratelimit(meter: str, word: str = "", *, to_full: bool = True, period: bool = False) -> ResetField:
    word = word or meter
    return ResetField(
        meter,
        f"x-ratelimit-reset-{word}",
        f"x-ratelimit-remaining-{word}",
        f"x-ratelimit-renewalperiod-{word}" if period else "",
        to_full=to_full,
    )


def _anthropic(meter: str) -> ResetField:
    start = f"anthropic-ratelimit-{meter.replace('_', '-')}"
    return ResetField(meter, f"{start}-reset", f"{start}-remaining", to_full=True)


PROVIDERS: Mapping[str, tuple[ResetField, ...]] = MappingProxyType(
    {
        "anthropic": tuple(map(_anthropic, ("requests", "tokens", "input_tokens", "output_tokens"))),
        "azure": (
            _x_ratelimit("requests", to_full=False, period=True),
            _x_ratelimit("tokens", to_full=False, period=True),
        ),
        "discord": (ResetField("requests", "x-ratelimit-reset-after", "x-ratelimit-remaining"),),
        "github": (ResetField("requests", "x-ratelimit-reset", "x-ratelimit-remaining"),),
        "groq": (_x_ratelimit("requests"), _x_ratelimit("tokens")),
        "mistral": (ResetField("tokens", "ratelimitbysize-reset", "ratelimitbysize-remaining"),),
        "openai": (
            _x_ratelimit("requests"),
            _x_ratelimit("tokens"),
            _x_ratelimit("tokens", "project-tokens"),
        ),
        "reddit": (ResetField("requests", "x-ratelimit-reset", "x-ratelimit-remaining"),),
        "x": (
            ResetField("requests", "x-rate-limit-reset", "x-rate-limit-remaining"),
            ResetField("requests", "x-app-limit-24hour-reset", "x-app-limit-24hour-remaining"),
            ResetField("requests", "x-user-limit-24hour-reset", "x-user-limit-24hour-remaining"),
        ),
    }
)
"""By name; the sources are above."""
