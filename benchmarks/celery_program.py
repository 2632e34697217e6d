"""A Celery program that keeps to a service's limits, in the way that the environment names.

Each way is written as its users write it: headgate's from `docs/celery.md`, Celery's own from its page on
tasks, the other two from what goes round as "retry on 429". All make the same call of the same service.

It tells a journal what became of its tasks: a line in one write, whichever process it is. Times are of the
machine's monotonic clock, in nanoseconds.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import redis
from celery import Celery
from celery.signals import before_task_publish, task_postrun, task_prerun, worker_ready
from kombu.asynchronous.hub import Hub

from headgate import Limiter

BROKER, STORE, SERVICE = (os.environ[name] for name in ("BROKER", "STORE", "SERVICE"))
JOURNAL = Path(os.environ["JOURNAL"])
RATE, BURST, WORKERS = (int(os.environ[name]) for name in ("RATE", "BURST", "WORKERS"))
OTHER_SECONDS = 0.01

app = Celery("program", broker=BROKER)
app.conf.update(
    task_default_queue=os.environ["QUEUE"],
    task_ignore_result=True,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)


# ---- the service


class Refused(Exception):
    """As HTTP libraries raise it."""

    def __init__(self, status: int, headers: dict[str, str]) -> None:
        super().__init__(f"HTTP {status}")
        self.status_code = status
        self.headers = headers


def ask() -> None:
    """One call of the service, on a connection of its own."""
    began = time.monotonic_ns()
    connection = http.client.HTTPConnection(SERVICE.removeprefix("http://"), timeout=30)
    try:
        connection.request("POST", "/", json.dumps({"messages": []}))
        answer = connection.getresponse()
        answer.read()
    finally:
        connection.close()
        current.call_ns += time.monotonic_ns() - began
    if answer.status != 200:
        raise Refused(answer.status, {name.lower(): value for name, value in answer.headers.items()})


# ---- the ways


def headgate() -> None:
    limiter = Limiter(f"requests={RATE}/s:burst={BURST}", key="service", store=STORE)

    @app.task(name="call", bind=True)
    @limiter.limited
    def call(self: Any) -> None:
        ask()


def headgate_prefetch_1() -> None:
    """A worker then takes no more messages than it has slots; by default it is four times as many."""
    app.conf.worker_prefetch_multiplier = 1
    headgate()


def rate_limit() -> None:
    """It holds for each worker alone, so each is given its part. What is refused all the same comes again."""

    @app.task(name="call", bind=True, max_retries=None, rate_limit=f"{RATE / WORKERS:g}/s")
    @retry_on_429
    def call(self: Any) -> None:
        ask()


def rate_limit_mended() -> None:
    """Each message that a worker has to hold back is one more timer. The event loop of kombu 5.7 handles ten
    timers a turn at most, and if there were as many, sleeps for a second (`Hub.fire_timers`): so rate_limit
    falls to some two tasks a second, as celery/celery#5927 and #6845 say. Here there may be more.
    """
    Hub.fire_timers.__defaults__ = (1, 10, 100_000, ())
    rate_limit()


def retry() -> None:
    @app.task(name="call", bind=True, max_retries=None)
    @retry_on_429
    def call(self: Any) -> None:
        ask()


def retry_and_block() -> None:
    @app.task(name="call", bind=True, max_retries=None)
    @retry_on_429_and_block("service")
    def call(self: Any) -> None:
        ask()


WAYS = {
    way.__name__: way
    for way in (headgate, headgate_prefetch_1, rate_limit, rate_limit_mended, retry, retry_and_block)
}


def told_seconds(error: Refused, retries: int) -> float:
    """What Retry-After says; without it, a doubling time of at most a minute."""
    told = error.headers.get("retry-after")
    return float(told) if told else min(2.0**retries, 60.0)


def jittered(seconds: float) -> float:
    """No earlier than that, and not all at once."""
    return seconds * random.uniform(1, 2)


def retry_on_429(function: Callable[..., Any]) -> Callable[..., Any]:
    """Come again later, without a slot meanwhile, until it is let through."""

    @wraps(function)
    def body(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return function(self, *args, **kwargs)
        except Refused as error:
            seconds = told_seconds(error, self.request.retries)
            raise self.retry(exc=error, countdown=jittered(seconds)) from error

    return body


def retry_on_429_and_block(service: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The same, and nobody calls the service meanwhile: a key in Redis says so until its time is over."""
    client = redis.Redis.from_url(STORE)
    block = f"blocked:{service}"

    def decorator(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def body(self: Any, *args: Any, **kwargs: Any) -> Any:
            left_ms = client.pttl(block)
            if left_ms > 0:
                raise self.retry(countdown=jittered(left_ms / 1000))
            try:
                return function(self, *args, **kwargs)
            except Refused as error:
                seconds = told_seconds(error, self.request.retries)
                client.set(block, 1, px=round(seconds * 1000))
                raise self.retry(exc=error, countdown=jittered(seconds)) from error

        return body

    return decorator


WAYS[os.environ["WAY"]]()


@app.task(name="other")
def other() -> None:
    """A task of a service without limits."""
    time.sleep(OTHER_SECONDS)


# ---- what is written down


class Current:
    """The task that has this process's slot: when it came in, and how long it has been in its calls."""

    began_ns = call_ns = 0


current = Current()


def note(*words: object) -> None:
    descriptor = os.open(JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, (" ".join(map(str, words)) + "\n").encode())
    finally:
        os.close(descriptor)


@task_prerun.connect
def _comes(**_: Any) -> None:
    current.began_ns, current.call_ns = time.monotonic_ns(), 0


@task_postrun.connect
def _goes(task: Any = None, state: str | None = None, **_: Any) -> None:
    note("ran", task.name, state, current.began_ns, time.monotonic_ns(), current.call_ns)


@before_task_publish.connect
def _sent(sender: str | None = None, **_: Any) -> None:
    note("sent", sender)


@worker_ready.connect
def _ready(**_: Any) -> None:
    threading.Thread(target=_end_with_who_started, daemon=True).start()
    note("ready")


def _end_with_who_started() -> None:
    """This worker and its children."""
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)
