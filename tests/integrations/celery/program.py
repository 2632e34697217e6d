"""A program with tasks, as a user writes it. Where it runs is told by the environment."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from celery import Celery

from headgate import Limiter

app = Celery("program", broker=os.environ["BROKER"], backend=os.environ["BACKEND"])
app.conf.update(
    worker_prefetch_multiplier=1,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    broker_transport_options={"visibility_timeout": 4},
    result_expires=600,
)
limiter = Limiter("requests=40/s:burst=4:start=full", key="service", store=os.environ["STORE"])
blocked = Limiter("requests=1/day:kind=anchored:start=used-1", key="blocked", store=os.environ["STORE"])
JOURNAL = Path(os.environ["JOURNAL"])


class Refused(Exception):
    """As HTTP libraries raise it."""

    def __init__(self) -> None:
        super().__init__("429 Too Many Requests")
        self.status_code = 429
        self.headers = {"retry-after": "1"}


def note(*words: object) -> None:
    """One line, whole, whichever process writes it."""
    descriptor = os.open(JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, (" ".join(map(str, (time.time(), *words))) + "\n").encode())
    os.close(descriptor)


@app.task(bind=True, acks_late=True, reject_on_worker_lost=True)
@limiter.limited
def call(self: Any, name: object, seconds: float = 0.02) -> object:
    note("call", name, self.request.id)
    time.sleep(seconds)
    return name


@app.task(bind=True, autoretry_for=(ConnectionError,), max_retries=2, retry_backoff=0.01, retry_jitter=False)
@limiter.limited
def flaky(self: Any, name: object) -> None:
    note("flaky", name, self.request.retries)
    raise ConnectionError(f"no route to {name}")


@app.task(bind=True, max_retries=0)
@limiter.limited
def refused_once(self: Any, name: str) -> str:
    first = not (JOURNAL.parent / name).exists()
    note("refused_once", name, self.request.retries)
    if first:
        (JOURNAL.parent / name).touch()
        raise Refused
    return name


@app.task
def collect(results: list[object]) -> int:
    return len(results)


@app.task(bind=True)
@blocked.limited
def never_today(self: Any, name: object) -> object:
    note("never_today", name)
    return name
