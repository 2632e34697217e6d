"""``headgate mediator``: submit requests to a mediator, and check that it can work."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import click

from headgate.cli.operators import CONTEXT
from headgate.errors import ConfigurationError, InvalidRequest, StorageError
from headgate.progress.view import printable
from headgate.runner.bell import Bell, Interrupts

if TYPE_CHECKING:
    from headgate.integrations.celery.mediator.settings import Settings
    from headgate.integrations.celery.mediator.submit import Submitter

FAILED, USAGE, UNREACHABLE, INTERRUPTED = 1, 2, 3, 130
"""Exit statuses."""
AT_ONCE = 16
"""Requests that are being submitted at the same time."""
TOLD_SECONDS = 0.5
_LINES = (".jsonl", ".ndjson", "-")
"""What files with a request on each line are called; others may hold one that goes over several lines."""


@click.group(context_settings=CONTEXT)
def mediator() -> None:
    """Requests through object storage, made by Celery's workers; see docs/mediator.md.

    Workers are started by: celery -A headgate.integrations.celery.mediator worker
    """


config_option = click.option(
    "--config",
    metavar="FILE",
    help="Settings. [HEADGATE_MEDIATOR_CONFIG, else headgate-mediator.toml, and HEADGATE_MEDIATOR_…]",
)


@mediator.command(context_settings=CONTEXT)
@config_option
def check(config: str | None) -> None:
    """See whether a mediator with these settings would work.

    Reads the settings, writes and reads an object, connects to the broker, the result backend and the store
    of limits, looks for the secrets in the environment and for the addresses of the services. One line for
    each; exit status 1 if anything is wrong, 2 if the settings make no sense.
    """
    with _told("check"):
        settings = _settings(config)
        from headgate.integrations.celery.mediator.check import check

        failed = False
        for item in check(settings):
            failed = failed or item.fault is not None
            about = f"{item.about}: " if item.about else ""
            told = item.about if item.fault is None else f"{about}{item.fault}"
            click.echo(printable(f"{'ok' if item.fault is None else 'WRONG':5}  {item.name}  {told}"))
    sys.exit(FAILED if failed else 0)


@mediator.command(context_settings=CONTEXT)
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@config_option
@click.option(
    "--retry-failed",
    is_flag=True,
    help="Have requests made again whose responses tell of a failure; the new ones take their places.",
)
@click.option("--quiet", is_flag=True, help="Do not print the tasks' ids.")
def submit(files: tuple[str, ...], config: str | None, retry_failed: bool, quiet: bool) -> None:
    """Submit the requests in each FILE: one JSON object, or JSON Lines with many; '-' reads standard input.

    A request may name its task by "task_id". Otherwise the id is made of what it says, so that the same
    command submits nothing twice. Ids go to standard output, in the order of the requests; what could not be
    submitted is told on standard error, by its line.

    Exit status: 0 all submitted, 1 some were not, 2 wrong usage, 3 storage or broker cannot be reached, 130
    interrupted.
    """
    with _told("submit"):
        settings = _settings(config)
        from headgate.integrations.celery.mediator.submit import Submitter

        code = _Submission(Submitter(settings), retry_failed, quiet).run(files)
    sys.exit(code)


class _Row(NamedTuple):
    """A request, or why it is none."""

    place: str
    request: dict[str, Any] | None
    fault: str = ""


class _Submission:
    """A run of ``submit``: some requests at once, told in order."""

    def __init__(self, submitter: Submitter, retry_failed: bool, quiet: bool) -> None:
        self._submit = partial(submitter.submit, retry_failed=retry_failed)
        self._largest = submitter.settings.largest_request_bytes
        self._quiet = quiet
        self._counts: Counter[str] = Counter()
        self._pending: deque[tuple[str, Future[Any]]] = deque()
        self._told_at = time.monotonic()
        self._shows = sys.stderr.isatty()
        self._bell = Bell()
        self._interrupts = Interrupts(self._bell)

    def run(self, files: tuple[str, ...]) -> int:
        from kombu.exceptions import OperationalError

        code = 0
        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                with self._interrupts:  # heard only while something is waited for: what is sent is told, once
                    for file in files:
                        rows = _rows(file, self._largest)
                        while (row := self._next(rows)) is not None:
                            self._begin(pool, row)
                    while self._pending:
                        self._end()
            except KeyboardInterrupt:
                code = INTERRUPTED
            except (StorageError, OperationalError) as error:
                self._say(f"headgate mediator: {error}")
                code = UNREACHABLE
            pool.shutdown(cancel_futures=True)  # those that have begun are finished
        self._rest()
        self._say(
            ", ".join(f"{count:,} {state}" for state, count in sorted(self._counts.items())) or "nothing"
        )
        if code:
            self._say("stopped; the same command goes on from there")
        return code or (FAILED if self._counts["failed"] else 0)

    def _next(self, rows: Iterator[_Row]) -> _Row | None:
        with self._interrupts.raising():
            return next(rows, None)

    def _begin(self, pool: ThreadPoolExecutor, row: _Row) -> None:
        if row.request is None:
            future: Future[Any] = Future()
            future.set_exception(InvalidRequest(row.fault))
        else:
            task_id = row.request.pop("task_id", None)
            future = pool.submit(self._submit, row.request, task_id)
            future.add_done_callback(lambda _: self._bell.ring())
        self._pending.append((row.place, future))
        while len(self._pending) > AT_ONCE:
            self._end()

    def _end(self) -> None:
        place, future = self._pending[0]
        while not future.done():
            self._bell.wait()
            if self._interrupts.count:
                raise KeyboardInterrupt
        try:
            done = future.result()
        except InvalidRequest as error:
            self._counts["failed"] += 1
            self._say(f"{place}: {error}")
        else:
            self._counts[done.state.value] += 1
            if not self._quiet:
                click.echo(done.task_id)
        self._pending.popleft()
        now = time.monotonic()
        if self._shows and now - self._told_at >= TOLD_SECONDS:
            self._told_at = now
            click.echo(f"\r{sum(self._counts.values()):,} requests", err=True, nl=False)

    def _rest(self) -> None:
        """Count those that were on their way when it was stopped."""
        while self._pending:
            place, future = self._pending.popleft()
            if not future.cancelled() and future.done() and future.exception() is None:
                self._pending.appendleft((place, future))
                self._end()

    def _say(self, text: str) -> None:
        click.echo(f"{chr(13) if self._shows else ''}{printable(text)}", err=True)


def _rows(file: str, most_bytes: int) -> Iterator[_Row]:
    """The requests of a file: one of each line, or one that goes over all of them."""
    with _opened(file) as lines:
        is_first = True
        for number, line in enumerate(iter(lambda: lines.readline(2 * most_bytes + 1), b""), 1):
            if not line.strip():
                continue
            place = f"{file}:{number}"
            if len(line) > 2 * most_bytes:
                raise ConfigurationError(f"{place}: the line is longer than any request may be")
            row = _row(place, line)
            if row.request is None and is_first and not file.endswith(_LINES):
                yield _row(file, line + lines.read(2 * most_bytes))
                return
            is_first = False
            yield row


def _row(place: str, text: bytes) -> _Row:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return _Row(place, None, "expected a JSON object; that is no JSON")
    if not isinstance(found, dict):
        return _Row(place, None, f"expected a JSON object; got a {type(found).__name__}")
    return _Row(place, found)


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdin.buffer
        return
    with Path(file).open("rb") as found:
        yield found


def _settings(config: str | None) -> Settings:
    try:
        from headgate.integrations.celery.mediator.settings import Settings
    except ModuleNotFoundError as missing:
        raise ConfigurationError(f"it needs {missing.name}: pip install 'headgate[mediator]'") from None
    return Settings.load(config)


@contextmanager
def _told(command: str) -> Iterator[None]:
    """What goes wrong is told in a line."""
    try:
        yield
    except (ConfigurationError, OSError) as error:
        click.echo(printable(f"headgate mediator {command}: {error}"), err=True)
        sys.exit(USAGE)
    except KeyboardInterrupt:
        click.echo(f"headgate mediator {command}: interrupted", err=True)
        sys.exit(INTERRUPTED)
