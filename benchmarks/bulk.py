"""What a bulk call costs: many calls of a coroutine function, none of which has to wait for a rate.

Each subject does what it has to do to call the function for all inputs, at most 500 at once, and give the
results back in order. All have limits that never bind, but for the floor and aiometer's second row.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from functools import partial
from statistics import median
from time import process_time

import aiometer
from rate_limited.resources import Resource
from rate_limited.runner import Runner as RateLimitedRunner

from benchmarks.report import Table
from headgate import Limiter, Runner

CALLS = 20_000
AT_ONCE = 500
SECONDS = 0.001
"""What a call takes; while it sleeps, nobody works."""
ROUNDS = 5
FAST = "requests=1000000/s:burst=1000000:start=full"
THREE = (FAST, "tokens=1000000000/s:burst=1000000000:start=full:charge=usage", "concurrency=100000")


async def call(x: int) -> int:
    await asyncio.sleep(SECONDS)
    return x


def bare(calls: int) -> list[int]:
    async def main() -> list[int]:
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(x: int) -> int:
            async with slots:
                return await call(x)

        return await asyncio.gather(*(one(x) for x in range(calls)))

    return asyncio.run(main())


def headgate_run_async(calls: int) -> list[int | None]:
    async def main() -> list[int | None]:
        runner = Runner(call, FAST, max_concurrent=AT_ONCE, progress=False)
        for x in range(calls):
            runner.schedule(x)
        return (await runner.run_async()).results

    return asyncio.run(main())


def headgate_run(calls: int) -> list[int | None]:
    runner = Runner(call, FAST, max_concurrent=AT_ONCE, progress=False)
    for x in range(calls):
        runner.schedule(x)
    return runner.run().results


def headgate_three(calls: int) -> list[int | None]:
    runner = Runner(
        call,
        Limiter(*THREE, key="three"),
        cost={"tokens": 100},
        usage=lambda result: {"tokens": 50},
        max_concurrent=AT_ONCE,
        progress=False,
    )
    for x in range(calls):
        runner.schedule(x)
    return runner.run().results


def headgate_map(calls: int) -> list[int | None]:
    return list(Runner(call, FAST, max_concurrent=AT_ONCE, progress=False).map(range(calls)))


def headgate_map_async(calls: int) -> list[int | None]:
    async def main() -> list[int | None]:
        runner = Runner(call, FAST, max_concurrent=AT_ONCE, progress=False)
        return [value async for value in runner.map(range(calls))]

    return asyncio.run(main())


def aiometer_slots(calls: int) -> list[int]:
    async def main() -> list[int]:
        jobs = [partial(call, x) for x in range(calls)]
        return list(await aiometer.run_all(jobs, max_at_once=AT_ONCE))

    return asyncio.run(main())


def aiometer_rate(calls: int) -> list[int]:
    async def main() -> list[int]:
        jobs = [partial(call, x) for x in range(calls)]
        return list(await aiometer.run_all(jobs, max_at_once=AT_ONCE, max_per_second=1_000_000))

    return asyncio.run(main())


def rate_limited(calls: int) -> list[int]:
    quota = Resource("requests", 1_000_000, 1, arguments_usage_extractor=lambda _: 1)
    runner = RateLimitedRunner(call, [quota], max_concurrent=AT_ONCE, progress_interval=1.0)
    for x in range(calls):
        runner.schedule(x)
    results, _ = runner.run()
    return list(results)


FLOOR = "floor: asyncio.gather under a Semaphore"
SUBJECTS: dict[str, tuple[Callable[[int], list[int]] | Callable[[int], list[int | None]], int]] = {
    FLOOR: (bare, 1),
    "headgate, Runner.run_async, one limit": (headgate_run_async, 1),
    "headgate, Runner.run, one limit": (headgate_run, 1),
    "headgate, Runner.run, three limits, usage": (headgate_three, 1),
    "headgate, for x in Runner.map": (headgate_map, 1),
    "headgate, async for x in Runner.map": (headgate_map_async, 1),
    "aiometer, run_all, slots only": (aiometer_slots, 1),
    "aiometer, run_all, slots and a rate": (aiometer_rate, 1),
    "rate_limited, Runner.run": (rate_limited, 1),
}
"""{name: (what does it, the part of the calls that it gets: what is slow would take the whole evening)}."""


def measure(subject: Callable[[int], object], calls: int) -> float:
    """CPU time of a call, in µs."""
    gc.collect()
    before = process_time()
    results = subject(calls)
    spent = process_time() - before
    if results != list(range(calls)):
        raise AssertionError("the results are not those of the calls")
    return spent / calls * 1e6


def run(share: float) -> Table:
    """share: of the full number of rounds."""
    logging.getLogger("rate_limited").setLevel(logging.ERROR)
    found: dict[str, list[float]] = {name: [] for name in SUBJECTS}
    for _ in range(max(1, round(ROUNDS * share))):
        for name, (subject, part) in SUBJECTS.items():
            found[name].append(measure(subject, CALLS // part))
    floor = median(found[FLOOR])
    rows = []
    for name, each in found.items():
        middle = median(each)
        rows.append(
            [name, f"{min(each):.1f}", f"{middle:.1f}", "-" if name == FLOOR else f"{middle - floor:.1f}"]
        )
    return Table(
        name="bulk",
        title=f"CPU time of one of {CALLS:,} calls of a coroutine function, at most {AT_ONCE} at once",
        columns=["", "best µs", "median µs", "above the floor"],
        rows=rows,
        texts=1,
        note=f"A call sleeps for {SECONDS * 1000:g} ms. headgate waits for permits, keeps a record of each "
        "call and settles it; `run` and `for` hand calls over to a loop in another thread. aiometer's rate "
        "starts calls one by one, 1 µs apart as asked.",
    )
