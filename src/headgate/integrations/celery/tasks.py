"""The worker's side: a task asks for its permit, and is parked if it would have to wait.

A message of a task is told from older copies of it by the number in its headers; the lot knows the newest.

A task that was released comes a moment before its turn and waits for its permit in the slot: for a moment
only, and not at all if it is known that the permit is further off.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celery import current_task
from celery.exceptions import Ignore, TaskPredicate
from kombu.serialization import dumps

from headgate.core.model import ANSWERED, SECOND, Wait
from headgate.core.retry import SPENDS_NO_ATTEMPT
from headgate.errors import AcquireTimeout
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

# Between a task's id and what tells apart those that were sent under it.
_LIFE = "~"

# What Celery says of a task itself; all else in a request are headers of the user's.
_OWN_FIELDS = frozenset(
    "args argsrepr callbacks called_directly chain chord correlation_id delivery_info errbacks eta expires "
    "group group_index headers hostname id ignore_result is_eager kwargs kwargsrepr lang logfile loglevel "
    "origin parent_id properties redelivered replaced_task_nesting reply_to retries root_id shadow "
    "soft_time_limit stamped_headers stamps task taskset time_limit timelimit utc".split()
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
    units: Mapping[str, int],
    call: Callable[[], Any],
    judge: Judge,
    priority: float = 0,
) -> Any:
    """Call if there is a permit, and return what came of it; else park the task and leave.

    Raises:
        Ignore: it was parked, or another copy of it is newer.
        CostExceedsLimit: the cost can never fit.
        Exception: what ``call`` raised, if that was no throttle.
    """
    lot, key = lot_of(limiter.store), limiter.key
    arrived_us = limiter.store.now().elapsed_us
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
    if attempt.release:
        waited_us = max(limiter.store.now().elapsed_us - arrived_us, 0)
        if not lot.leave(key, attempt.id, attempt.release, waited_us):
            permit.give_back()
            lot.overtake(key)
            raise Ignore(f"{attempt.id} came so late that it has been let out again")
    try:
        value = call()
    except TaskPredicate as word:  # Celery's own: the task has sent itself again, or is to be forgotten
        cause = getattr(word, "exc", None)
        wall_us = limiter.store.now().wall_us
        permit.signal(judge.of_error(cause, wall_us).signal if isinstance(cause, Exception) else ANSWERED)
        raise
    except Exception as error:
        outcome = judge.of_error(error, limiter.store.now().wall_us)
        permit.signal(outcome.signal)
        if outcome.kind not in SPENDS_NO_ATTEMPT:
            raise
    except BaseException:
        permit.lost()
        raise
    else:
        outcome = judge.of_value((), {}, value, None, limiter.store.now().wall_us)
        permit.signal(outcome.signal)
        if outcome.kind not in SPENDS_NO_ATTEMPT:
            return value
    if attempt.place is None:
        attempt = replace(attempt, place=FRONT)
    raise _parked(limiter, lot, attempt, units)


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
    mine = {name: value for name, value in vars(request).items() if name not in _OWN_FIELDS | {HEADER}}
    options["headers"] = {**mine, **(options.get("headers") or {})}
    options["headers"].pop(HEADER, None)
    # What is shown of the arguments: it may have been chosen so as to show no secrets.
    options |= {name: getattr(request, name) for name in ("argsrepr", "kwargsrepr") if hasattr(request, name)}
    told = request.delivery_info or {}
    home = home_of(task.app, told.get("exchange"), told.get("routing_key"))
    gone = ["eta", "countdown", "redelivered", "delivery_tag", "consumer_tag"]
    for name in gone if home is None else [*gone, "queue", "exchange", "routing_key"]:
        options.pop(name, None)
    serializer = task.serializer or task.app.conf.task_serializer
    kind, encoding, body = dumps(dict(signature), serializer=serializer)
    head = f"{kind}\n{encoding}\n{home or ''}\n".encode()
    return head + (body if isinstance(body, bytes) else body.encode())
