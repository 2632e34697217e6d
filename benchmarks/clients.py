"""Clients that differ in what lets a call go, and in what a refusal leads to."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pyrate_limiter
from aiolimiter import AsyncLimiter

from benchmarks.sending import Client, Post
from headgate import Limiter

FIRST_BACKOFF_SECONDS = 0.25
LONGEST_BACKOFF_SECONDS = 8.0


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
