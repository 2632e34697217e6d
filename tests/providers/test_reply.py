"""HTTP answers found in what functions return and raise: real libraries against a server on this machine."""

from __future__ import annotations

import asyncio
import email.message
import errno
import io
import itertools
import json
import socket
import ssl
import timeit
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from http import HTTPStatus
from typing import Any, NoReturn
from unittest.mock import AsyncMock, MagicMock, Mock, NonCallableMagicMock

import aiohttp
import httpx
import numpy as np
import openai
import pandas as pd
import pytest
import requests
import urllib3
from hypothesis import given
from hypothesis import strategies as st

from headgate.core.retry import SPENDS_NO_ATTEMPT, WORTH_ANOTHER, ErrorClass
from headgate.errors import AcquireTimeout, ConfigurationError, CostExceedsLimit, Throttled
from headgate.providers.answers import THROTTLE_CODES, Answer
from headgate.providers.reply import LARGEST_BODY, MOST_LINKS, Reply, read_failure, read_reply
from headgate.simulator import SimulatedServer

WALL_US = 1_790_000_000_000_000
METERS = ("requests", "tokens")
BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}


def failure(error: BaseException) -> Answer:
    return read_failure(error, WALL_US, METERS)


@pytest.fixture(scope="module")
def exhausted() -> Iterator[str]:
    """A URL that answers 429 to every call, with the fields that go with it."""
    with SimulatedServer.in_thread(["requests=1/h:burst=1"]) as server:
        url = f"{server.url}/v1/chat/completions"
        httpx.post(url, json=BODY).raise_for_status()
        yield url


@pytest.fixture(scope="module")
def open_server() -> Iterator[str]:
    """A URL that answers every call."""
    with SimulatedServer.in_thread(["requests=1000/s:burst=1000"]) as server:
        yield f"{server.url}/v1/chat/completions"


# Errors of real libraries


def by_openai(url: str) -> Any:
    with openai.OpenAI(base_url=url.removesuffix("/chat/completions"), api_key="k", max_retries=0) as client:
        return client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hello"}], max_tokens=5
        )


def by_openai_async(url: str) -> Any:
    async def call() -> Any:
        base = url.removesuffix("/chat/completions")
        async with openai.AsyncOpenAI(base_url=base, api_key="k", max_retries=0) as client:
            return await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "hello"}], max_tokens=5
            )

    return asyncio.run(call())


def by_requests(url: str) -> Any:
    requests.post(url, json=BODY, timeout=5).raise_for_status()


def by_httpx(url: str) -> Any:
    httpx.post(url, json=BODY).raise_for_status()


def by_aiohttp(url: str) -> Any:
    async def call() -> None:
        async with aiohttp.ClientSession(raise_for_status=True) as session, session.post(url, json=BODY):
            pass

    asyncio.run(call())


def by_urllib(url: str) -> Any:
    request = urllib.request.Request(url, json.dumps(BODY).encode())
    try:
        with urllib.request.urlopen(request, timeout=5):
            pass
    except urllib.error.HTTPError as error:
        error.close()
        raise


CLIENTS = (by_openai, by_openai_async, by_requests, by_httpx, by_aiohttp, by_urllib)
every_client = pytest.mark.parametrize("call", CLIENTS)


def raised(call: Callable[[str], Any], url: str) -> Exception:
    try:
        call(url)
    except Exception as error:
        return error
    raise AssertionError("it should have been refused")


@every_client
def test_a_refusal_is_read_from_what_the_library_raises(call: Callable[[str], Any], exhausted: str) -> None:
    error = raised(call, exhausted)
    reply = read_reply(error)
    assert reply is not None
    assert reply.status == 429
    assert reply.fields["x-ratelimit-limit-requests"] == "1"
    answer = failure(error)
    assert answer.error is ErrorClass.THROTTLED
    assert answer.status == 429
    assert answer.readings[0].remaining == 0
    assert answer.retry_after_us is not None
    assert 3_000_000_000 < answer.retry_after_us <= 3_600_000_000


@pytest.mark.parametrize("call", [by_openai, by_openai_async, by_requests, by_httpx])
def test_a_body_that_was_read_is_there(call: Callable[[str], Any], exhausted: str) -> None:
    reply = read_reply(raised(call, exhausted))
    assert reply is not None
    assert reply.body["error"]["code"] == "rate_limit_exceeded"
    assert failure(raised(call, exhausted)).meter == "requests"


@every_client
def test_a_connection_that_is_refused_is_the_transport(call: Callable[[str], Any]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        error = raised(call, f"http://127.0.0.1:{taken.getsockname()[1]}/v1/chat/completions")
    assert read_reply(error) is None
    answer = failure(error)
    assert answer.error is ErrorClass.TRANSPORT
    assert answer.status is None


@every_client
def test_a_key_that_is_refused(call: Callable[[str], Any]) -> None:
    with SimulatedServer.in_thread(require_key="another") as server:
        error = raised(call, f"{server.url}/v1/chat/completions")
    assert failure(error).error is ErrorClass.KEY


@pytest.mark.parametrize(
    ("fault", "expected"),
    [("503=100%", ErrorClass.OVERLOADED), ("reset=100%", ErrorClass.TRANSPORT)],
)
@every_client
def test_faults_of_a_server(call: Callable[[str], Any], fault: str, expected: ErrorClass) -> None:
    with SimulatedServer.in_thread(faults=fault) as server:
        error = raised(call, f"{server.url}/v1/chat/completions")
    assert failure(error).error is expected


@pytest.mark.parametrize(
    "call",
    [
        lambda url: httpx.post(url, json=BODY, timeout=0.05),
        lambda url: requests.post(url, json=BODY, timeout=0.05),
        lambda url: urllib3.request("POST", url, json=BODY, timeout=0.05, retries=False),
        lambda url: openai.OpenAI(base_url=url, api_key="k", max_retries=0, timeout=0.05).models.list(),
        lambda _: asyncio.run(asyncio.wait_for(asyncio.Event().wait(), 0.001)),
    ],
    ids=["httpx", "requests", "urllib3", "openai", "asyncio"],
)
def test_a_timeout_is_the_transport(call: Callable[[str], Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = raised(call, f"http://127.0.0.1:{silent.getsockname()[1]}/")
        assert failure(error).error is ErrorClass.TRANSPORT


def test_an_answer_that_is_no_json_is_malformed() -> None:
    async def call() -> None:
        async with aiohttp.ClientSession() as session, session.post(url, json=BODY) as response:
            await response.json(content_type="text/plain")

    with SimulatedServer.in_thread() as server:
        url = f"{server.url}/v1/chat/completions"
        error = raised(lambda _: asyncio.run(call()), url)
    assert isinstance(error, aiohttp.ContentTypeError)
    answer = failure(error)
    assert (answer.error, answer.status) == (ErrorClass.MALFORMED, 200)


def test_an_answer_that_the_sdk_cannot_read_is_malformed() -> None:
    response = response_of(200, {"usage": {"prompt_tokens": 3, "completion_tokens": 4}})
    error = openai.APIResponseValidationError(response, {"usage": {}})
    answer = failure(error)
    assert answer.error is ErrorClass.MALFORMED
    assert answer.usage == (3, 4)


# Returned answers


def response_of(status: int, body: Any, **fields: str) -> Any:
    """An answer that was read, as an HTTP library has it."""
    names = {name.replace("_", "-"): value for name, value in fields.items()}
    request = httpx.Request("POST", "http://127.0.0.1/v1")
    return httpx.Response(status, json=body, headers=names, request=request)


@pytest.mark.parametrize(
    "call",
    [
        lambda url: requests.post(url, json=BODY, timeout=5),
        lambda url: httpx.post(url, json=BODY),
        lambda url: urllib3.request("POST", url, json=BODY),
    ],
    ids=["requests", "httpx", "urllib3"],
)
def test_a_returned_answer_is_read(call: Callable[[str], Any], open_server: str) -> None:
    reply = read_reply(call(open_server))
    assert reply is not None
    assert reply.status == 200
    assert reply.fields["x-ratelimit-limit-requests"] == "1000"
    assert reply.body["usage"]["total_tokens"] == 4


def test_a_raw_response_of_the_sdk_is_read(open_server: str) -> None:
    base = open_server.removesuffix("/chat/completions")
    with openai.OpenAI(base_url=base, api_key="k", max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(**BODY)  # type: ignore[call-overload]
        reply = read_reply(raw)
        assert reply is not None
        assert reply.body["usage"]["total_tokens"] == 4
        assert read_reply(raw.parse()) is None


def test_a_raw_response_that_is_not_read_keeps_its_body(open_server: str) -> None:
    base = open_server.removesuffix("/chat/completions")
    with (
        openai.OpenAI(base_url=base, api_key="k", max_retries=0) as client,
        client.chat.completions.with_streaming_response.create(**BODY) as raw,  # type: ignore[call-overload]
    ):
        reply = read_reply(raw)
        assert reply is not None
        assert (reply.status, reply.body) == (200, None)
        assert raw.json()["usage"]["total_tokens"] == 4


def test_a_stream_is_left_alone(open_server: str) -> None:
    with requests.post(open_server, json=BODY, timeout=5, stream=True) as one:
        reply = read_reply(one)
        assert reply is not None
        assert (reply.status, reply.body) == (200, None)
        assert one.raw.tell() == 0
        assert one.json()["usage"]
    with httpx.stream("POST", open_server, json=BODY) as two:
        reply = read_reply(two)
        assert reply is not None
        assert (reply.status, reply.body) == (200, None)
        assert not two.is_stream_consumed
        assert json.loads(two.read())["usage"]
    three = urllib3.PoolManager().request("POST", open_server, json=BODY, preload_content=False)
    reply = read_reply(three)
    assert reply is not None
    assert (reply.status, reply.body) == (200, None)
    assert three.tell() == 0
    three.close()
    with urllib.request.urlopen(urllib.request.Request(open_server, json.dumps(BODY).encode())) as four:
        reply = read_reply(four)
        assert reply is not None
        assert (reply.status, reply.body) == (200, None)
        assert json.loads(four.read())["usage"]


async def test_an_aiohttp_answer_has_its_body_once_it_was_read(open_server: str) -> None:
    async with aiohttp.ClientSession() as session, session.post(open_server, json=BODY) as response:
        reply = read_reply(response)
        assert reply is not None
        assert (reply.status, reply.body) == (200, None)
        await response.read()
        reply = read_reply(response)
        assert reply is not None
        assert reply.body["usage"]["total_tokens"] == 4


def test_a_huge_body_is_not_parsed() -> None:
    def body_of(size: int) -> Any:
        reply = read_reply(httpx.Response(200, content=b'["' + b"x" * (size - 4) + b'"]'))
        assert reply is not None
        return reply.body

    assert len(body_of(LARGEST_BODY)[0]) == LARGEST_BODY - 4
    assert body_of(LARGEST_BODY + 1) is None


@pytest.mark.parametrize("content", [b"", b"<html>", b"[" * 200_000, b'{"a":', b"\xff\xfe{"])
def test_a_body_that_is_no_json_is_none(content: bytes) -> None:
    reply = read_reply(httpx.Response(502, content=content))
    assert reply is not None
    assert (reply.status, reply.body) == (502, None)


# What is no answer


class Hostile:
    """Everything about it raises."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __bool__(self) -> bool:
        raise RuntimeError("bool")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("eq")

    __hash__ = None  # type: ignore[assignment]


class Unhashable(type):
    """The class of classes that are in no set."""

    def __eq__(cls, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]


class Strange(metaclass=Unhashable):
    pass


class FromAfar:
    """A record whose status would have to be fetched."""

    @property
    def status(self) -> int:
        raise AssertionError("nobody shall ask")

    @property
    def response(self) -> NoReturn:
        raise AssertionError("nobody shall ask")


class BadHeaders:
    status_code = 429

    @property
    def headers(self) -> dict[str, str]:
        raise OSError("gone")


FRAME = pd.DataFrame({"status": [429], "status_code": [429], "headers": ["x"], "usage": [1], "code": [429]})


@pytest.mark.parametrize(
    "thing",
    [
        None, "429", b"{}", 429, 4.29, True, {"status": 429, "headers": {}}, [429], (429, {}), {1}, object(),
        Mock(), MagicMock(), AsyncMock(), NonCallableMagicMock(), Mock(spec=ValueError), Mock(spec=int),
        MagicMock(spec=httpx.Response), MagicMock(status_code=429), MagicMock(spec=requests.HTTPError),
        FRAME, FRAME["status"], FRAME.iloc[0], np.zeros(3),
        np.zeros(2, dtype=[("status", int), ("headers", int)]),
        Strange(), Strange, FromAfar(), BadHeaders(), httpx.Response, httpx, lambda: 429,
        ValueError("429"), SystemExit(429), KeyboardInterrupt(), OSError(429, "no status"),
    ],
    ids=lambda thing: type(thing).__name__,
)  # fmt: skip
def test_other_things_are_no_answers(thing: object) -> None:
    assert read_reply(thing) is None


def test_a_thing_that_allows_nothing_is_no_answer() -> None:
    assert read_reply(Hostile()) is None


@pytest.mark.parametrize("kind", [Mock, MagicMock])
def test_a_mock_does_not_notice(kind: type[Mock]) -> None:
    mock = kind()
    read_reply(mock)
    assert mock.mock_calls == []
    assert mock._mock_children == {}


@pytest.mark.parametrize("thing", [None, "text", {"a": 1}, 7], ids=repr)
def test_a_plain_result_costs_next_to_nothing(thing: object) -> None:
    best = min(timeit.repeat(lambda: read_reply(thing), number=1000, repeat=50)) / 1000
    assert best < 1e-6


NAMES = "status status_code code headers response http_response _content body exceptions".split()
plain_values = st.none() | st.booleans() | st.integers() | st.text() | st.binary()


@given(
    st.dictionaries(st.sampled_from(NAMES), plain_values | st.dictionaries(st.text(), plain_values)),
    st.booleans(),
)
def test_nothing_is_too_odd_to_be_read(attributes: dict[str, Any], raised_it: bool) -> None:
    class Thing(Exception):
        pass

    thing = Thing()
    thing.__dict__.update(attributes)
    reply = read_reply(thing if raised_it else type("Other", (), attributes)())
    assert reply is None or 100 <= reply.status <= 599
    assert failure(thing).message == "Thing"


# Shapes of libraries that are not here


class ClientError(Exception):
    """As botocore has it."""

    def __init__(self, code: str, status: int = 400, **fields: str) -> None:
        super().__init__(f"An error occurred ({code}) when calling the Converse operation: Rate exceeded")
        names = {name.replace("_", "-"): value for name, value in fields.items()}
        self.response = {
            "Error": {"Code": code, "Message": "Rate exceeded"},
            "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": names, "RetryAttempts": 0},
        }
        self.operation_name = "Converse"


class GoogleError(Exception):
    """As google.api_core has them: an enum on the class, and perhaps no answer."""

    code: int | None = HTTPStatus.TOO_MANY_REQUESTS

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self._response = None

    @property
    def response(self) -> None:
        return self._response


class AnthropicError(Exception):
    """As anthropic has them: the body is the whole of it."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__("Error code: 529")
        self.response = response
        self.status_code = response.status_code
        self.body = response.json()


@pytest.mark.parametrize("code", sorted(THROTTLE_CODES))
def test_a_throttle_of_aws_is_known_by_its_code(code: str) -> None:
    answer = failure(ClientError(code))
    assert answer.error is ErrorClass.THROTTLED
    assert answer.code == code


def test_other_errors_of_aws_go_by_their_status() -> None:
    assert failure(ClientError("ValidationException")).error is ErrorClass.CALLER
    assert failure(ClientError("ServiceUnavailable", 503)).error is ErrorClass.OVERLOADED
    assert failure(ClientError("SlowDown", 503, retry_after="3")).retry_after_us == 3_000_000
    assert read_reply(ClientError("SlowDown", 503, Retry_After="3")) == Reply(
        503, {"retry-after": "3"}, {"Error": {"Code": "SlowDown", "Message": "Rate exceeded"}}
    )


def test_an_answer_of_aws_without_its_metadata_is_told_by_its_code() -> None:
    error = ClientError("Throttling")
    del error.response["ResponseMetadata"]
    assert failure(error).error is ErrorClass.THROTTLED
    error.response["Error"] = {}
    assert read_reply(error) is None


def test_an_error_with_nothing_but_a_code() -> None:
    assert read_reply(GoogleError("quota")) == Reply(429, {}, None)
    assert failure(GoogleError("quota")).error is ErrorClass.THROTTLED


def test_an_overload_of_anthropic() -> None:
    body = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    answer = failure(AnthropicError(response_of(529, body)))
    assert answer.error is ErrorClass.OVERLOADED


def test_the_body_that_openai_unwraps_is_wrapped_again() -> None:
    stream = httpx.Response(429, stream=httpx.ByteStream(b""), request=httpx.Request("POST", "http://h"))
    error = openai.RateLimitError("m", response=stream, body={"message": "m", "code": "insufficient_quota"})  # type: ignore[arg-type]
    assert failure(error).error is ErrorClass.MONEY_GONE


def github(**fields: str) -> Answer:
    body = {"message": "API limit exceeded for user 1", "documentation_url": "https://docs.example"}
    response = response_of(403, body, **fields)
    return failure(raised(lambda _: response.raise_for_status(), ""))


def test_a_throttle_of_github_may_be_a_403() -> None:
    answer = github(x_ratelimit_remaining="0", x_ratelimit_reset=str(WALL_US // 1_000_000 + 90))
    assert (answer.error, answer.retry_after_us) == (ErrorClass.THROTTLED, 90_000_000)
    answer = github(x_ratelimit_remaining="14", retry_after="7")
    assert (answer.error, answer.retry_after_us) == (ErrorClass.THROTTLED, 7_000_000)
    answer = github(x_ratelimit_remaining="0", x_ratelimit_reset="soon")
    assert (answer.error, answer.retry_after_us) == (ErrorClass.THROTTLED, 60_000_000)
    assert github(x_ratelimit_remaining="14").error is ErrorClass.CALLER
    assert github().error is ErrorClass.CALLER


def test_a_secondary_limit_of_github_is_known_by_its_text() -> None:
    response = response_of(403, {"message": "You have exceeded a secondary rate limit."})
    answer = failure(raised(lambda _: response.raise_for_status(), ""))
    assert (answer.error, answer.retry_after_us) == (ErrorClass.THROTTLED, 60_000_000)


def test_fields_may_be_bytes_or_a_message_and_their_names_in_any_case() -> None:
    message = email.message.Message()
    message["Retry-After"] = "5"
    error = urllib.error.HTTPError("http://h", 503, "m", message, io.BytesIO(b"{}"))
    reply = read_reply(error)
    error.close()
    assert reply == Reply(503, {"retry-after": "5"}, None)

    class Answered(Exception):
        status = 503

    answered = Answered()
    answered.headers = {b"Retry-After": b"5", "Count": 3, "odd": object(), 7: "seven"}  # type: ignore[attr-defined]
    assert read_reply(answered) == Reply(503, {"retry-after": "5", "count": "3", "7": "seven"}, None)


@pytest.mark.parametrize("number", [0, 7, 99, 200, 399, 600, 1006, -429, True, "429", 429.0])
def test_a_number_alone_is_a_status_only_if_it_is_an_errors(number: object) -> None:
    class Coded(Exception):
        code = number

    assert read_reply(Coded()) is None


# Errors behind errors


def chained(*errors: BaseException) -> BaseException:
    """The first was raised from the second, and so on."""
    for error, cause in itertools.pairwise(errors):
        error.__cause__ = cause
    return errors[0]


def handling(error: BaseException, context: BaseException) -> BaseException:
    error.__context__ = context
    return error


def test_an_answer_behind_an_error_is_found() -> None:
    assert failure(chained(RuntimeError("wrapped"), GoogleError("quota"))).error is ErrorClass.THROTTLED
    assert failure(handling(RuntimeError("no"), GoogleError("quota"))).error is ErrorClass.THROTTLED
    hidden = handling(RuntimeError("raised from None"), GoogleError("quota"))
    hidden.__suppress_context__ = True
    assert failure(hidden).error is ErrorClass.THROTTLED
    group = ExceptionGroup("both", [ValueError("one"), GoogleError("quota")])
    assert failure(group).error is ErrorClass.THROTTLED
    assert failure(chained(RuntimeError("wrapped"), ConnectionResetError())).error is ErrorClass.TRANSPORT


def test_the_nearest_answer_counts() -> None:
    class Gone(Exception):
        status_code = 404

    assert failure(chained(RuntimeError("wrapped"), Gone(), GoogleError("quota"))).error is ErrorClass.CALLER


def test_the_search_behind_an_error_ends() -> None:
    near = [RuntimeError(str(number)) for number in range(MOST_LINKS - 1)]
    assert read_reply(chained(*near, GoogleError("quota"))) is not None
    far = [RuntimeError(str(number)) for number in range(MOST_LINKS)]
    assert read_reply(chained(*far, GoogleError("quota"))) is None
    one, other = RuntimeError("one"), RuntimeError("other")
    one.__cause__, other.__cause__ = other, one
    assert failure(one).error is ErrorClass.MALFORMED


# Without an answer


class APIConnectionError(Exception):
    """As openai and anthropic have it."""


class ConnectTimeoutError(APIConnectionError):
    """As botocore has it."""


def test_no_answer_came() -> None:
    for error in (
        TimeoutError(), ConnectionRefusedError(), BrokenPipeError(), OSError(errno.EHOSTUNREACH, "m"),
        OSError(errno.ENETUNREACH, "m"), socket.gaierror(-2, "m"), ssl.SSLError("m"),
        urllib.error.URLError("m"), APIConnectionError(), ConnectTimeoutError(), httpx.ReadError("m"),
        httpx.RemoteProtocolError("m"), httpx.PoolTimeout("m"), aiohttp.ServerDisconnectedError(),
        aiohttp.ClientPayloadError(), requests.exceptions.ChunkedEncodingError(), requests.ConnectionError(),
        urllib3.exceptions.ProtocolError("m"),
    ):  # fmt: skip
        answer = failure(error)
        assert (answer.error, answer.status, answer.code) == (
            ErrorClass.TRANSPORT,
            None,
            type(error).__name__,
        ), error


@pytest.mark.parametrize(
    "error",
    [
        TypeError("m"), NameError("m"), UnboundLocalError("m"), AttributeError("m"), SyntaxError("m"),
        ImportError("m"), ModuleNotFoundError("m"), NotImplementedError("m"),
        ConfigurationError("m"), KeyboardInterrupt(), SystemExit(429), asyncio.CancelledError(),
        httpx.UnsupportedProtocol("m"), requests.exceptions.MissingSchema("m"), aiohttp.InvalidURL("http:"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_what_would_fail_again_is_the_callers(error: BaseException) -> None:
    assert failure(error).error is ErrorClass.CALLER


@pytest.mark.parametrize(
    "error",
    [
        ValueError("m"), KeyError("m"), IndexError("m"), AssertionError("too short"), RuntimeError("m"),
        OSError(errno.ENOENT, "m"), CancelledError(), Exception(), ZeroDivisionError(), StopIteration(),
        json.JSONDecodeError("m", "", 0),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_anything_else_is_worth_another_attempt_and_spends_one(error: BaseException) -> None:
    found = failure(error).error
    assert found is ErrorClass.MALFORMED
    assert found in WORTH_ANOTHER
    assert found not in SPENDS_NO_ATTEMPT


def test_a_mistake_made_while_another_error_was_handled_is_still_a_mistake() -> None:
    assert failure(handling(TypeError("m"), GoogleError("quota"))).error is ErrorClass.CALLER
    assert failure(chained(TypeError("m"), GoogleError("quota"))).error is ErrorClass.THROTTLED
    assert failure(chained(TypeError("m"), ValueError("m"))).error is ErrorClass.CALLER
    assert failure(chained(RuntimeError("m"), TypeError("m"))).error is ErrorClass.MALFORMED


def test_our_own_errors_say_themselves_what_they_are() -> None:
    too_large = CostExceedsLimit("m", limit="tokens/min", cost=9, largest=5)
    assert failure(too_large).error is ErrorClass.NEVER_FITS
    assert failure(chained(RuntimeError("m"), too_large)).error is ErrorClass.NEVER_FITS
    assert failure(Throttled("m", status=429)).error is ErrorClass.THROTTLED
    assert failure(AcquireTimeout("m")).error is ErrorClass.TRANSPORT


# The message


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Incorrect API key provided: sk-proj-abcdEFGH1234.", "Incorrect API key provided: ***."),
        ("401 for url: https://h/v1?key=abc&n=2", "401 for url: https://h/v1?key=***&n=2"),
        ("https://h/v1?X-Amz-Signature=abc", "https://h/v1?X-Amz-Signature=***"),
        ("https://user:pass@h/v1", "https://***@h/v1"),
        ("{'Authorization': 'Bearer abc.def', 'n': 1}", "{'Authorization': 'Bearer ***', 'n': 1}"),
        ("x-api-key: abc", "x-api-key: ***"),
        ("Bearer abcdefgh12345", "Bearer ***"),
        ("ghp_0123456789abcdef was revoked", "*** was revoked"),
        ("missing key: name", "missing key: name"),
        ("Limit 30,000, Used 29,000, Requested 1,200", "Limit 30,000, Used 29,000, Requested 1,200"),
        ("", "ValueError"),
        ("x" * 501, "x" * 500),
    ],
)
def test_the_message_shows_no_key_and_is_short(text: str, shown: str) -> None:
    assert failure(ValueError(text)).message == shown


def test_the_message_shows_no_field() -> None:
    response = response_of(302, None, location="https://elsewhere/?session=1234")
    answer = failure(raised(lambda _: response.raise_for_status(), ""))
    assert answer.error is ErrorClass.CALLER
    assert "session" not in answer.message
    assert "Redirect location: '***'" in answer.message


def test_a_long_message_is_read_in_no_time() -> None:
    texts = ["a-" * 10**6, "://" * 10**6, "key" * 10**6, "api-key:" * 10**6, "sk-" * 10**6]
    for text in texts:
        error = ValueError(text)
        assert min(timeit.repeat(lambda error=error: failure(error), number=1, repeat=5)) < 0.05  # type: ignore[misc]


def test_an_error_that_cannot_be_shown_is_named() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    assert failure(Broken()).message == "Broken"
