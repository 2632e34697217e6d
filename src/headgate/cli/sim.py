"""`headgate sim`: a rate-limited API server to try callers against."""

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from headgate.simulator import SimulatedServer


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=0, show_default=True, help="Port to listen on; 0 takes a free one.")
@click.option("--limit", "limits", multiple=True, metavar="SPEC", help="A limit to enforce; may be repeated.")
@click.option("--latency", default="0s", metavar="TIME", help="Mean service time, such as 200ms.")
@click.option(
    "--jitter", default="0s", metavar="TIME", help="Delay each call by up to this before judging it."
)
@click.option("--count-refused", is_flag=True, help="Charge refused calls too, as some providers do.")
@click.option("--faults", default="", metavar="KIND=N%,...", help="Break this share of the admitted calls.")
@click.option("--seed", type=int, help="Repeat the same latency, jitter and faults.")
@click.option("--require-key", metavar="KEY", help="Refuse callers that do not send this API key.")
@click.option(
    "--print-url", is_flag=True, help="Print the URL alone on standard output, all else on standard error."
)
@click.option("--port-file", type=click.Path(path_type=Path), help="Write the port here once it listens.")
@click.option(
    "--stats-file", type=click.Path(path_type=Path), help="Write the final statistics here, as JSON."
)
def sim(
    host: str,
    port: int,
    limits: tuple[str, ...],
    print_url: bool,
    port_file: Path | None,
    stats_file: Path | None,
    **behaviour: Any,
) -> None:
    r"""Run a rate-limited API server and judge its callers.

    It speaks OpenAI's chat completions (POST /v1/chat/completions) and Anthropic's messages (POST
    /v1/messages), echoes any request (/echo) and tags images (/image). GET /stats tells what it saw; Ctrl-C
    ends it with the same as a table.

    \b
    A limit is METER=AMOUNT/PERIOD with options after colons:
      requests=60/min:burst=5               a bucket of 5 that gains 60 a minute
      requests=100/10s:kind=sliding         100 in any 10 seconds
      tokens=40k/min:kind=fixed             40,000 in each minute of the clock
      requests=1000/day:kind=calendar:zone=Europe/Berlin
      tokens=2M/min:charge=usage            reserves an estimate, gives back the rest
      concurrency=8                         8 at a time

    \b
    Faults are an error status, reset, hang or malformed:
      --faults 500=3%,reset=1%,hang=0.5%,malformed=5%

    \b
    Example:
      headgate sim --port 8080 --limit requests=20/s:burst=5 --limit tokens=40k/min --latency 200ms
      curl http://127.0.0.1:8080/v1/chat/completions -d '{"messages":[{"role":"user","content":"Hi."}]}'
    """
    from headgate.simulator import SimulatedServer

    try:
        server = SimulatedServer(limits, host=host, port=port, **behaviour)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    try:
        stats = asyncio.run(_serve(server, print_url, port_file))
    except OSError as error:
        raise click.ClickException(str(error)) from error
    if stats_file is not None:
        stats_file.write_text(json.dumps(stats, indent=2) + "\n")
    _print_stats(stats, to_stderr=print_url)


async def _serve(server: "SimulatedServer", print_url: bool, port_file: Path | None) -> dict[str, Any]:
    """Serve until a signal comes; return what was seen."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with server:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stopped.set))
        if print_url:
            click.echo(server.url)
        else:
            click.echo(f"listening on {server.url}")
        for limit in server.limits:
            click.echo(f"  {limit.text}", err=print_url)
        if not server.limits:
            click.echo("  no limits", err=print_url)
        if port_file is not None:
            _write_whole(port_file, f"{server.port}\n")
        await stopped.wait()
        return server.stats()


def _write_whole(path: Path, text: str) -> None:
    """Write a file that a reader sees with all of its text, or not at all."""
    draft = path.with_name(path.name + ".part")
    draft.write_text(text)
    draft.replace(path)


def _print_stats(stats: dict[str, Any], to_stderr: bool) -> None:
    stream = sys.stderr if to_stderr else sys.stdout
    rows = [
        (
            limit["name"],
            _number(limit["accepted_units"]),
            _number(limit["ideal_units"]),
            _share(limit["utilisation"]),
        )
        for limit in stats["limits"]
    ]
    head = ("limit", "accepted units", "ideal", "utilisation")
    click.echo(f"\naccepted {stats['accepted']:,}, refused {stats['refused']:,}", file=stream)
    if stats["faults"]:
        faults = ", ".join(f"{kind} {count:,}" for kind, count in stats["faults"].items())
        click.echo(f"faults: {faults}", file=stream)
    if not rows:
        return
    if stream.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(*head)
        for row in rows:
            table.add_row(*row)
        Console(file=stream).print(table)
        return
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        click.echo(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(),
            file=stream,
        )


def _number(units: int | None) -> str:
    return "-" if units is None else f"{units:,}"


def _share(utilisation: float | None) -> str:
    return "-" if utilisation is None else f"{utilisation:.1%}"
