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

RATE = 10_000  # permits a second
BURST = 1_000  # what comes in in 100 ms
PERMITS = 20_000
WAITERS = 200
ROUNDS = 3

Operation: TypeAlias = Callable[[], Awaitable[object]]


class Found(NamedTuple):
    cpu_us: float  # per permit
    per_second: float | None  # permits, once those of the start are spent; None where no rate binds


def measure(make: Callable[[ExitStack], Operation], start: int | None, permits: int) -> Found:
    """start: permits that come at once; None where no rate binds."""

    async def worker(operation: Operation, turns: Iterator[int]) -> None:
        for _ in turns:
            await operation()

    async def measured() -> Found:
        with ExitStack() as stack:
            operation = make(stack)
            turns = iter(range(permits))
            gc.collect()
            cpu, clock = process_time(), perf_counter()
            await asyncio.gather(*(worker(operation, turns) for _ in range(WAITERS)))
            cpu, clock = process_time() - cpu, perf_counter() - clock
            return Found(cpu / permits * 1e6, None if start is None else (permits - start) / clock)

    return asyncio.run(measured())


def semaphore(stack: ExitStack) -> Operation:
    slots = asyncio.Semaphore(1)

    async def operation() -> None:
        async with slots:
            await asyncio.sleep(0)

    return operation


def headgate(stack: ExitStack) -> Operation:
    limiter = Limiter(f"requests={RATE}/s:burst={BURST}:start=empty")

    async def operation() -> None:
        async with limiter.permit():
            await asyncio.sleep(0)

    return operation


def aiolimiter(stack: ExitStack) -> Operation:
    limiter = AsyncLimiter(BURST, BURST / RATE)

    async def operation() -> None:
        async with limiter:
            await asyncio.sleep(0)

    return operation


def pyrate(stack: ExitStack) -> Operation:
    limiter = pyrate_limiter.Limiter(pyrate_limiter.Rate(RATE, pyrate_limiter.Duration.SECOND))
    stack.callback(limiter.close)

    async def operation() -> None:
        await limiter.try_acquire_async()
        await asyncio.sleep(0)

    return operation


SUBJECTS: dict[str, tuple[Callable[[ExitStack], Operation], int | None]] = {
    "floor: asyncio.Semaphore(1), no rate": (semaphore, None),
    "headgate, async with limiter.permit()": (headgate, 0),
    "aiolimiter, async with": (aiolimiter, BURST),
    "pyrate-limiter, try_acquire_async": (pyrate, RATE),
}


def run(share: float) -> Table:
    """share: of the full number of rounds; with fewer permits no rate would bind."""
    found: dict[str, list[Found]] = {name: [] for name in SUBJECTS}
    for _ in range(max(1, round(ROUNDS * share))):
        for name, (make, start) in SUBJECTS.items():
            found[name].append(measure(make, start, PERMITS))
    rows = []
    for name, results in found.items():
        cpu = [result.cpu_us for result in results]
        speeds = [result.per_second for result in results if result.per_second is not None]
        rate = median(speeds) if speeds else None
        rows.append(
            [
                name,
                f"{min(cpu):.1f}",
                f"{median(cpu):.1f}",
                "-" if rate is None else f"{rate:,.0f}",
                "-" if rate is None else f"{rate / RATE:.1%}",
            ]
        )
    return Table(
        name="overhead",
        title=f"{PERMITS:,} permits through {RATE:,} a second, wanted by {WAITERS} coroutines",
        columns=["", "best µs", "median µs", "permits/s", "of the limit"],
        rows=rows,
        texts=1,
        note="µs: CPU time per permit. permits/s: once those that come at once are spent (none for headgate, "
        f"which is told to start empty; {BURST:,} for aiolimiter; {RATE:,} for pyrate-limiter, whose default "
        "is a sliding window, with 50 ms added to every wait). Each coroutine suspends once after its permit. "
        "The floor has no rate: it is what asyncio takes to queue and wake.",
    )
