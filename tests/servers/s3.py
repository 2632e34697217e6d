"""A private S3: tests start it, kill it, restart it, and stop it.

    with S3Server() as server:
        server.create_bucket("calls")
        environment = server.environment

It is moto's, in a process of its own, and keeps all in memory. moto looks whether an object exists and then
writes it, in two steps on many threads; S3 does so in one. So requests are served one after another.

It checks no credentials, and knows no client: what tests clients must not depend on one.
"""

from __future__ import annotations

import shutil
import socket
import sys
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers.processes import Process, free_ports, new_folder

START_SECONDS = 30.0
ANSWER_SECONDS = 5.0

ACCESS_KEY = "AKIDHEADGATE0000TEST"
SECRET_KEY = "secret-of-the-tests-0123456789"

_PROGRAM = """
import sys, threading
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple

serve, one_at_a_time = DomainDispatcherApplication(create_backend_app), threading.Lock()

def application(environ, start_response):
    with one_at_a_time:
        return list(serve(environ, start_response))

run_simple("127.0.0.1", int(sys.argv[1]), application, threaded=True, request_handler=MotoRequestHandler)
"""


class S3Server:
    """A server for the length of a ``with`` block.

    Raises:
        NotStarted: It does not run, or does not answer within ``START_SECONDS``.
    """

    def __init__(self) -> None:
        self._process: Process | None = None

    def __enter__(self) -> Self:
        (self._port,) = free_ports(1)
        self._folder = new_folder()
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def endpoint(self) -> str:
        """Where it listens: ``http://127.0.0.1:…``. It stays the same after a restart."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """What tells clients where it is and who they are, as AWS' own tools take it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
        }

    @property
    def log(self) -> str:
        """All that it and those before it wrote down: each request, one a line."""
        return self._log.read_text(errors="replace")

    @property
    def pid(self) -> int | None:
        """Its process; None while there is none."""
        return self._process.pid if self._process is not None else None

    def create_bucket(self, name: str) -> None:
        """A new bucket, empty."""
        request = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")
        urllib.request.urlopen(request, timeout=ANSWER_SECONDS).close()

    def kill(self) -> None:
        """SIGKILL: connections end in the middle."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def restart(self) -> None:
        """End it, if that has not happened yet, and start it at the same address, without buckets."""
        self.kill()
        self._start()

    def close(self) -> None:
        """End it; its folder goes."""
        self.kill()
        shutil.rmtree(self._folder)

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    def _start(self) -> None:
        command = [sys.executable, "-c", _PROGRAM, str(self._port)]
        self._process = Process(command, folder=self._folder, log=self._log)
        self._process.wait_until(self._answers, START_SECONDS)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), ANSWER_SECONDS) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return connection.recv(5) == b"HTTP/"
        except OSError:
            return False  # it does not listen yet
