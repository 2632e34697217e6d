"""Runs client processes against a strict server, with faults meanwhile, and judges by the server's log.

Everything is a process of its own, ended by its own id; nothing waits without a bound; nothing is reached but
127.0.0.1 and sockets in the file system.

Instants are nanoseconds of the machine's monotonic clock, which all its processes share.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self
from urllib.parse import urlsplit

from tests.fleet.client import Job
from tests.strict.scenarios import environment, strict_server

ROOT = Path(__file__).parents[2]
SECOND = 1_000_000_000

READY_SECONDS = 40.0
LEAD_SECONDS = 0.1
"""From telling the clients when to begin until then."""
STRANGER_SECONDS = 0.003
GRACE_SECONDS = 30.0
"""After the end of the load, for calls on their way."""


class NotReady(Exception):
    """A client did not come to say that it is ready; the message has the end of what it wrote."""


class ClientProcess:
    """A client in its own process, for the length of a `with` block.

    summary: what it said at its end; `None` if it was killed.
    """

    def __init__(self, job: Job, scratch: Path, extra: Mapping[str, str]) -> None:
        self.job = job
        self.summary: dict[str, Any] | None = None
        self._errors = scratch / f"{job.name}.stderr"
        self._scratch = scratch
        self._extra = extra

    def __enter__(self) -> Self:
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.fleet.client", json.dumps(asdict(self.job))],
                cwd=ROOT,
                env={**environment(), **self._extra},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                process_group=0,
            )
        # Read by a thread, so that a client that is killed or hangs cannot hold up whoever waits for it.
        assert self.process.stdout is not None
        self._said: list[str] = []
        self._heard = threading.Condition()
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(5)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def complaint(self) -> str:
        """The end of what it wrote about errors."""
        return self._errors.read_text(errors="replace")[-2000:]

    def stop(self) -> None:
        """SIGSTOP; returns when it has stopped."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)

    def go_on(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self.process.kill()
        self.process.wait()

    def wait_until_ready(self, deadline: float) -> None:
        with self._heard:
            while "ready" not in self._said:
                left = deadline - time.monotonic()
                if left <= 0 or self.process.poll() is not None:
                    raise NotReady(f"{self.job.name}, exit code {self.process.poll()}:\n{self.complaint}")
                self._heard.wait(min(left, 0.1))

    def begin(self, at_ns: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{at_ns}\n".encode())
        self.process.stdin.flush()

    def wait_for_the_end(self, deadline: float) -> None:
        try:
            self.process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            return
        self._reader.join(5)
        if len(self._said) > 1:
            self.summary = json.loads(self._said[-1])

    def _read(self, pipe: IO[bytes]) -> None:
        for line in pipe:
            with self._heard:
                self._said.append(line.decode().strip())
                self._heard.notify_all()


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong while the load runs.

    at_seconds: after the start.
    act: makes it happen, in the harness's thread; the fault is over when it returns.
    lasts_seconds: how much longer it is felt, by design: a lease that has to lapse.
    """

    name: str
    at_seconds: float
    act: Callable[[Fleet], None]
    lasts_seconds: float = 0.0


@dataclass(frozen=True)
class Happened:
    """A fault, when it was made, and when it was over."""

    name: str
    began_ns: int
    done_ns: int
    ended_ns: int


class Fleet:
    """What faults can lay hands on while the load runs.

    clients: by name.
    url: of the server.
    """

    def __init__(self, clients: Mapping[str, ClientProcess], url: str) -> None:
        self.clients = clients
        self.url = url


@dataclass(frozen=True)
class Call:
    """An arrival in the server's log. `granted_ns` and `sent_ns` are the client's word for it."""

    client: str
    granted_ns: int
    sent_ns: int
    arrived_ns: int
    ended_ns: int | None
    refused_by: list[int]


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    begin_ns, end_ns: of the load; where each client had so much work and no more, it ends with the last call.
    report: the server's.
    log: all arrivals there.
    calls: those of the clients.
    summaries: by client, of those that lived to tell.
    exits: exit codes by client.
    complaints: by client, of those that wrote any.
    """

    begin_ns: int
    end_ns: int
    report: dict[str, Any]
    log: Sequence[Call]
    calls: Sequence[Call]
    summaries: Mapping[str, Mapping[str, Any]]
    exits: Mapping[str, int | None]
    complaints: Mapping[str, str]
    faults: Sequence[Happened]

    def accepted(self, begin_ns: float, end_ns: float, client: str | None = None) -> int:
        """How many calls of a client, or of all, were accepted from `begin_ns` until before `end_ns`."""
        return sum(
            begin_ns <= call.arrived_ns < end_ns
            for call in self.calls
            if not call.refused_by and client in (None, call.client)
        )

    def work(self, begin_ns: float, end_ns: float) -> float:
        """Accepted calls between two instants, each as far as the time from its arrival to its end lies in
        between: calls that come in rows, as they do when slots are short, make no steps in it.
        """
        total = 0.0
        for call in self.calls:
            if call.refused_by or call.arrived_ns >= end_ns:
                continue
            ended_ns = max(call.ended_ns or call.arrived_ns, call.arrived_ns + 1)
            inside = min(ended_ns, end_ns) - max(call.arrived_ns, begin_ns)
            total += max(inside, 0) / (ended_ns - call.arrived_ns)
        return total

    def shares(self) -> list[dict[str, float]]:
        """{client: its part of what was accepted}, for each whole second of the load."""
        found = []
        for begin_ns in range(self.begin_ns, self.end_ns - SECOND + 1, SECOND):
            counts = Counter(
                call.client
                for call in self.calls
                if not call.refused_by and begin_ns <= call.arrived_ns < begin_ns + SECOND
            )
            total = counts.total() or 1
            found.append({name: counts[name] / total for name in self.exits})
        return found

    @property
    def refused(self) -> int:
        return int(self.report["refused"])

    @property
    def most_in_flight(self) -> int:
        """The most calls at the same time at the server, one that it refused for want of a slot included."""
        slots = [
            index
            for index, limit in enumerate(self.report["config"]["limits"])
            if limit["kind"] == "concurrency"
        ]
        steps: list[tuple[int, int]] = []
        for call in self.calls:
            if not call.refused_by:
                steps.append((call.arrived_ns, 1))
                if call.ended_ns is not None:
                    steps.append((call.ended_ns, -1))
            elif any(index in slots for index in call.refused_by):
                steps += [(call.arrived_ns, 1), (call.arrived_ns + 1, -1)]
        most = now = 0
        for _, step in sorted(steps):  # an end before an arrival of the same instant
            now += step
            most = max(most, now)
        return most

    @property
    def least_left(self) -> float:
        """The least that the first limit, a bucket, had left after a call: so many calls too many would not
        have been seen.
        """
        bucket = self.report["config"]["limits"][0]
        burst, rate = bucket["burst"], bucket["amount"] / SECOND
        level = least = float(burst if bucket.get("found") is None else bucket["found"])
        before_ns = self.log[0].arrived_ns if self.log else 0
        for call in self.log:
            level = min(burst, level + rate * (call.arrived_ns - before_ns))
            before_ns = call.arrived_ns
            if not call.refused_by:
                level -= 1
                least = min(least, level)
        return least

    @property
    def utilisation(self) -> float:
        """Ideal time over real time: what was accepted after the first call / what the first limit's rate
        allows from there to the last. A burst that was found at the start can lift it above 1.
        """
        return float(self.report["limits"][0]["utilisation"]["empty_start"] or 0)

    def late(self, transit_seconds: float) -> list[Call]:
        """Calls that reached the limiter later than `D` after their grant, which nobody can promise for."""
        return [call for call in self.calls if call.arrived_ns - call.granted_ns > transit_seconds * SECOND]

    @property
    def stall_seconds(self) -> float:
        """The server's longest of those that touched the load."""
        return max(
            (
                float(seconds)
                for ended_ns, seconds in self.report["stalls"]["kept"]
                if self.begin_ns <= ended_ns and ended_ns - seconds * SECOND <= self.end_ns
            ),
            default=0.0,
        )

    @property
    def errors(self) -> Counter[str]:
        """What clients were told, all together."""
        found: Counter[str] = Counter()
        for summary in self.summaries.values():
            found.update(summary["errors"])
        return found

    def recovery_seconds(self, since_ns: int, full: float, window_seconds: float = 1.0) -> float | None:
        """How long after `since_ns` full speed is back: the least t, in steps of 10 ms, such that the window
        that begins t later has 95 % of the work that `full` calls a second make. `None` if it never is.
        """
        window_ns = round(window_seconds * SECOND)
        for start_ns in range(since_ns, self.end_ns - window_ns + 1, SECOND // 100):
            if self.work(start_ns, start_ns + window_ns) >= 0.95 * full * window_seconds:
                return (start_ns - since_ns) / SECOND
        return None


def run(
    config: Mapping[str, Any],
    jobs: Sequence[Job],
    scratch: Path,
    *,
    faults: Sequence[Fault] = (),
    extra: Mapping[str, Mapping[str, str]] | None = None,
    stranger: bool = False,
) -> Outcome:
    """Run the jobs to their end, against a server of their own.

    Args:
        config: of the server: the fields of `tests.strict.rules.Config`.
        jobs: their `server` is filled in.
        scratch: a folder for files.
        faults: in the order of their instants.
        extra: more environment, by client.
        stranger: somebody else calls the server once, just before the start: from then on a bucket refills of
            which little is found.
    """
    seconds = max(job.seconds for job in jobs)
    with strict_server(dict(config), scratch, seconds + READY_SECONDS + GRACE_SECONDS + 60) as server:
        processes = {
            job.name: ClientProcess(replace(job, server=server.url), scratch, (extra or {}).get(job.name, {}))
            for job in jobs
        }
        with _All(list(processes.values())):
            deadline = time.monotonic() + READY_SECONDS
            for process in processes.values():
                process.wait_until_ready(deadline)
            begin_ns = time.monotonic_ns() + round(LEAD_SECONDS * SECOND)
            for process in processes.values():
                process.begin(begin_ns)
            if stranger:
                _call_once(server.url, begin_ns - round(STRANGER_SECONDS * SECOND))
            happened = _do(faults, Fleet(processes, server.url), begin_ns)
            deadline = (begin_ns / SECOND) + seconds + GRACE_SECONDS
            for process in processes.values():
                process.wait_for_the_end(deadline)
            exits = {name: process.process.poll() for name, process in processes.items()}
        report = server.finish()
        log = [Call(**entry) for entry in server.log()]
    calls = [call for call in log if call.client in processes]
    end_ns = begin_ns + round(seconds * SECOND)
    if calls and all(job.calls is not None for job in jobs):
        end_ns = min(end_ns, calls[-1].arrived_ns)
    return Outcome(
        begin_ns=begin_ns,
        end_ns=end_ns,
        report=report,
        log=log,
        calls=calls,
        summaries={
            name: process.summary for name, process in processes.items() if process.summary is not None
        },
        exits=exits,
        complaints={name: process.complaint for name, process in processes.items() if process.complaint},
        faults=happened,
    )


def _call_once(url: str, at_ns: int) -> None:
    """One call at that instant, on a connection that is open; and its answer."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        time.sleep(max(at_ns - time.monotonic_ns(), 0) / SECOND)
        connection.sendall(b"POST /v1/any HTTP/1.1\r\nx-client: stranger\r\ncontent-length: 0\r\n\r\n")
        connection.settimeout(10)
        connection.recv(1)


class _All:
    """Several processes: all start at once, and all end, whatever happens."""

    def __init__(self, processes: Sequence[ClientProcess]) -> None:
        self.processes = processes
        self.started: list[ClientProcess] = []

    def __enter__(self) -> None:
        try:
            for process in self.processes:
                process.__enter__()
                self.started.append(process)
        except BaseException:
            self._end()
            raise

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        for process in self.started:
            process.__exit__(None, None, None)


def _do(faults: Sequence[Fault], fleet: Fleet, begin_ns: int) -> list[Happened]:
    happened = []
    for fault in faults:
        time.sleep(max(begin_ns / SECOND + fault.at_seconds - time.monotonic(), 0))
        began_ns = time.monotonic_ns()
        fault.act(fleet)
        done_ns = time.monotonic_ns()
        ended_ns = done_ns + round(fault.lasts_seconds * SECOND)
        happened.append(Happened(fault.name, began_ns, done_ns, ended_ns))
    return happened
