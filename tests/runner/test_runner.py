"""The Runner from outside: what it calls, in which order, and what it gives back."""

import asyncio
import functools
import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from headgate import (
    ConfigurationError,
    CostExceedsLimit,
    Limit,
    Limiter,
    Runner,
    Throttled,
    current_call,
)
from headgate.runner import CallCancelled, DuplicateCall, ValidationError
from headgate.stores.memory import MemoryStore
from headgate.testing import FakeClock

quiet = functools.partial(Runner, progress=False)


def on(clock: FakeClock, *limits: str) -> Limiter:
    return Limiter(*limits, store=MemoryStore(clock))


class Client:
    """All the shapes in which a function comes."""

    def __init__(self) -> None:
        self.calls = 0

    def method(self, x: int) -> int:
        self.calls += 1
        return 2 * x

    async def coroutine(self, x: int) -> int:
        await asyncio.sleep(0)
        return 2 * x

    def __call__(self, x: int) -> int:
        return 2 * x


class AsyncObject:
    async def __call__(self, x: int) -> int:
        await asyncio.sleep(0)
        return 2 * x


class LazyObject:
    def __call__(self, x: int) -> Any:
        return Client().coroutine(x)


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


CALLABLES: dict[str, Callable[[int], Any]] = {
    "function": lambda x: 2 * x,
    "method": Client().method,
    "coroutine method": Client().coroutine,
    "callable object": Client(),
    "async callable object": AsyncObject(),
    "object that returns a coroutine": LazyObject(),
    "lambda that returns a coroutine": lambda x: Client().coroutine(x),
    "partial": functools.partial(lambda y, x: x * y, 2),
    "partial of a coroutine function": functools.partial(Client.coroutine, Client()),
    "decorated coroutine function": wrapped(Client().coroutine),
    "builtin": (2).__mul__,
}


@pytest.mark.parametrize("name", CALLABLES)
def test_any_callable_is_called_and_its_results_come_in_order(name: str) -> None:
    runner = quiet(CALLABLES[name], max_concurrent=4)
    for x in range(20):
        runner.schedule(x)
    results, exceptions = runner.run()
    assert results == [2 * x for x in range(20)]
    assert exceptions == [[] for _ in range(20)]


@pytest.mark.parametrize("name", CALLABLES)
async def test_run_async_does_the_same(name: str) -> None:
    runner = quiet(CALLABLES[name], max_concurrent=4)
    for x in range(20):
        runner.schedule(x)
    assert (await runner.run_async()).results == [2 * x for x in range(20)]


async def test_run_blocks_and_works_inside_a_running_loop() -> None:
    runner = quiet(Client().coroutine)
    runner.schedule(21)
    assert runner.run().results == [42]


def test_run_works_in_a_thread() -> None:
    runner = quiet(Client().coroutine)
    runner.schedule(21)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(runner.run().results))
    thread.start()
    thread.join(20)
    assert found == [[42]]


def test_coroutines_of_several_runs_share_one_loop() -> None:
    loops: set[Any] = set()

    async def where() -> None:
        loops.add(asyncio.get_running_loop())

    for _ in range(3):
        runner = quiet(where)
        runner.schedule()
        runner.run()
    assert len(loops) == 1


def test_functions_run_side_by_side() -> None:
    barrier = threading.Barrier(8)
    runner = quiet(lambda: barrier.wait(20), max_concurrent=8)
    for _ in range(8):
        runner.schedule()
    assert {*runner.run().results} == {*range(8)}


def test_a_call_that_returns_none_is_done_and_not_repeated() -> None:
    calls: list[int] = []
    runner = quiet(calls.append)
    runner.schedule(1)
    assert runner.run().complete
    runner.schedule(2)
    assert runner.run().results == [None]
    assert calls == [1, 2]


def test_a_failed_call_leaves_none_and_every_attempts_exception_beside_it() -> None:
    def fails(x: int) -> int:
        if x == 1:
            raise ConnectionError(f"attempt {current_call().attempt}")
        return x

    runner = quiet(fails, max_attempts=3, backoff_seconds=0)
    for x in range(3):
        runner.schedule(x)
    results, exceptions = runner.run()
    assert results == [0, None, 2]
    assert [[str(error) for error in errors] for errors in exceptions] == [
        [],
        ["attempt 1", "attempt 2", "attempt 3"],
        [],
    ]


def test_a_call_that_succeeds_in_the_end_keeps_the_errors_of_its_attempts() -> None:
    def third() -> int:
        if current_call().attempt < 3:
            raise ConnectionError
        return 3

    runner = quiet(third, backoff_seconds=0)
    call = runner.schedule()
    results, exceptions = runner.run()
    assert results == [3]
    assert [type(error) for error in exceptions[0]] == [ConnectionError, ConnectionError]
    assert call.attempts == 3
    assert call.error is None


def test_a_bug_in_the_function_is_not_tried_again() -> None:
    def bug() -> None:
        raise TypeError("a bug")

    runner = quiet(bug)
    call = runner.schedule()
    runner.run()
    assert call.attempts == 1


@pytest.mark.parametrize(
    ("retry_on", "attempts"),
    [(None, 2), (KeyError, 1), ((KeyError, ValueError), 2), (lambda error: "yes" in str(error), 2)],
)
def test_which_errors_are_tried_again_can_be_said(retry_on: Any, attempts: int) -> None:
    def fails() -> None:
        raise ValueError("yes")

    runner = quiet(fails, retry_on=retry_on, max_attempts=2, backoff_seconds=0)
    call = runner.schedule()
    runner.run()
    assert call.attempts == attempts


def test_after_a_complete_run_the_runner_can_be_used_anew() -> None:
    runner = quiet(Client())
    runner.schedule(1)
    assert runner.run().results == [2]
    assert runner.run().results == []
    runner.schedule(2)
    assert runner.run().results == [4]


def test_pauses_between_attempts_grow_and_take_no_slot(fake_clock: FakeClock) -> None:
    started: list[float] = []

    async def fails(x: int) -> int:
        started.append(fake_clock.elapsed_seconds)
        if x == 0:
            raise ConnectionError
        return x

    async def main() -> list[Any]:
        runner = quiet(fails, on(fake_clock), max_concurrent=1, max_attempts=4, backoff_seconds=8)
        for x in range(3):
            runner.schedule(x)
        return (await runner.run_async()).results

    assert fake_clock.run(main()) == [None, 1, 2]
    assert started[1:3] == [0, 0]  # the others did not wait for the first one's pause
    assert len(started) == 6
    assert fake_clock.elapsed_seconds <= 8 + 16 + 32


# Costs and limits


def test_cost_comes_from_the_arguments_and_usage_from_the_result(fake_clock: FakeClock) -> None:
    async def complete(text: str, n: int) -> dict[str, int]:
        return {"used": n}

    limiter = on(fake_clock, "tokens=100/s:burst=1000:charge=usage:start=full")

    async def main() -> None:
        runner = quiet(
            complete,
            limiter,
            cost=lambda text, n: {"tokens": len(text) + 10},
            usage=lambda result: {"tokens": result["used"]},
        )
        runner.schedule("x" * 90, n=30)
        await runner.run_async()

    fake_clock.run(main())
    assert limiter.used() == {"tokens/s": 30}


def test_a_cost_that_never_fits_is_refused_when_scheduled() -> None:
    runner = quiet(Client(), "tokens=100/s:burst=50", cost=lambda x: {"tokens": x})
    with pytest.raises(CostExceedsLimit, match="at most 50"):
        runner.schedule(51)
    with pytest.raises(ValueError, match="at most 50"):
        runner.schedule(51)
    assert runner.run().results == []


def test_in_a_map_such_a_call_fails_alone() -> None:
    runner = quiet(Client(), "tokens=1000/s:burst=50:start=full", cost=lambda x: {"tokens": x})
    assert list(runner.map([1, 51, 2])) == [2, None, 4]


def test_starts_keep_to_the_limit(fake_clock: FakeClock) -> None:
    started: list[float] = []

    async def note(x: int) -> None:
        started.append(fake_clock.elapsed_seconds)

    async def main() -> None:
        runner = quiet(note, on(fake_clock, "requests=10/s:burst=2:start=full"))
        for x in range(22):
            runner.schedule(x)
        await runner.run_async()

    fake_clock.run(main())
    assert started[:2] == [0, 0]
    assert 1.9 <= started[-1] <= 2.3
    for first, last in zip(started, started[3:], strict=False):
        assert last - first >= 0.1 - 1e-6


def test_a_batch_is_a_cost() -> None:
    limiter = Limiter("requests=1000/s:burst=10:start=full", "items=1000/s:burst=100:start=full")
    runner = quiet(sum, limiter, cost=lambda batch: {"items": len(batch)})
    runner.schedule([1, 2, 3])
    assert runner.run().results == [6]
    assert runner.statistics().limits[1].used == 3


@pytest.mark.parametrize(
    "limits",
    [
        None,
        "requests=1000/s:burst=10",
        ["requests=1000/s:burst=10", "concurrency=3"],
        Limit(meter="requests", amount=1000, period_us=1_000_000, kind="bucket", burst=10),
        Limiter("requests=1000/s:burst=10", key="given"),
    ],
)
def test_limits_come_in_any_form(limits: Any) -> None:
    runner = quiet(Client(), limits)
    runner.schedule(1)
    assert runner.run().results == [2]


def test_two_runners_may_have_other_limits_and_one_limiter_may_have_two_runners() -> None:
    first, second = quiet(Client(), "requests=100/s:burst=9"), quiet(Client(), "requests=10/s:burst=5")
    assert first.limiter.limits != second.limiter.limits
    limiter = Limiter("requests=100/s:burst=10:start=full", key="shared")
    runners = [quiet(Client(), limiter), quiet(Client(), limiter)]
    for runner in runners:
        runner.schedule(1)
        assert runner.run().results == [2]
    assert limiter.used()["requests/s"] >= 1


# Refusals


class Refusal(Exception):
    """Like those of HTTP libraries."""

    def __init__(self, status: int, headers: dict[str, str] | None = None, body: Any = None) -> None:
        super().__init__(f"HTTP {status}")
        self.status_code = status
        self.headers = headers or {}
        self.body = body


def test_a_refusal_spends_no_attempt_and_slows_everybody(fake_clock: FakeClock) -> None:
    started: list[tuple[int, float]] = []

    async def refused_once(x: int) -> int:
        started.append((x, fake_clock.elapsed_seconds))
        if x == 0 and fake_clock.elapsed_seconds < 5:
            raise Refusal(429, {"Retry-After": "5"})
        return x

    async def main() -> Any:
        runner = quiet(
            refused_once,
            on(fake_clock, "requests=100/s:burst=10:start=full"),
            max_attempts=1,
            max_concurrent=1,
        )
        for x in range(3):
            runner.schedule(x)
        return await runner.run_async()

    done = fake_clock.run(main())
    assert done.results == [0, 1, 2]
    assert [len(errors) for errors in done.exceptions] == [1, 0, 0]
    assert started[0][1] == 0
    assert all(at >= 5 for _, at in started[1:])


def test_a_refusal_without_any_limit_pauses_everybody(fake_clock: FakeClock) -> None:
    started: list[float] = []

    async def refused_once(x: int) -> int:
        started.append(fake_clock.elapsed_seconds)
        if len(started) == 1:
            raise Refusal(429, {"Retry-After": "7"})
        return x

    async def main() -> Any:
        runner = quiet(refused_once, on(fake_clock), max_concurrent=1)
        for x in range(3):
            runner.schedule(x)
        return await runner.run_async()

    assert fake_clock.run(main()).results == [0, 1, 2]
    assert started[1:] == [7, 7, 7]


def test_a_returned_refusal_counts_like_a_raised_one(fake_clock: FakeClock) -> None:
    class Response:
        def __init__(self, status: int) -> None:
            self.status_code = status
            self.headers = {"retry-after": "2"}

    async def get() -> Response:
        return Response(429 if fake_clock.elapsed_seconds < 2 else 200)

    async def main() -> Any:
        runner = quiet(get, on(fake_clock, "requests=10/s:burst=10:start=full"))
        runner.schedule()
        return await runner.run_async()

    results = fake_clock.run(main())
    assert results.results[0].status_code == 200
    assert fake_clock.elapsed_seconds >= 2


def test_refused_for_too_long_is_given_up(fake_clock: FakeClock) -> None:
    async def refused() -> None:
        raise Refusal(429, {"Retry-After": "60"})

    async def main() -> Any:
        runner = quiet(
            refused, on(fake_clock, "requests=10/s:burst=10:start=full"), max_throttled_seconds=300
        )
        runner.schedule()
        return await runner.run_async()

    [call] = fake_clock.run(main()).calls
    assert isinstance(call.error, Throttled)
    assert isinstance(call.error.__cause__, Refusal)
    assert call.error.throttled_seconds >= 300


def test_a_wrong_request_is_not_sent_again_and_a_wrong_key_stops_the_run() -> None:
    def answer(x: int) -> int:
        if x == 1:
            raise Refusal(400)
        if x == 2:
            raise Refusal(401)
        return x

    runner = quiet(answer, max_concurrent=1)
    for x in (1, 2, 3, 4):
        runner.schedule(x)
    results = runner.run()
    assert [call.attempts for call in results.calls] == [1, 1, 0, 0]
    assert results.stopped is not None
    assert "key" in results.stopped
    assert not results.complete


def test_money_gone_stops_the_run_and_the_next_one_goes_on() -> None:
    paid = False

    def answer(x: int) -> int:
        if not paid:
            raise Refusal(402)
        return x

    runner = quiet(answer, max_concurrent=1)
    for x in (1, 2, 3):
        runner.schedule(x)
    assert "credit" in (runner.run().stopped or "")
    paid = True
    assert runner.run().results == [None, 2, 3]


# Validators


def test_validators_agree_in_order_and_stop_at_the_first_no() -> None:
    asked: list[str] = []

    def even(value: int) -> bool:
        asked.append("even")
        return value % 2 == 0

    def large(value: int) -> bool:
        asked.append("large")
        return value > 2

    values = iter([1, 2, 4])
    runner = quiet(lambda: next(values), validation=[even, large])
    call = runner.schedule()
    results, [errors] = runner.run()
    assert results == [4]
    assert asked == ["even", "even", "large", "even", "large"]
    assert [type(error) for error in errors] == [ValidationError, ValidationError]
    assert [error.value for error in errors if isinstance(error, ValidationError)] == [1, 2]
    assert call.attempts == 3


async def test_a_validator_may_be_a_coroutine_function() -> None:
    async def valid(value: int) -> bool:
        await asyncio.sleep(0)
        return value == 2

    async def ask() -> int:
        return current_call().attempt

    for function in (ask, lambda: current_call().attempt):
        runner = quiet(function, validation=valid)
        runner.schedule()
        assert (await runner.run_async()).results == [2]


def test_a_result_that_never_becomes_valid_fails_with_its_validators_name() -> None:
    def never(value: int) -> bool:
        return False

    runner = quiet(lambda: 5, validation=never, max_attempts=2)
    call = runner.schedule()
    runner.run()
    assert isinstance(call.error, ValidationError)
    assert "never" in call.error.validator
    assert pickle.loads(pickle.dumps(call.error)).value == 5


# The record


def test_the_record_tells_what_became_of_a_call(fake_clock: FakeClock) -> None:
    async def slow(x: int) -> int:
        await asyncio.sleep(3)
        return x

    async def main() -> Any:
        runner = quiet(slow, on(fake_clock, "requests=1/s:burst=1:start=full"))
        calls = [runner.schedule(x) for x in range(2)]
        await runner.run_async()
        return calls

    first, second = fake_clock.run(main())
    assert [first.position, second.position] == [0, 1]
    assert [first.id, second.id] == ["1", "2"]
    assert first.started_at == first.queued_at
    assert (second.started_at - second.queued_at).total_seconds() >= 1
    assert (first.finished_at - first.started_at).total_seconds() == pytest.approx(3)
    assert first.elapsed_seconds == pytest.approx(3)
    assert first.digest != second.digest
    assert first.as_dict()["value"] == 0
    assert not first.skipped
    assert first.queued_at.tzinfo is not None


# Duplicates


def test_a_duplicate_shares_the_result() -> None:
    client = Client()
    gate = threading.Event()

    def slow(x: int) -> int:
        gate.wait(20)
        return client.method(x)

    runner = quiet(slow, dedup="share", max_concurrent=1)
    for x in (1, 2, 1, 2, 1):
        runner.schedule(x)
    gate.set()
    assert runner.run().results == [2, 4, 2, 4, 2]
    assert client.calls == 2


def test_a_duplicate_of_running_work_is_skipped_with_a_flag() -> None:
    started, gate = threading.Event(), threading.Event()

    def slow(x: int) -> int:
        started.set()
        assert gate.wait(20)
        return x

    runner = quiet(slow, dedup="skip")
    runner.start()
    first = runner.schedule(1)
    assert started.wait(20)
    second = runner.schedule(1)
    assert second.done()
    assert second.skipped
    assert second.result() is None
    gate.set()
    assert first.result(20) == 1
    third = runner.schedule(1)  # what is done is no duplicate
    assert third.result(20) == 1
    assert not third.skipped
    runner.stop()


def test_a_duplicate_can_be_an_error() -> None:
    runner = quiet(Client(), dedup="error", digest=lambda x: str(x % 10))
    runner.schedule(1)
    with pytest.raises(DuplicateCall, match="waiting already"):
        runner.schedule(11)
    assert runner.run().results == [2]


def test_a_cancelled_call_leaves_its_work_to_its_twins() -> None:
    client = Client()
    runner = quiet(client.method, dedup="share")
    calls = [runner.schedule(1) for _ in range(3)]
    assert calls[0].cancel()
    assert calls[2].cancel()
    results = runner.run()
    assert results.results == [None, 2, None]
    assert isinstance(calls[0].error, CallCancelled)
    assert client.calls == 1


def test_arguments_that_cannot_be_digested_are_refused_when_scheduled() -> None:
    runner = quiet(Client(), dedup="share")
    with pytest.raises(ConfigurationError, match=r"args\[0\]"):
        runner.schedule(object())


# Steering


def test_calls_may_be_scheduled_from_other_threads_while_it_runs() -> None:
    runner = quiet(Client(), "requests=100000/s:burst=1000:start=full")

    def feed(start: int) -> None:
        for x in range(start, start + 100):
            runner.schedule(x)

    with runner:
        threads = [threading.Thread(target=feed, args=(1000 * n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    results = runner.results()
    assert len(results.results) == 400
    assert {*results.results} == {2 * (1000 * n + x) for n in range(4) for x in range(100)}
    assert [call.position for call in results.calls] == list(range(400))


def test_a_function_may_schedule_more() -> None:
    def fan_out(depth: int) -> int:
        if depth:
            runner.schedule(depth - 1)
            runner.schedule(depth - 1)
        return depth

    runner = quiet(fan_out)
    runner.schedule(3)
    assert Counter(runner.run().results) == {0: 8, 1: 4, 2: 2, 3: 1}


def test_a_function_that_waits_for_its_own_runner_is_told_so() -> None:
    def nested() -> None:
        runner.run()

    runner = quiet(nested, max_attempts=1)
    call = runner.schedule()
    runner.run()
    assert isinstance(call.error, RuntimeError)
    assert "schedule, and return" in str(call.error)


def test_the_result_of_one_call_can_be_waited_for() -> None:
    runner = quiet(Client())
    assert runner.schedule(3).result(20) == 6
    runner.stop()


async def test_a_call_can_be_awaited() -> None:
    runner = quiet(Client().coroutine)
    assert await runner.schedule(3) == 6
    calls = [runner.schedule(x) for x in range(10)]
    assert await asyncio.gather(*calls) == [2 * x for x in range(10)]
    runner.stop()


def test_larger_priorities_go_first() -> None:
    order: list[int] = []
    runner = quiet(order.append, max_concurrent=1)
    for x, priority in enumerate([0, 5, -1, 5]):
        runner.options(priority=priority).schedule(x)
    last = runner.schedule(4)
    last.priority = 9
    runner.set_priority("1", -5)
    runner.run()
    assert order == [4, 1, 3, 2, 0]


def test_a_run_may_be_too_long(fake_clock: FakeClock) -> None:
    async def slow(x: int) -> int:
        await asyncio.sleep(3)
        return x

    async def main() -> Any:
        runner = quiet(slow, on(fake_clock), max_concurrent=1)
        for x in range(5):
            runner.schedule(x)
        first = await runner.run_async(deadline=7)
        return first, await runner.run_async()

    first, second = fake_clock.run(main())
    assert first.results == [0, 1, 2, None, None]
    assert first.stopped == "the deadline is over"
    assert second.results == [0, 1, 2, 3, 4]


def test_a_call_far_beyond_the_deadline_is_cut_off_and_stays_to_be_done(fake_clock: FakeClock) -> None:
    async def slow() -> int:
        await asyncio.sleep(1000 if fake_clock.elapsed_seconds < 500 else 1)
        return 1

    async def main() -> Any:
        runner = quiet(slow, on(fake_clock))
        runner.schedule()
        first = await runner.run_async(deadline=10)
        assert fake_clock.elapsed_seconds == pytest.approx(15)
        assert not first.complete
        fake_clock.advance(600)
        return (await runner.run_async()).results

    assert fake_clock.run(main()) == [1]


def test_the_spend_cap_is_never_exceeded_and_can_be_raised() -> None:
    client = Client()
    runner = quiet(client.method, price=lambda x: 2.5, spend_cap=10.0, max_concurrent=3)
    for x in range(6):
        runner.schedule(x)
    first = runner.run()
    assert client.calls == 4
    assert runner.spent == 10.0
    assert "spend cap" in (first.stopped or "")
    runner.spend_cap = 100.0
    assert runner.run().results == [0, 2, 4, 6, 8, 10]
    assert runner.spent == 15.0


def test_money_is_put_right_by_usage() -> None:
    runner = quiet(
        lambda: {"tokens": 10},
        "tokens=1000000/s:burst=10000:charge=usage:start=full",
        cost={"tokens": 100},
        usage=lambda result: result,
        price={"tokens": 0.01},
        spend_cap=1.2,
        max_concurrent=1,
    )
    for _ in range(3):
        runner.schedule()
    assert runner.run().complete
    assert runner.spent == pytest.approx(0.3)


def test_a_slow_start_grows_to_the_full_rate(fake_clock: FakeClock) -> None:
    started: list[float] = []

    async def note() -> None:
        started.append(fake_clock.elapsed_seconds)

    async def main() -> None:
        runner = quiet(note, on(fake_clock, "requests=100/s:burst=100:start=full"), ramp=10)
        for _ in range(1000):
            runner.schedule()
        await runner.run_async()

    fake_clock.run(main())
    assert sum(at < 1 for at in started) <= 12
    assert 95 <= sum(9 <= at < 10 for at in started) <= 101


# Time-outs


def test_a_time_out_is_told_at_once_and_the_slot_is_kept_until_the_work_ends() -> None:
    gate = threading.Event()
    running: list[int] = []
    most = 0

    def slow(x: int) -> int:
        nonlocal most
        running.append(x)
        most = max(most, len(running))
        if x == 0:
            gate.wait(20)
        running.remove(x)
        return x

    runner = quiet(slow, max_concurrent=1, timeout=0.05, max_attempts=1)
    runner.start()
    first, second = runner.schedule(0), runner.schedule(1)
    with pytest.raises(TimeoutError):
        first.result(20)
    assert runner.pending == 1
    assert not second.done()
    gate.set()
    assert second.result(20) == 1
    assert most == 1
    runner.stop()


def test_a_coroutine_that_takes_too_long_is_cancelled_and_tried_again(fake_clock: FakeClock) -> None:
    cancelled: list[int] = []

    async def slow() -> int:
        attempt = current_call().attempt
        try:
            await asyncio.sleep(100 if attempt == 1 else 1)
        except asyncio.CancelledError:
            cancelled.append(attempt)
            assert current_call().cancelled
            await asyncio.sleep(5)  # some work cannot be cut short
            raise
        return attempt

    async def main() -> Any:
        runner = quiet(slow, on(fake_clock), max_concurrent=1, timeout=10, backoff_seconds=0)
        call = runner.schedule()
        await runner.run_async()
        return call

    call = fake_clock.run(main())
    assert call.value == 2
    assert cancelled == [1]
    assert [type(error) for error in call.exceptions] == [TimeoutError]
    assert fake_clock.elapsed_seconds == pytest.approx(16)


def test_a_result_that_comes_after_its_time_out_is_not_thrown_away() -> None:
    gate = threading.Event()
    calls: list[int] = []

    def slow() -> int:
        calls.append(1)
        assert gate.wait(20)
        return 7

    runner = quiet(slow, max_concurrent=1, timeout=0.05)
    runner.start()
    call = runner.schedule()
    while not call.exceptions:
        time.sleep(0.01)
    gate.set()
    assert call.result(20) == 7
    assert calls == [1]
    runner.stop()


# Watching


def test_events_tell_the_life_of_a_call_in_order() -> None:
    seen: list[tuple[str, int]] = []

    def twice() -> int:
        if current_call().attempt == 1:
            raise ConnectionError
        return 1

    runner = quiet(twice, backoff_seconds=0)
    runner.subscribe(lambda event: seen.append((event.kind, event.attempt)))
    runner.schedule()
    runner.run()
    assert seen == [
        ("added", 0),
        ("started", 1),
        ("empty", 0),
        ("retried", 1),
        ("started", 2),
        ("empty", 0),
        ("completed", 2),
        ("idle", 0),
    ]


def test_a_listener_that_fails_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def listener(event: object) -> None:
        raise RuntimeError("listener")

    runner = quiet(Client())
    stop = runner.subscribe(listener, "completed")
    runner.schedule(1)
    assert runner.run().results == [2]
    assert "a listener failed" in caplog.text
    stop()
    caplog.clear()
    runner.schedule(1)
    runner.run()
    assert not caplog.records


def test_statistics_add_up(fake_clock: FakeClock) -> None:
    async def slow(x: int) -> int:
        await asyncio.sleep(0.5)
        if x == 3:
            raise ValueError
        return x

    async def main() -> Any:
        limiter = on(fake_clock, "requests=10/s:burst=4:start=full", "concurrency=50")
        runner = quiet(slow, limiter, max_attempts=2, backoff_seconds=0)
        for x in range(11):
            runner.schedule(x)
        await runner.run_async()
        return runner.statistics()

    figures = fake_clock.run(main())
    assert (figures.succeeded, figures.failed, figures.attempts, figures.retries) == (10, 1, 12, 1)
    assert figures.mean == pytest.approx(0.5)
    assert figures.p50 == pytest.approx(0.5, rel=0.03)
    assert figures.seconds == pytest.approx(1.4, abs=0.2)
    assert figures.limits[0].name == "requests/s"
    assert figures.limits[0].used == 12
    assert "10 succeeded, 1 failed" in str(figures)


def test_every_charge_can_be_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="headgate.charges")
    runner = quiet(
        lambda: 5,
        "tokens=1000/s:burst=100:charge=usage:start=full",
        cost={"tokens": 20},
        usage=lambda result: {"tokens": result},
    )
    runner.schedule()
    runner.run()
    assert [record.getMessage() for record in caplog.records] == [
        "call 1, attempt 1: reserved {'tokens/s': 20}",
        "call 1, attempt 1: ok, used {'tokens': 5}",
    ]


def test_a_mistake_in_usage_costs_no_result(caplog: pytest.LogCaptureFixture) -> None:
    runner = quiet(Client(), "requests=100/s:burst=10:start=full", usage=lambda result: result["usage"])
    runner.schedule(1)
    runner.schedule(2)
    assert runner.run().results == [2, 4]
    assert len([record for record in caplog.records if "usage= failed" in record.getMessage()]) == 1


def test_repr_and_html_say_how_it_stands() -> None:
    runner = quiet(Client().method, "requests=100/s:burst=10")
    runner.schedule(1)
    assert repr(runner) == "<Runner Client.method: 1 waiting, 0 running, 0 done>"
    assert "Client.method" in runner._repr_html_()
    results = runner.run()
    assert repr(results) == "<Results 1 succeeded, 0 failed>"
    assert "1 succeeded" in results._repr_html_()


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_concurrent": 0}, "max_concurrent"),
        ({"max_concurrent": 2.5}, "max_concurrent"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("inf")}, "timeout"),
        ({"timeout": "5"}, "timeout"),
        ({"dedup": "drop"}, "dedup"),
        ({"validation": 5}, "validation"),
        ({"validation": [5]}, "validation"),
        ({"spend_cap": 5}, "price"),
        ({"codec": "pickle"}, "checkpoint"),
        ({"progress": "loud"}, "loud"),
    ],
)
def test_options_that_make_no_sense_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        quiet(Client(), **{"progress": False, **options})


def test_what_is_no_function_is_told() -> None:
    with pytest.raises(ConfigurationError, match="int"):
        Runner(5)  # type: ignore[call-overload]  # on purpose


def test_a_limit_longer_than_the_process_warns_without_a_checkpoint() -> None:
    with pytest.warns(UserWarning, match="checkpoint"):
        quiet(Client(), "requests=1000/month:kind=calendar:start=full")
