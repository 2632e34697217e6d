"""`headgate run` against a server that answers at once, beside a bare aiohttp loop: the cost of a call.

Each client is a process of its own, so its CPU time and memory are all its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.report import Table
from tests.strict.scenarios import HEADGATE, end, environment, same, write_requests

ROWS = 20_000
CONNECTIONS = 64
ROUNDS = 2
LIMIT = "requests=100k/s:burst=100k:start=full"  # binds nobody
MOST_SECONDS = 60.0
BARE = "floor: bare aiohttp"


class Found(NamedTuple):
    seconds: float
    cpu_seconds: float
    peak_mib: float | None  # None where the system does not tell


@contextmanager
def fast_server(scratch: Path) -> Iterator[str]:
    """The URL of a running server."""
    port_file = scratch / "port"
    with subprocess.Popen([sys.executable, "-m", "benchmarks.server", str(port_file)]) as process:
        try:
            deadline = time.monotonic() + 20
            while not port_file.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the server did not start, exit code {process.poll()}")
                time.sleep(0.01)
            yield f"http://127.0.0.1:{port_file.read_text()}"
        finally:
            end(process)


def peak_mib(process: int) -> float | None:
    """The most memory that a living process has had.

    From /proc, for what `wait4` tells starts with the memory of the process that started it.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return None
    _, found, rest = status.partition("VmHWM:")
    return int(rest.split()[0]) / 1024 if found else None


def measured(command: list[str]) -> Found:
    """Run a command to its end.

    Raises:
        RuntimeError: it failed, or took too long.
    """
    started = time.monotonic()
    process = subprocess.Popen(command, env=environment())
    peak = None
    while True:
        peak = peak_mib(process.pid) or peak
        found, status, usage = os.wait4(process.pid, os.WNOHANG)
        seconds = time.monotonic() - started
        if found:
            process.returncode = os.waitstatus_to_exitcode(status)
            break
        if seconds > MOST_SECONDS:
            end(process)
            raise RuntimeError(f"not done after {MOST_SECONDS:.0f} s: {command}")
        time.sleep(0.02)
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {command}")
    return Found(seconds, usage.ru_utime + usage.ru_stime, peak)


def headgate(rows: Path, url: str, *arguments: str) -> list[str]:
    command = [*HEADGATE, "run", str(rows), "--base-url", url, "--fresh", "--progress=none"]
    return [*command, f"--concurrency={CONNECTIONS}", *arguments]


def run(share: float) -> Table:
    """share: of the full size."""
    count = round(ROWS * share)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch, fast_server(Path(scratch)) as url:
        rows = Path(scratch) / "rows.jsonl"
        write_requests(rows, count, same, seed=1)
        commands = {
            BARE: [sys.executable, "-m", "benchmarks.bare", str(rows), url, str(CONNECTIONS)],
            "headgate run, no limit": headgate(rows, url),
            f"headgate run, {LIMIT}": headgate(rows, url, "--limit", LIMIT),
        }
        found: dict[str, list[Found]] = {name: [] for name in commands}
        for _ in range(ROUNDS):
            for name, command in commands.items():
                found[name].append(measured(command))
    floor = median(one.cpu_seconds for one in found[BARE])
    lines = []
    for name, results in found.items():
        cpu = [one.cpu_seconds for one in results]
        peaks = [one.peak_mib for one in results if one.peak_mib is not None]
        lines.append(
            [
                name,
                f"{count / min(one.seconds for one in results):,.0f}",
                f"{1000 * min(cpu) / count:.3f}",
                f"{1000 * median(cpu) / count:.3f}",
                f"{median(cpu) / floor:.2f}",
                f"{max(peaks):.0f}" if peaks else "-",
            ]
        )
    return Table(
        name="run",
        title=f"{count:,} calls over {CONNECTIONS} connections to a server that answers at once",
        columns=["client", "requests/s", "best CPU ms", "median CPU ms", "ratio", "peak MiB"],
        rows=lines,
        texts=1,
        note="From the start of the process to its end. CPU ms: of the client, per call. ratio: of median "
        "CPU time to the floor, which reads rows and answers, but keeps no result, no checkpoint, no limit. "
        "peak: resident memory.",
    )
