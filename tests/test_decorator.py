"""``@limiter.limited`` on functions, coroutine functions and methods."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from headgate import AcquireTimeout, ConfigurationError, Limiter
from headgate.events import Event, Granted, Settled
from headgate.stores.memory import MemoryStore
from headgate.testing import FakeClock


@pytest.fixture
def limiter(fake_clock: FakeClock) -> Limiter:
    return Limiter(
        "tokens=10/s:burst=100:start=full:charge=usage", "concurrency=2", store=MemoryStore(fake_clock)
    )


@pytest.fixture
def told(limiter: Limiter) -> list[Event]:
    told: list[Event] = []
    limiter.subscribe(told.append)
    return told


def granted(told: list[Event]) -> list[int]:
    return [event.units["tokens/s"] for event in told if type(event) is Granted]


def outcomes(told: list[Event]) -> list[tuple[str, dict[str, int]]]:
    return [(event.outcome, dict(event.used)) for event in told if type(event) is Settled]


def test_takes_a_permit_for_each_call(limiter: Limiter, told: list[Event]) -> None:
    @limiter.limited
    def double(number: int, *, by: int = 2) -> int:
        """Twice as much."""
        assert limiter.used()["concurrency"] == 1
        return number * by

    assert (double(3), double(3, by=5)) == (6, 15)
    assert (double.__name__, double.__doc__) == ("double", "Twice as much.")
    assert list(inspect.signature(double).parameters) == ["number", "by"]
    assert outcomes(told) == [("answered", {})] * 2
    assert limiter.used()["concurrency"] == 0


def test_takes_a_permit_for_each_call_of_a_coroutine_function(
    fake_clock: FakeClock, limiter: Limiter
) -> None:
    most = 0

    @limiter.limited()
    async def slow(seconds: float) -> float:
        nonlocal most
        most = max(most, limiter.used()["concurrency"])
        await asyncio.sleep(seconds)
        return seconds

    async def main() -> list[float]:
        return await asyncio.gather(*(slow(1) for _ in range(6)))

    assert inspect.iscoroutinefunction(slow)
    assert fake_clock.run(main()) == [1] * 6
    assert (most, fake_clock.elapsed_seconds) == (2, 3)
    assert limiter.used()["concurrency"] == 0


def test_costs_are_fixed_or_made_of_the_arguments(limiter: Limiter, told: list[Event]) -> None:
    @limiter.limited(cost={"tokens": 5})
    def fixed() -> None: ...

    @limiter.limited(cost=lambda text, times=1: {"tokens": len(text) * times})
    def made(text: str, times: int = 1) -> None: ...

    fixed()
    made("seven!!")
    made("seven!!", times=2)
    made(text="", times=9)
    assert granted(told) == [5, 7, 14, 0]


def test_usage_is_made_of_the_result(fake_clock: FakeClock, limiter: Limiter, told: list[Event]) -> None:
    @limiter.limited(cost={"tokens": 50}, usage=lambda reply: {"tokens": reply})
    def call(used: int) -> int:
        return used

    @limiter.limited(cost={"tokens": 50}, usage=lambda reply: {"tokens": reply})
    async def call_async(used: int) -> int:
        return used

    assert call(12) == 12
    assert fake_clock.run(call_async(3)) == 3
    assert outcomes(told) == [("answered", {"tokens": 12}), ("answered", {"tokens": 3})]
    assert limiter.used()["tokens/s"] == 15


def test_works_on_methods(fake_clock: FakeClock, limiter: Limiter, told: list[Event]) -> None:
    class Client:
        base = "/"

        @limiter.limited(cost=lambda self, path: {"tokens": len(self.base + path)})
        def get(self, path: str) -> str:
            return self.base + path

        @limiter.limited
        async def fetch(self, path: str) -> str:
            return self.base + path

        @classmethod
        @limiter.limited
        def make(cls) -> Client:
            return cls()

        @staticmethod
        @limiter.limited
        def ping() -> str:
            return "pong"

    client = Client.make()
    assert client.get("one") == Client.get(client, "one") == "/one"
    assert fake_clock.run(client.fetch("two")) == "/two"
    assert client.ping() == Client.ping() == "pong"
    assert granted(told) == [0, 4, 4, 0, 0, 0]


def test_a_call_that_raises_is_lost(fake_clock: FakeClock, limiter: Limiter, told: list[Event]) -> None:
    @limiter.limited
    def fail() -> None:
        raise LookupError

    @limiter.limited
    async def fail_async() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        fail()
    with pytest.raises(LookupError):
        fake_clock.run(fail_async())
    assert outcomes(told) == [("lost", {})] * 2
    assert limiter.used()["concurrency"] == 0


def test_a_cost_that_cannot_be_told_calls_nothing(limiter: Limiter, told: list[Event]) -> None:
    @limiter.limited(cost={"tokenz": 5})
    def unknown() -> None:
        pytest.fail("it has no permit")

    with pytest.raises(ConfigurationError, match="no limit counts 'tokenz'"):
        unknown()
    assert told == []


def test_gives_up_after_max_wait_without_calling(limiter: Limiter) -> None:
    @limiter.limited(max_wait=0)
    def call() -> None:
        pytest.fail("it has no permit")

    with limiter.permit(), limiter.permit(), pytest.raises(AcquireTimeout):
        call()


def test_important_functions_go_first(fake_clock: FakeClock, limiter: Limiter) -> None:
    went: list[str] = []

    async def call(name: str) -> None:
        went.append(name)

    bulk, chat = limiter.limited(call), limiter.limited(priority=1)(call)

    async def main() -> None:
        held = [await limiter.acquire_async(), await limiter.acquire_async()]
        calls = [asyncio.create_task(function(name)) for function, name in ((bulk, "bulk"), (chat, "chat"))]
        await asyncio.sleep(0)
        for permit in held:
            permit.settle()
        await asyncio.gather(*calls)

    fake_clock.run(main())
    assert went == ["chat", "bulk"]


def test_other_callables(fake_clock: FakeClock, limiter: Limiter) -> None:
    class Adder:
        async def __call__(self, number: int) -> int:
            assert limiter.used()["concurrency"] == 1, "the permit is held while it runs"
            return number + 1

    async def add(number: int, more: int) -> int:
        assert limiter.used()["concurrency"] == 1
        return number + more

    assert fake_clock.run(limiter.limited(Adder())(1)) == 2
    assert fake_clock.run(limiter.limited(functools.partial(add, 1))(2)) == 3
    assert limiter.limited(len)("four") == 4
    assert limiter.used()["concurrency"] == 0


def test_generators_are_refused(limiter: Limiter) -> None:
    def lines() -> Iterator[int]:
        yield 1

    async def lines_async() -> AsyncIterator[int]:
        yield 1

    functions: tuple[Any, ...] = (lines, lines_async)
    for function in functions:
        with pytest.raises(ConfigurationError, match="take the permit inside it"):
            limiter.limited(function)
