"""``@limiter.limited`` on functions, coroutine functions and methods."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import aiohttp
import httpx
import pytest
import requests

from headgate import AcquireTimeout, ConfigurationError, Limiter
from headgate.events import Event, Granted, Settled, Throttled, Waited
from headgate.stores.memory import MemoryStore
from headgate.testing import FakeClock
from headgate.testing.simulator import StartServer


@pytest.fixture
def limiter(fake_clock: FakeClock) -> Limiter:
    return Limiter(
        "tokens=10/s:burst=100:start=full:charge=usage", "concurrency=2", store=MemoryStore(fake_clock)
    )


@pytest.fixture
def told(limiter: Limiter) -> list[Event]:
    told: list[Event] = []
    limiter.subscribe(told.append)
    return told


def granted(told: list[Event]) -> list[int]:
    return [event.units["tokens/s"] for event in told if type(event) is Granted]


def outcomes(told: list[Event]) -> list[tuple[str, dict[str, int]]]:
    return [(event.outcome, dict(event.used)) for event in told if type(event) is Settled]


def test_takes_a_permit_for_each_call(limiter: Limiter, told: list[Event]) -> None:
    @limiter.limited
    def double(number: int, *, by: int = 2) -> int:
        """Twice as much."""
        assert limiter.used()["concurrency"] == 1
        return number * by

    assert (double(3), double(3, by=5)) == (6, 15)
    assert (double.__name__, double.__doc__) == ("double", "Twice as much.")
    assert list(inspect.signature(double).parameters) == ["number", "by"]
    assert outcomes(told) == [("answered", {})] * 2
    assert limiter.used()["concurrency"] == 0


def test_takes_a_permit_for_each_call_of_a_coroutine_function(
    fake_clock: FakeClock, limiter: Limiter
) -> None:
    most = 0

    @limiter.limited()
    async def slow(seconds: float) -> float:
        nonlocal most
        most = max(most, limiter.used()["concurrency"])
        await asyncio.sleep(seconds)
        return seconds

    async def main() -> list[float]:
        return await asyncio.gather(*(slow(1) for _ in range(6)))

    assert inspect.iscoroutinefunction(slow)
    assert fake_clock.run(main()) == [1] * 6
    assert (most, fake_clock.elapsed_seconds) == (2, 3)
    assert limiter.used()["concurrency"] == 0


def test_costs_are_fixed_or_made_of_the_arguments(limiter: Limiter, told: list[Event]) -> None:
    @limiter.limited(cost={"tokens": 5})
    def fixed() -> None: ...

    @limiter.limited(cost=lambda text, times=1: {"tokens": len(text) * times})
    def made(text: str, times: int = 1) -> None: ...

    fixed()
    made("seven!!")
    made("seven!!", times=2)
    made(text="", times=9)
    assert granted(told) == [5, 7, 14, 0]


def test_usage_is_made_of_the_result(fake_clock: FakeClock, limiter: Limiter, told: list[Event]) -> None:
    @limiter.limited(cost={"tokens": 50}, usage=lambda reply: {"tokens": reply})
    def call(used: int) -> int:
        return used

    @limiter.limited(cost={"tokens": 50}, usage=lambda reply: {"tokens": reply})
    async def call_async(used: int) -> int:
        return used

    assert call(12) == 12
    assert fake_clock.run(call_async(3)) == 3
    assert outcomes(told) == [("answered", {"tokens": 12}), ("answered", {"tokens": 3})]
    assert limiter.used()["tokens/s"] == 15


def test_works_on_methods(fake_clock: FakeClock, limiter: Limiter, told: list[Event]) -> None:
    class Client:
        base = "/"

        @limiter.limited(cost=lambda self, path: {"tokens": len(self.base + path)})
        def get(self, path: str) -> str:
            return self.base + path

        @limiter.limited
        async def fetch(self, path: str) -> str:
            return self.base + path

        @classmethod
        @limiter.limited
        def make(cls) -> Client:
            return cls()

        @staticmethod
        @limiter.limited
        def ping() -> str:
            return "pong"

    client = Client.make()
    assert client.get("one") == Client.get(client, "one") == "/one"
    assert fake_clock.run(client.fetch("two")) == "/two"
    assert client.ping() == Client.ping() == "pong"
    assert granted(told) == [0, 4, 4, 0, 0, 0]


def test_a_call_that_raises_is_lost(fake_clock: FakeClock, limiter: Limiter, told: list[Event]) -> None:
    @limiter.limited
    def fail() -> None:
        raise LookupError

    @limiter.limited
    async def fail_async() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        fail()
    with pytest.raises(LookupError):
        fake_clock.run(fail_async())
    assert outcomes(told) == [("lost", {})] * 2
    assert limiter.used()["concurrency"] == 0


def test_a_cost_that_cannot_be_told_calls_nothing(limiter: Limiter, told: list[Event]) -> None:
    @limiter.limited(cost={"tokenz": 5})
    def unknown() -> None:
        pytest.fail("it has no permit")

    with pytest.raises(ConfigurationError, match="no limit counts 'tokenz'"):
        unknown()
    assert told == []


def test_gives_up_after_max_wait_without_calling(limiter: Limiter) -> None:
    @limiter.limited(max_wait=0)
    def call() -> None:
        pytest.fail("it has no permit")

    with limiter.permit(), limiter.permit(), pytest.raises(AcquireTimeout):
        call()


def test_important_functions_go_first(fake_clock: FakeClock, limiter: Limiter) -> None:
    went: list[str] = []

    async def call(name: str) -> None:
        went.append(name)

    bulk, chat = limiter.limited(call), limiter.limited(priority=1)(call)

    async def main() -> None:
        held = [await limiter.acquire_async(), await limiter.acquire_async()]
        calls = [asyncio.create_task(function(name)) for function, name in ((bulk, "bulk"), (chat, "chat"))]
        await asyncio.sleep(0)
        for permit in held:
            permit.settle()
        await asyncio.gather(*calls)

    fake_clock.run(main())
    assert went == ["chat", "bulk"]


def test_other_callables(fake_clock: FakeClock, limiter: Limiter) -> None:
    class Adder:
        async def __call__(self, number: int) -> int:
            assert limiter.used()["concurrency"] == 1, "the permit is held while it runs"
            return number + 1

    async def add(number: int, more: int) -> int:
        assert limiter.used()["concurrency"] == 1
        return number + more

    assert fake_clock.run(limiter.limited(Adder())(1)) == 2
    assert fake_clock.run(limiter.limited(functools.partial(add, 1))(2)) == 3
    assert limiter.limited(len)("four") == 4
    assert limiter.used()["concurrency"] == 0


def test_generators_are_refused(limiter: Limiter) -> None:
    def lines() -> Iterator[int]:
        yield 1

    async def lines_async() -> AsyncIterator[int]:
        yield 1

    functions: tuple[Any, ...] = (lines, lines_async)
    for function in functions:
        with pytest.raises(ConfigurationError, match="take the permit inside it"):
            limiter.limited(function)


# Answers


class Server(ThreadingHTTPServer):
    """Answers every GET with what a test has laid down."""

    status = 200
    fields: dict[str, str] = {}  # noqa: RUF012
    body = b"{}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def answer(self, status: int, fields: dict[str, str], body: bytes = b"{}") -> None:
        self.status, self.fields, self.body = status, fields, body


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.send_response(self.server.status)
        for name, value in (self.server.fields | {"Content-Length": str(len(self.server.body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def raise_by_requests(url: str) -> None:
    requests.get(url, timeout=5).raise_for_status()


def raise_by_httpx(url: str) -> None:
    httpx.get(url).raise_for_status()


def return_by_requests(url: str) -> object:
    return requests.get(url, timeout=5)


async def raise_by_aiohttp(url: str) -> None:
    async with aiohttp.ClientSession(raise_for_status=True) as session, session.get(url):
        pass


async def return_by_httpx(url: str) -> object:
    async with httpx.AsyncClient() as client:
        return await client.get(url)


CALLS: tuple[Callable[[str], Any], ...] = (
    raise_by_requests,
    raise_by_httpx,
    return_by_requests,
    raise_by_aiohttp,
    return_by_httpx,
)
every_call = pytest.mark.parametrize("function", CALLS, ids=lambda function: function.__name__)


def ended(function: Callable[[str], Any], url: str) -> object:
    """What it returned or raised."""
    try:
        made = function(url)
        return asyncio.run(made) if inspect.iscoroutine(made) else made
    except Exception as error:
        return error


def seconds_shut(limiter: Limiter, clock: FakeClock, **units: int) -> float:
    """How long nothing goes, to a hundredth of a second, for another program on the key."""
    other = Limiter(*limiter.limits, key=limiter.key, store=limiter.store)
    began = clock.elapsed_seconds
    while (permit := other.try_permit(**units)) is None:
        clock.advance(0.01)
    permit.settle()
    return round(clock.elapsed_seconds - began, 2)


@pytest.fixture
def api(fake_clock: FakeClock) -> Limiter:
    return Limiter(
        "requests=1000/s:burst=1000:start=full",
        "tokens=100k/s:burst=100k:start=full",
        key="api",
        store=MemoryStore(fake_clock),
    )


@every_call
def test_a_throttle_stops_everybody_on_the_key_until_the_reset(
    function: Callable[[str], Any], server: Server, fake_clock: FakeClock, api: Limiter
) -> None:
    server.answer(429, {"x-my-reset-tokens": "6s", "x-my-reset-requests": "2s", "Retry-After": "1"})
    call = api.limited(
        cost={"tokens": 5}, token_header="X-My-Reset-Tokens", requests_header="x-my-reset-requests"
    )(function)
    ended(call, server.url)
    assert seconds_shut(api, fake_clock, tokens=5) == 6


@every_call
def test_by_itself_a_throttle_lasts_as_long_as_retry_after(
    function: Callable[[str], Any], server: Server, fake_clock: FakeClock, api: Limiter
) -> None:
    server.answer(
        429, {"x-ratelimit-reset-tokens": "6s", "x-ratelimit-remaining-tokens": "0", "Retry-After": "1"}
    )
    ended(api.limited(function), server.url)
    assert seconds_shut(api, fake_clock, tokens=5) == 1


@every_call
def test_a_throttle_of_one_meter_leaves_the_others_open(
    function: Callable[[str], Any], server: Server, fake_clock: FakeClock
) -> None:
    api = Limiter(
        "tokens=100k/s:burst=100k:start=full", "images=9/s:burst=9:start=full", store=MemoryStore(fake_clock)
    )
    server.answer(429, {"x-ratelimit-reset-tokens": "6s", "x-ratelimit-remaining-tokens": "0"})
    ended(api.limited(cost={"tokens": 5, "images": 1}, headers="openai")(function), server.url)
    assert seconds_shut(api, fake_clock, images=1) == 0
    assert seconds_shut(api, fake_clock, tokens=1) == 6


@every_call
def test_a_parser_reads_the_reset(
    function: Callable[[str], Any], server: Server, fake_clock: FakeClock, api: Limiter
) -> None:
    server.answer(429, {"x-my-reset": "2.5 minutes"})
    call = api.limited(requests_header="x-my-reset", parser=lambda text: float(text.split()[0]) * 60)(
        function
    )
    ended(call, server.url)
    assert seconds_shut(api, fake_clock) == 150


@every_call
def test_a_parser_that_fails_changes_nothing_else(
    function: Callable[[str], Any],
    server: Server,
    fake_clock: FakeClock,
    api: Limiter,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.answer(429, {"x-my-reset": "2.5 minutes", "Retry-After": "3"})
    call = api.limited(requests_header="x-my-reset", parser=float)(function)
    result = ended(call, server.url)
    assert type(result) is type(ended(function, server.url)), "the error, or the answer, is the caller's"
    assert seconds_shut(api, fake_clock) == 3
    assert [record.levelno for record in caplog.records if record.name == "headgate"] == [logging.WARNING]


@pytest.mark.parametrize(
    ("function", "status"),
    [*((function, 404) for function in CALLS), (return_by_requests, 200), (return_by_httpx, 200)],
)
def test_an_answer_tells_what_is_left(
    function: Callable[[str], Any], status: int, server: Server, fake_clock: FakeClock
) -> None:
    api = Limiter("requests=10/h:burst=10:start=full", store=MemoryStore(fake_clock))
    server.answer(status, {"x-ratelimit-limit-requests": "10", "x-ratelimit-remaining-requests": "2"})
    ended(api.limited(function), server.url)
    assert api.used() == {"requests/h": 7}, "at most one more than two are left"


@every_call
@pytest.mark.parametrize("status", [200, 404, 500])
def test_what_the_server_answered_was_not_lost(
    function: Callable[[str], Any], status: int, server: Server, limiter: Limiter, told: list[Event]
) -> None:
    server.answer(status, {})
    ended(limiter.limited(function), server.url)
    assert outcomes(told) == [("answered", {})]


@every_call
def test_what_no_server_answered_was_lost(
    function: Callable[[str], Any], server: Server, limiter: Limiter, told: list[Event]
) -> None:
    server.shutdown()
    server.server_close()
    assert isinstance(ended(limiter.limited(function), server.url), Exception)
    assert outcomes(told) == [("lost", {})]


def test_an_error_reaches_the_caller_unchanged(server: Server, api: Limiter) -> None:
    server.answer(429, {"Retry-After": "1"}, b'{"error": {"message": "slow down"}}')
    raised: list[Exception] = []

    @api.limited(headers="openai")
    def call() -> None:
        try:
            raise_by_httpx(server.url)
        except Exception as error:
            error.add_note("mine")
            raised.append(error)
            raise

    with pytest.raises(httpx.HTTPStatusError) as caught:
        call()
    assert caught.value is raised[0]
    assert (caught.value.__cause__, caught.value.__context__, caught.value.__notes__) == (
        None,
        None,
        ["mine"],
    )


def test_an_error_that_was_handled_as_it_was_called_is_not_its_own(
    server: Server, fake_clock: FakeClock, api: Limiter, told: list[Event]
) -> None:
    """Python makes it the context of whatever is raised meanwhile."""
    server.answer(429, {"Retry-After": "9"})
    api.subscribe(told.append)

    @api.limited
    def fall_back() -> None:
        raise LookupError

    @api.limited
    async def fall_back_async() -> None:
        raise LookupError

    def main() -> None:
        try:
            raise_by_httpx(server.url)
        except httpx.HTTPStatusError:
            fall_back()

    async def main_async() -> None:
        try:
            await raise_by_aiohttp(server.url)
        except aiohttp.ClientResponseError:
            await fall_back_async()

    with pytest.raises(LookupError) as caught:
        main()
    assert isinstance(caught.value.__context__, httpx.HTTPStatusError)
    with pytest.raises(LookupError) as caught:
        asyncio.run(main_async())
    assert isinstance(caught.value.__context__, aiohttp.ClientResponseError)
    assert outcomes(told) == [("lost", {})] * 2
    assert seconds_shut(api, fake_clock) == 0


def test_one_that_it_met_itself_is(server: Server, fake_clock: FakeClock, api: Limiter) -> None:
    server.answer(429, {"Retry-After": "9"})

    @api.limited
    def call() -> None:
        try:
            raise_by_httpx(server.url)
        except httpx.HTTPStatusError:
            raise LookupError from None

    with pytest.raises(LookupError):
        call()
    assert seconds_shut(api, fake_clock) == 9


def test_a_stream_is_left_to_the_caller(server: Server, api: Limiter) -> None:
    server.answer(200, {"x-ratelimit-remaining-requests": "3"}, b"x" * 100_000)

    @api.limited(headers="openai")
    def by_requests() -> requests.Response:
        return requests.get(server.url, stream=True, timeout=5)

    @api.limited(headers="openai")
    def by_httpx(client: httpx.Client) -> httpx.Response:
        return client.send(client.build_request("GET", server.url), stream=True)

    @api.limited(headers="openai")
    async def by_aiohttp(session: aiohttp.ClientSession) -> aiohttp.ClientResponse:
        return await session.get(server.url)

    with by_requests() as answer:
        assert len(b"".join(answer.iter_content(1000))) == 100_000
    with httpx.Client() as client:
        stream = by_httpx(client)
        assert not stream.is_stream_consumed
        assert len(stream.read()) == 100_000

    async def main() -> int:
        async with aiohttp.ClientSession() as session, await by_aiohttp(session) as answer:
            return len(await answer.content.read())

    assert asyncio.run(main()) == 100_000


def test_an_error_that_cannot_be_looked_at_is_lost(limiter: Limiter, told: list[Event]) -> None:
    class Strange(ExceptionGroup[Exception]):
        @property
        def exceptions(self) -> tuple[Exception, ...]:
            raise RuntimeError("do not look")

    error = Strange("strange", [ValueError()])

    @limiter.limited
    def call() -> None:
        raise error

    with pytest.raises(Strange) as caught:
        call()
    assert caught.value is error
    assert outcomes(told) == [("lost", {})]


def test_a_permit_that_did_not_come_inside_is_lost(limiter: Limiter, told: list[Event]) -> None:
    """What the function had done before it asked, nobody knows."""

    @limiter.limited
    def call() -> None:
        raise AcquireTimeout("none")

    with pytest.raises(AcquireTimeout):
        call()
    assert outcomes(told) == [("lost", {})]


def test_usage_that_fails_costs_no_result(
    limiter: Limiter, told: list[Event], caplog: pytest.LogCaptureFixture
) -> None:
    @limiter.limited(cost={"tokens": 5}, usage=lambda reply: {"tokens": reply["used"]})
    def call(reply: dict[str, int]) -> dict[str, int]:
        return reply

    assert [call({}), call({"used": -1}), call({"used": 7})] == [{}, {"used": -1}, {"used": 7}]
    assert outcomes(told) == [("answered", {}), ("answered", {}), ("answered", {"tokens": 7})]
    assert len(caplog.records) == 1


def test_a_result_that_was_refused_has_used_nothing(
    server: Server, limiter: Limiter, told: list[Event]
) -> None:
    server.answer(429, {"Retry-After": "2"})

    @limiter.limited(cost={"tokens": 5}, usage=lambda answer: {"tokens": answer.json()["used"]})
    def call() -> httpx.Response:
        return httpx.get(server.url)

    assert call().status_code == 429
    assert outcomes(told) == [("answered", {})]
    assert [event.retry_after_seconds for event in told if type(event) is Throttled] == [2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"headers": "openaj"}, "headers= is one of anthropic, .*openai.*; got 'openaj'"),
        ({"parser": float}, "parser= reads what"),
        ({"token_header": "a b"}, "token_header= is the name of a header field"),
    ],
)
def test_options_are_looked_at_before_there_is_a_function(
    options: dict[str, Any], message: str, limiter: Limiter
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        limiter.limited(**options)


def test_the_others_wait_for_what_one_was_told(sim: StartServer) -> None:
    """The limits say too much, as where somebody else draws on the key: the first refusal is the last."""
    server = sim("requests=4/s:burst=1")
    limiter = Limiter("requests=1000/s:burst=1000:start=full", key="shared")
    others = Limiter("requests=1000/s:burst=1000:start=full", key="shared", store=limiter.store)
    waited: list[Event] = []
    others.subscribe(lambda event: waited.append(event) if type(event) is Waited else None)

    def get() -> str:
        return httpx.get(f"{server.url}/echo").raise_for_status().text

    one, two = limiter.limited(headers="openai")(get), others.limited(headers="openai")(get)
    one()
    with pytest.raises(httpx.HTTPStatusError, match="429"):
        one()
    assert waited == []
    two()
    assert len(waited) >= 1
    stats = server.stats()
    assert (stats["accepted"], stats["refused"]) == (2, 1)
