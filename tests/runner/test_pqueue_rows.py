"""The behaviours of p-queue 9, the richest queue of its kind in JavaScript, row by row against a Runner.

Each test bears the number of its row. Names translate: concurrency is ``max_concurrent``; interval and
intervalCap are ``interval=Interval(seconds, cap, kind="anchored")``; strict and carryoverIntervalCount are
kinds, too; add is ``schedule`` on a runner that has started; autoStart: false is ``paused=True``; onEmpty,
onIdle and onSizeLessThan are ``wait_empty``, ``wait_idle`` and ``wait_below``; the other on… and events are
``subscribe``; a signal is ``Call.cancel(reason)`` outside and ``current_call().cancelled`` inside.

One row is waived: PQ-24, a queue class of one's own. Priorities, ``set_priority``, ``cancel`` and the views
``waiting`` and ``running`` do what such classes are written for.

All times are virtual but where a row is about threads.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from headgate import Call, ConfigurationError, Interval, Limiter, Runner, current_call
from headgate.runner import CallCancelled, Event
from headgate.stores.memory import MemoryStore
from headgate.testing import FakeClock
from tests.waiting import PATIENCE_SECONDS, wait_until

ALL_KINDS = ("strict", "anchored", "carryover")


class Work:
    """A coroutine function that takes its time, and a log of what it did."""

    def __init__(self, clock: FakeClock, seconds: float = 0.0) -> None:
        self.clock = clock
        self.seconds = seconds
        self.log: list[tuple[float, object]] = []
        self.at_once = self.most_at_once = 0

    async def __call__(self, name: object = None, seconds: float | None = None) -> object:
        self.log.append((self.clock.elapsed_seconds, name))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.seconds if seconds is None else seconds)
        finally:
            self.at_once -= 1
        return name

    @property
    def starts(self) -> list[float]:
        return [instant for instant, _ in self.log]

    @property
    def names(self) -> list[object]:
        return [name for _, name in self.log]


def runner_on(
    clock: FakeClock, function: Callable[..., Any], *limits: str, **options: Any
) -> Runner[..., Any]:
    return Runner(function, Limiter(*limits, store=MemoryStore(clock)), progress=False, **options)


def events_of(runner: Runner[..., Any], *kinds: Any) -> list[tuple[str, str | None]]:
    """(kind, id of the call) of each event, as they come."""
    seen: list[tuple[str, str | None]] = []
    runner.subscribe(lambda event: seen.append((event.kind, event.call.id if event.call else None)), *kinds)
    return seen


def instants_of(runner: Runner[..., Any], clock: FakeClock, *kinds: Any) -> list[tuple[float, str]]:
    """(instant, kind) of each event, as they come."""
    seen: list[tuple[float, str]] = []
    runner.subscribe(lambda event: seen.append((clock.elapsed_seconds, event.kind)), *kinds)
    return seen


async def first(runner: Runner[..., Any], kind: Any) -> Event:
    """The first event of a kind from now on."""
    seen: asyncio.Future[Event] = asyncio.get_running_loop().create_future()

    def listener(event: Event) -> None:
        if not seen.done():
            seen.set_result(event)

    forget = runner.subscribe(listener, kind)
    try:
        return await seen
    finally:
        forget()


def limited(runner: Runner[..., Any]) -> bool:
    return runner.is_limited


def paused(runner: Runner[..., Any]) -> bool:
    return runner.is_paused


def saturated(runner: Runner[..., Any]) -> bool:
    return runner.is_saturated


def schedule(runner: Runner[..., Any], *names: object) -> list[Call[Any]]:
    return [runner.schedule(name) for name in names]


async def turns() -> None:
    """Let those who were told to stop do so, in the next turns of the loop."""
    for _ in range(5):
        await asyncio.sleep(0)


def timers() -> list[asyncio.TimerHandle]:
    """What is still set to ring in this loop."""
    scheduled: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    return [timer for timer in scheduled if not timer.cancelled()]


class TestSlots:
    @pytest.mark.parametrize("most", [0, -1, 1.5, float("inf"), float("nan"), "2", True])
    def test_slots_are_a_whole_number_of_1_or_more(self, fake_clock: FakeClock, most: Any) -> None:  # PQ-1
        with pytest.raises(ConfigurationError, match="max_concurrent"):
            runner_on(fake_clock, Work(fake_clock), max_concurrent=most)
        runner = runner_on(fake_clock, Work(fake_clock), max_concurrent=3)
        with pytest.raises(ConfigurationError, match="max_concurrent"):
            runner.max_concurrent = most
        assert runner.max_concurrent == 3

    def test_more_slots_start_waiting_calls_at_once(self, fake_clock: FakeClock) -> None:  # PQ-1
        work = Work(fake_clock, 10)

        async def main() -> None:
            runner = runner_on(fake_clock, work, max_concurrent=1)
            async with runner:
                schedule(runner, *range(5))
                await asyncio.sleep(2)
                runner.max_concurrent = 4
                await asyncio.sleep(1)
                assert (runner.pending, runner.size) == (4, 1)

        fake_clock.run(main())
        assert work.starts == [0, 2, 2, 2, 10]

    def test_fewer_slots_interrupt_nobody(self, fake_clock: FakeClock) -> None:  # PQ-1
        work = Work(fake_clock)

        async def main() -> None:
            runner = runner_on(fake_clock, work, max_concurrent=4)
            async with runner:
                for number in range(6):
                    runner.schedule(number, seconds=number + 1)
                await asyncio.sleep(0.5)
                runner.max_concurrent = 2
                await asyncio.sleep(1)
                assert (runner.pending, runner.max_concurrent) == (3, 2)
                assert [call.error for call in runner.running] == [None] * 3

        fake_clock.run(main())
        assert work.log == [(0, 0), (0, 1), (0, 2), (0, 3), (3, 4), (4, 5)]

    def test_a_start_needs_a_slot_and_the_interval_and_no_pause(self, fake_clock: FakeClock) -> None:  # PQ-2
        work = Work(fake_clock, 4)

        async def main() -> None:
            runner = runner_on(
                fake_clock, work, max_concurrent=1, interval=Interval(10, 2, kind="anchored"), paused=True
            )
            async with runner:
                schedule(runner, *range(5))
                await asyncio.sleep(3)
                runner.resume()

        fake_clock.run(main())
        # At 7 and 17 the slot is what lacks, at 11 and 21 the interval.
        assert work.starts == [3, 7, 13, 17, 23]

    def test_nothing_is_used_up_by_whom_the_interval_refuses(self, fake_clock: FakeClock) -> None:  # PQ-2
        limiter = Limiter("requests=5/min:burst=5:start=full:name=requests", store=MemoryStore(fake_clock))
        work = Work(fake_clock)

        async def main() -> None:
            runner = Runner(work, limiter, interval=Interval(10, 2), progress=False)
            async with runner:
                schedule(runner, *range(4))
                await asyncio.sleep(1)
                assert limiter.used() == {"requests": 2}
                assert limiter.waiting == 0
                runner.clear()

        fake_clock.run(main())
        assert work.starts == [0, 0]

    def test_nothing_is_used_up_by_whom_a_limit_refuses(self, fake_clock: FakeClock) -> None:  # PQ-2
        work = Work(fake_clock, 3)

        async def main() -> None:
            runner = runner_on(fake_clock, work, "concurrency=1", interval=Interval(10, 2))
            async with runner:
                schedule(runner, *range(4))

        fake_clock.run(main())
        assert work.starts == [0, 3, 10, 13]


class TestWindows:
    def test_windows_begin_with_the_first_start_and_follow_each_other_while_work_waits(
        self, fake_clock: FakeClock
    ) -> None:  # PQ-3
        work = Work(fake_clock)

        async def main() -> None:
            runner = runner_on(fake_clock, work, interval=Interval(10, 2, kind="anchored"))
            async with runner:
                await asyncio.sleep(3)
                schedule(runner, *range(5))
                await asyncio.sleep(11)  # 14: the window of 13 has two starts
                schedule(runner, 5, 6)

        fake_clock.run(main())
        assert work.starts == [3, 3, 13, 13, 23, 23, 33]

    def test_windows_follow_each_other_also_while_work_waits_for_a_slot(
        self, fake_clock: FakeClock
    ) -> None:  # PQ-3
        work = Work(fake_clock)

        async def main() -> None:
            runner = runner_on(fake_clock, work, interval=Interval(10, 2, kind="anchored"), max_concurrent=1)
            async with runner:
                for seconds in (1, 14, 0, 0, 0):
                    runner.schedule(seconds=seconds)

        fake_clock.run(main())
        assert work.starts == [0, 1, 15, 15, 20]

    def test_a_window_after_a_rest_begins_where_work_does(self, fake_clock: FakeClock) -> None:  # PQ-3
        work = Work(fake_clock)

        async def main() -> None:
            runner = runner_on(fake_clock, work, interval=Interval(10, 1, kind="anchored"))
            async with runner:
                schedule(runner, 0, 1)
                await asyncio.sleep(27)
                schedule(runner, 2, 3)

        fake_clock.run(main())
        assert work.starts == [0, 10, 27, 37]

    def test_windows_allow_two_caps_around_their_seam_and_strict_does_not(
        self, fake_clock: FakeClock
    ) -> None:  # PQ-4
        def starts(kind: Any) -> list[float]:
            work, begin = Work(fake_clock), fake_clock.elapsed_seconds

            async def main() -> None:
                runner = runner_on(fake_clock, work, interval=Interval(0.5, 5, kind=kind))
                async with runner:
                    runner.schedule()
                    await asyncio.sleep(0.475)
                    schedule(runner, *range(9))

            fake_clock.run(main())
            return [round(instant - begin, 6) for instant in work.starts]

        anchored, strict = starts("anchored"), starts("strict")
        assert anchored == [0, *[0.475] * 4, *[0.5] * 5]
        assert strict == [0, *[0.475] * 4, 0.5, *[0.975] * 4]

    def test_a_window_survives_idle(self, fake_clock: FakeClock) -> None:  # PQ-5
        work = Work(fake_clock)

        async def main() -> None:
            runner = runner_on(fake_clock, work, interval=Interval(10, 3, kind="anchored"))
            async with runner:
                schedule(runner, 0, 1)
                await runner.wait_idle_async()
                await asyncio.sleep(4)
                schedule(runner, 2, 3, 4)

        fake_clock.run(main())
        assert work.starts == [0, 0, 4, 10, 10]

    @pytest.mark.parametrize("way", ["done", "cleared", "cancelled"])
    def test_a_window_that_ended_while_idle_gives_exactly_one_cap(
        self, fake_clock: FakeClock, way: str
    ) -> None:  # PQ-5
        work = Work(fake_clock)

        async def main() -> None:
            runner = runner_on(fake_clock, work, interval=Interval(10, 2, kind="anchored"))
            async with runner:
                calls = schedule(runner, 0, 1, 2)
                await asyncio.sleep(5)
                if way == "cleared":
                    runner.clear()
                elif way == "cancelled":
                    calls[2].cancel()
                await asyncio.sleep(90)
                schedule(runner, 3, 4, 5, 6, 7)

        fake_clock.run(main())
        assert [instant for instant in work.starts if instant > 10] == [95, 95, 105, 105, 115]

    @pytest.mark.parametrize("slots", [None, 5, 2])
    def test_calls_still_running_count_in_the_next_window(
        self, fake_clock: FakeClock, slots: int | None
    ) -> None:  # PQ-6
        work = Work(fake_clock, 0.3)

        async def main() -> None:
            interval = Interval(0.2, 2, kind="carryover")
            async with runner_on(fake_clock, work, interval=interval, max_concurrent=slots) as runner:
                schedule(runner, *range(6))

        fake_clock.run(main())
        assert work.starts == [0, 0, 0.4, 0.4, 0.8, 0.8]

    def test_with_nothing_running_a_carryover_window_is_fresh(self, fake_clock: FakeClock) -> None:  # PQ-6
        work = Work(fake_clock, 0.1)

        async def main() -> None:
            async with runner_on(fake_clock, work, interval=Interval(0.2, 2, kind="carryover")) as runner:
                schedule(runner, *range(6))

        fake_clock.run(main())
        assert work.starts == [0, 0, 0.2, 0.2, 0.4, 0.4]

    def test_strict_carries_nothing_over(self, fake_clock: FakeClock) -> None:  # PQ-6
        work = Work(fake_clock, 0.3)

        async def main() -> None:
            async with runner_on(fake_clock, work, interval=Interval(0.2, 2, kind="strict")) as runner:
                schedule(runner, *range(6))

        fake_clock.run(main())
        assert work.starts == [0, 0, 0.2, 0.2, 0.4, 0.4]

    def test_an_option_that_nobody_knows_is_an_error(self, fake_clock: FakeClock) -> None:  # PQ-7, bettered
        work: Any = Work(fake_clock)
        runner: Any = runner_on(fake_clock, work)
        interval: Any = Interval
        with pytest.raises(TypeError, match="carryover"):
            runner_on(fake_clock, work, carryover=True)
        with pytest.raises(TypeError, match="carryover"):
            interval(1, carryover=True)
        with pytest.raises(TypeError, match="importance"):
            runner.options(importance=1)
        with pytest.raises(ConfigurationError, match="kind"):
            interval(1, kind="carryoverConcurrencyCount")


class TestStrict:
    def test_a_place_frees_when_its_own_start_is_an_interval_old(self, fake_clock: FakeClock) -> None:  # PQ-8
        work = Work(fake_clock)

        async def main() -> None:
            runner = runner_on(fake_clock, work, interval=Interval(10, 3))
            async with runner:
                for name in range(3):
                    runner.schedule(name)
                    await asyncio.sleep((2, 3, 1)[name])
                schedule(runner, *range(3, 8))

        fake_clock.run(main())
        assert work.starts == [0, 2, 5, 10, 12, 15, 20, 22]

    @pytest.mark.parametrize(
        ("seconds", "cap"),
        [(0, 1), (-1, 1), (float("nan"), 1), (float("inf"), 1), (1, 0), (1, float("inf")), (1, 1.5)],
    )
    def test_an_interval_needs_a_length_and_a_finite_cap(self, seconds: Any, cap: Any) -> None:  # PQ-8
        with pytest.raises(ConfigurationError, match="interval"):
            Interval(seconds, cap)

    def test_its_history_outlasts_clear(self, fake_clock: FakeClock) -> None:  # PQ-9
        work = Work(fake_clock)

        async def main() -> None:
            runner = runner_on(fake_clock, work, interval=Interval(10, 1))
            async with runner:
                schedule(runner, 0, 1)
                await asyncio.sleep(3)
                runner.clear()
                await asyncio.sleep(1)
                runner.schedule(2)

        fake_clock.run(main())
        assert work.log == [(0, 0), (10, 2)]

    def test_its_history_outlasts_idle_and_another_start(self, fake_clock: FakeClock) -> None:  # PQ-9
        work = Work(fake_clock)

        async def main() -> None:
            runner = runner_on(fake_clock, work, interval=Interval(10, 2))
            async with runner:
                schedule(runner, 0, 1)
                await runner.wait_idle_async()
                await asyncio.sleep(4)
                runner.schedule(2)
            assert fake_clock.elapsed_seconds == 10
            await asyncio.sleep(1)
            async with runner:
                schedule(runner, 3, 4)

        fake_clock.run(main())
        assert work.log == [(0, 0), (0, 1), (10, 2), (11, 3), (20, 4)]

    def test_it_wakes_although_the_queue_was_cleared_and_filled_while_it_slept(
        self, fake_clock: FakeClock
    ) -> None:  # PQ-9
        work = Work(fake_clock)

        async def main() -> None:
            runner = runner_on(fake_clock, work, interval=Interval(10, 1))
            async with runner:
                schedule(runner, 0, 1)
                await asyncio.sleep(9)
                for name in range(2, 5):
                    runner.clear()
                    runner.schedule(name)

        fake_clock.run(main())
        assert work.log == [(0, 0), (10, 4)]

    @pytest.mark.parametrize("kind", ALL_KINDS)
    @pytest.mark.parametrize("jump", [10.0, -2.0, 86_400.0])
    def test_whoever_sets_the_clock_changes_nothing(
        self, fake_clock: FakeClock, jump: float, kind: Any
    ) -> None:  # PQ-10, bettered
        work = Work(fake_clock)

        async def main() -> None:
            async with runner_on(fake_clock, work, interval=Interval(2, 1, kind=kind)) as runner:
                schedule(runner, 0, 1, 2)
                await asyncio.sleep(1)
                fake_clock.jump_wall(jump)

        fake_clock.run(main())
        assert work.starts == [0, 2, 4]


class TestGivingBack:
    @pytest.mark.parametrize("kind", ALL_KINDS)
    def test_a_call_cancelled_before_its_function_is_called_gives_its_place_back(
        self, fake_clock: FakeClock, kind: Any
    ) -> None:  # PQ-11
        work = Work(fake_clock, 1)

        def cancel(event: Event) -> None:
            assert event.call is not None
            if event.call.args == (1,):
                event.call.cancel()

        async def main() -> None:
            runner = runner_on(fake_clock, work, interval=Interval(10, 2, kind=kind), max_concurrent=2)
            runner.subscribe(cancel, "started")
            async with runner:
                calls = schedule(runner, 0, 1, 2, 3)
                await asyncio.sleep(1)
                assert calls[1].attempts == 0
                assert runner.statistics().attempts == 2

        fake_clock.run(main())
        assert work.log == [(0, 0), (0, 2), (10, 3)]

    @pytest.mark.parametrize("kind", ALL_KINDS)
    def test_calls_cancelled_while_they_wait_use_no_place(
        self, fake_clock: FakeClock, kind: Any
    ) -> None:  # PQ-11
        work = Work(fake_clock)

        async def main() -> None:
            runner = runner_on(fake_clock, work, interval=Interval(10, 2, kind=kind), paused=True)
            async with runner:
                calls = schedule(runner, *range(6))
                for call in calls[:3]:
                    assert call.cancel()
                runner.resume()

        fake_clock.run(main())
        assert work.log == [(0, 3), (0, 4), (10, 5)]

    def test_a_limit_gets_back_what_a_call_took_that_was_not_made(
        self, fake_clock: FakeClock
    ) -> None:  # PQ-11
        limiter = Limiter("requests=3/min:burst=3:start=full:name=requests", store=MemoryStore(fake_clock))
        work = Work(fake_clock, 1)

        async def main() -> None:
            runner = Runner(work, limiter, progress=False)
            runner.subscribe(lambda event: event.call and event.call.cancel(), "started")
            async with runner:
                schedule(runner, *range(50))

        fake_clock.run(main())
        assert work.log == []
        assert limiter.used() == {"requests": 0}
        assert fake_clock.elapsed_seconds == 0


class TestPriorities:
    def test_larger_first_and_equals_in_order(self, fake_clock: FakeClock) -> None:  # PQ-12
        work = Work(fake_clock)
        asked: list[float | None] = [None, 1, 0, -1, 0.5, 1, -1e300, 1e300, None]

        async def main() -> None:
            async with runner_on(fake_clock, work, max_concurrent=1, paused=True) as runner:
                for name, priority in enumerate(asked):
                    chosen = runner if priority is None else runner.options(priority=priority)
                    chosen.schedule(name)
                assert [call.args[0] for call in runner.waiting] == [7, 1, 5, 4, 0, 2, 8, 3, 6]
                runner.resume()

        fake_clock.run(main())
        assert work.names == [7, 1, 5, 4, 0, 2, 8, 3, 6]

    @pytest.mark.parametrize("priority", [float("nan"), float("inf"), -float("inf"), "1", None])
    def test_a_priority_is_a_finite_number(self, fake_clock: FakeClock, priority: Any) -> None:  # PQ-12
        runner = runner_on(fake_clock, Work(fake_clock))
        with pytest.raises(ConfigurationError, match="finite"):
            runner.options(priority=priority).schedule(0)
        assert runner.size == 0

    def test_nobody_who_runs_is_overtaken(self, fake_clock: FakeClock) -> None:  # PQ-12
        work = Work(fake_clock, 5)

        async def main() -> None:
            async with runner_on(fake_clock, work, max_concurrent=1) as runner:
                schedule(runner, "first", "second")
                await asyncio.sleep(1)
                runner.options(priority=9).schedule("urgent")

        fake_clock.run(main())
        assert work.log == [(0, "first"), (5, "urgent"), (10, "second")]

    @pytest.mark.parametrize("limits", [(), ("concurrency=1",), ("requests=1/s:burst=1:start=full",)])
    def test_no_age_makes_up_for_a_priority(
        self, fake_clock: FakeClock, limits: tuple[str, ...]
    ) -> None:  # PQ-12
        work = Work(fake_clock, 1)

        async def main() -> None:
            async with runner_on(fake_clock, work, *limits, max_concurrent=1, paused=True) as runner:
                runner.schedule("old")
                for number in range(50):
                    runner.options(priority=1).schedule(number)
                runner.resume()

        fake_clock.run(main())
        assert work.names == [*range(50), "old"]

    def test_the_next_call_is_chosen_at_the_last_moment(self, fake_clock: FakeClock) -> None:  # PQ-12
        work = Work(fake_clock)

        async def main() -> None:
            runner = runner_on(fake_clock, work, "requests=1/min:burst=1:start=full")
            async with runner:
                schedule(runner, 0, 1)
                await asyncio.sleep(50)  # the dispatcher is in line for the second call
                runner.options(priority=1).schedule("urgent")

        fake_clock.run(main())
        assert work.names == [0, "urgent", 1]
        assert work.starts[1] < 61

    def test_a_call_moves_to_the_tail_of_its_new_priority(self, fake_clock: FakeClock) -> None:  # PQ-13
        work = Work(fake_clock)

        async def main() -> None:
            async with runner_on(fake_clock, work, max_concurrent=1, paused=True) as runner:
                calls = [runner.options(priority=name // 2).schedule(name) for name in range(6)]
                assert [call.id for call in calls] == ["1", "2", "3", "4", "5", "6"]
                runner.set_priority("1", 2)
                runner.set_priority(calls[5], 0)
                calls[2].priority = 1  # the same one: to its tail
                assert [call.priority for call in calls] == [2, 0, 1, 1, 2, 0]
                runner.resume()

        fake_clock.run(main())
        assert work.names == [4, 0, 3, 2, 1, 5]

    def test_ids_need_not_be_unique_and_the_first_that_waits_is_moved(
        self, fake_clock: FakeClock
    ) -> None:  # PQ-13
        work = Work(fake_clock, 1)

        async def main() -> None:
            async with runner_on(fake_clock, work, max_concurrent=1) as runner:
                for name in range(4):
                    runner.options(id="same").schedule(name)
                await asyncio.sleep(0.5)  # 0 runs
                runner.set_priority("same", -1)

        fake_clock.run(main())
        assert work.names == [0, 2, 3, 1]

    def test_only_who_waits_can_be_moved(self, fake_clock: FakeClock) -> None:  # PQ-13
        async def main() -> None:
            async with runner_on(fake_clock, Work(fake_clock, 1), max_concurrent=1) as runner:
                running, waiting = schedule(runner, 0, 1)
                await asyncio.sleep(0.5)
                for gone in (running, "1", "nobody"):
                    with pytest.raises(LookupError):
                        runner.set_priority(gone, 1)
                for priority in (float("nan"), float("inf")):
                    with pytest.raises(ConfigurationError, match="finite"):
                        runner.set_priority(waiting, priority)
                await running
                await waiting
                with pytest.raises(LookupError):
                    waiting.priority = 1

        fake_clock.run(main())

    @pytest.mark.parametrize("by_id", [False, True])
    def test_the_priority_of_a_call_that_pauses_between_attempts_can_be_set(
        self, fake_clock: FakeClock, by_id: bool
    ) -> None:  # PQ-13
        names: list[str] = []

        async def function(name: str) -> None:
            names.append(name)
            if name == "flaky" and current_call().attempt == 1:
                raise ConnectionError("no answer")
            await asyncio.sleep(100)

        async def main() -> None:
            runner = runner_on(fake_clock, function, max_concurrent=1, max_attempts=2, backoff_seconds=30)
            async with runner:
                flaky, *_ = schedule(runner, "flaky", "first", "second")
                await first(runner, "retried")
                assert flaky.state == "asleep"
                runner.set_priority(flaky.id if by_id else flaky, 1)

        fake_clock.run(main())
        assert names == ["flaky", "first", "flaky", "second"]


class TestTimeouts:
    def test_the_time_runs_from_the_start_of_the_function(self, fake_clock: FakeClock) -> None:  # PQ-14
        async def main() -> None:
            runner = runner_on(fake_clock, Work(fake_clock, 5), max_concurrent=1, timeout=6)
            async with runner:
                calls = schedule(runner, 0, 1, 2)
            assert [call.error for call in calls] == [None] * 3
            assert fake_clock.elapsed_seconds == 15

        fake_clock.run(main())

    def test_a_call_that_takes_too_long_fails_with_a_timeout_error(
        self, fake_clock: FakeClock
    ) -> None:  # PQ-14
        async def main() -> None:
            async with runner_on(fake_clock, Work(fake_clock, 5), timeout=3, max_attempts=1) as runner:
                call = runner.schedule(0)
                with pytest.raises(TimeoutError):
                    await call
                assert fake_clock.elapsed_seconds == 3
                with pytest.raises(TimeoutError):
                    call.result()
            assert runner.statistics().timeouts == 1

        fake_clock.run(main())

    def test_a_call_may_have_its_own_time(self, fake_clock: FakeClock) -> None:  # PQ-14
        async def main() -> None:
            async with runner_on(fake_clock, Work(fake_clock, 5), timeout=3, max_attempts=1) as runner:
                ended: dict[float | None, Call[Any]] = {
                    timeout: runner.options(timeout=timeout).schedule(0) for timeout in (1, 4, 6, None)
                }
            assert {timeout: type(call.error) for timeout, call in ended.items()} == {
                1: TimeoutError,
                4: TimeoutError,
                6: type(None),
                None: type(None),
            }

        fake_clock.run(main())

    @pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "1"])
    def test_a_timeout_is_a_finite_number_above_0(self, fake_clock: FakeClock, timeout: Any) -> None:  # PQ-14
        with pytest.raises(ConfigurationError, match="timeout"):
            runner_on(fake_clock, Work(fake_clock), timeout=timeout)
        runner = runner_on(fake_clock, Work(fake_clock))
        with pytest.raises(ConfigurationError, match="timeout"):
            runner.options(timeout=timeout).schedule(0)
        assert runner.size == 0


class Stubborn(Work):
    """It does not stop when it is told to, but cleans up for a while."""

    cleanup_seconds = 5.0

    async def __call__(self, name: object = None, seconds: float | None = None) -> object:
        self.log.append((self.clock.elapsed_seconds, name))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            await asyncio.sleep(self.cleanup_seconds)
            raise
        finally:
            self.at_once -= 1
        return name


class TestSlotsAreHeldUntilWorkHasReallyEnded:
    @pytest.mark.parametrize("way", ["timeout", "cancel"])
    @pytest.mark.parametrize("limits", [(), ("concurrency=1",)])
    def test_by_coroutines(
        self, fake_clock: FakeClock, way: str, limits: tuple[str, ...]
    ) -> None:  # PQ-15, bettered
        work = Stubborn(fake_clock)

        async def main() -> None:
            runner = runner_on(
                fake_clock,
                work,
                *limits,
                max_concurrent=None if limits else 1,
                max_attempts=1,
                timeout=2 if way == "timeout" else None,
            )
            async with runner:
                calls = schedule(runner, 0, 1, 2)
                await asyncio.sleep(2)
                if way == "cancel":
                    calls[0].cancel()
                await asyncio.sleep(1)
                assert calls[0].done()
                assert (runner.pending, work.names) == (1, [0])
                await asyncio.sleep(5)
                assert work.log == [(0, 0), (7, 1)]
            assert work.most_at_once == 1

        fake_clock.run(main())

    @pytest.mark.parametrize("way", ["timeout", "cancel"])
    def test_by_functions_in_threads(self, way: str) -> None:  # PQ-15, bettered
        lock = threading.Lock()
        at_once = most_at_once = 0
        go_on = [threading.Event() for _ in range(3)]
        began = [threading.Event() for _ in range(3)]
        told: list[bool] = []

        def function(number: int) -> int:
            nonlocal at_once, most_at_once
            with lock:
                at_once += 1
                most_at_once = max(most_at_once, at_once)
            began[number].set()
            assert go_on[number].wait(PATIENCE_SECONDS)
            told.append(current_call().cancelled)
            with lock:
                at_once -= 1
            return number

        runner = Runner(function, max_concurrent=1, max_attempts=1, progress=False)
        with runner:
            first = runner.options(timeout=0.02 if way == "timeout" else None).schedule(0)
            second, third = runner.schedule(1), runner.schedule(2)
            assert began[0].wait(PATIENCE_SECONDS)
            if way == "cancel":
                assert first.cancel()
            with pytest.raises(TimeoutError if way == "timeout" else CallCancelled):
                first.result(PATIENCE_SECONDS)
            assert (runner.pending, runner.size) == (1, 2)
            assert not began[1].is_set()
            for event in go_on:
                event.set()
            assert [second.result(PATIENCE_SECONDS), third.result(PATIENCE_SECONDS)] == [1, 2]
        assert most_at_once == 1
        assert told == [True, False, False]
        assert first.value is None

    def test_by_functions_that_return_a_coroutine_too_late(self) -> None:  # PQ-15, bettered
        go_on = threading.Event()
        ran: list[int] = []

        async def coroutine(number: int) -> int:
            ran.append(number)
            return number

        def function(number: int) -> Any:
            assert go_on.wait(PATIENCE_SECONDS)
            return coroutine(number)

        runner = Runner(function, max_concurrent=1, max_attempts=1, progress=False)
        with runner:
            late = runner.options(timeout=0.02).schedule(1)
            with pytest.raises(TimeoutError):
                late.result(PATIENCE_SECONDS)
            assert runner.pending == 1
            go_on.set()
            assert runner.schedule(2).result(PATIENCE_SECONDS) == 2
            wait_until(lambda: runner.pending == 0)
        assert ran == [2]


class Reason(Exception):
    """Somebody's own."""


class TestCancelling:
    def test_a_waiting_call_leaves_at_once_with_the_reason(self, fake_clock: FakeClock) -> None:  # PQ-16
        work, reason = Work(fake_clock, 5), Reason("no longer needed")

        async def main() -> None:
            async with runner_on(fake_clock, work, max_concurrent=1) as runner:
                _, call, last = schedule(runner, 0, 1, 2)
                await asyncio.sleep(1)
                told = events_of(runner)
                assert call.cancel(reason)
                assert (runner.size, call.done(), call.state) == (1, True, "done")
                with pytest.raises(Reason) as caught:
                    await call
                assert caught.value is reason
                assert fake_clock.elapsed_seconds == 1
                assert told == [("failed", "2")]
                await last

        fake_clock.run(main())
        assert work.names == [0, 2]

    def test_without_a_reason_it_fails_with_call_cancelled(self, fake_clock: FakeClock) -> None:  # PQ-16
        runner = runner_on(fake_clock, Work(fake_clock))
        call = runner.schedule(0)
        assert call.cancel()
        with pytest.raises(CallCancelled):
            call.result()
        assert not call.cancel()  # it is done

    def test_a_call_cancelled_right_after_it_was_scheduled_never_starts(
        self, fake_clock: FakeClock
    ) -> None:  # PQ-16
        work = Work(fake_clock)

        async def main() -> None:
            async with runner_on(fake_clock, work) as runner:
                call = runner.schedule(0)
                assert call.cancel(Reason())
                with pytest.raises(Reason):
                    await call

        fake_clock.run(main())
        assert work.log == []

    def test_it_works_while_paused_and_nothing_goes_on_for_it(self, fake_clock: FakeClock) -> None:  # PQ-16
        work = Work(fake_clock)

        async def main() -> None:
            async with runner_on(fake_clock, work, paused=True) as runner:
                calls = schedule(runner, 0, 1, 2)
                calls[1].cancel(Reason())
                with pytest.raises(Reason):
                    await calls[1]
                await asyncio.sleep(1)
                assert (paused(runner), runner.size, work.log) == (True, 2, [])
                runner.resume()

        fake_clock.run(main())
        assert work.names == [0, 2]

    def test_the_right_one_of_several_with_one_id_leaves(self, fake_clock: FakeClock) -> None:  # PQ-16
        work = Work(fake_clock)

        async def main() -> None:
            async with runner_on(fake_clock, work, paused=True) as runner:
                calls = [runner.options(id="same").schedule(name) for name in range(4)]
                calls[2].cancel()
                calls[0].cancel()
                runner.resume()

        fake_clock.run(main())
        assert work.names == [1, 3]

    def test_a_running_call_is_told_and_its_coroutine_cancelled(self, fake_clock: FakeClock) -> None:  # PQ-16
        told: list[tuple[float, bool]] = []

        async def function() -> None:
            assert not current_call().cancelled
            try:
                await asyncio.sleep(10)
            finally:
                told.append((fake_clock.elapsed_seconds, current_call().cancelled))

        async def main() -> None:
            async with runner_on(fake_clock, function) as runner:
                call = runner.schedule()
                await asyncio.sleep(3)
                call.cancel(Reason())
                with pytest.raises(Reason):
                    await call
                await turns()
                assert runner.pending == 0
            assert call.exceptions == []

        fake_clock.run(main())
        assert told == [(3, True)]

    def test_nobody_stays_behind_when_a_call_is_over(self, fake_clock: FakeClock) -> None:  # PQ-16
        async def main() -> None:
            async with runner_on(fake_clock, Work(fake_clock, 1), max_concurrent=1) as runner:
                calls = schedule(runner, *range(3))
                waiters = [asyncio.ensure_future(call) for call in calls]
                await asyncio.sleep(0.5)
                calls[1].cancel()
                await asyncio.sleep(1)
                runner.clear()
                outcomes = await asyncio.gather(*waiters, return_exceptions=True)
                assert [type(outcome) for outcome in outcomes] == [int, CallCancelled, int]
            for call in calls:
                assert call._done_callbacks is None
                assert (call.entry, call.attempt, call.context) == (None, None, None)

        fake_clock.run(main())

    def test_ten_thousand_cancelled_calls_are_no_matter(self, fake_clock: FakeClock) -> None:  # PQ-16
        work = Work(fake_clock)

        async def main() -> None:
            async with runner_on(fake_clock, work, max_concurrent=1, paused=True) as runner:
                calls = schedule(runner, *range(10_000))
                for call in reversed(calls[1:]):
                    call.cancel()
                assert runner.size == 1
                calls += [runner.options(id=f"more {name}").schedule(name) for name in range(10_000)]
                for call in calls[10_000:]:
                    call.cancel()
                assert runner.size == 1
                assert len(runner._board.waiting._heap) < 5_000
                runner.resume()
            assert runner.statistics().failed == 19_999

        fake_clock.run(main())
        assert work.names == [0]


class TestPauses:
    def test_a_pause_stops_starts_and_not_what_runs(self, fake_clock: FakeClock) -> None:  # PQ-17
        work = Work(fake_clock, 5)

        async def main() -> None:
            async with runner_on(fake_clock, work, max_concurrent=1) as runner:
                calls = schedule(runner, 0, 1)
                await asyncio.sleep(1)
                assert runner.pause() is runner
                assert paused(runner)
                await asyncio.sleep(20)
                assert calls[0].finished_at is not None
                assert calls[0].elapsed_seconds == 5
                assert (runner.pending, runner.size) == (0, 1)
                assert runner.resume() is runner
                assert not paused(runner)
                assert runner.resume() is runner  # nothing to do

        fake_clock.run(main())
        assert work.log == [(0, 0), (21, 1)]

    @pytest.mark.parametrize("kind", ALL_KINDS)
    def test_intervals_go_on_during_a_pause(self, fake_clock: FakeClock, kind: Any) -> None:  # PQ-17
        work = Work(fake_clock)

        async def main() -> None:
            runner = runner_on(fake_clock, work, interval=Interval(10, 2, kind=kind))
            async with runner:
                schedule(runner, *range(4))
                await asyncio.sleep(1)
                assert limited(runner)
                runner.pause()
                assert not limited(runner)
                await asyncio.sleep(12)
                runner.resume()

        fake_clock.run(main())
        assert work.starts == [0, 0, 13, 13]

    def test_limits_open_during_a_pause(self, fake_clock: FakeClock) -> None:  # PQ-17
        work = Work(fake_clock)

        async def main() -> None:
            runner = runner_on(fake_clock, work, "requests=1/min:burst=2:start=full")
            async with runner:
                schedule(runner, *range(4))
                await asyncio.sleep(1)
                assert limited(runner)
                runner.pause()
                assert not limited(runner)
                await asyncio.sleep(299)
                runner.resume()

        fake_clock.run(main())
        assert work.starts == [0, 0, 300, 300]

    def test_a_runner_may_be_born_paused(self, fake_clock: FakeClock) -> None:  # PQ-17
        work = Work(fake_clock)

        async def main() -> None:
            runner = runner_on(fake_clock, work, paused=True)
            assert paused(runner)
            async with runner:
                schedule(runner, 0, 1)
                await asyncio.sleep(7)
                assert work.log == []
                runner.resume()

        fake_clock.run(main())
        assert work.starts == [7, 7]


class TestClear:
    def test_who_waits_for_a_dropped_call_is_told(self, fake_clock: FakeClock) -> None:  # PQ-18, bettered
        work = Work(fake_clock, 5)

        async def main() -> None:
            async with runner_on(fake_clock, work, max_concurrent=1) as runner:
                running, *dropped = schedule(runner, 0, 1, 2)
                waiters = [asyncio.ensure_future(call) for call in dropped]
                await asyncio.sleep(1)
                assert runner.clear() == 2
                for waiter in waiters:
                    with pytest.raises(CallCancelled):
                        await waiter
                assert fake_clock.elapsed_seconds == 1
                assert await running == 0
            assert [call.done() for call in dropped] == [True, True]

        fake_clock.run(main())
        assert work.names == [0]

    def test_calls_that_pause_between_attempts_are_dropped_too(self, fake_clock: FakeClock) -> None:  # PQ-18
        attempts = 0

        async def function() -> None:
            nonlocal attempts
            attempts += 1
            raise ConnectionError("no answer")

        async def main() -> None:
            async with runner_on(fake_clock, function, backoff_seconds=30) as runner:
                call = runner.schedule()
                await first(runner, "retried")
                assert (call.state, runner.size) == ("asleep", 1)
                assert runner.clear() == 1
                assert runner.size == 0
                with pytest.raises(CallCancelled):
                    await call
            assert fake_clock.elapsed_seconds == 0

        fake_clock.run(main())
        assert attempts == 1

    def test_empty_is_told_and_idle_only_if_nothing_runs(self, fake_clock: FakeClock) -> None:  # PQ-18
        async def main() -> None:
            async with runner_on(fake_clock, Work(fake_clock, 5), max_concurrent=1) as runner:
                schedule(runner, 0, 1)
                await asyncio.sleep(1)
                told = events_of(runner, "empty", "idle")
                runner.clear()
                assert told == [("empty", None)]
                await runner.wait_idle_async()
                assert told == [("empty", None), ("idle", None)]
                runner.clear()  # nothing is there any more
                assert told == [("empty", None), ("idle", None)] * 2

        fake_clock.run(main())

    def test_it_wakes_all_who_wait_for_less(self, fake_clock: FakeClock) -> None:  # PQ-18
        async def main() -> None:
            async with runner_on(fake_clock, Work(fake_clock), paused=True) as runner:
                schedule(runner, *range(5))
                waits = (runner.wait_empty_async(), runner.wait_idle_async(), runner.wait_below_async(2))
                waiters = [asyncio.ensure_future(wait) for wait in waits]
                await asyncio.sleep(1)
                assert not any(waiter.done() for waiter in waiters)
                runner.clear()
                await asyncio.gather(*waiters)
            assert fake_clock.elapsed_seconds == 1

        fake_clock.run(main())


class TestWaiting:
    def test_all_return_at_once_if_nothing_is_there(self, fake_clock: FakeClock) -> None:  # PQ-19
        async def main() -> None:
            async with runner_on(fake_clock, Work(fake_clock)) as runner:
                await runner.wait_empty_async()
                await runner.wait_idle_async()
                await runner.wait_below_async(1)

        fake_clock.run(main())
        assert fake_clock.elapsed_seconds == 0

    def test_empty_comes_with_the_last_start_and_idle_with_the_last_end(
        self, fake_clock: FakeClock
    ) -> None:  # PQ-19
        async def main() -> None:
            async with runner_on(fake_clock, Work(fake_clock, 5), max_concurrent=1) as runner:
                schedule(runner, 0, 1, 2)
                await runner.wait_empty_async()
                assert fake_clock.elapsed_seconds == 10
                await runner.wait_idle_async()
                assert fake_clock.elapsed_seconds == 15

        fake_clock.run(main())

    def test_several_who_wait_for_different_sizes_wake_each_in_its_time(
        self, fake_clock: FakeClock
    ) -> None:  # PQ-19
        woke: dict[int, float] = {}

        async def main() -> None:
            runner = runner_on(fake_clock, Work(fake_clock), interval=Interval(1, 1))

            async def wait(size: int) -> None:
                await runner.wait_below_async(size)
                woke[size] = fake_clock.elapsed_seconds

            async with runner:
                schedule(runner, *range(6))
                await asyncio.gather(*(wait(size) for size in (1, 2, 4, 4, 7)))

        fake_clock.run(main())
        assert woke == {7: 0, 4: 2, 2: 4, 1: 5}

    @pytest.mark.parametrize("way", ["resume", "slots", "interval", "cancel"])
    def test_a_start_is_enough_without_any_end(self, fake_clock: FakeClock, way: str) -> None:  # PQ-19
        options: dict[str, dict[str, Any]] = {
            "resume": {"paused": True, "max_concurrent": 3},
            "slots": {"max_concurrent": 1},
            "interval": {"interval": Interval(2, 1)},
            "cancel": {"paused": True},
        }

        async def main() -> None:
            async with runner_on(fake_clock, Work(fake_clock, 100), **options[way]) as runner:
                calls = schedule(runner, 0, 1, 2)
                waiter = asyncio.ensure_future(runner.wait_below_async(2))
                await asyncio.sleep(2)
                if way == "resume":
                    runner.resume()
                elif way == "slots":
                    runner.max_concurrent = 3
                elif way == "cancel":
                    calls[0].cancel()
                    calls[2].cancel()
                await waiter
                assert fake_clock.elapsed_seconds == 2
                runner.resume()

        fake_clock.run(main())

    def test_nobody_is_left_behind_who_waited(self, fake_clock: FakeClock) -> None:  # PQ-19
        async def main() -> None:
            async with runner_on(fake_clock, Work(fake_clock, 1), max_concurrent=1) as runner:
                schedule(runner, *range(4))
                await asyncio.gather(runner.wait_below_async(3), runner.wait_below_async(2))
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(runner.wait_empty_async(), 0.5)
                assert runner._board._waits == []

        fake_clock.run(main())

    def test_threads_can_wait_as_well_and_give_up(self) -> None:  # PQ-19
        go_on = threading.Event()
        runner = Runner(go_on.wait, max_concurrent=1, progress=False)
        with runner:
            for _ in range(3):
                runner.schedule(PATIENCE_SECONDS)
            assert not runner.wait_idle(0.01)
            assert not runner.wait_empty(0.01)
            assert not runner.wait_below(2, 0.01)
            go_on.set()
            assert runner.wait_below(2, PATIENCE_SECONDS)
            assert runner.wait_empty(PATIENCE_SECONDS)
            assert runner.wait_idle(PATIENCE_SECONDS)
        assert runner._board._waits == []

    def test_the_first_error_can_be_waited_for(self, fake_clock: FakeClock) -> None:  # PQ-19
        async def function(number: int) -> None:
            await asyncio.sleep(number)
            if number % 2 == 0:
                raise KeyError(number)

        async def main() -> None:
            async with runner_on(fake_clock, function, max_attempts=1) as runner:
                schedule(runner, 1, 2, 3, 4)
                event = await first(runner, "failed")
                assert repr(event.error) == "KeyError(2)"
                assert fake_clock.elapsed_seconds == 2

        fake_clock.run(main())


class TestEvents:
    def test_empty_is_told_as_the_last_one_starts_and_idle_as_the_last_one_ends(
        self, fake_clock: FakeClock
    ) -> None:  # PQ-20
        async def main() -> None:
            runner = runner_on(fake_clock, Work(fake_clock, 5), max_concurrent=1)
            told = instants_of(runner, fake_clock, "empty", "idle")
            async with runner:
                await asyncio.sleep(1)
                assert told == []  # nothing was ever there
                schedule(runner, 0, 1)
                await runner.wait_idle_async()
                await asyncio.sleep(1)
                runner.schedule(2)
            assert told == [(6, "empty"), (11, "idle"), (12, "empty"), (17, "idle")]

        fake_clock.run(main())

    def test_a_run_without_calls_tells_nothing(self, fake_clock: FakeClock) -> None:  # PQ-20
        async def main() -> None:
            runner = runner_on(fake_clock, Work(fake_clock))
            told = events_of(runner)
            assert (await runner.run_async()).complete
            assert told == []

        fake_clock.run(main())

    def test_empty_is_told_when_the_last_waiting_call_is_cancelled(
        self, fake_clock: FakeClock
    ) -> None:  # PQ-20
        async def main() -> None:
            async with runner_on(fake_clock, Work(fake_clock, 5), max_concurrent=1) as runner:
                _, second, third = schedule(runner, 0, 1, 2)
                await asyncio.sleep(1)
                told = events_of(runner)
                second.cancel()
                assert told == [("failed", "2")]
                third.cancel()
                assert told == [("failed", "2"), ("failed", "3"), ("empty", None)]

        fake_clock.run(main())

    def test_empty_is_not_told_while_a_call_pauses_between_attempts(
        self, fake_clock: FakeClock
    ) -> None:  # PQ-20
        async def function(name: str) -> None:
            if name == "flaky" and current_call().attempt == 1:
                raise ConnectionError("no answer")
            await asyncio.sleep(100)

        async def main() -> None:
            runner = runner_on(fake_clock, function, max_attempts=2, backoff_seconds=30, max_concurrent=1)
            sizes: list[int] = []
            runner.subscribe(lambda event: sizes.append(runner.size), "empty")
            async with runner:
                schedule(runner, "flaky", "other")
            assert sizes == [0]

        fake_clock.run(main())

    def test_one_call_is_told_of_in_order(self, fake_clock: FakeClock) -> None:  # PQ-21
        async def function(fails: bool) -> None:
            await asyncio.sleep(1)
            if fails:
                raise TypeError("a bug")

        async def main() -> None:
            runner = runner_on(fake_clock, function, max_concurrent=1)
            told = events_of(runner)
            async with runner:
                schedule(runner, False, True)
            assert told == [
                ("added", "1"),
                ("added", "2"),
                ("started", "1"),
                ("completed", "1"),
                ("started", "2"),
                ("empty", None),
                ("failed", "2"),
                ("idle", None),
            ]

        fake_clock.run(main())

    @pytest.mark.parametrize("kind", ALL_KINDS)
    def test_a_listener_that_adds_work_breaks_no_limit(
        self, fake_clock: FakeClock, kind: Any
    ) -> None:  # PQ-21
        work = Work(fake_clock, 2)

        async def main() -> None:
            runner = runner_on(fake_clock, work, max_concurrent=2, interval=Interval(1, 2, kind=kind))
            left = 20

            def add(event: Event) -> None:
                nonlocal left
                if left and event.kind in ("started", "completed"):
                    left -= 2
                    schedule(runner, left, left + 1)

            runner.subscribe(add)
            async with runner:
                runner.schedule("first")

        fake_clock.run(main())
        assert len(work.log) == 21
        assert work.most_at_once == 2
        assert max(work.starts.count(instant) for instant in work.starts) == 2

    def test_a_call_that_adds_calls_breaks_no_limit(self, fake_clock: FakeClock) -> None:  # PQ-21
        work = Work(fake_clock, 1)

        async def main() -> None:
            async def function(depth: int) -> None:
                for _ in range(2 if depth < 3 else 0):
                    runner.schedule(depth + 1)
                await work(depth)

            runner = runner_on(fake_clock, function, max_concurrent=3)
            async with runner:
                runner.schedule(0)

        fake_clock.run(main())
        assert sorted(map(str, work.names)) == ["0", *"11", *"2222", *"33333333"]
        assert work.most_at_once == 3

    def test_listeners_are_told_in_order_also_if_one_acts_on_what_it_hears(
        self, fake_clock: FakeClock
    ) -> None:  # PQ-21
        async def main() -> None:
            runner = runner_on(fake_clock, Work(fake_clock), max_concurrent=1)
            runner.subscribe(lambda event: event.call and event.call.cancel(), "started")
            told = events_of(runner)
            async with runner:
                runner.schedule(0)
            assert told == [
                ("added", "1"),
                ("started", "1"),
                ("empty", None),
                ("failed", "1"),
                ("idle", None),
            ]

        fake_clock.run(main())

    def test_listeners_are_told_in_order_across_threads(self) -> None:  # PQ-21
        told: list[str] = []
        started = threading.Event()

        def listener(event: Event) -> None:
            if event.kind == "added":
                started.wait(0.1)  # time for the runner's thread to come first, if it may
            told.append(event.kind)
            if event.kind == "started":
                started.set()

        runner = Runner(lambda: None, progress=False)
        runner.subscribe(listener)
        with runner:
            runner.schedule()
        wait_until(lambda: "idle" in told)
        assert told == ["added", "started", "empty", "completed", "idle"]


class TestLimited:
    @pytest.mark.parametrize("kind", ALL_KINDS)
    def test_limited_means_that_the_cap_is_used_and_work_waits(
        self, fake_clock: FakeClock, kind: Any
    ) -> None:  # PQ-22
        async def main() -> None:
            runner = runner_on(fake_clock, Work(fake_clock), interval=Interval(10, 2, kind=kind))
            told = instants_of(runner, fake_clock, "limited", "unlimited")
            async with runner:
                schedule(runner, 0, 1)
                await asyncio.sleep(1)
                assert not limited(runner)  # exactly the cap, and nobody waits
                assert not saturated(runner)
                runner.schedule(2)
                await asyncio.sleep(1)
                assert limited(runner)
                assert saturated(runner)
            assert told == [(1, "limited"), (10, "unlimited")]

        fake_clock.run(main())

    @pytest.mark.parametrize("kind", ALL_KINDS)
    def test_one_event_for_each_change_however_many_windows_pass(
        self, fake_clock: FakeClock, kind: Any
    ) -> None:  # PQ-22
        async def main() -> None:
            runner = runner_on(fake_clock, Work(fake_clock), interval=Interval(10, 1, kind=kind))
            told = instants_of(runner, fake_clock, "limited", "unlimited")
            async with runner:
                schedule(runner, *range(4))
            assert told == [(0, "limited"), (30, "unlimited")]

        fake_clock.run(main())

    def test_one_event_for_each_change_however_many_permits_come(
        self, fake_clock: FakeClock
    ) -> None:  # PQ-22
        async def main() -> None:
            runner = runner_on(fake_clock, Work(fake_clock), "requests=1/s:burst=5:start=full")
            told = events_of(runner, "limited", "unlimited")
            async with runner:
                schedule(runner, *range(25))
            assert told == [("limited", None), ("unlimited", None)]

        fake_clock.run(main())

    def test_clear_ends_it_at_once(self, fake_clock: FakeClock) -> None:  # PQ-22
        async def main() -> None:
            async with runner_on(fake_clock, Work(fake_clock), interval=Interval(10, 1)) as runner:
                schedule(runner, 0, 1)
                await asyncio.sleep(1)
                told = events_of(runner, "limited", "unlimited")
                assert limited(runner)
                runner.clear()
                assert not limited(runner)
                assert told == [("unlimited", None)]

        fake_clock.run(main())

    def test_the_last_waiting_call_that_is_cancelled_ends_it(self, fake_clock: FakeClock) -> None:  # PQ-22
        async def main() -> None:
            async with runner_on(fake_clock, Work(fake_clock), interval=Interval(10, 1)) as runner:
                _, call = schedule(runner, 0, 1)
                await asyncio.sleep(1)
                assert limited(runner)
                call.cancel()
                await turns()
                assert not limited(runner)

        fake_clock.run(main())

    def test_limited_also_where_there_is_no_free_slot_either(self, fake_clock: FakeClock) -> None:  # PQ-22
        async def main() -> None:
            runner = runner_on(fake_clock, Work(fake_clock, 15), interval=Interval(10, 2), max_concurrent=2)
            told = instants_of(runner, fake_clock, "limited", "unlimited")
            async with runner:
                schedule(runner, 0, 1, 2)
                await asyncio.sleep(5)
                assert limited(runner)
                await asyncio.sleep(6)
                assert (limited(runner), saturated(runner)) == (False, True)
            assert told == [(0, "limited"), (10, "unlimited")]

        fake_clock.run(main())

    def test_not_limited_while_work_waits_for_a_slot_only(self, fake_clock: FakeClock) -> None:  # PQ-22
        async def main() -> None:
            runner = runner_on(
                fake_clock, Work(fake_clock, 30), "requests=1/10s:burst=1:start=full", max_concurrent=2
            )
            async with runner:
                schedule(runner, 0, 1, 2)
                await asyncio.sleep(25)
                assert (runner.pending, runner.size) == (2, 1)
                assert (limited(runner), saturated(runner)) == (False, True)

        fake_clock.run(main())

    def test_saturated_means_that_work_waits_for_whatever(self, fake_clock: FakeClock) -> None:  # PQ-22
        async def main() -> None:
            async with runner_on(fake_clock, Work(fake_clock, 5), max_concurrent=2) as runner:
                schedule(runner, 0, 1)
                await asyncio.sleep(1)
                assert not saturated(runner)  # full, and nobody waits
                runner.schedule(2)
                assert saturated(runner)
                assert not limited(runner)

        fake_clock.run(main())


class TestMany:
    def test_results_keep_the_order_of_what_went_in(self, fake_clock: FakeClock) -> None:  # PQ-23
        delays = [5, 1, 4, 0, 3]

        async def function(delay: int) -> int:
            await asyncio.sleep(delay)
            return delay

        async def main() -> None:
            runner = runner_on(fake_clock, function)
            assert [value async for value in runner.map(delays)] == delays
            calls = schedule(runner, *delays)
            results, exceptions = await runner.run_async()
            assert results == delays
            assert exceptions == [[]] * 5
            assert len({call.id for call in calls}) == 5

        fake_clock.run(main())

    def test_options_serve_many_calls_and_stay_what_they_are(self, fake_clock: FakeClock) -> None:  # PQ-23
        async def main() -> None:
            options: Any = {"priority": 2, "timeout": 9}
            async with runner_on(fake_clock, Work(fake_clock), paused=True) as runner:
                prepared = runner.options(**options)
                first, second = prepared.schedule(0), prepared.schedule(1)
                other = runner.schedule(2)
                assert (first.id, second.id, other.id) == ("1", "2", "3")
                assert [call.priority for call in (first, second, other)] == [2, 2, 0]
                assert options == {"priority": 2, "timeout": 9}
                runner.resume()

        fake_clock.run(main())

    def test_what_waits_and_what_runs_can_be_seen(self, fake_clock: FakeClock) -> None:  # PQ-23
        async def main() -> None:
            async with runner_on(fake_clock, Work(fake_clock, 5), max_concurrent=1) as runner:
                for name, priority in enumerate((2, 1, 0, 1)):
                    runner.options(priority=priority).schedule(name)
                await asyncio.sleep(3)
                assert [call.id for call in runner.waiting] == ["2", "4", "3"]
                assert sum(call.priority == 1 for call in runner.waiting) == 2
                [call] = runner.running
                assert (call.id, call.priority, call.state) == ("1", 2, "running")
                assert call.started_at == call.queued_at  # at the same instant of virtual time
                runner.running.clear()
                runner.waiting.clear()
                assert (runner.pending, runner.size) == (1, 3)

        fake_clock.run(main())


class TestTimers:
    @pytest.mark.parametrize(
        ("limits", "options"),
        [
            ((), {"interval": Interval(3600, 3, kind="anchored")}),
            ((), {"interval": Interval(3600, 3, kind="strict")}),
            ((), {"interval": Interval(0.01, 1, kind="carryover")}),
            ((), {"timeout": 3600.0}),
            ((), {"timeout": 0.05, "max_attempts": 2}),
            (("requests=10/s:burst=1:start=full", "concurrency=1"), {}),
            ((), {"ramp": 3600.0, "max_concurrent": 1}),
        ],
        ids=["anchored", "strict", "carryover", "timeout", "timed out", "limits", "ramp"],
    )
    def test_none_is_left_when_idle(
        self, fake_clock: FakeClock, limits: tuple[str, ...], options: dict[str, Any]
    ) -> None:  # PQ-25
        async def main() -> None:
            async with runner_on(fake_clock, Work(fake_clock, 0.1), *limits, **options) as runner:
                schedule(runner, 0, 1, 2)
                await runner.wait_idle_async()
                await turns()
                assert timers() == []

        fake_clock.run(main())

    @pytest.mark.parametrize("when", ["waiting", "starting", "running"])
    def test_none_is_left_by_a_call_that_is_cancelled(
        self, fake_clock: FakeClock, when: str
    ) -> None:  # PQ-25
        async def main() -> None:
            runner = runner_on(fake_clock, Work(fake_clock, 5), timeout=3600, max_concurrent=1)
            if when == "starting":
                runner.subscribe(lambda event: event.call and event.call.cancel(), "started")
            async with runner:
                calls = schedule(runner, 0, 1)
                if when == "running":
                    await asyncio.sleep(1)
                for call in reversed(calls):
                    if when != "starting":
                        call.cancel()
                await runner.wait_idle_async()
                await turns()
                assert timers() == []

        fake_clock.run(main())

    def test_the_process_can_end(self) -> None:  # PQ-25
        program = (
            "import threading\n"
            "from headgate import Interval, Runner\n"
            "hourly = Interval(3600, kind='anchored')\n"
            "runner = Runner(lambda: 7, interval=hourly, timeout=3600, progress=False)\n"
            "runner.start()\n"
            "assert runner.schedule().result(10) == 7\n"
            "runner.schedule()\n"  # waits for an hour
            "stuck = Runner(threading.Event().wait, progress=False)\n"
            "stuck.start()\n"
            "stuck.schedule()\n"
            "idle = Runner(lambda: 8, progress=False)\n"
            "assert idle.schedule().result(10) == 8\n"
            "print('done')\n"
        )
        ended = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True
        )
        assert (ended.stdout, ended.stderr) == ("done\n", "")
