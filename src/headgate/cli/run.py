"""``headgate run``: a file of requests through any HTTP API."""

from __future__ import annotations

import asyncio
import errno
import json
import math
import os
import re
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import click

from headgate.core.crowd import CLASS_NAMES
from headgate.core.model import SECOND, Limit
from headgate.core.text import parse_limit, start_mode
from headgate.errors import ConfigurationError, StoreError
from headgate.progress.view import make_view
from headgate.run.session import INTERRUPTED, Session
from headgate.run.settings import Settings
from headgate.run.summary import lines

USAGE = 2
LEAST_SECRET = 6
"""Anything shorter keeps no secret, and hiding it would spoil the text around it."""
_SECRET_HEADER = re.compile("auth|key|token|secret|cookie|password", re.IGNORECASE)
_NO_PLACE = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG
)  # fmt: skip
_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OUR_FIELDS = ("idempotency-key", "content-length", "transfer-encoding")


def _limit(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[Limit, ...]:
    try:
        return tuple(parse_limit(text) for text in value)
    except ConfigurationError as error:
        raise click.BadParameter(str(error)) from error


def _timeout(context: click.Context, parameter: click.Parameter, value: str) -> float | None:
    if value == "auto":
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise click.BadParameter(f"expected 'auto' or seconds above 0; got {value!r}")
    return seconds


def _finite(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"expected a number of seconds; got {value!r}")
    return value


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source", metavar="INPUT")
@click.option(
    "--base-url", required=True, metavar="URL", help="Where the API is, such as https://api.openai.com."
)
@click.option(
    "--limit",
    "limits",
    multiple=True,
    metavar="SPEC",
    callback=_limit,
    help="A limit of the API, such as requests=500/min:burst=20; may be repeated.",
)
@click.option("--output", metavar="FILE", help="Results; '-' for standard output. [INPUT.results.jsonl]")
@click.option("--errors", metavar="FILE", help="Failures with their last error. [beside the output]")
@click.option(
    "--store",
    metavar="URL",
    help="Where the budget is kept, to share it: sqlite:///FILE, redis://HOST. [memory://]",
)
@click.option(
    "--key", default="default", show_default=True, metavar="NAME", help="The name of the budget in the store."
)
@click.option(
    "--class",
    "service_class",
    type=click.Choice(CLASS_NAMES),
    default="normal",
    show_default=True,
    help="Who goes first where others draw on the key.",
)
@click.option(
    "--on-store-failure",
    default="wait",
    show_default=True,
    metavar="MODE",
    help="While the store is away: wait, refuse (and stop), or share:N of N processes.",
)
@click.option(
    "--start", metavar="MODE", help="What to believe of the limits at first: auto, empty, full, used:N."
)
@click.option("--api-key-env", metavar="NAME", help="Environment variable that holds the API key.")
@click.option("--api-key-header", metavar="NAME", help="Header for the key. [Authorization: Bearer …]")
@click.option("--api-key-query", metavar="NAME", help="Query parameter for the key, instead of a header.")
@click.option(
    "--header", "headers", multiple=True, metavar="'N: v'", help="A header to send; may be repeated."
)
@click.option(
    "--template",
    metavar="TEXT_OR_FILE",
    help="Makes a request of each row: a prompt or a JSON body with {column}s.",
)
@click.option("--model", metavar="M", help="For requests that name no model.")
@click.option(
    "--max-tokens",
    type=click.IntRange(0),
    metavar="N",
    help="For requests that name no bound on their output.",
)
@click.option(
    "--id-column", metavar="C", help="The column that names a row. [custom_id, else id, else the line]"
)
@click.option(
    "--max-attempts",
    type=click.IntRange(1),
    default=6,
    show_default=True,
    help="Attempts that may fail; refusals for the rate do not count.",
)
@click.option(
    "--timeout",
    metavar="S|auto",
    default="auto",
    show_default=True,
    callback=_timeout,
    help="Seconds a call may take; auto learns: 8 × p99, at least 3.",
)
@click.option(
    "--max-transit",
    type=click.FloatRange(0, 3600, min_open=True),
    callback=_finite,
    metavar="S",
    help="Longest time from permit to the API's limiter, in seconds. [by the limit]",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    metavar="N",
    help="Most calls in flight. [as many as the limits need]",
)
@click.option(
    "--deadline",
    type=click.FloatRange(0, min_open=True),
    callback=_finite,
    metavar="S",
    help="Stop after so many seconds.",
)
@click.option("--ordered", is_flag=True, help="Write results in the order of the input.")
@click.option("--fresh", is_flag=True, help="Start over: overwrite the output and its checkpoint.")
@click.option(
    "--progress", type=click.Choice(["auto", "rich", "log", "none"]), default="auto", show_default=True
)
@click.option("--summary-json", metavar="FILE", help="Write the summary there as JSON.")
def run(**options: Any) -> None:
    r"""Send the requests in INPUT through a rate-limited API, as fast as it allows.

    INPUT holds OpenAI batch lines (custom_id, method, url, body), or rows of JSON that --template turns into
    requests; '-' reads standard input. Each custom_id ends in exactly one of two files: its result in the
    output, or its last error in the errors file. A run that was stopped goes on when it is started again.

    \b
    headgate run requests.jsonl --base-url https://api.openai.com --api-key-env OPENAI_API_KEY \
        --limit requests=500/min:burst=20 --limit tokens=200k/min:burst=20k
    headgate run reviews.jsonl --base-url http://localhost:8000 --model small \
        --template 'Is this review kind? {text}' --limit concurrency=8

    A limit reads METER=AMOUNT/PERIOD[:burst=N][:kind=bucket|sliding|fixed|calendar|anchored][:zone=NAME]
    [:charge=estimate|usage], or concurrency=N. Without burst or kind it is kept safe against any rule.

    Exit status: 0 all succeeded, 1 some failed, 2 wrong usage, 3 stopped by the deadline, by a limit that
    cannot open in time, or without credit, 130 interrupted.
    """
    try:
        code = _run(**options)
    except ConfigurationError as error:
        click.echo(f"headgate run: {error}", err=True)
        code = USAGE
    except StoreError as error:
        click.echo(f"headgate run: {error}", err=True)
        click.echo("What was written stands; the same command goes on from there.", err=True)
        code = 3
    except OSError as error:
        click.echo(f"headgate run: {error}", err=True)
        click.echo("What was written stands; the same command goes on from there.", err=True)
        code = 1
    except KeyboardInterrupt:
        click.echo("headgate run: interrupted. The same command goes on from here.", err=True)
        code = INTERRUPTED
    sys.exit(code)


def _run(*, progress: str, summary_json: str | None, **options: Any) -> int:
    settings = _settings(**options)
    view = make_view(progress)
    try:
        session = Session(settings, view)
        try:
            session.prepare()
        except OSError as error:
            if error.errno in _NO_PLACE:
                raise ConfigurationError(str(error)) from error
            raise
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            code = _in_loop(session)
    finally:
        view.close()
    summary = session.summary()
    if progress != "none":
        for line in lines(summary):
            click.echo(line, err=True)
    if summary_json:
        Path(summary_json).write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
    _tell_end(session, code)
    return code


def _in_loop(session: Session) -> int:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(session.run())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(session.run())


def _tell_end(session: Session, code: int) -> None:
    stopping = session.engine.stopping
    if stopping is None:
        return
    blocked = session.stopped_at
    click.echo(f"headgate run: stopped: {stopping}{f' ({blocked})' if blocked else ''}", err=True)
    if session.settings.output is not None and code in (INTERRUPTED, 3, 1):
        click.echo("The same command goes on from here.", err=True)


def _settings(
    *,
    source: str,
    base_url: str,
    limits: tuple[Limit, ...],
    output: str | None,
    errors: str | None,
    start: str | None,
    max_transit: float | None,
    api_key_env: str | None,
    api_key_header: str | None,
    api_key_query: str | None,
    headers: tuple[str, ...],
    timeout: float | None,
    deadline: float | None,
    concurrency: int | None,
    **rest: Any,
) -> Settings:
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigurationError(f"--base-url: expected http://… or https://…; got {base_url!r}")
    if parts.query or parts.fragment or parts.username:
        raise ConfigurationError("--base-url: expected no query, fragment or password in it")
    path = None if source == "-" else Path(source)
    if path is not None and not path.is_file():
        raise ConfigurationError(f"expected a file of requests, or '-' for standard input; got {source!r}")
    if rest["ordered"] and path is None:
        raise ConfigurationError("--ordered needs a file: standard input has no order to go on from")
    out = _output_path(path, output)
    failed = Path(errors) if errors else _beside(out or path or Path("headgate.jsonl"), "errors")
    if out is not None and out.resolve() == failed.resolve():
        raise ConfigurationError(f"--errors: expected another file than the output; got {errors!r}")
    if path is not None and path.resolve() in {p.resolve() for p in (out, failed) if p is not None}:
        raise ConfigurationError("the input would be overwritten; give another --output or --errors")
    for place in (out, failed):
        if place is not None and place.exists() and not place.is_file():
            raise ConfigurationError(f"expected a file to write to; got {str(place)!r}")
    changes: dict[str, Any] = {}
    if start is not None:
        changes["start"] = start_mode(start)
    if max_transit is not None:
        changes["max_transit_us"] = round(max_transit * SECOND)
    key, key_headers, query = _key(api_key_env, api_key_header, api_key_query)
    return Settings(
        source=path,
        output=out,
        errors=failed,
        base_url=base_url.rstrip("/"),
        limits=_limits(limits, changes, concurrency),
        concurrency=concurrency,
        headers=_merged(
            {
                "Content-Type": "application/json",
                "Accept": "application/json, */*;q=0.5",
                "User-Agent": "headgate",
            },
            key_headers,
            dict(_header(text) for text in headers),
        ),
        secrets=tuple(filter(None, (key, *(_secret(*_header(text)) for text in headers)))),
        query=query,
        timeout_seconds=timeout,
        deadline_seconds=deadline,
        **rest,
    )


def _limits(limits: tuple[Limit, ...], changes: dict[str, Any], concurrency: int | None) -> tuple[Limit, ...]:
    """The limits with the options for all of them; --concurrency is one more, unless they have their own."""
    found = tuple(_changed(limit, changes) for limit in limits)
    if concurrency is not None and all(limit.kind != "concurrency" for limit in found):
        found += (Limit(meter="concurrency", amount=concurrency, kind="concurrency"),)
    return found


def _secret(name: str, value: str) -> str:
    """The part of a header that must not be shown; empty for most headers."""
    if not _SECRET_HEADER.search(name):
        return ""
    secret = value.rpartition(" ")[2]  # behind "Bearer"
    return secret if len(secret) >= LEAST_SECRET else ""


def _changed(limit: Limit, changes: dict[str, Any]) -> Limit:
    """Options for all limits yield to what a limit says itself."""
    own = {name: value for name, value in changes.items() if getattr(limit, name) in (None, "auto")}
    return replace(limit, **own)


def _output_path(source: Path | None, output: str | None) -> Path | None:
    if output == "-":
        return None
    if output:
        return Path(output)
    if source is None:
        raise ConfigurationError("give --output FILE with standard input, or --output - for standard output")
    return _beside(source, "results")


def _beside(path: Path, word: str) -> Path:
    return path.with_name(f"{path.stem}.{word}{path.suffix or '.jsonl'}")


def _key(env: str | None, header: str | None, query: str | None) -> tuple[str, dict[str, str], str]:
    """(the secret, headers with it, query with it)."""
    if env is None:
        if header or query:
            raise ConfigurationError("--api-key-header and --api-key-query need --api-key-env")
        return "", {}, ""
    key = os.environ.get(env, "").strip()
    if not key:
        raise ConfigurationError(f"--api-key-env: the environment has no {env}")
    if query:
        return key, {}, f"{quote(query)}={quote(key, safe='')}"
    name = header or "Authorization"
    if not _FIELD_NAME.fullmatch(name) or not key.isprintable():
        raise ConfigurationError("the API key cannot be sent in a header of that name, or at all")
    return key, {name: f"Bearer {key}" if name.lower() == "authorization" else key}, ""


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    name, value = name.strip(), value.strip()
    if not colon or not _FIELD_NAME.fullmatch(name) or not value.replace("\t", " ").isprintable():
        raise ConfigurationError(f"--header: expected 'Name: value'; got {text!r}")
    if name.lower() in _OUR_FIELDS:
        raise ConfigurationError(f"--header: {name} is made for each request")
    return name, value


def _merged(*fields: dict[str, str]) -> dict[str, str]:
    """Header fields, each once; the later ones count."""
    found: dict[str, tuple[str, str]] = {}
    for some in fields:
        found |= {name.lower(): (name, value) for name, value in some.items()}
    return dict(found.values())
