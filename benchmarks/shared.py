"""What a permit costs where many processes share one key: a crowd of them, and one alone.

Client processes take permits of one key and settle them as fast as they can, under limits that are out of
reach; what is left to measure is the way to the store and back. All subjects take turns on one private Redis,
which is emptied before each. What a client does is told in `shared_client`.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import monotonic, sleep
from typing import Any, NamedTuple, Self

from benchmarks.report import Table
from benchmarks.shared_client import MOST
from tests.servers.redis import RedisServer
from tests.strict.scenarios import end, environment

WARM_SECONDS = 0.7
SECONDS = 2.0
TAIL_SECONDS = 0.2
"""For so long clients go on after what is measured: the process that asks Redis may be late."""
ROUNDS = 5
KEPT = 3
"""Of the rounds of a subject those count in which the machine did least else."""
ANSWER_SECONDS = 30.0
"""How long to wait for a client to say that it is ready, or what it came to."""
SATURATED = 0.85
"""The part of a core, or of all cores, from which on it is what holds the others up."""

REFERENCE = "headgate, Redis"
ON_SQLITE = "headgate, SQLite"
SUBJECTS = {
    "redis-py, INCR, no limiter": "increment",
    REFERENCE: "headgate",
    "headgate, Redis, three limits": "headgate_three",
    ON_SQLITE: "headgate",
    "limits, moving window": "limits_moving",
    "limits, fixed window": "limits_fixed",
    "pyrate-limiter, RedisBucket": "pyrate_log",
    "pyrate-limiter, GCRA in Redis": "pyrate_state",
    "throttled-py, GCRA": "throttled_gcra",
    "throttled-py, token bucket": "throttled_bucket",
}
"""{name: what the client calls it}."""


class Crowd(NamedTuple):
    processes: int
    coroutines: int  # of each process
    share: float  # of the seconds that are measured

    def __str__(self) -> str:
        return f"{self.processes} × {self.coroutines}"


CROWDS = (Crowd(8, 64, 1.0), Crowd(1, 1, 0.6))


@dataclass(frozen=True)
class Found:
    """What one round came to.

    rate: permits a second of all processes.
    clients, redis, others: CPU seconds a second; of the clients, of Redis, of all else on this machine.
    trips: times that Redis read from a client, for each permit.
    commands: commands that Redis carried out, those that scripts gave included, for each permit.
    p50_ms, p99_ms: of the wait from asking to the call.
    """

    rate: float
    clients: float
    redis: float
    others: float
    trips: float
    commands: float
    p50_ms: float
    p99_ms: float

    def bound(self, crowd: Crowd) -> str:
        """What cannot give more."""
        if crowd.processes * crowd.coroutines == 1:
            return "latency"
        if self.redis >= SATURATED:
            return "Redis"
        if self.clients + self.redis + self.others >= SATURATED * (os.cpu_count() or 1):
            return "CPU of clients" if self.clients > self.redis else "CPU"
        return "waiting"


class Reading(NamedTuple):
    """What the machine and Redis say of themselves at one instant, in seconds and counts since they began."""

    instant: float
    busy: float
    redis: float
    trips: int
    commands: int

    @classmethod
    def at(cls, instant: float, server: RedisServer) -> Self:
        sleep(max(instant - monotonic(), 0))
        info = server.info()
        statistics = [value for name, value in info.items() if name.startswith("cmdstat_")]
        return cls(
            instant=int(info["server_time_usec"]) / 1e6,
            busy=busy_seconds(),
            redis=float(info["used_cpu_user"]) + float(info["used_cpu_sys"]),
            trips=int(info["total_reads_processed"]),
            commands=sum(int(value.partition("calls=")[2].partition(",")[0]) for value in statistics),
        )


def busy_seconds() -> float:
    """CPU seconds that this machine has spent on anything; 0 where it does not say."""
    try:
        line = Path("/proc/stat").read_text().partition("\n")[0]
    except OSError:
        return 0.0
    user, nice, system, _, _, interrupts, soft_interrupts, *_ = map(int, line.split()[1:])
    return (user + nice + system + interrupts + soft_interrupts) / os.sysconf("SC_CLK_TCK")


def in_turn(rounds: int, share: float, server: RedisServer) -> dict[tuple[Crowd, str], list[Found]]:
    found: dict[tuple[Crowd, str], list[Found]] = {(crowd, name): [] for crowd in CROWDS for name in SUBJECTS}
    for _ in range(rounds):
        for (crowd, name), results in found.items():
            results.append(measure(name, crowd, share, server))
    return {whose: sorted(all_of, key=lambda one: one.others)[:KEPT] for whose, all_of in found.items()}


def measure(name: str, crowd: Crowd, share: float, server: RedisServer) -> Found:
    """One round of one subject.

    Raises:
        RuntimeError: a client failed.
    """
    server.flush()
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        url = f"sqlite:///{scratch}/shared.db" if name == ON_SQLITE else server.url
        with clients(SUBJECTS[name], url, crowd) as processes:
            starts_at = monotonic() + WARM_SECONDS
            ends_at = starts_at + SECONDS * crowd.share * share
            for process in processes:
                tell(process, f"{starts_at} {ends_at} {ends_at + TAIL_SECONDS}")
            before, after = (Reading.at(instant, server) for instant in (starts_at, ends_at))
            return came_to([json.loads(said(process)) for process in processes], before, after)


def came_to(results: Sequence[Mapping[str, Any]], before: Reading, after: Reading) -> Found:
    rate = sum(one["permits"] / one["seconds"] for one in results)
    seconds = after.instant - before.instant
    served = rate * seconds
    spent = sum(one["cpu_seconds"] / one["seconds"] for one in results)
    redis = (after.redis - before.redis) / seconds
    waits: Counter[int] = Counter()
    for one in results:
        waits.update({int(wait): times for wait, times in one["waits_us"].items()})
    return Found(
        rate=rate,
        clients=spent,
        redis=redis,
        others=max((after.busy - before.busy) / seconds - spent - redis, 0),
        trips=(after.trips - before.trips) / served,
        commands=(after.commands - before.commands) / served,
        p50_ms=quantile(waits, 0.5) / 1000,
        p99_ms=quantile(waits, 0.99) / 1000,
    )


def quantile(counts: Mapping[int, int], part: float) -> int:
    """The smallest value that so great a part of all does not exceed."""
    left = part * sum(counts.values())
    for value, times in sorted(counts.items()):
        left -= times
        if left <= 0:
            return value
    raise ValueError("no values")


# ---- processes


@contextmanager
def clients(subject: str, url: str, crowd: Crowd) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that have said that they are ready; they are ended on leaving."""
    command = [sys.executable, "-m", "benchmarks.shared_client", subject, url, str(crowd.coroutines)]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(crowd.processes):
            client = subprocess.Popen(
                command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            started.append(client)
        for process in started:
            said(process)
        yield started
    finally:
        for process in started:
            end(process)
            process.communicate()


def tell(process: subprocess.Popen[bytes], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n".encode())
    process.stdin.flush()


def said(process: subprocess.Popen[bytes]) -> bytes:
    """The next line that it writes.

    Raises:
        RuntimeError: there is none.
    """
    assert process.stdout is not None
    heard, _, _ = select.select([process.stdout], [], [], ANSWER_SECONDS)
    line = process.stdout.readline() if heard else b""
    if not line:
        raise RuntimeError(f"no answer from {process.args!r}, exit code {process.poll()}")
    return line


# ---- the table


def row(crowd: Crowd, name: str, results: Sequence[Found], reference: Sequence[Found]) -> list[str]:
    def middle(of: Callable[[Found], float]) -> float:
        return median(of(one) for one in results)

    def ratio(of: Callable[[Found], float]) -> float:
        return middle(of) / median(of(one) for one in reference)

    on_redis = name != ON_SQLITE
    return [
        str(crowd),
        name,
        f"{middle(lambda one: one.rate):,.0f}",
        f"{ratio(lambda one: one.rate):.2f}",
        f"{middle(lambda one: one.p50_ms):.2f}",
        f"{middle(lambda one: one.p99_ms):.2f}",
        f"{middle(lambda one: one.clients / one.rate * 1e6):.1f}",
        f"{middle(lambda one: one.redis / one.rate * 1e6):.1f}" if on_redis else "-",
        f"{ratio(lambda one: (one.clients + one.redis) / one.rate):.2f}",
        f"{middle(lambda one: one.trips):.2f}" if on_redis else "-",
        f"{middle(lambda one: one.commands):.2f}" if on_redis else "-",
        f"{middle(lambda one: one.commands * one.rate):,.0f}" if on_redis else "-",
        f"{middle(lambda one: one.clients):.0%}",
        f"{middle(lambda one: one.redis):.0%}" if on_redis else "-",
        f"{middle(lambda one: one.others):.0%}",
        Counter(one.bound(crowd) for one in results).most_common(1)[0][0],
    ]


def run(share: float) -> Table:
    """share: of the seconds and rounds."""
    rounds = max(1, round(ROUNDS * share))
    with RedisServer() as server:
        found = in_turn(rounds, share, server)
        version = server.info()["redis_version"]
    return Table(
        name="shared",
        title="Permits a second of processes × coroutines that share one key of one store",
        columns=[
            "at once",
            "",
            "permits/s",
            "ratio",
            "p50 ms",
            "p99 ms",
            "client µs",
            "Redis µs",
            "ratio",
            "trips",
            "commands",
            "commands/s",
            "clients",
            "Redis",
            "others",
            "bound by",
        ],
        rows=[row(crowd, name, results, found[crowd, REFERENCE]) for (crowd, name), results in found.items()],
        texts=2,
        note=f"All limits are out of reach: {MOST:,} a second; three limits: that, more tokens than are "
        "wanted, some of which each call gives back, and 100,000 calls at once. headgate takes a permit and "
        "settles it; the others only acquire, for they have nothing to settle. Each coroutine lets others "
        "go first once while it has its permit. p50, p99: of the wait for a permit. client µs, Redis µs: "
        f"CPU time for each permit. ratio: to `{REFERENCE}`, of permits/s and of CPU time; the second "
        "depends less on what else the machine does. trips: reads from clients by Redis for each permit; "
        "what comes together counts once. commands: those that scripts give included. clients, Redis, "
        f"others: CPU spent, of one core; there are {os.cpu_count()}. bound by: latency, where one asks "
        f"after the other; Redis, if that spends {SATURATED:.0%} of a core; CPU, if all together spend as "
        f"much of all cores. Medians of those {min(KEPT, rounds)} of {rounds} rounds in which the machine "
        f"did least else. Redis {version} on a Unix socket, without persistence; uvloop.",
    )
