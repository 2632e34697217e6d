"""The worker's side: a task asks for its permit, and is parked if it would have to wait.

A message of a task is told from older copies of it by the number in its headers; the lot knows the newest.

A task that was released comes a moment before its turn and waits for its permit in the slot: for a moment
only, and not at all if it is known that the permit is further off.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celery import current_task
from celery.exceptions import Ignore, TaskPredicate
from celery.signals import task_received
from kombu.serialization import dumps, registry

from headgate.core.model import ANSWERED, LOST, SECOND, UNSENT, Signal, Wait
from headgate.core.retry import SPENDS_NO_ATTEMPT
from headgate.errors import AcquireTimeout, StoreError
from headgate.integrations.celery.queues import home_of
from headgate.parking import Arrival, Lot, lot_of

if TYPE_CHECKING:
    from celery import Task

    from headgate.limiter import Limiter, Permit
    from headgate.providers.outcome import Judge
    from headgate.stores.base import Store

log = logging.getLogger("headgate")

PARKED = "PARKED"
"""The state of a task that waits for its turn, in the result backend."""
SLOT_SECONDS = 1.0
"""A task that has been let out waits for its permit in a worker's slot for no longer than that."""
FRONT = 0
"""The place of one that was let through without being parked, and has to come back: before all others."""

HEADER = "headgate"
"""Of a message that comes out of a lot: {"key", "id", "release", "place"}."""

CONTENT_TYPE = "headgate_content_type"
"""Of a request: how its message was serialised, which Celery does not tell the task."""

# Between a task's id and what tells apart those that were sent under it.
_LIFE = "~"

# What Celery says of a task itself; all else in a request are headers of the user's.
_OWN_FIELDS = frozenset(
    "args argsrepr callbacks called_directly chain chord compression correlation_id delivery_info "
    "errbacks eta expires group group_index headers hostname id ignore_result is_eager kwargs kwargsrepr "
    "lang logfile loglevel origin parent_id properties redelivered replaced_task_nesting reply_to retries "
    "root_id shadow soft_time_limit stamped_headers stamps task taskset time_limit timelimit utc".split()
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One coming of a message to a worker.

    Attributes:
        id: of the task in the lot.
        redelivered: whether the broker says that it has delivered it before.
        release: how often it has been let out.
        place: where it stood; None if it was never parked.
    """

    task: Task
    id: str
    release: int
    place: int | None
    redelivered: bool


def lot_id(request: Any) -> str:
    """What a task is called in the lot. A retry, and what replaces it under its id, are others."""
    return f"{request.id}:{request.retries}:{request.replaced_task_nesting or 0}"


def attempt_of(function: Callable[..., Any]) -> Attempt | None:
    """The message whose task has ``function`` for its body, if it is that which runs here.

    None in an eager task, in a task that was called like a function, and in a function that a task calls: it
    waits where it is, for what the task has done until then would be done again.
    """
    task = current_task._get_current_object() if current_task else None
    if task is None:
        return None
    request = task.request
    if request.called_directly or request.is_eager or not _is_body(task, function):
        return None
    id = lot_id(request)
    redelivered = bool((request.delivery_info or {}).get("redelivered"))
    ticket = getattr(request, HEADER, None)
    if ticket and ticket["id"].partition(_LIFE)[0] == id:  # else it is that of an earlier try
        return Attempt(task, ticket["id"], ticket["release"], ticket["place"], redelivered)
    return Attempt(task, id, 0, None, redelivered)


def end(task: Task, store: Store) -> None:
    """What was let out ends here, whether or not it has asked for its permit: else it would go out again.

    Raises:
        StoreUnavailable
    """
    ticket = getattr(task.request, HEADER, None)
    if ticket and ticket["id"].partition(_LIFE)[0] == lot_id(task.request):
        lot_of(store).leave(ticket["key"], ticket["id"], ticket["release"])


def _is_body(task: Task, function: Callable[..., Any]) -> bool:
    body: Any = getattr(task, "_orig_run", task.run)
    while body is not None:
        body = getattr(body, "__func__", body)
        if body is function:
            return True
        body = getattr(body, "__wrapped__", None)
    return False


def run(
    limiter: Limiter,
    attempt: Attempt,
    cost: Callable[[], Mapping[str, int]],
    call: Callable[[], Any],
    judge: Judge,
    priority: float = 0,
    sends_one: bool = False,
) -> Any:
    """Call if there is a permit, and return what came of it; else park the task and leave.

    Args:
        cost: units of each meter.
        sends_one: whether ``call`` sends one request at most: the permit for one that was never sent is given
            back.

    Raises:
        Ignore: it was parked, or another copy of it is newer.
        CostExceedsLimit: the cost can never fit.
        StoreError: of a task that has never been parked; one that was is let out again by and by.
        Exception: what ``cost`` raised, or ``call``, if that was no throttle.
    """
    lot = lot_of(limiter.store)
    arrived_us = limiter.store.now().elapsed_us
    try:
        units = cost()
    except Exception:
        _ended(limiter, attempt)
        raise
    try:
        attempt, permit = _admitted(limiter, lot, attempt, units, priority)
    except Ignore:
        raise
    except StoreError as error:
        if not attempt.release:
            raise
        log.warning("the task %s waits until the store can be used: %s", attempt.id, error)
        raise Ignore(f"{attempt.id} is out, and is let out again") from None
    except Exception:
        _ended(limiter, attempt)
        raise
    if attempt.release and not _left(limiter, lot, attempt, arrived_us):
        permit.give_back()
        lot.overtake(limiter.key)
        raise Ignore(f"{attempt.id} came so late that it has been let out again")
    try:
        value, throttled = _called(permit, call, partial(_judged, limiter, judge, sends_one))
    except BaseException:
        permit.lost()  # if nothing is known of it yet
        raise
    if not throttled:
        return value
    if attempt.place is None:
        attempt = replace(attempt, place=FRONT)
    raise _parked(limiter, lot, attempt, units)


def _ended(limiter: Limiter, attempt: Attempt) -> None:
    with suppress(StoreError):  # it comes once more, and ends again
        end(attempt.task, limiter.store)


def _admitted(
    limiter: Limiter, lot: Lot, attempt: Attempt, units: Mapping[str, int], priority: float
) -> tuple[Attempt, Permit]:
    """What the message is called in the lot, and its permit."""
    key = limiter.key
    arrival = lot.enter(key, attempt.id, attempt.release)
    if arrival is Arrival.STALE and not attempt.release and not attempt.redelivered:
        # No copy, but sent once more under an id that was used before.
        attempt = replace(attempt, id=f"{attempt.id}{_LIFE}{uuid4().hex}")
        arrival = lot.enter(key, attempt.id, 0)
    if arrival is Arrival.STALE:
        if attempt.release and not attempt.redelivered:
            lot.overtake(key)
        raise Ignore(f"an older copy of {attempt.id}")
    permit = _permit(limiter, attempt, units, priority) if arrival is Arrival.GO else None
    if permit is None:
        raise _parked(limiter, lot, attempt, units)
    return attempt, permit


def _called(
    permit: Permit,
    call: Callable[[], Any],
    judged: Callable[[Exception | None, Any], tuple[Signal, bool]],
) -> tuple[Any, bool]:
    """What the call returned, and whether it was a throttle."""
    try:
        value = call()
    except TaskPredicate as word:  # Celery's own: the task has sent itself again, or is to be forgotten
        cause = getattr(word, "exc", None)
        permit.signal(judged(cause, None)[0] if isinstance(cause, Exception) else ANSWERED)
        raise
    except Exception as error:
        signal, throttled = judged(error, None)
        permit.signal(signal)
        if not throttled:
            raise
        return None, True
    signal, throttled = judged(None, value)
    permit.signal(signal)
    return value, throttled


def _left(limiter: Limiter, lot: Lot, attempt: Attempt, arrived_us: int) -> bool:
    waited_us = max(limiter.store.now().elapsed_us - arrived_us, 0)
    try:
        return lot.leave(limiter.key, attempt.id, attempt.release, waited_us)
    except StoreError as error:  # it may be done: who does not go on now may never come again
        log.warning("the task %s goes on, and may come once more: %s", attempt.id, error)
        return True


def _judged(
    limiter: Limiter, judge: Judge, sends_one: bool, error: Exception | None, value: Any
) -> tuple[Signal, bool]:
    """What to settle with, and whether it was a throttle."""
    wall_us = limiter.store.now().wall_us
    try:
        outcome = (
            judge.of_value((), {}, value, None, wall_us) if error is None else judge.of_error(error, wall_us)
        )
    except Exception:  # out of the value or the error itself, which is the caller's all the same
        return ANSWERED if error is None else LOST, False
    signal = LOST if outcome.signal is UNSENT and not sends_one else outcome.signal
    return signal, outcome.kind in SPENDS_NO_ATTEMPT


def _permit(limiter: Limiter, attempt: Attempt, units: Mapping[str, int], priority: float) -> Permit | None:
    answer = limiter._ask(limiter.plan.costs(dict(units)))
    if answer is not None and not isinstance(answer, Wait):
        return answer
    if not attempt.release:
        return None
    if answer is not None and answer.until_us - limiter.store.now().elapsed_us > SLOT_SECONDS * SECOND:
        return None
    try:
        return limiter.acquire(max_wait=SLOT_SECONDS, priority=priority, **units)
    except AcquireTimeout:
        return None


def _parked(limiter: Limiter, lot: Lot, attempt: Attempt, units: Mapping[str, int]) -> Ignore:
    task, request = attempt.task, attempt.task.request
    place = lot.park(
        limiter.key,
        attempt.id,
        attempt.release,
        packed(attempt),
        limiter.plan.costs(dict(units)),
        attempt.place,
    )
    if not request.ignore_result and not task.ignore_result:
        task.update_state(state=PARKED, meta={"key": limiter.key, "place": place})
    # Monitors know the states of Celery alone: this is the one that means "it will come again".
    task.send_event("task-retried", exception=f"parked for {limiter.key}, place {place}", traceback="")
    return Ignore(f"parked for {limiter.key}, place {place}")


def packed(attempt: Attempt) -> bytes:
    """The task as it is to be sent again: under its own id, with all that hangs on it."""
    task, request = attempt.task, attempt.task.request
    signature = task.signature_from_request(request)
    options = signature["options"]
    # Those with an underscore are Celery's notes of this one run, such as the tasks that it has sent.
    mine = {
        name: value for name, value in vars(request).items() if name not in _OWN_FIELDS and name[0] != "_"
    }
    options["headers"] = {**mine, **(options.get("headers") or {})}
    for name in (HEADER, CONTENT_TYPE):
        options["headers"].pop(name, None)
    # What is shown of the arguments: it may have been chosen so as to show no secrets.
    options |= {name: getattr(request, name) for name in ("argsrepr", "kwargsrepr") if hasattr(request, name)}
    told = request.delivery_info or {}
    home = home_of(task.app, told.get("exchange"), told.get("routing_key"))
    gone = ["eta", "countdown", "redelivered", "delivery_tag", "consumer_tag"]
    for name in gone if home is None else [*gone, "queue", "exchange", "routing_key"]:
        options.pop(name, None)
    serializer = registry.type_to_name.get(getattr(request, CONTENT_TYPE, None))
    serializer = serializer or task.serializer or task.app.conf.task_serializer
    options["serializer"] = serializer
    if getattr(request, "compression", None):
        options["compression"] = request.compression
    kind, encoding, body = dumps(dict(signature), serializer=serializer)
    head = f"{kind}\n{encoding}\n{home or ''}\n".encode()
    return head + (body if isinstance(body, bytes) else body.encode())


@task_received.connect
def _note_content_type(request: Any = None, **_: Any) -> None:
    # What came as pickle may hold what JSON cannot say, or says as something else.
    request.request_dict[CONTENT_TYPE] = request.content_type
