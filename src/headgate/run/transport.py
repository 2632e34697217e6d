"""Sending over HTTP, with the permit taken as the very last step.

The connection comes first: looked up, opened, its TLS spoken. Only with it in hand is the permit asked for,
and then the request is written at once, so that none of that counts as time on the way. Nothing below
repeats or redirects a request: that would be a send that no permit covers.
"""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeAlias

import aiohttp
from yarl import URL

Admit: TypeAlias = Callable[[], Awaitable[None]]

LARGEST_ANSWER = 256 << 20
"""Bytes of an answer's body that are read at most."""

_admit: contextvars.ContextVar[Admit] = contextvars.ContextVar("admit")


class Reply(NamedTuple):
    """An answer as it came; ``fields`` have lower-case names."""

    status: int
    fields: dict[str, str]
    body: bytes


class TransportError(Exception):
    """No answer; the message is for people, ``code`` for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class _GatedConnector(aiohttp.TCPConnector):
    """Hands out a connection only when the call that wants it has its permit."""

    async def connect(self, req: Any, traces: Any, timeout: Any) -> Any:
        connection = await super().connect(req, traces, timeout)
        try:
            await _admit.get()()
        except BaseException:
            connection.release()  # unused, so the next call may have it
            raise
        protocol = connection.protocol
        if protocol is None or not protocol.is_connected():  # closed while we waited in line
            connection.close()
            connection = await super().connect(req, traces, timeout)
        return connection


class Transport:
    """One origin's connections.

    Args:
        connect_seconds: how long opening a connection may take.
        most: connections at the same time.
    """

    def __init__(self, *, connect_seconds: float = 30.0, most: int = 0) -> None:
        self._session = aiohttp.ClientSession(
            connector=_GatedConnector(limit=most, keepalive_timeout=60, ttl_dns_cache=60),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_seconds),
            skip_auto_headers=("User-Agent",),
            raise_for_status=False,
        )

    async def close(self) -> None:
        await self._session.close()

    async def exchange(
        self, method: str, url: URL, headers: dict[str, str], body: bytes | None, admit: Admit
    ) -> Reply:
        """Send a request when ``admit`` lets it, and read the whole answer.

        Whatever ``admit`` raises comes out unchanged, and then nothing was sent.

        Raises:
            TransportError: no answer, or not all of it.
        """
        _admit.set(admit)
        try:
            async with self._session.request(
                method, url, data=body, headers=headers, allow_redirects=False
            ) as answer:
                fields = {name.lower(): value for name, value in answer.headers.items()}
                return Reply(answer.status, fields, await _read(answer))
        except (aiohttp.ClientError, OSError, EOFError) as error:
            raise TransportError(_code(error), f"{type(error).__name__}: {error}") from error


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    plain = "content-encoding" not in answer.headers  # what is packed may be far larger than it says
    if plain and answer.content_length is not None and answer.content_length <= LARGEST_ANSWER:
        return await answer.read()
    parts, size = [], 0
    async for part in answer.content.iter_any():
        size += len(part)
        if size > LARGEST_ANSWER:
            raise TransportError("answer_too_large", f"the answer is larger than {LARGEST_ANSWER >> 20} MiB")
        parts.append(part)
    return b"".join(parts)


def _code(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return "connect_failed"
    if isinstance(error, aiohttp.ServerDisconnectedError | ConnectionError):
        return "connection_reset"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "answer_cut_off"
    return "transport_error"
