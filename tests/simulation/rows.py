"""Every pair of a server and a plan that is safe against it, with the utilisation that theory allows.

Servers allow ``N`` = 100 units in ``T`` = 10 s, or a bucket of as much; the plans are declared as that server
would be, or adapted to it by the condition of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from random import Random

from headgate.core.model import SECOND, Costs
from tests.core import servers
from tests.core.servers import Server
from tests.simulation.engine import WALL, Row

N = 100
T_SECONDS = 10.0
T = 10 * SECOND


def grid(rnd: Random) -> Sequence[Server]:
    return [servers.Grid(N, T, phase=rnd.randrange(T))]


def known_grid(error: int) -> Callable[[Random], Sequence[Server]]:
    return lambda rnd: [servers.Grid(N, T, phase=-WALL + rnd.choice((-error, 0, error)))]


def anchored(rnd: Random) -> Sequence[Server]:
    return [servers.Anchored(N, T)]


def log(rnd: Random) -> Sequence[Server]:
    return [servers.SlidingLog(N, T)]


def counter(rnd: Random) -> Sequence[Server]:
    return [servers.SlidingCounter(N, T, phase=rnd.randrange(T))]


def bucket(rnd: Random) -> Sequence[Server]:
    return [servers.Bucket(N, T, 30)]


def ticks(rnd: Random) -> Sequence[Server]:
    return [servers.TickedBucket(10, SECOND, 30, phase=rnd.randrange(SECOND))]


def finest(rnd: Random) -> Sequence[Server]:
    return [servers.SlidingLog(1, T // N)]


def calendar(unit: str, zone: str, amount: int) -> Callable[[Random], Sequence[Server]]:
    return lambda rnd: [
        servers.Calendar(amount, unit, zone, epoch=WALL, skew=rnd.choice((-SECOND, 0, SECOND)))
    ]


def begun(server: Server, units: int) -> Callable[[Random], Sequence[Server]]:
    """A server of which somebody has used ``units`` just before."""

    def build(rnd: Random) -> Sequence[Server]:
        used = deepcopy(server)
        used.charge(-1, units)
        return [used]

    return build


def held(period: float, part: float = 1.0) -> Callable[[float], float]:
    """A log whose entries stay for a period and the hold, rounded up to slots."""
    return lambda hold: part * period / (period + hold + period / 256)


def part(value: float) -> Callable[[float], float]:
    return lambda hold: value


def paced(rate: float) -> Callable[[float], float]:
    """One at a time, each a gap after the answer to the last; ``rate`` as a part of the server's."""
    gap = T_SECONDS / N / rate
    return lambda hold: rate * gap / (gap + hold)


SLIDING = "requests=100/10s:kind=sliding:start=full"
ANCHORED = "requests=100/10s:kind=anchored:start=full"
SLOW = "requests=100/10s:kind=fixed:transit=10s"
HALF = "requests=50/10s:kind=sliding:start=full"
QUARTER = "requests=25/10s:kind=fixed:start=full"
SMALL = "requests=95/10s:burst=5:start=full"
UNKNOWN = "requests=100/10s"
PACED = "requests=99/10s:burst=1:start=full"
PER_SECOND = N / T_SECONDS


def _row(
    server: str,
    build: Callable[[Random], Sequence[Server]],
    client: str,
    limit: str,
    bound: Callable[[float], float],
) -> Row:
    return Row(server, client, (limit,), build, bound, PER_SECOND)


def _window(server: str, build: Callable[[Random], Sequence[Server]]) -> list[Row]:
    """What is safe against each window of which nobody knows the phase."""
    return [
        _row(server, build, "fixed, N/3", "requests=33/10s:kind=fixed:start=full", part(0.33)),
        _row(server, build, "sliding", SLIDING, held(T_SECONDS)),
        _row(server, build, "anchored", ANCHORED, held(T_SECONDS)),
        _row(server, build, "bucket, B' + R'T <= N", SMALL, part(0.95)),
        _row(server, build, "unknown", UNKNOWN, part(0.95)),
        _row(server, build, "pacing", PACED, paced(0.99)),
    ]


def _begun(
    name: str, server: Server, client: str, options: str, bound: Callable[[float], float]
) -> list[Row]:
    """Servers that are used up, or nearly, when we begin, and a caller who has been told."""
    return [
        Row(
            f"{name}, {units} used", f"{client}, start={start}",
            (f"requests=100/10s:{options}:start={start}",), begun(server, units), bound, PER_SECOND,
            calls=3_000,
        )
        for used, start in ((N, "empty"), (60, "used-60"))
        for units in (min(used, server.stated_limit),)
    ]  # fmt: skip


def tokens(most: int) -> Callable[[Random], Costs]:
    return lambda rnd: (rnd.randint(1, most),)


ROWS: tuple[Row, ...] = (
    *_window("grid, phase unknown", grid),
    *_window("anchored", anchored),
    *_window("sliding log", log),
    _row("grid ± 5 ms", known_grid(5_000), "fixed", "requests=100/10s:kind=fixed:start=empty", part(1.0)),
    _row(
        "grid ± 500 ms", known_grid(500_000), "fixed",
        "requests=100/10s:kind=fixed:error=500ms:start=empty",
        part(1.0),
    ),
    _row("grid ± 5 ms", known_grid(5_000), "fixed, D = T", SLOW, part(0.5)),
    Row(
        "calendar hour", "calendar", ("requests=200/h:kind=calendar:zone=Asia/Kolkata",),
        calendar("hour", "Asia/Kolkata", 200), part(1.0), 200 / 3600, skip_seconds=7200,
    ),
    Row(
        "calendar day", "calendar", ("requests=100/day:kind=calendar:zone=America/Los_Angeles",),
        calendar("day", "America/Los_Angeles", 100), part(1.0), 100 / 86400, skip_seconds=2 * 86400,
    ),
    Row(
        "calendar month", "calendar", ("requests=300/month:kind=calendar:zone=Europe/Berlin",),
        calendar("month", "Europe/Berlin", 300), part(0.95), 300 / 30.4 / 86400, skip_seconds=35 * 86400,
        calls=9_000,
    ),
    _row("sliding counter", counter, "fixed, N/4", QUARTER, part(0.25)),
    _row("sliding counter", counter, "sliding, N/2", HALF, held(10, 0.5)),
    _row("sliding counter", counter, "bucket, B' + R'T <= N", SMALL, part(0.95)),
    _row("sliding counter", counter, "unknown", UNKNOWN, part(0.95)),
    _row("sliding counter", counter, "pacing", PACED, paced(0.99)),
    _row("bucket", bucket, "fixed, N <= B/3", "requests=10/s:kind=fixed:start=full", part(1.0)),
    _row("bucket", bucket, "sliding, N <= B", "requests=20/2s:kind=sliding:start=full", held(2)),
    _row("bucket", bucket, "bucket", "requests=100/10s:burst=30", part(1.0)),
    _row("bucket", bucket, "bucket, D = 2 s", "requests=100/10s:burst=30:transit=2s", part(1.0)),
    _row("bucket", bucket, "unknown", UNKNOWN, part(0.95)),
    _row("bucket", bucket, "pacing", "requests=100/10s:burst=1:start=full", paced(1.0)),
    _row("bucket in ticks", ticks, "sliding, B - q", "requests=10/s:kind=sliding:start=full", held(1)),
    _row("bucket in ticks", ticks, "bucket, B - q", "requests=10/s:burst=20:start=full", part(1.0)),
    _row("bucket in ticks", ticks, "unknown", UNKNOWN, part(0.95)),
    _row("bucket in ticks", ticks, "pacing", "requests=100/10s:burst=1:start=full", paced(1.0)),
    _row("1 per T/N", finest, "pacing", "requests=1/100ms:burst=1:start=full", paced(1.0)),
    *_begun("bucket", servers.Bucket(N, T, 30), "bucket", "burst=30", part(1.0)),
    *_begun("sliding log", servers.SlidingLog(N, T), "sliding", "kind=sliding", held(10)),
    *_begun("sliding log", servers.SlidingLog(N, T), "unknown", "kind=unknown", part(0.95)),
    *_begun("anchored", servers.Anchored(N, T), "anchored", "kind=anchored", held(10)),
    *_begun("sliding counter", servers.SlidingCounter(N, T), "unknown", "kind=unknown", part(0.95)),
    *_begun("grid", servers.Grid(N, T, phase=-WALL), "fixed", "kind=fixed", part(1.0)),
    Row(
        "concurrency", "concurrency", ("concurrency=50",), lambda _: [servers.Slots(50)], part(1.0),
        50 / 3.5, longest_service=6.0,
    ),
    Row(
        "bucket, refunds", "bucket, charge=usage", ("tokens=1000/s:burst=4000:charge=usage",),
        lambda _: [servers.Bucket(1000, SECOND, 4000)], part(1.0), 1000, tokens(100), longest_service=1.0,
    ),
    Row(
        "bucket, at the end", "bucket, when=completion",
        ("tokens=1000/s:burst=4000:charge=usage:when=completion",),
        lambda _: [servers.Bucket(1000, SECOND, 4000)], part(1.0), 1000, tokens(100), longest_service=1.0,
    ),
    Row(
        "sliding log, refunds", "sliding, charge=usage",
        ("tokens=1000/10s:kind=sliding:charge=usage:start=full",),
        lambda _: [servers.SlidingLog(1000, T)], lambda hold: 10 / (10 + 2 * hold + 10 / 256), 100,
        tokens(20), longest_service=1.0,
    ),
    Row(
        "grid, refunds", "fixed, charge=usage", ("tokens=1000/10s:kind=fixed:charge=usage",),
        lambda rnd: [servers.Grid(1000, T, phase=-WALL)], part(0.97), 100, tokens(20), longest_service=1.0,
    ),
    Row(
        "sliding log, tokens", "sliding", ("tokens=1000/10s:kind=sliding:start=full",),
        lambda _: [servers.SlidingLog(1000, T)], held(10), 100, tokens(20),
    ),
    Row(
        "counter, tokens", "unknown", ("tokens=1000/10s",),
        lambda rnd: [servers.SlidingCounter(1000, T, phase=rnd.randrange(T))], part(0.95), 100, tokens(20),
    ),
    Row(
        "several", "several",
        (
            "requests=10/s:burst=20", "requests=590/min:kind=sliding", "tokens=50/s:kind=fixed",
            "requests=1M/month:kind=calendar", "concurrency=60",
        ),
        lambda rnd: [
            servers.Bucket(10, SECOND, 20), servers.SlidingLog(590, 60 * SECOND),
            servers.Grid(50, SECOND, phase=-WALL), servers.Calendar(10**6, "month", "UTC", epoch=WALL),
            servers.Slots(60),
        ],
        held(60), 590 / 60, lambda rnd: (1, 1, rnd.randint(1, 5), 1, 1), skip_seconds=120,
    ),
)  # fmt: skip
