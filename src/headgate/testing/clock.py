"""A clock that moves only when told. It knows instants, not what is measured by them."""

from __future__ import annotations

from collections.abc import Coroutine
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from headgate.core.model import SECOND, Now

if TYPE_CHECKING:
    from headgate.testing.virtual_loop import VirtualLoop

T = TypeVar("T")

START_ELAPSED_US = 1_000 * SECOND
START_WALL_US = 1_767_225_600 * SECOND
"""2026-01-01 00:00:00 UTC: the first instant of a minute, an hour, a day, a month and a year."""


class FakeClock:
    """The clock of a store, in the hands of a test.

    Give it to the store: ``MemoryStore(fake_clock)``. It starts at 2026-01-01 00:00 UTC, always. ::

        def test_refills(fake_clock):
            limiter = Limiter("requests=2/s:burst=1:start=full", store=MemoryStore(fake_clock))
            limiter.acquire().settle()
            assert limiter.try_permit() is None
            fake_clock.advance(0.51)
            assert limiter.try_permit() is not None

    Code that waits runs in virtual time: :meth:`run`.
    """

    def __init__(self) -> None:
        self._now = Now(START_ELAPSED_US, START_WALL_US)
        self._lock = Lock()

    def __call__(self) -> Now:
        return self._now

    def __repr__(self) -> str:
        return f"<FakeClock {self.elapsed_seconds:g} s>"

    @property
    def elapsed_seconds(self) -> float:
        """Seconds since the start."""
        return (self._now.elapsed_us - START_ELAPSED_US) / SECOND

    def advance(self, seconds: float) -> None:
        """Let time pass, to the nearest microsecond.

        Raises:
            ValueError: less than 0 seconds; elapsed time does not run backwards.
        """
        if seconds < 0:
            raise ValueError(f"elapsed time runs forward: expected 0 seconds or more; got {seconds}")
        self._move(round(seconds * SECOND), round(seconds * SECOND))

    def jump_wall(self, seconds: float) -> None:
        """Set the wall clock forward, or back if negative, as an administrator does; no time passes."""
        self._move(0, round(seconds * SECOND))

    def _move(self, elapsed_us: int, wall_us: int) -> None:
        with self._lock:
            elapsed, wall = self._now
            self._now = Now(elapsed + elapsed_us, wall + wall_us)

    def loop(self) -> VirtualLoop:
        """A new event loop that lives in the time of this clock, for ``asyncio.Runner(loop_factory=…)``."""
        from headgate.testing.virtual_loop import VirtualLoop

        return VirtualLoop(self)

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine as ``asyncio.run`` does, in virtual time.

        When every task waits, the clock jumps to the next timer: hours of waiting take no time, and each
        run is like the last.

        Raises:
            Stuck: every task waits, and nothing is left that could wake one.
        """
        import asyncio

        with asyncio.Runner(loop_factory=self.loop) as runner:
            return runner.run(main)
