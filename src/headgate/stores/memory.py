"""State in this process: nothing to install, gone at exit."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from functools import partial
from threading import Lock

from headgate.core import decide, together
from headgate.core.crowd import NORMAL
from headgate.core.model import Costs, Decision, Now, Report, new
from headgate.core.plan import Plan
from headgate.core.together import Line
from headgate.stores.base import Edit, Keyed, same_meters


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
        # The limits in force, the state, and the declared limits if those in force are others.
        self._states: dict[str, tuple[Plan, decide.State, Plan | None]] = {}

    def acquire(self, key: str, plan: Plan, asks: Sequence[Costs]) -> list[Decision]:
        with self._lock:
            now = self.now()
            plan, state = self._of(key, plan, now)
            if state.crowd is None:  # the cheaper way, as long as all calls are of one class
                return decide.acquire(plan, asks, state, now)
            return together.acquire(plan, "", (Line(NORMAL, 0, asks),), state, now, LEASE_US)[0]

    def settle(self, key: str, plan: Plan, reports: Sequence[Report]) -> None:
        with self._lock:
            now = self.now()
            plan, state = self._of(key, plan, now)
            if state.crowd is None:
                decide.settle(plan, reports, state, now)
            else:
                together.settle(plan, "", 0, reports, state, now, LEASE_US)

    def acquire_for(self, key: str, plan: Plan, lines: Sequence[Line]) -> list[list[Decision]]:
        """See :func:`headgate.core.together.acquire`: for classes, as there are no other processes here."""
        with self._lock:
            now = self.now()
            plan, state = self._of(key, plan, now)
            _know(plan, state, now)
            return together.acquire(plan, "", lines, state, now, LEASE_US)

    def settle_for(self, key: str, plan: Plan, reports: Sequence[Report]) -> bool:
        """See :func:`headgate.core.together.settle`."""
        with self._lock:
            now = self.now()
            plan, state = self._of(key, plan, now)
            _know(plan, state, now)
            return together.settle(plan, "", 0, reports, state, now, LEASE_US) is not None

    def used(self, key: str, plan: Plan) -> tuple[int, ...]:
        with self._lock:
            now = self.now()
            return decide.used(*self._of(key, plan, now), now)

    # For operators

    def keys(self) -> list[str]:
        with self._lock:
            return sorted(self._states)

    def look(self, key: str) -> tuple[Keyed, Now] | None:
        with self._lock:
            found = self._states.get(key)
            if found is None:
                return None
            return _copy_of(*found), self.now()

    def edit(self, key: str, change: Edit) -> bool:
        with self._lock:
            found = self._states.get(key)
            if found is None:
                return False
            changed = change(_copy_of(*found), self.now())  # should it fail, all is as before
            if changed is None:
                del self._states[key]
            else:
                self._states[key] = changed.plan, changed.state, changed.declared
            return True

    def dump(self, key: str, plan: Plan) -> list[object]:
        """The state of a key as plain JSON; :meth:`load` takes it."""
        with self._lock:
            return self._of(key, plan, self.now())[1].dump()

    def load(self, key: str, plan: Plan, state: decide.State) -> None:
        """Put a state in a key's place."""
        with self._lock:
            self._states[key] = plan, state, None

    def _of(self, key: str, plan: Plan, now: Now) -> tuple[Plan, decide.State]:
        """The limits in force and the state of a key, for somebody who declares ``plan``."""
        found = self._states.get(key)
        if found is None:
            state = decide.fresh(plan, now)
        elif found[0] is plan or found[0].limits == plan.limits:
            return plan, found[1]
        elif found[2] is not None and same_meters(found[0], plan):
            return found[0], found[1]
        else:
            state = decide.replan(found[0], plan, found[1], now)
        self._states[key] = plan, state, None
        return plan, state


def _know(plan: Plan, state: decide.State, now: Now) -> None:
    """From here on it is told whose what is held is: what calls took before has to find its way back."""
    if state.crowd is None:
        together.claim(plan, "", state, now, LEASE_US)


def _copy_of(plan: Plan, state: decide.State, declared: Plan | None) -> Keyed:
    return Keyed(plan, decide.State.load(copy.deepcopy(state.dump())), declared)


def open_url(url: str) -> MemoryStore:
    """A new, empty store."""
    return MemoryStore()
