"""Limits that outlive a process: their state in the checkpoint, and back.

A copy that is kept is charged ahead with all that may be granted until the next one, so that a crash forgets
nothing; a run that ends in order leaves the exact state.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from headgate.core import decide
from headgate.core.model import Limit
from headgate.core.plan import Plan
from headgate.limiter import Limiter
from headgate.stores.memory import MemoryStore

FIRST_LEAD = 20
"""A kept copy is charged ahead with so many of the largest call yet, or twice what went since the last."""
LARGEST_LEAD = 20
"""Never with more than this part of the limit, a twentieth: so much of it may a crash cost."""


class Keeper:
    """Saves and restores the state of a limiter whose store ends with the process."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._plan: Plan = limiter.plan
        none = [0] * len(self._plan.limits)
        self._left = list(none)  # units on each limit that the kept copy still covers
        self._granted = list(none)  # units since that copy
        self._largest = list(none)

    @property
    def needed(self) -> bool:
        """Whether anything here would be forgotten."""
        lasting = any(limit.outlives_process for limit in self._plan.limits)
        return lasting and isinstance(self._limiter.store, MemoryStore)

    def save(self, *, final: bool) -> dict[str, Any]:
        """The state as JSON.

        Args:
            final: nothing will be granted without another copy.
        """
        store = self._limiter.store
        if not isinstance(store, MemoryStore):
            return {}
        now = store.now()
        dumped = json.loads(json.dumps(store.dump(self._limiter.key, self._plan)))
        if final:
            self._left = [0] * len(self._left)
        else:
            state = decide.State.load(dumped)
            used = decide.used(self._plan, state, now)
            self._left = [
                min(self._lead(index, limit), max((limit.burst or limit.amount) - stands, 0))
                if limit.outlives_process
                else 0
                for index, (limit, stands) in enumerate(zip(self._plan.limits, used, strict=True))
            ]
            self._granted = [0] * len(self._left)
            decide.lead(self._plan, state, self._left, now)
            dumped = state.dump()
        return {
            "limits": [repr(limit) for limit in self._plan.limits],
            "state": dumped,
            "elapsed_us": now.elapsed_us,
            "wall_us": now.wall_us,
            "boot": boot_id(),
            "final": final,
        }

    def _lead(self, index: int, limit: Limit) -> int:
        largest = self._largest[index]
        wanted = max(FIRST_LEAD * largest, 2 * self._granted[index])
        return max(largest, min(wanted, limit.amount // LARGEST_LEAD))

    def granted(self, units: dict[str, int]) -> bool:
        """A call was granted; True if the kept copy does not cover it: another is due before it goes."""
        covered = True
        for index, limit in enumerate(self._plan.limits):
            if limit.outlives_process:
                cost = units[limit.name]
                self._left[index] -= cost
                self._granted[index] += cost
                self._largest[index] = max(self._largest[index], cost)
                covered = covered and self._left[index] >= 0
        return not covered

    def restore(self, kept: dict[str, Any]) -> bool:
        """Take up what a saved state says of our limits; False if it says nothing of them.

        Limits that it does not know start anew.
        """
        store = self._limiter.store
        if not isinstance(store, MemoryStore) or not kept:
            return False
        found = {text: index for index, text in enumerate(kept["limits"])}
        known = [limit for limit in self._plan.limits if repr(limit) in found]
        if not known:
            return False
        now = store.now()
        if kept["boot"] == boot_id() and now.elapsed_us >= kept["elapsed_us"]:
            passed = now.elapsed_us - kept["elapsed_us"]
        else:
            passed = now.wall_us - kept["wall_us"]
        state = decide.State.load(kept["state"])
        places = [found[repr(limit)] for limit in known]
        part = Plan(known)
        state.parts = [state.parts[place] for place in places]
        state.gates = [state.gates[place] for place in places]
        state.shut = sum(map(bool, state.gates))
        decide.resume(part, state, passed, now)
        store.load(self._limiter.key, self._plan, decide.replan(part, self._plan, state, now))
        return True


def boot_id() -> str:
    """What tells one start of this machine from another; empty where nothing does."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""
