"""One caller against exact servers, in virtual time, with whatever lies between at its worst.

A heap of events and nothing else; the same seed gives the same run. The caller always has work, but for the
gaps of the second half; grants that lie too long are given back; some answers are lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random
from typing import Literal, TypeAlias

from headgate.core.decide import acquire, fresh, settle
from headgate.core.model import LOST, NEVER, SECOND, UNSENT, Costs, Granted, Now, Report, Signal, Wait
from headgate.core.plan import Plan
from headgate.core.text import parse_limits
from tests.core.servers import Server

JITTERS = ("uniform", "two-point", "adversarial")
Jitter: TypeAlias = Literal["uniform", "two-point", "adversarial"]
WALL = 1_792_800_000_000_000
"""Unix time of instant 0: 23 October 2026, so that clocks go back within the first fortnight."""
ELAPSED = 10**9


@dataclass(frozen=True)
class Row:
    """A pair of the table.

    Attributes:
        server, client: their names in the table.
        limits: what the caller declares.
        build: the servers, one for each limit, made with a random phase.
        bound: long-run utilisation that theory allows, from the mean hold in seconds.
        ideal: the server's long-run maximum, units of the first limit per second.
        costs: of one call, drawn.
        calls: how many to make for each model of jitter.
        longest_service: answers take from 0 to this many seconds; a third of ``D`` if None.
    """

    server: str
    client: str
    limits: tuple[str, ...]
    build: Callable[[Random], Sequence[Server]]
    bound: Callable[[float], float]
    ideal: float
    costs: Callable[[Random], Costs] = lambda _: (1,)
    calls: int = 6_800
    longest_service: float | None = None
    skip_seconds: float = 20.0

    @property
    def name(self) -> str:
        return f"{self.server} / {self.client}"


@dataclass
class Outcome:
    """What one run came to."""

    row: str
    jitter: str
    calls: int = 0
    refused: int = 0
    unsent: int = 0
    lost: int = 0
    utilisation: float = 0.0
    mean_hold: float = 0.0
    bound: float = 0.0
    first_refusal: str = ""


@dataclass
class Call:
    grant: Granted
    costs: Costs
    used: Costs = ()
    receipts: list[int] = field(default_factory=list)
    lost: bool = False
    service: int = 0


class Run:
    """One pair, one model of jitter."""

    def __init__(self, row: Row, jitter: str, seed: str) -> None:
        self.row, self.jitter = row, jitter
        self.random = Random(f"{seed} {row.name} {jitter}")
        self.plan = Plan(parse_limits(row.limits))
        self.servers = row.build(self.random)
        self.now = 0
        self.state = fresh(self.plan, self._clock(0))
        transits = [rule.transit_us for rule in self.plan.rules if rule.transit_us]
        self.transit = min(transits, default=SECOND)
        self.period = max(self.plan.limits[0].period_us, SECOND)
        self.service = (
            self.transit // 3 if row.longest_service is None else round(row.longest_service * SECOND)
        )
        self.slots = any(limit.kind == "concurrency" for limit in self.plan.limits)
        self.usage = [limit.settles_to_usage for limit in self.plan.limits]
        self.late = [limit.when == "completion" for limit in self.plan.limits]
        self.events: list[tuple[int, int, int, Call]] = []
        self.serial = 0
        self.outcome = Outcome(row.name, jitter)
        self.accepted = 0
        self.measured_from = self.measured_to = 0
        self.hold_sum = self.holds = 0

    def _clock(self, at: int) -> Now:
        return Now(at + ELAPSED, at + WALL)

    def run(self) -> Outcome:
        row, out = self.row, self.outcome
        half = row.calls // 2
        skip = round(row.skip_seconds * SECOND)
        resumes = 0  # idle until then
        waiting = [row.costs(self.random) for _ in range(16)]
        wake = 0
        next_gap = half
        while out.calls < row.calls:
            due = self.events[0][0] if self.events else NEVER
            self.now = at = min(due, max(wake, resumes))
            if at >= NEVER:
                raise AssertionError(f"{row.name}: nobody will ever wake the caller")
            asks = at >= max(wake, resumes)
            while self.events and self.events[0][0] <= at:
                asks = self._happen() or asks
            if at < resumes:
                continue
            if out.calls >= next_gap:  # the second half has gaps, and nothing is measured
                if self.measured_to == 0:
                    self.measured_to = at
                next_gap = out.calls + self.random.choice((5, 40, 200, 400))
                resumes = at + self.random.choice(
                    (self.transit, self.period // 2, self.period, 3 * self.period + 1)
                )
                wake = resumes
                continue
            if self.measured_from == 0 and at >= skip:
                self.measured_from = at
            while asks:
                answers = acquire(self.plan, waiting, self.state, self._clock(at))
                for answer in answers:
                    if type(answer) is not Granted:
                        break
                    self._send(answer, waiting.pop(0))
                waiting += [row.costs(self.random) for _ in range(16 - len(waiting))]
                last = answers[-1]
                if isinstance(last, Wait):
                    wake = last.until_us if last.until_us >= NEVER else last.until_us - ELAPSED
                    break
        self._finish()
        return out

    def _finish(self) -> None:
        out = self.outcome
        span = (self.measured_to or self.now) - self.measured_from
        out.utilisation = self.accepted / (self.row.ideal * span / SECOND) if span > 0 else 0.0
        out.mean_hold = self.hold_sum / max(self.holds, 1) / SECOND
        out.bound = self.row.bound(out.mean_hold)

    def _send(self, grant: Granted, costs: Costs) -> None:
        rnd, out, at = self.random, self.outcome, self.now
        out.calls += 1
        call = Call(grant, costs)
        chance = rnd.random()
        measuring = self.measured_to == 0
        if chance < 0.005 and not measuring and grant.use_before_us < NEVER:  # we stalled, and give it back
            out.unsent += 1
            self._push(at + (grant.use_before_us - grant.at_us) + rnd.randint(0, 3 * self.transit), 2, call)
            return
        call.lost = chance > 0.995
        out.lost += call.lost
        call.service = rnd.randint(0, self.service)
        self._push(at + self._delay(at), 0, call)
        if call.lost and not self.slots:
            self._push(at + rnd.choice((0, 1, self.transit, 2 * self.transit)), 3, call)

    def _delay(self, at: int) -> int:
        longest = self.transit
        if self.jitter == "uniform":
            return self.random.randint(0, longest)
        if self.jitter == "two-point":
            return self.random.choice((0, longest))
        match at // self.period % 4:
            case 0:  # everything late, so that it meets what is early in the next period
                return longest
            case 1:
                return 0
            case 2:  # all released at once
                return -at % longest
            case _:  # to the very edge of the server's window, or just over it
                phase = getattr(self.servers[0], "phase", 0)
                to_edge = (phase - at) % self.period
                return to_edge if to_edge <= longest else longest if at % 2 else 0

    def _push(self, at: int, phase: int, call: Call) -> None:
        self.serial += 1
        heappush(self.events, (at, phase, self.serial, call))

    def _happen(self) -> bool:
        """The next event; True if the caller has heard of it."""
        at, phase, _, call = heappop(self.events)
        if phase == 0:
            self._arrive(call, at)
            return False
        if phase == 1:
            self._complete(call, at)
            if call.lost and not self.slots:
                return False
            usage = {
                limit.meter: used
                for limit, used, counts in zip(self.plan.limits, call.used, self.usage, strict=True)
                if counts
            }
            signal = LOST if call.lost else Signal(usage=usage) if usage else _ANSWERED
        else:
            signal = UNSENT if phase == 2 else LOST
        granted = call.grant.at_us - ELAPSED
        self.hold_sum += min(at - granted, self.transit) if not self.usage[0] else at - granted
        self.holds += 1
        settle(self.plan, [Report(call.grant, signal)], self.state, self._clock(at))
        return True

    def _arrive(self, call: Call, at: int) -> None:
        for server, cost in zip(self.servers, call.costs, strict=True):
            if cost and not server.fits(at, cost):
                self.outcome.refused += 1
                self.outcome.first_refusal = self.outcome.first_refusal or (
                    f"at {at} by {type(server).__name__}: cost {cost}, {server.remaining(at)} left, "
                    f"granted at {call.grant.at_us - ELAPSED}"
                )
        call.receipts = [
            server.charge(at, cost) if cost and not late else 0
            for server, cost, late in zip(self.servers, call.costs, self.late, strict=True)
        ]
        call.used = tuple(
            self.random.randint(0, cost) if counts else cost
            for cost, counts in zip(call.costs, self.usage, strict=True)
        )
        if self.measured_from and not self.measured_to:
            self.accepted += call.used[0]
        self._push(at + call.service, 1, call)

    def _complete(self, call: Call, at: int) -> None:
        rows = zip(
            self.plan.limits, self.servers, call.costs, call.used, call.receipts, self.late, strict=True
        )
        for limit, server, cost, used, receipt, late in rows:
            if limit.kind == "concurrency":
                server.refund(at, receipt, cost)
            elif late:
                self.outcome.refused += not server.fits(at, used)
                server.charge(at, used)
            elif used < cost:
                server.refund(at, receipt, cost - used)


_ANSWERED = Signal()


def simulate(job: tuple[int, str, str]) -> Outcome:
    """For a pool of processes: the row's place, the model of jitter, the seed."""
    from tests.simulation.rows import ROWS

    place, jitter, seed = job
    return Run(ROWS[place], jitter, seed).run()
