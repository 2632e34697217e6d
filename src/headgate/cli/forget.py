"""``headgate forget``: a key starts anew."""

from __future__ import annotations

import sys

import click

from headgate import operate
from headgate.cli.operators import CONTEXT, at_store, store_option
from headgate.operate import Snapshot
from headgate.progress.view import printable


@click.command(context_settings=CONTEXT)
@click.argument("key")
@store_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def forget(key: str, url: str | None, yes: bool) -> None:
    r"""Start KEY anew, as at its first use: counts, debts, refusals, a pause, set limits and shares are gone.

    For a key that is not used any more, and after tests. The server does not forget: if it counts what went
    out before, a limit that starts full may be exceeded. What programs still hold, such as slots, stays
    counted until they settle it. A key in use comes back with its next call.

    It asks first, in a terminal.

    \b
    Examples:
      headgate forget old-key
      headgate forget old-key --yes

    Exit status: 0, also if you said no; 1 no such key, 2 wrong usage, 3 the store cannot be used.
    """
    with at_store("forget", url) as store:
        before = operate.snapshot(store, key)
        if not yes and sys.stdin.isatty() and not click.confirm(_question(before), err=True):
            click.echo(f"{printable(key)}: left as it is")
            return
        gone = operate.forget(store, key)
        held = "" if gone else _held(operate.snapshot(store, key))
    click.echo(f"{printable(key)}: {'forgotten' if gone else f'starts anew; {held} stays counted'}")


def _question(snapshot: Snapshot) -> str:
    text = f"Forget {printable(snapshot.key)}, with {snapshot.granted:,} calls granted"
    if snapshot.in_flight or snapshot.waiting:
        text += f" ({snapshot.in_flight:,} in flight and {snapshot.waiting:,} waiting; they go on)"
    return f"{text}?"


def _held(snapshot: Snapshot) -> str:
    clients = len(snapshot.clients)
    return f"what {clients} client{'s' if clients != 1 else ''} hold{'s' if clients == 1 else ''}"
