"""``headgate resume``: calls go again."""

from __future__ import annotations

import click

from headgate import operate
from headgate.cli.operators import CONTEXT, at_store, store_option
from headgate.progress.view import printable


@click.command(context_settings=CONTEXT)
@click.argument("key")
@store_option
def resume(key: str, url: str | None) -> None:
    r"""Let calls go again on KEY. Those who wait go at once, as far as the limits let them.

    \b
    Example:
      headgate resume openai

    Exit status: 0, also if it was not paused; 1 no such key, 2 wrong usage, 3 the store cannot be used.
    """
    with at_store("resume", url) as store:
        was_paused = operate.resume(store, key)
    click.echo(f"{printable(key)}: {'resumed' if was_paused else 'was not paused'}")
