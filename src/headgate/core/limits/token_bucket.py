"""The token bucket, and the small bucket that stands in for an unknown rule.

Server: a bucket of ``burst`` units that refills continuously at ``amount / period``; it charges each call
at one instant between its grant and its answer.

Plan: the same rate and depth, with the cost of each call *held* beside the level until its answer proves
the charge, or until ``D`` after the grant, and only then debited. Safe, because debiting a capped bucket
later never leaves a higher level than debiting it earlier, so the server's level is at least ours less
the holds of others. Holds cost depth, never rate: the plan reaches 100 % of the server's rate while
``burst >= rate × D + largest cost``. Where the charge comes, or changes, with the answer
(``charge=usage``, ``when=completion``) a hold lasts until then, and the plan reaches
``burst / (rate × latency × reserved / used)`` of the rate, at most all of it.

``D`` defaults to ``min(1 s, burst / (2 × rate))``: half of the depth for calls that arrive late, half for
our own stalls.

Start: empty but for one probe, whose answer may tell what is left.
"""

from __future__ import annotations

import math

from headgate.core.clock import Alive
from headgate.core.limits.base import TURN, Calls, Edgeless, Holding, Marks, State, since
from headgate.core.model import SECOND, Limit, Now, Outcome, Reading
from headgate.core.scale import FULL_BITS, Scale, stretched

LEVEL, AT, PROBE, LIFT, GIVEN, ANSWERED, DEBITED, LOST, HOLDS = range(9)
"""Level in ticks; the instant it is of; 1 while the first call may go on credit; a level above the
burst that an oversized call is gathering, in ticks; units granted, answered and debited so far; the
instant by
which the calls without an answer have lapsed."""

_DEEPEST = -(1 << FULL_BITS + 8)


class TokenBucket(Holding, Edgeless):
    """At ``amount`` per period, up to ``burst`` at once."""

    __slots__ = ("burst", "calls", "full", "largest", "limit", "most", "shift", "transit_us", "unit")

    def __init__(self, limit: Limit) -> None:
        if limit.burst is None:
            raise ValueError(f"{limit.name}: a token bucket has a burst")
        self._build(limit, rate=limit.amount, burst=limit.burst, largest=limit.burst)

    def _build(self, limit: Limit, *, rate: int, burst: int, largest: int, room: int = 1) -> None:
        self.limit = limit
        self.burst = burst
        self.largest = largest
        period_us = stretched(limit.period_us)
        self.unit, self.shift = Scale.of(period_us, rate, room * largest)
        self.most = (1 << FULL_BITS + 8) // self.unit + 1
        self.full = burst * self.unit
        default = max(
            1, min(SECOND, (self.full >> self.shift) // 2, period_us // 20 if rate == 1 else SECOND)
        )
        self.transit_us = limit.max_transit_us or default
        self.calls = Calls(limit, self.transit_us, HOLDS, given=GIVEN, answered=ANSWERED, lost=LOST)

    def fresh(self, now: Now, at: int) -> State:
        start = self.limit.start
        level = 0
        if start == "full":
            level = self.full
        elif isinstance(start, int):
            level = max(self.burst - start, 0) * self.unit
        return [level, at, int(start == "auto"), 0, 0, 0, 0, 0, *self.calls.fresh()]

    def spent(self, now: Now, at: int) -> State:
        # No holds: what is on its way was held when the level was at least as high.
        return [0, at, 0, 0, 0, 0, 0, 0, *self.calls.fresh()]

    def carried(self, before: TokenBucket, state: State, now: Now, at: int, alive_at: int) -> State:
        started = self.spent(now, at)
        left = max(min(state[LEVEL] // before.unit, self.burst), -self.most)
        started[LEVEL] = max(left * self.unit, _DEEPEST)
        self.calls.take_over(before.calls, state, started, alive_at)
        return started

    def advance(self, state: State, at: int, alive_at: int, wall_us: int) -> None:
        if state[HOLDS] and self.calls.due(state, alive_at):
            while lapse := self.calls.next_lapse(state, at, alive_at):
                self._refill(state, lapse[0])
                self._charge(state, lapse[1])
        self._refill(state, at)

    def _refill(self, state: State, at: int) -> None:
        passed = at - state[AT]
        if passed > 0:
            level = state[LEVEL]
            room = (state[LIFT] or self.full) - level
            if passed <= room >> self.shift:
                state[LEVEL] = level + (passed << self.shift)
            elif room > 0:
                state[LEVEL] = level + room
            state[AT] = at

    def _charge(self, state: State, units: int) -> None:
        """The server has charged: a silence begins anew."""
        level = state[LEVEL]
        if state[LIFT] and level > self.full:
            level = self.full
        level -= (units if units < self.most else self.most) * self.unit
        state[LEVEL] = level if level > _DEEPEST else _DEEPEST
        state[DEBITED] = (state[DEBITED] + units) % TURN

    def admits(self, state: State, cost: int) -> bool:
        if state[PROBE] and not state[HOLDS]:
            return True
        if cost > self.burst:
            want = self.gather(cost) * self.unit
            return state[LIFT] >= want <= state[LEVEL] and not state[HOLDS]
        if state[LIFT]:  # the oversized call that lifted it has gone
            state[LIFT] = 0
            state[LEVEL] = min(state[LEVEL], self.full)
        return state[LEVEL] >= (cost + state[HOLDS]) * self.unit

    def opens_at(self, state: State, cost: int, at: int, alive: Alive) -> int:
        if state[PROBE] and not state[HOLDS]:
            return at
        unit, shift = self.unit, self.shift
        want = cost * unit
        full = self.full
        if cost > self.burst:
            # Let it gather above the burst while nobody else is sent; the excess is owed after it.
            full = state[LIFT] = want = self.gather(cost) * unit
        level, clock, held = state[LEVEL], state[AT], state[HOLDS] * unit
        if want + held <= full == self.full:  # what lapses until then only moves from the holds to the level
            return max(at, clock + max(-(level - want - held >> shift), 0))
        for lapse, units in [*self.calls.lapses_to_come(state, alive), (-1, 0)]:
            if want + held <= full:
                ready = clock + max(-(level - want - held >> shift), 0)
                if lapse < 0 or ready <= lapse:
                    return max(at, ready)
            level = min(full, level + (min(lapse - clock, (full - level >> shift) + 1) << shift))
            level = min(level, self.full) - units * unit
            held -= units * unit
            clock = lapse
        raise AssertionError("a cost above the largest is refused before it comes here")

    def firm(self, state: State, cost: int, opens: int) -> bool:
        # Holds only bind where the bucket is not deep enough to gather beside them.
        return (cost + state[HOLDS]) * self.unit <= self.full

    def gather(self, cost: int) -> int:
        """Units that have to gather before a call that costs more than the burst."""
        return cost

    def take(self, state: State, cost: int, at: int, alive_at: int) -> Marks:
        state[PROBE] = 0
        if cost > self.burst:
            state[LEVEL] = min(state[LEVEL], cost * self.unit)
            state[LIFT] = 0
            self._charge(state, cost - self.burst)
        state[GIVEN] = (state[GIVEN] + cost) % TURN
        return self.calls.put(state, cost, alive_at), state[ANSWERED], state[DEBITED]

    def settle(
        self, state: State, cost: int, marks: Marks, outcome: Outcome, charge: int, at: int, alive_at: int
    ) -> None:
        slot, debited = marks[0], marks[2]
        held = self.calls.end(state, cost, slot, outcome, charge, at, alive_at)
        if held is None:
            return
        if held:
            if charge:
                self._charge(state, charge)
        elif charge > cost:
            self._charge(state, charge - cost)
        elif charge < cost:
            # It had been debited already. A server that was full when it charged less has poured the
            # rest away: stay below what the calls since then have left of a full bucket.
            later = max(since(state[DEBITED], debited) - cost, 0)
            most = self.full - min(later, self.burst) * self.unit
            state[LEVEL] = max(state[LEVEL], min(state[LEVEL] + (cost - charge) * self.unit, most))

    def read(self, state: State, cost: int, marks: Marks, reading: Reading, granted_at: int, at: int) -> None:
        """Correct by ``remaining``: down to what it can be at most now, up to what it is at least.

        At most: what was left, and what the whole time since the grant has refilled. At least: what
        was left, less all calls that the server may have decided after this one.
        """
        if reading.remaining is None:
            return
        unit, shift = self.unit, self.shift
        held = state[HOLDS] * unit
        left = min(reading.remaining, self.burst)
        refilled = min(at - granted_at, self.full >> shift) << shift
        state[LEVEL] = min(state[LEVEL], (left + 1) * unit + refilled + held)
        if reading.limit is not None and reading.limit == self.limit.burst and granted_at >= state[LOST]:
            overlapping = min(self.calls.overlapping(state, cost, marks[1]), 2 * self.burst)
            state[LEVEL] = max(state[LEVEL], min((left - overlapping) * unit + held, self.full))

    def refused(self, state: State, cost: int, marks: Marks, at: int, alive_at: int) -> None:
        """Start again from nothing, less the refused cost: some servers charge it."""
        self.settle(state, cost, marks, "unsent", 0, at, alive_at)
        state[LEVEL] = min(state[LEVEL], 0)
        self._charge(state, cost)

    def overdue(self, state: State, cost: int, charge: int) -> None:
        if charge > cost:
            self._charge(state, charge - cost)

    def used(self, state: State) -> int:
        return max(self.burst - state[LEVEL] // self.unit + state[HOLDS], 0)


class SmallBucket(TokenBucket):
    """For a limit of unknown kind: ``amount`` per period, enforced nobody knows how.

    A bucket of ``B'`` units at rate ``R'`` with ``B' + R' × period <= amount`` is safe against fixed
    windows of any phase, anchored windows, sliding logs and sliding counters alike, since no cost
    is debited before the server has decided: in any interval ``x`` at most ``B' + R' × x`` arrives. ``B'`` is
    5 % of the amount and at least one unit, so the plan reaches 95 %. An amount of one is sent
    once per period and ``D``.

    A call that costs more than ``B'`` goes alone, after a silence in which at least that much has
    gathered, and leaves the excess as debt. Before a cost ``c`` the silence is ``2 (1 + B' / R'T - sqrt((1
    - c / N) N / R'T))`` periods where that is longer, since a sliding counter weighs the window before.

    A server's bucket is safe with it only if it holds at least ``B'``: declare ``burst=`` if you know it. An
    amount of one is safe against all but a sliding counter, which would let through one in two periods.
    """

    __slots__ = ()

    def __init__(self, limit: Limit) -> None:
        burst = max(limit.amount // 20, 1)
        # an oversized call lifts the level to what two periods and a bit refill
        self._build(limit, rate=max(limit.amount - burst, 1), burst=burst, largest=limit.amount, room=3)

    def fresh(self, now: Now, at: int) -> State:
        state = super().fresh(now, at)
        start = self.limit.start
        if start == "empty":
            start = self.limit.amount
        if isinstance(start, int):  # what stands in the server's window stays there for a period
            state[LEVEL] = (self.burst - start) * self.unit
        return state

    def spent(self, now: Now, at: int) -> State:
        state = super().spent(now, at)
        state[LEVEL] = (self.burst - self.limit.amount) * self.unit
        return state

    def gather(self, cost: int) -> int:
        amount = self.limit.amount
        rate = max(amount - self.burst, 1)
        silence = 2 * (rate + self.burst - _root(max(amount - cost, 0), rate))
        return max(cost, silence + 1)


def _root(one: int, other: int) -> int:
    """At most the square root of a product, computed alike by all that have IEEE doubles."""
    if one * other < 1 << 52:
        return math.floor(math.sqrt(one * other))
    return math.floor(math.sqrt(one) * math.sqrt(other)) - 1
