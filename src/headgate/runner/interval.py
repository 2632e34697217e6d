"""At most so many starts in an interval, as seen by the caller.

A limit of a server belongs into a :class:`~headgate.Limiter`, which knows what a server may see and when. An
interval is for the rest: a rule that people set themselves, "one every two minutes". It counts the instants
at which calls start here, on a clock that nobody can set.

Pure: the instant is an argument, in microseconds.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

from headgate.core.model import SECOND
from headgate.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Interval:
    """At most ``cap`` starts in ``seconds``.

    Attributes:
        seconds: length of the interval, above 0.
        cap: starts in it, 1 or more.
        kind: ``strict``: fewer than ``cap`` starts in any interval, wherever it begins (the default).
            ``anchored``: windows that begin with the first start after a rest and follow each other while
            work waits; up to twice the cap may start around the seam of two. ``carryover``: the same, but
            calls that are still running when a window begins count in it.

    Raises:
        ConfigurationError: numbers out of range.
    """

    seconds: float
    cap: int = 1
    kind: Literal["strict", "anchored", "carryover"] = "strict"

    def __post_init__(self) -> None:
        if not 1e-6 <= self.seconds < 400 * 86_400:
            raise ConfigurationError(f"an interval lasts 1 µs to 400 days; got {self.seconds} s")
        if type(self.cap) is not int or self.cap < 1:
            raise ConfigurationError(f"an interval's cap is a whole number, 1 or more; got {self.cap!r}")
        if self.kind not in ("strict", "anchored", "carryover"):
            raise ConfigurationError(f"kind is strict, anchored or carryover; got {self.kind!r}")


class Strict:
    """The instants of the last starts; one more is due when the eldest of ``cap`` is an interval old."""

    def __init__(self, interval: Interval) -> None:
        self._length_us = round(interval.seconds * SECOND)
        self._starts: deque[int] = deque(maxlen=interval.cap)

    def opens_at(self, now_us: int, running: int) -> int:
        """The first instant from ``now_us`` on at which a call may start."""
        starts = self._starts
        if len(starts) < (starts.maxlen or 1):
            return now_us
        return max(now_us, starts[0] + self._length_us)

    def take(self, now_us: int) -> None:
        """A call starts."""
        self._starts.append(now_us)

    def give_back(self, at_us: int) -> None:
        """The one that was to start at that instant did not after all."""
        if at_us in self._starts:
            self._starts.remove(at_us)

    def dump(self) -> list[int]:
        """The starts that still count."""
        return list(self._starts)

    def load(self, starts: list[int]) -> None:
        """Take up what :meth:`dump` said, on the clock of today."""
        self._starts.extend(starts)


class Anchored:
    """A count for the window that is open; the next one begins where it ends if work waits there."""

    def __init__(self, interval: Interval) -> None:
        self._length_us = round(interval.seconds * SECOND)
        self._cap = interval.cap
        self._carries = interval.kind == "carryover"
        self._begin_us: int | None = None
        self._count = 0
        self._wanted = False  # work has waited for this window to end

    def opens_at(self, now_us: int, running: int) -> int:
        """The first instant from ``now_us`` on at which a call may start if ``running`` go on until then."""
        self._roll(now_us, running)
        if self._begin_us is None or self._count < self._cap:
            return now_us
        self._wanted = True
        return self._begin_us + self._length_us

    def take(self, now_us: int) -> None:
        """A call starts."""
        if self._begin_us is None:
            self._begin_us = now_us
        self._count += 1

    def give_back(self, at_us: int) -> None:
        """The one that was to start at that instant did not after all."""
        if self._begin_us is not None and at_us >= self._begin_us:
            self._count = max(self._count - 1, 0)

    def dump(self) -> list[int]:
        """The starts that still count, all at the beginning of their window."""
        return [] if self._begin_us is None else [self._begin_us] * self._count

    def load(self, starts: list[int]) -> None:
        """Take up what :meth:`dump` said, on the clock of today."""
        if starts:
            self._begin_us, self._count = starts[-1], len(starts)

    def _roll(self, now_us: int, running: int) -> None:
        if self._begin_us is None:
            return
        windows = (now_us - self._begin_us) // self._length_us
        if windows < 1:
            return
        # The next one follows at once if somebody stood at the edge, or if calls are carried over it: after a
        # rest, a start begins it.
        self._count = running if self._carries else 0
        if self._count or (self._wanted and windows == 1):
            self._begin_us += windows * self._length_us
        else:
            self._begin_us = None
        self._wanted = False


Spacing = Strict | Anchored


def spacing(interval: Interval | None) -> Spacing | None:
    """What keeps an interval."""
    if interval is None:
        return None
    return Strict(interval) if interval.kind == "strict" else Anchored(interval)
