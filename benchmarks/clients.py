"""Callers for one and the same job: POST each row of a file, until the server has accepted it.

All have the same session and the same bounded pool of workers, which is kinder to a limiter than a task for
each row: nothing bunches up before it starts. They differ in what lets a call go, and in what a refusal
leads to.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import aiohttp
import pyrate_limiter
from aiolimiter import AsyncLimiter

from headgate import Limiter

Result = TypeVar("Result")
Post: TypeAlias = Callable[[], Awaitable[tuple[int, Mapping[str, str]]]]
"""Sends one call and reads the answer: (status, headers)."""
Client: TypeAlias = Callable[[Post], Awaitable[None]]
"""Sends one call until it is accepted."""

FIRST_BACKOFF_SECONDS = 0.25
LONGEST_BACKOFF_SECONDS = 8.0


def run_in_loop(main: Coroutine[Any, Any, Result]) -> Result:
    """On the event loop that `headgate run` would take."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


async def send_all(url: str, rows: Path, workers: int, client: Client) -> None:
    """Send every row; returns when all have been accepted."""
    connector = aiohttp.TCPConnector(limit=0)
    with rows.open() as lines:
        async with aiohttp.ClientSession(url, connector=connector) as session:
            await asyncio.gather(*(_work(session, lines, client) for _ in range(workers)))


async def _work(session: aiohttp.ClientSession, lines: Iterator[str], client: Client) -> None:
    for line in lines:
        row = json.loads(line)
        body = json.dumps(row["body"]).encode()

        async def post(path: str = row["url"], body: bytes = body) -> tuple[int, Mapping[str, str]]:
            async with session.post(path, data=body, headers={"content-type": "application/json"}) as answer:
                await answer.read()
                return answer.status, answer.headers

        await client(post)


def ungated() -> Client:
    """Nothing but the call."""

    async def client(post: Post) -> None:
        await post()

    return client


def backoff(gate: Callable[[], Awaitable[object]] | None = None) -> Client:
    """Send, behind a gate if there is one; on 429 sleep for Retry-After and a growing random time; again."""

    async def client(post: Post) -> None:
        longest = FIRST_BACKOFF_SECONDS
        while True:
            if gate is not None:
                await gate()
            status, headers = await post()
            if status == 200:
                return
            await asyncio.sleep(float(headers.get("retry-after", 0)) + random.uniform(0, longest))
            longest = min(LONGEST_BACKOFF_SECONDS, 2 * longest)

    return client


def headgate(spec: str) -> Client:
    """The limiter hears of each answer, so it says itself when to come again."""
    limiter = Limiter(spec)

    async def client(post: Post) -> None:
        status = 0
        while status != 200:
            async with limiter.permit() as permit:
                status, headers = await post()
                permit.read(status, headers)

    return client


def aiolimiter(amount: int, seconds: float) -> Client:
    return backoff(AsyncLimiter(amount, seconds).acquire)


def pyrate(amount: int, milliseconds: int, buffer_ms: int) -> Client:
    """buffer_ms: what it adds to every wait."""
    rate = pyrate_limiter.Rate(amount, milliseconds)
    return backoff(pyrate_limiter.Limiter(rate, buffer_ms=buffer_ms).try_acquire_async)
