"""Runs the commands of operators in this process, on a store in a file."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from headgate import Limiter
from headgate.cli import main

LIMITS = ("requests=500/min:burst=50:start=full", "concurrency=8")


def url_of(folder: Path) -> str:
    return f"sqlite://{folder / 'limits.db'}"


def command(*words: str, url: str | None = None, stdin: str | None = None) -> Result:
    """``headgate WORDS``; whatever goes wrong, it shows no traceback."""
    environment = {"HEADGATE_STORE": url, "COLUMNS": "120", "TERM": "xterm", "FORCE_COLOR": None}
    ran = CliRunner().invoke(main, list(words), env=environment, input=stdin, prog_name="headgate")
    assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exception
    return ran


def use(url: str, key: str = "openai", calls: int = 1, *limits: str) -> Limiter:
    """Have a key be there, with so many calls in flight."""
    limiter = Limiter(*(limits or LIMITS), key=key, store=url)
    for _ in range(calls):
        limiter.acquire()
    return limiter
