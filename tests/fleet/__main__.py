"""Runs fleets at length, and prints one table.

    python -m tests.fleet [NAME ...] [--store KIND ...] [--seconds N] [--rounds N] [--repeat N] [--json FILE]

Without names: three unequal processes, then every scenario, on every store that the package knows.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.fleet import stores
from tests.fleet.scenarios import SCENARIOS, Row, Second, run_scenario, share_out

UNEQUAL = "unequal"

COLUMNS: list[tuple[str, Callable[[Row], str]]] = [
    ("scenario", lambda row: row.scenario),
    ("store", lambda row: row.store),
    ("load", lambda row: row.load),
    ("seconds", lambda row: f"{row.seconds:.1f}"),
    ("accepted", lambda row: str(row.accepted)),
    ("refused", lambda row: f"{row.refused}" + (f" (+{row.pardoned})" if row.pardoned else "")),
    ("least left", lambda row: f"{row.least_left:.1f}"),
    ("in flight", lambda row: f"{row.most_in_flight}/{row.slots or '-'}"),
    ("before", lambda row: _percent(row.before)),
    ("during", lambda row: " ".join(_percent(part) for part in row.during) or "-"),
    ("after", lambda row: " ".join(_percent(part) for part in row.after) or "-"),
    ("back s", lambda row: " ".join(_seconds(back) for back in row.back_seconds) or "-"),
    ("stall ms", lambda row: f"{row.stall_ms:.0f}"),
    ("lag ms", lambda row: f"{row.lag_ms:.0f}"),
    ("starved", lambda row: _percent(row.starved)),
    ("late", lambda row: str(row.late)),
    ("oldest ms", lambda row: f"{row.oldest_ms:.0f}"),
    ("exits", lambda row: " ".join(str(code) for code in row.exits.values())),
    ("errors", lambda row: ", ".join(f"{count}× {kind}" for kind, count in row.errors.items())),
]


def _percent(part: float | None) -> str:
    return "-" if part is None else f"{100 * part:.1f} %"


def _seconds(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.2f}"


def table(rows: Sequence[Row]) -> str:
    cells = [[title for title, _ in COLUMNS], *([show(row) for _, show in COLUMNS] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def shares(row: Row, seconds: Sequence[Second]) -> str:
    """What each client got, second by second."""
    lines = [f"utilisation {_percent(row.outcome.utilisation)}"]
    lines += [
        f"second {second.number}: "
        + ", ".join(f"{name} {_percent(part)}" for name, part in second.shares.items())
        for second in seconds
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fleet", description=__doc__)
    names = [UNEQUAL, *SCENARIOS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--store", action="append", choices=stores.KINDS, help="these kinds alone")
    parser.add_argument("--seconds", type=float, help="of a load without faults")
    parser.add_argument("--rounds", type=int, default=1, help="how often the faults of a scenario happen")
    parser.add_argument("--repeat", type=int, default=1, help="how often to run each scenario")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(names):
        parser.error(f"expected names of {', '.join(names)}; got {', '.join(sorted(unknown))}")
    kinds: list[stores.Kind] = options.store or list(stores.KINDS)
    rows = []
    for name in options.names or names:
        for kind in kinds:
            if reason := why_not(name, kind):
                print(f"{name} on {kind}: {reason}", file=sys.stderr)
                continue
            for _ in range(options.repeat):
                print(f"{name} on {kind} ...", file=sys.stderr, flush=True)
                if name == UNEQUAL:
                    row, seconds = share_out(kind, seconds=options.seconds or 5)
                    print(f"{table([row])}\n{shares(row, seconds)}\n", flush=True)
                else:
                    quiet = {} if options.seconds is None else {"quiet_seconds": options.seconds}
                    row = run_scenario(name, kind, rounds=options.rounds, **quiet)
                    print(f"{table([row])}\n", flush=True)
                for client, summary in row.outcome.summaries.items():
                    for line in summary["logged"]:
                        print(f"{client}: {line}", flush=True)
                for client, complaint in row.outcome.complaints.items():
                    print(f"{client} wrote:\n{complaint}\n", flush=True)
                rows.append(row)
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps([row.facts() for row in rows], indent=1))
    return 0


def why_not(name: str, kind: stores.Kind) -> str | None:
    """Why a scenario cannot be run on a kind of store; `None` if it can."""
    if name != UNEQUAL and kind not in SCENARIOS[name].stores:
        return "not for this store"
    return stores.why_not(kind)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
