"""Random programs of many callers in virtual time, judged by the log of what was asked and granted.

The judge knows the server's rules in exact arithmetic, and lets each call arrive there at any instant that it
might; it knows the order in which callers asked; and whenever the clock moves it makes sure that nobody
waits who need not.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from headgate import AcquireTimeout, Limiter, Permit
from headgate.core import decide
from headgate.core.model import SECOND, Costs, Decision, Granted, Limit, Wait
from headgate.core.plan import Plan
from headgate.stores.memory import MemoryStore
from headgate.testing import FakeClock
from tests.waiting import line_in

TAG = "tag=1G/s:burst=1G:start=full"
"""A limit that never binds: its cost tells the judge who asks."""

LIMITS = (
    "requests=10/s:burst=3:start=full",
    "tokens=50/s:burst=20:start=full",
    "tokens=30/s:burst=25:start=full:charge=usage:name=used",
    "tokens=40/s:burst=20:start=full:transit=50ms:name=quick",
    "concurrency=2",
    "requests=5/s:kind=sliding:start=full:name=window",
)
DEEP = os.environ.get("HEADGATE_EXAMPLES")
"""Set it to a large number to look for what the usual examples, the same each time, do not show."""

examples = settings(max_examples=int(DEEP or 200), derandomize=DEEP is None, deadline=None)

ENDS = ("answered", "used", "lost", "unsent", "raises", "refused")


@dataclass(frozen=True)
class Call:
    """What one caller does. Times in milliseconds."""

    start: int
    tokens: int = 0
    priority: int = 0
    hold: int = 0
    end: str = "answered"
    used: int = 0
    arrives: Fraction = Fraction(0)
    """When the server decides: at the grant (0), as late as it may (1), or between."""
    max_wait: int | None = None
    cancel_after: int | None = None
    stall: int = 0
    """How long it keeps the loop from turning, once it has its permit."""


calls = st.builds(
    Call,
    start=st.integers(0, 30).map(lambda step: step * 50),
    tokens=st.integers(0, 20),
    priority=st.sampled_from([0, 0, 0, 1, -1]),
    hold=st.integers(0, 1500),
    end=st.sampled_from(["answered", "answered", "used", "lost", "unsent", "raises"]),
    used=st.integers(0, 20),
    arrives=st.sampled_from([Fraction(0), Fraction(1, 3), Fraction(1)]),
    max_wait=st.none() | st.integers(0, 3000),
    cancel_after=st.none() | st.none() | st.integers(0, 3000),
)
wild_calls = st.builds(
    Call,
    start=st.integers(0, 30).map(lambda step: step * 50),
    tokens=st.integers(0, 20),
    priority=st.sampled_from([0, 0, 1, 0.5, -1]),
    hold=st.integers(0, 1500),
    end=st.sampled_from(ENDS),
    used=st.integers(0, 20),
    arrives=st.sampled_from([Fraction(0), Fraction(1, 3), Fraction(1)]),
    max_wait=st.none() | st.none() | st.integers(0, 20_000),
    cancel_after=st.none() | st.none() | st.integers(0, 3000),
    stall=st.sampled_from([0, 0, 0, 1, 30, 100, 400, 2000]),
)
some_limits = st.lists(st.sampled_from(LIMITS), min_size=1, max_size=4, unique=True)


class Clock(FakeClock):
    """Shows each jump of the loop to the judge first."""

    before_jump: Callable[[int], None]

    def advance(self, seconds: float) -> None:
        if seconds:
            self.before_jump(self().elapsed_us + round(seconds * SECOND))
            self.stall(seconds)

    def stall(self, seconds: float) -> None:
        super().advance(seconds)


class Store(MemoryStore):
    """Shows each answer to the judge."""

    after_answer: Callable[[Costs, Decision], None]

    def acquire(self, key: str, plan: Plan, asks: Sequence[Costs]) -> list[Decision]:
        answers = super().acquire(key, plan, asks)
        for costs, answer in zip(asks, answers, strict=True):
            self.after_answer(costs, answer)
        return answers


@dataclass
class Sent:
    """A call that went out: who, when granted, when settled; each instant with its place in the log."""

    call: Call
    granted: tuple[int, int]
    ended: tuple[int, int] = (0, 0)


class Simulation:
    def __init__(self, limits: Sequence[str], program: Sequence[Call], *, in_order: bool = True) -> None:
        self.clock = Clock()
        self.store = Store(self.clock)
        self.store.after_answer = self.see_answer
        self.clock.before_jump = self.see_jump
        self.limiter = Limiter(*limits, TAG, store=self.store)
        self.program = program
        self.waiting: dict[int, int] = {}  # number → instant of asking, in the order of asking
        self.sent: list[Sent] = []
        self.places = 0
        self.line_grants = 0
        self.eldest = -1
        self.eldest_since = 0
        self.in_order = in_order
        self.wrong: list[str] = []
        self.started = self.clock().elapsed_us
        self.outcomes: dict[int, str] = {}

    def run(self) -> None:
        self.clock.run(self._main())
        assert not self.wrong, self.wrong
        line = line_in(self.limiter)
        assert (self.limiter.waiting, line._head, bool(line._order)) == (0, None, False)
        assert self.limiter.used().get("concurrency", 0) == 0
        self.clock.stall(200)
        assert not any(self.limiter.used().values()), "units were lost"
        assert len(self.outcomes) == len(self.program)
        for number, outcome in self.outcomes.items():
            call = self.program[number]
            if call.max_wait is None and call.cancel_after is None:
                assert outcome == "granted"
        self.judge()

    async def _main(self) -> None:
        async with asyncio.timeout(10_000):
            await asyncio.gather(*(self._caller(number) for number in range(len(self.program))))

    async def _caller(self, number: int) -> None:
        call = self.program[number]
        await asyncio.sleep(call.start / 1000)
        task = asyncio.create_task(self._call(number, call))
        if call.cancel_after is not None:
            asyncio.get_running_loop().call_later(call.cancel_after / 1000, task.cancel)
        try:
            self.outcomes[number] = await task
        except asyncio.CancelledError:
            self.outcomes[number] = "cancelled"

    async def _call(self, number: int, call: Call) -> str:
        units = {"tokens": call.tokens} if "tokens" in self.limiter.plan.meters else {}
        max_wait = None if call.max_wait is None else call.max_wait / 1000
        self.waiting[number] = self.clock().elapsed_us
        try:
            permit = await self.limiter.acquire_async(
                priority=call.priority, max_wait=max_wait, tag=number + 1, **units
            )
        except AcquireTimeout:
            return "timed out"
        finally:
            self.waiting.pop(number, None)
        sent = Sent(call, (permit.granted_us, self.place()))
        self.sent.append(sent)
        answered = False
        try:
            self.clock.stall(call.stall / 1000)
            await asyncio.sleep(call.hold / 1000)
            answered = True
        finally:
            sent.ended = (self.clock().elapsed_us, self.place())
            if not answered:
                sent.call = Call(**{**call.__dict__, "end": "lost"})
                permit.lost()
            else:
                self.settle(permit, call)
        return "granted"

    def settle(self, permit: Permit, call: Call) -> None:
        if call.end == "used":
            counts = "tokens" in self.limiter.plan.meters
            permit.settle(**({"tokens": min(call.used, call.tokens)} if counts else {}))
        elif call.end == "unsent":
            permit.give_back()
        elif call.end in ("lost", "raises"):
            permit.lost()
        elif call.end == "refused":
            permit.throttled(retry_after=call.used / 10 if call.used else None)
        else:
            permit.settle()

    def place(self) -> int:
        self.places += 1
        return self.places

    def check(self, right: bool, wrong: str) -> None:
        """Told at the end: an error in the middle of the line's work would only hide itself."""
        if not right:
            self.wrong.append(f"at {self.clock.elapsed_seconds:g} s {wrong}")

    # Liveness

    def see_jump(self, to_us: int) -> None:
        """The loop is idle until then: nobody may go before it, and the head is told when."""
        if not self.limiter.waiting:
            return
        line = line_in(self.limiter)
        head = line._head
        if head is None:
            self.check(False, "callers wait, and nobody has a timer")
            return
        front = line._order.pop([])
        line._order.push_back(front)
        self.check(head is front, "another one is first in line than the one who was told")
        self.check(to_us <= line.until_us, "the head sleeps over its instant")
        state = json.loads(json.dumps(self.store.dump("default", self.limiter.plan)))
        [answer] = decide.acquire(self.limiter.plan, [head.costs], decide.State.load(state), self.clock())
        self.check(
            type(answer) is Wait and answer.until_us >= line.until_us, "the head could go sooner than told"
        )

    # Order

    def see_answer(self, costs: Costs, answer: Decision) -> None:
        if type(answer) is not Granted or not self.in_order:
            return
        number = costs[-1] - 1
        now = self.clock().elapsed_us
        order = [n for n, asked in self.waiting.items() if n == number or not self.is_leaving(n, asked, now)]
        del self.waiting[number]
        if not self.limiter.waiting:
            self.check(order == [number], "a newcomer overtook the line")
            return
        place = order.index(number)
        priority = self.program[number].priority
        self.check(all(self.program[n].priority != priority for n in order[:place]), "overtook an equal")
        if any(self.program[n].priority > priority for n in order):
            self.check(place == 0, "went before one that is more important")
        self.line_grants += 1
        if order[0] != self.eldest:
            self.eldest, self.eldest_since = order[0], self.line_grants
        self.check(self.line_grants - self.eldest_since < 8, "the eldest waits too long")

    def is_leaving(self, number: int, asked: int, now: int) -> bool:
        """Its time is over, or it is cancelled, though it has not been told yet."""
        call = self.program[number]
        ends = [after for after in (call.max_wait, call.cancel_after) if after is not None]
        return bool(ends) and now >= asked + min(ends) * 1000

    # The server

    def judge(self) -> None:
        for limit in self.limiter.limits:
            if limit.meter == "tag":
                continue
            if limit.kind == "concurrency":
                self.judge_slots(limit)
            elif limit.kind == "bucket":
                self.judge_bucket(limit)
            else:
                self.judge_window(limit)

    def judge_slots(self, limit: Limit) -> None:
        changes = [(sent.granted[1], 1) for sent in self.sent] + [(sent.ended[1], -1) for sent in self.sent]
        taken = 0
        for _, change in sorted(changes):
            taken += change
            assert taken <= limit.amount

    def arrivals(self, limit: Limit) -> list[tuple[Fraction, Fraction, int, Sent]]:
        """(instant, place in the log, cost, call) at the server, in order."""
        [transit_us] = [rule.transit_us for rule in self.limiter.plan.rules if rule.limit is limit]
        found = []
        for sent in self.sent:
            cost = 1 if limit.meter == "requests" else sent.call.tokens
            if sent.call.end in ("unsent", "refused"):
                continue
            granted, place = map(Fraction, sent.granted)
            last, last_place = map(Fraction, sent.ended)
            if not limit.held_to_answer and (
                last > granted + transit_us or sent.call.end in ("lost", "raises")
            ):
                last, last_place = granted + transit_us, place + 1
            part = sent.call.arrives
            found.append((granted + part * (last - granted), place + part * (last_place - place), cost, sent))
        return sorted(found, key=lambda arrival: arrival[:2])

    def judge_bucket(self, limit: Limit) -> None:
        events = [(at, place, -cost) for at, place, cost, _ in self.arrivals(limit)]
        if limit.settles_to_usage:
            for _, _, cost, sent in self.arrivals(limit):
                if sent.call.end == "used":
                    excess = cost - min(sent.call.used, cost)
                    events.append((Fraction(sent.ended[0]), Fraction(sent.ended[1]), excess))
        burst = Fraction(limit.burst or 0)
        rate = Fraction(limit.amount, limit.period_us)
        level, clock = burst, Fraction(self.started)
        for at, _, change in sorted(events):
            level = min(burst, level + (at - clock) * rate)
            clock = at
            level = min(burst, level + change)
            assert level >= 0, f"{limit.name} was exceeded"

    def judge_window(self, limit: Limit) -> None:
        arrivals = self.arrivals(limit)
        for last, _, _, _ in arrivals:
            inside = sum(cost for at, _, cost, _ in arrivals if last - limit.period_us < at <= last)
            assert inside <= limit.amount, f"{limit.name} was exceeded"


@examples
@given(some_limits, st.lists(calls, min_size=1, max_size=25))
def test_in_order_never_over_and_never_idle(limits: list[str], program: list[Call]) -> None:
    Simulation(limits, program).run()


@examples
@given(some_limits, st.lists(wild_calls, min_size=1, max_size=25))
def test_stalls_and_refusals_lose_nothing_and_exceed_nothing(limits: list[str], program: list[Call]) -> None:
    Simulation(limits, program, in_order=False).run()


def test_the_told_instant_knows_how_deep_the_debt_is() -> None:
    program = [
        Call(0, tokens=13, hold=169, end="refused", stall=400),
        Call(0, tokens=15, hold=251),
        Call(0, tokens=6),
    ]
    Simulation(["tokens=50/s:burst=20:start=full"], program, in_order=False).run()


def test_the_same_program_runs_the_same_way_twice() -> None:
    program = [Call(start=number * 7 % 50, tokens=number % 9, hold=number * 37 % 400) for number in range(60)]
    first, second = Simulation(LIMITS, program), Simulation(LIMITS, program)
    first.run()
    second.run()
    assert [(sent.granted, sent.ended) for sent in first.sent] == [
        (sent.granted, sent.ended) for sent in second.sent
    ]
    assert len(first.sent) == 60
