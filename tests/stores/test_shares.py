"""Unequal processes on one key: what they let through together, and how they share it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

RATE, BURST = 300, 30
SECONDS = 4
WORKER = """
import asyncio, json, sys, time
from headgate import Limiter

async def main(url, workers, begin, seconds):
    limiter = Limiter(sys.argv[5], store=url, key="shared")
    await asyncio.sleep(max(begin - time.time(), 0))
    grants = []

    async def work():
        while time.time() < begin + seconds:
            permit = await limiter.acquire_async()
            grants.append(permit.granted_us)
            await asyncio.sleep(0.02)
            permit.settle()

    await asyncio.gather(*(work() for _ in range(workers)))
    print(json.dumps(grants))

asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])))
"""


def grants_of(url: str, workers: dict[str, int], begin: float) -> dict[str, list[int]]:
    """{process: instants of its grants in µs}, for processes with so many coroutines each."""
    limit = f"requests={RATE}/s:burst={BURST}:start=full"
    running = {
        name: subprocess.Popen(
            [sys.executable, "-c", WORKER, url, str(count), str(begin), str(SECONDS), limit],
            stdout=subprocess.PIPE,
        )
        for name, count in workers.items()
    }
    try:
        return {name: json.loads(process.communicate(timeout=60)[0]) for name, process in running.items()}
    finally:
        for process in running.values():
            process.kill()
            process.wait()


def most_over(instants: list[int]) -> float:
    """By how many units a bucket of the server's would have run dry; at most 0 if nothing is refused."""
    level, last, worst = float(BURST), instants[0], float("-inf")
    for instant in instants:
        level = min(BURST, level + (instant - last) * RATE / 1e6)
        last = instant
        level -= 1
        worst = max(worst, -level)
    return worst


def test_three_unequal_processes_share_a_file(tmp_path: Path) -> None:
    workers = {"many": 30, "some": 12, "few": 8}
    found = grants_of(f"sqlite://{tmp_path / 'limits.db'}", workers, time.time() + 2)
    together = sorted(instant for grants in found.values() for instant in grants)
    assert most_over(together) <= 1e-6
    begin = together[0]
    for second in range(1, SECONDS - 1):
        counts = {
            name: sum(
                begin + second * 1_000_000 <= instant < begin + (second + 1) * 1_000_000 for instant in grants
            )
            for name, grants in found.items()
        }
        total = sum(counts.values())
        assert total >= 0.95 * RATE
        for count in counts.values():
            assert abs(count / total - 1 / 3) <= 0.05
