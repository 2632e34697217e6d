"""`headgate run` over a long input: throughput, CPU time of a call, and memory that does not grow.

    python -m benchmarks.million [LINES ...]    # 10,000 100,000 1,000,000 if none are given

The server answers at once and writes nothing down; it runs in a process of its own.
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
    counts = [int(text.replace(",", "")) for text in sys.argv[1:]] or [10_000, 100_000, 1_000_000]
    with tempfile.TemporaryDirectory(prefix="headgate-") as scratch:
        for count in counts:
            print(measure(Path(scratch) / str(count), count), flush=True)


if __name__ == "__main__":
    main()
