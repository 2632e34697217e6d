"""map, starmap and as_completed: in order, no further ahead than needed, and nothing left behind."""

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pandas
import pytest

from headgate import ConfigurationError, Limiter, Runner, RunStopped, current_call
from headgate.stores.memory import MemoryStore
from headgate.testing import FakeClock

quiet = functools.partial(Runner, progress=False)


def double(x: int) -> int:
    return 2 * x


async def double_async(x: int) -> int:
    await asyncio.sleep(0)
    return 2 * x


@pytest.mark.parametrize("function", [double, double_async])
def test_map_gives_values_in_order(function: Any) -> None:
    assert list(quiet(function).map(range(500))) == [2 * x for x in range(500)]


@pytest.mark.parametrize("function", [double, double_async])
async def test_map_is_asynchronous_too(function: Any) -> None:
    assert [value async for value in quiet(function).map(range(500))] == [2 * x for x in range(500)]


def test_several_iterables_and_shared_arguments() -> None:
    def join(a: int, b: str, *, c: str) -> str:
        return f"{a}{b}{c}"

    assert list(quiet(join).map([1, 2, 3], "xy", c="!")) == ["1x!", "2y!"]
    assert list(quiet(join).starmap([{"a": 1, "b": "x", "c": "?"}])) == ["1x?"]
    assert list(quiet(pow).starmap([(2, 5), (3, 2)])) == [32, 9]


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        await asyncio.sleep(0)
        yield number


async def test_an_asynchronous_generator_is_read_as_results_are_asked_for() -> None:
    assert [value async for value in quiet(double_async).map(numbers(50))] == [2 * x for x in range(50)]


def test_an_asynchronous_generator_is_read_from_blocking_code_too() -> None:
    assert list(quiet(double_async).map(numbers(50))) == [2 * x for x in range(50)]


def test_nothing_is_read_further_ahead_than_said() -> None:
    read = given = 0
    most = 0

    def source() -> Iterator[int]:
        nonlocal read, most
        for x in range(2000):
            read += 1
            most = max(most, read - given)
            yield x

    for _ in quiet(double).map(source(), ahead=30):
        given += 1
    assert given == 2000
    assert 2 <= most <= 31


async def test_nothing_is_read_further_ahead_than_said_by_coroutines() -> None:
    read = given = 0
    most = 0

    async def source() -> AsyncIterator[int]:
        nonlocal read, most
        for x in range(2000):
            read += 1
            most = max(most, read - given)
            yield x

    async for _ in quiet(double_async).map(source(), ahead=30):
        given += 1
    assert given == 2000
    assert 2 <= most <= 32


def test_a_generator_is_read_in_the_thread_that_asks() -> None:
    threads: set[int] = set()

    def source() -> Iterator[int]:
        for x in range(50):
            threads.add(threading.get_ident())
            yield x

    assert len(list(quiet(double).map(source()))) == 50
    assert threads == {threading.get_ident()}


def test_a_series_is_mapped_and_its_length_known() -> None:
    frame = pandas.DataFrame({"n": range(100)}, index=range(100, 200))
    runner = quiet(double)
    stream = runner.map(frame["n"])
    assert len(stream) == 100
    frame["double"] = list(stream)
    assert (frame["double"] == 2 * frame["n"]).all()
    with pytest.raises(TypeError, match="not known"):
        len(runner.map(iter([1])))


def test_a_failed_call_gives_none_or_raises(caplog: pytest.LogCaptureFixture) -> None:
    def fussy(x: int) -> int:
        if x == 2:
            raise KeyError(x)
        return x

    runner = quiet(fussy, max_attempts=1)
    assert list(runner.map(range(4))) == [0, 1, None, 3]
    assert "1 calls failed and gave None; the first: KeyError(2)" in caplog.text
    got: list[int | None] = []
    with pytest.raises(KeyError):
        got.extend(runner.map(range(4), on_error="raise"))
    assert got == [0, 1]
    with pytest.raises(ConfigurationError, match="on_error"):
        runner.map([], on_error="ignore")  # type: ignore[arg-type]  # on purpose


def test_as_completed_gives_calls_as_they_end() -> None:
    gate = threading.Event()

    def wait_for_the_last(x: int) -> int:
        if x == 0:
            assert gate.wait(20)
        return x

    runner = quiet(wait_for_the_last, max_concurrent=2)
    order = []
    for call in runner.as_completed(range(10)):
        order.append(call.value)
        if len(order) == 9:
            gate.set()
    assert order[-1] == 0
    assert {*order[:9]} == {*range(1, 10)}


def test_as_completed_without_arguments_gives_what_is_scheduled() -> None:
    runner = quiet(double)
    for x in range(5):
        runner.schedule(x)
    assert {call.value for call in runner.as_completed()} == {0, 2, 4, 6, 8}
    assert runner.run().results == [0, 2, 4, 6, 8]


async def test_as_completed_for_coroutines() -> None:
    async def sleepy(x: int) -> int:
        await asyncio.sleep(x / 1000)
        return x

    assert {call.value async for call in quiet(sleepy).as_completed([30, 20, 0])} == {0, 20, 30}


@pytest.mark.parametrize("function", [double, double_async])
def test_leaving_early_drops_what_waits(function: Any) -> None:
    runner = quiet(function, max_concurrent=2)
    for value in runner.map(range(10_000), ahead=100):
        if value == 20:
            break
    assert runner.size == 0
    assert runner.wait_idle(20)
    assert runner.statistics().attempts < 500
    runner.stop()


async def test_leaving_early_drops_what_waits_for_coroutines() -> None:
    runner = quiet(double_async, max_concurrent=2)
    stream = aiter(runner.map(range(10_000), ahead=100))
    async for value in stream:
        if value == 20:
            break
    await stream.aclose()  # type: ignore[attr-defined]  # it is a generator
    assert runner.size == 0
    assert runner.statistics().attempts < 500


def test_an_error_of_the_source_comes_out_where_it_is_read() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise OSError("no more")

    got: list[int | None] = []
    with pytest.raises(OSError, match="no more"):
        got.extend(quiet(double).map(source()))
    assert got in ([], [2])


async def test_an_error_of_an_asynchronous_source_comes_out_too() -> None:
    async def source() -> AsyncIterator[int]:
        yield 1
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        async for _ in quiet(double_async).map(source()):
            pass


def test_results_are_given_out_once() -> None:
    stream = quiet(double).map([1])
    assert list(stream) == [2]
    with pytest.raises(RuntimeError, match="again"):
        list(stream)


class WrongKey(Exception):
    status_code = 401
    headers: dict[str, str] = {}  # noqa: RUF012


@pytest.mark.parametrize("ordered", [True, False])
def test_a_stop_for_all_calls_ends_the_stream(ordered: bool) -> None:
    def refused(x: int) -> int:
        raise WrongKey

    runner = quiet(refused, max_concurrent=1)
    with pytest.raises(RunStopped, match="key"):
        list(runner.map(range(100)) if ordered else runner.as_completed(range(100)))


async def test_a_stop_for_all_calls_ends_the_stream_for_coroutines() -> None:
    async def refused(x: int) -> int:
        raise WrongKey

    runner = quiet(refused, max_concurrent=1)
    with pytest.raises(RunStopped, match="key"):
        async for _ in runner.map(range(100)):
            pass


def test_a_stream_needs_iterables() -> None:
    with pytest.raises(TypeError, match="at least one"):
        quiet(double).map()
    with pytest.raises(TypeError, match="iterable"):
        quiet(double).map(5)


def test_a_retried_call_keeps_its_place() -> None:
    def shaky(x: int) -> int:
        if x % 3 == 0 and current_call().attempt == 1:
            raise ConnectionError
        return x

    assert list(quiet(shaky, backoff_seconds=0.001).map(range(100))) == list(range(100))


def test_a_slow_consumer_does_not_idle_the_calls(fake_clock: FakeClock) -> None:
    started: list[float] = []

    async def note(x: int) -> int:
        started.append(fake_clock.elapsed_seconds)
        await asyncio.sleep(0.1)
        return x

    async def main() -> None:
        limiter = Limiter("requests=100/s:burst=10:start=full", store=MemoryStore(fake_clock))
        async for _ in quiet(note, limiter).map(range(300)):
            await asyncio.sleep(0.02)  # half as fast as calls may start

    fake_clock.run(main())
    assert started[-1] < 3.2
