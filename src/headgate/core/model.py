"""The words that cross boundaries: limits, instants, signals, decisions.

Only data. How a limit is kept is in ``limits/``, how a call is decided in ``decide``.
Units and times are integers here (``_us`` is microseconds); the public surface speaks float seconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeAlias

from headgate.errors import ConfigurationError

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 3600 * SECOND
DAY = 24 * HOUR

NEVER = 1 << 52
"""An instant that does not come by itself: something has to be settled first."""

LARGEST_AMOUNT = 10**12
"""Above it, intermediate results would leave the 53 bits that every store can compute with."""

Kind: TypeAlias = Literal["bucket", "sliding", "fixed", "anchored", "calendar", "concurrency", "unknown"]
CalendarUnit: TypeAlias = Literal["hour", "day", "month"]
Outcome: TypeAlias = Literal["answered", "lost", "unsent"]
Costs: TypeAlias = tuple[int, ...]
"""What one call costs on each rule of a plan, in the plan's order."""


new = tuple.__new__
"""``new(Now, (1, 2))`` is ``Now(1, 2)`` at half its price; for what every call makes."""


class Now(NamedTuple):
    """One reading of a store's clocks.

    ``elapsed_us`` only ever runs forward and says how much time passes; ``wall_us`` is Unix time and
    says where clock-grid and calendar edges lie.
    """

    elapsed_us: int
    wall_us: int


_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*\Z")
PERIODS_US: Mapping[str, int] = MappingProxyType(
    {"s": SECOND, "min": MINUTE, "h": HOUR, "day": DAY, "month": 30 * DAY}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One rule of the *server*, on one meter.

    Declare what the server does; headgate chooses how to stay under it. ``parse_limit`` reads the
    short form, such as ``requests=500/min:burst=20``.

    Attributes:
        meter: what it counts: ``requests``, ``tokens``, ``images`` or any other name.
        amount: units per period (for ``concurrency``: slots), 1 to 10^12.
        period_us: length of the period in microseconds; 0 for ``concurrency``. A calendar day or
            month has the length that the calendar gives it; here stands its longest.
        kind: ``bucket`` (refills continuously up to ``burst``), ``sliding`` (at most ``amount`` in
            any period), ``fixed`` (windows on the clock grid), ``anchored`` (a window opens at the
            first use), ``calendar`` (hour, day or month in ``zone``), ``concurrency``, ``unknown``.
        burst: size of the bucket; only for ``bucket``.
        calendar: which calendar unit; only for ``calendar``.
        zone: IANA name of the zone that a calendar window follows.
        charge: ``estimate``, the server keeps what it reserved by its own formula; ``usage``, what
            counts in the end is what was really used.
        when: the server charges on ``arrival`` or on ``completion``.
        refund: the server gives back what it reserved too much. Follows ``charge`` if None.
        start: what to believe at first use: ``auto``, ``empty`` (nothing left), ``full``, or a
            number of units already used.
        name: how people call it; made of the meter and period if empty.
        max_transit_us: longest time from grant to the server's limiter; None for the default that
            the rule's docstring states.
        clock_error_us: how far the server's clock may be from ours, for ``fixed`` and ``calendar``;
            None for 5 ms and 1 s.

    Raises:
        ConfigurationError: values that contradict each other.
    """

    meter: str
    amount: int
    period_us: int = 0
    kind: Kind = "unknown"
    burst: int | None = None
    calendar: CalendarUnit | None = None
    zone: str = "UTC"
    charge: Literal["estimate", "usage"] = "estimate"
    when: Literal["arrival", "completion"] = "arrival"
    refund: bool | None = None
    start: Literal["auto", "empty", "full"] | int = "auto"
    name: str = ""
    max_transit_us: int | None = None
    clock_error_us: int | None = None

    def __post_init__(self) -> None:
        if not _NAME.match(self.meter):
            raise ConfigurationError(
                "a meter is named by letters, digits, '_' and '-', starting with a letter; "
                f"got {self.meter!r}"
            )
        if not 1 <= self.amount <= LARGEST_AMOUNT:
            raise ConfigurationError(f"{self.meter}: the amount is 1 to 10^12 units; got {self.amount}")
        if self.burst is not None and not 1 <= self.burst <= LARGEST_AMOUNT:
            raise ConfigurationError(f"{self.meter}: burst is 1 to 10^12 units; got {self.burst}")
        if (self.burst is not None) != (self.kind == "bucket"):
            raise ConfigurationError(
                f"{self.meter}: burst goes with kind=bucket, and only with it; "
                f"got kind={self.kind}, burst={self.burst}"
            )
        if (self.calendar is not None) != (self.kind == "calendar"):
            raise ConfigurationError(
                f"{self.meter}: kind=calendar takes a period of an hour, a day or a month"
            )
        if (self.kind == "concurrency") != (self.period_us == 0):
            raise ConfigurationError(f"{self.meter}: kind={self.kind} with a period of {self.period_us} µs")
        if self.kind != "concurrency" and not 1_000 <= self.period_us <= 400 * DAY:
            raise ConfigurationError(
                f"{self.meter}: a period lasts 1 ms to 400 days; got {self.period_us} µs"
            )
        if isinstance(self.start, int) and self.start < 0:
            raise ConfigurationError(f"{self.meter}: start=used:N takes N >= 0; got {self.start}")
        if self.max_transit_us is not None and not 0 < self.max_transit_us <= HOUR:
            raise ConfigurationError(
                f"{self.meter}: max_transit is above 0 and at most an hour; "
                f"got {self.max_transit_us / SECOND} s"
            )
        if self.clock_error_us is not None and not 0 <= self.clock_error_us <= self.period_us // 4:
            raise ConfigurationError(
                f"{self.meter}: the clock's error is at most a quarter of the period; "
                f"got {self.clock_error_us} µs"
            )
        if not self.name:
            object.__setattr__(self, "name", self._default_name())

    def _default_name(self) -> str:
        if self.kind == "concurrency":
            return self.meter
        if self.calendar:
            return f"{self.meter}/{self.calendar}"
        for period, us in PERIODS_US.items():
            if us == self.period_us:
                return f"{self.meter}/{period}"
        if self.period_us % SECOND:
            return f"{self.meter}/{self.period_us // 1000}ms"
        return f"{self.meter}/{self.period_us // SECOND}s"

    @property
    def settles_to_usage(self) -> bool:
        """What counts in the end is what was used, not what was reserved."""
        return self.charge == "usage" if self.refund is None else self.refund

    @property
    def held_to_answer(self) -> bool:
        """Only the answer proves the charge: it may come, or change, at any time until then."""
        return self.settles_to_usage or self.when == "completion"

    @property
    def outlives_process(self) -> bool:
        """Long enough that forgetting it at exit would break it."""
        return self.period_us > HOUR


class Reading(NamedTuple):
    """What one answer said of one limit of the server.

    ``limit`` is the stated size, ``remaining`` the units left after this call, ``reset_us`` the time
    until the stated reset; each None if not stated.
    """

    meter: str
    limit: int | None
    remaining: int | None
    reset_us: int | None


class Throttle(NamedTuple):
    """The server refused a call for its rate.

    ``meter`` is the meter it named, or None; ``retry_after_us`` what it asked for, or None;
    ``until_edge`` says that the window (a day, a month) is used up, so that it opens at its next edge.
    """

    meter: str | None = None
    retry_after_us: int | None = None
    until_edge: bool = False


_NOTHING: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Signal:
    """What became of a call, as far as it tells about limits.

    Attributes:
        outcome: ``answered`` (the server spoke, so it has decided), ``lost`` (no proof of anything:
            it may have been charged, or may yet be), ``unsent`` (it never left).
        charged: meter → units that the server says it charged.
        usage: meter → units really used.
        readings: what rate-limit fields of the answer said.
        throttle: set if the server refused it for its rate.
    """

    outcome: Outcome = "answered"
    charged: Mapping[str, int] = field(default_factory=lambda: _NOTHING)
    usage: Mapping[str, int] = field(default_factory=lambda: _NOTHING)
    readings: tuple[Reading, ...] = ()
    throttle: Throttle | None = None


ANSWERED = Signal()
LOST = Signal("lost")
UNSENT = Signal("unsent")


class Granted(NamedTuple):
    """Yes: send it now.

    ``at_us`` is the instant of the grant and ``use_before_us`` the last at which it may leave (both on
    the store's elapsed clock; NEVER if nothing depends on it). The rest is for the settlement: what each
    rule wants back, the grant's instant in steady time, whether it probes a limit that is shut, and which
    life of its client it was given to (0 where nobody else draws on the key).
    """

    costs: Costs
    at_us: int
    use_before_us: int
    marks: tuple[tuple[int, ...], ...]
    steady_us: int
    probe: bool = False
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Wait:
    """Not yet: nothing was charged.

    ``until_us`` is the earliest instant (elapsed clock) at which it would be granted if nothing else
    happens, NEVER if it takes an answer first; ``rule`` is the index of the limit that is in the way.
    ``firm`` says that no :data:`ANSWERED` makes it any earlier, so that nobody need ask again for one; two
    that say the same otherwise are equal.
    """

    until_us: int
    rule: int
    firm: bool = field(default=False, compare=False)


class Refused(NamedTuple):
    """Never: the cost is above ``largest``, the most that rule ``rule`` can carry."""

    rule: int
    largest: int


Decision: TypeAlias = Granted | Wait | Refused


class Report(NamedTuple):
    """The settlement of one grant."""

    grant: Granted
    signal: Signal
