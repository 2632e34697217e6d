"""Workers as processes of their own, on a broker, a store and a strict server of their own."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
import redis

from tests.servers.redis import RedisServer
from tests.strict.scenarios import Server, strict_server

ROOT = Path(__file__).parents[3]
SECONDS = 90
RATE, BURST = 40, 8
"""Of the strict server, and of the program's limiter for it."""


class Worker:
    """``celery worker`` with four slots; ``kill`` takes its children with it."""

    def __init__(self, name: str, folder: Path, *more: str, pool: str = "prefork") -> None:
        self.log = folder / f"{name}.log"
        self._out: IO[bytes] = self.log.open("ab")
        command = [sys.executable, "-m", "celery", "-A", "tests.integrations.celery.program", "worker"]
        command += ["-c", "4", "-n", f"{name}@here", "-l", "INFO", "-E", "-P", pool, *more]
        self.process = subprocess.Popen(
            [*command, "--without-mingle", "--without-gossip"],
            cwd=ROOT,
            env=dict(os.environ),
            stdout=self._out,
            stderr=self._out,
            start_new_session=True,
        )

    def wait_until_ready(self, seconds: float = 30) -> None:
        until = time.monotonic() + seconds
        while " ready." not in self.told():
            assert self.process.poll() is None, self.told()
            assert time.monotonic() < until, self.told()
            time.sleep(0.05)

    def told(self) -> str:
        """What it has logged."""
        return self.log.read_text(errors="replace")

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, how)
        self.process.wait(30)
        self._out.close()


class Place:
    """Where a test runs: its program, its workers, its server, and what they wrote down."""

    def __init__(self, folder: Path, program: Any, server: Server, workers: list[Worker]) -> None:
        self.folder = folder
        self.program = program
        self.server = server
        self.workers = workers

    @property
    def broker_is_redis(self) -> bool:
        return os.environ["BROKER"] == os.environ["BACKEND"]

    def unacknowledged(self) -> int:
        """Messages that Redis keeps for workers that have them in hand."""
        with redis.Redis.from_url(os.environ["STORE"]) as client:
            return int(client.hlen("unacked"))

    def lines(self, what: str, name: str | None = None) -> list[list[str]]:
        """Words of the journal's lines that begin so, after the instant."""
        path = self.folder / "journal"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [line[1:] for line in lines if line[1] == what and (name is None or line[2] == name)]


@contextmanager
def running(
    folder: Path,
    broker: str | None = None,
    *,
    names: tuple[str, ...] = ("one", "two"),
    pool: str = "prefork",
    options: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
) -> Iterator[Place]:
    """Workers of the program, and at the end nothing that the strict server has refused.

    Args:
        broker: None for the Redis that also keeps results and limits.
    """
    limit = {"meter": "requests", "kind": "bucket", "amount": RATE, "burst": BURST}
    config = {"limits": [limit], "count_refused": True, "latency_seconds": 0.02}
    with (
        RedisServer() as private,
        strict_server(config, folder) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        socket = f"redis+socket://{private.url.removeprefix('unix://')}"
        told = {"BROKER": broker or socket, "BACKEND": socket, "STORE": private.url, "SERVICE": server.url}
        told |= {"RATE": str(RATE), "BURST": str(BURST)}
        for name, value in {**told, "JOURNAL": str(folder / "journal"), **(environment or {})}.items():
            patch.setenv(name, value)
        from tests.integrations.celery import program

        importlib.reload(program)
        workers: list[Worker] = []
        try:
            workers += [Worker(name, folder, *options, pool=pool) for name in names]
            for worker in workers:
                worker.wait_until_ready()
            yield Place(folder, program, server, workers)
        finally:
            for worker in workers:
                worker.kill()
            program.app.control.purge()
            program.app.close()
            for limiter in (program.limiter, program.blocked, program.gate, program.free):
                limiter.store.close()  # type: ignore[attr-defined]  # it is a shared one
        report = server.finish()
        assert report["refused"] == 0, report["refusals"]


def wait_until(true: Any, seconds: float = SECONDS) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it takes too long"
        time.sleep(0.05)
