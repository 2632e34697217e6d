"""One client process of the benchmark `shared`: coroutines that take permits of one key, one after the other.

    python -m benchmarks.shared_client SUBJECT URL COROUTINES

It says `ready`, reads three instants of the monotonic clock and works until the third; what it writes at last
is what it came to between the first and the second. It knows how each library is used, and nothing of the
other processes.
"""

from __future__ import annotations

import asyncio
import json
import sys
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.util import find_spec
from time import monotonic, perf_counter_ns, process_time
from typing import Any, NamedTuple, TypeAlias

from benchmarks.sending import run_in_loop

KEY = "bench"
MOST = 10_000_000
"""What each is allowed a second: far more than any of them gets through."""

Call: TypeAlias = Callable[[], Awaitable[object]]
"""What a permit is for; it takes no time, but lets others go first."""
Once: TypeAlias = Callable[[Call], Awaitable[object]]
"""Waits for a permit, calls, and says that it has been answered, if there is a way to say that."""
Open: TypeAlias = Callable[[str], AbstractAsyncContextManager[Once]]
"""Of the URL of a store."""


class NotAdmittedError(Exception):
    """A limit was met that should be out of reach."""


# ---- headgate

ONE = (f"requests={MOST}/s:burst={MOST}:start=full",)
THREE = (*ONE, "tokens=1000000000/s:burst=1000000000:start=full:charge=usage", "concurrency=100000")


@asynccontextmanager
async def headgate(url: str) -> AsyncIterator[Once]:
    from headgate import Limiter

    limiter = Limiter(*ONE, key=KEY, store=url)

    async def once(call: Call) -> None:
        async with limiter.permit():
            await call()

    yield once


@asynccontextmanager
async def headgate_three(url: str) -> AsyncIterator[Once]:
    from headgate import Limiter

    limiter = Limiter(*THREE, key=KEY, store=url)

    async def once(call: Call) -> None:
        async with limiter.permit(tokens=500) as permit:
            await call()
            permit.settle(tokens=400)

    yield once


# ---- peers


@asynccontextmanager
async def increment(url: str) -> AsyncIterator[Once]:
    from redis.asyncio import Redis

    async with Redis.from_url(url) as client:

        async def once(call: Call) -> None:
            await client.incr(KEY)
            await call()

        yield once


def limits(strategy: str) -> Open:
    @asynccontextmanager
    async def opened(url: str) -> AsyncIterator[Once]:
        from limits import RateLimitItemPerSecond
        from limits.aio import strategies
        from limits.storage import storage_from_string

        # Its default, where that is installed.
        client = "coredis" if find_spec("coredis") else "redispy"
        storage = storage_from_string(f"async+redis+{url}", implementation=client)
        limiter = getattr(strategies, strategy)(storage)
        item = RateLimitItemPerSecond(MOST)

        async def once(call: Call) -> None:
            if not await limiter.hit(item, KEY):
                raise NotAdmittedError
            await call()

        yield once

    return opened


def pyrate(bucket_of: Callable[[Any, Any], Awaitable[Any]]) -> Open:
    @asynccontextmanager
    async def opened(url: str) -> AsyncIterator[Once]:
        from pyrate_limiter import Duration, Limiter, Rate
        from redis.asyncio import ConnectionPool, Redis

        async with Redis(connection_pool=ConnectionPool.from_url(url)) as client:
            with Limiter(await bucket_of([Rate(MOST, Duration.SECOND)], client)) as limiter:

                async def once(call: Call) -> None:
                    if not await limiter.try_acquire_async(KEY):
                        raise NotAdmittedError
                    await call()

                yield once

    return opened


async def pyrate_log(rates: Any, client: Any) -> Any:
    from pyrate_limiter import RedisBucket

    bucket: Any = RedisBucket.init(rates, client, KEY)
    return await bucket


async def pyrate_state(rates: Any, client: Any) -> Any:
    from pyrate_limiter import GCRA, RedisStateStore, StateBucket

    return StateBucket(rates, algorithm=GCRA(), store=RedisStateStore(client, KEY))


def throttled(algorithm: str) -> Open:
    @asynccontextmanager
    async def opened(url: str) -> AsyncIterator[Once]:
        from throttled.asyncio import Throttled, store

        quota = f"{MOST}/s burst {MOST}"
        limiter = Throttled(using=algorithm, quota=quota, store=store.RedisStore(server=url))

        async def once(call: Call) -> None:
            if (await limiter.limit(KEY)).limited:
                raise NotAdmittedError
            await call()

        yield once

    return opened


SUBJECTS: dict[str, Open] = {
    "increment": increment,
    "headgate": headgate,
    "headgate_three": headgate_three,
    "limits_moving": limits("MovingWindowRateLimiter"),
    "limits_fixed": limits("FixedWindowRateLimiter"),
    "pyrate_log": pyrate(pyrate_log),
    "pyrate_state": pyrate(pyrate_state),
    "throttled_gcra": throttled("gcra"),
    "throttled_bucket": throttled("token_bucket"),
}

# ---- the work


class Tally(NamedTuple):
    at: float
    cpu_seconds: float
    permits: int


async def main(open_subject: Open, url: str, coroutines: int) -> dict[str, Any]:
    async with open_subject(url) as once:
        await once(no_time)
        print("ready", flush=True)
        told = await asyncio.to_thread(sys.stdin.readline)
        return await work(once, coroutines, [float(word) for word in told.split()])


async def no_time() -> None:
    await asyncio.sleep(0)


async def work(once: Once, coroutines: int, instants: Sequence[float]) -> dict[str, Any]:
    waits = array("q")  # in nanoseconds, from asking to the call
    found: list[tuple[Tally, array[int]]] = []
    permits = 0

    def tally() -> None:
        found.append((Tally(monotonic(), process_time(), permits), waits[:]))
        del waits[:]

    async def worker() -> None:
        nonlocal permits
        asked = 0

        async def call() -> None:
            waits.append(perf_counter_ns() - asked)
            await no_time()

        while len(found) < len(instants):
            asked = perf_counter_ns()
            await once(call)
            permits += 1

    loop = asyncio.get_running_loop()
    for instant in instants:
        loop.call_later(instant - monotonic(), tally)
    await asyncio.gather(*(worker() for _ in range(coroutines)))
    (before, _), (after, measured), _ = found
    return {
        "permits": after.permits - before.permits,
        "seconds": after.at - before.at,
        "cpu_seconds": after.cpu_seconds - before.cpu_seconds,
        "waits_us": Counter(int(float(f"{nanoseconds / 1000:.3g}")) for nanoseconds in measured),
    }


if __name__ == "__main__":
    subject, store_url, count = sys.argv[1:]
    print(json.dumps(run_in_loop(main(SUBJECTS[subject], store_url, int(count)))), flush=True)
