"""What waiting costs: many coroutines want permits all the time, and the limit holds them back.

This counts queueing, timers and waking. Each coroutine suspends once after its permit, as a call would.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from statistics import median
from time import perf_counter, process_time
from typing import NamedTuple, TypeAlias

import pyrate_limiter
from aiolimiter import AsyncLimiter

from benchmarks.report import Table
from headgate import Limiter

RATES = (1_000, 10_000)
"""Permits a second: slow enough that each has a timer of its own, and faster than timers go."""
SECONDS = 2
WAITERS = 200
ROUNDS = 3

Operation: TypeAlias = Callable[[], Awaitable[object]]


class Found(NamedTuple):
    cpu_us: float  # per permit
    share: float  # permits a second, once those that come at once are spent, against the limit


def burst(rate: int) -> int:
    """What comes in in 100 ms."""
    return rate // 10


def measure(make: Callable[[ExitStack, int], Operation], rate: int, at_once: int) -> Found:
    """at_once: permits that the subject has at its start."""
    permits = SECONDS * rate

    async def worker(operation: Operation, turns: Iterator[int]) -> None:
        for _ in turns:
            await operation()
            await asyncio.sleep(0)

    async def measured() -> Found:
        with ExitStack() as stack:
            operation = make(stack, rate)
            turns = iter(range(permits))
            gc.collect()
            cpu, clock = process_time(), perf_counter()
            await asyncio.gather(*(worker(operation, turns) for _ in range(WAITERS)))
            cpu, clock = process_time() - cpu, perf_counter() - clock
            return Found(cpu / permits * 1e6, (permits - at_once) / clock / rate)

    return asyncio.run(measured())


def semaphore(stack: ExitStack, rate: int) -> Operation:
    slots = asyncio.Semaphore(1)

    async def operation() -> None:
        async with slots:
            await asyncio.sleep(0)  # or nobody would ever have to wait

    return operation


def headgate(stack: ExitStack, rate: int) -> Operation:
    limiter = Limiter(f"requests={rate}/s:burst={burst(rate)}:start=empty")

    async def operation() -> None:
        async with limiter.permit():
            pass

    return operation


def aiolimiter(stack: ExitStack, rate: int) -> Operation:
    return AsyncLimiter(burst(rate), burst(rate) / rate).acquire


def pyrate(stack: ExitStack, rate: int) -> Operation:
    limiter = pyrate_limiter.Limiter(pyrate_limiter.Rate(rate, pyrate_limiter.Duration.SECOND))
    stack.callback(limiter.close)
    return limiter.try_acquire_async


REFERENCE = "headgate, async with limiter.permit()"
FLOOR = "floor: asyncio.Semaphore(1)"


def subjects(rate: int) -> dict[str, tuple[Callable[[ExitStack, int], Operation], int]]:
    """{name: (what makes it, permits that it has at its start)}."""
    return {
        FLOOR: (semaphore, 0),
        REFERENCE: (headgate, 0),
        "aiolimiter, acquire": (aiolimiter, burst(rate)),
        "pyrate-limiter, try_acquire_async": (pyrate, rate),
    }


def run(share: float) -> Table:
    """share: of the full number of rounds."""
    rows = []
    for rate in RATES:
        found: dict[str, list[Found]] = {name: [] for name in subjects(rate)}
        for _ in range(max(1, round(ROUNDS * share))):
            for name, (make, at_once) in subjects(rate).items():
                found[name].append(measure(make, rate, at_once))
        reference = median(one.cpu_us for one in found[REFERENCE])
        for name, results in found.items():
            cost = median(one.cpu_us for one in results)
            rows.append(
                [
                    f"{rate:,}/s",
                    name,
                    f"{min(one.cpu_us for one in results):.1f}",
                    f"{cost:.1f}",
                    f"{cost / reference:.2f}",
                    "-" if name == FLOOR else f"{median(one.share for one in results):.1%}",
                ]
            )
    return Table(
        name="overhead",
        title=f"CPU time of one permit where {WAITERS} coroutines want {SECONDS} seconds' worth of them",
        columns=["limit", "", "best µs", "median µs", "ratio", "of the limit"],
        rows=rows,
        texts=2,
        note="of the limit: permits a second, once those that come at once are spent: none for headgate, "
        "which is told to start empty, 100 ms' worth for aiolimiter, a second's worth for pyrate-limiter, "
        "whose default is a sliding window, with 50 ms added to every wait. The floor has no rate: it is "
        "what asyncio takes to queue and wake. ratio: of medians, to headgate.",
    )
