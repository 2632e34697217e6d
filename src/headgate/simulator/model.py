"""A server with several limits, in virtual time: no clock, no sockets.

All limits of a call are asked at one instant; all are charged, or none. The instant is an argument, in
microseconds since 1970; one that lies before the latest seen is taken as the latest.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from headgate.simulator.headers import Reading, openai_headers
from headgate.simulator.rules import Rule
from headgate.simulator.spec import LimitSpec, make_rule, parse_limit
from headgate.simulator.tally import LimitTally, Tally

# What a call costs on a meter that its costs do not name.
_DEFAULT_COSTS = {"requests": 1, "concurrency": 1}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to one arrival.

    `refused_by` is the refusing limit that takes longest to admit the call, and `requested` the call's cost
    there; `retry_after_us` is the exact time until all limits would admit it, left alone, or None if no
    time can be told: a slot is missing, or the cost is above what a limit can ever carry (`never_fits`).
    """

    number: int
    arrived_us: int
    accepted: bool
    readings: tuple[Reading, ...]
    refused_by: str | None = None
    retry_after_us: int | None = None
    refusal: Reading | None = None
    requested: int = 0

    @property
    def never_fits(self) -> bool:
        """True if the call costs more than the refusing limit can ever carry."""
        return self.refusal is not None and self.requested > self.refusal.limit

    @property
    def headers(self) -> dict[str, str]:
        """The rate limit headers, in OpenAI's dialect."""
        return openai_headers(self.readings, self.retry_after_us)


@dataclass(slots=True)
class _Limit:
    """One limit at work."""

    spec: LimitSpec
    rule: Rule
    tally: LimitTally

    def reading(self, now_us: int) -> Reading:
        rule = self.rule
        remaining = max(0, rule.remaining(now_us))
        return Reading(self.spec.meter, rule.capacity, remaining, rule.reset_us(now_us))


@dataclass(slots=True)
class _Charge:
    """What an accepted call still owes one limit: its cost, and how much of it was charged at arrival."""

    limit: _Limit
    cost: int
    charged: int


@dataclass(slots=True)
class _Counts:
    """Everything a reset of the tally forgets."""

    accepted: int = 0
    refused: int = 0
    refused_by: Counter[str] = field(default_factory=Counter)
    peak_in_flight: int = 0
    first_us: int | None = None
    last_us: int = 0


class ServerModel:
    """A rate-limited server: ask it with `arrive`, end what it accepted with `complete`."""

    def __init__(self, limits: Iterable[str | LimitSpec] = (), *, count_refused: bool = False) -> None:
        """Declare the server.

        `limits`: texts (see `spec`) or specs; none admits everything. Names must differ.
        `count_refused`: a refused call is charged too, on every limit but slots and those charged at
        completion, as several providers do; a limit's debt stops at its capacity.

        Raises SpecError, and ValueError for two limits of one name.
        """
        self.specs = tuple(parse_limit(limit) if isinstance(limit, str) else limit for limit in limits)
        names = [spec.name for spec in self.specs]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two limits are called {name!r}: give one of them a name=")
        self._count_refused = count_refused
        self._now_us = 0
        self._number = 0
        self._open: dict[int, list[_Charge]] = {}
        self.refresh()

    @property
    def in_flight(self) -> int:
        """Calls accepted and not yet completed."""
        return len(self._open)

    def refresh(self) -> None:
        """Start afresh: every limit as if never used, and nothing counted. Open calls owe nothing more."""
        self._limits = [_Limit(spec, make_rule(spec), LimitTally(spec.period_us)) for spec in self.specs]
        self._open.clear()
        self._counts = _Counts()

    def reset_tally(self) -> None:
        """Forget what was counted; the limits stay as they are."""
        for limit in self._limits:
            limit.tally = LimitTally(limit.spec.period_us)
        self._counts = _Counts(peak_in_flight=self.in_flight)

    def arrive(self, now_us: int, costs: Mapping[str, int]) -> Verdict:
        """Judge a call that costs `{meter: units}`, and charge it if it is accepted.

        A meter that is not named costs one unit if it is `requests` or `concurrency`, else nothing. A limit
        that the call costs nothing is not asked.
        """
        now_us = self._tick(now_us)
        self._number += 1
        asked = [(limit, cost) for limit in self._limits if (cost := self._cost(limit, costs)) > 0]
        refusing = [
            (limit, cost) for limit, cost in asked if not limit.rule.admits(now_us, _asked(limit, cost))
        ]
        counts = self._counts
        if counts.first_us is None:
            counts.first_us = now_us
        counts.last_us = now_us
        if refusing:
            return self._refuse(now_us, asked, refusing)

        counts.accepted += 1
        self._open[self._number] = [self._charge(now_us, limit, cost) for limit, cost in asked]
        counts.peak_in_flight = max(counts.peak_in_flight, len(self._open))
        return Verdict(self._number, now_us, True, self._readings(now_us))

    def complete(self, now_us: int, verdict: Verdict, usage: Mapping[str, int] | None = None) -> None:
        """End an accepted call: free its slots and settle what it owes.

        `usage` is what it really used, `{meter: units}`; a meter that is not in it, or None, means the
        estimate. A second completion of one call does nothing.
        """
        now_us = self._tick(now_us)
        for charge in self._open.pop(verdict.number, ()):
            spec = charge.limit.spec
            if spec.kind == "concurrency":
                charge.limit.rule.refund(now_us, charge.charged, verdict.arrived_us)
                continue
            owed = charge.cost
            if usage is not None and spec.charge == "usage":
                owed = usage.get(spec.meter, owed)
            if owed > charge.charged:
                charge.limit.rule.charge(now_us, owed - charge.charged)
                charge.limit.tally.charged(now_us, owed - charge.charged)
            elif spec.refund and owed < charge.charged:
                charge.limit.rule.refund(now_us, charge.charged - owed, verdict.arrived_us)
                charge.limit.tally.refunded(charge.charged - owed)

    def tally(self) -> Tally:
        """Report what was seen since the start or the last reset."""
        counts = self._counts
        start_us = counts.first_us or 0
        elapsed_us = counts.last_us - start_us if counts.first_us is not None else 0
        return Tally(
            accepted=counts.accepted,
            refused=counts.refused,
            refused_by=dict(counts.refused_by),
            limits=tuple(
                limit.tally.report(
                    limit.spec.name, limit.spec.meter, limit.rule.ideal_units(elapsed_us, start_us)
                )
                for limit in self._limits
            ),
            in_flight=self.in_flight,
            peak_in_flight=counts.peak_in_flight,
            first_arrival_us=counts.first_us,
            last_arrival_us=None if counts.first_us is None else counts.last_us,
        )

    def _tick(self, now_us: int) -> int:
        self._now_us = max(self._now_us, now_us)
        return self._now_us

    def _cost(self, limit: _Limit, costs: Mapping[str, int]) -> int:
        meter = limit.spec.meter
        return costs.get(meter, _DEFAULT_COSTS.get(meter, 0))

    def _charge(self, now_us: int, limit: _Limit, cost: int) -> _Charge:
        if limit.spec.when == "completion":
            return _Charge(limit, cost, 0)
        limit.rule.charge(now_us, cost)
        limit.tally.charged(now_us, cost)
        return _Charge(limit, cost, cost)

    def _refuse(
        self, now_us: int, asked: list[tuple[_Limit, int]], refusing: list[tuple[_Limit, int]]
    ) -> Verdict:
        if self._count_refused:
            for limit, cost in asked:
                if limit.spec.kind != "concurrency" and limit.spec.when == "arrival":
                    until_full_debt = max(0, limit.rule.remaining(now_us) + limit.rule.capacity)
                    limit.rule.charge(now_us, min(cost, until_full_debt))
        wait_us = max(_wait(now_us, limit, cost) for limit, cost in asked)
        limit, cost = max(refusing, key=lambda refusal: _wait(now_us, *refusal))
        self._counts.refused += 1
        self._counts.refused_by[limit.spec.name] += 1
        return Verdict(
            self._number,
            now_us,
            False,
            self._readings(now_us),
            refused_by=limit.spec.name,
            retry_after_us=None if wait_us == math.inf else int(wait_us),
            refusal=limit.reading(now_us),
            requested=cost,
        )

    def _readings(self, now_us: int) -> tuple[Reading, ...]:
        return tuple(limit.reading(now_us) for limit in self._limits)


def _asked(limit: _Limit, cost: int) -> int:
    """What must be left at arrival: the cost, or one unit where it is charged when the answer is done."""
    return cost if limit.spec.when == "arrival" else 1


def _wait(now_us: int, limit: _Limit, cost: int) -> float:
    """Return the time until a limit admits a cost; infinite if it cannot be told."""
    wait_us = limit.rule.retry_after_us(now_us, _asked(limit, cost))
    return math.inf if wait_us is None else wait_us
