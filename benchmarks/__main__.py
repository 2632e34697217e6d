"""Benchmarks, side by side with peers, in one run.

python -m benchmarks [NAME ...] [--quick] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from benchmarks import bulk, celery_ways, cost, overhead, run, shared, utilisation
from benchmarks.report import Table, replaced

BENCHMARKS: dict[str, tuple[str, Callable[[float], Table]]] = {
    "cost": ("CPU time of a permit where nobody waits", cost.run),
    "overhead": ("CPU time of a permit where many wait", overhead.run),
    "bulk": ("CPU time of a call by Runner, with nothing to wait for", bulk.run),
    "utilisation": ("the same calls through one strict server, by several clients", utilisation.run),
    "shared": ("permits of one key that many processes share", shared.run),
    "celery": ("tasks that keep to the limits of a service, in several ways", celery_ways.run),
    "run": ("`headgate run` against a server without limits", run.run),
}
QUICK = 0.15
PACKAGES = (
    "headgate",
    "aiolimiter",
    "aiometer",
    "limits",
    "pyrate-limiter",
    "rate-limited",
    "throttled-py",
    "aiohttp",
    "celery",
    "coredis",
    "kombu",
    "redis",
    "uvloop",
)


def versions() -> str:
    named = [f"{platform.python_implementation()} {platform.python_version()}"]
    for package in PACKAGES:
        try:
            named.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            named.append(f"no {package}")
    return f"{', '.join(named)}; {platform.system()}, {platform.machine()}, {os.cpu_count()} cores"


def main(arguments: Sequence[str]) -> int:
    listed = "\n".join(f"  {name:12} {what}" for name, (what, _) in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"Benchmarks, side by side with peers, in one run:\n\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; all of them if none is named")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that all work")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="also put the tables between their markers in this page"
    )
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in BENCHMARKS]:
        parser.error(f"no benchmark named {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    share = QUICK if options.quick else 1.0
    measured = f"{datetime.now(UTC):%Y-%m-%d}: {versions()}"
    print(measured)
    for name in options.names or BENCHMARKS:
        started = time.monotonic()
        table = BENCHMARKS[name][1](share)
        print(
            f"\n{name}: {table.title} ({time.monotonic() - started:.0f} s)\n\n{table.plain()}\n\n{table.note}"
        )
        sys.stdout.flush()
        if options.markdown:
            section = f"{table.title}.\n\n{table.markdown()}\n\n{table.note}\n\n*{measured}*"
            page = options.markdown.read_text("utf-8")
            options.markdown.write_text(replaced(page, name, section), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
