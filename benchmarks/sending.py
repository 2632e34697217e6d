"""One job for every client: POST each row of a file to one server, until it has been accepted.

All clients have the same session and the same bounded pool of workers, which is kinder to a limiter than a
task for each row: nothing bunches up before it starts. What lets a call go is the client's own affair.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import aiohttp

Result = TypeVar("Result")
Post: TypeAlias = Callable[[], Awaitable[tuple[int, Mapping[str, str]]]]
"""Sends one call and reads the answer: (status, headers)."""
Client: TypeAlias = Callable[[Post], Awaitable[object]]
"""Sends one call until it is accepted."""


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
