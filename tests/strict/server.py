"""A strict rate-limited HTTP server that judges a caller by the log of what really arrived.

    python tests/strict/server.py --config JSON --port-file PATH --report PATH [--log PATH]

It shares no code with the product and needs nothing beyond the standard library. The caller is told only
what a real API tells: answers, `usage`, `x-ratelimit-*` headers. `GET /report` shows the figures while it
runs (working them out stalls the server), `GET /health` the number of arrivals; `POST /finish` or SIGTERM
write the final report to the file and end the server.

A caller may name itself by `x-client` and say by `x-granted-ns` and `x-sent-ns` when, on the machine's
monotonic clock, it was allowed to call and when it did. None of that is judged; it is in the log of arrivals.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import NamedTuple, cast

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it also runs as a script
from tests.strict.rules import (
    ELAPSED,
    SECOND,
    Arrival,
    Completion,
    Config,
    Judge,
    Limit,
    Rule,
    Stamp,
    Usage,
    read_usage,
)
from tests.strict.verify import ideal_seconds, utilisation, verify
from tests.strict.wire import MILLISECOND, Request, go_duration, read_request

REASONS = {200: "OK", 400: "Bad Request", 429: "Too Many Requests"}


class Connection(asyncio.Protocol):
    """One keep-alive connection: one request at a time, answered in order."""

    def __init__(self, server: StrictServer) -> None:
        self.server = server
        self.buffer = bytearray()
        self.busy = False
        self.last = False  # close after this answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.server.connection_changed(+1)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connection_changed(-1)

    def data_received(self, data: bytes) -> None:
        if not self.buffer and b"\r\nexpect: 100-continue" in data.lower():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.buffer += data
        self.take()

    def take(self) -> None:
        if self.busy or not self.buffer:
            return
        try:
            request = read_request(self.buffer)
        except ValueError:
            self.last = True
            self.answer(400, {"error": {"message": "not HTTP", "type": "invalid_request_error"}})
            return
        if request is not None:
            self.busy = True
            self.last = request.headers.get(b"connection", b"").lower() == b"close"
            self.server.receive(request, self)

    def answer(self, status: int, body: object, headers: Sequence[str] = ()) -> None:
        if self.transport.is_closing():
            return
        raw = json.dumps(body).encode()
        lines = [
            f"HTTP/1.1 {status} {REASONS[status]}",
            "content-type: application/json",
            f"content-length: {len(raw)}",
            f"date: {self.server.date()}",
            f"connection: {'close' if self.last else 'keep-alive'}",
            *headers,
            "\r\n",
        ]
        self.transport.write("\r\n".join(lines).encode("latin-1") + raw)
        self.busy = False
        if self.last:
            self.transport.close()
        elif self.buffer:
            self.server.loop.call_soon(self.take)


class Stalls:
    """How long this process stood still or was busy: a tick every 2 ms, and how much later than that it came.

    A gap that ended with SIGCONT was a deliberate stop and is counted apart. Of the others the first ones of
    some length are kept, as (end on the monotonic clock, seconds), for those who judge a part of a run.
    """

    TICK_SECONDS = 0.002
    KEPT_SECONDS = 0.01
    KEPT = 1000

    def __init__(self, loop: asyncio.AbstractEventLoop, transit_seconds: float | None) -> None:
        self.loop = loop
        self.transit_seconds = transit_seconds
        self.longest_seconds = self.longest_stop_seconds = 0.0
        self.over_transit = self.stops = 0
        self.kept: list[tuple[int, float]] = []
        self.continued = False
        signal.signal(signal.SIGCONT, self._note)
        self.due = loop.time()
        self._tick()

    def _note(self, *_: object) -> None:
        self.continued = True

    def _tick(self) -> None:
        now = self.loop.time()
        late = now - self.due
        if self.continued:
            self.continued = False
            self.stops += 1
            self.longest_stop_seconds = max(self.longest_stop_seconds, late)
        else:
            self.longest_seconds = max(self.longest_seconds, late)
            self.over_transit += self.transit_seconds is not None and late > self.transit_seconds
            if late >= self.KEPT_SECONDS and len(self.kept) < self.KEPT:
                self.kept.append((time.monotonic_ns(), round(late, 6)))
        self.due = now + self.TICK_SECONDS
        self.loop.call_at(self.due, self._tick)

    def report(self) -> dict[str, object]:
        return {
            "longest_seconds": round(self.longest_seconds, 6),
            "over_transit": self.over_transit,
            "deliberate_stops": self.stops,
            "longest_stop_seconds": round(self.longest_stop_seconds, 6),
            "kept": self.kept,
        }


class Told(NamedTuple):
    """What a caller says of a call, for the log alone: its own name, and two instants, or 0."""

    client: str
    granted_ns: int
    sent_ns: int


def read_told(headers: Mapping[bytes, bytes]) -> Told:
    """ValueError where an instant is no number."""
    granted, sent = (int(headers.get(name, b"0")) for name in (b"x-granted-ns", b"x-sent-ns"))
    return Told(headers.get(b"x-client", b"").decode("latin-1"), granted, sent)


@dataclass
class Call:
    """A call on its way through the server."""

    connection: Connection
    path: str
    usage: Usage
    received_ns: int
    key: str  # the Idempotency-Key, or empty
    custom_id: str  # or empty
    told: Told
    number: int = -1
    headers: list[str] = field(default_factory=list)


class StrictServer:
    """Receives, delays, judges, answers, counts."""

    REFUSALS_SHOWN = 20

    def __init__(self, config: Config, loop: asyncio.AbstractEventLoop) -> None:
        self.config = config
        self.loop = loop
        self.judge = Judge(config)
        self.random = random.Random(config.seed)
        self.stalls = Stalls(loop, config.max_transit_seconds)
        self.finished: asyncio.Future[None] = loop.create_future()
        self.wall_ns = 0
        self.connections = self.peak_connections = 0
        self.in_flight = self.peak_in_flight = 0
        self.accepted = 0
        self.refused: Counter[int] = Counter()  # by limit
        self.refused_calls = 0
        self.refusals: list[dict[str, object]] = []
        self.keys: Counter[str] = Counter()
        self.accepted_keys: Counter[str] = Counter()
        self.ledger: Counter[str] = Counter()
        self.told: list[Told] = []  # by number of arrival
        self.longest_delay_ns = self.late_arrivals = 0
        self._date = (0, "")

    # The story of a call: receive, decide, complete.

    def receive(self, request: Request, connection: Connection) -> None:
        if request.method == "GET" and request.path == "/report":
            connection.answer(200, self.report(final=False))
        elif request.method == "GET" and request.path == "/health":
            connection.answer(200, {"arrivals": self.judge.arrivals})
        elif request.method == "POST" and request.path == "/finish":
            connection.answer(200, {"finishing": True})
            self.finish()
        else:
            self._receive_call(request, connection)

    def _receive_call(self, request: Request, connection: Connection) -> None:
        try:
            body = json.loads(request.body) if request.body else {}
            usage = read_usage(request.body, body, self.config.charge_rule)
            custom_id = body.get("custom_id") or (body.get("metadata") or {}).get("custom_id")
            told = read_told(request.headers)
        except (ValueError, TypeError, AttributeError) as error:
            connection.answer(400, {"error": {"message": str(error), "type": "invalid_request_error"}})
            return
        key = request.headers.get(b"idempotency-key", b"").decode("latin-1")
        call = Call(connection, request.path, usage, time.monotonic_ns(), key, str(custom_id or ""), told)
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        if self.config.jitter_seconds:
            self.loop.call_later(self.random.random() * self.config.jitter_seconds, self._decide, call)
        else:
            self._decide(call)

    def _decide(self, call: Call) -> None:
        stamp = self._now()
        arrival = self.judge.arrive(stamp, call.usage)
        call.number = arrival.number
        self.told.append(call.told)
        delay = stamp[ELAPSED] - call.received_ns
        self.longest_delay_ns = max(self.longest_delay_ns, delay)
        transit = self.config.max_transit_seconds
        self.late_arrivals += transit is not None and delay > transit * SECOND
        if call.key:
            self.keys[call.key] += 1
        if self.config.headers:
            call.headers = self._limit_headers(stamp)
        if arrival.refused_by:
            self._refuse(call, arrival)
            return
        self.accepted += 1
        if call.key:
            self.accepted_keys[call.key] += 1
        if call.custom_id:
            self.ledger[call.custom_id] += 1
        mean, sigma = self.config.latency_seconds, self.config.latency_sigma
        if mean:
            latency = self.random.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma)
            self.loop.call_later(latency, self._complete, call)
        else:
            self._complete(call)

    def _refuse(self, call: Call, arrival: Arrival) -> None:
        self.in_flight -= 1
        self.refused_calls += 1
        self.refused.update(arrival.refused_by)
        rules = self.judge.rules
        waits = {
            i: rules[i].wait(arrival.stamp[rules[i].clock], arrival.units[i]) for i in arrival.refused_by
        }
        known = [wait for wait in waits.values() if wait is not None]
        worst = max(waits, key=lambda i: math.inf if (wait := waits[i]) is None else wait)
        limit = self.config.limits[worst]
        level = arrival.rooms[worst] / rules[worst].scale
        if len(self.refusals) < self.REFUSALS_SHOWN:
            since_first = arrival.stamp[ELAPSED] - self.judge.log[0].stamp[ELAPSED]
            self.refusals.append(
                {
                    "at_seconds": round(since_first / SECOND, 6),
                    "meter": limit.meter,
                    "kind": limit.kind,
                    "units": arrival.units[worst],
                    "level": round(level, 6),
                }
            )
        if len(known) == len(waits):
            wait_ms = -(-max(known) // MILLISECOND)
            call.headers += [f"retry-after-ms: {wait_ms}", f"retry-after: {-(-wait_ms // 1000)}"]
        message = (
            f"Rate limit reached for {limit.meter}: limit {limit.capacity}, asked {arrival.units[worst]}, "
            f"left {max(0, math.floor(level))}."
        )
        error = {"message": message, "type": limit.meter, "param": None, "code": "rate_limit_exceeded"}
        call.connection.answer(429, {"error": error}, call.headers)

    def _complete(self, call: Call) -> None:
        self.in_flight -= 1
        self.judge.complete(self._now(), call.number, call.usage)
        call.connection.answer(200, self._completion(call), call.headers)

    def _completion(self, call: Call) -> dict[str, object]:
        usage = {
            "prompt_tokens": call.usage.prompt,
            "completion_tokens": call.usage.completion,
            "total_tokens": call.usage.prompt + call.usage.completion,
        }
        if not call.path.endswith("/chat/completions"):
            return {"object": "result", "id": f"res-{call.number}", "usage": usage}
        message = {"role": "assistant", "content": f"answer {call.number}"}
        return {
            "id": f"chatcmpl-{call.number}",
            "object": "chat.completion",
            "created": self.wall_ns // SECOND,
            "model": "strict-1",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": usage,
        }

    def _limit_headers(self, stamp: Stamp) -> list[str]:
        """As the limiter saw it right after its decision; of several limits on a meter the tightest."""
        tightest: dict[str, tuple[float, Limit, Rule, int]] = {}
        for limit, rule in zip(self.config.limits, self.judge.rules, strict=True):
            left = max(0, rule.room(stamp[rule.clock]) // rule.scale)
            if limit.meter not in tightest or left / limit.capacity < tightest[limit.meter][0]:
                tightest[limit.meter] = left / limit.capacity, limit, rule, left
        lines = []
        for meter, (_, limit, rule, left) in tightest.items():
            if limit.kind != "concurrency":
                lines += [
                    f"x-ratelimit-limit-{meter}: {limit.capacity}",
                    f"x-ratelimit-remaining-{meter}: {left}",
                    f"x-ratelimit-reset-{meter}: {go_duration(rule.until_full(stamp[rule.clock]))}",
                ]
        return lines

    # Clocks and counters.

    def _now(self) -> Stamp:
        self.wall_ns = max(self.wall_ns, time.time_ns())  # a wall clock that is set back stands still here
        return time.monotonic_ns(), self.wall_ns

    def date(self) -> str:
        second = time.time_ns() // SECOND
        if second != self._date[0]:
            self._date = second, formatdate(second, usegmt=True)
        return self._date[1]

    def connection_changed(self, change: int) -> None:
        self.connections += change
        self.peak_connections = max(self.peak_connections, self.connections)

    def finish(self) -> None:
        if not self.finished.done():
            self.finished.set_result(None)

    def report(self, final: bool) -> dict[str, object]:
        """All figures. What takes long (the verifier, the ideal time) is left out until the final report."""
        cpu_seconds = time.process_time()  # before this report costs any
        stamps = [event.stamp[ELAPSED] for event in self.judge.log if isinstance(event, Arrival)]
        span = (stamps[-1] - stamps[0]) / SECOND if stamps else 0.0
        return {
            "config": asdict(self.config),
            "accepted": self.accepted,
            "refused": self.refused_calls,
            "span_seconds": round(span, 6),
            "limits": [self._limit_report(index, limit) for index, limit in enumerate(self.config.limits)],
            "refusals": self.refusals,
            "stalls": self.stalls.report(),
            "longest_arrival_delay_seconds": round(self.longest_delay_ns / SECOND, 6),
            "late_arrivals": self.late_arrivals,
            "peak_in_flight": self.peak_in_flight,
            "peak_connections": self.peak_connections,
            "idempotency_keys": {
                "distinct": len(self.keys),
                "repeated": sum(count > 1 for count in self.keys.values()),
                "accepted_twice": sum(count > 1 for count in self.accepted_keys.values()),
                "most_repeated": [item for item in self.keys.most_common(20) if item[1] > 1],
            },
            "ledger": dict(self.ledger),
            "cpu_seconds": round(cpu_seconds, 3),
            **(self._verdict(span) if final else {}),
        }

    def arrivals(self) -> list[dict[str, object]]:
        """The log, one entry for each arrival, in their order: the limits that refused it, who sent it, and
        instants of the monotonic clock; the end is `None` for a call that was refused or goes on.
        """
        ends = {
            event.number: event.stamp[ELAPSED] for event in self.judge.log if isinstance(event, Completion)
        }
        return [
            {
                "client": told.client,
                "granted_ns": told.granted_ns,
                "sent_ns": told.sent_ns,
                "arrived_ns": event.stamp[ELAPSED],
                "ended_ns": ends.get(event.number),
                "refused_by": event.refused_by,
            }
            for told, event in zip(
                self.told, (event for event in self.judge.log if isinstance(event, Arrival)), strict=True
            )
        ]

    def _verdict(self, span: float) -> dict[str, object]:
        disagreements = verify(self.config, self.judge.log)
        ideals = {
            "empty_start": ideal_seconds(self.config, self.judge.log, full=False),
            "full_start": ideal_seconds(self.config, self.judge.log, full=True),
        }
        return {
            "ideal_seconds": ideals,
            "ideal_utilisation": {
                start: round(ideal / span, 6) if ideal is not None and span else None
                for start, ideal in ideals.items()
            },
            "verified_calls": self.judge.arrivals,
            "disagreements": len(disagreements),
            "first_disagreements": disagreements[:20],
        }

    def _limit_report(self, index: int, limit: Limit) -> dict[str, object]:
        figures = utilisation(limit, index, self.judge.log)
        result: dict[str, object] = {
            "meter": limit.meter,
            "kind": limit.kind,
            "amount": limit.amount,
            "window_seconds": limit.window_seconds,
            "capacity": limit.capacity,
            "refused": self.refused[index],
            "accepted_units": figures["accepted_units"],
            "utilisation": {name: figures[name] for name in ("empty_start", "full_start")},
        }
        transit, steady = self.config.max_transit_seconds, figures["empty_start"]
        if limit.kind == "sliding" and transit is not None and steady is not None:
            bound = limit.window_seconds / (limit.window_seconds + transit)
            result["provable_bound"] = round(bound, 6)
            result["of_provable_bound"] = round(steady / bound, 6)
        return result


def write_whole(path: Path, text: str) -> None:
    """Readers see all of the file or none of it."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


async def serve(
    config: Config, port_file: Path, report: Path, max_seconds: float, log: Path | None = None
) -> None:
    loop = asyncio.get_running_loop()
    server = StrictServer(config, loop)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.finish)
    loop.call_later(max_seconds, server.finish)
    listener = await loop.create_server(lambda: Connection(server), "127.0.0.1", 0, backlog=4096)
    write_whole(port_file, str(listener.sockets[0].getsockname()[1]))
    gc.collect()
    gc.freeze()
    gc.disable()  # a collection is a stall, and would be blamed on the caller
    await server.finished
    listener.close()
    if log is not None:
        write_whole(log, json.dumps(server.arrivals()))
    write_whole(report, json.dumps(server.report(final=True), indent=1))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="A strict rate-limited HTTP server.")
    parser.add_argument("--config", required=True, help="JSON, or a file that holds it: the fields of Config")
    parser.add_argument(
        "--port-file", required=True, type=Path, help="where to write the port once it listens"
    )
    parser.add_argument("--report", required=True, type=Path, help="where to write the report at the end")
    parser.add_argument("--log", type=Path, help="where to write the log of arrivals at the end")
    parser.add_argument("--max-seconds", type=float, default=900.0, help="end by itself after so long (900)")
    options = parser.parse_args(arguments)
    text = options.config if options.config.lstrip().startswith("{") else Path(options.config).read_text()
    asyncio.run(
        serve(Config.from_json(text), options.port_file, options.report, options.max_seconds, options.log)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
