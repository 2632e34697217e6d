"""A limiter that has done a bit of everything."""

from __future__ import annotations

from headgate import Limiter
from headgate.events import StoreFailed
from headgate.stores.memory import MemoryStore
from headgate.testing import FakeClock

LIMITS = (
    "requests=10/s:burst=5:start=full",
    "tokens=60k/min:burst=1k:charge=usage:start=full",
    "concurrency=8",
    "requests=1000/day:kind=calendar:start=full",
)


def worked(clock: FakeClock, limiter: Limiter) -> None:
    """Seven permits, two of which have to wait; one is refused, one lost, one unsent, one still out."""

    async def main() -> None:
        permits = [await limiter.acquire_async(tokens=100) for _ in range(7)]
        for permit in permits[:3]:
            permit.settle(tokens=40)
        permits[3].throttled(0.5, "requests")
        permits[4].lost()
        permits[5].give_back()

    clock.run(main())
    limiter._tell(StoreFailed(limiter.key, "gone"))


def limiter_of(clock: FakeClock, key: str = "openai", store: MemoryStore | None = None) -> Limiter:
    clock.advance(2)  # no call goes at the very edge of a day, which is where this clock begins
    return Limiter(*LIMITS, key=key, store=store or MemoryStore(clock))
