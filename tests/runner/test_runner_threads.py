"""Many threads on one runner, in real time: whatever they do, each call is done once and nothing is left.

HEADGATE_SEED is the first seed, HEADGATE_EXAMPLES how many random programs there are of each kind.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from random import Random
from typing import Any

import pytest

from headgate import CallCancelled, Limiter, Runner, RunStopped
from headgate.runner import Call, Event
from headgate.stores.memory import MemoryStore
from tests.waiting import InThread, wait_until

quiet = functools.partial(Runner, progress=False)

FIRST_SEED = int(os.environ.get("HEADGATE_SEED", "1"))
PROGRAMS = int(os.environ.get("HEADGATE_EXAMPLES", "1"))
seeds = pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + PROGRAMS))
SECONDS = 1.0
MEDDLERS, SLOTS = 4, 3
KINDS = ("function", "coroutine function", "function that returns a coroutine")


class Lost(ConnectionError):
    """No answer: worth another attempt."""


class Server:
    """What is called: it counts who is there at once, and who got an answer."""

    def __init__(self, kind: str) -> None:
        self.inside = self.most = 0
        self.answered: Counter[int] = Counter()
        self._lock = threading.Lock()
        functions: dict[str, Callable[[int], Any]] = {
            "function": self.block,
            "coroutine function": self.suspend,
            "function that returns a coroutine": functools.partial(self.call, self.suspend),
        }
        self.function = functions[kind]

    @contextmanager
    def visit(self, key: int) -> Iterator[None]:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        try:
            yield
        finally:
            with self._lock:
                self.inside -= 1
        if key % 7 == 0 and self.answered[-key] < 1:
            self.answered[-key] += 1
            raise Lost("no answer")
        with self._lock:
            self.answered[key] += 1

    def call(self, function: Callable[[int], Any], key: int) -> Any:
        return function(key)

    def block(self, key: int) -> int:
        with self.visit(key):
            time.sleep(key % 3 / 1000)
        return 2 * key

    async def suspend(self, key: int) -> int:
        with self.visit(key):
            await asyncio.sleep(key % 3 / 1000)
        return 2 * key


class Meddler:
    """One thread that does to a runner whatever can be done to one."""

    def __init__(self, runner: Runner[..., Any], seed: int, until: float) -> None:
        self.runner = runner
        self.choose = Random(seed)
        self.until = until
        self.first_key = seed % 1000 * 100_000 + 1
        self.calls: list[Call[Any]] = []
        self.acts: list[Callable[[], object]] = [
            *[self.schedule] * 8,
            *[self.cancel] * 2,
            self.runner.clear,
            self.pause,
            self.move,
            self.resize,
            self.runner.start,
            self.runner.stop,
            self.run,
            self.run_async,
            self.stream,
            self.wait_for_one,
            self.wait_for_many,
            self.listen,
            self.look,
        ]

    def __call__(self) -> int:
        rounds = 0
        while time.monotonic() < self.until:
            with suppress(RunStopped):
                self.choose.choice(self.acts)()
            rounds += 1
        return rounds

    def keys(self, most: int) -> range:
        start = self.first_key
        self.first_key += self.choose.randint(0, most)
        return range(start, self.first_key)

    def some_call(self) -> Call[Any] | None:
        return self.choose.choice(self.calls[-50:]) if self.calls else None

    def schedule(self) -> None:
        for key in self.keys(6):
            options: Any = self.choose.choice(({}, {"priority": self.choose.randint(-1, 1)}))
            self.calls.append(self.runner.options(**options).schedule(key))

    def cancel(self) -> None:
        call = self.some_call()
        if call is not None:
            call.cancel()
            assert call.done()

    def pause(self) -> None:
        self.runner.pause()
        self.schedule()
        self.runner.resume()

    def move(self) -> None:
        call = self.some_call()
        if call is not None:
            with suppress(LookupError):
                call.priority = self.choose.randint(-2, 2)

    def resize(self) -> None:
        self.runner.max_concurrent = self.choose.randint(1, 8)

    def run(self) -> None:
        results = self.runner.run(deadline=self.choose.choice((0.001, 0.02, 0.2)))
        positions = [call.position for call in results.calls]
        assert positions == sorted(set(positions))

    def run_async(self) -> None:
        async def main() -> None:
            async with asyncio.timeout(self.choose.choice((0, 0.01, 0.05))):
                await self.runner.run_async()

        with suppress(TimeoutError):
            asyncio.run(main())

    def stream(self) -> None:
        keys = self.keys(8)
        stop_at = self.choose.choice((None, 0, 2))
        given: list[int | None] = []
        for value in self.runner.map(keys, ahead=4):
            given.append(value)
            if len(given) == stop_at:
                return
        assert len(given) == len(keys)
        assert all(value in (None, 2 * key) for value, key in zip(given, keys, strict=True))

    def wait_for_one(self) -> None:
        call = self.some_call()
        if call is not None:
            with suppress(TimeoutError, CallCancelled, Lost):
                assert call.result(timeout=self.choose.choice((0, 0.01))) == 2 * call.args[0]

    def wait_for_many(self) -> None:
        self.runner.wait_below(3, timeout=0.01)
        self.runner.wait_idle(timeout=self.choose.choice((0, 0.01)))

    def listen(self) -> None:
        forget = self.runner.subscribe(lambda event: None)
        self.schedule()
        forget()

    def look(self) -> None:
        self.runner.statistics()
        self.runner.results()
        assert self.runner.size >= 0
        assert self.runner.pending >= 0
        assert repr(self.runner)


def settle(runner: Runner[..., Any]) -> None:
    """Let a runner come to its end, with nobody else around."""
    runner.resume()
    runner.stop()
    for _ in range(20):
        if runner.run().complete:
            break
    else:
        raise AssertionError(f"it never comes to an end: {runner!r}")
    wait_until(lambda: not runner.pending)


def assert_nothing_is_left(runner: Runner[..., Any]) -> None:
    board = runner._board
    with board.lock:
        assert (board.running, board.live, board.sleeping, board.waiting.size) == ({}, 0, 0, 0)
        assert (board._facts, board._callbacks, board._waits) == ([], [], [])
    assert runner.limiter.waiting == 0
    assert runner.limiter.used().get("concurrency", 0) == 0
    assert runner._engine is None


# A loop that is closed in the midst of all may leave a task that has not begun: asyncio says so.
@pytest.mark.filterwarnings("ignore:coroutine 'Engine._see_through' was never awaited:RuntimeWarning")
@seeds
@pytest.mark.parametrize("timeout", [None, 0.005])
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_threads_do_to_a_runner_each_call_is_done_once(
    kind: str, timeout: float | None, seed: int
) -> None:
    print(f"HEADGATE_SEED={seed}")
    server = Server(kind)
    limiter = Limiter(f"concurrency={SLOTS}", "requests=20k/s:burst=100:start=full", store=MemoryStore())
    runner = quiet(server.function, limiter, backoff_seconds=0, timeout=timeout, max_attempts=100)
    events: dict[Call[Any], list[str]] = defaultdict(list)

    def note(event: Event) -> None:
        if event.call is not None:
            events[event.call].append(event.kind)

    runner.subscribe(note)
    until = time.monotonic() + SECONDS
    meddlers = [Meddler(runner, 1000 * seed + number, until) for number in range(MEDDLERS)]
    threads = [InThread(meddler) for meddler in meddlers]
    rounds = [thread.result() for thread in threads]
    InThread(functools.partial(settle, runner)).result()

    print(f"{rounds} rounds, {len(events)} calls, {sum(server.answered.values())} answers")
    gc.collect()  # a coroutine that came to a loop just before its end lies there, and is counted, till now
    assert server.inside == 0
    if kind != "function that returns a coroutine":
        assert server.most <= SLOTS, "more at once than there are slots"
    for call, kinds in events.items():
        [key] = call.args
        assert call.done()
        assert kinds[0] == "added"
        assert kinds[-1] == ("completed" if call.error is None else "failed")
        assert sum(kind in ("completed", "failed") for kind in kinds) == 1
        # An answer that comes at the very moment of its time-out may be one too many.
        assert server.answered[key] <= 1 or timeout is not None, "it was paid for twice"
        if call.error is None:
            assert call.value == 2 * key
            assert server.answered[key] >= 1
        else:
            assert isinstance(call.error, CallCancelled)
    assert all(call in events for meddler in meddlers for call in meddler.calls)
    assert_nothing_is_left(runner)
    assert len(events) > 50, "or it was no test"


@pytest.mark.parametrize("kind", KINDS)
def test_each_call_that_threads_schedule_is_in_the_results_of_just_one_run(kind: str) -> None:
    server = Server(kind)
    runner = quiet(server.function, max_concurrent=8, backoff_seconds=0.001)
    until = time.monotonic() + SECONDS / 2
    runs: list[list[Call[int]]] = []
    goes_on = True

    def decide() -> None:
        nonlocal goes_on
        now = time.monotonic()
        goes_on = now < until or (len(runs) < 2 and now < until + 20)

    together = threading.Barrier(3, decide, timeout=60)

    def schedule(number: int) -> list[Call[int]]:
        choose = Random(number)
        calls: list[Call[int]] = []
        while goes_on:
            for _ in range(20):
                calls.append(runner.schedule(number * 1_000_000 + len(calls) + 1))
                time.sleep(choose.choice((0, 0, 0.000_2, 0.003)))
            while not all(call.done() for call in calls[-20:]):
                time.sleep(0.000_2)
            together.wait()  # nothing is left to do: the run ends, unless they are faster
            time.sleep(choose.choice((0, 0.000_2, 0.003)))
        return calls

    threads = [InThread(functools.partial(schedule, number)) for number in range(1, 4)]

    def run() -> None:
        while not all(thread.done for thread in threads) or runner.size or runner.pending:
            runs.append(runner.run().calls)

    InThread(run).result()
    runs.append(runner.run().calls)
    scheduled = {call for thread in threads for call in thread.result()}
    told = Counter(call for calls in runs for call in calls)
    assert set(told) == scheduled
    assert all(call.value == 2 * call.args[0] for call in scheduled)
    partial = sum(count - 1 for count in told.values())
    assert not partial, f"{partial} calls were told again by the run after their own"
    assert len(runs) > 2, "or it was no test"
    assert_nothing_is_left(runner)


def test_runners_that_share_a_limiter_share_it_fairly() -> None:
    limiter = Limiter(f"concurrency={SLOTS}", store=MemoryStore())
    servers = [Server(kind) for kind in KINDS]
    shared = Server("function")
    done: list[Counter[int]] = []
    finished: Counter[int] = Counter()

    def make(number: int, server: Server) -> Runner[..., Any]:
        def block(key: int) -> int:
            with shared.visit(1):
                time.sleep(0.001)
            return key

        async def suspend(key: int) -> int:
            with shared.visit(1):
                await asyncio.sleep(0.001)
            return key

        runner = quiet(block if number == 0 else suspend, limiter)
        runner.subscribe(lambda event: finished.update([number]), "completed")
        return runner

    runners = [make(number, server) for number, server in enumerate(servers)]

    def run(runner: Runner[..., Any]) -> list[Any]:
        for key in range(300):
            runner.schedule(key)
        results = runner.run().results
        done.append(Counter(finished))
        return results

    threads = [InThread(functools.partial(run, runner)) for runner in runners]
    for thread in threads:
        assert thread.result() == list(range(300))
    assert shared.most <= SLOTS
    first = done[0]
    assert min(first[number] for number in range(3)) > 60, f"starved: {first}"
    for runner in runners:
        assert_nothing_is_left(runner)


def test_start_and_stop_from_many_threads_lose_no_call() -> None:
    server = Server("coroutine function")
    runner = quiet(server.function, max_concurrent=2, backoff_seconds=0.001)

    def toggle(number: int) -> list[Call[int]]:
        calls = []
        for round_ in range(60):
            calls.append(runner.schedule(number * 1000 + round_ + 1))
            runner.start() if (round_ + number) % 2 else runner.stop()
        return calls

    threads = [InThread(functools.partial(toggle, number)) for number in range(4)]
    calls = [call for thread in threads for call in thread.result()]
    runner.start()
    assert InThread(lambda: runner.wait_idle(timeout=10)).result()
    runner.stop()
    assert [call.value for call in calls] == [2 * call.args[0] for call in calls]
    assert max(server.answered.values()) == 1
    assert_nothing_is_left(runner)


# Loops that end, and loops that stand still


class Late:
    """A plain function that takes its time to return a coroutine."""

    def __init__(self) -> None:
        self.entered, self.may_return = threading.Event(), threading.Event()
        self.awaited = 0
        self.ends: asyncio.AbstractEventLoop | None = None  # nothing comes to its end there

    def __call__(self, key: int) -> Any:
        self.entered.set()
        assert self.may_return.wait(10)
        return self.work(key)

    async def work(self, key: int) -> int:
        self.awaited += 1
        await asyncio.sleep(3600 if asyncio.get_running_loop() is self.ends else 0)
        return 2 * key


async def run_until(event: threading.Event, runner: Runner[..., Any]) -> None:
    """Begin a run, and give it up when that has happened."""
    task = asyncio.create_task(runner.run_async())
    await asyncio.to_thread(event.wait, 10)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_a_coroutine_that_comes_after_its_loop_has_ended_is_awaited_in_the_next_run() -> None:
    late = Late()
    runner = quiet(late, Limiter("concurrency=1", store=MemoryStore()))
    runner.schedule(21)
    asyncio.run(run_until(late.entered, runner))
    late.may_return.set()
    wait_until(lambda: not runner.pending)
    assert InThread(runner.run).result().results == [42]
    assert late.awaited == 1
    assert_nothing_is_left(runner)


def test_a_coroutine_that_comes_while_its_loop_ends_keeps_no_other_run_waiting() -> None:
    late = Late()
    runner = quiet(late, Limiter("concurrency=1", store=MemoryStore()))
    runner.schedule(21)
    others: list[InThread[Any]] = []

    async def slow_to_close() -> AsyncIterator[int]:
        try:
            yield 1
        finally:  # the loop's last turns: tasks have been cancelled already
            late.ends = asyncio.get_running_loop()
            others.append(InThread(runner.run))
            await asyncio.to_thread(wait_until, lambda: runner._sessions)
            late.may_return.set()
            await asyncio.to_thread(others[0].result)

    async def main() -> None:
        generator = slow_to_close()
        await anext(generator)
        kept.append(generator)
        await run_until(late.entered, runner)

    kept: list[AsyncIterator[int]] = []
    asyncio.run(main())
    assert others[0].result().results == [42]
    assert_nothing_is_left(runner)


@pytest.mark.parametrize("turns", range(8))
def test_a_loop_that_ends_between_two_turns_leaves_its_work_to_another_run(turns: int) -> None:
    server = Server("coroutine function")
    runner = quiet(server.function, Limiter("concurrency=1", store=MemoryStore()), max_concurrent=1)
    calls = [runner.schedule(key) for key in (1, 2, 3)]
    others: list[InThread[Any]] = []

    async def main() -> None:
        task = asyncio.create_task(runner.run_async())
        await asyncio.sleep(0)
        others.append(InThread(runner.run))
        wait_until(lambda: len(runner._sessions) == 2)
        for _ in range(turns):
            await asyncio.sleep(0)
        assert not task.done()

    asyncio.run(main())
    assert others[0].result().results == [2, 4, 6]
    assert all(call.done() for call in calls)
    assert_nothing_is_left(runner)


def test_calls_scheduled_while_the_loop_stands_still_start_when_it_turns_again() -> None:
    server = Server("coroutine function")
    runner = quiet(server.function)
    with asyncio.Runner() as loop:
        loop.run(runner.__aenter__())
        loop.run(asyncio.sleep(0.01))
        calls = [runner.schedule(1), runner.schedule(2)]
        loop.run(runner.wait_idle_async())
        assert [call.value for call in calls] == [2, 4]
        loop.run(runner.__aexit__(None, None, None))
    assert_nothing_is_left(runner)


@pytest.mark.parametrize("dedup", [None, "share"])
def test_what_a_stream_leaves_running_in_a_loop_that_ends_is_not_begun_again_but_for_others(
    dedup: Any,
) -> None:
    called: Counter[int] = Counter()

    async def function(key: int) -> int:
        called[key] += 1
        if key and called[key] == 1:
            await asyncio.Event().wait()
        return 2 * key

    runner = quiet(function, dedup=dedup)
    others: list[Call[int]] = []

    async def main() -> None:
        results: Any = aiter(runner.map(range(3)))
        assert await anext(results) == 0
        others.append(runner.schedule(2))  # with dedup, the twin of one that runs
        await results.aclose()

    asyncio.run(main())
    assert InThread(runner.run).result().results == [4]
    assert others[0].value == 4
    assert called == {0: 1, 1: 1, 2: 2}
    assert_nothing_is_left(runner)
