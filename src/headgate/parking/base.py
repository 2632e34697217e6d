"""What a lot is: the verbs, their words, and how the one of a store is found.

A task has an id and a release number: 0 as long as it has never been parked, one more each time that it is
let out. The number tells a message from older copies of it, so a broker may deliver any of them again.

::

             park                 take                  leave
    unknown ──────→ waiting(n) ─────────→ out(n+1) ─────────────→ left(n+1) ──→ forgotten
                        ↑  past its deadline │ │ park                after KEEP_SECONDS
                        └────────────────────┴─┘

A lot lies in a store: what the store loses (FLUSHALL, a file that is deleted, the end of a process whose
store is in memory), parked tasks and their bodies are lost with. A server that throws keys away when its
memory is full throws away tasks.

Instants are those of the store's elapsed clock. Within a lot time does not go back, whatever that clock does.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from importlib.util import find_spec
from weakref import WeakValueDictionary

from headgate.core.model import NEVER, SECOND
from headgate.errors import ConfigurationError
from headgate.stores.base import Store

KEEP_SECONDS = 3600
"""So long it is known which tasks have left, and under which release."""
RELEASER_SECONDS = 0.5
"""So long one worker alone may take; each take begins it anew."""
BODY_BYTES = 1 << 20
"""No body is larger, unless a lot's ``largest_body`` says otherwise."""
ID_BYTES = 1024
"""No id is longer, in UTF-8."""


class Arrival(Enum):
    """What a worker is to do with a message that has arrived."""

    GO = "go"
    """Go on: ask for a permit."""
    STALE = "stale"
    """Throw it away: the lot knows of a later one, or holds a copy."""
    BEHIND = "behind"
    """Park it: others were here before."""


@dataclass(frozen=True, slots=True)
class Parked:
    """A task that was let out, or one that waits.

    Attributes:
        place: where it stands in the order; it keeps that when it is parked again.
        release: the number that it goes out with; of one that waits, the number it was parked under.
        body: as it was parked; empty in a look that takes nothing.
        costs: likewise.
        since_us: since when it is in the lot.
    """

    id: str
    place: int
    release: int
    body: bytes
    costs: tuple[int, ...]
    since_us: int


@dataclass(frozen=True, slots=True)
class Taken:
    """What was let out, and how things stand after it.

    Attributes:
        parked: what was let out, the first first; of a look, those that are next.
        waiting: how many wait still; of a look, how many wait.
        out: costs of those that are out, the earliest deadline first.
        is_releaser: whether who asked may take.
        deadlines_us: theirs; none of those that have passed.
        releaser: who may take, until ``until_us``; empty and None if nobody does.
        lag_us: how long it takes, of late, from a take until a worker has the task: quick to grow, slow to
            shrink.
    """

    parked: list[Parked]
    waiting: int
    out: list[tuple[int, ...]]
    is_releaser: bool
    deadlines_us: list[int]
    releaser: str
    until_us: int | None
    lag_us: int


class Lot(ABC):
    """Where tasks are parked, for each key in an order of its own. Methods may be called from any thread.

    Each verb is made as a whole, and may be tried again after an error: what was asked may have been done.

    Attributes:
        largest_body: in bytes.

    Raises:
        ConfigurationError: from any verb: an argument makes no sense, or the store cannot be used as it is.
        StoreUnavailable: from any verb: the store cannot be used now.
    """

    largest_body = BODY_BYTES

    def enter(self, key: str, id: str, release: int) -> Arrival:
        """What is to become of a message that has arrived.

        1. STALE: it waits under this release or a later one (a copy has been parked), or it is out or has
           left under a later one.
        2. BEHIND: it was never parked, nothing is known of it, and others wait or are out.
        3. GO: all else. So one that is out, or has left, under the same release goes again: the worker that
           had it may have been killed.
        """
        return self._enter(key, _id(id), _release(release))

    def park(
        self, key: str, id: str, release: int, body: bytes, costs: Sequence[int], place: int | None = None
    ) -> int:
        """Let it wait; returns its place.

        A message that is stale (see :meth:`enter`) changes nothing; the place is that of the later one, 0 if
        it never had one.

        Args:
            release: the number that the message came with.
            place: where it has stood before; None for the end.
        """
        _bounded(body, self.largest_body)
        if place is not None:
            _whole("a place", place, 0)
        for cost in costs:
            _whole("a cost", cost, 0)
        return self._park(key, _id(id), _release(release), body, tuple(costs), place)

    def take(self, key: str, owner: str, most: int, lease_us: int) -> Taken:
        """Let out those that have waited longest, if ``owner`` may.

        Those that are past their deadline wait again first, each at its old place. Nobody else may take for
        RELEASER_SECONDS from now; while somebody else may, nothing is changed.

        Args:
            owner: whoever takes; not empty.
            most: how many, 0 to stay the releaser.
            lease_us: after so long, those that have not left are taken for lost and go out again. It has to
                be longer than a message takes to a worker and the worker to a permit: a message that comes
                after the next one has gone out is stale, however often that happens.
        """
        if not owner:
            raise ConfigurationError("expected the name of whoever takes; got an empty one")
        _whole("how many to take", most, 0)
        return self._take(key, owner, most, _whole("a lease in µs", lease_us, 1))

    def peek(self, key: str, most: int = 0, owner: str = "") -> Taken:
        """How things stand: what a take would find, with the first ``most`` that wait, without bodies.

        Nothing is changed. ``owner`` only tells whether that is the releaser.
        """
        return self._peek(key, owner, _whole("how many to look at", most, 0))

    def leave(self, key: str, id: str, release: int, waited_us: int = 0) -> bool:
        """It has got its permit, or has ended: its body goes, its release is known for KEEP_SECONDS.

        Returns False, and changes nothing, if it has gone on under a later release. To say it of a task that
        was never parked is possible, and costs the memory of it.

        Args:
            waited_us: how long it has been at a worker.
        """
        return self._leave(key, _id(id), _release(release), _whole("a wait in µs", waited_us, 0))

    def overtake(self, key: str) -> None:
        """A message came after the next one had gone out: they take longer than the last lease."""
        self._overtake(key)

    def resign(self, key: str, owner: str) -> None:
        """``owner`` takes no more: somebody else may at once."""
        self._resign(key, owner)

    def drop(self, key: str, id: str) -> bool:
        """Take it out, whatever its state; for KEEP_SECONDS every message of it is stale.

        Returns whether it was waiting or out.
        """
        return self._drop(key, _id(id))

    @abstractmethod
    def keys(self) -> list[str]:
        """The keys at which something waits or is out, in order."""

    @abstractmethod
    def listen(self, key: str, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback``, from any thread, when something was parked or has left; returns how to stop it.

        A hint may be lost or come for nothing, and none comes when a deadline passes: whoever waits looks
        again at the first of ``deadlines_us``, and every second.
        """

    @abstractmethod
    def _enter(self, key: str, id: bytes, release: int) -> Arrival: ...

    @abstractmethod
    def _park(
        self, key: str, id: bytes, release: int, body: bytes, costs: tuple[int, ...], place: int | None
    ) -> int: ...

    @abstractmethod
    def _take(self, key: str, owner: str, most: int, lease_us: int) -> Taken: ...

    @abstractmethod
    def _peek(self, key: str, owner: str, most: int) -> Taken: ...

    @abstractmethod
    def _leave(self, key: str, id: bytes, release: int, waited_us: int) -> bool: ...

    @abstractmethod
    def _overtake(self, key: str) -> None: ...

    @abstractmethod
    def _resign(self, key: str, owner: str) -> None: ...

    @abstractmethod
    def _drop(self, key: str, id: bytes) -> bool: ...

    @abstractmethod
    def _after_fork(self) -> None:
        """In the child: threads and locks of the parent are not there."""


def _id(id: str) -> bytes:
    found = id.encode("utf-8", "surrogatepass")
    if not 0 < len(found) <= ID_BYTES:
        raise ConfigurationError(f"expected an id of 1 to {ID_BYTES} bytes; got {len(found)}")
    return found


def _release(release: int) -> int:
    return _whole("a release number", release, 0)


def _bounded(body: object, most: int) -> None:
    if not isinstance(body, bytes):
        raise ConfigurationError(f"expected a body of bytes; got {type(body).__name__}")
    if len(body) > most:
        raise ConfigurationError(f"expected a body of at most {most} bytes; got {len(body)} of them")


def _whole(what: str, number: object, least: int) -> int:
    if not isinstance(number, int) or not least <= number < NEVER:
        raise ConfigurationError(f"expected {what}, a whole number of {least} or more; got {number!r}")
    return number


KEEP_US = KEEP_SECONDS * SECOND
RELEASER_US = round(RELEASER_SECONDS * SECOND)


# One of each store


_lots: WeakValueDictionary[int, Lot] = WeakValueDictionary()


def lot_of(store: Store) -> Lot:
    """The lot in a store; the same as long as somebody has it.

    Raises:
        ConfigurationError: a store of that kind has none.
    """
    found = _lots.get(id(store))  # it holds the store, so that the number is no one else's
    return found or _lots.setdefault(id(store), _open(store))


def _open(store: Store) -> Lot:
    # As stores are found by their scheme, lots are by the module of the store: there is no list to edit.
    for kind in type(store).__mro__:
        package, _, name = kind.__module__.rpartition(".")
        if package == "headgate.stores" and find_spec(f"headgate.parking.{name}") is not None:
            lot: Lot = import_module(f"headgate.parking.{name}").open_lot(store)
            return lot
    raise ConfigurationError(f"expected a store in memory, SQLite or Redis to park tasks in; got {store!r}")


def _after_fork_in_child() -> None:
    for reference in _lots.valuerefs():
        lot = reference()
        if lot is not None:
            lot._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
