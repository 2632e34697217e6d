"""The one worker's side: it lets out what is parked, just before its turn comes.

Every worker attends; for each key the lot says which one releases. It looks at the limits as they stand in
the store, and at the costs of those that are out and of those that are next, and lets out as many as will get
their permits within the time that a message takes to a worker.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from celery.signals import task_revoked, worker_ready, worker_shutdown
from kombu.exceptions import OperationalError
from kombu.serialization import loads, prepare_accept_content

from headgate.core import decide
from headgate.core.model import NEVER, SECOND, Now, Wait
from headgate.errors import HeadgateError
from headgate.integrations.celery.tasks import HEADER
from headgate.parking import Lot, Parked, lot_of

if TYPE_CHECKING:
    from celery import Celery

    from headgate.limiter import Limiter

log = logging.getLogger("headgate")

LEASE_US = 30 * SECOND
"""A task that is out for so long without a permit is taken for lost, and is let out again."""
LEAD_US = SECOND // 4
"""How long before its turn a task is let out: a message takes its time to a worker."""
MOST = 256
"""Tasks let out at once."""
LOOK_SECONDS = 1.0
"""How often to look at least, while anything is parked or may be: a hint can be lost."""
PAUSE_SECONDS = 0.005
"""Between two looks at a key at which something goes on."""

_attended: WeakSet[Limiter] = WeakSet()


def attend(limiter: Limiter) -> None:
    """The workers of this program release what is parked for it."""
    _attended.add(limiter)


class Releaser:
    """A thread in the main process of a worker."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{id(self):x}"
        self._bell = threading.Event()
        self._ends = False
        self._lots: dict[tuple[int, str], tuple[Limiter, Lot]] = {}
        self._stops: list[Any] = []
        self._failed = False
        self._thread = threading.Thread(target=self._serve, name="headgate-releaser", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ends = True
        self._bell.set()
        self._thread.join(5)

    def drop(self, id: str) -> None:
        """A task was revoked: no copy of it comes any more."""
        for limiter, lot in list(self._lots.values()):
            with suppress(HeadgateError):  # it will be let out, and revoked, again
                lot.drop(limiter.key, id)

    def _serve(self) -> None:
        try:
            while not self._ends:
                self._bell.clear()
                self._bell.wait(self._round())
        finally:
            for stop in self._stops:
                stop()

    def _round(self) -> float:
        """Go round the keys; seconds until the next time."""
        for limiter in list(_attended):
            whose = id(limiter.store), limiter.key
            if whose not in self._lots:
                lot = lot_of(limiter.store)
                self._lots[whose] = limiter, lot
                self._stops.append(lot.listen(limiter.key, self._bell.set))
        pauses = [LOOK_SECONDS]
        for limiter, lot in list(self._lots.values()):
            try:
                pauses.append(self._release(limiter, lot))
                self._failed = False
            except (HeadgateError, OSError, OperationalError) as error:
                if not self._failed:
                    log.warning("what is parked for %s cannot be let out now: %s", limiter.key, error)
                self._failed = True
        return max(min(pauses), PAUSE_SECONDS)

    def _release(self, limiter: Limiter, lot: Lot) -> float:
        seen = lot.peek(limiter.key, MOST, self.owner)
        if not seen.waiting or (seen.releaser and not seen.is_releaser):
            return LOOK_SECONDS
        most, seconds = ripe(limiter, seen.out, [parked.costs for parked in seen.parked])
        taken = lot.take(limiter.key, self.owner, most, LEASE_US)
        for parked in taken.parked:
            try:
                self._publish(parked)
            except OperationalError:  # the broker is away: it is taken for lost after its lease
                raise
            except Exception:
                log.exception("the parked task %s cannot be sent; it is tried again", parked.id)
        return seconds

    def _publish(self, parked: Parked) -> None:
        kind, encoding, body = parked.body.split(b"\n", 2)
        fields = loads(
            body,
            kind.decode(),
            encoding.decode(),
            accept=prepare_accept_content(self.app.conf.accept_content),
        )
        signature = self.app.signature(fields)
        headers = {**(signature.options.get("headers") or {})}
        headers[HEADER] = [parked.id, parked.release, parked.place]
        signature.apply_async(headers=headers)


def ripe(
    limiter: Limiter, out: Sequence[tuple[int, ...]], following: Sequence[tuple[int, ...]]
) -> tuple[int, float]:
    """How many of those that follow may go within the lead, and when to look again (seconds)."""
    found = limiter.store.look(limiter.key)
    if found is None:
        return min(len(following), 1), PAUSE_SECONDS
    keyed, now = found
    start = now.elapsed_us
    for number, costs in enumerate([*out, *following]):
        while True:
            answer = decide.acquire(keyed.plan, [costs], keyed.state, now)[0]
            if not isinstance(answer, Wait):
                break
            if answer.until_us >= NEVER:  # an answer has to come first: one may stand by for it
                spare = 1 if number == len(out) == 0 else 0
                return max(number - len(out), spare), LEAD_US / SECOND / 4
            if answer.until_us > start + LEAD_US:
                pause = (answer.until_us - LEAD_US - start) / SECOND
                return max(number - len(out), 0), pause
            now = _later(now, answer.until_us)
    return len(following), PAUSE_SECONDS


def _later(now: Now, until_us: int) -> Now:
    passed = until_us - now.elapsed_us
    return now._replace(elapsed_us=until_us, wall_us=now.wall_us + passed)


# In the worker

_releasers: dict[int, Releaser] = {}


@worker_ready.connect
def _begin(sender: Any = None, **_: Any) -> None:
    releaser = _releasers[os.getpid()] = Releaser(sender.app)
    releaser.start()


@worker_shutdown.connect
def _end(**_: Any) -> None:
    releaser = _releasers.pop(os.getpid(), None)
    if releaser is not None:
        releaser.stop()


@task_revoked.connect
def _revoked(request: Any = None, **_: Any) -> None:
    releaser = _releasers.get(os.getpid())
    if releaser is not None and request is not None:
        releaser.drop(f"{request.id}:{request.retries}")
