"""One run of two Celery workers that send the calls of a burst of tasks to a strict server.

The server's log says what was accepted and when; the workers' journal says how long tasks had slots, and what
was published; Redis counts its commands, and the kernel the CPU time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from celery import Celery
from kombu.connection import Connection

from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer
from tests.strict.scenarios import environment, strict_server

ROOT = Path(__file__).parents[1]
RATE, BURST = 40, 8
LATENCY_SECONDS = 0.05
WORKERS, SLOTS = 2, 4
OTHERS = 200
START_SECONDS = 30.0
LOOK_SECONDS = 0.02
SECOND = 1_000_000_000

_numbers = count()


class Broker(Protocol):
    """Where messages go. It may be that nobody can count its commands: then ``commands`` is None."""

    @property
    def url(self) -> str: ...
    @property
    def commands(self) -> int | None: ...
    def forget(self, queue: str) -> None:
        """What is left of a run."""


class RedisBroker:
    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.url = f"redis+socket://{server.url.removeprefix('unix://')}"

    @property
    def commands(self) -> int:
        return commands(self.server)

    def forget(self, queue: str) -> None:
        self.server.flush()


class RabbitMQBroker:
    commands = None

    def __init__(self, server: RabbitMQServer) -> None:
        self.url = server.url

    def forget(self, queue: str) -> None:
        with Connection(self.url) as connection:
            channel = connection.channel()
            for name in (queue, f"{queue}.headgate"):
                channel.queue_delete(name)


def commands(server: RedisServer) -> int:
    """That it has carried out, those that scripts gave included."""
    statistics = (value for name, value in server.info().items() if name.startswith("cmdstat_"))
    return sum(int(value.partition("calls=")[2].partition(",")[0]) for value in statistics)


class Ran(NamedTuple):
    """A task had a slot.

    call_ns: how much of that it was in its HTTP call.
    """

    task: str
    began_ns: int
    ended_ns: int
    call_ns: int


class Journal:
    """What the workers have written down by now."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self._file = path.open()
        self._part = ""
        self.ready = self.sent = 0
        self.ran: list[Ran] = []
        self.done: Counter[str] = Counter()  # by task

    def read(self) -> Self:
        *lines, self._part = (self._part + self._file.read()).split("\n")
        for line in lines:
            match line.split():
                case ["ready"]:
                    self.ready += 1
                case ["sent", _]:
                    self.sent += 1
                case ["ran", task, state, *numbers]:
                    self.ran.append(Ran(task, *map(int, numbers)))
                    self.done[task] += state == "SUCCESS"
                case _:
                    raise ValueError(f"no line of a journal: {line!r}")
        return self

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class Found:
    """What one run came to.

    accepted, refused: calls, by the server.
    used: the shortest time in which the rule lets so many calls through, the full burst at the start
        included, of the time from the first to the last that was accepted.
    used_from_start: of the time from the first task's being sent to the last call that was accepted.
    seconds: from there to the end of the last task; to the cut-off if there was one.
    asleep: slots, in the mean over that time, that limited tasks had while not in their HTTP call.
    messages: that were published for each accepted call, the first one included.
    broker_commands, store_commands: of Redis, for each accepted call; None where nobody counts.
    cpu_ms: CPU time of the workers, for each accepted call.
    others_seconds: until all tasks of the other service were done; None if they were not.
    """

    accepted: int
    refused: int
    used: float
    used_from_start: float
    seconds: float
    asleep: float
    messages: float
    broker_commands: float | None
    store_commands: float
    cpu_ms: float
    others_seconds: float | None


def measure(
    way: str, broker: Broker, store: RedisServer, *, calls: int, count_refused: bool, cut_off_seconds: float
) -> Found:
    """One run.

    Args:
        way: of `celery_program.WAYS`.
        calls: tasks that are sent at once, and behind them those of the other service.
        count_refused: refused calls use up the limit, too.
        cut_off_seconds: how long to wait for all tasks.

    Raises:
        RuntimeError: a worker ended, or did not start.
    """
    queue = f"bench-{next(_numbers)}"
    store.flush()
    config = {
        "limits": [{"meter": "requests", "kind": "bucket", "amount": RATE, "burst": BURST}],
        "latency_seconds": LATENCY_SECONDS,
        "count_refused": count_refused,
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        stack.callback(broker.forget, queue)
        server = stack.enter_context(strict_server(config, folder, cut_off_seconds + START_SECONDS + 30))
        journal = stack.enter_context(closing(Journal(folder / "journal")))
        told = {
            "WAY": way,
            "BROKER": broker.url,
            "STORE": store.url,
            "SERVICE": server.url,
            "QUEUE": queue,
            "JOURNAL": str(folder / "journal"),
            "RATE": str(RATE),
            "BURST": str(BURST),
            "WORKERS": str(WORKERS),
        }
        fleet = stack.enter_context(workers(told, folder))

        def wait_until(true: Callable[[], bool], seconds: float) -> bool:
            until = time.monotonic() + seconds
            while not true():
                if any(worker.poll() is not None for worker in fleet):
                    raise RuntimeError(f"a worker of {way} ended:\n{log_of(folder)}")
                if time.monotonic() > until:
                    return False
                time.sleep(LOOK_SECONDS)
            return True

        if not wait_until(lambda: journal.read().ready == WORKERS, START_SECONDS):
            raise RuntimeError(f"the workers of {way} did not start:\n{log_of(folder)}")
        before = Counts.now(broker, store, fleet)
        began_ns, others_ns = send(broker, queue, calls)
        wait_until(
            lambda: journal.read().done["call"] == calls and journal.done["other"] == OTHERS,
            cut_off_seconds,
        )
        ended_ns = time.monotonic_ns()
        after = Counts.now(broker, store, fleet)
        report = server.finish()
        accepted_ns = [call["arrived_ns"] for call in server.log() if not call["refused_by"]]
    accepted = len(accepted_ns)
    if not accepted:
        raise RuntimeError(f"no call of {way} was accepted in {cut_off_seconds:g} s")
    last_ns = accepted_ns[-1] if accepted == calls else ended_ns
    ideal_ns = report["ideal_seconds"]["full_start"] * SECOND
    limited = [ran for ran in journal.ran if ran.task == "call"]
    others = [ran for ran in journal.ran if ran.task == "other"]
    return Found(
        accepted=accepted,
        refused=report["refused"],
        used=ideal_ns / (last_ns - accepted_ns[0]),
        used_from_start=ideal_ns / (last_ns - began_ns),
        seconds=(ended_ns - began_ns) / SECOND,
        asleep=sum(ran.ended_ns - ran.began_ns - ran.call_ns for ran in limited) / (ended_ns - began_ns),
        messages=(calls + journal.sent) / accepted,
        broker_commands=None
        if before.broker is None or after.broker is None
        else (after.broker - before.broker) / accepted,
        store_commands=(after.store - before.store) / accepted,
        cpu_ms=(after.cpu_seconds - before.cpu_seconds) * 1000 / accepted,
        others_seconds=(max(ran.ended_ns for ran in others) - others_ns) / SECOND
        if journal.done["other"] == OTHERS
        else None,
    )


def send(broker: Broker, queue: str, calls: int) -> tuple[int, int]:
    """All tasks, as a program does that only sends; when the first of either kind went off."""
    with Celery("sender", broker=broker.url) as app:
        app.conf.task_default_queue = queue
        with app.producer_or_acquire() as producer:
            began_ns = time.monotonic_ns()
            for _ in range(calls):
                app.send_task("call", producer=producer)
            others_ns = time.monotonic_ns()
            for _ in range(OTHERS):
                app.send_task("other", producer=producer)
    return began_ns, others_ns


@contextmanager
def workers(told: dict[str, str], folder: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Workers of the program; each is ended with its children, at the latest when this process is."""
    started: list[subprocess.Popen[bytes]] = []
    with (folder / "workers").open("wb") as log:
        try:
            for number in range(WORKERS):
                command = [sys.executable, "-m", "celery", "-A", "benchmarks.celery_program", "worker"]
                command += ["-c", str(SLOTS), "-n", f"{number}@here", "--loglevel", "WARNING"]
                worker = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env={**environment(), **told},
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
                started.append(worker)
            yield started
        finally:
            for worker in started:
                if worker.poll() is None:
                    os.killpg(worker.pid, signal.SIGKILL)
                worker.communicate()


def log_of(folder: Path) -> str:
    """The end of it."""
    return (folder / "workers").read_text(errors="replace")[-3000:]


@dataclass(frozen=True)
class Counts:
    """Since they began: commands of Redis, and CPU seconds of the workers and their children."""

    broker: int | None
    store: int
    cpu_seconds: float

    @classmethod
    def now(cls, broker: Broker, store: RedisServer, fleet: Sequence[subprocess.Popen[bytes]]) -> Self:
        return cls(broker.commands, commands(store), cpu_seconds({worker.pid for worker in fleet}))


def cpu_seconds(groups: set[int]) -> float:
    """Of all processes of these groups; 0 where the machine does not say."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[2]) in groups:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
