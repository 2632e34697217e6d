"""HTTP requests as they leave: one connection in hand, one deadline for all of an exchange.

A connection is opened before anything else is asked for, so that a permit is the last step before sending.
Nothing here repeats or redirects a request: that would be a send that no permit covers. Addresses are vetted
as they are resolved, and it is those that are connected to.

It is synchronous, for workers that are processes, threads or greenlets, and builds on ``http.client``;
docs/decisions/0007-mediator.md says why.
"""

from __future__ import annotations

import io
import os
import socket
import ssl
import threading
import time
import zlib
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from http import HTTPStatus
from http.client import BadStatusLine, HTTPConnection, HTTPException, HTTPResponse, parse_headers
from json import loads
from typing import Any

from headgate.integrations.celery.mediator.urls import Url, is_public

CONNECT_SECONDS = 10.0
IDLE_SECONDS = 60.0
MOST_IDLE = 64
"""Connections that a process keeps for later, to all hosts together."""
CHUNK = 1 << 16
PASS_OVER_SECONDS = 1.0
"""For a body that nobody wants; if it takes longer, the connection is closed instead."""


class TransportError(Exception):
    """No answer, or not all of it; the request may or may not have been done."""


class AnswerTooLarge(Exception):
    """There is an answer, larger than may be read."""


class AddressRefused(Exception):
    """A host has no address that may be connected to. Nothing was sent."""


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        headers: names in lower case; of several of one name, all, joined by commas.
        body: unpacked.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @cached_property
    def json(self) -> Any:
        """The body, parsed; None if it is no JSON."""
        try:
            return loads(self.body)
        except (ValueError, RecursionError):
            return None


class _Deadlined(io.RawIOBase):
    """What comes from a socket until a deadline, however slowly it drips.

    Attributes:
        ended: nothing more comes.
    """

    def __init__(self, line: _Line, source: Any) -> None:
        self.ended = False
        self._line = line
        self._source = source
        self._raw = source.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self.ended:
            return 0
        self._source.settimeout(self._line.left())
        count: int | None = self._raw.readinto(buffer)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Source:
    """A socket, as an answer sees it."""

    def __init__(self, line: _Line, source: Any) -> None:
        self._line, self._source = line, source

    def makefile(self, mode: str) -> io.BufferedReader:
        return _Buffered(self._line, self._source)


class _Buffered(io.BufferedReader):
    """What an answer reads from. It may have taken more from the socket than belongs to the answer."""

    def __init__(self, line: _Line, source: Any) -> None:
        self._line = line
        self._from = _Deadlined(line, source)
        super().__init__(self._from, CHUNK)

    def close(self) -> None:
        if not self.closed:
            self._from.ended = True
            self._line.said_more = bool(self.peek(1))
        super().close()


class _Line(HTTPConnection):
    """A connection; TLS if there is a context.

    Attributes:
        used_at: on the monotonic clock, in seconds.
        said_more: whether the other side has said more than the answer that was read.
    """

    auto_open = 0

    def __init__(self, url: Url, tls: ssl.SSLContext | None, *, public: bool) -> None:
        super().__init__(url.host, url.port)
        self._tls = tls
        self._public = public
        self._deadline = 0.0
        self.used_at = 0.0
        self.said_more = False
        if tls is not None:
            self.default_port = 443  # else the Host field names it
        self.response_class = partial(_answer, self)  # type: ignore[assignment]  # it is only ever called

    def until(self, seconds: float) -> None:
        """All that follows has so long."""
        self._deadline = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until the deadline.

        Raises:
            TimeoutError: There are none.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left

    def connect(self) -> None:
        found = _dial(self.host, self.port, self.left, public=self._public)
        try:
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                found.settimeout(self.left())
                found = self._tls.wrap_socket(found, server_hostname=self.host)
        except BaseException:
            found.close()
            raise
        self.sock = found

    def send(self, data: Any) -> None:
        if self.sock is None:
            raise TransportError("the connection is closed")
        view = memoryview(data)
        for start in range(0, len(view), CHUNK):
            self.sock.settimeout(self.left())
            self.sock.sendall(view[start : start + CHUNK])

    def is_open(self) -> bool:
        """Whether the other side has neither closed it nor said anything unasked."""
        if self.sock is None or self.said_more:
            return False
        self.sock.settimeout(0)
        try:
            self.sock.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True  # TLS may have had something to say to itself
        except OSError:
            return False
        return False


class _Answer(HTTPResponse):
    """An answer. What a server says before it (102, 103: RFC 9110 15.2) is passed over, not only 100."""

    def _read_status(self) -> tuple[str, int, str]:
        while True:
            found: tuple[str, int, str] = super()._read_status()  # type: ignore[misc]  # there since 3.0
            if found[1] == HTTPStatus.SWITCHING_PROTOCOLS:
                raise BadStatusLine("the protocol was switched unasked")
            if found[1] >= HTTPStatus.OK:
                return found
            parse_headers(self.fp)


def _answer(line: _Line, source: Any, **options: Any) -> HTTPResponse:
    return _Answer(_Source(line, source), **options)  # type: ignore[arg-type]  # makefile is all it wants


def _dial(host: str, port: int, left: Any, *, public: bool) -> socket.socket:
    """A connection to one of a host's addresses, as they are resolved here and now.

    Raises:
        AddressRefused: it has none that may be connected to.
        OSError: no connection.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [each for each in found if not public or is_public(str(each[4][0]))]
    if not addresses:
        raise AddressRefused(f"{host} has no public address, and is not among those that are allowed")
    failure = OSError("no address")
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(
                left() / (len(addresses) - number)
            )  # one that is dead leaves time for others
            connection.connect(address)
        except OSError as error:
            failure = error
            connection.close()
        else:
            return connection
    raise failure


class Connections:
    """The connections of a process, kept for later where the other side keeps them. For any thread.

    Args:
        most_bytes: of an answer's body; larger ones raise AnswerTooLarge.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._idle: OrderedDict[tuple[str, str, int, bool], deque[_Line]] = OrderedDict()
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._tls: ssl.SSLContext | None = None

    @contextmanager
    def open(self, url: Url, *, seconds: float = CONNECT_SECONDS, public: bool = False) -> Iterator[Exchange]:
        """A connection to the URL's host, open.

        Args:
            seconds: to open it in.
            public: only to a public address.

        Raises:
            TransportError: no connection.
            AddressRefused: the host has no address that may be connected to.
        """
        place = url.scheme, url.host, url.port, public
        exchange = Exchange(self, self._take(place) or self._connect(url, public, seconds), url, public)
        try:
            yield exchange
        finally:
            exchange.line.used_at = time.monotonic()
            self._keep(place, exchange.line)

    def close(self) -> None:
        """Close those that are idle."""
        with self._lock:
            lines = [line for each in self._idle.values() for line in each]
            self._idle.clear()
        for line in lines:
            line.close()

    def _connect(self, url: Url, public: bool, seconds: float) -> _Line:
        if self._tls is None and url.scheme == "https":
            self._tls = ssl.create_default_context()
        line = _Line(url, self._tls if url.scheme == "https" else None, public=public)
        line.until(seconds)
        try:
            line.connect()
        except (OSError, UnicodeError) as error:  # the latter where a label of the name is too long
            raise TransportError(f"no connection to {url.netloc}: {_told(error)}") from None
        return line

    def _take(self, place: tuple[str, str, int, bool]) -> _Line | None:
        if self._process != os.getpid():  # the parent's are the parent's: what is closed here are copies
            self._process = os.getpid()
            self.close()
        while True:
            with self._lock:
                lines = self._idle.get(place)
                line = lines.pop() if lines else None
                if not lines:  # one that is empty would be taken for the oldest
                    self._idle.pop(place, None)
            if line is None:
                return None
            if time.monotonic() - line.used_at < IDLE_SECONDS and line.is_open():
                return line
            line.close()

    def _keep(self, place: tuple[str, str, int, bool], line: _Line) -> None:
        if line.said_more:
            line.close()
        if line.sock is None:
            return
        surplus: list[_Line] = []
        with self._lock:
            self._idle.setdefault(place, deque()).append(line)
            self._idle.move_to_end(place)
            count = sum(map(len, self._idle.values()))
            while count > MOST_IDLE:
                lines = next(iter(self._idle.values()))
                surplus.append(lines.popleft())
                count -= 1
                if not lines:
                    self._idle.popitem(last=False)
        for each in surplus:
            each.close()


class Exchange:
    """A connection in hand, for one request."""

    def __init__(self, connections: Connections, line: _Line, url: Url, public: bool) -> None:
        self._connections = connections
        self._url, self._public = url, public
        self.line = line

    def send(
        self,
        method: str,
        headers: Mapping[str, str],
        body: bytes | None,
        *,
        seconds: float,
        head_only: bool = False,
    ) -> Reply:
        """Send a request to the URL, and read the whole answer.

        Args:
            headers: those that frame it are added.
            seconds: for all of it, from now on.
            head_only: nobody wants the answer's body; the reply has none, whatever becomes of it.

        Raises:
            TransportError: no answer, or not all of it.
            AnswerTooLarge
            AddressRefused: the connection was lost before, and the host has now another address.
        """
        if not self.line.is_open():  # it was lost while a permit was waited for
            self.line.close()
            self.line = self._connections._connect(self._url, self._public, min(seconds, CONNECT_SECONDS))
        line = self.line
        line.until(seconds)
        try:
            line.request(method, self._url.target, body, {"accept-encoding": "identity", **headers})
            with line.getresponse() as answer:
                fields = _fields(answer)
                if head_only:
                    reply = Reply(answer.status, fields, b"")
                    self._pass_over(answer)
                else:
                    reply = Reply(answer.status, fields, self._read(answer, fields))
        except (OSError, HTTPException, zlib.error) as error:
            line.close()
            raise TransportError(f"no answer from {self._url.netloc}: {_told(error, seconds)}") from None
        except BaseException:
            line.close()
            raise
        return reply

    def _pass_over(self, answer: HTTPResponse) -> None:
        try:
            self.line.until(min(self.line.left(), PASS_OVER_SECONDS))
            answer.read(CHUNK)
        except (OSError, HTTPException):
            pass
        if not answer.isclosed():  # there is more of it, or it is broken
            self.line.close()

    def _read(self, answer: HTTPResponse, fields: Mapping[str, str]) -> bytes:
        packed = fields.get("content-encoding", "").strip().lower() in {"gzip", "x-gzip", "deflate"}
        unpack = zlib.decompressobj(32 + zlib.MAX_WBITS) if packed else None
        most = self._connections._most_bytes
        parts, size = [], 0
        while part := answer.read(CHUNK):
            if unpack is not None:
                part = unpack.decompress(part, most + 1 - size)
            size += len(part)
            if size > most:
                raise AnswerTooLarge(
                    f"the body of HTTP {answer.status} has more than the {most:,} bytes that may be read"
                )
            parts.append(part)
        if answer.length or (unpack is not None and size and not unpack.eof):
            raise ConnectionError("the answer was cut off")
        return b"".join(parts)


def _fields(answer: HTTPResponse) -> dict[str, str]:
    fields: dict[str, str] = {}
    for given, value in answer.getheaders():
        name = given.lower()
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


def _told(error: Exception, seconds: float | None = None) -> str:
    """What went wrong, for people. Messages of HTTPException may quote what came: they are left out."""
    if isinstance(error, TimeoutError):
        return "it took too long" if seconds is None else f"not all of it within {seconds:g} s"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not good: {error.verify_message}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) if type(error) is ConnectionError else type(error).__name__
