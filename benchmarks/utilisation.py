"""The same calls through the same strict server, by several clients in turn; the server's log is the judge.

What a limiter is worth shows in two figures at once: how much of what the server allows is used, and how many
calls are refused on the way.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import clients
from benchmarks.report import Table
from benchmarks.sending import Client, run_in_loop, send_all
from tests.strict.scenarios import HEADGATE, end, environment, same, strict_server, write_requests

CALLS = 1600
WORKERS = 128
"""Enough for 400 calls a second of 200 ms with some to spare: 64 could send 320 at most and met no limit."""
CUT_OFF_SECONDS = 30.0
SEED = 1


@dataclass(frozen=True)
class Scenario:
    """A server, and what each client is told of it.

    config: fields of the strict server's configuration.
    spec: the limit as headgate reads it.
    rates: (amount, seconds) as the other limiters are told: what the API's page would say and, for a bucket,
        its burst and the time in which that flows in, which is the best that can be made to fit.
    """

    name: str
    config: dict[str, Any]
    spec: str
    rates: tuple[tuple[int, float], ...]


BUCKET = {
    "limits": [{"meter": "requests", "kind": "bucket", "amount": 400, "burst": 40}],
    "latency_seconds": 0.2,
    "max_transit_seconds": 0.05,
}
SCENARIOS = (
    Scenario(
        "token bucket, 400/s, burst 40",
        config=BUCKET,
        spec="requests=400/s:burst=40",
        rates=((400, 1), (40, 0.1)),
    ),
    Scenario(
        "the same, refused calls count",
        config={**BUCKET, "count_refused": True},
        spec="requests=400/s:burst=40",
        rates=((400, 1), (40, 0.1)),
    ),
    Scenario(
        "sliding window, 200 in 1 s, jitter 60 ms",
        config={
            "limits": [{"meter": "requests", "kind": "sliding", "amount": 200}],
            "jitter_seconds": 0.06,
            "latency_seconds": 0.05,
            "max_transit_seconds": 0.065,
        },
        spec="requests=200/s:kind=sliding:transit=65ms",
        rates=((200, 1),),
    ),
    Scenario(
        "fixed window, 200 per 1 s of the clock",
        config={
            "limits": [{"meter": "requests", "kind": "fixed", "amount": 200}],
            "latency_seconds": 0.05,
            "max_transit_seconds": 0.1,
        },
        spec="requests=200/s:kind=fixed",
        rates=((200, 1),),
    ),
)


def callers(scenario: Scenario) -> Iterator[tuple[str, Callable[[str, Path], None]]]:
    """(name, what sends the rows of a file to a server)."""

    def command_line(url: str, rows: Path) -> None:
        command = [*HEADGATE, "run", str(rows), f"--base-url={url}", f"--limit={scenario.spec}"]
        with subprocess.Popen([*command, "--progress=none"], env=environment()) as process:
            try:
                process.wait(CUT_OFF_SECONDS)
            except subprocess.TimeoutExpired:
                end(process)

    def library(make: Callable[[], Client]) -> Callable[[str, Path], None]:
        async def send(url: str, rows: Path) -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(CUT_OFF_SECONDS):
                    await send_all(url, rows, WORKERS, make())

        return lambda url, rows: run_in_loop(send(url, rows))

    yield "headgate run", command_line
    yield "headgate, Limiter and aiohttp", library(partial(clients.headgate, scenario.spec))
    for amount, seconds in scenario.rates:
        told = f"({amount}, {seconds:g} s)"
        yield f"aiolimiter {told}", library(partial(clients.aiolimiter, amount, seconds))
        buffer_ms = 50 if seconds == 1 else 0  # the default, and none where it is fitted to the server
        yield (
            f"pyrate-limiter {told}{'' if buffer_ms else ', buffer_ms=0'}",
            library(partial(clients.pyrate, amount, round(1000 * seconds), buffer_ms)),
        )
    yield "no limiter, backoff alone", library(clients.backoff)


def judged(scenario: Scenario, calls: int, caller: Callable[[str, Path], None]) -> dict[str, Any]:
    """Run one caller against a server of its own; the server's report."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        scratch = Path(name)
        rows = scratch / "rows.jsonl"
        write_requests(rows, calls, same, SEED)
        config = {**scenario.config, "seed": SEED}
        with strict_server(config, scratch, CUT_OFF_SECONDS + 30) as server:
            caller(server.url, rows)
            return server.finish()


def row(scenario: str, caller: str, calls: int, report: dict[str, Any]) -> list[str]:
    used = report["limits"][0]["utilisation"]
    accepted, refused = report["accepted"], report["refused"]
    return [
        scenario,
        caller if accepted == calls else f"{caller} (cut off)",
        f"{accepted:,}",
        f"{refused:,}",
        f"{refused / accepted:.2f}" if accepted else "-",
        f"{report['span_seconds']:.1f}",
        *("-" if used[start] is None else f"{used[start]:.1%}" for start in ("empty_start", "full_start")),
        f"{1000 * report['stalls']['longest_seconds']:.0f}",
    ]


def run(share: float) -> Table:
    """share: of the full size, but at least half of it: windows need their time."""
    calls = round(CALLS * max(share, 0.5))
    rows = []
    for scenario in SCENARIOS:
        for name, caller in callers(scenario):
            print(f"  {scenario.name}: {name} …", file=sys.stderr, flush=True)
            rows.append(row(scenario.name, name, calls, judged(scenario, calls, caller)))
    return Table(
        name="utilisation",
        title="The same calls through the same strict server",
        columns=[
            "server",
            "client",
            "accepted",
            "refused",
            "per accepted",
            "seconds",
            "steady",
            "with start",
            "stall ms",
        ],
        rows=rows,
        texts=2,
        note=f"Clients other than `headgate run` are {WORKERS} workers on one aiohttp session; after a 429 "
        "those without headgate sleep for Retry-After and a random, doubling time. In brackets what it "
        "is told: (400, 1 s) is what the API's page would say, (40, 0.1 s) is fitted to its bucket. seconds: "
        "from the first to the last arrival. steady: accepted calls against the rate that the server gives, "
        "above 100 % for whoever also spends a full bucket or window at the start; for the fixed window, "
        "whole windows only. with start: the same against all that it could have given, the full start "
        "included. stall ms: how long the server itself stood still at most. cut off: not done after "
        f"{CUT_OFF_SECONDS:.0f} s.",
    )
