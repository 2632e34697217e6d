"""A real HTTP server in a thread that is called back, and answers as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self


class Call(NamedTuple):
    at: float
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def task_id(self) -> str:
        return str(json.loads(self.body)["task_id"])


Answer = tuple[int, Mapping[str, str], bytes]


class Receiver:
    """Answers 204, or what ``answer`` makes of a call and of how many came for its path before."""

    def __init__(self, answer: Callable[[Call, int], Answer] | None = None) -> None:
        self.calls: list[Call] = []
        self.answer = answer or (lambda call, count: (204, {}, b""))
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                fields = {name.lower(): value for name, value in self.headers.items()}
                call = Call(time.monotonic(), self.path, fields, body)
                with receiver._lock:
                    receiver.calls.append(call)
                    count = receiver._counts[self.path]
                    receiver._counts[self.path] += 1
                status, headers, content = receiver.answer(call, count)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if status != 204:
                    self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 256

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def called(self) -> Counter[str]:
        """How often each task was called back."""
        with self._lock:
            return Counter(call.task_id for call in self.calls)
