"""``headgate top``: a key, or all keys, watched live."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from headgate import operate
from headgate.cli.operators import CONTEXT, at_store, safe, shown, store_option
from headgate.errors import NoSuchKey, StoreError
from headgate.stores.base import Store

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from headgate.cli.screen import Look

MOST_LOOKING = 0.25
"""At most this part of the time goes into looking: where there are many keys, less often."""


@click.command(context_settings=CONTEXT)
@click.argument("key", required=False)
@store_option
@click.option("--once", is_flag=True, help="Show it once and end.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each look, instead of a picture.")
@click.option(
    "--every",
    type=click.FloatRange(0.05, 3600),
    default=0.5,
    show_default=True,
    metavar="SECONDS",
    help="Time between two looks.",
)
def top(key: str | None, url: str | None, once: bool, as_json: bool, every: float) -> None:
    r"""Watch KEY live, for the whole fleet that draws on it; without KEY, all keys, the busiest first.

    It shows what the store knows: the rate of each limit in the last five seconds, who waits in which class,
    which processes hold what, why nothing goes if nothing does, and the last refusals. Looking changes
    nothing. Ctrl-C ends it.

    "in use" is the part of a limit's rate, or of the units of a window or the slots, that is used now. "full"
    is no alarm: a limit that is used well is full nearly always. Rates need two looks, so --once takes as
    long as lies between them.

    \b
    Examples:
      headgate top openai --store sqlite:///limits.db
      headgate top openai --once
      headgate top openai --once --json | jq .rates
      headgate top

    Exit status: 0, 1 no such key, 2 wrong usage, 3 the store cannot be used.
    """
    with at_store("top", url) as store, suppress(KeyboardInterrupt):
        view = _View(store, key, url or "")
        if as_json:
            view.print_json(every, once=once)
        else:
            view.show(every, once=once)


class _View:
    """One key or all of them, as they are looked at again and again."""

    def __init__(self, store: Store, key: str | None, url: str) -> None:
        from headgate.cli.screen import Watch

        self._store = store
        self._key = key
        self._url = url
        self._watch = Watch()

    def look(self) -> list[Look]:
        """Raises NoSuchKey, StoreError."""
        if self._key is not None:
            return [self._watch.add(operate.snapshot(self._store, self._key))]
        return [self._watch.add(snapshot) for snapshot in operate.overview(self._store)]

    def print_json(self, every: float, *, once: bool) -> None:
        """A line for each look, from the second on."""
        self.look()
        while True:
            time.sleep(every)
            found = [
                {**asdict(look.snapshot), "rates": look.rates, "calls_per_second": look.calls}
                for look in self.look()
            ]
            told: Any = found if self._key is None else found[0]
            click.echo(json.dumps(told))
            if once:
                return

    def show(self, every: float, *, once: bool) -> None:
        """Draw it: live in a terminal, else once."""
        from rich.console import Console

        looks = self.look()
        console = Console()
        if once or not console.is_terminal:
            time.sleep(every)
            with console.capture() as captured:
                for part in self._drawn(self.look(), console.width, 1 << 20):
                    console.print(part)
            for line in captured.get().splitlines():
                click.echo(line.rstrip())
        else:
            self._live(console, looks, every)

    def _drawn(self, looks: list[Look], width: int, height: int) -> list[Text | Table]:
        from headgate.cli.screen import key_screen, keys_screen

        place = shown(self._url)
        if self._key is None:
            return keys_screen(looks, place, width=width, height=height)
        return key_screen(looks[0], place, width=width, height=height)

    def _live(self, console: Console, looks: list[Look], every: float) -> None:
        from rich.console import Group
        from rich.live import Live
        from rich.text import Text

        trouble: list[Text] = []
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                parts = self._drawn(looks, console.width, console.height - 1 - len(trouble))
                live.update(Group(*parts, *trouble), refresh=True)
                began = time.monotonic()
                time.sleep(every)
                try:
                    looks, trouble = self.look(), []
                except (NoSuchKey, StoreError) as error:  # it may come back: the last look stays meanwhile
                    line = Text(safe(str(error), self._url), "bold red")
                    line.truncate(console.width, overflow="ellipsis")
                    trouble = [line]
                took = time.monotonic() - began - every
                time.sleep(max(took / MOST_LOOKING - took - every, 0.0))
