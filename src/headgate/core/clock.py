"""Two clocks made from the store's: one that cannot be pushed, one that stands still with the server.

*Steady time* drives refills and windows. It follows the elapsed clock, never runs backwards, and
ignores a leap of the elapsed clock that the wall clock did not make: a broken clock mints nothing.

*Alive time* drives how long a call that has no answer yet may still be on its way (``D``). A server
that stops for a moment answers nobody, and the calls that wait in its socket have not been charged; so
alive time stands still while answers that are due do not come, and through the first of those that
then come at once, since they were decided before the stop.

Both are plain lists of integers, so that a store can keep them. This module knows no limit.
"""

from __future__ import annotations

from typing import TypeAlias

from headgate.core.model import NEVER, SECOND, Now

Steady: TypeAlias = list[int]
"""[shift, last elapsed_us, last wall_us]; steady time is elapsed time plus shift."""

LEAP_US = SECOND
"""More than this much elapsed time beyond the wall's is a leap. Slewed and stepped clocks stay under it."""


def fresh_steady(now: Now) -> Steady:
    return [0, now.elapsed_us, now.wall_us]


def steady_time(steady: Steady, now: Now) -> int:
    """The present instant in steady time. Advances ``steady``."""
    elapsed, wall = now
    passed = elapsed - steady[1]
    if passed < 0:  # the clock went back: go on from where we are
        steady[0] -= passed
    elif passed > LEAP_US:
        wall_passed = wall - steady[2]
        if passed > wall_passed + LEAP_US:
            steady[0] -= passed - max(wall_passed, 0)
    steady[1] = elapsed
    steady[2] = wall
    return elapsed + steady[0]


Alive: TypeAlias = list[int]
"""[frozen_us, in flight, last answer, mean gap and mean latency in 1/16 µs, answers seen, late answers to skip,
instant since which there is a crowd in flight, longest silence to believe]."""

FROZEN, FLYING, LAST, GAP, LATENCY, SEEN, SKIP, SINCE, CAP = range(9)

CROWD = 10
"""With fewer calls in flight a silence says nothing."""
LEARNED = 20
"""Answers until the means are worth believing."""
PATIENCE = 8
"""Mean gaps of silence that are still ordinary: at random arrivals one gap in 3,000 is longer."""
LEAST_PATIENCE_US = 4_000
"""Answers reach us in batches of a loop's turn; less silence than that is no silence."""


def fresh_alive(at: int, longest_transit_us: int) -> Alive:
    """``longest_transit_us`` is the largest ``D`` of the plan: a silence is believed for four of them."""
    return [0, 0, at, 0, 0, 0, 0, at, max(2 * SECOND, 4 * longest_transit_us)]


def _overdue_from(alive: Alive) -> int:
    """The instant from which silence means that the server stands still; NEVER while it means nothing."""
    if alive[SKIP]:
        return alive[LAST]
    if alive[FLYING] < CROWD or alive[SEEN] < LEARNED:
        return NEVER
    patience = max(LEAST_PATIENCE_US, PATIENCE * (alive[GAP] >> 4))
    # calls that were all sent a moment ago are not due yet
    return max(alive[LAST], alive[SINCE] + (alive[LATENCY] >> 4)) + patience


def alive_time(alive: Alive, at: int) -> int:
    """The alive time at steady instant ``at`` if no answer came since the last one recorded."""
    frozen = alive[FROZEN]
    if alive[FLYING] >= CROWD or alive[SKIP]:
        overdue = at - _overdue_from(alive)
        if overdue > 0:
            frozen += min(overdue, alive[CAP])
    return at - frozen


def steady_of_alive(alive: Alive, instant: int) -> int:
    """The steady instant at which alive time reaches ``instant`` if no further answer comes."""
    at = instant + alive[FROZEN]
    return at if at <= _overdue_from(alive) else at + alive[CAP]


def record_departure(alive: Alive, at: int) -> None:
    """A call was granted at steady instant ``at``."""
    alive[FLYING] += 1
    if alive[FLYING] == CROWD:
        alive[SINCE] = at


def record_end(alive: Alive) -> None:
    """A call is over, answered or not."""
    if alive[FLYING]:
        alive[FLYING] -= 1


def record_answer(alive: Alive, granted_at: int, at: int) -> None:
    """An answer came at steady instant ``at``: learn what is usual, or note how long nothing came."""
    overdue_from = _overdue_from(alive)
    gap = at - max(alive[LAST], alive[SINCE] + (alive[LATENCY] >> 4))
    alive[FROZEN] = at - alive_time(alive, at)
    alive[LAST] = at
    alive[SEEN] += 1
    alive[LATENCY] += (at - granted_at) - (alive[LATENCY] >> 4)
    if alive[SKIP]:
        alive[SKIP] -= 1
        return
    mean = alive[GAP] >> 4
    if at > overdue_from:
        # Those that fell due during the silence come first, and prove nothing of the calls that piled
        # up behind them.
        alive[SKIP] = min(gap // max(mean, 1), alive[FLYING])
        gap = PATIENCE * mean + 16
    if alive[FLYING] >= CROWD and gap >= 0:
        alive[GAP] += gap - mean
