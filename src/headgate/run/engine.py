"""The run itself: rows in, permits, requests out, results to the file.

A bounded pool of workers takes rows as they get to them; a worker looks for its connection, waits in line for
its permit, sends, and writes the result. The pool grows while permits come faster than workers are ready for
them, and never holds more than a few rows ahead.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple

from yarl import URL

from headgate.core.model import SECOND, Signal, Throttle
from headgate.core.retry import SPENDS_NO_ATTEMPT, Done, ErrorClass, GiveUp, RetryAt, RetryPolicy, after
from headgate.errors import CostExceedsLimit
from headgate.limiter import Limiter, Permit
from headgate.progress.stats import Counts, Histogram
from headgate.providers.estimate import Estimator
from headgate.providers.openai import Answer, read_answer
from headgate.run.output import Appender, Ordered, Stdout, response_json, result_line
from headgate.run.rows import Row, read_json
from headgate.run.settings import Settings
from headgate.run.transport import Reply, Transport, TransportError

MOST_WORKERS = 1000
LEARNED_TIMEOUTS = 100
"""Successes until the time-out is learned; before, a call may take as long as an SDK's would."""
FIRST_TIMEOUT = 600.0
LEAST_TIMEOUT = 3.0
TIMEOUT_FACTOR = 8
KEYS_REFUSED = 5
"""Refusals of the key in a row that mean that it has been revoked."""
LINGER_SECONDS = 60.0
"""How long a call that timed out may keep its slot while the server is still at work on it."""
GRACE_SECONDS = 5.0
"""What calls in flight get behind the deadline."""
WATCH_SECONDS = 0.25
STALL_SECONDS = 0.02
BUSY_SECONDS = 0.008
"""A loop that comes this late to its timers, on the mean of the last few, has no time for more workers."""
ENOUGH_WORKERS = 64
FIRST_QUIET, LONGEST_QUIET = 0.25, 60.0
"""Seconds without sending after a refusal that no limit of ours can answer for."""
_NO_LINE = re.compile(rb"[\0\r\n]|\xe2\x80[\xa8\xa9]|\xc2\x85|\xed[\xa0-\xbf]|\xef\xbb\xbf")
"""What is no part of a line of UTF-8: all that some reader takes for a line's end, half characters, byte
order marks."""
JSON_PATHS = ("/completions", "/messages", "/embeddings", "/responses")
"""Where anything but JSON is some proxy's page, not an answer."""
TOKEN_METERS = ("tokens", "input_tokens", "output_tokens")


class Stopped(Exception):
    """This call is not to be sent any more."""


class Outcome(NamedTuple):
    """What an attempt came to; ``reply`` is None if no answer came."""

    error: ErrorClass
    code: str
    message: str
    reply: Reply | None
    data: Any
    retry_after_us: int | None


@dataclass(slots=True, eq=False)
class Flight:
    """One attempt on its way."""

    row: Row
    units: dict[str, int]
    input_tokens: int = 0
    output_tokens: int = 0
    permit: Permit | None = None
    sent_at: float = 0.0
    deadline: asyncio.Timeout | None = None


@dataclass(slots=True)
class Figures:
    """What the view and the summary show."""

    counts: Counts = field(default_factory=Counts)
    latency: Histogram = field(default_factory=Histogram)
    waits: Histogram = field(default_factory=Histogram)
    in_flight: int = 0
    sleeping: int = 0
    lingering: int = 0
    longest_stall: float = 0.0
    started_at: float = field(default_factory=time.monotonic)
    first_sent_at: float | None = None
    last_sent_at: float | None = None


class Engine:
    """Carries out one run.

    Args:
        rows: the rows that are left to do.
        failed: told the number of each line that ends in the errors file.
        done: told the number of each line whose result has been written.
    """

    def __init__(
        self,
        settings: Settings,
        limiter: Limiter,
        rows: AsyncIterator[Row],
        *,
        output: Appender | Ordered | Stdout,
        errors: Appender,
        salt: str,
        done: Callable[[Row], None],
    ) -> None:
        self.settings = settings
        self.limiter = limiter
        self.figures = Figures()
        self.stopping: str | None = None
        self.stop_code = 0
        self.estimator = Estimator()
        self.sent_units: dict[str, int] = dict.fromkeys((limit.name for limit in limiter.limits), 0)
        self.on_sent: Callable[[Permit], None] | None = None
        self.on_stop: Callable[[], None] | None = None
        self._broken: BaseException | None = None
        self._rows = rows
        self._output = output
        self._errors = errors
        self._salt = salt
        self._done = done
        self._policy = RetryPolicy(max_attempts=settings.max_attempts)
        self._meters = limiter.plan.meters
        self._tokens = any(meter in self._meters for meter in TOKEN_METERS)
        self._others = {
            meter: 1 for meter in self._meters if meter not in (*TOKEN_METERS, "requests", "concurrency")
        }
        self._rated = any(limit.kind != "concurrency" for limit in limiter.limits)
        self._quiet_until, self._strikes = 0.0, 0
        self._lingers = any(limit.kind == "concurrency" or limit.held_to_answer for limit in limiter.limits)
        self._largest = {
            meter: min(r.largest for r in limiter.plan.rules if r.limit.meter == meter)
            for meter in self._meters
        }
        self._most = settings.concurrency or MOST_WORKERS
        self._workers: dict[asyncio.Task[None], bool] = {}  # task → has a request on its way
        self._flights: set[Flight] = set()
        self._linger: set[asyncio.Task[None]] = set()
        self._exhausted = False
        self._lag = 0.0
        self._keys_refused = 0
        self._timeout = FIRST_TIMEOUT if settings.timeout_seconds is None else settings.timeout_seconds
        self._all_done = asyncio.Event()
        self._cut = False
        self._transport: Transport | None = None
        self._urls: dict[str, URL] = {}

    # Going and stopping

    async def run(self) -> None:
        """Work until nothing is left to do, or until stopped.

        Raises:
            OSError: results cannot be written; what was written stands.
        """
        self._transport = Transport(most=0)
        watch = [asyncio.create_task(self._watch()), asyncio.create_task(self._watch_stalls())]
        try:
            self._grow()
            await self._all_done.wait()
        finally:
            for task in (*watch, *self._workers, *self._linger):
                task.cancel()
            await asyncio.gather(*watch, *self._workers, *self._linger, return_exceptions=True)
            await self._transport.close()
        if self._broken is not None:
            raise self._broken

    def stop(self, why: str, code: int) -> None:
        """Send nothing more; let the calls in flight come back."""
        if self.stopping is None:
            self.stopping, self.stop_code = why, code
            if self.on_stop is not None:
                self.on_stop()
            for task, flying in list(self._workers.items()):
                if not flying:
                    task.cancel()

    def fail(self, error: BaseException) -> None:
        """Stop at once; :meth:`run` raises it."""
        if self._broken is None:
            self._broken = error
            self.cut()

    def cut(self) -> None:
        """Stop at once."""
        self._cut = True
        for task in list(self._workers):
            task.cancel()

    @property
    def waiting(self) -> int:
        """Calls that wait for a permit."""
        return self.limiter.waiting

    def _learn_timeout(self) -> None:
        latency = self.figures.latency
        if self.settings.timeout_seconds is None and latency.count >= LEARNED_TIMEOUTS:
            self._timeout = max(LEAST_TIMEOUT, TIMEOUT_FACTOR * (latency.quantile(0.99) or 0.0))

    def _grow(self) -> None:
        """Keep a few workers ready for the next permits, half as many as are in flight."""
        if self._exhausted or self.stopping is not None:
            return
        if self._lag > BUSY_SECONDS and len(self._workers) >= ENOUGH_WORKERS:
            return  # more at once would only wait for this loop
        figures = self.figures
        ready = len(self._workers) - figures.in_flight - figures.sleeping
        wanted = max(2, figures.in_flight // 2)
        for _ in range(min(wanted - ready, self._most - len(self._workers))):
            task = asyncio.create_task(self._work())
            self._workers[task] = False
            task.add_done_callback(self._gone)

    def _gone(self, task: asyncio.Task[None]) -> None:
        self._workers.pop(task, None)
        if not task.cancelled():
            error = task.exception()
            if error is not None:
                self.fail(error)
        if not self._workers:
            self._all_done.set()

    async def _watch(self) -> None:
        """Look after what no event tells: time-outs that were learned meanwhile, and the deadline."""
        deadline = self.settings.deadline_seconds
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            now = time.monotonic()
            self._learn_timeout()
            self._grow()
            limit = self._timeout
            for flight in self._flights:
                if flight.deadline is not None and not flight.deadline.expired():
                    due = flight.sent_at + limit
                    when = flight.deadline.when()
                    if when is not None and due < when:
                        flight.deadline.reschedule(max(due, now))
            if deadline is None:
                continue
            left = self.figures.started_at + deadline - now
            if left <= -GRACE_SECONDS:
                self.cut()
            elif left <= 0:
                self.stop("the deadline is over", 3)
            elif self.stopping is None and not self.figures.in_flight and not self.figures.sleeping:
                blocked = self.limiter.blocked()
                if blocked is not None and blocked[1] is not None and blocked[1] > left:
                    self.stop(f"{blocked[0].name} does not open before the deadline", 3)

    async def _watch_stalls(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(STALL_SECONDS)
            stall = loop.time() - before - STALL_SECONDS
            self._lag += (stall - self._lag) / 8
            self.figures.longest_stall = max(self.figures.longest_stall, stall)

    # One worker

    async def _work(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise AssertionError("a worker is a task")
        try:
            while self.stopping is None:
                try:
                    row = await anext(self._rows)
                except StopAsyncIteration:
                    self._exhausted = True
                    return
                await self._call(task, row)
                # Answers that have come are written before anything new is sent: a crash repeats less.
                await asyncio.sleep(0)
        except Stopped:
            return
        except asyncio.CancelledError:
            if self.stopping is None and not self._cut:
                raise

    async def _call(self, task: asyncio.Task[None], row: Row) -> None:
        """One row to its end: a line in one of the two files."""
        figures, counts = self.figures, self.figures.counts
        attempt, first_throttled = 1, None
        while True:
            outcome = await self._attempt(task, row)
            now_us = round(time.monotonic() * SECOND)
            if outcome.error is ErrorClass.OK:
                self._succeed(row, outcome)
                return
            if outcome.error in SPENDS_NO_ATTEMPT and first_throttled is None:
                first_throttled = now_us
            counts.errors[outcome.error.value] += 1
            verdict = after(
                self._policy,
                outcome.error,
                attempt=attempt,
                first_throttled_us=first_throttled,
                retry_after_us=outcome.retry_after_us,
                now_us=now_us,
                random=random.random(),
            )
            match verdict:
                case RetryAt(at_us, attempt):
                    if self.stopping is not None:
                        raise Stopped
                    counts.retries += 1
                    pause = at_us - now_us
                    if pause > 0:
                        figures.sleeping += 1
                        self._grow()
                        try:
                            await asyncio.sleep(pause / SECOND)
                        finally:
                            figures.sleeping -= 1
                case GiveUp(reason):
                    self._fail(row, outcome, attempt, reason)
                    self._react(outcome)
                    return
                case Done():
                    raise AssertionError("only success is done")

    def _react(self, outcome: Outcome) -> None:
        """Stop the run where no other row can fare better."""
        self._keys_refused += outcome.error is ErrorClass.KEY
        if outcome.error is ErrorClass.MONEY_GONE:
            self.stop(f"the account has no credit left: {outcome.message}", 3)
        elif outcome.error is ErrorClass.KEY and (
            not self.figures.counts.succeeded or self._keys_refused >= KEYS_REFUSED
        ):
            self.stop(f"the API key was refused: {outcome.message}", 1)

    # One attempt

    async def _attempt(self, task: asyncio.Task[None], row: Row) -> Outcome:
        try:
            flight = self._flight(row)
        except CostExceedsLimit as error:
            return Outcome(ErrorClass.NEVER_FITS, "never_fits", str(error), None, None, None)
        figures = self.figures

        async def admit() -> None:
            if flight.permit is not None:  # the library sends it a second time: that is another call
                flight.permit.lost()
            flight.permit = None
            if self.stopping is not None:
                raise Stopped
            flight.permit = permit = await self._permit(flight.units)
            flight.sent_at = now = time.monotonic()
            if figures.first_sent_at is None:
                figures.first_sent_at = now
            figures.last_sent_at = now
            figures.waits.add(permit.waited_seconds)
            figures.counts.requests += 1
            if not self._workers.get(task):
                self._workers[task] = True
                figures.in_flight += 1
            self._flights.add(flight)
            if flight.deadline is not None:
                flight.deadline.reschedule(now + self._timeout)
            if self.on_sent is not None:
                self.on_sent(permit)
            self._grow()

        try:
            if self._lingers:
                return await self._exchange_lingering(flight, admit)
            return await self._exchange(flight, admit)
        finally:
            self._flights.discard(flight)
            if flight.permit is not None and not self._lingers:
                flight.permit.lost()
            if self._workers.get(task):
                self._workers[task] = False
                figures.in_flight -= 1

    async def _permit(self, units: dict[str, int]) -> Permit:
        while True:
            while (left := self._quiet_until - time.monotonic()) > 0:  # noqa: ASYNC110  # its end moves
                await asyncio.sleep(left)
            permit = await self.limiter.acquire_async(**units)
            if self.stopping is None and self._quiet_until <= time.monotonic():
                return permit
            permit.give_back()
            if self.stopping is not None:  # it came in the same turn as the reason to stop
                raise Stopped

    def _hush(self, sent_at: float, retry_after_us: int | None) -> None:
        """Nobody sends for a while: a refusal that shut no limit, for want of one."""
        if sent_at >= self._quiet_until:  # else it went before the server asked for quiet
            self._strikes += 1
        if retry_after_us is None:
            pause = min(FIRST_QUIET * 2 ** (self._strikes - 1), LONGEST_QUIET)
        else:
            pause = retry_after_us / SECOND
        self._quiet_until = max(self._quiet_until, time.monotonic() + pause)

    async def _exchange(self, flight: Flight, admit: Any) -> Outcome:
        try:
            async with asyncio.timeout(None) as flight.deadline:
                reply = await self._send(flight, admit)
        except TimeoutError:
            return self._timed_out(flight)
        except TransportError as error:
            return self._no_answer(error)
        return self._read(flight, reply)

    async def _exchange_lingering(self, flight: Flight, admit: Any) -> Outcome:
        """As above, but a call that timed out keeps its permit until it has really ended."""
        sending = asyncio.create_task(self._send(flight, admit))
        try:
            async with asyncio.timeout(None) as flight.deadline:
                reply = await asyncio.shield(sending)
        except TimeoutError:
            linger = asyncio.create_task(self._see_off(flight, sending))
            self._linger.add(linger)
            linger.add_done_callback(self._linger.discard)
            return self._timed_out(flight)
        except TransportError as error:
            if flight.permit is not None:
                flight.permit.lost()
            return self._no_answer(error)
        except BaseException:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            if flight.permit is not None:
                flight.permit.lost()
            raise
        return self._read(flight, reply)

    async def _see_off(self, flight: Flight, sending: asyncio.Task[Reply]) -> None:
        self.figures.lingering += 1
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                reply = await sending
            self._settle(flight, reply)
        except (TimeoutError, TransportError):
            pass  # it is over, and nobody knows how
        finally:
            self.figures.lingering -= 1
            if flight.permit is not None:
                flight.permit.lost()

    async def _send(self, flight: Flight, admit: Any) -> Reply:
        if self._transport is None:
            raise AssertionError("not running")
        row = flight.row
        url = self._urls.get(row.path)
        if url is None:
            if len(self._urls) > 1000:
                self._urls.clear()
            url = self._urls[row.path] = self._url(row.path)
        headers = dict(self.settings.headers)
        headers["Idempotency-Key"] = self._idempotency_key(row)
        return await self._transport.exchange(row.method, url, headers, row.body, admit)

    def _url(self, path: str) -> URL:
        base = self.settings.base_url
        # A base URL that ends where the paths begin is meant once: …/v1 and /v1/chat/completions.
        prefix = URL(base).raw_path.rstrip("/")
        text = base.removesuffix(prefix) + path if prefix and path.startswith(prefix + "/") else base + path
        if self.settings.query:
            text += ("&" if "?" in path else "?") + self.settings.query
        return URL(text, encoded=True)

    def _idempotency_key(self, row: Row) -> str:
        """The same for every attempt and every rerun of this row, and for no other."""
        parts = (self._salt, row.custom_id, row.method, row.path)
        digest = blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=16)
        digest.update(row.body or b"")
        return f"headgate-{digest.hexdigest()}"

    # Costs and settlements

    def _flight(self, row: Row) -> Flight:
        units = dict(self._others)
        flight = Flight(row, units)
        if self._tokens:
            flight.output_tokens = (
                self.estimator.output_tokens(row.model) if row.max_tokens is None else row.max_tokens
            )
            flight.input_tokens = self.estimator.input_tokens(row.model, row.text_bytes)
            for meter, known, guess in (
                ("input_tokens", 0, flight.input_tokens),
                (
                    "output_tokens",
                    flight.output_tokens if row.max_tokens is not None else 0,
                    flight.output_tokens,
                ),
                (
                    "tokens",
                    flight.output_tokens if row.max_tokens is not None else 0,
                    flight.input_tokens + flight.output_tokens,
                ),
            ):
                if meter in self._meters:
                    # A guess above the limit is taken for the limit; what is known to be above it is not.
                    units[meter] = max(known, min(guess, self._largest[meter]))
        for meter, cost in units.items():
            if cost > self._largest[meter]:
                raise CostExceedsLimit(
                    f"the limit on {meter} can carry at most {self._largest[meter]} in one call; "
                    f"this one costs {cost}",
                    limit=meter,
                    cost=cost,
                    largest=self._largest[meter],
                )
        return flight

    def _read(self, flight: Flight, reply: Reply) -> Outcome:
        data, malformed = _parse(reply, flight.row.path)
        answer = self._settle(flight, reply, data)
        elapsed = time.monotonic() - flight.sent_at
        if answer.error is ErrorClass.OK:
            if malformed:
                return Outcome(ErrorClass.MALFORMED, "malformed_answer", malformed, reply, None, None)
            self.figures.latency.add(elapsed)
            self._strikes = 0
        elif answer.error in SPENDS_NO_ATTEMPT:
            self.figures.counts.refused += 1
            if not self._rated:
                self._hush(flight.sent_at, answer.retry_after_us)
        message = self.settings.redact(answer.message) or f"HTTP {reply.status}"
        code = self.settings.redact(answer.code) or f"http_{reply.status}"
        return Outcome(answer.error, code, message, reply, data, answer.retry_after_us)

    def _settle(self, flight: Flight, reply: Reply, data: Any = None) -> Answer:
        row = flight.row
        answer = read_answer(reply.status, reply.fields, data, self.limiter.store.now().wall_us, self._meters)
        usage: dict[str, int] = {}
        charged: dict[str, int] = {}
        if answer.usage is not None:
            given, made = answer.usage
            usage = {"tokens": given + made, "input_tokens": given, "output_tokens": made}
            charged = {"input_tokens": given}
            if row.max_tokens is not None:
                # The estimate is the server's: what it counted of the request, and what was asked for.
                charged |= {"tokens": given + row.max_tokens, "output_tokens": row.max_tokens}
            self.estimator.learn(row.model, row.text_bytes, given, made)
        throttle = None
        if answer.error in SPENDS_NO_ATTEMPT or answer.error is ErrorClass.MONEY_GONE:
            throttle = Throttle(
                answer.meter, answer.retry_after_us, until_edge=answer.error is ErrorClass.WINDOW_GONE
            )
            self.figures.counts.late += answer.error in SPENDS_NO_ATTEMPT
        if flight.permit is not None and not flight.permit.settled:
            for limit in self.limiter.limits:
                meter = limit.meter
                booked = flight.units.get(meter, 1)
                told = usage if limit.settles_to_usage else charged
                self.sent_units[limit.name] += told.get(meter, booked)
            flight.permit.signal(
                Signal(usage=usage, charged=charged, readings=answer.readings, throttle=throttle)
            )
        return answer

    def _timed_out(self, flight: Flight) -> Outcome:
        self.figures.counts.timeouts += 1
        seconds = time.monotonic() - flight.sent_at
        return Outcome(ErrorClass.TRANSPORT, "timeout", f"no answer within {seconds:.1f} s", None, None, None)

    def _no_answer(self, error: TransportError) -> Outcome:
        message = self.settings.redact(str(error))
        return Outcome(ErrorClass.TRANSPORT, error.code, message, None, None, None)

    # Results

    def _succeed(self, row: Row, outcome: Outcome) -> None:
        self._output.add(result_line(row.number, row.custom_id, self._response(outcome), None))
        self.figures.counts.succeeded += 1
        self._keys_refused = 0
        self._done(row)

    def _fail(self, row: Row, outcome: Outcome, attempts: int, reason: str) -> None:
        error = {"code": outcome.code, "message": outcome.message, "reason": reason, "attempts": attempts}
        response = self._response(outcome) if outcome.reply is not None else None
        self.write_error(row.number, row.custom_id, response, error)
        self.figures.counts.failed += 1

    def write_error(
        self, number: int, custom_id: str | None, response: bytes | None, error: dict[str, Any]
    ) -> None:
        """A line in the errors file."""
        self._errors.add(result_line(number, custom_id, response, error))
        if isinstance(self._output, Ordered):
            self._output.skip(number)

    def _response(self, outcome: Outcome) -> bytes:
        reply = outcome.reply
        if reply is None:
            return b"null"
        body, data = reply.body.strip(), outcome.data
        shows_key = self.settings.may_show_key(body)
        if data is None or shows_key or _NO_LINE.search(body):
            body = self._encode(body.decode("utf-8", "replace") if data is None else data, redact=shows_key)
        request_id = reply.fields.get("x-request-id")
        return response_json(reply.status, request_id and self.settings.redact(request_id), body)

    def _encode(self, data: Any, *, redact: bool) -> bytes:
        try:
            return json.dumps(self.settings.redact_data(data) if redact else data).encode()
        except RecursionError:  # read, but too deep to be written
            return json.dumps(self.settings.redact(repr(data))).encode()


def _parse(reply: Reply, path: str = "") -> tuple[Any, str]:
    """The JSON of an answer, and what is wrong with it (empty if nothing is)."""
    kind = reply.fields.get("content-type", "application/json")
    if "json" not in kind:
        talks_json = path.partition("?")[0].endswith(JSON_PATHS) and reply.status < 300
        return None, f"expected JSON; got {kind}" if talks_json else ""
    if not reply.body and reply.status in (202, 204):
        return None, ""
    try:
        return read_json(reply.body), ""
    except (ValueError, RecursionError) as error:
        return None, f"expected JSON; {error}"
