"""Seven runs of `headgate run` against the strict server, in real time, each judged by the server's log.

    python tests/strict/scenarios.py [--only N] [--seed S] [--calls N] [--json FILE] [--client COMMAND]

A scenario starts a server, writes a file of request lines, runs the command line on it and returns a row:
what was refused, how much of what the rule allowed was used, and how the machine behaved meanwhile, for no
plan can promise anything against a server that stands still longer than the declared transit. Everything is
a process of its own, ended by its own id, and nothing waits without a bound.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"
HEADGATE = (sys.executable, "-m", "headgate")
ENDPOINT = "/v1/chat/completions"

# ---- processes


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends one process: asks, then insists. A stopped one is woken first."""
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


@dataclass
class Server:
    """A strict server in its own process."""

    process: subprocess.Popen[bytes]
    port: int
    report_file: Path
    log_file: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def arrivals(self) -> int:
        with urllib.request.urlopen(f"{self.url}/health", timeout=10) as answer:
            return int(json.load(answer)["arrivals"])

    def finish(self, timeout_seconds: float = 120) -> dict[str, Any]:
        """Ends the server and returns its final report."""
        self.process.terminate()
        self.process.wait(timeout_seconds)
        report: dict[str, Any] = json.loads(self.report_file.read_text())
        return report

    def log(self) -> list[dict[str, Any]]:
        """All arrivals, as `server.StrictServer.arrivals` tells them; once it has finished."""
        arrivals: list[dict[str, Any]] = json.loads(self.log_file.read_text())
        return arrivals


@contextmanager
def strict_server(config: dict[str, Any], scratch: Path, max_seconds: float = 900) -> Iterator[Server]:
    """A running server with this configuration (the fields of `rules.Config`)."""
    port_file, report_file, log_file = scratch / "port", scratch / "report.json", scratch / "log.json"
    port_file.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / "server.py"), "--config", json.dumps(config)]
    command += [
        "--port-file",
        str(port_file),
        "--report",
        str(report_file),
        "--log",
        str(log_file),
        "--max-seconds",
        str(max_seconds),
    ]
    with subprocess.Popen(command) as process:
        try:
            deadline = time.monotonic() + 20
            while not port_file.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the strict server did not start, exit code {process.poll()}")
                time.sleep(0.01)
            yield Server(process, int(port_file.read_text()), report_file, log_file)
        finally:
            end(process)


def why_not(client: Sequence[str] = HEADGATE) -> str | None:
    """Why the command line cannot be run here; `None` if it can."""
    try:
        done = subprocess.run(
            [*client, "run", "--help"], env=environment(), capture_output=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        return f"`{shlex.join(client)} run --help` failed: {lines[-1] if lines else done.returncode}"
    return None


def environment() -> dict[str, str]:
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{path}" if path else str(SOURCE)}


# ---- requests


@dataclass(frozen=True)
class Prompt:
    words: int
    max_tokens: int


SMALL = Prompt(words=20, max_tokens=150)
LARGE = Prompt(words=200, max_tokens=1000)
WORDS = ("river", "gate", "canal", "lock", "weir", "sluice", "2nd", "1850", "flood", "mill", "bank", "spring")


def same(number: int) -> Prompt:
    return SMALL


def in_turn(number: int) -> Prompt:
    """Blocks of 200, so that now the requests are the tighter limit, now the tokens."""
    return LARGE if number // 200 % 2 else SMALL


def write_requests(path: Path, calls: int, prompt: Callable[[int], Prompt], seed: int) -> list[str]:
    """Writes request lines as batch APIs take them; returns their ids."""
    generator = random.Random(seed)
    ids = [f"call-{number}" for number in range(calls)]
    with path.open("w") as file:
        for number, custom_id in enumerate(ids):
            size = prompt(number)
            text = " ".join(generator.choices(WORDS, k=size.words))
            body = {
                "model": "strict-1",
                "messages": [{"role": "user", "content": text}],
                "max_tokens": size.max_tokens,
                "metadata": {"custom_id": custom_id},
            }
            line = {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body}
            file.write(json.dumps(line) + "\n")
    return ids


# ---- measurement


@dataclass(frozen=True)
class Stops:
    """Stop a process (SIGSTOP, SIGCONT): first so long after the first call, then every so long."""

    target: str  # client or server
    seconds: float
    every_seconds: float
    first_seconds: float


@dataclass
class Row:
    """What came of one scenario. Utilisations are defined in `verify.utilisation` and `ideal_seconds`."""

    scenario: str
    what: str
    calls: int
    accepted: int
    refused: int
    empty_start: float | None
    full_start: float | None
    bound: float  # the most that the plan can reach, by theory
    span_seconds: float
    client_seconds: float
    stall_ms: float  # the server's longest stall, deliberate stops not counted
    stops: int  # deliberate ones, of either side
    delay_ms: float  # the longest from receiving a call to deciding it: jitter and the server's own lateness
    transit_ms: float  # the D relied on
    lost: int  # calls that the server never accepted
    twice: int  # calls that it accepted more than once
    written: int  # lines in the output
    disagreements: int  # decisions that the verifier would have taken otherwise
    exit_code: int
    report: dict[str, Any] = field(repr=False)
    summary: dict[str, Any] | None = field(repr=False)
    complaint: str = ""  # the end of what the client wrote

    @property
    def machine_too_slow(self) -> bool:
        """The server itself stood still so long that calls were later than the declared transit."""
        jitter_ms = 1000 * float(self.report["config"]["jitter_seconds"])
        return self.stall_ms > self.transit_ms - jitter_ms or self.delay_ms > self.transit_ms


@dataclass(frozen=True)
class Bench:
    """How scenarios are run.

    client: the command that understands `run INPUT --base-url …`.
    extra: further arguments for it.
    calls: calls per scenario; `None` leads to each scenario's own number, times `share`.
    """

    client: tuple[str, ...] = HEADGATE
    extra: tuple[str, ...] = ()
    calls: int | None = None
    share: float = 1.0
    seed: int = 1

    def size(self, calls: int) -> int:
        return self.calls or max(1, round(calls * self.share))

    def measure(
        self,
        scenario: str,
        what: str,
        *,
        calls: int,
        limits: list[dict[str, Any]],
        specs: Sequence[str],
        transit_seconds: float,
        arguments: Sequence[str] = (),
        prompt: Callable[[int], Prompt] = same,
        stops: Stops | None = None,
        bound: Callable[[float, int], float] = lambda span, stops: 1.0,
        **server_options: Any,
    ) -> Row:
        """Runs one scenario.

        limits, server_options: the server's configuration.
        specs, arguments: what the command line is told.
        transit_seconds: the D relied on: told in `arguments`, or the default that the plan will take.
        bound: from the span and the number of stops made to the most that the plan can reach.
        """
        calls = self.size(calls)
        max_seconds = 30 + calls / 20
        told = [argument for spec in specs for argument in ("--limit", spec)]
        config = {
            "limits": limits,
            "seed": self.seed,
            "max_transit_seconds": transit_seconds,
            **server_options,
        }
        with tempfile.TemporaryDirectory(prefix="strict-") as name:
            scratch = Path(name)
            ids = write_requests(scratch / "input.jsonl", calls, prompt, self.seed)
            with strict_server(config, scratch, max_seconds + 60) as server:
                started = time.monotonic()
                exit_code, stops_made = self._run_client(
                    scratch, server, [*told, *arguments], stops, started + max_seconds
                )
                client_seconds = time.monotonic() - started
                report = server.finish()
            ledger = report.pop("ledger")
            figures = report["limits"][0]["utilisation"]
            if len(limits) > 1:  # they bind in turn: compare times
                figures = report["ideal_utilisation"]
            return Row(
                scenario=scenario,
                what=what,
                calls=calls,
                accepted=report["accepted"],
                refused=report["refused"],
                empty_start=figures["empty_start"],
                full_start=figures["full_start"],
                bound=round(bound(report["span_seconds"], stops_made), 4),
                span_seconds=report["span_seconds"],
                client_seconds=round(client_seconds, 2),
                stall_ms=round(1000 * report["stalls"]["longest_seconds"], 1),
                stops=stops_made,
                delay_ms=round(1000 * report["longest_arrival_delay_seconds"], 1),
                transit_ms=round(1000 * transit_seconds, 1),
                lost=sum(custom_id not in ledger for custom_id in ids),
                twice=sum(count > 1 for count in ledger.values()),
                written=_lines(scratch / "output.jsonl"),
                disagreements=report["disagreements"],
                exit_code=exit_code,
                report=report,
                summary=_read_summary(scratch / "summary.json"),
                complaint=(scratch / "stderr").read_text(errors="replace")[-2000:],
            )

    def _run_client(
        self, scratch: Path, server: Server, arguments: list[str], stops: Stops | None, deadline: float
    ) -> tuple[int, int]:
        """Runs the command line to its end or to the deadline; returns its exit code and the stops made."""
        command = [*self.client, "run", str(scratch / "input.jsonl"), "--base-url", server.url, *arguments]
        command += ["--output", str(scratch / "output.jsonl"), "--errors", str(scratch / "errors.jsonl")]
        command += ["--progress", "none", "--summary-json", str(scratch / "summary.json"), *self.extra]
        stops_made = 0
        with (
            (scratch / "stderr").open("wb") as stderr,
            subprocess.Popen(command, env=environment(), stdout=stderr, stderr=stderr) as client,
        ):
            try:
                if stops is not None:
                    target = client if stops.target == "client" else server.process
                    while not server.arrivals() and _running(client, time.monotonic() + 0.02):
                        if time.monotonic() > deadline:
                            break
                    next_stop = time.monotonic() + stops.first_seconds
                    while next_stop < deadline and _running(client, next_stop):
                        _stop(target, stops.seconds)
                        stops_made += 1
                        next_stop += stops.every_seconds
                _running(client, deadline)
            finally:
                end(client)
        return client.returncode, stops_made


def _running(process: subprocess.Popen[bytes], until: float) -> bool:
    """Waits until then, or until the process has ended; whether it still runs."""
    try:
        process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        return True
    return False


def _stop(process: subprocess.Popen[bytes], seconds: float) -> None:
    process.send_signal(signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        process.send_signal(signal.SIGCONT)


def _read_summary(path: Path) -> dict[str, Any] | None:
    """`None` also where the client was ended while it wrote."""
    try:
        summary: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return summary


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


# ---- scenarios

TENTH_OF_A_SECOND = [{"meter": "requests", "kind": "bucket", "amount": 400, "burst": 40}]
"""400 calls a second out of a bucket that holds what flows in in 100 ms."""

TENTH_OF_A_SECOND_SPECS = ["requests=400/s:burst=40"]
HALF_OF_IT = 0.05  # the plan's default D: min(1 s, B/2R)


def token_bucket(bench: Bench) -> Row:
    return bench.measure(
        "1",
        "bucket 400/s, burst 40, latency 200 ms",
        calls=4000,
        limits=TENTH_OF_A_SECOND,
        specs=TENTH_OF_A_SECOND_SPECS,
        transit_seconds=HALF_OF_IT,
        latency_seconds=0.2,
    )


def refused_calls_count(bench: Bench) -> Row:
    return bench.measure(
        "2",
        "the same, refused calls use up the limit",
        calls=4000,
        limits=TENTH_OF_A_SECOND,
        specs=TENTH_OF_A_SECOND_SPECS,
        transit_seconds=HALF_OF_IT,
        latency_seconds=0.2,
        count_refused=True,
    )


def fixed_window(bench: Bench) -> Row:
    return bench.measure(
        "3a",
        "fixed window, 200 per second of the clock",
        calls=3000,
        limits=[{"meter": "requests", "kind": "fixed", "amount": 200}],
        specs=["requests=200/s:kind=fixed"],
        transit_seconds=0.1,
        latency_seconds=0.05,
    )


def fixed_window_of_two_seconds(bench: Bench) -> Row:
    return bench.measure(
        "3b",
        "fixed window, 400 per 2 s of the clock",
        calls=4000,
        limits=[{"meter": "requests", "kind": "fixed", "amount": 400, "window_seconds": 2}],
        specs=["requests=400/2s:kind=fixed"],
        transit_seconds=0.2,
        latency_seconds=0.05,
    )


def sliding_window(bench: Bench) -> Row:
    return bench.measure(
        "4",
        "sliding window, 200 in 1 s, jitter 0-60 ms",
        calls=3000,
        limits=[{"meter": "requests", "kind": "sliding", "amount": 200}],
        specs=["requests=200/s:kind=sliding"],
        transit_seconds=0.065,
        arguments=["--max-transit", "0.065"],
        jitter_seconds=0.06,
        latency_seconds=0.05,
        bound=lambda span, stops: 1 / (1 + 0.065),
    )


def requests_and_tokens(bench: Bench) -> Row:
    return bench.measure(
        "5a",
        "requests and tokens in turn, charge=estimate",
        calls=4000,
        limits=[
            {"meter": "requests", "kind": "bucket", "amount": 400, "burst": 80},
            {"meter": "tokens", "kind": "bucket", "amount": 200_000, "burst": 100_000},
        ],
        specs=["requests=400/s:burst=80", "tokens=200k/s:burst=100k:charge=estimate"],
        transit_seconds=0.1,
        prompt=in_turn,
        latency_seconds=0.2,
    )


def requests_and_real_tokens(bench: Bench) -> Row:
    return bench.measure(
        "5b",
        "the same, charge=usage, burst of 2 s",
        calls=4000,
        limits=[
            {"meter": "requests", "kind": "bucket", "amount": 400, "burst": 80},
            {"meter": "tokens", "kind": "bucket", "amount": 100_000, "burst": 200_000},
        ],
        specs=["requests=400/s:burst=80", "tokens=100k/s:burst=200k:charge=usage"],
        transit_seconds=0.1,
        prompt=in_turn,
        latency_seconds=0.2,
        refund=True,
    )


def client_stalls(bench: Bench) -> Row:
    """A stop of 200 ms overflows a bucket of 100 ms: what the other 100 ms bring is lost to every client."""
    calls = 8000
    return bench.measure(
        "6",
        "bucket as 1, the client stops for 200 ms",
        calls=calls,
        limits=TENTH_OF_A_SECOND,
        specs=TENTH_OF_A_SECOND_SPECS,
        transit_seconds=HALF_OF_IT,
        latency_seconds=0.2,
        stops=Stops("client", 0.2, every_seconds=20, first_seconds=min(10, bench.size(calls) / 400 / 2)),
        bound=lambda span, stops: 1 - stops * 0.1 / span if span else 1.0,
    )


def server_stalls(bench: Bench) -> Row:
    return bench.measure(
        "7",
        "bucket as 1, the server stops for 60 ms every 0.7 s",
        calls=4000,
        limits=TENTH_OF_A_SECOND,
        specs=TENTH_OF_A_SECOND_SPECS,
        transit_seconds=HALF_OF_IT,
        latency_seconds=0.2,
        stops=Stops("server", 0.06, every_seconds=0.7, first_seconds=0.7),
    )


SCENARIOS: dict[str, Callable[[Bench], Row]] = {
    "1": token_bucket,
    "2": refused_calls_count,
    "3a": fixed_window,
    "3b": fixed_window_of_two_seconds,
    "4": sliding_window,
    "5a": requests_and_tokens,
    "5b": requests_and_real_tokens,
    "6": client_stalls,
    "7": server_stalls,
}

# ---- table

COLUMNS: list[tuple[str, Callable[[Row], str]]] = [
    ("", lambda row: row.scenario),
    ("scenario", lambda row: row.what),
    ("calls", lambda row: str(row.calls)),
    ("refused", lambda row: str(row.refused)),
    ("empty start", lambda row: _percent(row.empty_start)),
    ("full start", lambda row: _percent(row.full_start)),
    ("bound", lambda row: _percent(row.bound)),
    ("span s", lambda row: f"{row.span_seconds:.2f}"),
    ("client s", lambda row: f"{row.client_seconds:.2f}"),
    ("stall ms", lambda row: f"{row.stall_ms:.1f}"),
    ("delay ms", lambda row: f"{row.delay_ms:.1f}"),
    ("D ms", lambda row: f"{row.transit_ms:g}"),
    ("stops", lambda row: str(row.stops)),
    ("lost", lambda row: str(row.lost)),
    ("twice", lambda row: str(row.twice)),
    ("written", lambda row: str(row.written)),
    ("misjudged", lambda row: str(row.disagreements)),
    ("exit", lambda row: str(row.exit_code)),
]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def table(rows: Sequence[Row]) -> str:
    cells = [[title for title, _ in COLUMNS], *([show(row) for _, show in COLUMNS] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) if column < 2 else cell.rjust(width) for column, (cell, width) in pairs)
        for pairs in (list(enumerate(zip(line, widths, strict=True))) for line in cells)
    )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Run the scenarios and print one table.")
    parser.add_argument("--only", help="one scenario or its variants: 1, 3, 5b")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--calls", type=int, help="calls per scenario, instead of 10 to 25 seconds' worth")
    parser.add_argument("--json", type=Path, help="write the rows, reports and summaries to this file")
    parser.add_argument("--client", default=shlex.join(HEADGATE), help="the command to measure")
    parser.add_argument("--extra", default="", help="further arguments for it")
    options = parser.parse_args(arguments)
    client, extra = (tuple(shlex.split(text)) for text in (options.client, options.extra))
    bench = Bench(client, extra, calls=options.calls, seed=options.seed)
    if reason := why_not(client):
        print(reason, file=sys.stderr)
        return 2
    rows = []
    for name, scenario in SCENARIOS.items():
        if options.only is None or name.startswith(options.only):
            print(f"scenario {name} ...", file=sys.stderr, flush=True)
            rows.append(scenario(bench))
    print(table(rows))
    for row in rows:
        if row.exit_code:
            print(f"\n{row.scenario}: exit code {row.exit_code}\n{row.complaint}")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
