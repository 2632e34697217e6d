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

from headgate.core.model import SECOND, Now

Steady: TypeAlias = list[int]
"""[shift, last elapsed_us, last wall_us]; steady time is elapsed time plus shift."""

LEAP_US = SECOND
"""More than this much elapsed time beyond the wall's is a leap. Slewed and stepped clocks stay under it."""


def fresh_steady(now: Now) -> Steady:
    """Steady time begins as elapsed time."""
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
"""[frozen_us, held since or -1, in flight, last answer, mean gap and mean latency in 1/16 µs, answers
seen, late answers to skip, until when to skip them at most, instant since which there is a crowd, longest
hold]."""

FROZEN, HELD, FLYING, LAST, GAP, LATENCY, SEEN, SKIP, SKIP_UNTIL, SINCE, CAP = range(11)

CROWD = 10
"""With fewer calls in flight a silence says nothing."""
LEARNED = 20
"""Answers until the means are worth believing."""
PATIENCE = 10
"""Mean gaps of silence that are still ordinary: at random arrivals one gap in 20,000 is longer."""
LEAST_PATIENCE_US = 4_000
"""Answers reach us in batches of a loop's turn; less silence than that is no silence."""
CATCH_UP = 8
"""A server that stood still is believed to have caught up after this part of the time it stood."""


def fresh_alive(at: int, longest_transit_us: int) -> Alive:
    """``longest_transit_us`` is the largest ``D`` of the plan: a silence is believed for four of them."""
    return [0, -1, 0, at, 0, 0, 0, 0, 0, at, max(2 * SECOND, 4 * longest_transit_us)]


def touch(alive: Alive, at: int) -> None:
    """Somebody asks or settles at steady instant ``at``: see whether the server still answers.

    The clock is stopped only from here, not looking back: a silence in which we did nothing ourselves
    may have been our own.
    """
    if alive[HELD] >= 0:
        if alive[SKIP] and at >= alive[SKIP_UNTIL]:
            _release(alive, alive[SKIP_UNTIL])
    elif alive[FLYING] >= CROWD and alive[SEEN] >= LEARNED:
        patience = max(LEAST_PATIENCE_US, PATIENCE * (alive[GAP] >> 4))
        # calls that were all sent a moment ago are not due yet
        if at > max(alive[LAST], alive[SINCE] + (alive[LATENCY] >> 4)) + patience:
            alive[HELD] = at


def _release(alive: Alive, at: int) -> None:
    alive[FROZEN] += min(max(at - alive[HELD], 0), alive[CAP])
    alive[HELD] = -1
    alive[SKIP] = 0


def alive_time(alive: Alive, at: int) -> int:
    """The alive time at steady instant ``at``."""
    held = alive[HELD]
    return at - alive[FROZEN] - (min(max(at - held, 0), alive[CAP]) if held >= 0 else 0)


def steady_of_alive(alive: Alive, instant: int) -> int:
    """The steady instant at which alive time reaches ``instant`` if nothing else happens."""
    at = instant + alive[FROZEN]
    if alive[HELD] < 0 or at <= alive[HELD]:
        return at
    if alive[SKIP]:
        return at + min(max(alive[SKIP_UNTIL] - alive[HELD], 0), alive[CAP])
    return at + alive[CAP]


def record_departure(alive: Alive, at: int) -> None:
    """A call was granted at steady instant ``at``."""
    alive[FLYING] += 1
    if alive[FLYING] == CROWD:
        alive[SINCE] = at


def record_end(alive: Alive) -> None:
    """A call is over, answered or not."""
    if alive[FLYING]:
        alive[FLYING] -= 1


def record_answer(alive: Alive, granted_at: int, at: int) -> int:
    """An answer came at steady instant ``at``: learn what is usual, or let the clock go on.

    Returns the alive time.
    """
    latency, last = alive[LATENCY] >> 4, alive[LAST]
    alive[LAST] = at
    alive[SEEN] += 1
    alive[LATENCY] += at - granted_at - latency
    mean = alive[GAP] >> 4
    if alive[HELD] < 0:
        if alive[FLYING] >= CROWD:
            gap = at - max(last, alive[SINCE] + latency)
            if gap >= 0:
                alive[GAP] += gap - mean
        return at - alive[FROZEN]
    if alive[SKIP]:
        alive[SKIP] -= 1
    else:
        # Those that fell due during the silence come first, and prove nothing of the calls that piled
        # up behind them.
        silence = at - alive[HELD]
        alive[SKIP] = min(silence // max(mean, 1), alive[FLYING])
        alive[SKIP_UNTIL] = at + silence // CATCH_UP
    if not alive[SKIP]:
        _release(alive, at)
    return alive_time(alive, at)
