"""What the commands for operators share: which store, what its errors mean, and words for people.

A password in a store's URL appears in nothing that is printed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

import click

from headgate.core.durations import go_duration_us, seconds_text
from headgate.core.model import SECOND
from headgate.errors import ConfigurationError, NoSuchKey, StoreError
from headgate.operate import Blocked, Snapshot
from headgate.progress.view import printable
from headgate.stores.base import Store, open_store

NO_SUCH_KEY, USAGE, STORE_FAILED = 1, 2, 3
"""Exit statuses."""

LEAST_SECRET = 4
"""Anything shorter keeps no secret, and hiding it would spoil the text around it."""

F = TypeVar("F", bound=Callable[..., Any])

CONTEXT: Final = {"help_option_names": ["-h", "--help"]}

store_option: Callable[[F], F] = click.option(
    "--store",
    "url",
    metavar="URL",
    envvar="HEADGATE_STORE",
    show_envvar=True,
    help="The store: sqlite:///FILE or redis://HOST.",
)


@contextmanager
def at_store(command: str, url: str | None) -> Iterator[Store]:
    """The store at a URL; what goes wrong with it is told in a line and ends the command."""
    try:
        if not url:
            raise ConfigurationError("which store? Give --store URL, or set HEADGATE_STORE")
        yield _open(url)
    except NoSuchKey as error:
        _end(command, url, error, NO_SUCH_KEY)
    except ConfigurationError as error:
        _end(command, url, error, USAGE)
    except StoreError as error:
        _end(command, url, error, STORE_FAILED)


def _open(url: str) -> Store:
    try:
        scheme = urlsplit(url).scheme or url
    except ValueError as error:
        raise ConfigurationError(f"expected the URL of a store, such as redis://localhost; {error}") from None
    if scheme == "memory":
        raise ConfigurationError(
            "memory:// is inside a process and ends with it, so nobody else can see it. Programs that name a "
            "shared store can be operated: Limiter(…, store='sqlite:///limits.db'), or redis://…"
        )
    if scheme == "sqlite":
        from headgate.stores.sqlite import path_of

        path = path_of(url)
        if not path.exists():  # opening it would make it
            raise ConfigurationError(f"there is no file {path}: nobody has used that store yet")
    return open_store(url)


def _end(command: str, url: str | None, error: Exception, status: int) -> None:
    click.echo(f"headgate {command}: {safe(str(error), url)}", err=True)
    sys.exit(status)


def safe(text: str, url: str | None) -> str:
    """A text for the terminal: without the password of a URL, and without what could steer it."""
    text = re.sub(r"://[^/\s'\"]*@", "://…@", text)
    for secret in _secrets(url or ""):
        text = text.replace(secret, "…")
    return printable(text)


def _secrets(url: str) -> list[str]:
    """A URL's password as it stands there and as it is meant, and what stands behind its question mark."""
    place, _, query = url.partition("?")
    password = place.partition("://")[2].rpartition("@")[0].partition(":")[2]
    found = {password, unquote(password), query, unquote(query)}
    return sorted((secret for secret in found if len(secret) >= LEAST_SECRET), key=len, reverse=True)


def shown(url: str) -> str:
    """A URL without user, password and options."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return printable(f"{parts.scheme}://{host}{parts.path}")


# Words


def standing_text(blocked: Blocked | None) -> str:
    """Why whoever is next has to wait; ``open`` if it need not."""
    if blocked is None:
        return "open"
    if blocked.why == "paused":
        return "paused" if blocked.seconds is None else f"paused, {length_text(blocked.seconds)} left"
    opens = "when a call ends" if blocked.seconds is None else f"in {length_text(blocked.seconds)}"
    limit = printable(blocked.limit)
    if blocked.why == "probing":
        return f"{limit} refused, a probe is on its way"
    if blocked.why == "refused":
        return f"{limit} refused, a probe goes {opens}"
    return f"{limit} is full, opens {opens}"


def length_text(seconds: float) -> str:
    """A length of time that may be short: ``20 ms``, ``0.3 s``, ``3 min 20 s``."""
    return f"{seconds * 1000:.0f} ms" if seconds < 0.1 else seconds_text(seconds)


def duration(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Seconds of ``30s``, ``10min`` or ``1h30m``."""
    if value is None:
        return None
    us = go_duration_us(value.strip().replace("min", "m"))
    if us is None:
        raise click.BadParameter(f"expected a duration such as 30s, 10min or 1h30m; got {value!r}")
    return us / SECOND


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table under a head: columns as wide as they must be, numbers to the right."""
    turned = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in turned]
    sides = [
        str.rjust if all(cell.replace(",", "").isdigit() for cell in column[1:]) else str.ljust
        for column in turned
    ]
    for row in rows:
        cells = (side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def limits_text(snapshot: Snapshot) -> str:
    """The limits in force."""
    return printable(", ".join(limit.text for limit in snapshot.limits)) or "no limits"
