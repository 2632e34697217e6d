"""Counting what a run does, in memory that does not grow."""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field

_BUCKETS_PER_DOUBLING = 32
"""Neighbouring buckets differ by 2.2 %."""
_LEAST_SECONDS = 1e-5


class Histogram:
    """Times by size, in steps of about two per cent."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self.count = 0
        self.total = 0.0
        self.largest = 0.0

    def add(self, seconds: float) -> None:
        self._counts[
            int(_BUCKETS_PER_DOUBLING * math.log2(max(seconds, _LEAST_SECONDS) / _LEAST_SECONDS))
        ] += 1
        self.count += 1
        self.total += seconds
        self.largest = max(self.largest, seconds)

    def quantile(self, share: float) -> float | None:
        """The time that ``share`` of all stay below; None while there are none."""
        if not self.count:
            return None
        wanted = share * self.count
        for bucket in sorted(self._counts):
            wanted -= self._counts[bucket]
            if wanted <= 0:
                return min(
                    float(_LEAST_SECONDS * 2 ** ((bucket + 0.5) / _BUCKETS_PER_DOUBLING)), self.largest
                )
        return self.largest

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None


class Pace:
    """A rate over the last few seconds."""

    def __init__(self, seconds: float = 5.0) -> None:
        self._window = seconds
        self._marks: deque[tuple[float, int]] = deque()

    def mark(self, at: float, count: int) -> None:
        """``count`` is a total that only grows."""
        self._marks.append((at, count))
        while len(self._marks) > 2 and self._marks[1][0] <= at - self._window:
            self._marks.popleft()

    def per_second(self) -> float:
        if len(self._marks) < 2:
            return 0.0
        (first, low), (last, high) = self._marks[0], self._marks[-1]
        return (high - low) / (last - first) if last > first else 0.0


@dataclass(slots=True)
class Counts:
    """Totals of one run.

    ``requests`` were sent; ``refused`` of them met a rate limit; ``late`` are answers that proved
    ``max_transit_seconds`` exceeded: written later than that after the grant, or refused though the
    books said that they fit.
    """

    succeeded: int = 0
    failed: int = 0
    malformed_lines: int = 0
    requests: int = 0
    refused: int = 0
    retries: int = 0
    timeouts: int = 0
    late: int = 0
    given_back: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    units: Counter[str] = field(default_factory=Counter)
    """{limit name: units booked}."""
