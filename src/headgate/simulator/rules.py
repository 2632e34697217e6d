"""The limiters of a strict server, exact to the microsecond and the unit.

Pure: the instant is an argument, in integer microseconds since 1970; nothing here reads a clock or does
I/O. All arithmetic is on integers without rounding, so no order of calls mints or loses a part of a unit.
An instant given to a rule never goes back (the model sees to it). Windows are half open: what was charged
at `t` no longer counts at `t + T`.

*Ideal* means: the most units the rule could have accepted in the closed span `[start, start + elapsed]`
from callers who knew it perfectly, sent one unit at a time at the best instants and found it fresh. It is
what utilisation is measured against.
"""

from collections import OrderedDict
from typing import Protocol

from headgate.simulator.windows import Windows


class Rule(Protocol):
    """One rule of a server. Any charge is carried out: whoever charges has asked `admits`, or means the debt.

    `capacity` is the largest cost that can ever be admitted.
    """

    capacity: int

    def admits(self, now_us: int, cost: int) -> bool:
        """Tell whether a call of this cost is within the rule now; charges nothing."""

    def charge(self, now_us: int, cost: int) -> None:
        """Take the cost, into debt if need be."""

    def refund(self, now_us: int, cost: int, charged_us: int) -> None:
        """Give back what was charged at `charged_us`; too late, or more than fits, is lost."""

    def remaining(self, now_us: int) -> int:
        """Return the largest cost admitted now; negative in debt."""

    def reset_us(self, now_us: int) -> int | None:
        """Return the time until the rule is as if never used; None if only its callers can tell."""

    def retry_after_us(self, now_us: int, cost: int) -> int | None:
        """Return the exact time until this cost is admitted, left alone; None if no time can be told."""

    def ideal_units(self, elapsed_us: int, start_us: int = 0) -> int | None:
        """Return the ideal (see the module) of a span; None if it has no bound."""


class TokenBucket:
    """A bucket that holds `burst` units, starts full and gains `amount` units per `period_us`, continuously.

    `tick_us` makes it gain in steps instead: all that is due at each `k * tick_us + phase_us`.

    Accepted in any span x: at most `burst + amount * x / period_us`. The level is kept in units times
    `period_us`, which makes a microsecond's gain the integer `amount`.
    """

    def __init__(
        self, amount: int, period_us: int, burst: int | None = None, *, tick_us: int = 1, phase_us: int = 0
    ) -> None:
        self.capacity = amount if burst is None else burst
        self._amount = amount
        self._period_us = period_us
        self._tick_us = tick_us
        self._phase_us = phase_us
        self._full = self.capacity * period_us
        self._level = self._full
        self._refilled_us: int | None = None

    def admits(self, now_us: int, cost: int) -> bool:
        self._refill(now_us)
        return self._level >= cost * self._period_us

    def charge(self, now_us: int, cost: int) -> None:
        self._refill(now_us)
        self._level -= cost * self._period_us

    def refund(self, now_us: int, cost: int, charged_us: int) -> None:
        self._refill(now_us)
        self._level = min(self._full, self._level + cost * self._period_us)

    def remaining(self, now_us: int) -> int:
        self._refill(now_us)
        return self._level // self._period_us

    def reset_us(self, now_us: int) -> int:
        return self._time_to(now_us, self._full)

    def retry_after_us(self, now_us: int, cost: int) -> int | None:
        return None if cost > self.capacity else self._time_to(now_us, cost * self._period_us)

    def ideal_units(self, elapsed_us: int, start_us: int = 0) -> int:
        ticks = self._ticks(start_us + elapsed_us) - self._ticks(start_us)
        return (self._full + ticks * min(self._amount * self._tick_us, self._full)) // self._period_us

    def _ticks(self, now_us: int) -> int:
        return (now_us - self._phase_us) // self._tick_us

    def _refill(self, now_us: int) -> None:
        tick_at_us = self._ticks(now_us) * self._tick_us + self._phase_us
        if self._refilled_us is not None:
            self._level = min(self._full, self._level + self._amount * (tick_at_us - self._refilled_us))
        self._refilled_us = tick_at_us

    def _time_to(self, now_us: int, level: int) -> int:
        self._refill(now_us)
        if self._level >= level:
            return 0
        ticks = -((self._level - level) // (self._amount * self._tick_us))
        return (self._ticks(now_us) + ticks) * self._tick_us + self._phase_us - now_us


class SlidingLog:
    """At most `amount` units in any `period_us`: each charge is remembered until it is that old.

    Memory: one entry per instant with a charge, so at most `amount` of them, twice that in full debt.
    """

    def __init__(self, amount: int, period_us: int) -> None:
        self.capacity = amount
        self._period_us = period_us
        self._log: OrderedDict[int, int] = OrderedDict()  # instant -> units, oldest first
        self._used = 0

    def admits(self, now_us: int, cost: int) -> bool:
        self._expire(now_us)
        return self._used + cost <= self.capacity

    def charge(self, now_us: int, cost: int) -> None:
        self._expire(now_us)
        self._log[now_us] = self._log.get(now_us, 0) + cost
        self._used += cost

    def refund(self, now_us: int, cost: int, charged_us: int) -> None:
        self._expire(now_us)
        charged = self._log.get(charged_us, 0)
        given_back = min(cost, charged)
        self._used -= given_back
        if given_back < charged:
            self._log[charged_us] = charged - given_back
        else:
            self._log.pop(charged_us, None)

    def remaining(self, now_us: int) -> int:
        self._expire(now_us)
        return self.capacity - self._used

    def reset_us(self, now_us: int) -> int:
        self._expire(now_us)
        return next(reversed(self._log)) + self._period_us - now_us if self._log else 0

    def retry_after_us(self, now_us: int, cost: int) -> int | None:
        if cost > self.capacity:
            return None
        self._expire(now_us)
        excess = self._used + cost - self.capacity
        wait_us = 0
        for charged_us, units in self._log.items():
            if excess <= 0:
                break
            excess -= units
            wait_us = charged_us + self._period_us - now_us
        return wait_us

    def ideal_units(self, elapsed_us: int, start_us: int = 0) -> int:
        return self.capacity * (1 + elapsed_us // self._period_us)

    def _expire(self, now_us: int) -> None:
        while self._log:
            oldest_us = next(iter(self._log))
            if oldest_us + self._period_us > now_us:
                break
            self._used -= self._log.pop(oldest_us)


class SlidingCounter:
    """Two counters on the clock grid stand for a sliding window.

    With P units in the last grid window, C in this one, and a part f of this one over, it admits a cost c
    while `P * (1 - f) + C + c <= amount`. It knows nothing of where in its window a unit fell.
    """

    def __init__(self, amount: int, period_us: int, phase_us: int = 0) -> None:
        self.capacity = amount
        self._period_us = period_us
        self._phase_us = phase_us
        self._window = 0
        self._previous = 0
        self._current = 0

    def admits(self, now_us: int, cost: int) -> bool:
        left_us = self._roll(now_us)
        room = self.capacity - self._current - cost
        return self._previous * left_us <= room * self._period_us

    def charge(self, now_us: int, cost: int) -> None:
        self._roll(now_us)
        self._current += cost

    def refund(self, now_us: int, cost: int, charged_us: int) -> None:
        self._roll(now_us)
        windows_ago = self._window - self._window_of(charged_us)
        if windows_ago == 0:
            self._current -= min(cost, self._current)
        elif windows_ago == 1:
            self._previous -= min(cost, self._previous)

    def remaining(self, now_us: int) -> int:
        left_us = self._roll(now_us)
        return self.capacity - self._current + (-self._previous * left_us) // self._period_us

    def reset_us(self, now_us: int) -> int:
        left_us = self._roll(now_us)
        if self._current:
            return left_us + self._period_us
        return left_us if self._previous else 0

    def retry_after_us(self, now_us: int, cost: int) -> int | None:
        if cost > self.capacity:
            return None
        if self.admits(now_us, cost):
            return 0
        left_us = self._roll(now_us)
        room = self.capacity - self._current - cost
        if room >= 0:  # still in this window, when what is left of it weighs the last one down enough
            return left_us - room * self._period_us // self._previous
        # In the next one, where this window's units are the last one's.
        fits_us = (self.capacity - cost) * self._period_us // self._current
        return left_us + self._period_us - fits_us

    def ideal_units(self, elapsed_us: int, start_us: int = 0) -> int:
        """Units sent at the end of a window find the last one weighing nothing: all of each window, and f of
        the last one, in which the one before still weighs `1 - f`.
        """
        end_us = start_us + elapsed_us
        over = self._window_of(end_us) - self._window_of(start_us)
        if not over:
            return self.capacity
        part_us = (end_us - self._phase_us) % self._period_us
        return self.capacity * over + self.capacity * part_us // self._period_us

    def _window_of(self, now_us: int) -> int:
        return (now_us - self._phase_us) // self._period_us

    def _roll(self, now_us: int) -> int:
        """Go to the window of this instant; return what is left of it."""
        window = self._window_of(now_us)
        if window != self._window:
            self._previous = self._current if window == self._window + 1 else 0
            self._current = 0
            self._window = window
        return (window + 1) * self._period_us + self._phase_us - now_us


class FixedWindow:
    """At most `amount` units in each window of a grid or a calendar; a new window begins at zero."""

    def __init__(self, amount: int, windows: Windows) -> None:
        self.capacity = amount
        self._windows = windows
        self._start_us = self._end_us = 0
        self._used = 0

    def admits(self, now_us: int, cost: int) -> bool:
        self._roll(now_us)
        return self._used + cost <= self.capacity

    def charge(self, now_us: int, cost: int) -> None:
        self._roll(now_us)
        self._used += cost

    def refund(self, now_us: int, cost: int, charged_us: int) -> None:
        self._roll(now_us)
        if charged_us >= self._start_us:
            self._used -= min(cost, self._used)

    def remaining(self, now_us: int) -> int:
        self._roll(now_us)
        return self.capacity - self._used

    def reset_us(self, now_us: int) -> int:
        self._roll(now_us)
        return self._end_us - now_us if self._used else 0

    def retry_after_us(self, now_us: int, cost: int) -> int | None:
        if cost > self.capacity:
            return None
        return 0 if self.admits(now_us, cost) else self._end_us - now_us

    def ideal_units(self, elapsed_us: int, start_us: int = 0) -> int:
        return self.capacity * self._windows.touched(start_us, start_us + elapsed_us)

    def _roll(self, now_us: int) -> None:
        if not self._start_us <= now_us < self._end_us:
            self._start_us, self._end_us = self._windows.around(now_us)
            self._used = 0


class AnchoredWindow:
    """At most `amount` units in a window that the first charge opens and that lasts `period_us`."""

    def __init__(self, amount: int, period_us: int) -> None:
        self.capacity = amount
        self._period_us = period_us
        self._opened_us: int | None = None
        self._used = 0

    def admits(self, now_us: int, cost: int) -> bool:
        self._roll(now_us)
        return self._used + cost <= self.capacity

    def charge(self, now_us: int, cost: int) -> None:
        self._roll(now_us)
        if self._opened_us is None:
            self._opened_us = now_us
        self._used += cost

    def refund(self, now_us: int, cost: int, charged_us: int) -> None:
        self._roll(now_us)
        if self._opened_us is not None and charged_us >= self._opened_us:
            self._used -= min(cost, self._used)

    def remaining(self, now_us: int) -> int:
        self._roll(now_us)
        return self.capacity - self._used

    def reset_us(self, now_us: int) -> int:
        self._roll(now_us)
        return 0 if self._opened_us is None else self._opened_us + self._period_us - now_us

    def retry_after_us(self, now_us: int, cost: int) -> int | None:
        if cost > self.capacity:
            return None
        return 0 if self.admits(now_us, cost) else self.reset_us(now_us)

    def ideal_units(self, elapsed_us: int, start_us: int = 0) -> int:
        return self.capacity * (1 + elapsed_us // self._period_us)

    def _roll(self, now_us: int) -> None:
        if self._opened_us is not None and now_us >= self._opened_us + self._period_us:
            self._opened_us = None
            self._used = 0


class Concurrency:
    """At most `amount` slots held at once: a charge takes some, the refund at the answer's end frees them."""

    def __init__(self, amount: int) -> None:
        self.capacity = amount
        self._held = 0

    def admits(self, now_us: int, cost: int) -> bool:
        return self._held + cost <= self.capacity

    def charge(self, now_us: int, cost: int) -> None:
        self._held += cost

    def refund(self, now_us: int, cost: int, charged_us: int) -> None:
        self._held -= min(cost, self._held)

    def remaining(self, now_us: int) -> int:
        return self.capacity - self._held

    def reset_us(self, now_us: int) -> int | None:
        return None if self._held else 0

    def retry_after_us(self, now_us: int, cost: int) -> int | None:
        return 0 if self.admits(now_us, cost) else None

    def ideal_units(self, elapsed_us: int, start_us: int = 0) -> int | None:
        return None
