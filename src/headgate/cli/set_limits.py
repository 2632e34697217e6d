"""``headgate set``: limits and shares of a key, while it is in use."""

from __future__ import annotations

import re

import click

from headgate import operate
from headgate.cli.operators import CONTEXT, at_store, store_option
from headgate.core.crowd import CLASS_NAMES
from headgate.operate import LimitSnapshot, Snapshot
from headgate.progress.view import printable


def _shares(context: click.Context, parameter: click.Parameter, value: str | None) -> dict[str, int] | None:
    """``interactive=60,normal=30,bulk=10``."""
    if value is None:
        return None
    found = {name: int(share) for name, share in re.findall(r"(\w+)=(\d+)", value)}
    told = ",".join(f"{name}={share}" for name, share in found.items())
    if value != told or found.keys() != set(CLASS_NAMES) or sum(found.values()) != 100:
        raise click.BadParameter(f"expected interactive=N,normal=N,bulk=N, together 100; got {value!r}")
    return found


@click.command("set", context_settings=CONTEXT)
@click.argument("key")
@click.argument("limits", metavar="[LIMIT]...", nargs=-1)
@store_option
@click.option(
    "--shares",
    metavar="interactive=N,normal=N,bulk=N",
    callback=_shares,
    help="Share the limits between classes: percents that add up to 100.",
)
@click.option("--declared", is_flag=True, help="Go back to the limits that programs declare.")
def set_limits(
    key: str, limits: tuple[str, ...], url: str | None, shares: dict[str, int] | None, declared: bool
) -> None:
    r"""Change limits and shares of KEY while it is in use, for all programs that draw on it.

    A LIMIT goes by its name (see `headgate keys`); the others stay, and so do options that are not said:
    requests=300/min leaves the size of the bucket alone. What has been used stays used, and what is on its
    way stays held. A limit of another kind or period starts as if all of it had just been used.

    Programs need not be told. What they declare stands back until `--declared`, also for those that start
    later.

    \b
    Examples:
      headgate set openai requests=300/min
      headgate set openai requests=600/min:burst=60 tokens=90k/min:burst=9k
      headgate set openai requests=5/s:name=requests/min    another period under the old name
      headgate set openai concurrency=4 --shares interactive=60,normal=30,bulk=10
      headgate set openai --declared

    Exit status: 0, 1 no such key, 2 wrong usage or limits that do not match, 3 the store cannot be used.
    """
    if declared and limits:
        raise click.UsageError("--declared goes back to all the limits that programs declare: give no LIMIT")
    if not (declared or limits or shares):
        raise click.UsageError("set what? Give a LIMIT, such as requests=300/min, --shares or --declared")
    with at_store("set", url) as store:
        before = operate.snapshot(store, key)
        if limits:
            operate.set_limits(store, key, limits)
        if declared:
            operate.reset_limits(store, key)
        if shares:
            operate.set_shares(store, key, **shares)
        after = operate.snapshot(store, key)
    for line in _changes(before, after):
        click.echo(printable(line))


def _changes(before: Snapshot, after: Snapshot) -> list[str]:
    lines = [
        f"{was.text} → {now.text}{_begins(was, now)}"
        for was, now in zip(before.limits, after.limits, strict=False)
        if was.text != now.text
    ]
    if [each.share for each in before.classes] != [each.share for each in after.classes]:
        lines.append("shares: " + ", ".join(f"{each.name} {each.share} %" for each in after.classes))
    if not lines:
        lines = ["nothing changes: " + ", ".join(limit.text for limit in after.limits)]
    if after.set_by_operator:
        lines.append("programs declare " + ", ".join(after.declared))
    return lines


def _begins(was: LimitSnapshot, now: LimitSnapshot) -> str:
    if (was.kind, was.period_seconds) == (now.kind, now.period_seconds):
        return ""
    return " (of another kind or period: it starts as if all of it had just been used)"
