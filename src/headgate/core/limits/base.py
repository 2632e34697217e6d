"""What the rules share: the ring of calls that are on their way, and the words of a settlement.

A call that was granted may reach the server at any time up to ``D`` (``transit_us``) later. Until its answer
proves the charge, or until ``D`` of alive time has passed, its cost is a *hold*.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol, TypeAlias

from headgate.core.clock import Alive, steady_of_alive
from headgate.core.model import MINUTE, NEVER, Limit, Now, Reading

State: TypeAlias = list[int]
Marks: TypeAlias = tuple[int, ...]

SLOTS = 32
"""Holds are summed over thirty-seconds of ``D``: they last at most 1/32 longer than they must."""

PACED_START_US = 5 * MINUTE
"""A window of which nothing is known is paced through its first period; a longer one is believed empty."""


class Settled(NamedTuple):
    """One rule's share of a settlement.

    ``outcome`` as in :class:`~headgate.core.model.Signal`; ``charge`` is what the rule has to book.
    """

    outcome: Literal["answered", "lost", "unsent"]
    charge: int


class Rule(Protocol):
    """The questions of the package's docstring."""

    @property
    def limit(self) -> Limit: ...
    @property
    def largest(self) -> int:
        """The largest cost that can ever pass."""

    @property
    def transit_us(self) -> int:
        """``D``; 0 where nothing depends on it."""

    def fresh(self, now: Now, at: int) -> State: ...
    def advance(self, state: State, at: int, alive_at: int, wall_us: int) -> None: ...
    def admits(self, state: State, cost: int) -> bool: ...
    def opens_at(self, state: State, cost: int, at: int, alive: Alive) -> int: ...
    def take(self, state: State, cost: int, at: int, alive_at: int) -> Marks: ...
    def settle(
        self, state: State, cost: int, marks: Marks, settled: Settled, at: int, alive_at: int
    ) -> None: ...
    def read(
        self, state: State, cost: int, marks: Marks, reading: Reading, granted_at: int, at: int
    ) -> None: ...
    def refused(self, state: State, cost: int, marks: Marks, at: int, alive_at: int) -> None: ...
    def orphan(self, state: State, alive_at: int) -> None:
        """Nobody will settle what is on its way: book it as charged when it must have arrived; free slots."""

    def leapt(self, state: State, passed_us: int) -> None:
        """The elapsed clock claims so much more time than steady time has given it."""

    def edge_after(self, state: State, at: int) -> int:
        """The steady instant of the next edge of the window; ``at`` where there are none."""

    def used(self, state: State) -> int:
        """Units that stand against the limit now, for people to look at."""


class Holds:
    """Sums of the costs on their way, by the slot of alive time in which they were granted.

    The state it works on is the tail of a rule's list: [total, first slot not yet lapsed, those of the total
    that lapse, slot sums …].
    """

    __slots__ = ("base", "lapses", "size", "slot_us", "transit_us")

    def __init__(self, transit_us: int, base: int, *, lapses: bool) -> None:
        """Args:
        transit_us: ``D``.
        base: index in the rule's state at which the tail begins.
        lapses: False where only an answer ends a hold.
        """
        self.transit_us = transit_us
        self.slot_us = max(1, transit_us // SLOTS)
        self.size = transit_us // self.slot_us + 3
        self.base = base
        self.lapses = lapses

    def fresh(self) -> State:
        return [0, 0, 0] + [0] * self.size

    def put(self, state: State, cost: int, alive_at: int) -> int:
        """Hold ``cost``; returns the slot (-1 where holds do not lapse)."""
        state[self.base] += cost
        return self._let_lapse(state, cost, alive_at) if self.lapses else -1

    def _let_lapse(self, state: State, cost: int, alive_at: int) -> int:
        base = self.base
        slot = alive_at // self.slot_us
        if not state[base + 2]:
            state[base + 1] = slot
        state[base + 2] += cost
        state[base + 3 + slot % self.size] += cost
        return slot

    def lift(self, state: State, cost: int, slot: int) -> bool:
        """Take a hold away; False if it had lapsed before."""
        base = self.base
        if slot >= 0:
            if slot < state[base + 1]:
                return False
            state[base + 2] -= cost
            state[base + 3 + slot % self.size] -= cost
        state[base] -= cost
        return True

    def lose(self, state: State, cost: int, slot: int, alive_at: int) -> None:
        """No answer will come: a hold that waited for one lapses, ``D`` from now, when it must have
        arrived.
        """
        if slot < 0:
            self._let_lapse(state, cost, alive_at)

    def due(self, state: State, alive_at: int) -> bool:
        """Whether the oldest slot has lapsed."""
        base = self.base
        return state[base + 2] > 0 and alive_at - self.transit_us >= (state[base + 1] + 1) * self.slot_us

    def next_lapse(self, state: State, at: int, alive_at: int) -> tuple[int, int] | None:
        """Take away the oldest hold that has lapsed by ``at``: (instant, cost), or None if there is none."""
        base = self.base
        if not state[base + 2]:
            return None
        done = (alive_at - self.transit_us) // self.slot_us  # the slots before it have lapsed
        slot = state[base + 1]
        while slot < done:
            index = base + 3 + slot % self.size
            slot += 1
            cost = state[index]
            if cost:
                state[index] = 0
                state[base] -= cost
                state[base + 2] -= cost
                state[base + 1] = slot if state[base + 2] else done
                # never earlier than it was: the clock may have stood still since, not the reverse
                return min(at, self.lapse_instant(slot - 1, at - alive_at)), cost
        state[base + 1] = max(state[base + 1], slot)
        return None

    def lapse_instant(self, slot: int, frozen_us: int) -> int:
        """When the holds of a slot lapse, in steady time."""
        return (slot + 1) * self.slot_us + self.transit_us + frozen_us

    def lapses_to_come(self, state: State, alive: Alive) -> list[tuple[int, int]]:
        """All holds by the instant at which they lapse if no answer comes: [(instant, cost)], in order."""
        base = self.base
        found = []
        if state[base + 2]:
            first = state[base + 1]
            for slot in range(first, first + self.size):
                cost = state[base + 3 + slot % self.size]
                if cost:
                    found.append((steady_of_alive(alive, self.lapse_instant(slot, 0)), cost))
        pinned = state[base] - state[base + 2]
        if pinned:
            found.append((NEVER, pinned))
        return found

    def orphan(self, state: State, alive_at: int) -> None:
        """Nobody will settle the holds that wait for an answer: let them lapse."""
        pinned = state[self.base] - state[self.base + 2]
        if pinned:
            self._let_lapse(state, pinned, alive_at)


_TURN = 1 << 50


def since(now: int, then: int) -> int:
    """How far a counter has come; counters are kept below 2^50 by starting again."""
    return (now - then) % _TURN


def counted(counter: int, units: int) -> int:
    """A counter further by ``units``."""
    return (counter + units) % _TURN
