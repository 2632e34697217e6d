"""One exchange over one connection: deadlines, bounds, and addresses. Against real servers."""

from __future__ import annotations

import gzip
import json
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from headgate.core.retry import ErrorClass
from headgate.integrations.celery.mediator import outgoing
from headgate.integrations.celery.mediator.outgoing import (
    AddressRefused,
    AnswerTooLarge,
    Connections,
    Reply,
    TransportError,
)
from headgate.integrations.celery.mediator.urls import Url, read_url
from headgate.providers.reply import read_failure, read_reply
from tests.integrations.mediator.receiver import Receiver
from tests.run.servers import Ledger, ledger_server

LARGEST = 100_000


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    with ledger_server(tmp_path_factory.mktemp("api")) as server:
        yield server


@pytest.fixture
def connections() -> Iterator[Connections]:
    found = Connections(LARGEST)
    yield found
    found.close()


def send(connections: Connections, url: str, body: Any = None, *, seconds: float = 20.0) -> Reply:
    data = None if body is None else json.dumps(body).encode()
    with connections.open(read_url(url)) as exchange:
        return exchange.send("POST", {"idempotency-key": os.urandom(8).hex()}, data, seconds=seconds)


def test_an_answer_is_read_and_its_connection_used_again(api: Ledger, connections: Connections) -> None:
    url = read_url(api.url)
    with connections.open(url) as exchange:
        first = exchange.line.sock.getsockname()
        reply = exchange.send("POST", {}, b"{}", seconds=20)
    assert (reply.status, reply.json["ok"]) == (200, True)
    assert reply.headers["content-type"] == "application/json"
    with connections.open(url) as exchange:
        assert exchange.line.sock.getsockname() == first
    echoed = send(connections, f"{api.url}/a?b=c", {"do": [{"how": "echo"}]}).json
    assert echoed["head"].startswith("POST /a?b=c HTTP/1.1\r\nHost: 127.0.0.1:")
    assert "accept-encoding: identity" in echoed["head"]


def test_answers_in_chunks_and_drops_are_whole(api: Ledger, connections: Connections) -> None:
    for how in ("chunked", "drip", "echo"):
        assert send(connections, api.url, {"do": [{"how": how}]}).status == 200
    reply = send(connections, api.url, {"do": [{"how": "chunked", "json": list(range(50))}]})
    assert reply.json == list(range(50))


@pytest.mark.parametrize(
    "action",
    [
        {"how": "cut"},
        {"how": "reset"},
        {"how": "close"},
        {"raw": "no HTTP at all\r\n\r\n"},
        {"raw": "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab"},
        {"raw": "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"},
        {"raw": "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\nabcd"},
        {"raw": "HTTP/1.1 200 OK\r\nx: " + "a" * 70_000 + "\r\n\r\n"},
        {"raw": ""},
    ],
)
def test_an_answer_that_is_not_whole_is_none(
    api: Ledger, connections: Connections, action: dict[str, Any]
) -> None:
    with pytest.raises(TransportError, match=r"no answer from 127\.0\.0\.1:\d+: ") as error:
        send(connections, api.url, {"do": [action]})
    assert read_failure(error.value, 0, ()).error is ErrorClass.TRANSPORT
    assert send(connections, api.url).status == 200, "the next one has another connection"


def test_no_connection_is_no_answer(connections: Connections) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(TransportError, match=r"no connection to .*: Connection refused"):
            send(connections, url)
    with pytest.raises(TransportError, match=r"no connection to nobody\.invalid"):
        send(connections, "http://nobody.invalid/")
    with pytest.raises(TransportError, match="no connection"):
        send(connections, f"http://{'a' * 80}.invalid/")


@pytest.mark.parametrize(
    "action",
    [
        {"how": "hang"},
        {"after": 3},
        {"how": "drip", "text": "x" * 5000},  # each byte in time, all of them not
    ],
)
def test_the_deadline_is_for_all_of_it(api: Ledger, connections: Connections, action: dict[str, Any]) -> None:
    with pytest.raises(TransportError, match=r"not all of it within 0\.3 s"):
        send(connections, api.url, {"do": [action]}, seconds=0.3)


def test_a_head_that_drips_does_not_hold_us(connections: Connections) -> None:
    def drip(connection: socket.socket) -> None:
        connection.recv(65536)
        with suppress(OSError):  # the caller leaves
            while True:
                connection.sendall(b"H")
                time.sleep(0.02)

    with raw_server(drip) as url, pytest.raises(TransportError, match="not all of it"):
        send(connections, url, seconds=0.3)


def test_a_large_answer_is_not_read(api: Ledger, connections: Connections) -> None:
    assert len(send(connections, api.url, {"do": [{"size": LARGEST}]}).body) == LARGEST
    with pytest.raises(AnswerTooLarge, match="100,000 bytes"):
        send(connections, api.url, {"do": [{"size": LARGEST + 1}]})
    assert send(connections, api.url).status == 200


def test_a_packed_answer_is_unpacked_within_the_bound(connections: Connections) -> None:
    packed = {"/": gzip.compress(b'{"a": 1}'), "/bomb": gzip.compress(b"\0" * (50 << 20))}
    fields = {"content-encoding": "gzip", "content-type": "application/json"}
    with Receiver(lambda call, count: (200, fields, packed[call.path])) as server:
        assert send(connections, server.url).json == {"a": 1}
        with pytest.raises(AnswerTooLarge):
            send(connections, f"{server.url}/bomb")


@pytest.mark.parametrize(
    ("after", "is_kept"),
    [
        (b"content-length: 2\r\n\r\nok", True),
        (b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", True),
        (b"content-length: 200000\r\n\r\n" + b"." * 200_000, False),
        (b"content-length: 3\r\n\r\nok", False),
        (b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n", False),
        (b"transfer-encoding: chunked\r\n\r\nnonsense", False),
    ],
)
def test_a_body_that_nobody_wants_is_in_nobodys_way(
    connections: Connections, monkeypatch: pytest.MonkeyPatch, after: bytes, is_kept: bool
) -> None:
    """It may have no end, or none in sight."""
    monkeypatch.setattr(outgoing, "PASS_OVER_SECONDS", 0.2)

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        with suppress(OSError):  # the caller may have left
            connection.sendall(b"HTTP/1.1 200 OK\r\n" + after)
            connection.recv(1)  # until it is closed

    with raw_server(serve) as url, connections.open(read_url(url)) as exchange:
        assert exchange.send("POST", {}, b"{}", seconds=20, head_only=True).status == 200
        assert exchange.line.is_open() is is_kept


def test_redirects_are_answers(connections: Connections) -> None:
    with Receiver(lambda call, count: (302, {"location": "/elsewhere"}, b"")) as server:
        reply = send(connections, server.url)
        assert (reply.status, reply.headers["location"], len(server.calls)) == (302, "/elsewhere", 1)


def test_fields_that_come_twice_are_joined(api: Ledger, connections: Connections) -> None:
    raw = "HTTP/1.1 200 OK\r\nX-A: 1\r\nx-a: 2\r\ncontent-length: 0\r\n\r\n"
    assert send(connections, api.url, {"do": [{"raw": raw}]}).headers["x-a"] == "1, 2"


def test_a_connection_that_was_closed_meanwhile_is_replaced(connections: Connections) -> None:
    hung_up = threading.Event()
    accepted = []

    def serve(connection: socket.socket) -> None:
        accepted.append(1)
        if len(accepted) == 1:
            connection.close()
            hung_up.set()
            return
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    with raw_server(serve) as url, connections.open(read_url(url)) as exchange:
        hung_up.wait()
        until = time.monotonic() + 5
        while exchange.line.is_open() and time.monotonic() < until:
            time.sleep(0.001)
        assert exchange.send("POST", {}, b"{}", seconds=20).body == b"ok"
    assert len(accepted) == 2


@pytest.mark.parametrize(
    "framing", ["content-length: 2\r\n\r\nok", "transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"]
)
def test_what_says_something_unasked_is_not_used_again(connections: Connections, framing: str) -> None:
    accepted = []
    answer = f"HTTP/1.1 200 OK\r\n{framing}HTTP/1.1 200 OK\r\n\r\nsmuggled".encode()

    def serve(connection: socket.socket) -> None:
        accepted.append(1)
        while connection.recv(65536):
            connection.sendall(answer)

    with raw_server(serve) as url:
        for _ in range(2):
            assert send(connections, url).body == b"ok"
    assert len(accepted) == 2


def test_a_forked_child_uses_none_of_its_parents_connections(
    api: Ledger, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = read_url(api.url)
    with connections.open(url) as exchange:
        parents = exchange.line.sock.getsockname()
        exchange.send("POST", {}, b"{}", seconds=20)
    number = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: number + 1)
    with connections.open(url) as exchange:
        assert exchange.line.sock.getsockname() != parents


def test_a_reply_is_seen_as_an_answer() -> None:
    reply = read_reply(Reply(429, {"retry-after": "3"}, b'{"error": {"message": "slow"}}'))
    assert reply is not None
    assert (reply.status, reply.fields, reply.body["error"]["message"]) == (429, {"retry-after": "3"}, "slow")


# Addresses


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "0x7f000001", "2130706433", "127.1"])
def test_a_name_of_this_machine_is_not_public(connections: Connections, host: str) -> None:
    with Receiver() as server:
        url = read_url(f"http://{host}:{server.port}/")
        with (
            pytest.raises(
                (AddressRefused, TransportError), match=r"no public address|no connection"
            ) as error,
            connections.open(url, public=True),
        ):
            pass
        assert not server.calls
        if host != "[::1]":  # which not every machine has
            assert isinstance(error.value, AddressRefused)


def test_the_address_that_was_vetted_is_the_one_that_is_called(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that resolves to a public address the first time, and to this machine the second."""
    with Receiver() as server:
        answers = [[_found("10.0.0.1", server.port), _found("192.0.2.1", server.port)]]
        tried: list[object] = []
        resolved: list[str] = []

        def resolve(host: str, port: int, *_: object, **__: object) -> object:
            resolved.append(host)
            return answers[0] if len(resolved) == 1 else [_found("127.0.0.1", port)]

        class Socket(socket.socket):
            def connect(self, address: Any) -> None:
                tried.append(address)
                raise ConnectionRefusedError(111, "Connection refused")

        # 192.0.2.1 stands for a public one; nothing may leave this machine.
        name = "headgate.integrations.celery.mediator.outgoing"
        monkeypatch.setattr(f"{name}.is_public", lambda address: address == "192.0.2.1")
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        monkeypatch.setattr(socket, "socket", Socket)
        with (
            pytest.raises(TransportError),
            connections.open(Url("http", "rebinds.example", server.port, "/"), public=True),
        ):
            pass
        assert resolved == ["rebinds.example"], "once"
        assert tried == [("192.0.2.1", server.port)]
        assert not server.calls


def test_public_connections_are_kept_apart(api: Ledger, connections: Connections) -> None:
    url = read_url(api.url)
    with connections.open(url) as exchange:
        exchange.send("POST", {}, b"{}", seconds=20)
    with pytest.raises(AddressRefused), connections.open(url, public=True):
        pass


# TLS


def test_certificates_are_checked(
    tmp_path: Path, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def serve(connection: socket.socket) -> None:
        try:
            with context.wrap_socket(connection, server_side=True) as wrapped:
                while wrapped.recv(65536):
                    wrapped.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        except OSError:
            pass  # the caller did not like the certificate

    with raw_server(serve) as url:
        there = url.replace("http://127.0.0.1", "https://localhost")
        with pytest.raises(TransportError, match="its certificate is not good"):
            send(connections, there)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        trusting = Connections(LARGEST)
        assert send(trusting, there).body == b"ok"
        with trusting.open(read_url(there)) as exchange:  # the same one: TLS' own messages are no answer
            assert exchange.line.is_open()
            assert exchange.send("POST", {}, b"{}", seconds=20).body == b"ok"
        with pytest.raises(TransportError, match="its certificate is not good"):
            send(trusting, there.replace("localhost", "127.0.0.1"))
        trusting.close()


def _found(address: str, port: int) -> tuple[Any, ...]:
    return (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))


def test_an_answer_outlives_what_is_done_with_idle_connections(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "MOST_IDLE", 2)
    with ExitStack() as stack:
        urls = [stack.enter_context(Receiver()).url for _ in range(4)]
        send(connections, urls[0], {})
        with connections.open(read_url(urls[0])) as exchange:
            exchange.line.close()  # none is left of the one that was used first
        for url in urls[1:]:
            assert send(connections, url, {}).status == 204
        assert len(connections._idle) == 2


def test_what_is_said_before_an_answer_is_passed_over(connections: Connections) -> None:
    early = "".join(f"HTTP/1.1 {status} Early\r\nlink: x\r\n\r\n" for status in (100, 102, 103))

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(f"{early}HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{{}}".encode())

    with raw_server(serve) as url:
        assert send(connections, url, {}) == Reply(200, {"content-length": "2"}, b"{}")


def test_a_protocol_that_is_switched_unasked_is_no_answer(connections: Connections) -> None:
    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\n\r\n")

    with raw_server(serve) as url, pytest.raises(TransportError, match="no answer"):
        send(connections, url, {})


def read_request(connection: socket.socket) -> None:
    """One whose body is ``{}``, which may come after its head."""
    data = b""
    while not data.endswith(b"{}"):
        data += connection.recv(65536)


@contextmanager
def raw_server(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that gives each connection to ``serve``, in a thread, and closes it afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threads: list[threading.Thread] = []

        def each(connection: socket.socket) -> None:
            with connection:
                serve(connection)

        def accept() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                thread = threading.Thread(target=each, args=(connection,), daemon=True)
                thread.start()
                threads.append(thread)

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
    accepting.join(5)
