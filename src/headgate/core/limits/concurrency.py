"""Calls at the same time.

Server: ``amount`` slots; it frees a slot no later than the end of its answer.

Plan: a slot is ours until the call has really ended: its body was read, or its connection closed. A call
that we gave up on still occupies the server, so whoever settles must wait for its end.
"""

from __future__ import annotations

from headgate.core.clock import Alive
from headgate.core.limits.base import Edgeless, Marks, State
from headgate.core.model import NEVER, Limit, Now, Outcome, Reading


class Concurrency(Edgeless):
    """At most ``amount`` at once."""

    __slots__ = ("largest", "limit", "transit_us")

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.largest = limit.amount
        self.transit_us = 0

    def fresh(self, now: Now, at: int) -> State:
        return [self.limit.start if isinstance(self.limit.start, int) else 0]

    def spent(self, now: Now, at: int) -> State:
        return [self.largest]

    def carried(self, before: Concurrency, state: State, now: Now, at: int, alive_at: int) -> State:
        return state

    def advance(self, state: State, at: int, alive_at: int, wall_us: int) -> None:
        """Time frees no slot."""

    def admits(self, state: State, cost: int) -> bool:
        return state[0] + cost <= self.largest

    def opens_at(self, state: State, cost: int, at: int, alive: Alive) -> int:
        return at if self.admits(state, cost) else NEVER

    def firm(self, state: State, cost: int, opens: int) -> bool:
        return False

    def take(self, state: State, cost: int, at: int, alive_at: int) -> Marks:
        state[0] += cost
        return ()

    def settle(
        self, state: State, cost: int, marks: Marks, outcome: Outcome, charge: int, at: int, alive_at: int
    ) -> None:
        state[0] = max(state[0] - cost, 0)

    def read(self, state: State, cost: int, marks: Marks, reading: Reading, granted_at: int, at: int) -> None:
        """What a server says of its slots is old when it arrives."""

    def refused(self, state: State, cost: int, marks: Marks, at: int, alive_at: int) -> None:
        self.settle(state, cost, marks, "answered", cost, at, alive_at)

    def orphan(self, state: State, alive_at: int) -> None:
        state[0] = 0

    @property
    def pins(self) -> bool:
        return True

    def pinned(self, state: State) -> int:
        return state[0]

    def abandon(self, state: State, units: int, alive_at: int) -> None:
        state[0] = max(state[0] - units, 0)

    def adopt(self, state: State, units: int) -> None:
        state[0] += units

    def overdue(self, state: State, cost: int, charge: int) -> None:
        """Its slot was given back when it was abandoned."""

    def used(self, state: State) -> int:
        return state[0]
