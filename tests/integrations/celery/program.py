"""A program with tasks, as a user writes it. Where it runs is told by the environment."""

from __future__ import annotations

import http.client
import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from celery import Celery
from celery.exceptions import Retry

from headgate import Limiter

STORE = os.environ["STORE"]
JOURNAL = Path(os.environ["JOURNAL"])
RATE, BURST = os.environ["RATE"], os.environ["BURST"]

app = Celery("program", broker=os.environ["BROKER"], backend=os.environ["BACKEND"])
app.conf.update(
    worker_prefetch_multiplier=1,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    broker_transport_options={"visibility_timeout": 4},
    result_expires=600,
    accept_content=["json", "yaml"],
)
task = partial(app.task, shared=False)  # tests load this more than once, each time for another app
limiter = Limiter(f"requests={RATE}/s:burst={BURST}:start=full", key="service", store=STORE)
blocked = Limiter("requests=1/day:kind=anchored:start=used-1", key="blocked", store=STORE)
gate = Limiter("requests=500/s:burst=50:start=full", key="gate", store=STORE)
free = Limiter("requests=1000/s:burst=100:start=full", key="free", store=STORE)
if os.environ.get("BEAT"):
    app.conf.beat_schedule = {"tick": {"task": f"{__name__}.tick", "schedule": 0.3}}


class Refused(Exception):
    """As HTTP libraries raise it."""

    def __init__(self, status: int = 429, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"HTTP {status}")
        self.status_code = status
        self.headers = headers or {"retry-after": "1"}


def note(*words: object) -> None:
    """One line, whole, whichever process writes it."""
    descriptor = os.open(JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, (" ".join(map(str, (time.time(), *words))) + "\n").encode())
    os.close(descriptor)


def ask(id: str, name: object) -> None:
    """One call of the strict server."""
    connection = http.client.HTTPConnection(os.environ["SERVICE"].removeprefix("http://"), timeout=30)
    body = json.dumps({"custom_id": str(name), "messages": []})
    connection.request("POST", "/", body, {"idempotency-key": id, "x-client": str(os.getpid())})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    if answer.status != 200:
        raise Refused(answer.status, dict(answer.headers))


@task(bind=True, acks_late=True, reject_on_worker_lost=True)
@limiter.limited
def call(self: Any, name: object, seconds: float = 0) -> object:
    ask(self.request.id, name)
    note("call", name, self.request.id)
    time.sleep(seconds)
    return name


@task()
def collect(results: list[object]) -> int:
    return len(results)


@task(bind=True)
@blocked.limited
def never_today(self: Any, name: object) -> object:
    note("never_today", name)
    return name


@task()
@free.limited
def tick() -> None:
    note("tick")


# Throttles


@task(bind=True, max_retries=0, autoretry_for=(Exception,))
@gate.limited(requests_header="x-my-reset", parser=lambda text: int(text) / 1000)
def refused_once(self: Any, name: str) -> str:
    note("refused_once", name, self.request.retries)
    if first_time(name):
        raise Refused(headers={"x-my-reset": "1500"})
    return name


@task(bind=True)
@gate.limited
def refused_and_sent_again(self: Any, name: str) -> str:
    """As programs do it that know nothing better."""
    note("refused_and_sent_again", name, self.request.retries)
    try:
        if first_time(name):
            raise Refused
    except Refused as error:
        raise self.retry(exc=error, countdown=0) from error
    return name


@task(bind=True)
@gate.limited
def sends_and_is_refused(self: Any, name: str) -> str:
    linked.delay(None, f"{name}-{self.request.retries}")
    if first_time(name):
        raise Refused(headers={"retry-after": "0"})
    return name


def first_time(name: str) -> bool:
    path = JOURNAL.parent / name
    found = not path.exists()
    path.touch()
    return found


# Retries: each beside one that is not limited, which shows what Celery makes of the options.

RETRIES: dict[str, dict[str, Any]] = {
    "max_retries": {"max_retries": 1, "default_retry_delay": 0},
    "retry_kwargs": {"retry_kwargs": {"max_retries": 2, "countdown": 0}},
    "retry_backoff": {"max_retries": 2, "retry_backoff": 1, "retry_jitter": False},
    "retry_backoff_max": {
        "max_retries": 2, "retry_backoff": 3, "retry_backoff_max": 1, "retry_jitter": False,
    },
    "retry_jitter": {"max_retries": 2, "retry_backoff": 2, "retry_backoff_max": 2},
    "dont_autoretry_for": {"dont_autoretry_for": (ConnectionRefusedError,), "default_retry_delay": 0},
}  # fmt: skip


def fails(self: Any, name: str) -> None:
    note("fails", name, self.request.id, self.request.retries)
    raise ConnectionRefusedError(f"no route to {name}, try {self.request.retries}")


for option, values in RETRIES.items():
    wanted = {"bind": True, "autoretry_for": (ConnectionError,), **values}
    task(name=f"plain.{option}", **wanted)(fails)
    task(name=f"limited.{option}", **wanted)(free.limited(fails))


def goes_on(self: Any, name: str) -> str:
    """``throw=False``: the task is sent again, and this one goes on."""
    note("goes_on", name, self.request.retries)
    if self.request.retries == 0:
        found = self.retry(countdown=0, throw=False)
        assert isinstance(found, Retry)
    return f"try {self.request.retries}"


task(name="plain.retry_throw", bind=True)(goes_on)
task(name="limited.retry_throw", bind=True)(free.limited(goes_on))


@task(bind=True, autoretry_for=(ConnectionError,), max_retries=2, default_retry_delay=0)
@limiter.limited
def flaky(self: Any, name: object) -> None:
    ask(self.request.id, f"flaky {name} {self.request.retries}")
    note("flaky", name, self.request.retries)
    raise ConnectionError(f"no route to {name}")


def cost_that_is_known_once(name: str) -> dict[str, int]:
    if not first_time(name):
        raise LookupError(f"{name} is gone")
    return {}


@task()
@gate.limited(cost=cost_that_is_known_once)
def costs_what_nobody_knows(name: str) -> str:
    return name


@task()
@gate.limited
def shown(what: object) -> str:
    return repr(what)


# What hangs on a task


def tells(self: Any, name: str) -> dict[str, Any]:
    request = self.request
    note("tells", name)
    return {
        "headers": {"colour": request.get("colour")},
        "timelimit": list(request.timelimit),
        "priority": request.delivery_info.get("priority"),
        "root_id": request.root_id == request.id,
        "shadow": request.shadow,
        "argsrepr": request.argsrepr,
        "stamps": request.stamps,
    }


task(name="plain.tells", bind=True)(tells)
task(name="limited.tells", bind=True)(gate.limited(tells))


@task()
def linked(result: object, name: str) -> None:
    note("linked", name)


@task(bind=True)
@gate.limited
def replaced(self: Any, name: str) -> object:
    note("replaced", name)
    return self.replace(behind_it.s(name))


@task()
@gate.limited
def behind_it(name: str) -> str:
    note("behind_it", name)
    return name
