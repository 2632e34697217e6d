"""A strict video-analysis service on this machine: each run takes long and is paid for.

    python -m examples.video.server --spacing 120 --month 1000 --ledger build/video/ledger.jsonl

    POST /v1/videos:annotate {"input_uri": "gs://videos/1.mp4"}  →  {"name": "operations/…"}
    GET  /v1/operations/…                                        →  {"name": …, "done": false}

A start is refused if it comes less than `--spacing` seconds after the last one, or is one too many in this
calendar month (UTC). A start with the `Idempotency-Key` of an earlier one gives that one's operation again:
nothing is started, charged or refused. All of it stands in the ledger, one JSON object a line; a server that
is started again goes on with it. This file knows nothing of headgate, so that it can judge its callers.
"""

import argparse
import asyncio
import hashlib
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

PRICE_PER_MINUTE = 0.10
LONGEST_MINUTES = 30
LABELS = "bridge canal crowd dog drone forest goal harbour kitchen market snow train".split()


class Ledger:
    """What was charged and what was refused, in a file; and what follows from it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._path = path
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        self.paid = {line["operation"]: line for line in lines if line["event"] == "paid"}

    def write(self, event: str, **facts: Any) -> dict[str, Any]:
        """Add one line; what is paid is known by its operation from now on."""
        line = {"event": event, "at": time.time(), **facts}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if event == "paid":
            self.paid[line["operation"]] = line
        return line

    def of_key(self, key: str | None) -> dict[str, Any] | None:
        """The run that was started with this idempotency key, if any."""
        return next((line for line in self.paid.values() if key and line["key"] == key), None)

    def seconds_since_start(self) -> float:
        """How long ago the last run was started."""
        return time.time() - max((line["at"] for line in self.paid.values()), default=0.0)

    def started_this_month(self) -> int:
        """How many runs were started since the month began."""
        begin = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp()
        return sum(line["at"] >= begin for line in self.paid.values())


class Service:
    """The service. Times in seconds: `spacing` between starts, `work` for a run, `answer_after` a charge."""

    def __init__(
        self, ledger: Ledger, *, spacing: float, month: int, work: float, answer_after: float
    ) -> None:
        self._ledger = ledger
        self._spacing = spacing
        self._month = month
        self._work = work
        self._answer_after = answer_after

    async def start(self, request: web.Request) -> web.Response:
        """Start a run and charge it, unless its key is known; or refuse it."""
        video, key = (await request.json())["input_uri"], request.headers.get("Idempotency-Key")
        run = self._ledger.of_key(key)
        if run is not None:
            if run["input_uri"] != video:
                return web.json_response({"error": "this key belongs to another video"}, status=422)
            self._ledger.write("repeated key", operation=run["operation"], input_uri=video, key=key)
            return web.json_response({"name": run["operation"]})
        early = self._spacing - self._ledger.seconds_since_start()
        if early > 0:
            return self._refuse(video, f"{early:.3f} s too early", retry_after=early)
        if self._ledger.started_this_month() >= self._month:
            return self._refuse(video, f"more than {self._month} this month", retry_after=3600)
        minutes = 1 + fingerprint(video) % LONGEST_MINUTES
        price = round(minutes * PRICE_PER_MINUTE, 2)
        name = f"operations/{len(self._ledger.paid) + 1}"
        self._ledger.write("paid", operation=name, input_uri=video, key=key, minutes=minutes, price=price)
        await asyncio.sleep(self._answer_after)  # charged, and the caller does not know it yet
        return web.json_response({"name": name})

    def _refuse(self, video: str, reason: str, *, retry_after: float) -> web.Response:
        self._ledger.write("refused", input_uri=video, reason=reason)
        headers = {"Retry-After": str(int(retry_after) + 1)}
        return web.json_response({"error": reason}, status=429, headers=headers)

    async def operation(self, request: web.Request) -> web.Response:
        """Tell how far a run has come."""
        name = f"operations/{request.match_info['number']}"
        run = self._ledger.paid.get(name)
        if run is None:
            return web.json_response({"error": f"no {name}"}, status=404)
        if time.time() < run["at"] + self._work:
            return web.json_response({"name": name, "done": False})
        response = {"input_uri": run["input_uri"], "minutes": run["minutes"], "labels": make_labels(run)}
        return web.json_response({"name": name, "done": True, "response": response})


def make_labels(run: dict[str, Any]) -> list[str]:
    """Make up what can be seen in a video: in the same one always the same."""
    number = fingerprint(run["input_uri"])
    return sorted({LABELS[(number >> shift) % len(LABELS)] for shift in (8, 16, 24)})


def fingerprint(video: str) -> int:
    """A number that looks random and belongs to the video."""
    return int.from_bytes(hashlib.sha256(video.encode()).digest()[:8], "big")


async def serve(service: Service, port: int) -> None:
    """Listen on this machine alone, say where, and answer until cancelled."""
    app = web.Application()
    app.router.add_post("/v1/videos:annotate", service.start)
    app.router.add_get("/v1/operations/{number}", service.operation)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Read the options and serve until interrupted."""
    parser = argparse.ArgumentParser(description="A strict video-analysis service with paid runs.")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 takes a free one")
    parser.add_argument("--spacing", type=float, default=120, help="seconds between starts")
    parser.add_argument("--month", type=int, default=1000, help="starts in a calendar month")
    parser.add_argument("--work", type=float, default=300, help="seconds that a run takes")
    parser.add_argument(
        "--answer-after", type=float, default=0, help="seconds from the charge to the answer of a start"
    )
    parser.add_argument("--ledger", type=Path, default=Path("build/video/ledger.jsonl"))
    options = parser.parse_args()
    service = Service(
        Ledger(options.ledger),
        spacing=options.spacing,
        month=options.month,
        work=options.work,
        answer_after=options.answer_after,
    )
    try:
        asyncio.run(serve(service, options.port))
    except KeyboardInterrupt:
        print("stopped")


if __name__ == "__main__":
    main()
