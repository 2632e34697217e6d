"""Checked by mypy alone: what ``@limiter.limited`` leaves of a function's type. Never run."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta
from typing import Any, assert_type

from headgate import Limiter, Permit

limiter = Limiter("requests=500/min:burst=20", "tokens=40k/min:burst=4k:charge=usage")


@limiter.limited
def plain(text: str, *, times: int = 1) -> list[str]:
    return [text] * times


@limiter.limited()
def bare(text: str) -> bytes:
    return text.encode()


@limiter.limited(cost={"tokens": 5}, max_wait=1, priority=2)
def fixed_cost(text: str, /) -> int:
    return len(text)


def tokens_of(text: str, times: int = 1) -> dict[str, int]:
    return {"tokens": len(text) * times}


@limiter.limited(cost=tokens_of, usage=lambda reply: {"tokens": reply})
def told_cost(text: str, times: int = 1) -> int:
    return len(text) * times


@limiter.limited
async def slow(text: str) -> int:
    return len(text)


@limiter.limited(cost={"tokens": 5})
async def slow_cost(text: str, *more: int, flag: bool = False) -> str:
    return text * (sum(more) + flag)


@limiter.limited(headers="openai", token_header="x-my-reset-tokens", requests_header="x-my-reset")
def told_resets(text: str) -> int:
    return len(text)


@limiter.limited(headers="anthropic", parser=float)
async def told_seconds(text: str) -> int:
    return len(text)


@limiter.limited(token_header="x-my-reset", parser=datetime.fromisoformat)
def told_instant(text: str) -> int:
    return len(text)


def minutes(text: str) -> timedelta | None:
    return timedelta(minutes=int(text)) if text.isdigit() else None


def lower(text: str) -> str:
    return text.lower()


class Client:
    @limiter.limited(cost={"tokens": 1})
    def get(self, path: str) -> bytes:
        return path.encode()

    @limiter.limited
    async def fetch(self, path: str) -> bytes:
        return path.encode()


async def uses() -> None:
    assert_type(plain("a", times=2), list[str])
    assert_type(bare("a"), bytes)
    assert_type(fixed_cost("a"), int)
    assert_type(told_cost("a", times=3), int)
    assert_type(await slow("a"), int)
    assert_type(await slow_cost("a", 1, 2, flag=True), str)
    assert_type(told_resets("a"), int)
    assert_type(await told_seconds("a"), int)
    assert_type(told_instant("a"), int)
    limiter.limited(token_header="x-my-reset", parser=minutes)(plain)
    assert_type(Client().get("/"), bytes)
    assert_type(await Client().fetch("/"), bytes)
    with limiter.permit(tokens=3) as permit:
        assert_type(permit, Permit)
    async with limiter.permit(tokens=3) as permit:
        assert_type(permit, Permit)
    assert_type(limiter.try_permit(tokens=3), Permit | None)
    coroutine: Callable[[str], Coroutine[Any, Any, int]] = slow
    await coroutine("a")

    plain(1)  # type: ignore[arg-type]  # expected: text is a str
    plain("a", 2)  # type: ignore[call-arg]  # expected: times goes by name
    bare()  # type: ignore[call-arg]  # expected: text is missing
    fixed_cost(text="a")  # type: ignore[call-arg]  # expected: text goes by place
    told_cost("a", count=1)  # type: ignore[call-arg]  # expected: no such argument
    await slow(b"a")  # type: ignore[arg-type]  # expected: text is a str
    Client().get(1)  # type: ignore[arg-type]  # expected: path is a str
    limiter.limited(headers="opneai")  # type: ignore[call-overload]  # expected: no such provider
    limiter.limited(headers={"a": "b"})  # type: ignore[call-overload]  # expected: a provider's name
    limiter.limited(headers="openai", parser=lower)  # type: ignore[call-overload]  # expected: no delay
