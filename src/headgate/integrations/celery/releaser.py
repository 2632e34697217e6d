"""The one worker's side: it lets out what is parked, just before its turn comes.

Every worker attends; for each key the lot says which one releases. It looks at the limits as they stand in
the store, and at the costs of those that are out and of those that are next, and lets out as many as will get
their permits within the time that a message takes to a worker. That time is measured: a task that comes too
early would sleep in a worker's slot, and one that comes too late leaves a permit unused.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from celery.signals import task_revoked, worker_ready, worker_shutdown
from kombu.exceptions import OperationalError
from kombu.serialization import loads, prepare_accept_content

from headgate.core import decide
from headgate.core.model import HOUR, NEVER, SECOND, Now, Wait
from headgate.errors import HeadgateError
from headgate.integrations.celery.queues import consume_due, due_queue, lacks_due
from headgate.integrations.celery.tasks import HEADER
from headgate.parking import RELEASER_SECONDS, Lot, Parked, lot_of

if TYPE_CHECKING:
    from celery import Celery

    from headgate.limiter import Limiter

log = logging.getLogger("headgate")

LEASE_US = 10 * SECOND
"""A task that is out for so long without a permit, at least, is taken for lost, and is let out again."""
LATE_US = SECOND // 2
"""One that is out for so long, at least, does not come as expected: its permit is the next one's."""
MOST_LATE = 64
"""If there are more, the workers are all busy, and more of them is of no use."""
PATIENCE = 4
"""Both are that many times as long as messages take of late, if that is longer."""
LEADS_US = SECOND // 100, SECOND // 2
"""Least and most of how long before its turn a task is let out."""
MOST = 256
"""Tasks let out at once."""
LOOK_SECONDS = RELEASER_SECONDS * 0.4
"""How often to look at least: hints can be lost, and the lease has to go on."""
ASKS_US = SECOND // 100, SECOND
"""Where an answer has to come first, one task stands by for it: it goes to ask, ever more seldom, from the
one to the other. Not none, for only those who ask find out that whoever was to answer is no more."""
IDLE_SECONDS = 1.0
"""How often where nothing waits: whatever comes is told, and only that can be lost."""
PAUSE_SECONDS = 0.003
"""Between two rounds at least."""

_attended: WeakSet[Limiter] = WeakSet()


def attend(limiter: Limiter) -> None:
    """The workers of this program release what is parked for it."""
    _attended.add(limiter)


def unattend(limiter: Limiter) -> None:
    """They do no longer."""
    _attended.discard(limiter)


class Attended:
    """A key that is attended.

    Attributes:
        width: how many of those that wait are looked at; no more than may be due.
        at: when to look again, on the monotonic clock, in seconds.
        heeds: whether a hint is reason to look at once. While others wait already, and it is known when the
            first of them is due, one more changes nothing.
        hinted: whether one came.
        asks_us: when one is to go and ask, on the store's clock.
        asks_every_us: how long after it the next one.
    """

    def __init__(self, limiter: Limiter, bell: threading.Event) -> None:
        self.limiter = limiter
        self.lot: Lot = lot_of(limiter.store)
        self.width = 8
        self.at = 0.0
        self.heeds = self.hinted = True
        self.asks_us, self.asks_every_us = 0, ASKS_US[0]
        self.failed = False
        self._bell = bell
        self.stop = self.lot.listen(limiter.key, self._hear)

    def _hear(self) -> None:
        self.hinted = True
        if self.heeds:
            self._bell.set()

    def is_due(self, now: float) -> bool:
        """Whether to look at it."""
        return now >= self.at or (self.heeds and self.hinted)


class Releaser:
    """A thread in the main process of a worker.

    Args:
        consumer: Celery's own, of that worker.
    """

    def __init__(self, consumer: Any) -> None:
        self.app: Celery = consumer.app
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{id(self):x}"
        self._consumer = consumer
        self._bell = threading.Event()
        self._ends = False
        self._keys: dict[tuple[int, str], Attended] = {}
        self._thread = threading.Thread(target=self._serve, name="headgate-releaser", daemon=True)

    def start(self) -> None:
        """Begin; in the consumer's thread."""
        if _attended:
            consume_due(self._consumer)
        self._thread.start()

    def stop(self) -> None:
        """End, and let others take over."""
        self._ends = True
        self._bell.set()
        self._thread.join(5)

    def drop(self, key: str, id: str) -> None:
        """A task was revoked or has expired: no copy of it comes any more."""
        for attended in list(self._keys.values()):
            if attended.limiter.key == key:
                with suppress(HeadgateError):  # it will be let out, and revoked, again
                    attended.lot.drop(key, id)

    def _serve(self) -> None:
        try:
            while not self._ends:
                self._bell.clear()
                self._bell.wait(self._round())
                if not self._ends:
                    time.sleep(PAUSE_SECONDS)  # hints come in swarms
        finally:
            for attended in self._keys.values():
                attended.stop()
                with suppress(HeadgateError, OSError):  # then it lapses
                    attended.lot.resign(attended.limiter.key, self.owner)

    def _round(self) -> float:
        """Go round the keys; seconds until the next time."""
        for whose, attended in list(self._keys.items()):
            if attended.limiter not in _attended:
                attended.stop()
                del self._keys[whose]
        for limiter in list(_attended):
            whose = id(limiter.store), limiter.key
            if whose not in self._keys:
                self._keys[whose] = Attended(limiter, self._bell)
        if self._keys and lacks_due(self.app):  # queues can be added and cancelled from afar
            self._consumer.call_soon(consume_due, self._consumer)
        now = time.monotonic()
        for attended in list(self._keys.values()):
            if attended.is_due(now):
                attended.hinted = False
                attended.at = now + self._attend(attended)
        return max(min((attended.at for attended in self._keys.values()), default=now + 1) - now, 0)

    def _attend(self, attended: Attended) -> float:
        """Look at one key; seconds until the next time."""
        try:
            seconds = self._release(attended)
            attended.failed = False
        except (HeadgateError, OSError, OperationalError) as error:
            if not attended.failed:
                log.warning("what is parked for %s is not let out now: %s", attended.limiter.key, error)
            attended.failed = True
            return LOOK_SECONDS
        return seconds

    def _release(self, attended: Attended) -> float:
        """Let out what is due at one key; seconds until something may be."""
        limiter, lot = attended.limiter, attended.lot
        seen = lot.peek(limiter.key, attended.width, self.owner)
        attended.heeds = not seen.waiting
        if not seen.waiting:
            return IDLE_SECONDS
        now_us = limiter.store.now().elapsed_us
        if seen.until_us is not None and not seen.is_releaser:
            return min(max(seen.until_us - now_us, 0) / SECOND, LOOK_SECONDS)
        lease_us, late_us = (max(each, PATIENCE * seen.lag_us) for each in (LEASE_US, LATE_US))
        late = sum(deadline < now_us + lease_us - late_us for deadline in seen.deadlines_us)
        out = seen.out[min(late, MOST_LATE) :]
        least, longest = LEADS_US
        lead_us = min(max(seen.lag_us * 5 // 4, least), longest)
        following = [parked.costs for parked in seen.parked]
        most, seconds = ripe(limiter, lead_us, out, following)
        attended.width = min(4 * most, MOST) if most == len(following) else max(2 * most, 8)
        attended.heeds = seconds is None  # then each that leaves makes room for one
        if most:
            attended.asks_us, attended.asks_every_us = 0, ASKS_US[0]
        elif seconds is None and not out and now_us >= attended.asks_us:
            most, attended.asks_us = 1, now_us + attended.asks_every_us
            attended.asks_every_us = min(2 * attended.asks_every_us, ASKS_US[1])
        # Also if none is due: so that this worker stays the releaser.
        for parked in lot.take(limiter.key, self.owner, most, min(lease_us, HOUR)).parked:
            try:
                self._publish(limiter.key, parked)
            except OperationalError:  # the broker is away: it is taken for lost after its lease
                raise
            except Exception:
                log.exception("the parked task %s cannot be sent; it is tried again", parked.id)
        return LOOK_SECONDS / 8 if seconds is None else min(seconds, LOOK_SECONDS)

    def _publish(self, key: str, parked: Parked) -> None:
        kind, encoding, home, body = parked.body.split(b"\n", 3)
        fields = loads(
            body,
            kind.decode(),
            encoding.decode(),
            accept=prepare_accept_content(self.app.conf.accept_content),
        )
        signature = self.app.signature(fields)
        headers = {**(signature.options.get("headers") or {})}
        headers[HEADER] = {
            "key": key,
            "id": parked.id,
            "release": parked.release,
            "place": parked.place,
        }
        where = {"queue": due_queue(self.app, home.decode())} if home else {}
        signature.apply_async(headers=headers, **where)


def ripe(
    limiter: Limiter, lead_us: int, out: Sequence[tuple[int, ...]], following: Sequence[tuple[int, ...]]
) -> tuple[int, float | None]:
    """How many of those that follow may go within the lead, and when to look again (seconds).

    None: when an answer has come, and nobody knows when.
    """
    found = limiter.store.look(limiter.key)
    if found is None:
        return min(len(following), 1), 0.0
    keyed, now = found
    start = now.elapsed_us
    for number, costs in enumerate([*out, *following]):
        while True:
            answer = decide.acquire(keyed.plan, [costs], keyed.state, now)[0]
            if not isinstance(answer, Wait):
                break
            if answer.until_us >= NEVER:  # an answer has to come first, or an operator
                return max(number - len(out), 0), LOOK_SECONDS if answer.rule < 0 else None
            if answer.until_us > start + lead_us:
                pause = (answer.until_us - lead_us - start) / SECOND
                return max(number - len(out), 0), pause
            now = _later(now, answer.until_us)
    return len(following), 0.0


def _later(now: Now, until_us: int) -> Now:
    passed = until_us - now.elapsed_us
    return now._replace(elapsed_us=until_us, wall_us=now.wall_us + passed)


# In the worker

_releasers: dict[int, Releaser] = {}


@worker_ready.connect
def _begin(sender: Any = None, **_: Any) -> None:
    releaser = _releasers[os.getpid()] = Releaser(sender)
    releaser.start()


@worker_shutdown.connect
def _end(**_: Any) -> None:
    releaser = _releasers.pop(os.getpid(), None)
    if releaser is not None:
        releaser.stop()


@task_revoked.connect
def _revoked(request: Any = None, **_: Any) -> None:
    releaser = _releasers.get(os.getpid())
    ticket = getattr(request, HEADER, None)
    if releaser is not None and ticket:
        releaser.drop(ticket["key"], ticket["id"])
