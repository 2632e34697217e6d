"""Limits that outlive a process: their state in the checkpoint, and back.

A copy that is kept is charged ahead with all that may be granted until the next one, so that a crash forgets
nothing; a run that ends in order leaves the exact state.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from headgate.core import decide
from headgate.core.plan import Plan
from headgate.limiter import Limiter
from headgate.stores.memory import MemoryStore

LEAST_LEAD = 20
"""Calls that a kept copy is charged ahead with at least; else twice what was granted since the last one."""


class Keeper:
    """Saves and restores the state of a limiter whose store ends with the process."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._plan: Plan = limiter.plan
        self._ahead = 0
        self._granted = 0

    @property
    def needed(self) -> bool:
        """Whether anything here would be forgotten."""
        lasting = any(limit.outlives_process for limit in self._plan.limits)
        return lasting and isinstance(self._limiter.store, MemoryStore)

    def save(self, *, final: bool, largest_units: list[int]) -> dict[str, Any]:
        """The state as JSON.

        Args:
            final: nothing will be granted any more.
            largest_units: for each limit, what one call costs at most.
        """
        store = self._limiter.store
        if not isinstance(store, MemoryStore):
            return {}
        now = store.now()
        dumped = json.loads(json.dumps(store.dump(self._limiter.key, self._plan)))
        if not final:
            state = decide.State.load(dumped)
            self._ahead = max(LEAST_LEAD, 2 * self._granted)
            self._granted = 0
            lead = [
                self._ahead * units if limit.outlives_process else 0
                for limit, units in zip(self._plan.limits, largest_units, strict=True)
            ]
            decide.lead(self._plan, state, lead, now)
            dumped = state.dump()
        return {
            "limits": [repr(limit) for limit in self._plan.limits],
            "state": dumped,
            "elapsed_us": now.elapsed_us,
            "wall_us": now.wall_us,
            "boot": boot_id(),
            "final": final,
        }

    def granted(self) -> bool:
        """A call was granted; True if the kept copy no longer covers what follows."""
        self._granted += 1
        return self._granted >= self._ahead

    def restore(self, kept: dict[str, Any]) -> bool:
        """Take up a saved state; False if there is none, or it is of other limits."""
        store = self._limiter.store
        if not isinstance(store, MemoryStore) or not kept:
            return False
        if kept.get("limits") != [repr(limit) for limit in self._plan.limits]:
            return False
        now = store.now()
        if kept["boot"] == boot_id() and now.elapsed_us >= kept["elapsed_us"]:
            passed = now.elapsed_us - kept["elapsed_us"]
        else:
            passed = now.wall_us - kept["wall_us"]
        state = decide.State.load(kept["state"])
        decide.resume(self._plan, state, passed, now)
        store.load(self._limiter.key, self._plan, state)
        return True


def boot_id() -> str:
    """What tells one start of this machine from another; empty where nothing does."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""
