"""State in this process: nothing to install, gone at exit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from threading import Lock

from headgate.core import decide, together
from headgate.core.model import Costs, Decision, Now, Report, new
from headgate.core.plan import Plan
from headgate.core.together import Line


def _elapsed_clock() -> Callable[[], int]:
    """Nanoseconds that count on while the machine sleeps, where the system has such a clock."""
    # Linux: BOOTTIME. macOS: its MONOTONIC counts in sleep, unlike what time.monotonic reads there.
    clock = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
    if clock is None:
        return time.monotonic_ns
    return partial(time.clock_gettime_ns, clock)


_elapsed_ns = _elapsed_clock()
_wall_ns = time.time_ns


def process_clock() -> Now:
    """The clocks of this machine."""
    return new(Now, (_elapsed_ns() // 1000, _wall_ns() // 1000))


LEASE_US = 1 << 50
"""This process outlives what it keeps here by no means, so its lease has no end."""


class MemoryStore:
    """A store for one process, shared by its threads and event loops.

    Args:
        clock: another clock, for tests.
    """

    batch = 1
    shared = False

    def __init__(self, clock: Callable[[], Now] = process_clock) -> None:
        self.now = clock
        self._lock = Lock()
        self._states: dict[str, tuple[Plan, decide.State]] = {}

    def acquire(self, key: str, plan: Plan, asks: Sequence[Costs]) -> list[Decision]:
        with self._lock:
            now = self.now()
            return decide.acquire(plan, asks, self._state(key, plan, now), now)

    def settle(self, key: str, plan: Plan, reports: Sequence[Report]) -> None:
        with self._lock:
            now = self.now()
            decide.settle(plan, reports, self._state(key, plan, now), now)

    def acquire_for(self, key: str, plan: Plan, lines: Sequence[Line]) -> list[list[Decision]]:
        """See :func:`headgate.core.together.acquire`: for classes, as there are no other processes here."""
        with self._lock:
            now = self.now()
            return together.acquire(plan, "", lines, self._state(key, plan, now), now, LEASE_US)

    def settle_for(self, key: str, plan: Plan, reports: Sequence[Report]) -> bool:
        """See :func:`headgate.core.together.settle`."""
        with self._lock:
            now = self.now()
            state = self._state(key, plan, now)
            return together.settle(plan, "", 0, reports, state, now, LEASE_US) is not None

    def used(self, key: str, plan: Plan) -> tuple[int, ...]:
        with self._lock:
            now = self.now()
            return decide.used(plan, self._state(key, plan, now), now)

    def dump(self, key: str, plan: Plan) -> list[object]:
        """The state of a key as plain JSON; :meth:`load` takes it."""
        with self._lock:
            return self._state(key, plan, self.now()).dump()

    def load(self, key: str, plan: Plan, state: decide.State) -> None:
        """Put a state in a key's place."""
        with self._lock:
            self._states[key] = plan, state

    def _state(self, key: str, plan: Plan, now: Now) -> decide.State:
        found = self._states.get(key)
        if found is None:
            state = decide.fresh(plan, now)
        elif found[0] is plan or found[0].limits == plan.limits:
            return found[1]
        else:
            state = decide.replan(found[0], plan, found[1], now)
        self._states[key] = plan, state
        return state


def open_url(url: str) -> MemoryStore:
    """A new, empty store."""
    return MemoryStore()
