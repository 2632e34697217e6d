"""Celery's side of the mediator: the app, its two tasks, and what begins and ends with a worker."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from celery import Celery, Task
from celery.exceptions import Ignore, Reject
from celery.signals import worker_init, worker_ready, worker_shutdown
from kombu.exceptions import OperationalError

from headgate.errors import ConfigurationError, StoreError
from headgate.integrations.celery.mediator import callback, steps
from headgate.integrations.celery.mediator.engine import Engine
from headgate.integrations.celery.mediator.settings import Settings
from headgate.integrations.celery.queues import due_queue
from headgate.integrations.celery.releaser import attend
from headgate.integrations.celery.tasks import end

log = logging.getLogger("headgate")

CALL = "headgate.mediator.call"
"""The task that any program sends: its one argument is a task id."""
CALL_BACK = "headgate.mediator.call_back"
"""The task that calls back; sending it by hand calls back once more."""

_engines: dict[int, Engine] = {}
"""By the id of their app."""


def make_app(settings: Settings) -> Celery:
    """The Celery app of a mediator. Nothing is connected to yet.

    It does not become the current app of a program that has another one.
    """
    app = Celery(
        "headgate-mediator",
        broker=settings.broker,
        backend=settings.backend,
        set_as_current=False,
        fixups=[],
    )
    transport = settings.broker.partition(":")[0]
    redis = transport.startswith(("redis", "rediss", "valkey", "sentinel"))
    app.conf.update(
        task_default_queue=settings.queue,
        task_serializer="json",
        accept_content=["json"],
        result_expires=86_400,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
        broker_transport_options=(
            {"visibility_timeout": settings.visibility_timeout_seconds} if redis else {}
        ),
    )
    engine = _engines[id(app)] = Engine(settings)
    options: dict[str, Any] = {
        "bind": True,
        "acks_late": True,
        "reject_on_worker_lost": True,
        "max_retries": None,
        "ignore_result": settings.backend is None,
    }

    def call(self: Task, task_id: str, failed: int = 0, missing: int = 0, retry_failed: bool = False) -> None:
        given = {"failed": failed, "missing": missing, "retry_failed": retry_failed}

        def step() -> None:
            if steps.call(engine, self, task_id, failed, missing, retry_failed):
                # What is done is told at once, and not behind all that is still to be done.
                told = {"since": time.time(), "once_more": retry_failed}
                app.send_task(CALL_BACK, args=[task_id], kwargs=told, queue=due_queue(app, settings.queue))

        _done(engine, self, lambda: _guarded(self, task_id, given, step))

    def call_back(
        self: Task, task_id: str, failed: int = 0, since: float | None = None, once_more: bool = False
    ) -> None:
        once_more = once_more or since is None  # by hand
        begun = time.time() if since is None else since
        given = {"failed": failed, "since": begun, "once_more": once_more}
        # It may be parked, and then comes again with its arguments as they stand there.
        self.request.args, self.request.kwargs = [task_id], given

        def step() -> None:
            callback.call_back(engine, self, task_id, failed, begun, once_more)

        _done(engine, self, lambda: _guarded(self, task_id, given, step))

    app.task(name=CALL, **options)(call)
    app.task(name=CALL_BACK, **options)(call_back)
    return app


def _done(engine: Engine, task: Task, step: Callable[[], None]) -> None:
    """Take a step to its end; what was let out for it is out no longer, though no permit was asked for."""
    try:
        step()
    except (Ignore, Reject):  # it is parked, or comes again as it is
        raise
    except Exception:  # that it is to be tried again is one, too
        _end_of(engine, task)
        raise
    _end_of(engine, task)


def _end_of(engine: Engine, task: Task) -> None:
    with suppress(StoreError):  # it comes once more, and finds what is done
        end(task, engine.store)


def _guarded(task: Task, task_id: str, given: dict[str, Any], step: Callable[[], None]) -> None:
    """Take a step; what may pass is tried again, for as long as it takes."""
    try:
        step()
    except steps.CONTROL:
        raise
    except steps.Again as again:
        _again(task, task_id, {**given, **again.counts}, again.seconds)
    except steps.NOT_NOW as error:
        log.warning("the task %s has to wait: %s", task_id, error)
        _again(task, task_id, given, random.uniform(1, steps.LONGEST_COUNTDOWN_SECONDS))
    except OperationalError as error:
        log.warning("the broker cannot be reached: %s", type(error).__name__)
        raise Reject("the broker cannot be reached", requeue=True) from None


def _again(task: Task, task_id: str, given: dict[str, Any], seconds: float) -> None:
    try:
        task.retry(args=[task_id], kwargs=given, countdown=seconds)
    except Reject as error:  # it could not be sent, and would be lost
        raise Reject(error.reason, requeue=True) from None


# In a worker


def _engine_of(sender: Any) -> Engine | None:
    return _engines.get(id(getattr(sender, "app", None)))


@worker_init.connect
def _begin(sender: Any = None, **_: Any) -> None:
    """Before anything is forked, and before anything is received."""
    engine = _engine_of(sender)
    if engine is None:
        return
    services = engine.settings.services.values()
    headers = [service.secret_headers for service in services]
    try:
        for each in (*headers, engine.settings.callbacks.secret_headers):
            for secret in each.values():
                secret.value()
        for service in services:
            attend(engine.limiter(service))
    except ConfigurationError as error:
        raise SystemExit(f"headgate mediator: {error}") from None  # Celery would go on after any other error


@worker_ready.connect
def _ready(sender: Any = None, **_: Any) -> None:
    engine = _engine_of(sender)
    if engine is not None:
        engine.hosts.start()


@worker_shutdown.connect
def _end(sender: Any = None, **_: Any) -> None:
    engine = _engine_of(sender)
    if engine is not None:
        engine.hosts.stop()
