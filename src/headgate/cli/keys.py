"""``headgate keys``: what a store keeps."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from headgate import operate
from headgate.cli.operators import CONTEXT, at_store, columns, limits_text, standing_text, store_option
from headgate.operate import Snapshot
from headgate.progress.view import printable


@click.command(context_settings=CONTEXT)
@store_option
@click.option("--json", "as_json", is_flag=True, help="All that is known of each key, as a JSON array.")
def keys(url: str | None, as_json: bool) -> None:
    r"""List the keys of a store: one line for each, with its limits and who draws on it.

    A key is there from its first use until `headgate forget`. "open" says that the next call may go at once.

    \b
    Examples:
      headgate keys --store sqlite:///var/lib/limits.db
      HEADGATE_STORE=redis://localhost headgate keys
      headgate keys --json | jq '.[] | select(.paused) | .key'

    Exit status: 0, 2 wrong usage, 3 the store cannot be used.
    """
    with at_store("keys", url) as store:
        found = operate.overview(store)
    if as_json:
        click.echo(json.dumps([asdict(snapshot) for snapshot in found], indent=2))
    elif not found:
        click.echo("no keys: nobody has drawn on this store yet", err=True)
    else:
        rows = [HEAD, *map(_row, found)]
        if not any(snapshot.parked for snapshot in found):
            rows = [(*row[:PARKED], *row[PARKED + 1 :]) for row in rows]
        for line in columns(rows):
            click.echo(line)


HEAD = ("key", "granted", "refused", "in flight", "waiting", "parked", "clients", "now", "limits")
PARKED = HEAD.index("parked")


def _row(snapshot: Snapshot) -> tuple[str, ...]:
    mark = " (set by an operator)" if snapshot.set_by_operator else ""
    return (
        printable(snapshot.key),
        f"{snapshot.granted:,}",
        f"{snapshot.refused:,}",
        f"{snapshot.in_flight:,}",
        f"{snapshot.waiting:,}",
        f"{snapshot.parked:,}",
        f"{len(snapshot.clients):,}",
        standing_text(snapshot.blocked),
        limits_text(snapshot) + mark,
    )
