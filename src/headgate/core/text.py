"""The short form of a limit, the same in the library, on the command line and in configuration.

::

    METER=AMOUNT/PERIOD[:burst=N][:kind=bucket|sliding|fixed|calendar|anchored][:zone=NAME]
                       [:charge=estimate|usage][:when=arrival|completion][:refund=yes|no]
                       [:start=auto|empty|full|used-N][:transit=DURATION][:error=DURATION][:name=TEXT]
    concurrency=N

Amounts: ``500``, ``40k``, ``2M``. Periods: ``s``, ``min``, ``h``, ``day``, ``month``, ``3s``, ``10min``.
``burst=`` alone means a bucket; neither ``kind`` nor ``burst`` means that nobody knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Any, NoReturn, get_args

from headgate.core.durations import go_duration_us
from headgate.core.model import DAY, HOUR, PERIODS_US, CalendarUnit, Limit
from headgate.errors import ConfigurationError

_AMOUNT = re.compile(r"(\d[\d_]*(?:\.\d+)?)([kKmMgG]?)\Z")
_FACTOR = MappingProxyType({"": 1, "k": 10**3, "m": 10**6, "g": 10**9})
_PERIOD = re.compile(r"(\d+(?:\.\d+)?)?(ms|[a-z]+)\Z")
_UNITS_US: Mapping[str, int] = MappingProxyType(
    {
        **PERIODS_US,
        "ms": 1_000,
        "sec": PERIODS_US["s"],
        "second": PERIODS_US["s"],
        "m": PERIODS_US["min"],
        "minute": PERIODS_US["min"],
        "hour": HOUR,
        "d": DAY,
    }
)
_KINDS = ("bucket", "sliding", "fixed", "calendar", "anchored", "unknown")


class _Reader:
    """Errors that point at the character."""

    def __init__(self, text: str) -> None:
        self.text = text

    def fail(self, at: int, message: str) -> NoReturn:
        raise ConfigurationError(f"{message}\n  {self.text}\n  {' ' * at}^")

    def amount(self, text: str, at: int) -> int:
        found = _AMOUNT.match(text)
        if not found:
            self.fail(at, f"expected an amount such as 500, 40k or 2M; got {text!r}")
        value = Decimal(found[1].replace("_", "")) * _FACTOR[found[2].lower()]
        if value != int(value):
            self.fail(at, f"expected whole units; got {text!r}")
        return int(value)

    def period(self, text: str, at: int) -> tuple[int, str]:
        found = _PERIOD.match(text)
        if not found or found[2] not in _UNITS_US:
            self.fail(at, f"expected a period such as s, min, h, day, month, 3s or 10min; got {text!r}")
        return round(float(found[1] or 1) * _UNITS_US[found[2]]), "" if found[1] else found[2]

    def duration(self, text: str, at: int) -> int:
        us = go_duration_us(text)
        if us is None:
            self.fail(at, f"expected a duration such as 50ms or 1.5s; got {text!r}")
        return us

    def choice(self, text: str, at: int, choices: Iterable[str]) -> str:
        if text not in choices:
            self.fail(at, f"expected one of {', '.join(choices)}; got {text!r}")
        return text

    def start(self, text: str, at: int) -> str | int:
        if text.startswith(("used:", "used-")):
            return self.amount(text[5:], at + 5)
        return self.choice(text, at, ("auto", "empty", "full", "used-N"))


def start_mode(text: str) -> str | int:
    """``auto``, ``empty``, ``full``, or N for ``used:N`` (units already used).

    Raises:
        ConfigurationError: none of these.
    """
    return _Reader(text).start(text, 0)


def parse_limit(text: str) -> Limit:
    """Read one limit in the short form.

    Raises:
        ConfigurationError: it cannot be read, or makes no sense; the message points at the character.
    """
    reader = _Reader(text)
    head, *options = _split(text)
    meter, equals, rest = head[0].partition("=")
    if not equals:
        reader.fail(len(text), "expected METER=AMOUNT/PERIOD, such as requests=500/min")
    facts: dict[str, Any] = {"meter": meter}
    at = len(meter) + 1
    amount, slash, period = rest.partition("/")
    facts["amount"] = reader.amount(amount, at)
    unit = ""
    if slash:
        facts["period_us"], unit = reader.period(period, at + len(amount) + 1)
    elif meter == "concurrency":
        facts["kind"] = "concurrency"
    else:
        reader.fail(at + len(amount), f"expected a period after the amount, such as /min; got {rest!r}")
    if slash and meter == "concurrency":
        reader.fail(at + len(amount), "concurrency counts calls at the same time and takes no period")
    for option, start in options:
        _read_option(reader, facts, option, start)
    if facts.get("kind") is None:
        facts["kind"] = "bucket" if "burst" in facts else "unknown"
    elif facts["kind"] == "calendar":
        unit = {"h": "hour", "d": "day"}.get(unit, unit)
        if unit not in get_args(CalendarUnit):
            reader.fail(at + len(amount) + 1, f"kind=calendar takes /h, /day or /month; got {period!r}")
        facts["calendar"] = unit
        facts["period_us"] = {"hour": HOUR, "day": 25 * HOUR, "month": 31 * DAY + HOUR}[unit]
    elif facts["kind"] == "bucket" and "burst" not in facts:
        reader.fail(len(text), "a bucket has a size: add burst=N")
    try:
        return Limit(**facts)
    except ConfigurationError as error:
        reader.fail(0, str(error))


def _split(text: str) -> list[tuple[str, int]]:
    """The parts between colons with their places; ``used:N`` stays whole."""
    parts: list[tuple[str, int]] = []
    at = 0
    for piece in text.split(":"):
        if parts and parts[-1][0] == "start=used":
            parts[-1] = (f"start=used:{piece}", parts[-1][1])
        else:
            parts.append((piece, at))
        at += len(piece) + 1
    return parts


def _read_option(reader: _Reader, facts: dict[str, Any], option: str, start: int) -> None:
    key, equals, value = option.partition("=")
    at = start + len(key) + 1
    readers: dict[str, tuple[str, Callable[[], object]]] = {
        "burst": ("burst", lambda: reader.amount(value, at)),
        "kind": ("kind", lambda: reader.choice(value, at, _KINDS)),
        "zone": ("zone", lambda: value),
        "charge": ("charge", lambda: reader.choice(value, at, ("estimate", "usage"))),
        "when": ("when", lambda: reader.choice(value, at, ("arrival", "completion"))),
        "refund": ("refund", lambda: reader.choice(value, at, ("yes", "no")) == "yes"),
        "start": ("start", lambda: reader.start(value, at)),
        "transit": ("max_transit_us", lambda: reader.duration(value, at)),
        "error": ("clock_error_us", lambda: reader.duration(value, at)),
        "name": ("name", lambda: value),
    }
    if key not in readers:
        reader.fail(start, f"expected an option ({', '.join(readers)}); got {key!r}")
    if not equals or not value:
        reader.fail(start + len(key), f"expected {key}=VALUE")
    name, read = readers[key]
    if name in facts:
        reader.fail(start, f"{key} is given twice")
    facts[name] = read()


def parse_limits(limits: Iterable[str | Limit]) -> tuple[Limit, ...]:
    """Limits as objects or in the short form, all as objects."""
    return tuple(limit if isinstance(limit, Limit) else parse_limit(limit) for limit in limits)
