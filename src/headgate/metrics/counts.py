"""Counts what limiters do, by key. It knows events and snapshots, and no library of metrics.

An event costs a few additions under a lock. Gauges are read when they are asked for.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias
from weakref import WeakKeyDictionary, ref

from headgate.errors import HeadgateError
from headgate.events import Event, Granted, Listener, Settled, StoreBack, StoreFailed, Throttled
from headgate.metrics.table import (
    CAPACITY,
    FAILURES,
    PERMITS,
    REFUSALS,
    SETTLEMENTS,
    UNITS,
    USED,
    WAIT_SECONDS,
    WAITING,
    Metric,
)

if TYPE_CHECKING:
    from headgate.core.model import Limit
    from headgate.limiter import Limiter

log = logging.getLogger("headgate")

Labels: TypeAlias = tuple[str, ...]
"""Values of a metric's labels, in their order."""
Series: TypeAlias = dict[Labels, float]

OUTCOMES = ("answered", "lost", "unsent")


class KeyCounts:
    """What went on one key.

    Attributes:
        permits, failures: how often.
        units, refusals: {limit: units or times}; refusals that named no limit stand under "".
        settlements: {outcome: times}.
        waits: how many permits waited at most so long, by ``WAIT_SECONDS``, and those that waited longer.
        wait_seconds: for how long together.
        is_down: the shared store cannot be reached.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.lock = threading.Lock()
        self.permits = 0
        self.failures = 0
        self.units: dict[str, int] = {}
        self.refusals: dict[str, int] = {"": 0}
        self.settlements = dict.fromkeys(OUTCOMES, 0)
        self.waits = [0] * (len(WAIT_SECONDS) + 1)
        self.wait_seconds = 0.0
        self.is_down = False
        self._limit_of: dict[str | None, str] = {}

    def learn(self, limits: Iterable[Limit]) -> None:
        """Count these limits too. A refusal on a meter is for its shortest limit, as headgate takes it."""
        with self.lock:
            for limit in sorted(limits, key=lambda limit: limit.period_us, reverse=True):
                self.units.setdefault(limit.name, 0)
                self.refusals.setdefault(limit.name, 0)
                self._limit_of[limit.meter] = limit.name

    def hear(self, event: Event) -> None:
        """Count an event."""
        kind = type(event)
        with self.lock:
            if kind is Granted:
                self._granted(event)  # type: ignore[arg-type]  # it is one
            elif kind is Settled:
                self.settlements[event.outcome] += 1  # type: ignore[union-attr]  # likewise
            elif kind is Throttled:
                self.refusals[self._limit_of.get(event.meter, "")] += 1  # type: ignore[union-attr]
            elif kind is StoreFailed:
                self.failures += 1
                self.is_down = True
            elif kind is StoreBack:
                self.is_down = False

    def _granted(self, event: Granted) -> None:
        self.permits += 1
        units = self.units
        for limit, cost in event.units.items():
            units[limit] += cost
        waited = event.waited_seconds
        self.waits[bisect_left(WAIT_SECONDS, waited)] += 1
        self.wait_seconds += waited


class Counts:
    """What the limiters that go to one place have done."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: dict[str, KeyCounts] = {}
        self._heard: WeakKeyDictionary[Limiter, Listener] = WeakKeyDictionary()

    def add(self, limiter: Limiter, also: Callable[[Granted], None] | None = None) -> Callable[[], None]:
        """Count what a limiter does, once however often it is added; returns how to stop that.

        Args:
            limiter: which. It is not kept alive by being counted.
            also: is called with each permit too.
        """
        with self._lock:
            if limiter not in self._heard:
                counts = self._keys.setdefault(limiter.key, KeyCounts(limiter.key))
                counts.learn(limiter.limits)
                hear = counts.hear if also is None else _both(counts.hear, also)
                self._heard[limiter] = hear
                limiter.subscribe(hear)
        found = ref(limiter)

        def stop() -> None:
            limiter = found()
            if limiter is not None:
                with self._lock:
                    hear = self._heard.pop(limiter, None)
                if hear is not None:
                    limiter.unsubscribe(hear)

        return stop

    def keys(self) -> list[KeyCounts]:
        """Of each key what was counted."""
        with self._lock:
            return list(self._keys.values())

    def counters(self) -> Mapping[Metric, Series]:
        """All counters, {labels: count}."""
        found: dict[Metric, Series] = {
            metric: {} for metric in (PERMITS, UNITS, REFUSALS, SETTLEMENTS, FAILURES)
        }
        for counts in self.keys():
            with counts.lock:
                key = counts.key
                found[PERMITS][key,] = counts.permits
                found[FAILURES][key,] = counts.failures
                for metric, by_label in (
                    (UNITS, counts.units),
                    (REFUSALS, counts.refusals),
                    (SETTLEMENTS, counts.settlements),
                ):
                    for label, count in by_label.items():
                        found[metric][key, label] = count
        return found

    def waiting(self) -> Series:
        """Calls that wait: {(key,): count}."""
        lines = {id(limiter._line): limiter for limiter in self._limiters()}  # one line for several of them
        found: Series = {}
        for limiter in lines.values():
            found[limiter.key,] = found.get((limiter.key,), 0) + limiter.waiting
        return found

    def limits(self) -> Mapping[Metric, Series]:
        """What stands against limits, and what may: {(key, limit): units}, of stores that can be reached."""
        places = {(id(limiter.store), limiter.key): limiter for limiter in self._limiters()}
        down = {counts.key for counts in self.keys() if counts.is_down}
        found: dict[Metric, Series] = {USED: {}, CAPACITY: {}}
        for limiter in places.values():
            if limiter.key in down:  # to ask would only take time
                continue
            try:
                snapshot = limiter.snapshot()
            except HeadgateError as error:
                log.debug("no metrics of the limits of %r: %s", limiter.key, error)
                continue
            for limit in snapshot.limits:
                labels = limiter.key, limit.name
                found[USED][labels] = found[USED].get(labels, 0) + limit.used
                found[CAPACITY][labels] = found[CAPACITY].get(labels, 0) + limit.capacity
        return found

    def gauges(self) -> Mapping[Metric, Series]:
        """All gauges, {labels: value}, as they are now."""
        return {WAITING: self.waiting(), **self.limits()}

    def _limiters(self) -> list[Limiter]:
        with self._lock:
            return list(self._heard)


def _both(hear: Callable[[Event], None], also: Callable[[Granted], None]) -> Callable[[Event], None]:
    def hear_both(event: Event) -> None:
        hear(event)
        if type(event) is Granted:
            also(event)

    return hear_both
