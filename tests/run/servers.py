"""A fast HTTP server that writes down who called and when, and answers whatever a request asks it to.

    python tests/run/servers.py --port-file PATH --ledger PATH [--latency SECONDS]

It shares no code with the product. A request whose body says nothing is answered with a small JSON object
after ``--latency``. A body with ``"do": [action, …]`` is answered by its script: the first attempt of an
idempotency key by the first action, and so on; the last action is repeated. An action is an object:

- ``{}``: the usual answer.
- ``{"status": 429, "headers": {…}, "json": …}`` or ``"text": …``: that answer.
- ``"after": seconds``: that much later; the work goes on even if the caller hangs up.
- ``"how": "hang"`` (no answer, ever), ``"reset"``, ``"close"``, ``"cut"`` (half of the body, then the end),
  ``"chunked"``, ``"drip"`` (a byte at a time), ``"echo"`` (what was sent, headers and all).
- ``"raw": text``: these bytes, whatever they mean.
- ``"size": n``: a body of n bytes.

The ledger is a file of lines ``event instant key id open``: R when a request was received, A when it was
answered, L when its caller left before that. ``open`` is how many requests the server is at work on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_KEY = re.compile(rb"\r\nidempotency-key: *([^\r]*)", re.IGNORECASE)
_ID = re.compile(rb'"n": ?"([^"]*)"')
_PLAIN = b'{"ok":true,"usage":{"prompt_tokens":5,"completion_tokens":5}}'
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
    len(_PLAIN),
    _PLAIN,
)


class LedgerServer:
    """Answers, and writes to the ledger once for each turn of the loop."""

    def __init__(self, ledger: Path, latency: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.latency = latency
        self.open = 0
        self.attempts: Counter[bytes] = Counter()
        self._fd = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._lines: list[bytes] = []

    def note(self, event: bytes, key: bytes, name: bytes) -> None:
        if not self._lines:
            self.loop.call_soon(self._flush)
        self._lines.append(
            b"%s %d %s %s %d\n" % (event, time.monotonic_ns(), key or b"-", name or b"-", self.open)
        )

    def _flush(self) -> None:
        os.write(self._fd, b"".join(self._lines))
        self._lines.clear()


class Connection(asyncio.Protocol):
    """One request at a time; whoever pipelines waits."""

    def __init__(self, server: LedgerServer) -> None:
        self.server = server
        self.buffer = b""
        self.gone = False
        self.at_work: tuple[bytes, bytes] | None = None
        self.hangs = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        if self.at_work is not None:
            self.server.open -= self.hangs
            self.server.note(b"L", *self.at_work)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while self.at_work is None and self.buffer:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self.buffer[: end + 2]
            length = _LENGTH.search(head)
            size = end + 4 + (int(length[1]) if length else 0)
            if len(self.buffer) < size:
                return
            body, self.buffer = self.buffer[end + 4 : size], self.buffer[size:]
            self._receive(head, body)

    def _receive(self, head: bytes, body: bytes) -> None:
        server = self.server
        key, name = _KEY.search(head), _ID.search(body)
        who = (key[1] if key else b"", name[1] if name else b"")
        server.open += 1
        server.note(b"R", *who)
        action: dict[str, Any] = {}
        if b'"do"' in body:
            script = json.loads(body)["do"]
            action = script[min(server.attempts[who[0]], len(script) - 1)]
            server.attempts[who[0]] += 1
        self.at_work = who
        self.hangs = action.get("how") == "hang"
        if self.hangs:
            return
        after = action.get("after", server.latency)
        if after:
            server.loop.call_later(after, self._answer, action, head, body)
        else:
            self._answer(action, head, body)

    def _answer(self, action: dict[str, Any], head: bytes, body: bytes) -> None:
        server, who = self.server, self.at_work
        if who is None:
            raise AssertionError("nothing to answer")
        self.at_work = None
        server.open -= 1
        if not self.gone:
            server.note(b"A", *who)
            self._write(action, head, body)
        if self.buffer:
            server.loop.call_soon(self.data_received, b"")

    def _write(self, action: dict[str, Any], head: bytes, body: bytes) -> None:
        how = action.get("how", "")
        if not action or not action.keys() - {"after"}:
            self.transport.write(_ANSWER)
            return
        if "raw" in action:
            self.transport.write(action["raw"].encode("latin-1"))
            self.transport.close()
            return
        if how == "reset":
            connection = self.transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
            return
        if how == "close":
            self.transport.close()
            return
        headers = {"content-type": "application/json", **action.get("headers", {})}
        text = action.get("text")
        content = (
            json.dumps(action.get("json", {"ok": True})).encode() if text is None else text.encode("latin-1")
        )
        if how == "echo":
            content = json.dumps({"head": head.decode("latin-1"), "body": body.decode()}).encode()
            headers["x-request-id"] = head.decode("latin-1").replace("\r\n", " ")
        if "size" in action:
            content = b'"' + b"x" * (action["size"] - 2) + b'"'
        lines = [f"HTTP/1.1 {action.get('status', 200)} Said", *(f"{k}: {v}" for k, v in headers.items())]
        if how == "chunked":
            start = "\r\n".join([*lines, "transfer-encoding: chunked", "", ""]).encode("latin-1")
            parts = [content[at : at + 7] for at in range(0, len(content), 7)]
            self.transport.write(
                start + b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in parts) + b"0\r\n\r\n"
            )
            return
        start = "\r\n".join([*lines, f"content-length: {len(content)}", "", ""]).encode("latin-1")
        if how == "cut":
            self.transport.write(start + content[: len(content) // 2])
            self.transport.close()
        elif how == "drip":
            self.transport.write(start)
            for at in range(len(content)):
                self.server.loop.call_later(0.002 * at, self.transport.write, content[at : at + 1])
        else:
            self.transport.write(start + content)


class Entry(NamedTuple):
    """A line of the ledger."""

    event: str
    at: float
    key: str
    name: str
    open: int


class Ledger:
    """A running server and what it has written down since an instant."""

    def __init__(self, url: str, path: Path, start: int = 0) -> None:
        self.url = url
        self.path = path
        self._start = start

    def from_here(self) -> Ledger:
        """The same server, without what has been so far."""
        return Ledger(self.url, self.path, self.path.stat().st_size)

    def _new(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self._start)
            return file.read()

    def entries(self) -> list[Entry]:
        found = []
        for line in self._new().decode("latin-1").split("\n")[:-1]:
            event, at, key, name, count = line.split(" ")
            found.append(Entry(event, int(at) / 1e9, key, name, int(count)))
        return found

    def received(self) -> list[Entry]:
        """The requests that came, repeated ones included."""
        return [entry for entry in self.entries() if entry.event == "R"]

    def count(self) -> int:
        """How many requests came, without reading them one by one."""
        data = self._new()
        return data.count(b"\nR ") + data.startswith(b"R ")


@contextmanager
def ledger_server(folder: Path, *, latency: float = 0.0, ledger: Path | None = None) -> Iterator[Ledger]:
    """A ledger server in a process of its own."""
    port_file, ledger = folder / "server.port", ledger or folder / "server.ledger"
    port_file.unlink(missing_ok=True)
    options = ["--port-file", str(port_file), "--ledger", str(ledger), "--latency", str(latency)]
    process = subprocess.Popen([sys.executable, __file__, *options])
    try:
        deadline = time.monotonic() + 20
        while not port_file.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError("the server does not listen")
            time.sleep(0.01)
        yield Ledger(f"http://127.0.0.1:{port_file.read_text()}", ledger)
    finally:
        process.kill()
        process.wait()


async def _serve(port_file: Path, ledger: Path, latency: float) -> None:
    server = LedgerServer(ledger, latency)
    listening = await server.loop.create_server(lambda: Connection(server), "127.0.0.1", 0, backlog=2000)
    draft = port_file.with_suffix(".part")
    draft.write_text(str(listening.sockets[0].getsockname()[1]))
    draft.replace(port_file)
    await listening.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port-file", type=Path, required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--latency", type=float, default=0.0)
    options = parser.parse_args()
    serving = _serve(options.port_file, options.ledger, options.latency)
    try:
        import uvloop
    except ImportError:
        asyncio.run(serving)
    else:
        uvloop.run(serving)


if __name__ == "__main__":
    main()
