"""Many threads and two event loops on one key, in real time."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from functools import partial

from headgate import AcquireTimeout, Limiter
from tests.waiting import InThread, line_in

THREADS, LOOPS, TASKS = 8, 2, 6
SLOTS = 6
SECONDS = 2.5


class Slots:
    """The server's view: how many calls are there at once."""

    def __init__(self) -> None:
        self.now = self.most = self.calls = 0
        self._lock = threading.Lock()

    def enter(self) -> None:
        with self._lock:
            self.now += 1
            self.calls += 1
            self.most = max(self.most, self.now)

    def leave(self) -> None:
        with self._lock:
            self.now -= 1


def test_threads_and_loops_lose_nothing_and_exceed_nothing() -> None:
    limiter = Limiter(
        f"concurrency={SLOTS}",
        "requests=200k/s:burst=2k:start=full",
    )
    slots = Slots()
    end = time.monotonic() + SECONDS
    settled: list[int] = []

    def block(seed: int) -> None:
        choose = random.Random(seed)
        done = 0
        while time.monotonic() < end:
            try:
                with limiter.permit(
                    priority=choose.choice((0, 0, 1)),
                    max_wait=choose.choice((None, None, None, 0.000_2)),
                ) as permit:
                    slots.enter()
                    slots.leave()
                    if not done % 7:
                        permit.settle(requests=1)
                done += 1
            except AcquireTimeout:
                pass
        settled.append(done)

    async def suspend(seed: int) -> int:
        choose = random.Random(seed)
        done = 0
        while time.monotonic() < end:
            try:
                async with limiter.permit(max_wait=choose.choice((None, None, None, 0.000_2))):
                    slots.enter()
                    try:
                        if not done % 5:
                            await asyncio.sleep(0)
                    finally:
                        slots.leave()
                done += 1
            except AcquireTimeout:
                pass
            if not done % 50:
                await asyncio.sleep(0)
        return done

    async def many(seed: int) -> None:
        tasks = [asyncio.create_task(suspend(seed + number)) for number in range(TASKS)]

        async def cancel_some() -> None:
            """Cancels whoever it meets, and takes the place over."""
            choose = random.Random(seed)
            while time.monotonic() < end:
                victim = asyncio.create_task(suspend(choose.randrange(1 << 30)))
                await asyncio.sleep(0.002 * choose.random())
                victim.cancel()
                await asyncio.gather(victim, return_exceptions=True)

        counts, _ = await asyncio.gather(asyncio.gather(*tasks), cancel_some())
        settled.append(sum(counts))

    threads = [InThread(partial(block, seed)) for seed in range(THREADS)]
    loops = [InThread(partial(asyncio.run, many(seed * 1000))) for seed in range(1, LOOPS + 1)]
    for thread in (*threads, *loops):
        thread.result()
    assert slots.most <= SLOTS, "more at once than there are slots"
    assert slots.now == 0
    assert slots.calls >= sum(settled)
    print(f"{slots.calls} calls; per thread {settled}")
    line = line_in(limiter)
    assert (limiter.waiting, line._head, bool(line._order)) == (0, None, False)
    assert limiter.used()["concurrency"] == 0
    assert slots.calls > 2_000, "or it was no test"
