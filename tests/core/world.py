"""A caller who follows the core, exact servers, and whatever lies between, in virtual time.

True time is an integer of microseconds from 0. The caller sees it through a :class:`Clock`, which may jump.
Everything that the laws forbid raises AssertionError where it happens.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random
from typing import Literal

from headgate.core.clock import CROWD, FLYING, HELD
from headgate.core.decide import State, acquire, fresh, settle, used
from headgate.core.limits.fixed_window import DRIFTED, OFFSET, PASSED, FixedWindow
from headgate.core.model import NEVER, Costs, Granted, Now, Reading, Refused, Report, Signal, Throttle, Wait
from headgate.core.plan import Plan
from tests.core.servers import Server

EPOCH = 1_790_000_000_000_000
"""Unix time of instant 0: some day in September 2026."""
EXACT = 1 << 53

Delay = Literal["none", "longest", "either", "any", "bunched"]
Latency = Literal["none", "short", "long", "any", "stalls"]
Fate = Literal["answered", "mixed", "lost", "unsent", "throttled"]


@dataclass
class Clock:
    """What the caller's clocks show."""

    elapsed: int = 1_000_000_000
    wall: int = EPOCH

    def at(self, true: int) -> Now:
        return Now(true + self.elapsed, true + self.wall)


@dataclass
class Step:
    """After ``gap_us``, calls at these costs are asked for; so they fare, unless a jump comes first."""

    gap_us: int
    asks: list[Costs]
    delay: Delay = "any"
    latency: Latency = "any"
    fate: Fate = "answered"
    elapsed_jump: int = 0
    wall_jump: int = 0

    def __repr__(self) -> str:
        jumps = f", jumps {self.elapsed_jump}, {self.wall_jump}" * bool(self.elapsed_jump or self.wall_jump)
        modes = f"{self.delay}, {self.latency}, {self.fate}"
        return f"Step(+{self.gap_us}, {len(self.asks)} × {self.asks[:4]}, {modes}{jumps})"


@dataclass
class Call:
    grant: Granted
    signal: Signal
    receipts: list[int] = field(default_factory=list)
    used: Costs = ()
    throttled: bool = False
    ends: int = 0


@dataclass
class World:
    """Runs a script.

    Attributes:
        reads: the servers state what is left in every answer (``limit``: along with their size).
        careful: check promises and the state's round trip at every decision, not only refusals.
        counts_refusals: a server that refuses for its own reasons charges the call all the same.
    """

    plan: Plan
    servers: Sequence[Server]
    random: Random
    transit: int = 0
    reads: Literal["no", "remaining", "limit"] = "no"
    careful: bool = True
    counts_refusals: bool = True
    batch: int = 8
    clock: Clock = field(default_factory=Clock)
    most_calls: int = 600

    def __post_init__(self) -> None:
        self.true = 0
        self.state = fresh(self.plan, self.clock.at(0))
        self.transit = self.transit or min((r.transit_us for r in self.plan.rules if r.transit_us), default=1)
        self.queue: deque[tuple[Costs, Step]] = deque()
        self.events: list[tuple[int, int, float, int, Call]] = []
        self.serial = 0
        self.granted = self.refused = self.settled = 0
        self.told: Wait | None = None
        self.bunch_at = 0
        self.log: list[str] = []

    # the caller

    def now(self) -> Now:
        return self.clock.at(self.true)

    def run(self, steps: Iterable[Step], *, drain_us: int | None = None) -> None:
        """Play the steps, then go on until everything is answered, or for ``drain_us``."""
        end = 0
        for step in steps:
            end += step.gap_us
            self._pass_to(end)
            if self._crowded():
                self.told = None
            if step.elapsed_jump or step.wall_jump:
                self.clock.elapsed += step.elapsed_jump
                self.clock.wall += step.wall_jump
                self.told = None
            self.queue.extend((costs, step) for costs in step.asks)
        self._pass_to(NEVER if drain_us is None else end + drain_us)

    def _pass_to(self, end: int) -> None:
        while True:
            if self.granted >= self.most_calls:
                self.queue.clear()
            wake = self._ask()
            due = self.events[0][0] if self.events else NEVER
            if self.careful and self.queue:
                assert wake < NEVER or due < NEVER, f"waits for an answer that nobody owes: {self.told}"
            if min(wake, due) >= end:
                if end < NEVER:
                    self.true = max(self.true, end)
                return
            if self.careful and self.true + 1 < wake < due:
                self._check_not_before(wake)
            self.true = min(wake, due)
            if due <= wake:
                self._happen()

    def _ask(self) -> int:
        """Ask for the head of the queue until somebody has to wait; returns until when (true time)."""
        while self.queue:
            batch = [costs for costs, _ in list(self.queue)[: self.batch]]
            now = self.now()
            before = self._used() if self.careful else ()
            answers = acquire(self.plan, batch, self.state, now)
            assert len(answers) == len(batch)
            waits = False
            told, self.told = self.told, None
            for costs, answer in zip(batch, answers, strict=True):
                if isinstance(answer, Wait):
                    waits = True
                    self._check_wait(answer, now, told)
                elif isinstance(answer, Refused):
                    assert costs[answer.rule] > answer.largest == self.plan.rules[answer.rule].largest
                    self.queue.remove(next(entry for entry in self.queue if entry[0] == costs))
                else:
                    told = None
                    assert not waits, "a later ask overtook an earlier one"
                    _, step = self.queue.popleft()
                    self._send(answer, step)
            if self.careful:
                self._check_charged(before, answers)
                self._check_state()
            if waits:
                wait = self.told = next(answer for answer in answers if isinstance(answer, Wait))
                return wait.until_us if wait.until_us >= NEVER else wait.until_us - self.clock.elapsed
        return NEVER

    def _check_wait(self, answer: Wait, now: Now, told: Wait | None) -> None:
        assert answer.until_us > now.elapsed_us, "told to wait until an instant that is over"
        if self._clocks_differ():
            return  # nobody can say when both will have passed an edge
        assert told is None or now.elapsed_us < told.until_us, (
            f"not granted when told: {told}, but told {answer}"
        )

    def _clocks_differ(self) -> bool:
        return any(
            isinstance(rule, FixedWindow)
            and (part[PASSED] or abs(part[DRIFTED] - part[OFFSET]) > rule.error_us)
            for rule, part in zip(self.plan.rules, self.state.parts, strict=True)
        )

    def _check_not_before(self, wake: int) -> None:
        told = wake + self.clock.elapsed
        head = [self.queue[0][0]]
        copy = State.load(json.loads(json.dumps(self.state.dump())))
        for instant in sorted({self.random.randrange(self.true, wake), wake - 1}):
            early = acquire(self.plan, head, copy, self.clock.at(instant))[0]
            assert isinstance(early, Wait), f"granted at {instant}, told {wake}"
            if not self._crowded():
                assert early.until_us == told, f"told {told}, and at {instant} {early.until_us}"
        if self._crowded():  # asking noticed that the server stands still, and so holds last longer
            copy = State.load(json.loads(json.dumps(self.state.dump())))
        late = acquire(self.plan, head, copy, self.clock.at(wake))[0]
        assert isinstance(late, Granted), f"not granted at the told instant {wake}: {late}"

    def _crowded(self) -> bool:
        return self.state.alive[FLYING] >= CROWD or self.state.alive[HELD] >= 0

    def _used(self) -> tuple[int, ...]:
        return used(self.plan, self.state, self.now())

    def _check_charged(self, before: tuple[int, ...], answers: Sequence[object]) -> None:
        after = self._used()
        for index, rule in enumerate(self.plan.rules):
            taken = sum(answer.costs[index] for answer in answers if isinstance(answer, Granted))
            oversized = rule.limit.kind == "unknown" and any(
                answer.costs[index] > rule.limit.amount // 20
                for answer in answers
                if isinstance(answer, Granted)
            )
            if not oversized:
                assert after[index] - before[index] == taken, (
                    f"{rule.limit.name}: {before} → {after}, took {taken}"
                )

    def _check_state(self) -> None:
        state = self.state
        self.state = State.load(json.loads(json.dumps(state.dump())))
        assert self.state.dump() == state.dump()
        assert self.state.shut == state.shut
        for numbers in (state.steady, state.alive, *state.parts, *filter(None, state.gates)):
            assert -EXACT < min(numbers) <= max(numbers) < EXACT, f"beyond 53 bits: {numbers}"

    # what lies between, and the servers

    def _send(self, grant: Granted, step: Step) -> None:
        self.granted += 1
        rnd, transit = self.random, self.transit
        fate = step.fate
        if fate == "mixed":
            fate = rnd.choice(("answered", "answered", "answered", "lost", "unsent", "throttled"))
        arrives = self.true + self._delay(step.delay)
        ends = arrives + self._latency(step.latency)
        call = Call(grant, Signal(), ends=ends)
        if fate == "unsent":
            call.signal = Signal("unsent")
            self._push(self.true + rnd.choice((0, 1, transit // 2, transit, 3 * transit)), 2, call)
            return
        call.throttled = fate == "throttled"
        self._push(arrives, 0, call)
        if fate == "lost":
            call.signal = Signal("lost")
            slots = any(rule.limit.kind == "concurrency" for rule in self.plan.rules)
            told = ends if slots else self.true + rnd.choice((0, 1, transit // 2, transit, 3 * transit))
            call.ends = min(ends, max(told + transit, arrives))  # the server notices that nobody listens
            self._push(told, 2, call)

    def _delay(self, mode: Delay) -> int:
        longest = self.transit
        if mode == "bunched":  # everybody is held back until the same instant, as far as D allows
            if self.bunch_at <= self.true:
                self.bunch_at = self.true + longest
            return self.bunch_at - self.true
        return {
            "none": 0,
            "longest": longest,
            "either": self.random.choice((0, longest)),
            "any": self.random.randint(0, longest),
        }[mode]

    def _latency(self, mode: Latency) -> int:
        if mode == "stalls":  # nobody is answered for a while, then everybody
            beat = 5 * self.transit
            return beat - self.true % beat
        longest = {"none": 0, "short": self.transit // 10, "long": 6 * self.transit, "any": 2 * self.transit}[
            mode
        ]
        return self.random.randint(0, longest)

    def _push(self, at: int, phase: int, call: Call) -> None:
        self.serial += 1
        heappush(self.events, (at, phase, self.random.random(), self.serial, call))

    def _happen(self) -> None:
        """Everything that is due now."""
        while self.events and self.events[0][0] <= self.true:
            _, phase, _, _, call = heappop(self.events)
            if phase == 0:
                self._arrive(call)
            elif phase == 1:
                self._complete(call)
            else:
                settle(self.plan, [Report(call.grant, call.signal)], self.state, self.now())
                self.settled += 1
                self.told = None

    def _arrive(self, call: Call) -> None:
        rows = list(zip(self.plan.limits, self.servers, call.grant.costs, strict=True))
        for limit, server, cost in rows:
            if cost and not server.fits(self.true, cost):
                raise AssertionError(
                    f"refused at {self.true} by {limit.name} ({type(server).__name__}): cost {cost}, "
                    f"granted at {call.grant.at_us - self.clock.elapsed}, {server.remaining(self.true)} left"
                )
        if call.throttled:  # for a reason of its own
            if self.counts_refusals:
                for limit, server, cost in rows:
                    if cost and limit.kind != "concurrency":
                        server.charge(self.true, cost)
            shut = next(limit for limit, _, cost in rows if cost)
            named = self.random.choice((shut.meter, None))
            after = self.random.choice((None, 0, self.transit, 5 * self.transit))
            call.signal = Signal(throttle=Throttle(named, after))
            call.ends = min(call.ends, self.true + 2 * self.transit)
            self._push(call.ends, 2, call)
            return
        share = self.random.random()
        call.used = tuple(round(share * cost) if limit.settles_to_usage else cost for limit, _, cost in rows)
        readings = []
        for limit, server, cost in rows:
            late = limit.when == "completion"
            call.receipts.append(server.charge(self.true, cost) if cost and not late else 0)
            if cost and self.reads != "no":
                stated = server.stated_limit if self.reads == "limit" else None
                readings.append(Reading(limit.meter, stated, server.remaining(self.true), None))
        if call.signal.outcome == "answered":
            usage = {
                limit.meter: units
                for limit, units in zip(self.plan.limits, call.used, strict=True)
                if limit.settles_to_usage
            }
            call.signal = Signal(usage=usage, readings=tuple(readings))
        self._push(call.ends, 1, call)

    def _complete(self, call: Call) -> None:
        rows = zip(self.plan.limits, self.servers, call.grant.costs, call.used, call.receipts, strict=True)
        for limit, server, cost, real, receipt in rows:
            if not cost:
                continue
            if limit.kind == "concurrency":
                server.refund(self.true, receipt, cost)
            elif limit.when == "completion":
                assert server.fits(self.true, real), f"{limit.name}: no room for what was used"
                server.charge(self.true, real)
            elif limit.settles_to_usage:
                server.refund(self.true, receipt, cost - real)
        if call.signal.outcome == "answered":
            way_back = self.random.choice((0, 0, 1, self.transit // 3))
            self._push(self.true + way_back, 2, call)


def integers(data: object) -> Iterable[int]:
    """All numbers in nested lists."""
    if isinstance(data, int):
        yield data
    elif isinstance(data, (list, tuple)):
        for item in data:
            yield from integers(item)
