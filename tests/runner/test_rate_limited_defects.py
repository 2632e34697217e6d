"""What goes wrong with rate_limited 0.4.0, a package with the same purpose, and not here.

Where it is quick, the same is done with that package itself, to show that the test can fail. Each test bears
the number of its defect:

1. Use is forgotten by whole seconds, up to one too late, and never where the window is a day or more.
2. The clock is the local wall clock: whoever sets it changes the quota.
3. Who waits looks again only now and then; an end wakes nobody.
4. Who waits is in no order: a large call can starve.
5. "Done" means that the result is not None: such calls are repeated after an interrupt.
6. Arguments are looked up with ``or``: 0, False and "" become the default. ``**options`` are not found.
7. ``schedule`` bears the docstring of the last runner, and the user's function gets other annotations.
8. Coroutines behind lambdas and callable objects are taken for functions.
9. All errors are alike: a wrong key is tried six times, a refusal slows nobody, failed calls are free.
10. The whole quota is sent at once, with no slow start; that of tokens is cut by 5 % unasked.
11. Prompts are estimated by spaces: without any, whatever their length, they are two tokens.
12. Calls in threads are lost on an interrupt, and their threads stay.
13. All calls and results stay in memory, results come at the end only, and threads must not schedule.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from weakref import WeakSet

import pytest
import rate_limited.resources
from rate_limited.apis.openai.chat import estimate_input_tokens, openai_chat_resources
from rate_limited.calls import Call as TheirCall
from rate_limited.resources import Resource
from rate_limited.runner import Runner as TheirRunner

from headgate import Limiter, Runner, current_call
from headgate.core.model import SECOND
from headgate.providers.openai import chat_cost
from headgate.runner import CallCancelled
from headgate.stores.memory import MemoryStore
from headgate.testing import FakeClock
from tests.waiting import PATIENCE_SECONDS, InThread, wait_until

DAY_SECONDS = 86_400


def runner_on(
    clock: FakeClock, function: Callable[..., Any], *limits: str, **options: Any
) -> Runner[..., Any]:
    return Runner(function, Limiter(*limits, store=MemoryStore(clock)), progress=False, **options)


def starts_under(clock: FakeClock, *limits: str, calls: int = 2, jump_at: float = 0, jump: float = 0) -> Any:
    """When so many calls start that are scheduled at once; the wall clock may be set meanwhile."""
    starts: list[float] = []

    async def function() -> None:
        starts.append(clock.elapsed_seconds)

    async def main() -> None:
        async with runner_on(clock, function, *limits) as runner:
            for _ in range(calls):
                runner.schedule()
            await asyncio.sleep(jump_at)
            clock.jump_wall(jump)

    clock.run(main())
    return starts


@pytest.fixture
def their_clock(monkeypatch: pytest.MonkeyPatch, fake_clock: FakeClock) -> FakeClock:
    """A clock that rate_limited's resources live by, too."""

    class Wall(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.fromtimestamp(fake_clock().wall_us / SECOND, UTC).replace(tzinfo=None)

    monkeypatch.setattr(rate_limited.resources, "datetime", Wall)
    return fake_clock


def their_requests(amount: float, seconds: float) -> Resource:
    return Resource("requests", amount, seconds, arguments_usage_extractor=lambda call: 1)


class Refusal(Exception):
    """What an SDK raises for an answer that is an error."""

    def __init__(self, status: int, **fields: str) -> None:
        super().__init__(f"HTTP {status}")
        self.status_code = status
        self.headers = {name.replace("_", "-"): value for name, value in fields.items()}


class TestUse:
    @pytest.mark.parametrize("days", [1, 3])
    def test_is_forgotten_after_days_as_well(self, their_clock: FakeClock, days: int) -> None:  # 1
        theirs = their_requests(1, days * DAY_SECONDS)
        theirs.add_usage(1)
        their_clock.advance(20 * days * DAY_SECONDS)
        assert not theirs.is_available(1)  # never

        clock = FakeClock()
        _, second = starts_under(clock, f"requests=1/{days * 24}h:kind=sliding:start=full")
        assert days * DAY_SECONDS <= second < days * DAY_SECONDS * 1.001

    def test_is_forgotten_at_its_instant(self, their_clock: FakeClock) -> None:  # 1
        theirs = their_requests(1, 1)
        theirs.add_usage(1)
        their_clock.advance(1.9)
        assert not theirs.is_available(1)

        clock = FakeClock()
        starts = starts_under(clock, "requests=1/s:kind=sliding:start=full:transit=20ms", calls=5)
        assert all(1 <= b - a < 1.02 for a, b in pairwise(starts))

    @pytest.mark.parametrize("jump", [3600.0, -3600.0])
    def test_does_not_depend_on_who_sets_the_clock(self, their_clock: FakeClock, jump: float) -> None:  # 2
        theirs = their_requests(1, 60)
        theirs.add_usage(1)
        their_clock.advance(1)
        assert not theirs.is_available(1)
        their_clock.jump_wall(jump)
        assert theirs.is_available(1)  # after one second of sixty

        clock = FakeClock()
        limits = ("requests=2/min:kind=sliding:start=full",)
        _, _, third = starts_under(clock, *limits, calls=3, jump_at=1, jump=jump)
        # Of a clock that is set back, what passed since the last look is not believed: one wait more at most.
        assert 60 <= third < (61 if jump > 0 else 122)

    def test_of_one_second_is_the_same_at_every_hour_of_the_year(self, fake_clock: FakeClock) -> None:  # 2
        gaps = set()
        for _ in range(8):
            first, second = starts_under(fake_clock, "requests=1/s:kind=sliding:start=full:transit=20ms")
            gaps.add(round(second - first, 2))
            fake_clock.advance(45.6 * DAY_SECONDS)
        assert gaps == {1.0}


class TestWaiting:
    def test_an_end_wakes_the_next_one_at_once(self, fake_clock: FakeClock) -> None:  # 3
        async def function() -> None:
            await asyncio.sleep(0.001)

        slot = Resource("slot", 1, 60, None, lambda call, result: 0, lambda call: 1)
        theirs = TheirRunner(function, [slot], max_concurrent=8, progress_interval=1)
        for _ in range(5):
            theirs.schedule()
        fake_clock.run(theirs.run_coro())
        assert fake_clock.elapsed_seconds >= 4

        clock = FakeClock()
        ours = runner_on(clock, function, "concurrency=1")
        for _ in range(5):
            ours.schedule()
        assert clock.run(ours.run_async()).complete
        assert clock.elapsed_seconds == 0.005

    def test_who_waits_starts_at_the_very_instant(self, fake_clock: FakeClock) -> None:  # 3
        starts = starts_under(fake_clock, "requests=100/s:burst=1:start=full", calls=100)
        for number, start in enumerate(starts):
            assert number * 0.01 <= start <= number * 0.01 * 1.001 + 0.001

    def test_a_large_call_does_not_starve(self, fake_clock: FakeClock) -> None:  # 4
        started: list[tuple[int, float]] = []

        async def function(tokens: int) -> None:
            started.append((tokens, fake_clock.elapsed_seconds))

        async def main() -> None:
            runner = runner_on(
                fake_clock,
                function,
                "tokens=10/s:burst=100:start=full",
                cost=lambda tokens: {"tokens": tokens},
            )
            async with runner:
                for tokens in (100, 90, *[1] * 20):
                    runner.schedule(tokens)
                while not runner._board.is_idle():
                    await asyncio.sleep(0.5)
                    if len(started) < 2:
                        runner.schedule(1)  # small ones keep coming

        fake_clock.run(main())
        assert [tokens for tokens, _ in started][:3] == [100, 90, 1]
        assert 9 <= started[1][1] < 9.5


class TestCalls:
    def test_that_returned_none_are_not_repeated(self, fake_clock: FakeClock) -> None:  # 5
        log: list[int] = []
        interrupt: Callable[[], object]

        async def function(number: int) -> None:
            log.append(number)
            if number == 0:
                interrupt()

        theirs = TheirRunner(function, [their_requests(10, 60)], max_concurrent=1)
        interrupt = functools.partial(setattr, theirs, "interrupted", True)
        for number in range(3):
            theirs.schedule(number)
        fake_clock.run(theirs.run_coro())
        interrupt = list
        fake_clock.run(theirs.run_coro())
        assert log == [0, 0, 1, 2]

        log.clear()
        ours = runner_on(fake_clock, function, max_concurrent=1)
        interrupt = functools.partial(ours.stop, "enough")
        for number in range(3):
            ours.schedule(number)
        partial = fake_clock.run(ours.run_async())
        assert (partial.complete, partial.stopped) == (False, "enough")
        assert [call.done() for call in partial.calls] == [True, False, False]
        interrupt = list
        results = fake_clock.run(ours.run_async())
        assert log == [0, 1, 2]
        assert results.complete
        assert results == ([None] * 3, [[]] * 3)

    @pytest.mark.parametrize("given", [0, False, ""])
    def test_have_the_arguments_that_were_given(self, fake_clock: FakeClock, given: Any) -> None:  # 6
        def function(prompt: str, limit: Any = 100, **options: Any) -> None:
            raise AssertionError("it is not called")

        assert TheirCall(function, ("text",), {"limit": given}).get_argument("limit") == 100
        assert TheirCall(function, ("text",), {"temperature": 1}).get_argument("temperature") is None

        seen: list[tuple[Any, Any]] = []

        def cost(prompt: str, limit: Any = 100, **options: Any) -> dict[str, int]:
            seen.append((limit, options.get("temperature")))
            return {"tokens": int(limit or 0)}

        runner = runner_on(fake_clock, function, "tokens=1k/min:burst=1k:start=full", cost=cost)
        call = runner.schedule("text", limit=given, temperature=1)
        assert seen == [(given, 1)]
        assert type(seen[0][0]) is type(given)
        assert call.units == {"tokens": 0}
        assert runner.schedule("text").units == {"tokens": 100}

    def test_leave_functions_and_runners_as_they_are(self) -> None:  # 7
        def first(number: int) -> str:
            """The first."""
            return str(number)

        def second(number: int) -> str:
            """The second."""
            return str(number)

        before = Runner.schedule.__doc__, dict(Runner.schedule.__annotations__), dict(vars(Runner.schedule))
        ours = [Runner(function, progress=False) for function in (first, second)]
        for function in (first, second):
            assert function.__annotations__ == {"number": "int", "return": "str"}
        assert [runner.function for runner in ours] == [first, second]
        after = Runner.schedule.__doc__, dict(Runner.schedule.__annotations__), dict(vars(Runner.schedule))
        assert after == before

        theirs = [TheirRunner(function, []) for function in (first, second)]
        assert "The second." in (theirs[0].schedule.__doc__ or "")
        assert first.__annotations__["return"] is None


async def double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


class Doubler:
    async def __call__(self, number: int) -> int:
        return await double(number)

    async def method(self, number: int) -> int:
        return await double(number)


@functools.wraps(double)
def decorated(number: int) -> Coroutine[Any, Any, int]:
    return double(number)


COROUTINES: dict[str, Callable[[int], Any]] = {
    "coroutine function": double,
    "lambda": lambda number: double(number),  # noqa: PLW0108  # not the same
    "callable object": Doubler(),
    "method": Doubler().method,
    "partial": functools.partial(double),
    "partial of a lambda": functools.partial(lambda number: double(number)),  # noqa: PLW0108
    "decorated": decorated,
}


class TestFunctions:
    @pytest.mark.parametrize("name", COROUTINES)
    def test_that_return_coroutines_are_awaited(self, name: str) -> None:  # 8
        runner = Runner(COROUTINES[name], progress=False)
        for number in range(5):
            runner.schedule(number)
        assert runner.run() == ([0, 2, 4, 6, 8], [[]] * 5)

    @pytest.mark.parametrize("name", ["lambda", "callable object"])
    def test_of_that_kind_are_not_awaited_there(self, name: str) -> None:  # 8
        theirs = TheirRunner(_with_name(COROUTINES[name]), [], max_concurrent=1, progress_interval=0.01)
        theirs.schedule(1)
        results, _ = theirs.run()
        theirs.requests_executor_pool.shutdown()
        assert inspect.iscoroutine(results[0])
        results[0].close()


def _with_name(function: Any) -> Any:
    """What rate_limited asks of a callable object before it runs it."""
    if isinstance(function, Doubler):
        function.__doc__ = "It doubles."
    return function


class TestErrors:
    def test_a_wrong_key_is_tried_once_and_ends_the_run(self, fake_clock: FakeClock) -> None:  # 9
        tried: list[int] = []

        async def function(number: int) -> None:
            tried.append(number)
            raise Refusal(401)

        theirs = TheirRunner(function, [their_requests(100, 60)], max_concurrent=1)
        theirs.schedule(0)
        fake_clock.run(theirs.run_coro())
        assert tried == [0] * 6

        tried.clear()
        ours = runner_on(fake_clock, function, max_concurrent=1)
        for number in range(10):
            ours.schedule(number)
        results = fake_clock.run(ours.run_async())
        assert tried == [0]
        assert "key was refused" in (results.stopped or "")
        assert [type(call.error) for call in results.calls[:2]] == [Refusal, type(None)]

    def test_a_wrong_request_is_tried_once_and_the_others_go_on(self, fake_clock: FakeClock) -> None:  # 9
        async def function(number: int) -> int:
            if number == 1:
                raise Refusal(400)
            return number

        runner = runner_on(fake_clock, function)
        for number in range(3):
            runner.schedule(number)
        results, exceptions = fake_clock.run(runner.run_async())
        assert results == [0, None, 2]
        assert [len(errors) for errors in exceptions] == [0, 1, 0]

    @pytest.mark.parametrize("limits", [(), ("concurrency=1",), ("requests=100/s:burst=100:start=full",)])
    def test_a_refusal_slows_everybody_and_spends_no_attempt(
        self, fake_clock: FakeClock, limits: tuple[str, ...]
    ) -> None:  # 9
        starts: list[float] = []

        async def function(number: int) -> int:
            starts.append(fake_clock.elapsed_seconds)
            await asyncio.sleep(0.01)
            if len(starts) <= 7:
                raise Refusal(429, retry_after="20")
            return number

        async def main() -> None:
            slots = None if limits == ("concurrency=1",) else 1
            runner = runner_on(fake_clock, function, *limits, max_attempts=1, max_concurrent=slots)
            async with runner:
                calls = [runner.schedule(number) for number in range(3)]
                await asyncio.sleep(19)
                assert len(starts) == 1
            assert [call.value for call in calls] == [0, 1, 2]
            assert runner.statistics().refused == 7

        fake_clock.run(main())
        assert all(b - a >= 20 for a, b in pairwise(starts[:8]))
        assert starts[7] < 7 * 21

    def test_a_refusal_slows_also_who_stands_in_line_for_a_slot(self, fake_clock: FakeClock) -> None:  # 9
        starts: list[tuple[float, int]] = []

        async def function(number: int) -> None:
            starts.append((fake_clock.elapsed_seconds, number))
            await asyncio.sleep(0.25)
            if len(starts) == 1:
                raise Refusal(429, retry_after="20")

        async def main() -> None:
            async with runner_on(fake_clock, function, "concurrency=1") as runner:
                for number in range(3):
                    runner.options(priority=number).schedule(number)
                    await asyncio.sleep(0.0625)

        fake_clock.run(main())
        assert starts == [(0, 0), (20.25, 2), (20.5, 1), (20.75, 0)]

    def test_calls_that_failed_have_used_what_they_used(self, fake_clock: FakeClock) -> None:  # 9
        async def function() -> None:
            raise ConnectionError("no answer")

        tokens = Resource("tokens", 100, 60, None, lambda call, result: 10, lambda call: 10)
        theirs = TheirRunner(function, [tokens], max_retries=0)
        for _ in range(3):
            theirs.schedule()
        fake_clock.run(theirs.run_coro())
        assert tokens.get_amount_available() == 100

        limiter = Limiter(
            "tokens=100/h:kind=sliding:start=full:charge=usage:name=tokens", store=MemoryStore(fake_clock)
        )
        ours = Runner(function, limiter, cost={"tokens": 10}, max_attempts=1, progress=False)
        for _ in range(3):
            ours.schedule()
        fake_clock.run(ours.run_async())
        assert limiter.used() == {"tokens": 30}


class TestQuota:
    def test_can_be_approached_slowly(self, fake_clock: FakeClock) -> None:  # 10
        def sent(**options: Any) -> list[float]:
            clock, starts = FakeClock(), []

            async def function() -> None:
                starts.append(clock.elapsed_seconds)

            runner = runner_on(clock, function, "requests=100/s:burst=100:start=full", **options)
            for _ in range(1000):
                runner.schedule()
            clock.run(runner.run_async())
            return starts

        at_once, slowly = sent(), sent(ramp=10)
        assert sum(start == 0 for start in at_once) == 100
        for second in range(10):
            within = sum(second <= start < second + 1 for start in slowly)
            assert within <= 100 * (0.02 + 0.98 * (second + 1) / 10) + 2
        assert sum(start < 1 for start in slowly) >= 5
        assert sum(9 <= start < 10 for start in slowly) >= 90

    def test_is_used_whole(self, fake_clock: FakeClock) -> None:  # 10
        _, theirs = openai_chat_resources(60, 1000, 4096)
        assert theirs.quota == 950

        async def function() -> None:
            return None

        runner = runner_on(fake_clock, function, "tokens=1000/min:burst=1000:start=full", cost={"tokens": 10})
        for _ in range(100):
            runner.schedule()
        fake_clock.run(runner.run_async())
        assert fake_clock.elapsed_seconds == 0

    @pytest.mark.parametrize("text", ["漢字" * 2000, "QUJD" * 1000, "x" * 4000])
    def test_is_reserved_by_the_length_of_a_text_without_spaces(self, text: str) -> None:  # 11
        def function(messages: list[dict[str, str]]) -> None:
            raise AssertionError("it is not called")

        messages = [{"role": "user", "content": text}]
        assert estimate_input_tokens(TheirCall(function, (), {"messages": messages})) == 4  # role and content

        assert len(text.encode()) <= chat_cost(messages=messages, max_tokens=0)["tokens"]
        longer = chat_cost(messages=[*messages, *messages], max_tokens=0)["tokens"]
        assert longer >= 2 * len(text.encode())


class TestInterrupts:
    def test_calls_in_threads_are_waited_for_and_their_results_kept(self) -> None:  # 12
        began, go_on = threading.Event(), threading.Event()

        def function(number: int) -> int:
            began.set()
            assert go_on.wait(PATIENCE_SECONDS)
            return number

        runner = Runner(function, max_concurrent=1, progress=False)
        for number in (7, 8):
            runner.schedule(number)
        run = InThread(runner.run)
        assert began.wait(PATIENCE_SECONDS)
        runner.stop("interrupted")
        assert not run.done
        go_on.set()
        partial = run.result()
        assert (partial.results, partial.stopped) == ([7, None], "interrupted")
        assert runner.run().results == [7, 8]

    def test_calls_in_threads_can_be_told_to_stop(self) -> None:  # 12
        began, told = threading.Event(), threading.Event()
        saw: list[bool] = []

        def function() -> None:
            began.set()
            assert told.wait(PATIENCE_SECONDS)
            saw.append(current_call().cancelled)

        runner = Runner(function, progress=False)
        with runner:
            call = runner.schedule()
            assert began.wait(PATIENCE_SECONDS)
            call.cancel()
            told.set()
            with pytest.raises(CallCancelled):
                call.result(PATIENCE_SECONDS)
            wait_until(lambda: runner.pending == 0)
        assert saw == [True]

    def test_threads_end_when_they_are_not_needed_any_more(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:  # 12
        monkeypatch.setattr("headgate.runner.threads.IDLE_SECONDS", 0.01)
        threads: set[threading.Thread] = set()
        together = threading.Barrier(4)

        def function() -> None:
            threads.add(threading.current_thread())
            together.wait(PATIENCE_SECONDS)

        runner = Runner(function, progress=False)
        for _ in range(4):
            runner.schedule()
        assert runner.run().exceptions == [[]] * 4
        assert len(threads) == 4
        assert all(thread.daemon for thread in threads)  # they keep no process alive
        wait_until(lambda: not any(thread.is_alive() for thread in threads))


class Item:
    """Something that has its weight in memory."""

    def __init__(self, number: int) -> None:
        self.number = number


class TestMemory:
    def test_stays_flat_and_results_come_while_items_are_read(self, fake_clock: FakeClock) -> None:  # 13
        alive: WeakSet[Item] = WeakSet()
        read = given = most_alive = most_ahead = 0

        def items() -> Iterator[Item]:
            nonlocal read, most_alive, most_ahead
            for number in range(3000):
                item = Item(number)
                alive.add(item)
                read += 1
                most_ahead = max(most_ahead, read - given)
                most_alive = max(most_alive, len(alive))
                yield item

        async def function(item: Item) -> Item:
            await asyncio.sleep(0.01 if item.number % 7 else 0.02)
            return item

        async def main() -> None:
            nonlocal given
            runner = runner_on(fake_clock, function, max_concurrent=20)
            async for item in runner.map(items(), ahead=50):
                assert item is not None
                assert item.number == given
                given += 1
            assert runner.size == runner.pending == 0

        fake_clock.run(main())
        assert given == 3000
        assert most_ahead <= 51
        assert most_alive <= 100

    def test_is_freed_by_the_next_call_after_a_complete_run(self, fake_clock: FakeClock) -> None:  # 13
        alive: WeakSet[Item] = WeakSet()

        async def function(item: Item) -> None:
            alive.add(item)

        runner = runner_on(fake_clock, function)
        for number in range(100):
            runner.schedule(Item(number))
        assert fake_clock.run(runner.run_async()).complete
        runner.schedule(Item(100))
        assert len(alive) == 0
        assert fake_clock.run(runner.run_async()) == ([None], [[]])

    def test_threads_may_schedule_while_others_do_and_calls_run(self) -> None:  # 13
        lock = threading.Lock()
        ran: list[tuple[int, int]] = []

        def function(thread: int, number: int) -> tuple[int, int]:
            with lock:
                ran.append((thread, number))
            return thread, number

        runner = Runner(function, max_concurrent=8, progress=False)

        def feed(thread: int) -> list[Any]:
            return [runner.schedule(thread, number) for number in range(100)]

        with runner:
            feeders = [InThread(functools.partial(feed, thread)) for thread in range(6)]
            calls = [call for feeder in feeders for call in feeder.result()]
        expected = [(thread, number) for thread in range(6) for number in range(100)]
        assert sorted(ran) == expected
        assert [call.result(PATIENCE_SECONDS) for call in calls] == expected
        assert sorted(call.position for call in calls) == list(range(600))
        assert len({call.id for call in calls}) == 600
        results = runner.results()
        assert [call.position for call in results.calls] == list(range(600))
