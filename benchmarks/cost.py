"""What a permit costs where nobody has to wait: taken and settled in memory, by one caller, in CPU time.

Subjects take turns in one process, so that whatever else the machine does falls on all of them alike.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import repeat
from statistics import median
from time import process_time
from typing import TypeAlias

import pyrate_limiter
from aiolimiter import AsyncLimiter

from benchmarks.report import Table
from headgate import Limiter
from headgate.core.model import ANSWERED, Granted, Report
from headgate.core.plan import Plan
from headgate.core.text import parse_limits
from headgate.stores.memory import MemoryStore

MILLION = 1_000_000
RATES = ((MILLION, 1), (60 * MILLION, 60), (3600 * MILLION, 3600))
"""Units and seconds: so much that nothing ever waits."""

PERMITS = 4000
ROUNDS = 11
REFERENCE = "headgate, with limiter.permit()"

Operation: TypeAlias = Callable[[], object]
AsyncOperation: TypeAlias = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Subject:
    """limits: how many it keeps; measure: CPU seconds of so many permits, on a fresh limiter."""

    limits: str
    name: str
    measure: Callable[[int], float]


def sync(make: Callable[[ExitStack], Operation]) -> Callable[[int], float]:
    def measure(permits: int) -> float:
        with ExitStack() as stack:
            operation = make(stack)
            operation()
            gc.collect()
            started = process_time()
            for _ in repeat(None, permits):
                operation()
            return process_time() - started

    return measure


def asynchronous(make: Callable[[ExitStack], AsyncOperation]) -> Callable[[int], float]:
    async def measured(permits: int) -> float:
        with ExitStack() as stack:
            operation = make(stack)
            await operation()
            gc.collect()
            started = process_time()
            for _ in repeat(None, permits):
                await operation()
            return process_time() - started

    return lambda permits: asyncio.run(measured(permits))


# ---- the floor: what no limiter can be cheaper than


def lock_and_counter(stack: ExitStack) -> Operation:
    lock = threading.Lock()
    count = 0

    def operation() -> None:
        nonlocal count
        with lock:
            count += 1

    return operation


def semaphore(stack: ExitStack) -> AsyncOperation:
    slots = asyncio.Semaphore(1)

    async def operation() -> None:
        async with slots:
            pass

    return operation


# ---- headgate


def specs(limits: int) -> list[str]:
    periods = {1: "s", 60: "min", 3600: "h"}
    return [
        f"requests={amount}/{periods[seconds]}:burst={amount}:start=full"
        for amount, seconds in RATES[:limits]
    ]


def headgate_subjects(limits: int) -> Iterator[tuple[str, Callable[[int], float]]]:
    def store(stack: ExitStack) -> Operation:
        memory = MemoryStore()
        plan = Plan(parse_limits(specs(limits)))
        asks = (plan.costs({}),)

        def operation() -> None:
            answer = memory.acquire("key", plan, asks)[0]
            assert type(answer) is Granted
            memory.settle("key", plan, (Report(answer, ANSWERED),))

        return operation

    def acquire(stack: ExitStack) -> Operation:
        limiter = Limiter(*specs(limits))
        return lambda: limiter.acquire().settle()

    def with_permit(stack: ExitStack) -> Operation:
        limiter = Limiter(*specs(limits))

        def operation() -> None:
            with limiter.permit():
                pass

        return operation

    def async_with_permit(stack: ExitStack) -> AsyncOperation:
        limiter = Limiter(*specs(limits))

        async def operation() -> None:
            async with limiter.permit():
                pass

        return operation

    yield "headgate, store.acquire, store.settle", sync(store)
    yield "headgate, limiter.acquire().settle()", sync(acquire)
    yield REFERENCE, sync(with_permit)
    yield "headgate, async with limiter.permit()", asynchronous(async_with_permit)


# ---- peers


def aiolimiter_one(stack: ExitStack) -> AsyncOperation:
    limiter = AsyncLimiter(*RATES[0])

    async def operation() -> None:
        async with limiter:
            pass

    return operation


def aiolimiter_three(stack: ExitStack) -> AsyncOperation:
    first, second, third = (AsyncLimiter(amount, seconds) for amount, seconds in RATES)

    async def operation() -> None:
        async with first, second, third:
            pass

    return operation


def pyrate(stack: ExitStack, limits: int) -> pyrate_limiter.Limiter:
    rates = [pyrate_limiter.Rate(amount, 1000 * seconds) for amount, seconds in RATES[:limits]]
    limiter = pyrate_limiter.Limiter(rates)
    stack.callback(limiter.close)
    return limiter


def pyrate_subjects(limits: int) -> Iterator[tuple[str, Callable[[int], float]]]:
    yield "pyrate-limiter, try_acquire", sync(lambda stack: pyrate(stack, limits).try_acquire)
    yield (
        "pyrate-limiter, try_acquire_async",
        asynchronous(lambda stack: pyrate(stack, limits).try_acquire_async),
    )


# ---- all of them


def subjects() -> Iterator[Subject]:
    yield Subject("none", "floor: threading.Lock, count += 1", sync(lock_and_counter))
    yield Subject("none", "floor: async with asyncio.Semaphore", asynchronous(semaphore))
    for limits, aiolimiter in ((1, aiolimiter_one), (3, aiolimiter_three)):
        word = {1: "one", 3: "three"}[limits]
        for name, measure in headgate_subjects(limits):
            yield Subject(word, name, measure)
        yield Subject(word, "aiolimiter, async with", asynchronous(aiolimiter))
        for name, measure in pyrate_subjects(limits):
            yield Subject(word, name, measure)


def in_turn(subjects: Sequence[Subject], permits: int, rounds: int) -> list[list[float]]:
    """CPU microseconds per permit of each subject, in each round."""
    costs: list[list[float]] = [[] for _ in subjects]
    for _ in range(rounds):
        for subject, found in zip(subjects, costs, strict=True):
            found.append(subject.measure(permits) / permits * 1e6)
    return costs


def run(share: float) -> Table:
    """share: of the full size."""
    found = list(subjects())
    costs = in_turn(found, max(100, round(PERMITS * share)), max(3, round(ROUNDS * share)))
    by_subject = {(subject.limits, subject.name): cost for subject, cost in zip(found, costs, strict=True)}
    rows = []
    for (limits, name), cost in by_subject.items():
        reference = by_subject[limits if limits != "none" else "one", REFERENCE]
        ratio = median(mine / other for mine, other in zip(cost, reference, strict=True))
        rows.append([limits, name, f"{min(cost):.2f}", f"{median(cost):.2f}", f"{ratio:.2f}"])
    return Table(
        name="cost",
        title="CPU time of one permit, taken and settled, where nobody waits",
        columns=["limits", "", "best µs", "median µs", "ratio"],
        rows=rows,
        texts=2,
        note=f"ratio: to `{REFERENCE.removeprefix('headgate, ')}` with as many limits (the floor: with one), "
        "median over the rounds. aiolimiter has no form for several limits, so three are entered one after "
        "the other, which is not all or none. pyrate-limiter takes its three rates at once; its log is far "
        "from full here, which is its best case. Neither has anything to settle.",
    )
