"""What the rules share: the ring of calls that are on their way, and the words of a settlement.

A call that was granted may reach the server at any time up to ``D`` (``transit_us``) later. Until its answer
proves the charge, or until ``D`` of alive time has passed, its cost is a *hold*.
"""

from __future__ import annotations

from typing import Protocol, Self, TypeAlias

from headgate.core.clock import Alive, steady_of_alive
from headgate.core.model import MINUTE, NEVER, Limit, Now, Outcome, Reading

State: TypeAlias = list[int]
Marks: TypeAlias = tuple[int, ...]

SLOTS = 32
"""Holds are summed over thirty-seconds of ``D``: they last at most 1/32 longer than they must."""

ADOPTED: Marks = (-1, 0, 0, 0)
"""In the place of the marks of a call that was granted in an earlier life of its client, or under others."""

PACED_START_US = 5 * MINUTE
"""A window of which nothing is known is paced through its first period; a longer one is believed empty."""


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
    def spent(self, now: Now, at: int) -> State:
        """The state in which others may just have drawn on all of it, and their calls may be on their way."""

    def carried(self, before: Self, state: State, now: Now, at: int, alive_at: int) -> State:
        """The state that a rule of the same kind and period, but of another amount, has left."""

    def advance(self, state: State, at: int, alive_at: int, wall_us: int) -> None: ...
    def admits(self, state: State, cost: int) -> bool: ...
    def opens_at(self, state: State, cost: int, at: int, alive: Alive) -> int: ...
    def firm(self, state: State, cost: int, opens: int) -> bool:
        """Whether ``opens``, just told by ``opens_at``, stays though calls are answered as reserved."""

    def take(self, state: State, cost: int, at: int, alive_at: int) -> Marks: ...
    def settle(
        self, state: State, cost: int, marks: Marks, outcome: Outcome, charge: int, at: int, alive_at: int
    ) -> None:
        """``outcome`` as in :class:`~headgate.core.model.Signal`; ``charge`` is what the rule has to book."""

    def read(
        self, state: State, cost: int, marks: Marks, reading: Reading, granted_at: int, at: int
    ) -> None: ...
    def refused(self, state: State, cost: int, marks: Marks, at: int, alive_at: int) -> None: ...
    def orphan(self, state: State, alive_at: int) -> None:
        """Nobody will settle what is on its way: book it as charged when it must have arrived; free slots."""

    @property
    def pins(self) -> bool:
        """Whether only a settlement gives back what a call holds."""

    def pinned(self, state: State) -> int:
        """Units that only a settlement gives back; 0 where all lapses by itself."""

    def abandon(self, state: State, units: int, alive_at: int) -> None:
        """As ``orphan``, for so many units that only a settlement would give back."""

    def adopt(self, state: State, units: int) -> None:
        """So many units are held that only a settlement gives back, though nobody has taken them here."""

    def overdue(self, state: State, cost: int, charge: int) -> None:
        """A call is settled after it was abandoned: what it used beyond its cost is owed."""

    def leapt(self, state: State, passed_us: int) -> None:
        """The elapsed clock claims so much more time than steady time has given it."""

    def edge_after(self, state: State, at: int) -> int:
        """The steady instant of the next edge of the window; ``at`` where there are none."""

    def used(self, state: State) -> int:
        """Units that stand against the limit now, for people to look at."""


class Edgeless:
    """The answers of a rule without windows on a clock."""

    __slots__ = ()

    def leapt(self, state: State, passed_us: int) -> None:
        """Time that may not have passed refills nothing."""

    def edge_after(self, state: State, at: int) -> int:
        return at


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
        else:  # it may have been given up before, with others of its client
            state[base] -= min(cost, state[base] - state[base + 2])
        return True

    def lose(self, state: State, cost: int, slot: int, alive_at: int) -> None:
        """No answer will come: a hold that waited for one lapses, ``D`` from now, when it must have
        arrived.
        """
        if slot < 0:
            self.abandon(state, cost, alive_at)

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
        left = state[base + 2]
        if left:
            first = state[base + 1]
            for slot in range(first, first + self.size):
                cost = state[base + 3 + slot % self.size]
                if cost:
                    found.append((steady_of_alive(alive, self.lapse_instant(slot, 0)), cost))
                    left -= cost
                    if not left:
                        break
        pinned = state[base] - state[base + 2]
        if pinned:
            found.append((NEVER, pinned))
        return found

    def orphan(self, state: State, alive_at: int) -> None:
        """Nobody will settle the holds that wait for an answer: let them lapse."""
        pinned = state[self.base] - state[self.base + 2]
        if pinned:
            self._let_lapse(state, pinned, alive_at)

    def presume(self, state: State, units: int, alive_at: int) -> None:
        """So many units may be on their way: hold them until they must have arrived."""
        state[self.base] += units
        self._let_lapse(state, units, alive_at)

    def abandon(self, state: State, units: int, alive_at: int) -> None:
        """Let so many of them lapse."""
        self._let_lapse(state, min(units, state[self.base] - state[self.base + 2]), alive_at)


TURN = 1 << 50
"""Counters are kept below it by starting again."""


def since(now: int, then: int) -> int:
    """How far a counter has come."""
    return (now - then) % TURN


class Calls(Holds):
    """Holds, and the counts that tell which calls the server may have decided after another one.

    The rule keeps in its state the units granted so far, the units answered so far, and the instant by which
    the calls without an answer have lapsed.
    """

    __slots__ = ("answered", "given", "late", "lost")

    def __init__(
        self, limit: Limit, transit_us: int, base: int, *, given: int, answered: int, lost: int
    ) -> None:
        """Args:
        limit: tells what ends a hold.
        transit_us, base: as for :class:`Holds`.
        given, answered, lost: indexes of the three in the rule's state.
        """
        super().__init__(transit_us, base, lapses=not limit.held_to_answer)
        self.given = given
        self.answered = answered
        self.lost = lost
        self.late = limit.when == "completion"

    def end(
        self, state: State, cost: int, slot: int, outcome: Outcome, charge: int, at: int, alive_at: int
    ) -> bool | None:
        """A call has been answered, or will not be.

        Returns whether its hold is taken away by that (False if it had lapsed before); None if it stays
        until it lapses, since the call may still arrive.
        """
        answered = self.answered
        state[answered] = (state[answered] + (charge if charge > cost else cost)) % TURN
        if charge > cost:
            state[self.given] = (state[self.given] + charge - cost) % TURN
        if outcome == "lost":
            state[self.lost] = at + 2 * self.transit_us
            self.lose(state, cost, slot, alive_at)
            return None
        return self.lift(state, cost, slot)

    def adopt(self, state: State, units: int) -> None:
        """See :class:`Rule`."""
        state[self.base] += units
        state[self.given] = (state[self.given] + units) % TURN

    def take_over(self, before: Calls, old: State, state: State, alive_at: int) -> None:
        """Hold what is on its way by a state of other limits."""
        lapsing = old[before.base + 2]
        state[self.base] += old[before.base] - lapsing
        if lapsing:
            self.presume(state, lapsing, alive_at)

    def overlapping(self, state: State, cost: int, answered_before: int) -> int:
        """Units of the calls that may have been decided after this one, and so are not in what its answer
        says; among them its own where they are charged with the end of the answer.

        ``answered_before`` is the count of answered units at its grant.
        """
        return since(state[self.given], answered_before) - (0 if self.late else cost)


class Holding:
    """What a rule that keeps its holds in ``calls`` answers about those that nobody settles."""

    __slots__ = ()
    calls: Calls

    @property
    def pins(self) -> bool:
        return not self.calls.lapses

    def orphan(self, state: State, alive_at: int) -> None:
        """See :class:`Rule`."""
        self.calls.orphan(state, alive_at)

    def pinned(self, state: State) -> int:
        """See :class:`Rule`."""
        return state[self.calls.base] - state[self.calls.base + 2] if self.pins else 0

    def abandon(self, state: State, units: int, alive_at: int) -> None:
        """See :class:`Rule`."""
        self.calls.abandon(state, units, alive_at)

    def adopt(self, state: State, units: int) -> None:
        """See :class:`Rule`."""
        self.calls.adopt(state, units)
