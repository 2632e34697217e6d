"""Calling back: a POST that says which task is done, again and again until somebody takes it.

A host that cannot be reached, or says that it cannot now, is left alone by everybody for a quarter of a
second, then twice as long, up to a minute; meanwhile its callbacks are parked, and spend no attempt. That is
what a limiter does with a service that throttles, so each host has one. What is wrong with one callback alone
is that callback's matter.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from headgate.core.headers import retry_after_us
from headgate.core.model import SECOND
from headgate.errors import InvalidRequest, ObjectNotFound, ObjectTooLarge
from headgate.integrations.celery.mediator.engine import Engine
from headgate.integrations.celery.mediator.outgoing import (
    AddressRefused,
    Reply,
    TransportError,
)
from headgate.integrations.celery.mediator.request import (
    callback_of,
    is_task_id,
    request_name,
    vet_callback,
)
from headgate.integrations.celery.mediator.steps import CONTROL, NOT_NOW, Again, backoff_seconds
from headgate.integrations.celery.mediator.urls import Url
from headgate.integrations.celery.tasks import attempt_of, run
from headgate.providers.outcome import Judge

if TYPE_CHECKING:
    from celery import Task

log = logging.getLogger("headgate")

HOST_IS_DOWN = frozenset({429, 502, 503, 504})
WORTH_ANOTHER = frozenset({408, 425})
"""Of 4xx; 5xx are, too."""
LONGEST_PAUSE_SECONDS = 3600
"""A host that asks for more is not believed."""
TASK_HEADER = "headgate-task-id"


class HostDown(Exception):
    """Nobody is to call that host for a while; looks like a throttle, for it is treated as one."""

    def __init__(self, told: str, fields: Mapping[str, str]) -> None:
        super().__init__(told)
        self.status_code = 429
        self.headers: dict[str, str] = {}
        asked_us = retry_after_us(fields, round(time.time() * SECOND))
        if asked_us is not None:
            seconds = min(asked_us / SECOND, LONGEST_PAUSE_SECONDS)
            self.headers["retry-after"] = f"{seconds:.3f}"


class GivenUp(Exception):
    """Nobody took it, and nothing more is tried."""


def call_back(
    engine: Engine, task: Task, task_id: object, failed: int, since: float, once_more: bool
) -> None:
    """Have whoever asked for it called back, or write down why not.

    Args:
        task: bound to the message, ``since`` among its arguments.
        failed: attempts that have failed before, not counting those that found the host down.
        since: Unix time at which this was to be done first.
        once_more: whether it may have been given up before.

    Raises:
        Again
        Ignore: it is parked, or another copy of it is newer.
        StorageError, StoreError, ConfigurationError: see ``steps.NOT_NOW``.
    """
    if not is_task_id(task_id):
        log.error("a callback has no id that could name a request: %.80r", task_id)
        return
    try:
        data = engine.storage.read(request_name(task_id), engine.settings.largest_request_bytes)
    except (ObjectNotFound, ObjectTooLarge) as error:
        log.error("whom to call back of task %s is not known: %s", task_id, error)
        return
    text = callback_of(data)
    if text is None:
        return
    shown = None
    try:
        url, public = vet_callback(text, engine.settings)
        shown = url.shown
        reply = _post(engine, task, task_id, url, public, since)
    except (InvalidRequest, GivenUp) as error:
        _give_up(engine, task_id, shown, failed, str(error))
        return
    except (*CONTROL, *NOT_NOW):
        raise
    except Exception as error:
        log.exception("the callback of task %s failed", task_id)
        told, is_final, asked_us = type(error).__name__, False, None
    else:
        if reply.status < 300:
            if once_more and engine.storage.exists(callback_name(task_id)):
                _tell(engine, task_id, url=shown, error=None, attempts=failed + 1)
            return
        told, is_final = f"HTTP {reply.status}", reply.status < 500 and reply.status not in WORTH_ANOTHER
        asked_us = retry_after_us(reply.headers, round(time.time() * SECOND))
    if is_final:
        _give_up(engine, task_id, shown, failed + 1, told)
    elif failed + 1 >= engine.settings.callbacks.attempts:
        _give_up(engine, task_id, shown, failed + 1, f"{told}, {failed + 1} attempts")
    else:
        raise Again(backoff_seconds(failed + 1, asked_us), failed=failed + 1)


def callback_name(task_id: str) -> str:
    """The object that says why nobody was called back, or that somebody was after all."""
    return f"{task_id}.callback.json"


def _post(engine: Engine, task: Task, task_id: str, url: Url, public: bool, since: float) -> Reply:
    callbacks = engine.settings.callbacks
    attempt = attempt_of(task.run.__func__)
    if attempt is None:
        raise RuntimeError("expected to run in a worker, as a message of its own")
    headers = {
        "content-type": "application/json",
        "user-agent": "headgate",
        TASK_HEADER: task_id,
        **{name: secret.value() for name, secret in callbacks.secret_headers.items()},
    }
    body = json.dumps({"task_id": task_id}).encode()

    def post() -> Reply:
        fields: Mapping[str, str] = {}
        seconds = callbacks.timeout_seconds
        try:
            with engine.connections.open(url, seconds=seconds, public=public) as exchange:
                reply = exchange.send("POST", headers, body, seconds=seconds, head_only=True)
            if reply.status not in HOST_IS_DOWN:
                return reply
            told, fields = f"HTTP {reply.status}", reply.headers
        except TransportError as error:
            told = str(error)
        except AddressRefused as error:
            raise GivenUp(str(error)) from None
        if time.time() - since > callbacks.give_up_seconds:
            raise GivenUp(f"{told}, for {callbacks.give_up_seconds:g} s")
        log.warning("%s cannot be called back now: %s", url.netloc, told)
        raise HostDown(told, fields)

    engine.hosts.tell(url.netloc)
    limiter = engine.callback_limiter(url.netloc)
    judge = Judge(limiter.plan.meters, None, (), None, None)
    reply: Reply = run(limiter, attempt, dict, post, judge, sends_one=True)
    return reply


def _give_up(engine: Engine, task_id: str, url: str | None, attempts: int, told: str) -> None:
    log.warning("nobody was called back of task %s: %s", task_id, told)
    _tell(engine, task_id, url=url, error={"kind": "given_up", "message": told}, attempts=attempts)


def _tell(engine: Engine, task_id: str, *, url: str | None, error: object, attempts: int) -> None:
    values = {"task_id": task_id, "ok": error is None, "url": url, "error": error, "attempts": attempts}
    engine.storage.write(callback_name(task_id), json.dumps(values, separators=(",", ":")).encode())
