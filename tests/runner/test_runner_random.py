"""Random programs against a Runner in virtual time, judged by what the function saw.

A program schedules, cancels, clears, pauses, moves, stops, interrupts and streams at random; its calls
return, raise, are refused, answer nonsense, take too long and ignore their cancellation. The judge knows what
may run at once, what may start when, what a call that nobody disturbs comes to, and that in the end nothing
is left of any of it.

HEADGATE_SEED is the first seed, HEADGATE_EXAMPLES how many programs there are of each kind.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import random
import re
import weakref
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import pytest

from headgate import (
    CallCancelled,
    DuplicateCall,
    Interval,
    Limiter,
    Runner,
    RunStopped,
    Throttled,
    current_call,
)
from headgate.core.model import SECOND
from headgate.runner import Call, Event
from headgate.stores.memory import MemoryStore
from headgate.testing import FakeClock, VirtualLoop

quiet = functools.partial(Runner, progress=False)

FIRST_SEED = int(os.environ.get("HEADGATE_SEED", "1"))
PROGRAMS = int(os.environ.get("HEADGATE_EXAMPLES", "40"))
seeds = pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + PROGRAMS))
few_seeds = pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + PROGRAMS // 5))

LONG_SECONDS = 50_000.0
"""Nothing lasts so long but what hangs."""


class Lost(ConnectionError):
    """No answer: worth another attempt."""


class Refused(Exception):
    status_code = 429

    def __init__(self, retry_after: float | None) -> None:
        super().__init__("slow down")
        self.headers = {} if retry_after is None else {"retry-after": str(retry_after)}


class WrongKey(Exception):
    status_code = 401


@dataclass(frozen=True)
class Step:
    """What one attempt does.

    ``stubborn``: cancelled, it goes on for so many seconds all the same; None to give in.
    """

    seconds: float
    end: str = "value"
    retry_after: float | None = None
    stubborn: float | None = None


@dataclass
class Visit:
    """One call of the function, as the function saw it. Instants in microseconds."""

    key: int
    step: Step
    started_us: int
    end: str = "runs"
    ended_us: int = 0


def good(value: tuple[str, int]) -> bool:
    return value[0] == "good"


@dataclass
class World:
    """A runner, its clock, the plan of its calls, and the log of what happened."""

    choose: Random
    clock: FakeClock
    wild: bool
    plans: dict[int, list[Step]] = field(default_factory=dict)
    visits: dict[int, list[Visit]] = field(default_factory=lambda: defaultdict(list))
    log: list[Visit] = field(default_factory=list)
    events: dict[Call[Any], list[str]] = field(default_factory=lambda: defaultdict(list))
    reasons: dict[Call[Any], BaseException] = field(default_factory=dict)
    at_large: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    inside: int = 0
    cuts: bool = False
    in_order: bool = True
    interval: Interval | None = None

    def __post_init__(self) -> None:
        choose = self.choose
        random.seed(choose.random())  # pauses are drawn from there
        limits = []
        if choose.random() < 0.6:
            limits.append(f"concurrency={choose.randint(1, 4)}")
        if choose.random() < 0.5:
            limits.append("requests=5/s:burst=2:start=full")
        if choose.random() < 0.3:
            limits.append("tokens=50/s:burst=20:start=full:charge=usage")
        self.limiter = Limiter(*limits, store=MemoryStore(self.clock))
        if choose.random() < 0.3:
            kinds: tuple[Any, ...] = ("strict", "anchored", "carryover")
            self.interval = Interval(0.7, choose.randint(1, 3), choose.choice(kinds))
        tokens = "tokens" in self.limiter.plan.meters
        self.timeout = choose.choice((None, None, 1.03))
        self.max_attempts = choose.randint(1, 4)
        self.dedup = choose.choice((None, None, "share", "skip", "error")) if self.wild else None
        self.priced = self.wild and choose.random() < 0.2
        self.most = choose.randint(1, 6)
        self.runner = quiet(
            self.function,
            self.limiter,
            max_concurrent=self.most,
            max_attempts=self.max_attempts,
            timeout=self.timeout,
            interval=self.interval,
            ramp=choose.choice((None,) * 6 + (3.0,)),
            validation=good,
            dedup=self.dedup,
            cost=(lambda key: {"tokens": key % 7}) if tokens else None,
            usage=(lambda _: {"tokens": 1}) if tokens else None,
            price=(lambda _: 0.25) if self.priced else None,
            spend_cap=4.0 if self.priced else None,
        )
        self.runner.subscribe(self.see)

    # The function

    async def function(self, key: int) -> tuple[str, int]:
        visits = self.visits[key]
        plan = self.plans[key]
        step = plan[min(len(visits), len(plan) - 1)]
        visit = Visit(key, step, self.clock().elapsed_us)
        visits.append(visit)
        self.log.append(visit)
        self.inside += 1
        self.check(self.inside <= self.runner.max_concurrent, "more at once than max_concurrent")
        for limit in self.limiter.limits:
            if limit.kind == "concurrency":
                self.check(self.inside <= limit.amount, "more at once than slots")
        self.check(current_call().attempt >= 1, "an attempt without a number")
        visit.end = "cancelled"
        try:
            await self.last(step)
            visit.end = step.end
        finally:
            self.inside -= 1
            visit.ended_us = self.clock().elapsed_us
        match step.end:
            case "lost":
                raise Lost("no answer")
            case "mistake":
                raise TypeError("a bug")
            case "refused":
                raise Refused(step.retry_after)
            case "key":
                raise WrongKey("no such key")
            case "cancels itself":
                raise asyncio.CancelledError
            case "nonsense":
                return ("bad", key)
            case "schedules":
                self.schedule()
            case _:
                pass
        return ("good", key)

    async def last(self, step: Step) -> None:
        try:
            await asyncio.sleep(step.seconds)
        except asyncio.CancelledError:
            if step.stubborn is None:
                raise
            await asyncio.sleep(step.stubborn)

    def plan(self) -> list[Step]:
        choose = self.choose
        ends = ["value", "value", "value", "lost", "nonsense", "refused"]
        if self.wild:
            ends += ["mistake", "schedules", "cancels itself", *(["key"] if choose.random() < 0.05 else [])]
        steps: list[Step] = []
        while not steps or steps[-1].end in ("refused", "schedules"):
            for _ in range(choose.randint(1, 4)):
                end = choose.choice(ends)
                retry_after = choose.choice((None, 0.4, 2.0)) if end == "refused" else None
                stubborn = choose.choice((None, None, 0.0, 0.3, 4.0)) if self.wild else None
                steps.append(Step(choose.choice((0, 0, 0.05, 0.2, 1.0, 1.5)), end, retry_after, stubborn))
        return steps

    def schedule(self) -> Call[Any] | None:
        runner = self.runner
        options: dict[str, Any] = {}
        if self.choose.random() < 0.3:
            options["priority"] = self.choose.choice((-1, 1, 2))
        with suppress(DuplicateCall):
            return runner.options(**options).schedule(self.new_key())
        return None

    def new_key(self) -> int:
        key = len(self.plans)
        if self.dedup is not None:
            key = self.choose.randint(0, 8)
        if key not in self.plans:
            self.plans[key] = self.plan()
        return key

    # What is watched all the time

    def check(self, right: bool, wrong: str) -> None:
        """Told at the end, for an error inside of the runner's work would only be logged by it."""
        if not right:
            self.wrong.append(f"at {self.clock.elapsed_seconds:g} s: {wrong}")

    def see(self, event: Event) -> None:
        call = event.call
        if call is None:
            self.at_large.append(event.kind)
            return
        self.events[call].append(event.kind)
        if event.kind == "started" and self.in_order:
            head = self.runner._board.waiting.peek()
            rank = (-call.priority, call.number)
            self.check(head is None or (-head.priority, head.number) > rank, f"{call} overtook {head}")

    def look(self) -> None:
        """The books agree with what is there."""
        board = self.runner._board
        waiting = list(board.waiting)
        self.check(board.live == sum(not attempt.over for attempt in board.running), "live is wrong")
        self.check(board.waiting.size == len(waiting), "the size of the line is wrong")
        asleep = {id(entry[2]) for entry in board.asleep if entry[2].state == "asleep"}
        self.check(board.sleeping == len(asleep), "sleeping is wrong")
        self.check(len(board.running) >= self.inside, "a call runs that is not among the running ones")
        slots = self.limiter.used().get("concurrency")
        # The dispatcher may have been handed a permit and not come round to it yet.
        running = len(board.running)
        self.check(slots in (None, running, running + 1), f"{slots} slots for {running} attempts")
        reserved = sum(attempt.price for attempt in board.running)
        self.check(abs(board.spending.reserved - reserved) < 1e-9, "money is reserved for nobody")
        if board.spending.cap is not None:
            self.check(board.spending.spent + reserved <= board.spending.cap + 1e-9, "the cap was exceeded")
        for call in self.events:
            self.look_at(call, waiting)

    def look_at(self, call: Call[Any], waiting: list[Call[Any]]) -> None:
        board = self.runner._board
        if call.state == "running":
            attempt = call.attempt
            right = attempt is not None and attempt in board.running and not attempt.over
            self.check(right, f"{call} runs without an attempt")
        elif call.state == "waiting" and call.shares:
            first = board._known.get(call.digest)
            right = first is not None and first.state != "done" and call in (first.twins or ())
            self.check(right, f"{call} waits for a twin that is gone")
        elif call.state == "waiting":
            self.check(call.entry is not None and call in waiting, f"{call} waits nowhere")
        else:
            self.check(call.entry is None, f"{call} stands in line")

    # What is judged in the end

    def judge(self) -> None:
        self.look()
        runner, board = self.runner, self.runner._board
        at_rest = (runner.pending, board.live, board.sleeping, board.waiting.size, self.inside)
        assert at_rest == (0, 0, 0, 0, 0)
        assert not any(self.limiter.used().values()), "units were lost"
        assert self.limiter.waiting == 0
        assert (board._known, board._waits, board._callbacks, board._facts) == ({}, [], [], [])
        assert runner._engine is None, "it goes on behind our back"
        assert abs(board.spending.reserved) < 1e-9
        for call, kinds in self.events.items():
            self.judge_events(call, kinds)
            self.judge_end(call)
        limited = [kind for kind in self.at_large if kind.endswith("limited")]
        assert limited == ["limited", "unlimited"] * (len(limited) // 2)
        figures = runner.statistics()
        ends = Counter(kinds[-1] for kinds in self.events.values())
        assert (figures.succeeded + figures.skipped, figures.failed) == (ends["completed"], ends["failed"])
        assert figures.attempts == len(self.log)
        self.judge_interval()
        self.judge_bucket()
        assert not self.wrong, self.wrong[:10]

    def judge_events(self, call: Call[Any], kinds: list[str]) -> None:
        letters = {"added": "a", "started": "s", "retried": "r", "throttled": "t", "completed": "c"}
        told = "".join(letters.get(kind, "f") for kind in kinds)
        # A cut puts calls back in line without a word; an attempt may be given up for another one.
        pattern = "a(s(t?r)?)*t?[cf]" if self.wild else "a(st?r)*s[ct]?f?"
        assert re.fullmatch(pattern, told), f"{call} told {told}"

    def judge_end(self, call: Call[Any]) -> None:
        [key] = call.args
        visits = self.visits[key]
        assert call.done()
        if call.error is None:
            assert call.value == (None if call.skipped else ("good", key))
            assert call.skipped or any(visit.end in ("value", "schedules") for visit in visits)
        elif call in self.reasons:
            assert call.error is self.reasons[call] or not isinstance(call.error, CallCancelled)
        elif not isinstance(call.error, CallCancelled | Throttled) and not call.shares:
            assert self.dedup == "share" or call.error is call.exceptions[-1]
            paid = [visit.ended_us for visit in visits if visit.end in ("value", "schedules")]
            finished = call.finished_at
            assert finished is not None
            thrown_away = self.dedup is None and paid and min(paid) < self.elapsed_us(finished)
            assert not thrown_away, f"{call} failed, though it had been paid for"
            if call.exceptions and isinstance(call.error, Lost):
                assert call.failures == self.max_attempts
        if self.dedup is None and all(visit.step.stubborn is None for visit in visits):
            values = sum(visit.end in ("value", "schedules") for visit in visits)
            assert values <= 1, f"{call} was paid for {values} times"

    def elapsed_us(self, at: datetime) -> int:
        now = self.clock()
        return now.elapsed_us - now.wall_us + round(at.timestamp() * SECOND)

    def judge_interval(self) -> None:
        if self.interval is None:
            return
        starts = [visit.started_us for visit in self.log]
        cap = self.interval.cap * (1 if self.interval.kind == "strict" else 2)
        for first, later in zip(starts, starts[cap:], strict=False):
            assert later - first >= self.interval.seconds * SECOND, "the interval was exceeded"

    def judge_bucket(self) -> None:
        """As the server counts: what it refused is not charged."""
        for limit in self.limiter.limits:
            if limit.meter != "requests":
                continue
            level = burst = Fraction(limit.burst or 0)
            clock = Fraction(0)
            for visit in self.log:
                if visit.end != "refused":
                    at = Fraction(visit.started_us)
                    level = min(burst, level + (at - clock) * Fraction(limit.amount, limit.period_us)) - 1
                    clock = at
                    assert level >= 0, f"{limit.name} was exceeded"


def run(world: World, main: Callable[[World], Awaitable[object]]) -> None:
    """Run a program to its end, let the stubborn ones end, and judge."""

    async def program() -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(LONG_SECONDS):
            await main(world)
        await asyncio.sleep(1000)
        assert asyncio.all_tasks(loop) == {asyncio.current_task()}, "tasks are left behind"
        timers = [timer for timer in loop._scheduled if not timer._cancelled]  # type: ignore[attr-defined]
        assert timers == [], "timers are left behind"

    world.clock.run(program())
    world.judge()


# Nobody interferes


def expected(world: World, key: int) -> tuple[str, int]:
    """What a call comes to, and after how many visits."""
    failures = 0
    plan = world.plans[key]
    for visits in range(1, 1000):
        step = plan[min(visits, len(plan)) - 1]
        late = world.timeout is not None and step.seconds > world.timeout
        if step.end == "refused" and not late:
            continue
        if step.end == "value" and not late:
            return "completed", visits
        failures += 1
        if failures == world.max_attempts:
            return "failed", visits
    raise AssertionError("a plan without an end")


@seeds
def test_calls_that_nobody_disturbs_come_to_what_they_must(seed: int) -> None:
    print(f"HEADGATE_SEED={seed}")
    world = World(Random(seed), FakeClock(), wild=False)

    async def main(world: World) -> None:
        runner, choose = world.runner, world.choose
        calls = [world.schedule() for _ in range(choose.randint(1, 25))]
        run = asyncio.create_task(runner.run_async())
        for _ in range(choose.randint(0, 10)):
            await asyncio.sleep(choose.choice((0, 0, 0.1, 1)))
            if not run.done():
                calls.append(world.schedule())
            world.look()
        results = await run
        if not results.complete or len(results.calls) < len(calls):
            await runner.run_async()
        assert results.calls == calls[: len(results.calls)]
        for call in calls:
            assert call is not None
            kind, visits = expected(world, call.args[0])
            found = (world.events[call][-1], call.attempts, len(world.visits[call.args[0]]))
            assert found == (kind, visits, visits), call

    run(world, main)


# Everybody interferes


class Meddler:
    """Does to a runner whatever can be done to one."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.runner = world.runner
        self.choose = world.choose
        self.tasks: list[asyncio.Task[Any]] = []
        self.acts: list[Callable[[], object]] = [
            *[self.schedule] * 6,
            *[self.run] * 3,
            *[self.cancel] * 2,
            *[self.wait_for_one] * 2,
            *[self.stream] * 2,
            self.interrupt,
            self.clear,
            self.pause,
            self.runner.resume,
            self.runner.resume,
            self.move,
            self.resize,
            self.enter,
            self.runner.stop,
            self.raise_cap,
            self.wait_for_many,
        ]
        self.nested_acts = [
            *[self.schedule] * 3,
            self.cancel,
            self.clear,
            self.pause,
            self.runner.resume,
            self.move,
            self.resize,
            self.runner.stop,
        ]
        self.is_over = False
        if self.choose.random() < 0.3:
            world.in_order = False
            self.runner.subscribe(self.listen)
            if self.choose.random() < 0.5:
                world.limiter.subscribe(self.listen)

    def listen(self, _: object) -> None:
        """Meddles from within, in the middle of what the runner does."""
        if not self.is_over and self.choose.random() < 0.05:
            self.choose.choice(self.nested_acts)()

    async def main(self, world: World) -> None:
        for _ in range(self.choose.randint(5, 60)):
            self.choose.choice(self.acts)()
            world.look()
            await asyncio.sleep(self.choose.choice((0, 0, 0, 0.05, 0.5, 3)))
            world.look()
        await self.finish()

    async def finish(self) -> None:
        runner = self.runner
        self.is_over = True
        runner.resume()
        runner.spend_cap = None
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        runner.stop()
        for _ in range(200):
            results = await runner.run_async()
            self.world.look()
            if results.complete:
                await asyncio.sleep(20)  # the stubborn ones may schedule something yet
                if not runner.size + runner.pending:
                    return
                continue
            assert results.stopped is not None, "it ended before its work, and says not why"
        raise AssertionError(f"it never comes to an end: {results!r}")

    def task(self, work: Any) -> None:
        self.tasks.append(asyncio.create_task(work))

    def some_call(self) -> Call[Any] | None:
        calls = list(self.world.events)
        return self.choose.choice(calls) if calls else None

    def schedule(self) -> None:
        for _ in range(self.choose.randint(1, 4)):
            self.world.schedule()

    def run(self) -> None:
        async def work() -> None:
            deadline = self.choose.choice((None, None, 0.5, 3))
            results = await self.runner.run_async(deadline=deadline)
            positions = [call.position for call in results.calls]
            self.world.check(positions == sorted(positions), "results are out of order")
            self.world.check(results.complete or results.stopped is not None, "a run ended early")

        self.task(work())

    def enter(self) -> None:
        seconds = self.choose.choice((0, 0.3, 5))

        async def work() -> None:
            with suppress(RunStopped):
                async with self.runner:
                    await asyncio.sleep(seconds)

        self.task(work())

    def interrupt(self) -> None:
        if self.tasks:
            self.choose.choice(self.tasks).cancel()

    def cancel(self) -> None:
        call = self.some_call()
        if call is None:
            return
        reason = self.choose.choice((None, ValueError("not wanted any more")))
        was_done = call.done()
        if reason is not None and not was_done:
            self.world.reasons[call] = reason
        self.world.check(call.cancel(reason) is not was_done, "cancel() does not know whether it did")
        self.world.check(call.done(), "cancelled, and not done")

    def clear(self) -> None:
        size = self.runner.size
        self.world.check(self.runner.clear() == size, "clear() left somebody")
        empty = self.runner.size == 0 or not self.world.in_order  # a listener schedules meanwhile
        self.world.check(empty, "cleared, and not empty")

    def pause(self) -> None:
        self.runner.pause()

    def move(self) -> None:
        call = self.some_call()
        if call is not None:
            with suppress(LookupError):
                self.runner.set_priority(call, self.choose.randint(-2, 2))

    def resize(self) -> None:
        most = self.choose.randint(1, 6)
        self.runner.max_concurrent = max(most, self.runner.pending)  # less interrupts none

    def raise_cap(self) -> None:
        cap = self.runner.spend_cap
        if cap is not None:
            self.runner.spend_cap = cap + 2

    def wait_for_one(self) -> None:
        call = self.some_call()
        seconds = self.choose.choice((0, 0.3, 10))

        async def work() -> None:
            if call is not None:
                async with asyncio.timeout(seconds):
                    await call

        self.task(work())

    def wait_for_many(self) -> None:
        waits = (
            self.runner.wait_idle_async,
            self.runner.wait_empty_async,
            lambda: self.runner.wait_below_async(3),
        )
        wait = self.choose.choice(waits)
        seconds = self.choose.choice((0, 2, 30))

        async def work() -> None:
            async with asyncio.timeout(seconds):
                await wait()

        self.task(work())

    def stream(self) -> None:
        keys = [self.world.new_key() for _ in range(self.choose.randint(0, 8))]
        stop_at = self.choose.choice((None, None, 0, 2))
        ahead = self.choose.choice((1, 3, 100))
        many = self.runner.map(keys, ahead=ahead)
        unordered = self.choose.random() < 0.3

        async def work() -> None:
            given = []
            with suppress(RunStopped, DuplicateCall):
                stream: Any = self.runner.as_completed(keys, ahead=ahead) if unordered else many
                results = aiter(stream)
                try:
                    async for item in results:
                        given.append(item)
                        if len(given) == stop_at:
                            return
                finally:
                    await results.aclose()
                self.world.check(len(given) == len(keys), "a stream has lost some")
            if not unordered and self.world.dedup != "skip":
                right = all(v is None or v == ("good", k) for v, k in zip(given, keys, strict=False))
                self.world.check(right, "a stream is out of order")

        self.task(work())


@seeds
def test_whatever_is_done_to_a_runner_each_call_is_done_once_and_nothing_is_left(seed: int) -> None:
    print(f"HEADGATE_SEED={seed}")
    world = World(Random(seed), FakeClock(), wild=True)
    run(world, Meddler(world).main)


# Cancelled everywhere


def steps(*texts: str) -> dict[int, list[Step]]:
    return {key: [Step(0.1, end) for end in text.split()] for key, text in enumerate(texts)}


PLANS = steps("value", "lost value", "refused value", "nonsense nonsense value", "value", "lost lost lost")
LIMITS: dict[str, tuple[str, ...]] = {
    "no limits": (),
    "slots": ("concurrency=2",),
    "a rate": ("requests=5/s:burst=1:start=full",),
    "both": ("requests=5/s:burst=2:start=full", "concurrency=1"),
}


def small_world(limits: tuple[str, ...], **options: Any) -> World:
    world = World(Random(1), FakeClock(), wild=True)
    world.limiter = Limiter(*limits, store=MemoryStore(world.clock))
    world.plans, world.dedup, world.interval, world.priced = dict(PLANS), None, None, False
    world.timeout, world.max_attempts = None, 3
    world.runner = quiet(
        world.function, world.limiter, max_attempts=3, max_concurrent=3, validation=good, **options
    )
    world.runner.subscribe(world.see)
    return world


def disturb(limits: tuple[str, ...], turn: int, act: Act) -> bool:
    """Run a small program with ``act`` between that turn and the one before; whether it came so far."""
    world = small_world(limits)
    reached: list[int] = []

    async def main(world: World) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        calls = [world.runner.schedule(key) for key in PLANS]
        task = asyncio.create_task(world.runner.run_async())

        def now() -> None:
            if not task.done():
                reached.append(turn)
                act(world, task)

        loop.at_turn(loop.turns + turn, now)
        with suppress(asyncio.CancelledError):
            await task
        world.look()
        while not all(call.done() for call in calls):
            await world.runner.run_async()
            world.look()
        await world.runner.run_async()
        for call in calls:
            kind, _ = expected(world, call.args[0])
            right = world.events[call][-1] == kind or world.cuts or isinstance(call.error, CallCancelled)
            assert right, call

    run(world, main)
    return bool(reached)


def cancel_the_run(world: World, task: asyncio.Task[Any]) -> None:
    world.cuts = True  # what was cut is asked for again, and its plan goes on where it was
    task.cancel()


def cancel_the_dispatcher(world: World, task: asyncio.Task[Any]) -> None:
    """As the loop does that is taken down."""
    world.cuts = True
    engine = world.runner._engine
    if engine is not None and engine._task is not None:
        engine._task.cancel()


def cancel_all_calls(world: World, task: asyncio.Task[Any]) -> None:
    for call in list(world.events):
        call.cancel()


def cancel_one_call(world: World, task: asyncio.Task[Any]) -> None:
    for call in world.events:
        if call.cancel():
            return


def pause_and_resume(world: World, task: asyncio.Task[Any]) -> None:
    world.runner.pause()
    task.get_loop().call_later(0.3, world.runner.resume)


def clear(world: World, task: asyncio.Task[Any]) -> None:
    world.runner.clear()


def stop(world: World, task: asyncio.Task[Any]) -> None:
    world.runner.stop()


def schedule_what_is_more_important(world: World, task: asyncio.Task[Any]) -> None:
    key = len(world.plans)
    world.plans[key] = [Step(0.05)]
    world.runner.options(priority=1).schedule(key)


Act = Callable[[World, "asyncio.Task[Any]"], None]
ACTS: list[Act] = [
    cancel_the_run,
    cancel_the_dispatcher,
    cancel_all_calls,
    cancel_one_call,
    pause_and_resume,
    clear,
    stop,
    schedule_what_is_more_important,
]


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
def test_between_any_two_turns_it_can_be_disturbed_and_loses_nothing(limits: str, act: Act) -> None:
    turn = 1
    while disturb(LIMITS[limits], turn, act):
        turn += 1
    assert turn > 15


def take_down(limits: tuple[str, ...], turn: int) -> bool:
    """Run a small program on a loop that ends between two turns, and go on on another one."""
    world = small_world(limits)
    world.cuts = True
    reached: list[int] = []

    async def first() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        for key in PLANS:
            world.runner.schedule(key)
        end = loop.create_future()
        loop.at_turn(loop.turns + turn, lambda: None if end.done() else end.set_result(None))
        task = asyncio.create_task(world.runner.run_async())
        await asyncio.wait([task, end], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            reached.append(turn)

    async def second(world: World) -> None:
        world.look()
        while not all(call.done() for call in world.events):
            await world.runner.run_async()
            world.look()

    world.clock.run(first())
    run(world, second)
    return bool(reached)


@pytest.mark.parametrize("limits", LIMITS)
def test_a_loop_that_ends_between_any_two_turns_loses_nothing(limits: str) -> None:
    turn = 1
    while take_down(LIMITS[limits], turn):
        turn += 1
    assert turn > 5


# From within


def test_what_a_listener_changes_in_the_dispatchers_own_step_is_seen_at_once() -> None:
    clock = FakeClock()
    limiter = Limiter("requests=1/s:burst=1:start=full", store=MemoryStore(clock))
    started: list[float] = []

    async def function(seconds: float) -> None:
        started.append(clock.elapsed_seconds)
        await asyncio.sleep(seconds)

    runner = quiet(function, limiter, max_concurrent=2)

    def let_in(_: Event) -> None:
        runner.max_concurrent = 2

    async def main() -> None:
        runner.schedule(100)
        runner.schedule(0)
        run = asyncio.create_task(runner.run_async())
        await asyncio.sleep(0.5)
        runner.max_concurrent = 1  # the permit that is waited for will not be used: the slots are full
        runner.subscribe(let_in, "unlimited")
        await run

    clock.run(main())
    assert started == [0, pytest.approx(1, abs=0.1)]


# Processes that end in the middle


@few_seeds
def test_runners_that_end_at_random_repeat_no_finished_call(seed: int, tmp_path: Path) -> None:
    print(f"HEADGATE_SEED={seed}")
    choose = Random(seed)
    keys = [choose.randint(0, 12) for _ in range(20)]
    finished: Counter[int] = Counter()
    tokens: dict[str, set[str]] = defaultdict(set)
    failing = set(choose.sample(range(13), 3))

    async def function(key: int) -> list[int]:
        call = current_call()
        occurrence = call._attempt.call.occurrence
        tokens[f"{key}/{occurrence}"].add(call.idempotency_key)
        call.record("attempts", call.recorded.get("attempts", 0) + 1)
        await asyncio.sleep(choose.choice((0, 0.1, 1)))
        if key in failing and choose.random() < 0.5:
            raise Lost("no answer")
        finished[key] += 1
        return [key, occurrence]

    def generation(seconds: float) -> list[Any] | None:
        clock = FakeClock()
        limiter = Limiter("concurrency=3", "requests=10/s:burst=3:start=full", store=MemoryStore(clock))
        runner = quiet(function, limiter, checkpoint=tmp_path / "calls.db", max_attempts=50)

        async def main() -> list[Any] | None:
            for key in keys:
                runner.schedule(key)
            try:
                async with asyncio.timeout(seconds):
                    return (await runner.run_async()).results
            except TimeoutError:
                return None

        try:
            return clock.run(main())
        finally:
            runner.close()

    results = None
    while results is None:
        results = generation(choose.choice((0, 0.3, 1, 4, LONG_SECONDS)))
    seen: Counter[int] = Counter()
    for key, result in zip(keys, results, strict=True):
        assert result == [key, seen[key]]
        seen[key] += 1
    assert finished == seen, "a finished call was repeated"
    assert all(len(each) == 1 for each in tokens.values())
    assert len(set.union(*tokens.values())) == len(keys)


# Nothing is kept


@pytest.mark.parametrize("dedup", [None, "share"])
def test_of_five_thousand_calls_nothing_is_left(dedup: Any) -> None:
    clock = FakeClock()
    limiter = Limiter("requests=1M/s:burst=1k", "concurrency=50", store=MemoryStore(clock))
    refs: list[weakref.ref[Call[Any]]] = []
    alive_at_once: list[int] = []

    async def function(key: int) -> int:
        if key % 10 == 0:
            current_call().record("key", key)
        await asyncio.sleep(0.01)
        if key % 7 == 0 and current_call().attempt == 1:
            raise Lost("no answer")
        return key

    runner = quiet(function, limiter, timeout=100, dedup=dedup)
    runner.subscribe(lambda event: refs.append(weakref.ref(event.call)), "added")  # type: ignore[arg-type]

    async def main() -> None:
        count = 0
        async for value in runner.map(range(5_000), ahead=100):
            assert value == count
            count += 1
            if count % 500 == 0:
                alive_at_once.append(sum(ref() is not None for ref in refs))

    clock.run(main())
    assert max(alive_at_once) < 500, alive_at_once
    gc.collect()
    assert [ref() for ref in refs if ref() is not None] == []
    assert len(runner._board.waiting._heap) + len(runner._board.asleep) < 2000
    assert runner._memory._facts == {}
    assert runner._board.is_settled()
