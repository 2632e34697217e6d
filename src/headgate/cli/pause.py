"""``headgate pause``: nothing goes on a key."""

from __future__ import annotations

import click

from headgate import operate
from headgate.cli.operators import CONTEXT, at_store, duration, store_option
from headgate.core.durations import seconds_text
from headgate.progress.view import printable


@click.command(context_settings=CONTEXT)
@click.argument("key")
@store_option
@click.option(
    "--for", "seconds", metavar="TIME", callback=duration, help="How long: 30s, 10min, 1h. [until resumed]"
)
def pause(key: str, url: str | None, seconds: float | None) -> None:
    r"""Let nothing go on KEY, for all programs that draw on it.

    Calls in flight go on and are settled; whoever asks for a permit waits, within its max_wait. A pause for a
    time ends by itself. A later pause takes the place of an earlier one.

    \b
    Examples:
      headgate pause openai                 until `headgate resume openai`
      headgate pause openai --for 10min

    Exit status: 0, 1 no such key, 2 wrong usage, 3 the store cannot be used.
    """
    with at_store("pause", url) as store:
        operate.pause(store, key, seconds)
    until = "until it is resumed" if seconds is None else f"for {seconds_text(seconds)}"
    click.echo(f"{printable(key)}: paused {until}")
