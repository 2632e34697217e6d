"""How the lines of this process draw on a key of a store.

Alone, where the store is this process's own and all calls are of one class: the store is asked directly.
Together with
others, where it is shared or classes are in use: each question says who asks, for which class, and how many
wait, so that everybody gets a turn.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

from headgate.core.crowd import NORMAL
from headgate.core.model import Costs, Decision, Report
from headgate.core.plan import Plan
from headgate.core.together import Line as Wishes
from headgate.errors import ConfigurationError
from headgate.stores.base import SharedStore, Store


class Standing(Protocol):
    """A line of this process, as far as it matters here."""

    @property
    def kind(self) -> int:
        """Its class."""

    @property
    def waiting(self) -> int:
        """How many stand in it."""

    def serve(self) -> None:
        """Ask for those in front."""


class Access:
    """What this process knows of a key: its store, its limits, and its lines, one for each class.

    Attributes:
        together: others draw on the key, or may: classes, processes.
    """

    def __init__(self, store: Store, key: str, plan: Plan) -> None:
        self.store = store
        self.key = key
        self.plan = plan
        self.together = store.shared
        self.lines: WeakValueDictionary[int, Standing] = WeakValueDictionary()
        self._lock = threading.Lock()
        self._listening: Callable[[], None] | None = None

    def acquire(self, kind: int, waiting: int, asks: Sequence[Costs]) -> list[Decision]:
        """Answer asks of a class, in their order.

        Args:
            waiting: how many wait in that class, these included; 0 to ask without standing in line.
        """
        if not self.together:
            return self.store.acquire(self.key, self.plan, asks)
        return self._shared.acquire_for(self.key, self.plan, (Wishes(kind, waiting, asks),))[0]

    def settle(self, reports: Sequence[Report]) -> bool:
        """Book what became of calls; whether somebody here may be able to go now."""
        if not self.together:
            self.store.settle(self.key, self.plan, reports)
            return True
        return self._shared.settle_for(self.key, self.plan, reports)

    def stand_down(self, kind: int) -> None:
        """Nobody waits in a class any more, though the store may believe so."""
        if self.together:
            self._shared.acquire_for(self.key, self.plan, (Wishes(kind, 0, ()),))

    def use_class(self, kind: int) -> None:
        """Calls of a class come."""
        if kind != NORMAL:
            self.together = True

    def listen(self) -> None:
        """Somebody waits: be told when asking again may help."""
        if self.store.shared:
            with self._lock:
                if self._listening is None:
                    self._listening = self._shared.listen(self.key, self.serve)

    def rest(self) -> None:
        """Stop listening if nobody waits."""
        if self._listening is None:
            return
        with self._lock:
            if any(line.waiting for line in list(self.lines.values())):
                return
            stop, self._listening = self._listening, None
        if stop is not None:
            stop()

    def serve(self) -> None:
        """Let all lines look whether somebody may go."""
        for line in sorted(self.lines.values(), key=lambda line: line.kind):
            if line.waiting:
                line.serve()

    @property
    def _shared(self) -> SharedStore:
        return cast(SharedStore, self.store)


_known: WeakKeyDictionary[Store, WeakValueDictionary[str, Access]] = WeakKeyDictionary()
_registry = threading.Lock()


def access_to(store: Store, key: str, plan: Plan) -> Access:
    """The one access of this process to a key of a store.

    Raises:
        ConfigurationError: others use it under different limits.
    """
    with _registry:
        keys = _known.get(store)
        if keys is None:
            keys = _known[store] = WeakValueDictionary()
        access = keys.get(key)
        if access is None:
            access = keys[key] = Access(store, key, plan)
        elif access.plan.limits != plan.limits:
            known = ", ".join(limit.name for limit in access.plan.limits)
            raise ConfigurationError(
                f"the key {key!r} is in use with other limits ({known}); "
                "give another key=, or the same limits"
            )
        return access
