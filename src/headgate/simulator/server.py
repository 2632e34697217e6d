"""The simulated server on real sockets: an asyncio HTTP server around the virtual-time model.

A call goes: read whole, delayed by network jitter, judged, made to fail if a fault is due, delayed by the
service time, answered; then its slots are freed and its usage is settled, before any other call is judged.
"""

import asyncio
import socket
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from headgate.simulator import anthropic, openai, plain
from headgate.simulator.durations import SECOND_US, parse_duration
from headgate.simulator.faults import draw_fault, parse_faults
from headgate.simulator.latency import Sampler, lognormal, uniform
from headgate.simulator.model import ServerModel, Verdict
from headgate.simulator.spec import LimitSpec
from headgate.simulator.stats import CallCounts, StallMeter, stats_json
from headgate.simulator.thread import LoopThread
from headgate.simulator.wire import Answer, BadRequest, Call, Incoming, to_json

HANG_SECONDS = 600.0
_MAX_BODY_BYTES = 64 * 2**20
_BACKLOG = 4096
_STOP_SECONDS = 0.01  # for answers under way; aiohttp takes 0 to mean for ever
_JSON = "application/json"
_EVENT_STREAM = "text/event-stream"


@dataclass(frozen=True, slots=True)
class _Api:
    """One limited API: how it reads a request, and how it words everything but a sound answer."""

    methods: tuple[str, ...]
    read: Callable[[Incoming], Call]
    headers: Callable[[Verdict], dict[str, str]] = openai.headers
    refusal: Callable[[Verdict], bytes] = openai.refusal
    failure: Callable[[int], bytes] = openai.failure
    bad_request: Callable[[BadRequest], bytes] = openai.bad_request


_ANY = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
_APIS = {
    "/v1/chat/completions": _Api(("POST",), openai.read),
    "/v1/messages": _Api(
        ("POST",),
        anthropic.read,
        anthropic.headers,
        anthropic.refusal,
        anthropic.failure,
        anthropic.bad_request,
    ),
    "/echo": _Api(_ANY, plain.read_echo),
    "/image": _Api(("GET", "POST"), plain.read_image),
}


class SimulatedServer:
    """A rate-limited API server that judges its callers.

        async with SimulatedServer(["requests=20/s:burst=5"], latency="200ms") as sim:
            ...  # call sim.url
            print(sim.stats())

    Its clock is the wall clock at the start, carried on without steps.
    """

    def __init__(
        self,
        limits: Iterable[str | LimitSpec] = (),
        *,
        latency: str | float | Sampler = 0.0,
        jitter: str | float = 0.0,
        count_refused: bool = False,
        faults: str | Mapping[str, float] = "",
        seed: int | None = None,
        require_key: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """Declare the server; `start` or `async with` starts it.

        `limits`: texts such as `requests=60/min:burst=5` (see `spec`) or specs; none admits everything.
        `latency`: the mean service time after a call was judged, as text (`200ms`) or seconds; single times
        are lognormal around it (see `latency`); a sampler gives any other distribution.
        `jitter`: the most a call is delayed before it is judged, as the network might; uniform from 0.
        `count_refused`: refused calls are charged too.
        `faults`: what befalls admitted calls, `500=3%,reset=1%` or `{kind: probability}` (see `faults`).
        `seed`: makes latency, jitter and faults repeatable for the same order of calls; None: different
        every time.
        `require_key`: the API key a caller must send, as bearer token or `x-api-key`; None: none needed.
        `port`: 0 takes a free one.

        Raises SpecError for a limit, ValueError for anything else that cannot be read.
        """
        self._model = ServerModel(limits, count_refused=count_refused)
        self._latency = latency if callable(latency) else lognormal(_seconds(latency))
        self._jitter = uniform(0.0, _seconds(jitter)) if _seconds(jitter) else None
        self._faults = parse_faults(faults) if isinstance(faults, str) else dict(faults)
        self._random = Random(seed)
        self._key = require_key
        self._host = host
        self._port = port
        self._counts = CallCounts()
        self._stalls = StallMeter()
        self._clock_offset_us = (time.time_ns() - time.monotonic_ns()) // 1_000
        self._runner: web.ServerRunner | None = None

    @classmethod
    def in_thread(cls, *args: Any, **kwargs: Any) -> "ThreadedServer":
        """Return the same server, to be run by a thread of its own: `with SimulatedServer.in_thread(...)`."""
        return ThreadedServer(cls(*args, **kwargs))

    @property
    def limits(self) -> tuple[LimitSpec, ...]:
        """The limits it enforces."""
        return self._model.specs

    @property
    def port(self) -> int:
        """The port it listens on; the one asked for until it has started."""
        return self._port

    @property
    def url(self) -> str:
        """Its base URL, without a slash at the end."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    def stats(self) -> dict[str, Any]:
        """Return what it saw, as `GET /stats` tells it. To be called from its own loop."""
        return stats_json(self._model.tally(), self._counts, self._stalls.longest_seconds)

    def reset(self, *, fresh_limits: bool = False) -> None:
        """Forget everything counted; with `fresh_limits` the limits are as if never used, too."""
        if fresh_limits:
            self._model.refresh()
        else:
            self._model.reset_tally()
        self._counts = CallCounts()
        self._stalls.longest_seconds = 0.0

    async def start(self) -> None:
        """Listen. Raises OSError if the port is taken."""
        server = web.Server(self._handle, access_log=None, handler_cancellation=True)
        self._runner = web.ServerRunner(server, access_log=None, shutdown_timeout=_STOP_SECONDS)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port, backlog=_BACKLOG)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self._stalls.start()

    async def stop(self) -> None:
        """Close every connection and stop listening."""
        self._stalls.stop()
        if self._runner is not None:
            await self._runner.cleanup()
            await asyncio.sleep(0)  # lets calls that were cut off complete
            self._runner = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _now_us(self) -> int:
        return time.monotonic_ns() // 1_000 + self._clock_offset_us

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        api = _APIS.get(request.path)
        if api is None:
            return self._about(request)
        try:
            if request.method not in api.methods:
                raise BadRequest(f"Expected {' or '.join(api.methods)}, got {request.method}.", status=405)
            self._check_key(request)
            call = api.read(await _read(request))
        except BadRequest as error:
            self._counts.bad_requests += 1
            return _json_response(error.status, api.bad_request(error))
        if self._jitter is not None:
            await asyncio.sleep(self._jitter(self._random))

        verdict = self._model.arrive(self._now_us(), call.costs)
        key = request.headers.get("idempotency-key")
        if key is not None:
            self._counts.saw(key, verdict.accepted)
        headers = api.headers(verdict)
        if not verdict.accepted:
            return _json_response(429, api.refusal(verdict), headers)
        usage: Mapping[str, int] | None = None
        try:
            fault = draw_fault(self._faults, self._random)
            if fault is not None:
                self._counts.faults[fault] += 1
                return await self._fail(request, fault, api, headers)
            answer = call.answer(verdict.number, verdict.arrived_us // SECOND_US)
            response = await self._serve(request, answer, headers)
            usage = answer.usage
            return response
        finally:
            self._model.complete(self._now_us(), verdict, usage)

    def _about(self, request: web.BaseRequest) -> web.Response:
        """Answer what is not limited: the statistics, and everything unknown."""
        match request.method, request.path:
            case "GET", "/stats":
                return _json_response(200, to_json(self.stats()))
            case "POST", "/stats/reset":
                self.reset(fresh_limits=request.query.get("limits") == "fresh")
                return _json_response(200, to_json(self.stats()))
            case _:
                self._counts.bad_requests += 1
                error = BadRequest(
                    f"Unknown request URL: {request.method} {request.path}.", code="unknown_url"
                )
                return _json_response(404, openai.bad_request(error))

    def _check_key(self, request: web.BaseRequest) -> None:
        if self._key is None or request.headers.get("x-api-key") == self._key:
            return
        if request.headers.get("authorization") != f"Bearer {self._key}":
            raise BadRequest("Incorrect API key provided.", status=401, code="invalid_api_key")

    async def _serve(
        self, request: web.BaseRequest, answer: Answer, headers: dict[str, str]
    ) -> web.StreamResponse:
        """Answer after the service time, as a body or as a stream of events."""
        delay = self._latency(self._random)
        if not answer.chunks:
            return await self._send(request, _json_response(200, answer.body, headers), delay)
        response = web.StreamResponse(headers=headers)
        response.content_type = _EVENT_STREAM
        *chunks, last = answer.chunks
        pause = delay / 2 / len(answer.chunks)
        await _pause(delay / 2)
        await response.prepare(request)
        for chunk in chunks:
            await response.write(chunk)
            await _pause(pause)
        await response.write_eof(last)
        return response

    async def _send(
        self, request: web.BaseRequest, response: web.Response, delay_seconds: float
    ) -> web.Response:
        """Answer after a delay, and return once all of it is written: until then its slots are held."""
        await _pause(delay_seconds)
        await response.prepare(request)
        await response.write_eof()
        return response

    async def _fail(
        self, request: web.BaseRequest, fault: str, api: _Api, headers: dict[str, str]
    ) -> web.StreamResponse:
        match fault:
            case "reset":
                _reset(request)
                await asyncio.sleep(HANG_SECONDS)  # cancelled as soon as the connection is gone
            case "hang":
                await asyncio.sleep(HANG_SECONDS)
                _reset(request)
            case "malformed":
                body = self._random.choice((b'{"id": "sim", "choices": [{"ind', b"<html>Bad gateway</html>"))
                return await self._send(
                    request, _json_response(200, body, headers), self._latency(self._random)
                )
            case _:
                status = int(fault)
                if status == 429:
                    headers = headers | {"retry-after": "1", "retry-after-ms": "1000"}
                response = _json_response(status, api.failure(status), headers)
                return await self._send(request, response, self._latency(self._random))
        return web.Response(status=500)  # goes nowhere


class ThreadedServer(AbstractContextManager["ThreadedServer"]):
    """A SimulatedServer whose loop runs in a thread, for callers that have none."""

    def __init__(self, server: SimulatedServer) -> None:
        self._server = server
        self._thread = LoopThread("simulated-server")

    @property
    def url(self) -> str:
        """Its base URL, without a slash at the end."""
        return self._server.url

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._server.port

    def start(self) -> Self:
        """Start the thread and listen."""
        self._thread.start()
        try:
            self._thread.run(self._server.start())
        except BaseException:
            self._thread.stop()
            raise
        return self

    def stop(self) -> None:
        """Close every connection and end the thread."""
        self._thread.run(self._server.stop())
        self._thread.stop()

    def stats(self) -> dict[str, Any]:
        """Return what the server saw, as `GET /stats` tells it."""
        return self._thread.call(self._server.stats)

    def reset(self, *, fresh_limits: bool = False) -> None:
        """Forget everything counted; with `fresh_limits` the limits are as if never used, too."""
        self._thread.call(lambda: self._server.reset(fresh_limits=fresh_limits))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _seconds(length: str | float) -> float:
    seconds = parse_duration(length) / SECOND_US if isinstance(length, str) else float(length)
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"expected a length of time of at least 0, got {length!r}")
    return seconds


async def _pause(seconds: float) -> None:
    if seconds > 0:
        await asyncio.sleep(seconds)


async def _read(request: web.BaseRequest) -> Incoming:
    if request.headers.get("expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = b""
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            raise BadRequest(f"Expected a body of at most {_MAX_BODY_BYTES:,} bytes.", status=413)
    return Incoming(request.method, request.path, request.query, request.headers, body)


def _json_response(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(status=status, body=body, headers=headers, content_type=_JSON)


def _reset(request: web.BaseRequest) -> None:
    """Tear the connection down with a RST: without lingering, closing discards and resets."""
    transport = request.transport
    if transport is not None:
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
