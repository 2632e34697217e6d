"""What editors and type checkers know of a Runner; checked by mypy, never run."""

from typing import assert_type

from headgate import Call, Runner
from headgate.providers import openai
from headgate.runner import Results
from headgate.runner.stream import Stream


def tag(url: str, *, model: str = "small") -> list[str]:
    return [url, model]


async def embed(text: str) -> bytes:
    return text.encode()


def check() -> None:
    runner = Runner(tag, "requests=1/s", max_concurrent=3, timeout=5.0)
    call = runner.schedule("a", model="b")
    assert_type(call, Call[list[str]])
    assert_type(call.result(), list[str])
    assert_type(runner.run(), Results[list[str]])
    results, exceptions = runner.run()
    assert_type(results, list[list[str] | None])
    assert_type(exceptions, list[list[BaseException]])
    runner.schedule(5)  # type: ignore[arg-type]  # this is the test
    runner.schedule("a", modle="b")  # type: ignore[call-arg]  # this is the test
    Runner(tag, max_concurent=3)  # type: ignore[call-overload]  # this is the test
    assert_type(runner.map(["a"]), Stream[list[str] | None])

    on_loop = Runner(embed, openai.limits(rpm=5))
    assert_type(on_loop.schedule("a"), Call[bytes])
    assert_type(on_loop.options(priority=1).schedule("a"), Call[bytes])


async def check_async() -> None:
    on_loop = Runner(embed)
    assert_type(await on_loop.schedule("a"), bytes)
    async for value in on_loop.map(["a"]):
        assert_type(value, bytes | None)
