"""A client process: workers that take permits of one key of a shared store and call a strict server.

    python -m tests.fleet.client JSON

JSON holds the fields of :class:`Job`. It says `ready` when its connections are open, is told the instant of
the start on standard input, so that several begin at once, and says what came of it in one line of JSON at
its end. It ends with whoever started it: when standard input is closed.

A permit is the last step before a call. Each call tells the server's log who it is and when it was granted
and sent, so that a refusal can be laid at the right door.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import aiohttp

from headgate import Limiter
from headgate.errors import StoreUnavailable
from headgate.stores.base import open_store

CONNECT_SECONDS = 20.0
CALL_SECONDS = 20.0
"""A call that takes longer is lost: no server of a test is so slow."""
AGAIN_SECONDS = 0.05
"""What a worker does after an error of the store that it was told of: it asks again that much later."""
ORPHANED = 3


@dataclass(frozen=True)
class Job:
    """What a client process is to do.

    name: tells it from the others in the server's log.
    server: URL of the strict server.
    store, key, limits: of the limiter.
    workers: how many call at the same time.
    seconds: nobody asks for a permit later than that after the start, and those who wait go home.
    calls: nobody asks for a permit after so many; `None` for as many as there is time for.
    tokens: what each call costs in tokens; 0 for none. The server has to charge by `words`.
    think_seconds: how long a worker waits after each call.
    reads: settle by the answer's rate-limit fields; if not, by its usage alone.
    on_store_failure: of the limiter; `None` for a limiter that has no such option.
    lease_seconds: of the store, instead of its own; for tests that have to outwait it.
    """

    name: str
    server: str
    store: str
    limits: tuple[str, ...]
    workers: int
    seconds: float
    calls: int | None = None
    tokens: int = 0
    think_seconds: float = 0.0
    reads: bool = True
    service_class: Literal["interactive", "normal", "bulk"] = "normal"
    on_store_failure: str | None = None
    lease_seconds: float | None = None
    key: str = "fleet"

    @classmethod
    def from_json(cls, text: str) -> Job:
        raw = json.loads(text)
        return cls(**{**raw, "limits": tuple(raw["limits"])})


@dataclass
class Summary:
    """What came of it.

    granted: permits.
    answered, refused: answers with status 200, and with 429.
    lost: calls without an answer.
    errors: {kind: how often}, as workers were told; what happened outside of them begins with `loop: `.
    logged: the first warnings of the package.
    longest_wait_seconds: for a permit.
    longest_error_seconds: from asking for a permit to the error.
    longest_call_seconds: from sending to the answer.
    longest_lag_seconds: by which the event loop was late.
    starved_seconds: for which its threads could have run, and had no processor.
    wall_seconds: its wall clock at the end.
    """

    name: str
    granted: int = 0
    answered: int = 0
    refused: int = 0
    lost: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    logged: list[str] = field(default_factory=list)
    longest_wait_seconds: float = 0.0
    longest_error_seconds: float = 0.0
    longest_call_seconds: float = 0.0
    longest_lag_seconds: float = 0.0
    starved_seconds: float = 0.0
    wall_seconds: float = 0.0


class Client:
    """Workers, and what they have seen."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.summary = Summary(job.name)
        log = logging.getLogger("headgate")
        log.addHandler(Keeper(self.summary.logged))
        log.propagate = False
        options: dict[str, Any] = {}
        if job.on_store_failure is not None:
            options["on_store_failure"] = job.on_store_failure
        store = open_store(job.store)
        if job.lease_seconds is not None:
            _set_lease(job.lease_seconds)
        self.limiter = Limiter(
            *job.limits, key=job.key, store=store, service_class=job.service_class, **options
        )
        self.left = job.calls
        self.over = False
        self.waiting: set[asyncio.Task[None]] = set()
        self.units = {"tokens": job.tokens} if job.tokens else {}

    async def run(self) -> Summary:
        asyncio.get_running_loop().set_exception_handler(self._note)
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=3600)
        timeout = aiohttp.ClientTimeout(total=CALL_SECONDS)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            await asyncio.wait_for(self._connect(session), CONNECT_SECONDS)
            gc.collect()
            gc.freeze()  # what has been loaded is not looked through again and again
            print("ready", flush=True)
            begin_ns = int(await asyncio.to_thread(sys.stdin.readline))
            threading.Thread(target=_end_with_the_others, daemon=True).start()
            starved = _starved_seconds()
            await asyncio.sleep((begin_ns - time.monotonic_ns()) / 1e9)
            watch = asyncio.create_task(self._watch_the_loop())
            workers = [asyncio.create_task(self._work(session)) for _ in range(self.job.workers)]
            asyncio.get_running_loop().call_later(self.job.seconds, self._finish)
            await asyncio.gather(*workers, return_exceptions=True)
            watch.cancel()
            self.summary.starved_seconds = _starved_seconds() - starved
        self.summary.wall_seconds = time.time()
        return self.summary

    async def _connect(self, session: aiohttp.ClientSession) -> None:
        """One connection for each worker: all ask at once, so none can use another's."""

        async def greet() -> None:
            async with session.get(f"{self.job.server}/health") as answer:
                await answer.read()

        await asyncio.gather(*(greet() for _ in range(self.job.workers)))

    def _finish(self) -> None:
        self.over = True
        for task in list(self.waiting):
            task.cancel()

    async def _work(self, session: aiohttp.ClientSession) -> None:
        task = asyncio.current_task()
        assert task is not None
        while not self.over and self.left != 0:
            if self.left is not None:
                self.left -= 1
            self.waiting.add(task)
            asked = time.monotonic()
            try:
                async with self.limiter.permit(**self.units) as permit:
                    self.waiting.discard(task)
                    self._note_wait(time.monotonic() - asked)
                    lain_us = self.limiter.store.now().elapsed_us - permit.granted_us
                    await self._call(session, permit, lain_us)
                if self.job.think_seconds:
                    await asyncio.sleep(self.job.think_seconds)
            except StoreUnavailable as error:
                self.summary.errors[type(error).__name__] += 1
                self.summary.longest_error_seconds = max(
                    self.summary.longest_error_seconds, time.monotonic() - asked
                )
                await asyncio.sleep(AGAIN_SECONDS)
            except Exception as error:
                self.summary.errors[f"{type(error).__name__}: {error}"] += 1
                raise
            finally:
                self.waiting.discard(task)

    def _note_wait(self, seconds: float) -> None:
        self.summary.longest_wait_seconds = max(self.summary.longest_wait_seconds, seconds)

    async def _call(self, session: aiohttp.ClientSession, permit: Any, lain_us: int) -> None:
        summary = self.summary
        summary.granted += 1
        sent_ns = time.monotonic_ns()
        headers = {
            "x-client": self.job.name,
            "x-granted-ns": str(sent_ns - 1000 * lain_us),
            "x-sent-ns": str(sent_ns),
        }
        # The server makes the real usage of the body, so each is another.
        body = json.dumps({"max_tokens": max(self.job.tokens, 1), "number": summary.granted}).encode()
        try:
            async with session.post(f"{self.job.server}/v1/any", data=body, headers=headers) as answer:
                text = await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            summary.lost += 1
            summary.errors[f"call: {type(error).__name__}"] += 1
            permit.lost()
            return
        summary.longest_call_seconds = max(
            summary.longest_call_seconds, (time.monotonic_ns() - sent_ns) / 1e9
        )
        if answer.status == 200:
            summary.answered += 1
        else:
            summary.refused += answer.status == 429
        used = {}
        if self.job.tokens and answer.status == 200:
            used = {"tokens": json.loads(text)["usage"]["total_tokens"]}
        if self.job.reads or answer.status != 200:
            permit.read(answer.status, answer.headers, **used)
        else:
            permit.settle(**used)

    async def _watch_the_loop(self) -> None:
        pause = 0.005
        while True:
            due = time.monotonic() + pause
            await asyncio.sleep(pause)
            self.summary.longest_lag_seconds = max(self.summary.longest_lag_seconds, time.monotonic() - due)

    def _note(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.summary.errors[f"loop: {type(error).__name__ if error else context['message']}"] += 1
        if not isinstance(error, StoreUnavailable):
            loop.default_exception_handler(context)


def _starved_seconds() -> float:
    """What the system counts for all threads of this process; 0 where it does not."""
    waited_ns = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError):  # a thread that has just ended
            waited_ns += int(file.read_text().split()[1])
    return waited_ns / 1e9


def _set_lease(seconds: float) -> None:
    """In every module that has it by name; the memory of a process has a lease of its own, without an end."""
    known = {"LEASE_US": round(seconds * 1_000_000), "BEAT_SECONDS": seconds / 3}
    found = set()
    for name, module in list(sys.modules.items()):
        if name.startswith("headgate.") and name != "headgate.stores.memory":
            for word in known.keys() & vars(module).keys():
                vars(module)[word] = known[word]
                found.add(word)
    if "LEASE_US" not in found:
        raise LookupError("there is no LEASE_US to shorten")


class Keeper(logging.Handler):
    """Keeps what the package logs, from warnings on."""

    MOST = 50

    def __init__(self, kept: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.kept) < self.MOST:
            self.kept.append(record.getMessage())


def _end_with_the_others() -> None:
    sys.stdin.read()
    os._exit(ORPHANED)


def main() -> None:
    summary = asyncio.run(Client(Job.from_json(sys.argv[1])).run())
    print(json.dumps(vars(summary)), flush=True)


if __name__ == "__main__":
    main()
