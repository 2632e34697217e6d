"""Who goes first, who wakes whom, and what is left behind by those who go away."""

from __future__ import annotations

import asyncio
import math
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from headgate import AcquireTimeout, CostExceedsLimit, Limiter, Permit
from headgate.core.model import Costs, Decision, Wait
from headgate.core.plan import Plan
from headgate.events import Event, Waited
from headgate.stores.memory import MemoryStore
from headgate.testing import FakeClock, VirtualLoop
from tests.waiting import InThread, line_in, wait_until


def limiter_on(clock: FakeClock, *limits: str) -> Limiter:
    return Limiter(*limits, store=MemoryStore(clock))


def is_empty(limiter: Limiter) -> bool:
    """Nobody stands in line, nobody is believed to, and no slot is taken."""
    line = line_in(limiter)
    return (limiter.waiting, line._head, bool(line._order)) == (0, None, False) and not limiter.used().get(
        "concurrency"
    )


@contextmanager
def loop_in_thread() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def busy(loop: asyncio.AbstractEventLoop) -> threading.Event:
    """Keep a loop from turning until the event is set."""
    stalled, go_on = threading.Event(), threading.Event()

    def stall() -> None:
        stalled.set()
        go_on.wait(10)

    loop.call_soon_threadsafe(stall)
    assert stalled.wait(10)
    return go_on


def abandoned(limiter: Limiter, waiters: int) -> list[asyncio.Task[Permit]]:
    """Tasks that stood in line when their loop was closed under them."""
    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(limiter.acquire_async()) for _ in range(waiters)]
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # that is what is tested
    before = limiter.waiting
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert limiter.waiting == before + waiters
    return tasks


class TestOrder:
    def test_first_come_first_served_in_one_loop(self, fake_clock: FakeClock) -> None:
        limiter = limiter_on(fake_clock, "requests=10/s:burst=1:start=full")
        went: list[tuple[int, float]] = []

        async def call(number: int) -> None:
            async with limiter.permit():
                went.append((number, fake_clock.elapsed_seconds))

        async def main() -> None:
            await asyncio.gather(*(call(number) for number in range(20)))

        fake_clock.run(main())
        assert [number for number, _ in went] == list(range(20))
        for number, instant in went:
            assert number * 0.1 <= instant <= number * 0.1 * 1.0003

    def test_first_come_first_served_across_threads(self) -> None:
        limiter = Limiter("concurrency=1")
        went: list[int] = []
        first = limiter.acquire()

        def call(number: int) -> None:
            with limiter.permit():
                went.append(number)

        threads = []
        for number in range(12):
            threads.append(InThread(lambda number=number: call(number)))  # type: ignore[misc]  # default
            wait_until(lambda number=number: limiter.waiting == number + 1)  # type: ignore[misc]  # default
        first.settle()
        for thread in threads:
            thread.result()
        assert went == list(range(12))
        assert is_empty(limiter)

    def test_first_come_first_served_across_threads_and_loops(self) -> None:
        limiter = Limiter("concurrency=1")
        went: list[int] = []
        first = limiter.acquire()

        def call(number: int) -> None:
            with limiter.permit():
                went.append(number)

        async def call_async(number: int) -> None:
            async with limiter.permit():
                went.append(number)

        with loop_in_thread() as one, loop_in_thread() as two:
            calls: list[Callable[[], object]] = []
            for number in range(18):
                if number % 3:
                    loop = one if number % 3 == 1 else two
                    calls.append(asyncio.run_coroutine_threadsafe(call_async(number), loop).result)
                else:
                    thread = InThread(lambda number=number: call(number))  # type: ignore[misc]  # default
                    calls.append(thread.result)
                wait_until(lambda number=number: limiter.waiting == number + 1)  # type: ignore[misc]  # default
            first.settle()
            for result in calls:
                result()
        assert went == list(range(18))
        assert is_empty(limiter)

    def test_larger_priorities_first_and_equals_in_order(self, fake_clock: FakeClock) -> None:
        asked = [0.0, 5, 1, 5, 0, -1, 1]
        order = self.order_of(fake_clock, asked)
        assert order == [1, 3, 2, 6, 0, 4, 5]

    def test_every_eighth_goes_to_the_eldest(self, fake_clock: FakeClock) -> None:
        order = self.order_of(fake_clock, [0.0] * 3 + [1.0] * 40)
        assert [order.index(number) for number in range(3)] == [7, 15, 23]
        assert [number for number in order if number > 2] == list(range(3, 43))

    def test_a_steady_feed_of_important_calls_starves_nobody(self, fake_clock: FakeClock) -> None:
        limiter = limiter_on(fake_clock, "concurrency=1")
        served: list[float] = []

        async def call(priority: float) -> None:
            async with limiter.permit(priority=priority):
                await asyncio.sleep(0.01)
                served.append(priority)

        async def feed() -> None:
            while len(served) < 100:
                await call(9)

        async def main() -> None:
            feeds = [asyncio.create_task(feed()) for _ in range(3)]
            await asyncio.sleep(0.001)
            await asyncio.gather(*(call(-number) for number in range(5)))
            assert len(served) <= 5 * 8 + 1
            await asyncio.gather(*feeds)

        fake_clock.run(main())
        assert is_empty(limiter)

    @staticmethod
    def order_of(clock: FakeClock, priorities: Sequence[float]) -> list[int]:
        limiter = limiter_on(clock, "concurrency=1")
        went: list[int] = []

        async def call(number: int) -> None:
            async with limiter.permit(priority=priorities[number]):
                went.append(number)

        async def main() -> None:
            first = await limiter.acquire_async()
            calls = [asyncio.create_task(call(number)) for number in range(len(priorities))]
            await asyncio.sleep(0)
            assert limiter.waiting == len(priorities)
            first.settle()
            await asyncio.gather(*calls)

        clock.run(main())
        return went

    def test_nobody_overtakes_by_trying(self, fake_clock: FakeClock) -> None:
        limiter = limiter_on(fake_clock, "tokens=10/s:burst=10:start=full")

        async def main() -> None:
            (await limiter.acquire_async(tokens=4)).settle()
            head = asyncio.create_task(limiter.acquire_async(tokens=10))
            await asyncio.sleep(0)
            used = limiter.used()
            assert limiter.try_permit(tokens=1) is None, "it would fit, but is not first in line"
            assert limiter.used() == used
            assert fake_clock.elapsed_seconds == 0
            (await head).settle()

        fake_clock.run(main())
        fake_clock.advance(2)
        assert limiter.try_permit(tokens=1) is not None

    def test_an_important_call_that_fits_does_not_wait_for_a_large_one(self, fake_clock: FakeClock) -> None:
        limiter = limiter_on(fake_clock, "tokens=10/s:burst=10:start=full")

        async def main() -> None:
            (await limiter.acquire_async(tokens=4)).settle()
            head = asyncio.create_task(limiter.acquire_async(tokens=10))
            await asyncio.sleep(0)
            (await limiter.acquire_async(tokens=1, priority=1)).settle()
            assert fake_clock.elapsed_seconds == 0
            (await head).settle()
            assert fake_clock.elapsed_seconds == 0.5001

        fake_clock.run(main())

    def test_keys_do_not_block_each_other(self, fake_clock: FakeClock) -> None:
        store = MemoryStore(fake_clock)
        full, free = (Limiter("concurrency=1", key=key, store=store) for key in ("full", "free"))

        async def main() -> None:
            held = await full.acquire_async()
            waits = asyncio.create_task(full.acquire_async())
            await asyncio.sleep(0)
            for _ in range(100):
                async with free.permit():
                    pass
            assert fake_clock.elapsed_seconds == 0
            held.settle()
            (await waits).settle()

        fake_clock.run(main())

    def test_limiters_of_one_key_and_store_stand_in_one_line(self, fake_clock: FakeClock) -> None:
        store = MemoryStore(fake_clock)
        one, other = (Limiter("concurrency=1", store=store) for _ in range(2))
        went: list[int] = []

        async def call(number: int) -> None:
            async with (one, other)[number % 2].permit():
                went.append(number)
                await asyncio.sleep(1)

        async def main() -> None:
            async with asyncio.timeout(100):
                await asyncio.gather(*(call(number) for number in range(10)))

        fake_clock.run(main())
        assert went == list(range(10))


class TestTimes:
    """A limit on waiting."""

    def test_is_told_at_once_if_it_would_take_too_long(self, fake_clock: FakeClock) -> None:
        limiter = limiter_on(fake_clock, "requests=2/s:burst=1:start=full")
        limiter.acquire().settle()
        used = limiter.used()

        async def too_long() -> None:
            await limiter.acquire_async(max_wait=0.4)

        for ask in (lambda: limiter.acquire(max_wait=0.4), lambda: fake_clock.run(too_long())):
            with pytest.raises(
                AcquireTimeout, match=r"no permit within 0\.4 s: requests/s opens in 0\.5 s"
            ) as told:
                ask()
            assert told.value.limit == "requests/s"
            assert told.value.retry_after_seconds == pytest.approx(0.5, rel=0.001)
            assert (fake_clock.elapsed_seconds, limiter.used(), limiter.waiting) == (0, used, 0)

    @pytest.mark.parametrize("max_wait", [0.6, math.inf, 1e12])
    def test_waits_if_it_will_do(self, fake_clock: FakeClock, max_wait: float) -> None:
        limiter = limiter_on(fake_clock, "requests=2/s:burst=1:start=full")

        async def main() -> None:
            for _ in range(2):
                async with limiter.permit(max_wait=max_wait):
                    pass

        fake_clock.run(main())
        assert 0.5 <= fake_clock.elapsed_seconds < 0.51

    def test_gives_up_at_its_instant(self, fake_clock: FakeClock) -> None:
        limiter = limiter_on(fake_clock, "concurrency=1")

        async def main() -> None:
            async with limiter.permit():
                with pytest.raises(
                    AcquireTimeout, match=r"within 2 s: concurrency opens when a call ends"
                ) as told:
                    await limiter.acquire_async(max_wait=2)
                assert (told.value.limit, told.value.retry_after_seconds) == ("concurrency", None)
                assert fake_clock.elapsed_seconds == 2
                assert limiter.waiting == 0

        fake_clock.run(main())
        assert is_empty(limiter)

    def test_says_that_others_are_first(self, fake_clock: FakeClock) -> None:
        limiter = limiter_on(fake_clock, "concurrency=1")

        async def main() -> None:
            async with limiter.permit():
                head = asyncio.create_task(limiter.acquire_async())
                await asyncio.sleep(0)
                with pytest.raises(AcquireTimeout, match="others are first in line"):
                    await limiter.acquire_async(max_wait=0)
                assert fake_clock.elapsed_seconds < 0.000_1
                assert limiter.waiting == 1
            (await head).settle()

        fake_clock.run(main())
        assert is_empty(limiter)

    def test_gives_up_in_a_thread(self, fake_clock: FakeClock) -> None:
        limiter = limiter_on(fake_clock, "concurrency=1")
        held = limiter.acquire()
        gives_up = InThread(lambda: limiter.acquire(max_wait=0.001))
        wait_until(lambda: limiter.waiting == 1)
        waits = InThread(lambda: limiter.acquire(max_wait=1_000_000))
        wait_until(lambda: limiter.waiting == 2)
        assert not gives_up.done, "no time has passed yet"
        fake_clock.advance(0.002)
        with pytest.raises(AcquireTimeout):
            gives_up.result()
        assert limiter.waiting == 1
        held.settle()
        waits.result().settle()
        assert is_empty(limiter)

    def test_no_end_of_waiting_in_a_thread(self) -> None:
        limiter = Limiter("concurrency=1")
        held = limiter.acquire()
        waits = InThread(lambda: limiter.acquire(max_wait=math.inf))
        wait_until(lambda: limiter.waiting == 1)
        held.settle()
        waits.result().settle()

    def test_the_next_goes_at_its_instant_when_the_head_gives_up(self, fake_clock: FakeClock) -> None:
        limiter = limiter_on(fake_clock, "tokens=10/s:burst=10:start=full")
        went: list[tuple[str, float]] = []

        async def call(name: str, tokens: int, max_wait: float | None = None) -> None:
            with suppress(AcquireTimeout):
                async with limiter.permit(tokens=tokens, max_wait=max_wait):
                    went.append((name, fake_clock.elapsed_seconds))

        async def main() -> None:
            (await limiter.acquire_async(tokens=10)).settle()
            first = asyncio.create_task(call("first", 1))
            await asyncio.sleep(0)  # so that the next one is not told at once
            await asyncio.gather(first, call("large", 10, 0.5), call("small", 3))

        fake_clock.run(main())
        assert [name for name, _ in went] == ["first", "small"]
        assert went[1][1] == 0.5, "what the large one waited for has gathered by then"

    def test_what_can_never_fit_is_refused_in_line_too(self, fake_clock: FakeClock) -> None:
        limiter = limiter_on(fake_clock, "tokens=10/s:burst=10", "concurrency=1")

        async def main() -> None:
            async with limiter.permit():
                waits = asyncio.create_task(limiter.acquire_async())
                await asyncio.sleep(0)
                never = asyncio.create_task(limiter.acquire_async(tokens=11))
                await asyncio.sleep(0)
            (await waits).settle()
            with pytest.raises(
                CostExceedsLimit, match=r"at most 10 tokens in one call; this one costs 11"
            ) as told:
                await never
            assert (told.value.limit, told.value.cost, told.value.largest) == ("tokens/s", 11, 10)

        fake_clock.run(main())
        assert is_empty(limiter)

    def test_a_blocked_thread_sleeps(self) -> None:
        store = Watched()
        limiter = Limiter("requests=20/s:burst=1:start=full", store=store)
        waited: list[Event] = []
        limiter.subscribe(lambda event: waited.append(event) if type(event) is Waited else None)
        for _ in range(3):
            limiter.acquire().settle()
        assert len(waited) == 2
        assert store.asks <= 1 + 2 * 4, "asked at first, in line, and when it was time"


class Watched(MemoryStore):
    """Counts questions; can do something between the answer and what the line makes of it; can fail."""

    asks = 0
    broken = False
    after_wait: Callable[[], None] | None = None

    def acquire(self, key: str, plan: Plan, asks: Sequence[Costs]) -> list[Decision]:
        if self.broken:
            raise OSError("the store is down")
        self.asks += 1
        answers = super().acquire(key, plan, asks)
        if type(answers[0]) is Wait and self.after_wait is not None:
            act, self.after_wait = self.after_wait, None
            act()
        return answers


Scenario = Callable[[Limiter], Coroutine[Any, Any, None]]


async def _call(limiter: Limiter, went: dict[str, int], name: str, hold: float, **asking: Any) -> None:
    with suppress(AcquireTimeout):
        async with limiter.permit(**asking) as permit:
            went[name] = limiter.store.now().elapsed_us
            await asyncio.sleep(hold)
            permit.settle()


SCENARIOS: dict[str, tuple[tuple[str, ...], list[tuple[str, float, dict[str, Any]]]]] = {
    # limits; calls in the order of asking: name, seconds of holding, arguments of permit()
    "slots": (
        ("concurrency=1",),
        [("first", 1, {}), ("victim", 1, {}), ("next", 1, {}), ("last", 1, {})],
    ),
    "rate": (
        ("requests=2/s:burst=1:start=full",),
        [("first", 0, {}), ("victim", 0.1, {}), ("next", 0, {}), ("last", 0, {})],
    ),
    "units": (
        ("tokens=10/s:burst=10:start=full:charge=usage",),
        [
            ("first", 0.3, {"tokens": 8}),
            ("victim", 0.3, {"tokens": 10}),
            ("next", 0.2, {"tokens": 1}),
            ("last", 0, {"tokens": 10}),
        ],
    ),
    "several limits": (
        ("requests=2/s:burst=1:start=full", "concurrency=1", "tokens=10/s:burst=10:start=full"),
        [
            ("first", 0.7, {"tokens": 8}),
            ("victim", 1.1, {"tokens": 10}),
            ("next", 0.2, {"tokens": 1}),
            ("last", 0, {"tokens": 3}),
        ],
    ),
    "the most important": (
        ("concurrency=1", "requests=4/s:burst=1:start=full"),
        [("first", 1, {}), ("next", 1, {}), ("victim", 1, {"priority": 3}), ("last", 1, {})],
    ),
    "short of time": (
        ("concurrency=1",),
        [("first", 1, {}), ("victim", 1, {"max_wait": 1.5}), ("next", 1, {}), ("last", 1, {})],
    ),
    "out of time": (
        ("concurrency=1",),
        [("first", 1, {}), ("victim", 1, {"max_wait": 0.5}), ("next", 1, {}), ("last", 1, {})],
    ),
}


def run_scenario(
    name: str, *, cancel_at: int | None = None, victim: bool = True
) -> tuple[dict[str, int], int]:
    """Instants of the grants, and the turns it took."""
    limits, calls = SCENARIOS[name]
    clock = FakeClock()
    limiter = limiter_on(clock, *limits)
    went: dict[str, int] = {}

    async def main() -> None:
        tasks = {
            called: asyncio.create_task(_call(limiter, went, called, hold, **asking))
            for called, hold, asking in calls
            if victim or called != "victim"
        }

        def cancel() -> None:
            if tasks["victim"].cancel():
                went["cancelled"] = clock().elapsed_us

        if cancel_at is not None:
            loop.at_turn(cancel_at, cancel)
        async with asyncio.timeout(1_000):
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    loop: VirtualLoop = clock.loop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())
        turns = loop.turns
    assert is_empty(limiter)
    clock.advance(10)
    assert not any(limiter.used().values()), "units were lost"
    return went, turns


class TestCancelling:
    @pytest.mark.parametrize("name", SCENARIOS)
    def test_at_every_await_leaves_nothing_behind_and_delays_nobody(self, name: str) -> None:
        undisturbed, turns = run_scenario(name)
        without, _ = run_scenario(name, victim=False)
        assert set(undisturbed) >= {"first", "next", "last"}
        outcomes = set()
        for turn in range(1, turns + 1):
            went, _ = run_scenario(name, cancel_at=turn)
            if "cancelled" not in went:  # it was over before
                assert went == undisturbed
            elif "victim" in went:  # its call is lost, and may be charged up to a second later
                for call in ("first", "next", "last"):
                    assert went[call] <= undisturbed[call] + 1_000_000, f"{call}, cancelled at turn {turn}"
            else:  # it is as if it had never asked
                assert went["first"] == undisturbed["first"]
                assert went["next"] <= max(without["next"], went["cancelled"]), f"cancelled at turn {turn}"
                assert went["last"] <= max(without["last"], undisturbed["last"]), f"cancelled at turn {turn}"
            outcomes.add("victim" in went)
        assert outcomes == ({False} if name == "out of time" else {False, True})

    @pytest.mark.parametrize("cancel_first", [True, False])
    def test_in_the_same_moment_as_the_grant(self, fake_clock: FakeClock, cancel_first: bool) -> None:
        limiter = limiter_on(fake_clock, "concurrency=1")

        async def main() -> None:
            held = await limiter.acquire_async()
            victim = asyncio.create_task(limiter.acquire_async())
            after = asyncio.create_task(limiter.acquire_async())
            await asyncio.sleep(0)
            if cancel_first:
                victim.cancel()
                held.settle()
            else:
                held.settle()
                victim.cancel()
            with pytest.raises(asyncio.CancelledError):
                await victim
            (await after).settle()
            assert fake_clock.elapsed_seconds == 0

        fake_clock.run(main())
        assert is_empty(limiter)

    def test_a_grant_from_another_thread_for_a_task_that_is_being_cancelled(self) -> None:
        limiter = Limiter("concurrency=1")
        held = limiter.acquire()
        with loop_in_thread() as loop:
            victim = asyncio.run_coroutine_threadsafe(limiter.acquire_async(), loop)
            wait_until(lambda: limiter.waiting == 1)
            after = InThread(limiter.acquire)
            wait_until(lambda: limiter.waiting == 2)
            go_on = busy(loop)
            held.settle()  # it is granted, but its loop does not turn
            assert limiter.waiting == 1
            victim.cancel()
            go_on.set()
            after.result().settle()
        assert is_empty(limiter)

    @pytest.mark.parametrize("order", ["first to last", "last to first"])
    def test_thousands(self, fake_clock: FakeClock, order: str) -> None:
        limiter = limiter_on(fake_clock, "concurrency=1")

        async def main() -> None:
            async with limiter.permit():
                tasks = [asyncio.create_task(limiter.acquire_async()) for _ in range(3_000)]
                await asyncio.sleep(0)
                for task in tasks if order == "first to last" else reversed(tasks):
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                assert limiter.waiting == 0

        fake_clock.run(main())
        assert is_empty(limiter)

    @pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no way to interrupt the main thread")
    def test_an_interrupt_in_a_blocked_thread_leaves_nothing_behind(self) -> None:
        limiter = Limiter("concurrency=1")
        for _ in range(20):
            held = limiter.acquire()
            main = threading.get_ident()

            def interrupt(main: int = main) -> None:
                wait_until(lambda: limiter.waiting == 1)
                signal.pthread_kill(main, signal.SIGINT)

            interrupter = InThread(interrupt)
            with pytest.raises(KeyboardInterrupt):
                limiter.acquire()
            interrupter.result()
            assert limiter.waiting == 0
            held.settle()
            assert is_empty(limiter)


class TestClosedLoops:
    """An event loop was closed while tasks of it stood in line."""

    @pytest.mark.parametrize("waiters", [1, 3, 2_000])
    @pytest.mark.parametrize("elsewhere", [True, False])
    def test_the_slot_goes_to_those_who_live(self, waiters: int, elsewhere: bool) -> None:
        limiter = Limiter("concurrency=1")
        held = limiter.acquire()
        tasks = abandoned(limiter, waiters)
        alive = InThread(limiter.acquire)
        wait_until(lambda: limiter.waiting == waiters + 1)
        InThread(held.settle).result() if elsewhere else held.settle()
        alive.result().settle()
        assert is_empty(limiter)
        del tasks

    def test_nothing_is_left_if_nobody_lives(self) -> None:
        limiter = Limiter("concurrency=1")
        held = limiter.acquire()
        tasks = abandoned(limiter, 3)
        held.settle()
        assert is_empty(limiter)
        del tasks

    def test_those_behind_a_dead_head_go_when_it_is_time(self) -> None:
        limiter = Limiter("requests=4/s:burst=1:start=full")
        limiter.acquire().settle()
        tasks = abandoned(limiter, 1)
        limiter.acquire(max_wait=5).settle()
        assert is_empty(limiter)
        del tasks


class TestStalls:
    """A grant carries the instant before which it has to be used."""

    def test_a_stalled_loop_gives_its_grants_back_and_keeps_its_places(self, fake_clock: FakeClock) -> None:
        limiter = limiter_on(fake_clock, "requests=4/s:burst=4:start=full")  # use within 0.25 s
        went: list[tuple[str, float, int]] = []

        async def call(name: str) -> None:
            async with limiter.permit() as permit:
                went.append((name, fake_clock.elapsed_seconds, limiter.used()["requests/s"]))
                assert permit.granted_us == fake_clock().elapsed_us, "it is a new grant"

        async def main() -> None:
            held = [await limiter.acquire_async() for _ in range(4)]
            calls = [asyncio.create_task(call(name)) for name in "ABCD"]
            await asyncio.sleep(0)
            assert limiter.waiting == 4
            for permit in held[:2]:
                permit.give_back()
            assert limiter.waiting == 2, "A and B are granted, but have not resumed"
            fake_clock.advance(0.3)
            await asyncio.gather(*calls)

        fake_clock.run(main())
        assert [name for name, _, _ in went] == list("ABCD")
        assert [instant for _, instant, _ in went[:2]] == [0.3, 0.3]
        assert max(used for _, _, used in went) <= 4

    def test_those_who_come_back_together_stand_in_their_order(self, fake_clock: FakeClock) -> None:
        limiter = limiter_on(fake_clock, "requests=10/s:burst=10:start=full")
        went: list[str] = []

        async def call(name: str) -> None:
            async with limiter.permit():
                went.append(name)

        async def main() -> None:
            held = [await limiter.acquire_async() for _ in range(10)]
            calls = [asyncio.create_task(call(name)) for name in "ABCDEF"]
            await asyncio.sleep(0)
            for permit in held[:4]:
                permit.give_back()
            assert limiter.waiting == 2, "A to D are granted"
            fake_clock.advance(0.4)
            held[4].throttled(retry_after=2)  # and now the limit is shut
            await asyncio.gather(*calls)

        fake_clock.run(main())
        assert went == list("ABCDEF")

    def test_a_late_grant_is_not_given_to_those_behind(self, fake_clock: FakeClock) -> None:
        limiter = limiter_on(fake_clock, "concurrency=1", "requests=10/s:burst=5:start=full")
        went: list[str] = []

        async def call(name: str) -> None:
            async with limiter.permit():
                went.append(name)
                await asyncio.sleep(1)

        async def main() -> None:
            held = await limiter.acquire_async()
            calls = [asyncio.create_task(call(name)) for name in "ABC"]
            await asyncio.sleep(0)
            held.settle()
            fake_clock.advance(0.2)
            await asyncio.gather(*calls)

        fake_clock.run(main())
        assert went == list("ABC")
        assert is_empty(limiter)

    def test_a_late_thread_keeps_its_place(self, fake_clock: FakeClock) -> None:
        store = Watched(fake_clock)
        limiter = Limiter("concurrency=1", "requests=10/s:burst=5:start=full", store=store)
        went: list[str] = []
        held = limiter.acquire()

        def call(name: str) -> None:
            with limiter.permit():
                went.append(name)

        late = InThread(lambda: call("late"))
        wait_until(lambda: limiter.waiting == 1)
        after = InThread(lambda: call("after"))
        wait_until(lambda: limiter.waiting == 2)
        line = line_in(limiter)
        wake = line._head.wake if line._head else None
        assert wake is not None

        def stall_and_wake() -> None:
            fake_clock.advance(0.2)
            wake()

        assert line._head is not None
        line._head.wake = stall_and_wake
        held.settle()
        late.result()
        after.result()
        assert went == ["late", "after"]
        assert is_empty(limiter)

    def test_a_loop_that_is_always_slow_sends_all_the_same(self, fake_clock: FakeClock) -> None:
        limiter = limiter_on(fake_clock, "requests=10/s:burst=5:start=full")

        async def slow_turns() -> None:
            for _ in range(40):
                fake_clock.advance(0.2)  # a grant has to be used within 0.125 s
                await asyncio.sleep(0)

        async def main() -> float:
            held = [await limiter.acquire_async() for _ in range(5)]
            waits = asyncio.create_task(limiter.acquire_async())
            await asyncio.sleep(0)
            slow = asyncio.create_task(slow_turns())
            for permit in held:
                permit.settle()
            (await waits).settle()
            went = fake_clock.elapsed_seconds
            await slow
            return went

        assert fake_clock.run(main()) <= 1

    def test_a_busy_loop_does_not_stop_the_others(self) -> None:
        limiter = Limiter("requests=4/s:burst=1:start=full")
        stalled, go_on = threading.Event(), threading.Event()
        limiter.acquire().settle()

        async def ask_and_stall() -> None:
            head = asyncio.create_task(limiter.acquire_async())
            await asyncio.sleep(0)
            stalled.set()
            assert go_on.wait(10)  # that is what is tested
            (await head).settle()

        with loop_in_thread() as loop:
            head = asyncio.run_coroutine_threadsafe(ask_and_stall(), loop)
            assert stalled.wait(10)
            limiter.acquire(max_wait=5).settle()
            assert not head.done()
            go_on.set()
            head.result(10)
        assert is_empty(limiter)

    @pytest.mark.parametrize(("priority", "cost"), [(0, 1), (1, 2)], ids=["behind", "overtaken"])
    def test_a_loop_looks_once_the_head_is_in_a_busy_one(self, priority: int, cost: int) -> None:
        limiter = Limiter("requests=4/s:burst=2:start=full")
        names = ["first"] if priority else ["first", "last"]
        went: list[str] = []
        stalled, go_on = threading.Event(), threading.Event()
        limiter.acquire(requests=2).settle()

        async def call(name: str) -> None:
            async with limiter.permit(max_wait=5):
                went.append(name)

        async def ask_and_stall() -> None:
            busy = asyncio.create_task(limiter.acquire_async(priority=priority, requests=cost))
            await asyncio.sleep(0)
            stalled.set()
            assert go_on.wait(10)
            (await busy).settle()

        async def two_calls() -> None:
            first = asyncio.create_task(call("first"))
            await asyncio.sleep(0)
            elsewhere = asyncio.run_coroutine_threadsafe(ask_and_stall(), other)
            stalled.wait(10)
            await asyncio.gather(first, *map(call, names[1:]))
            go_on.set()
            await asyncio.wrap_future(elsewhere)

        with loop_in_thread() as other:
            asyncio.run(two_calls())
        assert went == names
        assert is_empty(limiter)


class TestWaking:
    def test_a_settlement_between_an_answer_and_its_booking_is_not_missed(self) -> None:
        store = Watched()
        limiter = Limiter("concurrency=1", store=store)
        held = limiter.acquire()
        settling: list[InThread[None]] = []

        def settle_meanwhile() -> None:
            """In the line's lock: the settlement may look at the line, but not serve it yet."""
            settling.append(InThread(held.settle))
            settling[0]._thread.join(0.1)

        def arm() -> None:
            store.after_wait = settle_meanwhile

        store.after_wait = arm  # the first answer is before the line, the second in it
        InThread(limiter.acquire).result().settle()
        settling[0].result()
        assert is_empty(limiter)

    def test_a_store_that_fails_loses_nobody(self) -> None:
        store = Watched()
        limiter = Limiter("concurrency=1", store=store)
        held = limiter.acquire()
        waiting = [InThread(lambda: limiter.acquire().settle())]
        wait_until(lambda: limiter.waiting == 1)
        waiting.append(InThread(lambda: limiter.acquire().settle()))
        wait_until(lambda: limiter.waiting == 2)
        store.broken = True
        with pytest.raises(OSError, match="down"):
            held.settle()
        assert limiter.waiting == 2
        store.broken = False
        limiter._line.settle(())
        for thread in waiting:
            thread.result()
        assert is_empty(limiter)

    def test_everybody_goes_at_the_told_instant_and_not_before(self, fake_clock: FakeClock) -> None:
        store = Watched(fake_clock)
        limiter = Limiter("requests=7/s:burst=3:start=full", store=store)

        async def main() -> None:
            async def call() -> None:
                async with limiter.permit():
                    pass

            calls = [asyncio.create_task(call()) for _ in range(200)]
            await asyncio.gather(*calls)

        fake_clock.run(main())
        assert fake_clock.elapsed_seconds == pytest.approx(197 / 7, rel=0.000_3)
        assert store.asks <= 200 + 200 * 2, "nobody polls"

    def test_a_settlement_wakes_a_waiter_in_another_loop(self) -> None:
        limiter = Limiter("concurrency=1")
        with loop_in_thread() as one, loop_in_thread() as two:
            held = asyncio.run_coroutine_threadsafe(limiter.acquire_async(), one).result(10)
            for number in range(50):
                loop = (one, two)[number % 2]
                next_one = asyncio.run_coroutine_threadsafe(limiter.acquire_async(), loop)
                wait_until(lambda: limiter.waiting == 1)
                held.settle()
                held = next_one.result(10)
            held.settle()
        assert is_empty(limiter)


class TestListeners:
    """Listeners run where things happen, and may ask for permits themselves."""

    def test_that_ask(self, fake_clock: FakeClock) -> None:
        limiter = limiter_on(fake_clock, "concurrency=2", "requests=100/s:burst=100:start=full")
        answers: list[bool] = []

        def ask(event: Event) -> None:
            permit = None
            if len(answers) < 50:
                answers.append(False)
                permit = limiter.try_permit()
                answers[-1] = permit is not None
            if permit is not None:
                permit.give_back()
            if type(event) is Waited:
                with suppress(AcquireTimeout):
                    limiter.acquire(max_wait=0).give_back()

        limiter.subscribe(ask)

        async def call() -> None:
            async with limiter.permit():
                await asyncio.sleep(0.01)

        async def main() -> None:
            await asyncio.gather(*(call() for _ in range(10)))

        fake_clock.run(main())
        assert set(answers) == {True, False}
        assert is_empty(limiter)

    @pytest.mark.parametrize("kind", ["Granted", "Waited"])
    def test_that_raise_leave_nothing_behind(self, kind: str) -> None:
        limiter = Limiter("concurrency=1")

        def fail(event: Event) -> None:
            if type(event).__name__ == kind:
                raise LookupError(kind)

        held = limiter.acquire() if kind == "Waited" else None
        unsubscribe = limiter.subscribe(fail)
        with pytest.raises(LookupError):
            limiter.acquire()
        with pytest.raises(LookupError):
            asyncio.run(limiter.acquire_async())
        with pytest.raises(LookupError), limiter.permit():
            pass
        unsubscribe()
        if held is not None:
            held.settle()
        assert is_empty(limiter)


class TestCalled:
    def test_a_coroutine_that_never_suspends_does_not_take_the_permits_of_those_who_were_called(
        self, fake_clock: FakeClock
    ) -> None:
        """One that loops without awaiting anything inside its permit kept the others from resuming."""
        limiter = Limiter("requests=10/s:burst=10:start=full", store=MemoryStore(fake_clock))
        order: list[str] = []

        async def greedy() -> None:
            for _ in range(30):
                async with limiter.permit():
                    order.append("greedy")

        async def modest(name: str) -> None:
            async with limiter.permit():
                order.append(name)

        async def all_of_them() -> None:
            await asyncio.gather(greedy(), *(modest(f"modest {i}") for i in range(5)))

        fake_clock.run(all_of_them())
        assert order.index("modest 4") < 20
        assert limiter.waiting == 0
