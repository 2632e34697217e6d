"""The text form of a server's limit, such as `requests=60/min:burst=5`, and the rule that it names.

    METER=AMOUNT/PERIOD[:burst=N][:kind=bucket|sliding|counter|fixed|calendar|anchored][:zone=NAME]
        [:charge=estimate|usage][:when=arrival|completion][:refund=yes|no][:tick=DURATION]
        [:phase=DURATION][:name=TEXT]
    concurrency=N[:name=TEXT]

Amounts are `500`, `40k`, `2M`; periods `s`, `min`, `h`, `day`, `month`, `3s`, `10min`, `250ms`. Without
`kind=` the limit is a bucket, of `burst=` units or else of the amount. An error points at the character.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, TypeVar, get_args
from zoneinfo import ZoneInfo

from headgate.simulator.durations import parse_duration
from headgate.simulator.rules import (
    AnchoredWindow,
    Concurrency,
    FixedWindow,
    Rule,
    SlidingCounter,
    SlidingLog,
    TokenBucket,
)
from headgate.simulator.windows import Calendar, CalendarUnit, Grid

Kind = Literal["bucket", "sliding", "counter", "fixed", "calendar", "anchored", "concurrency"]
Charge = Literal["estimate", "usage"]
When = Literal["arrival", "completion"]

# Say how the caller should treat the limit; the same text describes both sides, so they are let pass.
CALLER_OPTIONS = frozenset({"start", "error", "transit"})

_T = TypeVar("_T")

_METER = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)([kM]?)")
_FACTOR = {"": 1, "k": 1_000, "M": 1_000_000}
_TIMED: tuple[Kind, ...] = ("bucket", "sliding", "counter", "fixed", "calendar", "anchored")
_KINDS: dict[str, tuple[Kind, ...]] = {
    "burst": ("bucket",),
    "tick": ("bucket",),
    "phase": ("bucket", "counter", "fixed"),
    "zone": ("calendar",),
    "name": (*_TIMED, "concurrency"),
}


class SpecError(ValueError):
    """A limit's text cannot be read: `reason`, and the `position` in `text` it is about, from 0."""

    def __init__(self, text: str, position: int, reason: str) -> None:
        super().__init__(text, position, reason)
        self.text = text
        self.position = position
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason}\n  {self.text}\n  {' ' * self.position}^"


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSpec:
    """One limit of a server, as declared.

    `charge`, `when` and `refund` together say what a call costs:

    - estimate, arrival: the server's estimate, charged at arrival and kept.
    - estimate, completion: the same estimate, charged when the answer is done.
    - usage, arrival: the estimate is reserved at arrival; when the answer is done, a shortfall is charged
      and an excess is given back, the latter only with `refund`.
    - usage, completion: the real usage, charged when the answer is done.

    A limit charged at completion admits a call while one unit is left.
    """

    text: str
    name: str
    meter: str
    kind: Kind
    amount: int
    period_us: int = 0
    burst: int | None = None
    unit: CalendarUnit | None = None
    zone: str = "UTC"
    charge: Charge = "estimate"
    when: When = "arrival"
    refund: bool = False
    tick_us: int = 1
    phase_us: int = 0


def parse_limit(text: str) -> LimitSpec:
    """Read one limit. Its `name`, if not given, is the text up to the first option. Raises SpecError."""
    head, *rest = _fields(text)
    meter, amount, period = _read_head(text, head)
    options = {option: (position, value) for option, position, value in _read_options(text, rest)}
    kind: Kind = "concurrency"
    if period:
        kind = options["kind"][1] if "kind" in options else "bucket"
    for option, (position, value) in options.items():
        kinds = _KINDS.get(option, _TIMED)
        if kind not in kinds:
            expected = "a meter with a period" if kinds == _TIMED else f"kind={' or '.join(kinds)}"
            raise SpecError(text, position, f"{option}= goes with {expected}, not with {kind}")
        if option == "refund" and value and options.get("charge", (0, "estimate"))[1] == "estimate":
            raise SpecError(text, position, "an estimate is never refunded: refund=yes needs charge=usage")
    fields: dict[str, Any] = {"name": head[1], "refund": options.get("charge", (0, None))[1] == "usage"}
    fields |= {_OPTIONS[option][0]: value for option, (_, value) in options.items()} | {"kind": kind}
    if period:
        fields |= _read_period(text, *period, kind)
    return LimitSpec(text=text, meter=meter, amount=amount, **fields)


def make_rule(spec: LimitSpec) -> Rule:
    """Return a fresh rule that enforces the limit."""
    match spec.kind:
        case "bucket":
            return TokenBucket(
                spec.amount, spec.period_us, spec.burst, tick_us=spec.tick_us, phase_us=spec.phase_us
            )
        case "sliding":
            return SlidingLog(spec.amount, spec.period_us)
        case "counter":
            return SlidingCounter(spec.amount, spec.period_us, spec.phase_us)
        case "fixed":
            return FixedWindow(spec.amount, Grid(spec.period_us, spec.phase_us))
        case "calendar":
            return FixedWindow(spec.amount, Calendar(spec.unit or "day", spec.zone))
        case "anchored":
            return AnchoredWindow(spec.amount, spec.period_us)
        case "concurrency":
            return Concurrency(spec.amount)


def _fields(text: str) -> Iterator[tuple[int, str]]:
    """Split at colons, each part with its position."""
    position = 0
    for field in text.split(":"):
        yield position, field
        position += len(field) + 1


def _read_head(text: str, head: tuple[int, str]) -> tuple[str, int, tuple[int, str] | None]:
    """Read `METER=AMOUNT/PERIOD` as meter, amount and the period with its position, None for slots."""
    _, field = head
    meter, equals, rest = field.partition("=")
    if not _METER.fullmatch(meter):
        raise SpecError(text, 0, f"expected a meter such as requests or tokens, got {meter!r}")
    if not equals:
        raise SpecError(text, len(field), f"expected =AMOUNT after {meter!r}")
    at = len(meter) + 1
    amount_text, slash, period = rest.partition("/")
    amount = _at(text, at, _amount, amount_text)
    at += len(amount_text)
    if meter == "concurrency":
        if slash:
            raise SpecError(text, at, "concurrency= takes a number of slots and no period")
        return meter, amount, None
    if not slash:
        raise SpecError(text, at, "expected /PERIOD after the amount, such as /s, /min or /10s")
    return meter, amount, (at + 1, period)


def _read_period(text: str, at: int, period: str, kind: Kind) -> dict[str, Any]:
    """Read the period as the fields of a LimitSpec that hold it."""
    if kind == "calendar":
        if period not in get_args(CalendarUnit):
            raise SpecError(text, at, f"expected h, day or month with kind=calendar, got {period!r}")
        return {"unit": period}
    if period == "month":
        raise SpecError(text, at, "months differ in length: a monthly limit needs kind=calendar")
    return {"period_us": _at(text, at, _duration, period)}


def _read_options(text: str, fields: list[tuple[int, str]]) -> Iterator[tuple[str, int, Any]]:
    """Read `name=value` fields as (name, position, value), without the caller's options."""
    seen = set()
    for position, field in fields:
        option, equals, value = field.partition("=")
        if option in CALLER_OPTIONS and equals:
            continue
        if option not in _OPTIONS:
            known = ", ".join(_OPTIONS)
            raise SpecError(text, position, f"unknown option {option!r}; expected one of {known}")
        if not equals:
            raise SpecError(text, position + len(option), f"expected = after {option!r}")
        if option in seen:
            raise SpecError(text, position, f"{option}= is given twice")
        seen.add(option)
        yield option, position, _at(text, position + len(option) + 1, _OPTIONS[option][1], value)


def _at(text: str, position: int, read: Callable[[str], _T], value: str) -> _T:
    """Read one value; what is wrong with it is told with its place."""
    try:
        return read(value)
    except ValueError as error:
        raise SpecError(text, position, str(error)) from None


def _amount(value: str) -> int:
    match = _AMOUNT.fullmatch(value)
    amount = Decimal(match[1]) * _FACTOR[match[2]] if match else Decimal(0)
    if amount <= 0 or amount != int(amount):
        raise ValueError(f"expected a whole amount of at least 1, such as 500, 40k or 2M, got {value!r}")
    return int(amount)


def _duration(value: str) -> int:
    length_us = parse_duration(value)
    if not length_us:
        raise ValueError(f"expected more than no time, got {value!r}")
    return length_us


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (OSError, ValueError, KeyError):
        raise ValueError(f"expected an IANA time zone such as Europe/Berlin, got {value!r}") from None
    return value


def _name(value: str) -> str:
    if not value:
        raise ValueError("expected a name")
    return value


def _choice(*choices: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in choices:
            raise ValueError(f"expected {' or '.join(choices)}, got {value!r}")
        return value

    return read


def _yes_or_no(value: str) -> bool:
    return _choice("yes", "no")(value) == "yes"


# What each option is called in LimitSpec, and how its value is read.
_OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "burst": ("burst", _amount),
    "kind": ("kind", _choice(*_TIMED)),
    "zone": ("zone", _zone),
    "charge": ("charge", _choice(*get_args(Charge))),
    "when": ("when", _choice(*get_args(When))),
    "refund": ("refund", _yes_or_no),
    "tick": ("tick_us", _duration),
    "phase": ("phase_us", parse_duration),
    "name": ("name", _name),
}
