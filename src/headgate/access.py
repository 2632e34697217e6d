"""How the lines of this process draw on a key of a store of its own.

Alone, where all calls are of one class: the store is asked directly. Together, where classes are in use: each
question says for which class, and how many wait, so that everybody gets a turn.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol
from weakref import WeakKeyDictionary, WeakValueDictionary

from headgate.core.crowd import NORMAL
from headgate.core.model import Costs, Decision, Report
from headgate.core.plan import Plan
from headgate.core.together import Line as Wishes
from headgate.errors import ConfigurationError
from headgate.stores.memory import MemoryStore


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
        together: calls of other classes draw on the key, or may.
    """

    def __init__(self, store: MemoryStore, key: str, plan: Plan) -> None:
        self.store = store
        self.key = key
        self.plan = plan
        self.together = False
        self.lines: WeakValueDictionary[int, Standing] = WeakValueDictionary()

    def acquire(self, kind: int, waiting: int, asks: Sequence[Costs]) -> list[Decision]:
        """Answer asks of a class, in their order.

        Args:
            waiting: how many wait in that class, these included; 0 to ask without standing in line.
        """
        if not self.together:
            return self.store.acquire(self.key, self.plan, asks)
        return self.store.acquire_for(self.key, self.plan, (Wishes(kind, waiting, asks),))[0]

    def settle(self, reports: Sequence[Report]) -> bool:
        """Book what became of calls; whether somebody here may be able to go now."""
        if not self.together:
            self.store.settle(self.key, self.plan, reports)
            return True
        return self.store.settle_for(self.key, self.plan, reports)

    def stand_down(self, kind: int) -> None:
        """Nobody waits in a class any more, though the store may believe so."""
        if self.together:
            self.store.acquire_for(self.key, self.plan, (Wishes(kind, 0, ()),))

    def use_class(self, kind: int) -> None:
        """Calls of a class come."""
        if kind != NORMAL:
            self.together = True

    @property
    def waiting(self) -> dict[int, int]:
        """{class: how many wait}."""
        return {line.kind: line.waiting for line in list(self.lines.values())}

    def serve(self) -> None:
        """Let all lines look whether somebody may go."""
        for line in sorted(self.lines.values(), key=lambda line: line.kind):
            if line.waiting:
                line.serve()


_known: WeakKeyDictionary[MemoryStore, WeakValueDictionary[str, Access]] = WeakKeyDictionary()
_registry = threading.Lock()


def access_to(store: MemoryStore, key: str, plan: Plan) -> Access:
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
