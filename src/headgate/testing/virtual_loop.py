"""An event loop whose time is a FakeClock: idle, it jumps to its next timer instead of sleeping.

Sockets and threads work as ever, but take no virtual time: a loop that waits for a timer does not wait for
them. It knows nothing of limits.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Callable
from typing import TYPE_CHECKING

from headgate.core.model import SECOND

if TYPE_CHECKING:
    from headgate.testing.clock import FakeClock

PATIENCE_SECONDS = 2.0
"""Real time for a thread or a socket to wake a loop that has no timer left."""


class Stuck(AssertionError):
    """Every task waits, and nothing is left that could wake one."""


class _Jumps(selectors.DefaultSelector):
    """Where the loop would sleep, the clock moves."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock = clock
        self.turns = 0
        self.acts: dict[int, Callable[[], object]] = {}

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.turns += 1
        act = self.acts.pop(self.turns, None)
        if act is not None:
            act()
            return super().select(0)
        events = super().select(0 if timeout is not None else PATIENCE_SECONDS)
        if not events:
            if timeout is None:
                raise Stuck("every task waits, and no timer is set")
            # Up to the timer, not short of it; the loop's float arithmetic is off by far less than 0.01 µs.
            self.clock.advance(math.ceil(max(timeout, 0) * SECOND - 0.01) / SECOND)
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that lives in the time of ``clock``; see :meth:`FakeClock.run`."""

    def __init__(self, clock: FakeClock) -> None:
        self._jumps = _Jumps(clock)
        super().__init__(self._jumps)
        self._clock = clock
        self._clock_resolution = 1e-8  # timers fire at their microsecond, not before it

    def time(self) -> float:
        """Virtual seconds since the start of the clock."""
        return self._clock.elapsed_seconds

    @property
    def turns(self) -> int:
        """How often it has looked for something to do: a deterministic count of steps."""
        return self._jumps.turns

    def at_turn(self, turn: int, act: Callable[[], object]) -> None:
        """Call ``act`` between two turns, just before number ``turn``.

        Cancel a task at turn 1, 2, … of the same program, and you have cancelled it at every ``await``.
        """
        self._jumps.acts[turn] = act
