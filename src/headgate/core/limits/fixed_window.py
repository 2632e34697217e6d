"""Fixed windows whose edges are known: on the clock grid, or the hours, days and months of a calendar.

Server: at most ``amount`` units in each window; the count starts again at each edge.

Plan: the whole amount in each window, and nothing within the clock error behind its first edge. A call
that has not been answered, nor been on its way for ``D``, when a window ends may be charged on either side
of the edge: it counts in both. Safe, since each call is counted in every window in which the server may
count it. It reaches 100 %: calls go out at the beginning of a window, and little is on its way at the end.
It takes as many connections as calls in flight.

``D`` defaults to ``min(1 s, T / 4)``; a large one costs nothing while the amount is used up early.

The phase is taken from the wall clock once, and then carried by the elapsed clock. Where the two come to
differ, one of them has been set or has stood still, and nobody can say which: then a window ends only when
an edge by the one clock *and* an edge by the other have passed, and what is sent between the two counts on
both sides.

Start: a window of which nothing is known is paced at ``amount / period`` to its end, behind one probe whose
answer may tell what is left. Windows above five minutes are believed empty.
"""

from __future__ import annotations

from headgate.core import calendar
from headgate.core.clock import Alive
from headgate.core.limits.base import PACED_START_US, TURN, Calls, Holding, Marks, State
from headgate.core.model import NEVER, SECOND, Limit, Now, Outcome, Reading
from headgate.core.scale import Scale

(
    START,
    END,
    AT,
    USED,
    LATE,
    OFFSET,
    PACED_FROM,
    PROBE,
    GIVEN,
    ANSWERED,
    LOST,
    SEAM,
    PASSED,
    DRIFTED,
    HOLDS,
) = range(15)
"""The window's edges; the instant of the state (all steady); units used in the window; those of them that
may belong to the next one, though no longer on their way; wall less steady time at first; where pacing began,
or -1; 1 while the first call may go on credit; units granted and answered so far; the instant by which the
calls without an answer have lapsed; where the wall's window begins (Unix time); which edges have passed,
if the clocks differ; wall less steady time now."""

BY_ELAPSED, BY_WALL = 1, 2

CLOCK_ERROR_US = 5_000
CALENDAR_ERROR_US = SECOND


class FixedWindow(Holding):
    """At most ``amount`` between one edge and the next."""

    __slots__ = ("amount", "calls", "error_us", "largest", "limit", "scale", "transit_us")

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.amount = self.largest = limit.amount
        self.scale = Scale.of(limit.period_us, limit.amount, limit.amount)
        default = CALENDAR_ERROR_US if limit.calendar else min(CLOCK_ERROR_US, limit.period_us // 20)
        self.error_us = default if limit.clock_error_us is None else limit.clock_error_us
        self.transit_us = limit.max_transit_us or max(1, min(SECOND, limit.period_us // 4))
        self.calls = Calls(limit, self.transit_us, HOLDS, given=GIVEN, answered=ANSWERED, lost=LOST)

    def fresh(self, now: Now, at: int) -> State:
        offset = now.wall_us - at
        begin, end = self._window(at, offset)
        start = self.limit.start
        paced = start == "auto" and self.limit.period_us <= PACED_START_US
        used = 0
        if start == "empty":
            used = self.amount
        elif isinstance(start, int):
            used = min(start, self.amount)
        return [
            begin, end, at, used, 0, offset, at if paced else -1, int(start == "auto"), 0, 0, 0,
            begin + offset, 0, offset,
            *self.calls.fresh(),
        ]  # fmt: skip

    def spent(self, now: Now, at: int) -> State:
        state = self.fresh(now, at)
        state[USED], state[PACED_FROM], state[PROBE] = self.amount, -1, 0
        self.calls.presume(state, self.amount, at)
        return state

    def carried(self, before: FixedWindow, state: State, now: Now, at: int, alive_at: int) -> State:
        return state  # nothing in it depends on the amount

    def _window(self, at: int, offset: int) -> tuple[int, int]:
        wall = at + offset
        if self.limit.calendar:
            begin, end = calendar.window(wall, self.limit.calendar, self.limit.zone)
        else:
            begin = wall // self.limit.period_us * self.limit.period_us
            end = begin + self.limit.period_us
        return begin - offset, end - offset

    def advance(self, state: State, at: int, alive_at: int, wall_us: int) -> None:
        state[DRIFTED] = wall_us - at
        if state[PASSED] or self._in_doubt(state):
            self._advance_in_doubt(state, at, wall_us)
        elif at >= state[END]:
            begin, end = self._window(at, state[OFFSET])
            late = state[LATE] if begin == state[END] else 0
            state[LATE] = 0
            # An alive clock that has stood still since lags by at most as much as it does now.
            self._lapse(state, begin, alive_at - (at - begin), begin)
            state[START], state[END] = begin, end
            state[SEAM] = begin + state[OFFSET]
            self._turn(state, state[HOLDS] + late + state[LATE])
        if at > state[AT]:
            self._lapse(state, at, alive_at, self._first_edge(state))
            state[AT] = at

    def _guard(self, state: State) -> int:
        """How far the server's edge may be from ours: its clock's error, and what ours differ by."""
        return self.error_us + min(abs(state[DRIFTED] - state[OFFSET]), self.error_us)

    def _in_doubt(self, state: State) -> bool:
        return abs(state[DRIFTED] - state[OFFSET]) > self.error_us

    def _first_edge(self, state: State) -> int:
        """The next edge by whichever clock comes first to one."""
        if not self._in_doubt(state):
            return state[END]
        return min(state[END], self._window(state[AT], state[DRIFTED])[1])

    def _turn(self, state: State, used: int) -> None:
        """Begin a window."""
        state[USED] = used
        state[LATE] = 0
        state[PACED_FROM] = -1

    def _advance_in_doubt(self, state: State, at: int, wall_us: int) -> None:
        """The clocks differ: look for edges by either; when both have passed, begin a window."""
        seam = self._window(wall_us, 0)[0]
        passed = (BY_ELAPSED if at >= state[END] else 0) | (BY_WALL if seam != state[SEAM] else 0)
        if not passed:
            return
        if not state[PASSED]:
            state[LATE] += state[HOLDS]  # with those that were late already
        state[SEAM] = seam
        if passed & BY_ELAPSED:
            state[START], state[END] = self._window(at, state[OFFSET])
        state[PASSED] |= passed
        if state[PASSED] == BY_ELAPSED | BY_WALL:
            state[PASSED] = 0
            state[START] = max(self._window(at, state[OFFSET])[0], seam - state[DRIFTED])
            self._turn(state, state[LATE])

    def _lapse(self, state: State, at: int, alive_at: int, edge: int) -> None:
        while state[HOLDS]:
            lapse = self.calls.next_lapse(state, at, alive_at)
            if lapse is None:
                return
            if lapse[0] >= edge - self._guard(state) and not state[PASSED]:
                state[LATE] += lapse[1]

    def admits(self, state: State, cost: int) -> bool:
        if state[AT] < state[START] + self._guard(state):
            return False
        if state[PROBE] and not state[HOLDS]:
            return True
        if state[PACED_FROM] >= 0 and (state[USED] + cost) * self.scale.unit_ticks > (
            state[AT] - state[PACED_FROM] << self.scale.shift
        ):
            return False
        return max(state[USED], state[LATE]) + cost <= self.amount

    def opens_at(self, state: State, cost: int, at: int, alive: Alive) -> int:
        first = max(at, state[START] + self._guard(state))
        if state[PROBE] and not state[HOLDS] and first < state[END]:
            return first
        if state[USED] + cost <= self.amount and first < state[END]:
            if state[PACED_FROM] < 0:
                return first
            due = state[PACED_FROM] - (-(state[USED] + cost) * self.scale.unit_ticks >> self.scale.shift)
            if due < state[END]:
                return max(first, due)
        if state[PASSED] or self._in_doubt(state):
            by_wall = self._window(state[AT], state[DRIFTED])[1]
            if state[PASSED] or by_wall != state[END]:
                edges = {0: max(state[END], by_wall), BY_ELAPSED: by_wall, BY_WALL: state[END]}
                return max(at, edges[state[PASSED]] + self._guard(state))
        to_come = self.calls.lapses_to_come(state, alive)
        edge, late = state[END], state[LATE]
        if at >= edge:
            edge = self._window(at, state[OFFSET])[0]
            late = late if edge == state[END] else 0
        while True:
            across = sum(units for lapse, units in to_come if lapse >= edge - self._guard(state))
            if across + late + cost <= self.amount:
                return max(at, edge + self._guard(state))
            if any(lapse == NEVER for lapse, _ in to_come) and across + cost > self.amount:
                return NEVER
            edge, late = self._window(edge, state[OFFSET])[1], 0

    def firm(self, state: State, cost: int, opens: int) -> bool:
        if state[PASSED] or self._in_doubt(state):
            return False
        return opens < state[END] and state[USED] + cost <= self.amount  # it is only paced

    def take(self, state: State, cost: int, at: int, alive_at: int) -> Marks:
        state[PROBE] = 0
        state[GIVEN] = (state[GIVEN] + cost) % TURN
        state[USED] += cost
        if state[PASSED]:
            state[LATE] += cost
        return self.calls.put(state, cost, alive_at), state[ANSWERED], state[START]

    def settle(
        self, state: State, cost: int, marks: Marks, outcome: Outcome, charge: int, at: int, alive_at: int
    ) -> None:
        slot, window = marks[0], marks[2]
        lifted = self.calls.end(state, cost, slot, outcome, charge, at, alive_at)
        if lifted is None:
            return
        if lifted or window == state[START] or charge > cost:
            state[USED] += charge - cost  # it stands in this window's count
        if state[PASSED]:
            if lifted or charge > cost:
                state[LATE] += charge - cost
        elif outcome != "unsent" and at >= self._first_edge(state) - self._guard(state):
            state[LATE] += charge

    def read(self, state: State, cost: int, marks: Marks, reading: Reading, granted_at: int, at: int) -> None:
        """Book what the server has counted in this window; forget what it cannot have."""
        if reading.limit != self.amount or reading.remaining is None or marks[2] != state[START]:
            return
        stood = self.amount - reading.remaining
        if at < state[END] - self._guard(state):
            state[USED] = max(state[USED], stood)
            if granted_at >= state[LOST]:
                state[USED] = min(state[USED], stood + self.calls.overlapping(state, cost, marks[1]))
                state[PACED_FROM] = -1

    def refused(self, state: State, cost: int, marks: Marks, at: int, alive_at: int) -> None:
        """This window is used up."""
        self.settle(state, cost, marks, "answered", cost, at, alive_at)
        state[USED] = max(state[USED], self.amount)
        state[PACED_FROM] = -1

    def adopt(self, state: State, units: int) -> None:
        super().adopt(state, units)
        state[USED] += units
        if state[PASSED]:
            state[LATE] += units

    def overdue(self, state: State, cost: int, charge: int) -> None:
        if charge > cost:
            state[USED] += charge - cost

    def leapt(self, state: State, passed_us: int) -> None:
        """By the elapsed clock the edges come that much earlier in steady time."""
        state[OFFSET] += passed_us
        state[START] -= passed_us
        state[END] -= passed_us

    def edge_after(self, state: State, at: int) -> int:
        return state[END]

    def used(self, state: State) -> int:
        return state[USED]
