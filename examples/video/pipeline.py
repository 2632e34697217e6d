"""Have each video of the source analysed once, however often this program is killed and started again.

    python -m examples.video.pipeline --service http://127.0.0.1:8000

A run is paid for and takes long, and the service takes one every two minutes, 1,000 a month. So:

- A message is acknowledged when its result is stored. A kill before that, and the source delivers it again.
- A result is kept in the checkpoint before anybody is told of it: a video that comes again is not run again.
- The name of a run is recorded as soon as it is known: a run that is under way is asked after, not started.
- A start bears the call's idempotency key, the same in every process. A kill between the service's charge and
  its answer, and the second start gives the same run.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

from examples.video.book import Book
from examples.video.source import Message, Source
from headgate import Call, Interval, Runner, current_call

AHEAD = 16  # messages taken from the source and not done with


class Service:
    """The video service: a function for the runner."""

    def __init__(self, http: aiohttp.ClientSession, book: Book, poll_seconds: float) -> None:
        self._http = http
        self._book = book
        self._poll_seconds = poll_seconds

    async def annotate(self, message: Message) -> dict[str, Any]:
        """Return the result of a video; start a run for it if there is none yet."""
        name = current_call().recorded.get("operation")
        if name is None:
            name = await self._start(message.video)
            current_call().record("operation", name)
            print(f"{message.video}: started as {name}", flush=True)
        while True:
            async with self._http.get(f"/v1/{name}", raise_for_status=True) as answer:
                operation = await answer.json()
            if operation["done"]:
                result: dict[str, Any] = operation["response"]
                return result
            await asyncio.sleep(self._poll_seconds)

    async def _start(self, video: str) -> str:
        self._book.note_start(video)  # before it is sent: what may be charged has to count
        key = {"Idempotency-Key": current_call().idempotency_key}
        start = self._http.post("/v1/videos:annotate", json={"input_uri": video}, headers=key)
        async with start as answer:
            answer.raise_for_status()  # a refusal makes the runner wait, and nothing is lost
            return str((await answer.json())["name"])


def make_runner(service: Service, book: Book, options: argparse.Namespace) -> Runner[[Message], Any]:
    """Both rules of the service, and what keeps a video from being paid for twice."""
    month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    used = book.starts_since(month)
    print(f"{used} of {options.month} runs of this month are used", flush=True)
    return Runner(
        service.annotate,
        f"requests={options.month}/month:kind=calendar:start=used-{used}",
        cost=lambda message: {"requests": 0 if book.has_start(message.video) else 1},  # counted already
        interval=Interval(options.spacing),
        dedup="skip",
        digest=lambda message: message.video,
        checkpoint=options.directory / "checkpoint.db",
        progress=False,
    )


async def consume(options: argparse.Namespace) -> None:
    """Take messages from the source and see them through, for ever or until it is empty."""
    options.directory.mkdir(parents=True, exist_ok=True)
    source = Source(options.source, visible_after=options.visible_after, twice=options.twice)
    with closing(source), closing(Book(options.directory / "book.db")) as book:
        async with aiohttp.ClientSession(options.service) as http:
            runner = make_runner(Service(http, book, options.poll), book, options)
            async for call in runner.as_completed(incoming(source, options.until_empty), ahead=AHEAD):
                settle(call, source, book)


def settle(call: Call[Any], source: Source, book: Book) -> None:
    """Store a result, then acknowledge its message; what is not stored will come again."""
    (message,) = call.args
    if call.error is not None:
        print(f"{message.video}: {call.error!r}", flush=True)
    elif call.skipped:
        print(f"{message.video}: skipped, it is being seen to", flush=True)
    elif not book.has_result(message.video):
        book.store(message.video, call.result())
        print(f"{message.video}: stored", flush=True)
    if book.has_result(message.video):
        source.acknowledge(message)


async def incoming(source: Source, until_empty: bool) -> AsyncIterator[Message]:
    """Messages as they come. Whoever takes no more of them for a while leaves them in the source."""
    while len(source) or not until_empty:
        message = source.receive()
        if message is not None:
            yield message
        else:
            await asyncio.sleep(0.2)


def main() -> None:
    """Read the options and go on until interrupted."""
    parser = argparse.ArgumentParser(description="Have each video of the source analysed, once.")
    parser.add_argument("--service", required=True, help="base URL of the video service")
    parser.add_argument("--source", type=Path, default=Path("build/video/source.db"))
    parser.add_argument("--directory", type=Path, default=Path("build/video"), help="for book and checkpoint")
    # A second more than the service asks for: not all requests are equally long on their way.
    parser.add_argument("--spacing", type=float, default=121, help="seconds between starts")
    parser.add_argument("--month", type=int, default=1000, help="starts in a calendar month")
    parser.add_argument("--poll", type=float, default=10, help="seconds between questions after a run")
    parser.add_argument("--visible-after", type=float, default=3600, help="the source's time-out in seconds")
    parser.add_argument("--twice", type=float, default=0.0, help="share of messages that come twice at once")
    parser.add_argument("--until-empty", action="store_true", help="end when all is acknowledged")
    try:
        asyncio.run(consume(parser.parse_args()))
    except KeyboardInterrupt:
        print("stopped; the same command goes on")


if __name__ == "__main__":
    main()
