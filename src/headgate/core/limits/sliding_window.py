"""The sliding window, and the anchored window, which is kept the same way.

Server: at most ``amount`` units in any interval of ``period``.

Plan: a log whose entries stay until ``min(answer, grant + D) + period``. Safe against sliding logs, fixed
windows of any phase and anchored windows: take the last-sent call of an over-full window of the server;
every other call in it was decided less than a period before, and is in the log until a period after
that, so it was counted when the last one was sent. It reaches ``T / (T + mean hold)``: the best that a caller
can prove. ``D`` defaults to ``min(1 s, T / 10)``; a call that arrives later may be refused.

The log is a ring of 256 slots: an entry stays up to T/256 longer than it must.

Start: a window of which nothing is known is paced at ``amount / period`` until a period has passed, behind
one probe whose answer may tell what is left. Windows above five minutes are believed empty.
"""

from __future__ import annotations

from headgate.core.clock import Alive
from headgate.core.limits.base import PACED_START_US, TURN, Calls, Edgeless, Holding, Marks, State, since
from headgate.core.model import NEVER, SECOND, Limit, Now, Outcome, Reading
from headgate.core.scale import stretched

SLOTS = 256
RING = SLOTS + 4

TAIL, LOGGED, GHOSTS, PROBE, GIVEN, ANSWERED, LEFT, LOST = range(8)
"""Oldest slot that still counts; units in the log; units that others are believed to have used; 1 while the
first call may go on credit; units granted, answered and aged out so far; the instant by which the calls
without an answer have lapsed."""
LOG = 8
GHOST = LOG + RING
HOLDS = GHOST + RING


class SlidingWindow(Holding, Edgeless):
    """At most ``amount`` in any ``period``."""

    __slots__ = ("amount", "calls", "largest", "limit", "period_us", "slot_us", "transit_us")

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.amount = self.largest = limit.amount
        self.period_us = stretched(limit.period_us)
        self.slot_us = -(-self.period_us // SLOTS)
        self.transit_us = limit.max_transit_us or max(1, min(SECOND, limit.period_us // 10))
        self.calls = Calls(limit, self.transit_us, HOLDS, given=GIVEN, answered=ANSWERED, lost=LOST)

    def fresh(self, now: Now, at: int) -> State:
        start = self.limit.start
        state = [self._tail(at), 0, 0, int(start == "auto"), 0, 0, 0, 0]
        state += [0] * (2 * RING) + self.calls.fresh()
        if start == "auto" and self.period_us <= PACED_START_US:
            self._pace(state, self.amount, at)
        elif start == "empty":
            self._add(state, GHOST, GHOSTS, self.amount, at)
        elif isinstance(start, int):
            self._add(state, GHOST, GHOSTS, min(start, self.amount), at)
        return state

    def spent(self, now: Now, at: int) -> State:
        state = [self._tail(at), 0, 0, 0, 0, 0, 0, 0, *[0] * (2 * RING), *self.calls.fresh()]
        self.calls.presume(state, self.amount, at)
        return state

    def carried(self, before: SlidingWindow, state: State, now: Now, at: int, alive_at: int) -> State:
        return state  # nothing in it depends on the amount

    def _tail(self, at: int) -> int:
        """The oldest slot that still counts at ``at``."""
        return (at - self.period_us) // self.slot_us + 1

    def _slot(self, instant: int) -> int:
        return -(-instant // self.slot_us)

    def _leaves_at(self, slot: int) -> int:
        return slot * self.slot_us + self.period_us

    def _add(self, state: State, ring: int, total: int, units: int, instant: int) -> None:
        """Log ``units`` as of ``instant``, unless they would have aged out already."""
        slot = self._slot(instant)
        if slot >= state[TAIL]:
            state[ring + slot % RING] += units
            state[total] += units
        else:
            state[LEFT] = (state[LEFT] + units) % TURN

    def _pace(self, state: State, units: int, at: int) -> None:
        """Ghosts that age out evenly over the coming period."""
        oldest, newest = state[TAIL], self._slot(at)
        placed = 0
        for slot in range(oldest, newest + 1):
            due = units * (slot - oldest + 1) // (newest - oldest + 1)
            state[GHOST + slot % RING] += due - placed
            placed = due
        state[GHOSTS] += units

    def advance(self, state: State, at: int, alive_at: int, wall_us: int) -> None:
        if state[HOLDS] and self.calls.due(state, alive_at):
            while lapse := self.calls.next_lapse(state, at, alive_at):
                self._roll(state, lapse[0])
                self._add(state, LOG, LOGGED, lapse[1], lapse[0])
        self._roll(state, at)

    def _roll(self, state: State, at: int) -> None:
        """Let age out what has stood for a period."""
        tail = self._tail(at)
        if tail <= state[TAIL]:
            return
        if state[LOGGED] or state[GHOSTS]:
            for slot in range(state[TAIL], min(tail, state[TAIL] + RING)):
                self._age(state, slot % RING)
        state[TAIL] = tail

    def _age(self, state: State, index: int) -> None:
        logged, ghosts = state[LOG + index], state[GHOST + index]
        if logged or ghosts:
            state[LOG + index] = state[GHOST + index] = 0
            state[LOGGED] -= logged
            state[GHOSTS] -= ghosts
            state[LEFT] = (state[LEFT] + logged + ghosts) % TURN

    def admits(self, state: State, cost: int) -> bool:
        if state[PROBE] and not state[HOLDS]:
            return True
        return state[LOGGED] + state[GHOSTS] + state[HOLDS] + cost <= self.amount

    def opens_at(self, state: State, cost: int, at: int, alive: Alive) -> int:
        over = self.used(state) + cost - self.amount
        if over <= 0 or (state[PROBE] and not state[HOLDS]):
            return at
        for slot in range(state[TAIL], state[TAIL] + RING):
            over -= state[LOG + slot % RING] + state[GHOST + slot % RING]
            if over <= 0:
                return max(at, self._leaves_at(slot))
        for lapse, units in self.calls.lapses_to_come(state, alive):
            over -= units
            if over <= 0:
                return NEVER if lapse == NEVER else max(at, self._leaves_at(self._slot(lapse)))
        raise AssertionError("a cost above the amount is refused before it comes here")

    def firm(self, state: State, cost: int, opens: int) -> bool:
        return state[HOLDS] + cost <= self.amount  # enough is in the log already, and ages out by then

    def take(self, state: State, cost: int, at: int, alive_at: int) -> Marks:
        state[PROBE] = 0
        state[GIVEN] = (state[GIVEN] + cost) % TURN
        return self.calls.put(state, cost, alive_at), state[ANSWERED], state[LEFT], at - alive_at

    def settle(
        self, state: State, cost: int, marks: Marks, outcome: Outcome, charge: int, at: int, alive_at: int
    ) -> None:
        slot, frozen = marks[0], marks[3]
        held = self.calls.end(state, cost, slot, outcome, charge, at, alive_at)
        if held is None:
            return
        if held:
            self._add(state, LOG, LOGGED, charge, at)
        elif charge > cost:
            self._add(state, LOG, LOGGED, charge - cost, at)
        elif charge < cost and slot >= 0 and frozen == at - alive_at:
            # It lapsed into the log before the answer came; we know into which slot only if the alive
            # clock has run all the while.
            logged = self._slot(self.calls.lapse_instant(slot, frozen))
            if logged >= state[TAIL]:
                back = min(cost - charge, state[LOG + logged % RING])
                state[LOG + logged % RING] -= back
                state[LOGGED] -= back

    def read(self, state: State, cost: int, marks: Marks, reading: Reading, granted_at: int, at: int) -> None:
        """Book what others must have used; forget what they cannot have.

        When the server decided, ``amount - remaining`` stood in its window. Ours held at least its
        share of that, but for what has aged out since the grant: the rest is somebody else's. And now
        no more can stand there than that and every call that it may have decided later.
        """
        if reading.limit != self.amount or reading.remaining is None:
            return
        stood = self.amount - reading.remaining
        others = stood - self.used(state) - since(state[LEFT], marks[2])
        if others > 0:
            self._add(state, GHOST, GHOSTS, others, at)
        elif state[GHOSTS] and granted_at >= state[LOST]:
            most = stood + self.calls.overlapping(state, cost, marks[1])
            ghosts = max(most - state[LOGGED] - state[HOLDS], 0)
            if ghosts < state[GHOSTS]:
                state[GHOST : GHOST + RING] = [0] * RING
                state[GHOSTS] = 0
                self._add(state, GHOST, GHOSTS, ghosts, at)  # nobody says when they leave

    def refused(self, state: State, cost: int, marks: Marks, at: int, alive_at: int) -> None:
        """The window is full of somebody's calls; nobody says when they leave, so pace through it."""
        self.settle(state, cost, marks, "answered", cost, at, alive_at)
        self._pace(state, max(self.amount - self.used(state), 0), at)

    def overdue(self, state: State, cost: int, charge: int) -> None:
        if charge > cost:
            self._add(state, LOG, LOGGED, charge - cost, state[TAIL] * self.slot_us + self.period_us)

    def edge_after(self, state: State, at: int) -> int:
        return at + self.period_us

    def used(self, state: State) -> int:
        return state[LOGGED] + state[GHOSTS] + state[HOLDS]
