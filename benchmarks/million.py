"""Long inputs: throughput, CPU time of a call, and memory that does not grow.

    python -m benchmarks.million [--map] [LINES ...]    # 10,000 100,000 1,000,000 if none are given

By `headgate run` against a server that answers at once and writes nothing down, in a process of its own; or,
with --map, by `Runner.map` over a coroutine function that does nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.run.running import FAST, command, environment, plain_lines, results
from tests.run.servers import ledger_server

MIB = 1 << 20


class Measured(NamedTuple):
    """One run; ``peak_bytes`` is 0 where the system does not tell."""

    lines: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.lines:,} lines: {self.seconds:.1f} s, {self.lines / self.seconds:,.0f} per second, "
            f"{self.cpu_seconds / self.lines * 1e6:,.0f} µs of CPU a line, "
            f"peak {self.peak_bytes / MIB:.1f} MiB"
        )


def measure(folder: Path, lines: int, *options: str) -> Measured:
    """Run over so many lines. Raises AssertionError unless each has its result."""
    folder.mkdir(exist_ok=True)
    source = plain_lines(folder / "in.jsonl", lines)
    limit = options or ("--limit", FAST)
    with ledger_server(folder, ledger=Path(os.devnull)) as server:
        started = time.monotonic()
        process = subprocess.Popen(
            command(source, server.url, *limit),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(),
        )
        try:
            peak = 0
            while True:
                peak = max(peak, _peak_bytes(process.pid))
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                time.sleep(0.02)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
        seconds = time.monotonic() - started
    if process.returncode != 0:
        raise AssertionError(f"headgate run ended with {process.returncode}")
    found = set()
    with results(source).open("rb") as file:
        for line in file:
            found.add(line[:30])
    if len(found) != lines:
        raise AssertionError(f"expected {lines} results, got {len(found)}")
    return Measured(lines, seconds, usage.ru_utime + usage.ru_stime, peak)


MAP = """
import sys
from headgate import Runner

async def call(x):
    return x

runner = Runner(call, "requests=10000000/s:burst=10000000:start=full", max_concurrent=500, progress=False)
count = 0
for count, value in enumerate(runner.map(iter(range(int(sys.argv[1])))), 1):
    if value != count - 1:
        sys.exit(f"{value} in the place of {count - 1}")
sys.exit(count != int(sys.argv[1]))
"""


def measure_map(items: int) -> Measured:
    """Map over so many items. Raises AssertionError unless each has its result, in order."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", MAP, str(items)], stdin=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise AssertionError(f"it ended with {process.returncode}")
    seconds = time.monotonic() - started
    return Measured(items, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def _peak_bytes(pid: int) -> int:
    """The most memory that a process has had resident; what its parent had when it forked is not in it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text("ascii")
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    words = [word for word in sys.argv[1:] if word != "--map"]
    counts = [int(text.replace(",", "")) for text in words] or [10_000, 100_000, 1_000_000]
    if "--map" in sys.argv:
        for count in counts:
            print(measure_map(count), flush=True)
        return
    with tempfile.TemporaryDirectory(prefix="headgate-") as scratch:
        for count in counts:
            print(measure(Path(scratch) / str(count), count), flush=True)


if __name__ == "__main__":
    main()
