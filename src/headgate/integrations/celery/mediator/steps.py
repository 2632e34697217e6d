"""The story of a task: read the request, take a permit, call, store the response, have it called back.

Each step may be done again: what is stored is not paid for again, and exactly one response is stored. What
may pass is tried again later, and no slot waits for it; what does not pass is stored as a failure.
"""

from __future__ import annotations

import logging
import random
import time
from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore, Reject, Retry

from headgate.core.model import SECOND
from headgate.core.retry import WORTH_ANOTHER, ErrorClass
from headgate.errors import (
    ConfigurationError,
    CostExceedsLimit,
    InvalidRequest,
    ObjectNotFound,
    ObjectTooLarge,
    StorageError,
    StoreError,
)
from headgate.integrations.celery.mediator.engine import Engine, cost_of, judge_of
from headgate.integrations.celery.mediator.outgoing import AnswerTooLarge, Reply, TransportError
from headgate.integrations.celery.mediator.request import (
    Request,
    callback_of,
    find_service,
    is_task_id,
    read_request,
    request_name,
)
from headgate.integrations.celery.mediator.response import (
    INTERNAL,
    INVALID,
    KINDS,
    NO_REQUEST,
    TOO_LARGE,
    Response,
    is_json,
    response_name,
    stored_failure,
)
from headgate.integrations.celery.mediator.secrets import redact, redact_text
from headgate.integrations.celery.mediator.settings import Service
from headgate.integrations.celery.mediator.urls import Url
from headgate.integrations.celery.tasks import attempt_of, run
from headgate.providers.answers import read_answer

if TYPE_CHECKING:
    from celery import Task

log = logging.getLogger("headgate")

LONGEST_COUNTDOWN_SECONDS = 10.0
"""A worker holds what has a countdown, and a broker may take it for lost; so it is short."""
FIRST_BACKOFF_SECONDS = 0.5
MISSING_ATTEMPTS = 5
"""How often to look for a request that is not there: its task may have been faster than it."""
LONGEST_MESSAGE = 500
HOLD_SECONDS = 600.0
"""An answer that was paid for is held for so long while storage cannot take it."""

CONTROL = (Ignore, Reject, Retry)
"""What tells the worker what becomes of a message."""
NOT_NOW = (StorageError, StoreError, ConfigurationError)
"""What is no fault of a request: storage or limits cannot be used, or this worker's settings are not right
(other limits than the other workers', a secret that is not there). Its task waits until that is put right."""


class Again(Exception):
    """Try later.

    Attributes:
        seconds: until then.
        counts: arguments of the task by then.
    """

    def __init__(self, seconds: float, **counts: int) -> None:
        super().__init__(f"again in {seconds:.1f} s")
        self.seconds = seconds
        self.counts = counts


def call(
    engine: Engine, task: Task, task_id: object, failed: int, missing: int, retry_failed: bool = False
) -> bool:
    """Have the response stored.

    Args:
        task: bound to the message.
        failed: attempts that have failed before.
        missing: how often there was no request.
        retry_failed: whether a response that tells of a failure is to be replaced.

    Returns:
        Whether somebody may have to be called back.

    Raises:
        Again
        Ignore: it is parked, or another copy of it is newer.
        StorageError, StoreError, ConfigurationError: see ``NOT_NOW``.
    """
    if not is_task_id(task_id):
        log.error("a task has no id that could name its request: %.80r", task_id)
        return False
    there_is_one = engine.storage.exists(response_name(task_id))
    if there_is_one:
        kind = _failure(engine, task_id, retry_failed)
        # That there was no request is no answer to one that has come since.
        if kind is None or not (retry_failed or kind == NO_REQUEST):
            return True  # perhaps nobody was called back yet
    data = _read(engine, task_id, missing)
    response = data if isinstance(data, Response) else _respond(engine, task, task_id, data, failed)
    if there_is_one and response.error is not None and _failure(engine, task_id, retry_failed) is None:
        return True  # another copy of the task has done better
    _store(engine, response, replaces=there_is_one)
    return isinstance(data, bytes) and callback_of(data) is not None


def backoff_seconds(failed: int, asked_us: int | None = None) -> float:
    """A pause after so many failures, drawn evenly from 0 to its ceiling; as long as the server asked for if
    that is longer, but never above the longest countdown.
    """
    ceiling = min(FIRST_BACKOFF_SECONDS * 2 ** (failed - 1), LONGEST_COUNTDOWN_SECONDS)
    return min(max(random.uniform(0, ceiling), (asked_us or 0) / SECOND), LONGEST_COUNTDOWN_SECONDS)


def _failure(engine: Engine, task_id: str, of_any_kind: bool) -> str | None:
    """What kind of failure the response tells of, None if of none; at least if that is ``no_request``."""
    return stored_failure(
        engine.storage, task_id, engine.settings.largest_response_bytes if of_any_kind else 0
    )


def _read(engine: Engine, task_id: str, missing: int) -> bytes | Response:
    try:
        return engine.storage.read(request_name(task_id), engine.settings.largest_request_bytes)
    except ObjectNotFound:
        if missing + 1 < MISSING_ATTEMPTS:
            raise Again(backoff_seconds(missing + 1), missing=missing + 1) from None
        return Response(task_id=task_id, error=(NO_REQUEST, f"there is no {request_name(task_id)}"))
    except ObjectTooLarge as error:
        return Response(task_id=task_id, error=(INVALID, str(error)))


def _respond(engine: Engine, task: Task, task_id: str, data: bytes, failed: int) -> Response:
    service: Service | None = None
    request: Request | None = None

    def response(**facts: Any) -> Response:
        return Response(
            task_id=task_id,
            service=service.name if service else None,
            metadata=request.metadata if request else None,
            **facts,
        )

    try:
        request = read_request(data)
        service, url = find_service(request, engine.settings)
        if failed >= service.attempts:  # the last answer could not be stored
            return response(error=(INTERNAL, f"no answer could be kept, {failed} attempts"), attempts=failed)
        return _send(engine, task, task_id, request, service, url, failed)
    except InvalidRequest as error:
        return response(error=(INVALID, str(error)), attempts=failed)
    except CostExceedsLimit as error:
        return response(error=(KINDS[ErrorClass.NEVER_FITS], str(error)), attempts=failed)
    except AnswerTooLarge as error:
        return response(error=(TOO_LARGE, str(error)), attempts=failed + 1)
    except TransportError as error:
        return response(
            error=(KINDS[ErrorClass.TRANSPORT], _last(service, failed, ErrorClass.TRANSPORT, str(error))),
            attempts=failed + 1,
        )
    except (*CONTROL, Again, *NOT_NOW):
        raise
    except Exception as error:
        log.exception("the task %s could not be carried out", task_id)
        told = _last(service, failed, ErrorClass.MALFORMED, type(error).__name__)
        return response(error=(INTERNAL, told), attempts=failed + 1)


def _send(
    engine: Engine,
    task: Task,
    task_id: str,
    request: Request,
    service: Service,
    url: Url,
    failed: int,
) -> Response:
    attempt = attempt_of(task.run.__func__)
    if attempt is None:
        raise RuntimeError("expected to run in a worker, as a message of its own")
    headers = _headers(task_id, request, service)
    body = request.body
    began: list[float] = []

    with engine.connections.open(url) as exchange:

        def send() -> Reply:
            began[:] = time.time(), time.monotonic()
            return exchange.send(request.method, headers, body, seconds=service.timeout_seconds)

        reply: Reply = run(
            engine.limiter(service),
            attempt,
            lambda: cost_of(service, request),
            send,
            judge_of(service, request),
            sends_one=True,
        )
    ended = time.monotonic()
    wall_us, meters = round(time.time() * SECOND), engine.limiter(service).plan.meters
    secrets = tuple(service.secret_headers.values())
    answer = read_answer(reply.status, reply.headers, reply.json, wall_us, meters, service.resets)
    kind = answer.error
    if kind is ErrorClass.OK and is_json(reply) and reply.body and not _parses(reply):
        kind = ErrorClass.MALFORMED
    error = None
    if kind is not ErrorClass.OK:
        # Hidden first: of a secret that is cut in two, no part would be found.
        told = redact_text(answer.message, secrets)[:LONGEST_MESSAGE] or f"HTTP {reply.status}"
        error = KINDS[kind], _last(service, failed, kind, told, answer.retry_after_us)
    return Response(
        task_id=task_id,
        service=service.name,
        reply=_without(reply, secrets),
        error=error,
        attempts=failed + 1,
        started=began[0],
        seconds=ended - began[1],
        metadata=request.metadata,
    )


def _last(
    service: Service | None, failed: int, kind: ErrorClass, told: str, asked_us: int | None = None
) -> str:
    """What went wrong, if no other attempt is worth it.

    Raises:
        Again: one is.
    """
    if service is not None and kind in WORTH_ANOTHER and failed + 1 < service.attempts:
        log.info("attempt %d at %s has failed: %s", failed + 1, service.name, kind.value)
        raise Again(backoff_seconds(failed + 1, asked_us), failed=failed + 1)
    return told


def _headers(task_id: str, request: Request, service: Service) -> dict[str, str]:
    headers = {"accept": "application/json, */*;q=0.5", "user-agent": "headgate"}
    if request.payload is not None:
        headers["content-type"] = "application/json"
    if service.idempotency_header:
        headers[service.idempotency_header] = task_id
    headers |= service.headers
    headers |= request.headers
    return headers | {name: secret.value() for name, secret in service.secret_headers.items()}


def _parses(reply: Reply) -> bool:
    return reply.json is not None or reply.body.strip() == b"null"


def _without(reply: Reply, secrets: Any) -> Reply:
    headers = {name: redact_text(value, secrets) for name, value in reply.headers.items()}
    return Reply(reply.status, headers, redact(reply.body, secrets))


def _store(engine: Engine, response: Response, *, replaces: bool = False) -> None:
    """Store it, unless there is one that it does not replace; of two, the first stands.

    Raises:
        StorageError: it cannot be stored, and has cost nothing.
        Again: it cannot be stored, and has to be done again.
    """
    name, data = response_name(response.task_id), response.data()
    until = time.monotonic() + HOLD_SECONDS
    failures = 0
    while True:
        try:
            (engine.storage.write if replaces else engine.storage.create)(name, data)
        except StorageError as error:
            if response.reply is None:
                raise
            if time.monotonic() >= until:
                log.error("%s cannot be stored, and is given up: %s", name, error)
                raise Again(LONGEST_COUNTDOWN_SECONDS, failed=response.attempts) from error
            failures += 1
            log.warning("%s cannot be stored now, and is held: %s", name, error)
            time.sleep(backoff_seconds(failures))
        else:
            return
