"""Servers as exact as arithmetic allows, written from their rules and not from headgate's.

Time is true time in integer microseconds, units are integers, and nothing is rounded: a fraction is kept
by its numerator. Each server says what would be refused (``fits``), charges (``charge``) and takes a part
of a charge back (``refund``).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo

Receipt = int
"""Identifies a charge, for its refund."""


class Server(Protocol):
    """One limiter on one meter."""

    def fits(self, at: int, cost: int) -> bool: ...
    def charge(self, at: int, cost: int) -> Receipt: ...
    def refund(self, at: int, receipt: Receipt, units: int) -> None: ...
    def remaining(self, at: int) -> int: ...
    @property
    def stated_limit(self) -> int:
        """What it calls its limit in its answers."""


class Bucket:
    """``burst`` units deep, refilled continuously by ``amount`` per ``period``. Starts full unless told."""

    def __init__(
        self, amount: int, period: int, burst: int, *, level: int | None = None, at: int = 0
    ) -> None:
        self.amount, self.period = amount, period
        self.full = burst * period
        self.level = self.full if level is None else level * period
        self.at = at
        self.stated_limit = burst

    def _refill(self, at: int) -> None:
        self.level = min(self.full, self.level + (at - self.at) * self.amount)
        self.at = at

    def fits(self, at: int, cost: int) -> bool:
        self._refill(at)
        return self.level >= cost * self.period

    def charge(self, at: int, cost: int) -> Receipt:
        self._refill(at)
        self.level -= cost * self.period
        return 0

    def refund(self, at: int, receipt: Receipt, units: int) -> None:
        self._refill(at)
        self.level = min(self.full, self.level + units * self.period)

    def remaining(self, at: int) -> int:
        self._refill(at)
        return max(self.level // self.period, 0)


class TickedBucket:
    """``burst`` deep; every ``tick`` microseconds, ``quantum`` units are poured in at once."""

    def __init__(self, quantum: int, tick: int, burst: int, *, phase: int = 0) -> None:
        self.quantum, self.tick, self.burst, self.phase = quantum, tick, burst, phase
        self.level = burst
        self.ticks = -phase // tick
        self.stated_limit = burst

    def _refill(self, at: int) -> None:
        ticks = (at - self.phase) // self.tick
        self.level = min(self.burst, self.level + (ticks - self.ticks) * self.quantum)
        self.ticks = ticks

    def fits(self, at: int, cost: int) -> bool:
        self._refill(at)
        return self.level >= cost

    def charge(self, at: int, cost: int) -> Receipt:
        self._refill(at)
        self.level -= cost
        return 0

    def refund(self, at: int, receipt: Receipt, units: int) -> None:
        self._refill(at)
        self.level = min(self.burst, self.level + units)

    def remaining(self, at: int) -> int:
        self._refill(at)
        return max(self.level, 0)


class SlidingLog:
    """At most ``amount`` units in any half-open interval of ``period``."""

    def __init__(self, amount: int, period: int) -> None:
        self.amount, self.period = amount, period
        self.log: dict[int, list[int]] = {}  # receipt → [instant, units], oldest first
        self.total = 0
        self.count = 0
        self.stated_limit = amount

    def _forget(self, at: int) -> None:
        for receipt, (since, units) in list(self.log.items()):
            if since > at - self.period:
                break
            del self.log[receipt]
            self.total -= units

    def fits(self, at: int, cost: int) -> bool:
        if self.total + cost > self.amount:
            self._forget(at)
        return self.total + cost <= self.amount

    def charge(self, at: int, cost: int) -> Receipt:
        self.count += 1
        self.log[self.count] = [at, cost]
        self.total += cost
        return self.count

    def refund(self, at: int, receipt: Receipt, units: int) -> None:
        entry = self.log.get(receipt)
        if entry:
            entry[1] -= units
            self.total -= units

    def remaining(self, at: int) -> int:
        self._forget(at)
        return max(self.amount - self.total, 0)


class Grid:
    """At most ``amount`` units in each window of ``period``; the windows lie on a grid."""

    def __init__(self, amount: int, period: int, *, phase: int = 0) -> None:
        self.amount, self.period, self.phase = amount, period, phase
        self.window: object = None
        self.used = 0
        self.stated_limit = amount
        self.receipts: dict[object, int] = {}

    def _window(self, at: int) -> object:
        return (at - self.phase) // self.period

    def _turn(self, at: int) -> None:
        window = self._window(at)
        if window != self.window:
            self.window, self.used = window, 0

    def fits(self, at: int, cost: int) -> bool:
        self._turn(at)
        return self.used + cost <= self.amount

    def charge(self, at: int, cost: int) -> Receipt:
        self._turn(at)
        self.used += cost
        return self.receipts.setdefault(self.window, len(self.receipts))

    def refund(self, at: int, receipt: Receipt, units: int) -> None:
        if self.receipts.get(self.window) == receipt:
            self.used -= units

    def remaining(self, at: int) -> int:
        self._turn(at)
        return max(self.amount - self.used, 0)


class Anchored(Grid):
    """At most ``amount`` units in each window of ``period``, which opens at the first call after the last."""

    def __init__(self, amount: int, period: int) -> None:
        super().__init__(amount, period)
        self.opened: int | None = None

    def _window(self, at: int) -> object:
        if self.opened is None or at >= self.opened + self.period:
            self.opened = at
        return self.opened


class Calendar(Grid):
    """At most ``amount`` units in each hour, day or month as a clock on the wall there names it.

    ``skew`` is how far that clock goes ahead of the true time, ``epoch`` the Unix time of instant 0.
    """

    def __init__(self, amount: int, unit: str, zone: str, *, epoch: int = 0, skew: int = 0) -> None:
        super().__init__(amount, 1)
        self.unit, self.zone, self.shift = unit, ZoneInfo(zone), epoch + skew

    def _window(self, at: int) -> object:
        utc = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at + self.shift)
        local = utc.astimezone(self.zone)
        return {
            "month": (local.year, local.month),
            "day": (local.year, local.month, local.day),
            "hour": (local.year, local.month, local.day, local.hour, local.fold),
        }[self.unit]


class SlidingCounter:
    """The previous window's count, weighted by how much of it still overlaps, plus the current one's."""

    def __init__(self, amount: int, period: int, *, phase: int = 0) -> None:
        self.amount, self.period, self.phase = amount, period, phase
        self.window = 0
        self.before = self.used = 0
        self.stated_limit = amount

    def _turn(self, at: int) -> None:
        window = (at - self.phase) // self.period
        if window != self.window:
            self.before = self.used if window == self.window + 1 else 0
            self.window, self.used = window, 0

    def _counted(self, at: int) -> int:
        """Estimate times ``period``."""
        self._turn(at)
        into = (at - self.phase) % self.period
        return self.before * (self.period - into) + self.used * self.period

    def fits(self, at: int, cost: int) -> bool:
        return self._counted(at) + cost * self.period <= self.amount * self.period

    def charge(self, at: int, cost: int) -> Receipt:
        self._turn(at)
        self.used += cost
        return self.window

    def refund(self, at: int, receipt: Receipt, units: int) -> None:
        self._turn(at)
        if receipt == self.window:
            self.used -= units
        elif receipt == self.window - 1:
            self.before -= units

    def remaining(self, at: int) -> int:
        return max(self.amount - -(-self._counted(at) // self.period), 0)


class Slots:
    """At most ``amount`` at the same time; a refund is the end of a call."""

    def __init__(self, amount: int) -> None:
        self.stated_limit = self.amount = amount
        self.busy = 0

    def fits(self, at: int, cost: int) -> bool:
        return self.busy + cost <= self.amount

    def charge(self, at: int, cost: int) -> Receipt:
        self.busy += cost
        return 0

    def refund(self, at: int, receipt: Receipt, units: int) -> None:
        self.busy -= units

    def remaining(self, at: int) -> int:
        return self.amount - self.busy
