"""The rules of a lot, on a shelf that keeps its tasks; ``lot.lua`` repeats them.

This module knows no clock and no store: it is told the instant, and calls the shelf within one transaction.
Instants on a shelf are *steady*: as the store's clock, but never going back, so that a deadline is at most a
lease away also after a start of the machine or a clock that was set back.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from headgate.core.model import NEVER
from headgate.parking.base import KEEP_US, RELEASER_US, Arrival, Lot, Parked, Taken

T = TypeVar("T")

WAITS, OUT, LEFT = range(3)
TRIM = 16
"""Each change takes out so many of those that have left long ago: more than it can add."""
DROPPED = NEVER
"""No message comes with a release above this one."""


@dataclass(slots=True)
class Task:
    """What is known of an id.

    Attributes:
        state: WAITS, OUT or LEFT.
        until: the deadline of one that is out; when to forget one that has left.
    """

    state: int
    release: int
    place: int
    since: int
    until: int
    costs: tuple[int, ...]


@dataclass(slots=True)
class Head:
    """What is known of the whole.

    Attributes:
        place: the last that was given.
        shift, seen: steady time less the store's, and the latter when it was last changed.
        releaser, until: who may take, and until when.
        lease: of the last take.
        lag: see :class:`~headgate.parking.base.Taken`.
    """

    place: int = 0
    shift: int = 0
    seen: int = 0
    releaser: str = ""
    until: int = 0
    lease: int = 0
    lag: int = 0

    def at(self, elapsed_us: int) -> int:
        """The steady instant."""
        return elapsed_us + self.shift + max(self.seen - elapsed_us, 0)

    def touch(self, elapsed_us: int) -> None:
        """Something is changed now."""
        self.shift += max(self.seen - elapsed_us, 0)
        self.seen = elapsed_us


class Shelf(Protocol):
    """What keeps the tasks of one key. Equal places and deadlines stand in the order of ids."""

    head: Head

    def find(self, id: bytes) -> Task | None:
        """What is known of an id."""

    def put(self, id: bytes, task: Task, body: bytes | None = None) -> None:
        """Know that of it; with None its body stays as it is. One that has left has none."""

    def body(self, id: bytes) -> bytes:
        """Of one that waits or is out."""

    def waiting(self, most: int) -> list[tuple[bytes, Task]]:
        """The first of those that wait, in order."""

    def count(self) -> int:
        """How many wait."""

    def late(self, at: int) -> list[tuple[bytes, Task]]:
        """Those that are out and have reached their deadline, the earliest first."""

    def out(self, at: int) -> list[Task]:
        """The others that are out, likewise."""

    def is_empty(self) -> bool:
        """Whether nothing waits and nothing is out."""

    def trim(self, at: int, most: int) -> None:
        """Forget the first of those that have left and were to be known until ``at``."""

    def tell(self) -> None:
        """Whoever listens is to look."""


def enter(shelf: Shelf, id: bytes, release: int, elapsed_us: int) -> Arrival:
    """See :meth:`Lot.enter`."""
    task = _known(shelf, id, shelf.head.at(elapsed_us))
    if task is None:
        return Arrival.BEHIND if release == 0 and not shelf.is_empty() else Arrival.GO
    return Arrival.STALE if _is_stale(task, release) else Arrival.GO


def park(
    shelf: Shelf,
    id: bytes,
    release: int,
    body: bytes,
    costs: tuple[int, ...],
    place: int | None,
    elapsed_us: int,
) -> int:
    """See :meth:`Lot.park`."""
    head = shelf.head
    at = head.at(elapsed_us)
    task = _known(shelf, id, at)
    if task is not None and _is_stale(task, release):
        return task.place
    head.touch(elapsed_us)
    if place is None:
        place = head.place + 1
    head.place = max(head.place, place)  # after a loss too, the end is behind all places that were given
    since = at if task is None or task.state == LEFT else task.since
    shelf.put(id, Task(WAITS, release, place, since, 0, costs), body)
    shelf.trim(at, TRIM)
    shelf.tell()
    return place


def take(shelf: Shelf, owner: str, most: int, lease_us: int, elapsed_us: int) -> Taken:
    """See :meth:`Lot.take`."""
    head = shelf.head
    at = head.at(elapsed_us)
    if head.releaser != owner and at < head.until:
        return peek(shelf, owner, 0, elapsed_us)
    head.touch(elapsed_us)
    head.releaser, head.until, head.lease = owner, at + RELEASER_US, lease_us
    for id, task in shelf.late(at):
        task.state, task.until = WAITS, 0
        shelf.put(id, task)
    parked = []
    for id, task in shelf.waiting(most):
        task.state, task.until = OUT, at + lease_us
        task.release += 1
        shelf.put(id, task)
        parked.append(_parked(id, task, shelf.body(id), elapsed_us - at))
    shelf.trim(at, TRIM)
    return _sight(shelf, owner, parked, elapsed_us)


def peek(shelf: Shelf, owner: str, most: int, elapsed_us: int) -> Taken:
    """See :meth:`Lot.peek`."""
    at = shelf.head.at(elapsed_us)
    found = shelf.waiting(most) + shelf.late(at)
    found.sort(key=lambda one: (one[1].place, one[0]))
    parked = [_parked(id, task, b"", elapsed_us - at) for id, task in found[:most]]
    return _sight(shelf, owner, parked, elapsed_us)


def leave(shelf: Shelf, id: bytes, release: int, waited_us: int, elapsed_us: int) -> bool:
    """See :meth:`Lot.leave`."""
    head = shelf.head
    at = head.at(elapsed_us)
    task = _known(shelf, id, at)
    if task is not None and task.release > release:
        return False
    if task is not None and task.state == OUT:
        lag = max(at - waited_us - (task.until - head.lease), 0)
        head.lag = max(lag, head.lag - (head.lag - lag) // 8)
    _bury(shelf, id, task, release, elapsed_us)
    return True


def overtake(shelf: Shelf, elapsed_us: int) -> None:
    """See :meth:`Lot.overtake`."""
    head = shelf.head
    head.touch(elapsed_us)
    head.lag = max(head.lag, head.lease)


def resign(shelf: Shelf, owner: str, elapsed_us: int) -> None:
    """See :meth:`Lot.resign`."""
    head = shelf.head
    at = head.at(elapsed_us)
    if head.releaser == owner and at < head.until:
        head.touch(elapsed_us)
        head.until = at
        shelf.tell()


def drop(shelf: Shelf, id: bytes, elapsed_us: int) -> bool:
    """See :meth:`Lot.drop`."""
    task = _known(shelf, id, shelf.head.at(elapsed_us))
    _bury(shelf, id, task, DROPPED, elapsed_us)
    return task is not None and task.state != LEFT


def _known(shelf: Shelf, id: bytes, at: int) -> Task | None:
    task = shelf.find(id)
    return None if task is not None and task.state == LEFT and task.until <= at else task


def _is_stale(task: Task, release: int) -> bool:
    return task.release > release or (task.state == WAITS and task.release == release)


def _bury(shelf: Shelf, id: bytes, task: Task | None, release: int, elapsed_us: int) -> None:
    at = shelf.head.at(elapsed_us)
    shelf.head.touch(elapsed_us)
    place = 0 if task is None else task.place
    shelf.put(id, Task(LEFT, release, place, 0, at + KEEP_US, ()))
    shelf.trim(at, TRIM)
    if task is not None and task.state != LEFT:
        shelf.tell()


def _sight(shelf: Shelf, owner: str, parked: list[Parked], elapsed_us: int) -> Taken:
    head = shelf.head
    at = head.at(elapsed_us)
    out = shelf.out(at)
    led = at < head.until
    return Taken(
        parked,
        shelf.count() + len(shelf.late(at)),
        [task.costs for task in out],
        led and head.releaser == owner,
        [task.until - at + elapsed_us for task in out],
        head.releaser if led else "",
        head.until - at + elapsed_us if led else None,
        head.lag,
    )


def _parked(id: bytes, task: Task, body: bytes, back_us: int) -> Parked:
    name = id.decode("utf-8", "surrogatepass")
    return Parked(name, task.place, task.release, body, task.costs, task.since + back_us)


class Ruled(Lot):
    """A lot that runs these rules itself."""

    @abstractmethod
    def _run(self, key: str, verb: Callable[[Shelf, int], T], *, changes: bool = True) -> T:
        """Let ``verb`` have the key's shelf and the instant, in one transaction."""

    def _enter(self, key: str, id: bytes, release: int) -> Arrival:
        return self._run(key, lambda shelf, now: enter(shelf, id, release, now), changes=False)

    def _park(
        self, key: str, id: bytes, release: int, body: bytes, costs: tuple[int, ...], place: int | None
    ) -> int:
        return self._run(key, lambda shelf, now: park(shelf, id, release, body, costs, place, now))

    def _take(self, key: str, owner: str, most: int, lease_us: int) -> Taken:
        return self._run(key, lambda shelf, now: take(shelf, owner, most, lease_us, now))

    def _peek(self, key: str, owner: str, most: int) -> Taken:
        return self._run(key, lambda shelf, now: peek(shelf, owner, most, now), changes=False)

    def _leave(self, key: str, id: bytes, release: int, waited_us: int) -> bool:
        return self._run(key, lambda shelf, now: leave(shelf, id, release, waited_us, now))

    def _overtake(self, key: str) -> None:
        self._run(key, overtake)

    def _resign(self, key: str, owner: str) -> None:
        self._run(key, lambda shelf, now: resign(shelf, owner, now))

    def _drop(self, key: str, id: bytes) -> bool:
        return self._run(key, lambda shelf, now: drop(shelf, id, now))
