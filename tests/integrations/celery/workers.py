"""Workers as processes of their own, on a broker and a store of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[3]


class Worker:
    """``celery worker`` with four slots; ``kill`` takes its children with it."""

    def __init__(self, name: str, folder: Path, environment: dict[str, str], pool: str) -> None:
        self.log = folder / f"{name}.log"
        self._out: IO[bytes] = self.log.open("ab")
        command = [sys.executable, "-m", "celery", "-A", "tests.integrations.celery.program", "worker"]
        command += ["-c", "4", "-n", f"{name}@here", "-l", "INFO", "-E", "-P", pool]
        self.process = subprocess.Popen(
            [*command, "--without-mingle", "--without-gossip"],
            cwd=ROOT,
            env=environment,
            stdout=self._out,
            stderr=self._out,
            start_new_session=True,
        )

    def wait_until_ready(self, seconds: float = 30) -> None:
        until = time.monotonic() + seconds
        while " ready." not in self.log.read_text(errors="replace"):
            assert self.process.poll() is None, self.log.read_text(errors="replace")
            assert time.monotonic() < until, self.log.read_text(errors="replace")
            time.sleep(0.05)

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._out.close()


@contextmanager
def two_workers(folder: Path, environment: dict[str, str], pool: str = "prefork") -> Iterator[list[Worker]]:
    workers = [Worker(name, folder, environment, pool) for name in ("one", "two")]
    try:
        for worker in workers:
            worker.wait_until_ready()
        yield workers
    finally:
        for worker in workers:
            worker.kill()


def journal(folder: Path) -> list[list[str]]:
    """[instant, what, words...] of each line."""
    path = folder / "journal"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def most_over(instants: list[float], rate: float, burst: float) -> float:
    """How far calls went above a bucket, in units; 0 or less if they never did."""
    level, last, worst = burst, instants[0], -burst
    for instant in instants:
        level = min(level + (instant - last) * rate, burst) - 1
        last = instant
        worst = max(worst, -level)
    return worst
