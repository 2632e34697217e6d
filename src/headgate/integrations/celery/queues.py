"""Due queues: what has been let out goes round what waits at the broker.

A released task is due now. In its own queue it would stand behind all the messages that have come since, many
of which only come to be parked. So it is sent to a second queue beside that one, which the same workers
consume. Brokers serve the queues of a worker in turn.

The queue is called after the other, with the setting ``headgate_queue_suffix`` of the app behind it, by
default ``.headgate``. Where that is empty, tasks go back to their own queue.
"""

from __future__ import annotations

from re import escape, fullmatch
from typing import TYPE_CHECKING, Any

from kombu.entity import Exchange, Queue

if TYPE_CHECKING:
    from celery import Celery

SUFFIX = ".headgate"


def suffix(app: Celery) -> str:
    """Of the names of due queues; empty if there are none."""
    found: str = app.conf.get("headgate_queue_suffix", SUFFIX) or ""
    return found


def home_of(app: Celery, exchange: str | None, routing_key: str | None) -> str | None:
    """The queue from which a message came that bore these; None if several may be, or none.

    Only a worker knows: one of the queues that it consumes.
    """
    if not routing_key:
        return None
    if not exchange:
        return routing_key.removesuffix(suffix(app))
    found = [
        queue.name
        for queue in app.amqp.queues.consume_from.values()
        if queue.exchange.name == exchange and _binds(queue, routing_key)
    ]
    return found[0] if len(found) == 1 else None


def _binds(queue: Any, routing_key: str) -> bool:
    if queue.exchange.type == "direct":
        return bool(queue.routing_key == routing_key)
    if queue.exchange.type == "topic":
        pattern = escape(queue.routing_key)
        for sign, words in _TOPIC:
            pattern = pattern.replace(sign, words)
        return fullmatch(pattern, routing_key) is not None
    return False


# In a topic `*` is one word and `#` any number of them: AMQP 0-9-1, 3.1.3.3.
_TOPIC = (r"\.\#", r"(\..*)?"), (r"\#\.", r"(.*\.)?"), (r"\#", ".*"), (r"\*", "[^.]+")


def due_queue(app: Celery, home: str) -> Queue | str:
    """Where tasks of that queue go when they are let out."""
    if not suffix(app):
        return home
    like = dict.get(app.amqp.queues, home)  # looking it up by [] would make one
    return Queue(
        home + suffix(app),
        Exchange(""),
        home + suffix(app),
        durable=True if like is None else like.durable,
        auto_delete=False if like is None else like.auto_delete,
        queue_arguments=None if like is None else like.queue_arguments,
    )


def consume_due(consumer: Any) -> None:
    """Let a worker consume the due queues of the queues that it consumes, and no others.

    Not from any other thread than the consumer's own.
    """
    app: Celery = consumer.app
    wanted, present = _due_names(app)
    for name in wanted - present:
        app.amqp.queues.add(due_queue(app, name.removesuffix(suffix(app))))
        consumer.add_task_queue(name)
    for name in present - wanted:
        consumer.cancel_task_queue(name)


def lacks_due(app: Celery) -> bool:
    """Whether ``consume_due`` has something to do."""
    wanted, present = _due_names(app)
    return wanted != present


def _due_names(app: Celery) -> tuple[set[str], set[str]]:
    end = suffix(app)
    if not end:
        return set(), set()
    names = set(app.amqp.queues.consume_from)
    present = {name for name in names if name.endswith(end)}
    return {name + end for name in names - present}, present
