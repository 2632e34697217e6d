"""A slow start: from next to nothing to the full rate in a straight line.

Some providers refuse callers who grow too fast, whatever their limit (OpenAI ``slow_down``, acceleration
limits of Anthropic, Together and Vertex AI; their rate-limit guides, read October 2026).

Pure: the instant is an argument, in microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence

from headgate.core.model import SECOND, Costs, Limit
from headgate.errors import ConfigurationError

FIRST_SHARE = 0.02
"""Of the full rate, at the very first."""


class Ramp:
    """Lets through at most what a rate that grows for ``seconds`` has brought.

    After a time x of a ramp of length L, a limit with rate R has brought
    R × (s·x + (1 - s)·x²/2L), where s is the share at the beginning. One call is always ahead.

    Without any rate limit, it is the number of running calls that grows.
    """

    def __init__(self, seconds: float, limits: Sequence[Limit]) -> None:
        if not 1e-6 <= seconds < 400 * 86_400:
            raise ConfigurationError(f"a ramp lasts 1 µs to 400 days; got {seconds} s")
        self._length_us = round(seconds * SECOND)
        self._rates = [
            None if limit.kind == "concurrency" else limit.amount / limit.period_us for limit in limits
        ]
        self._used = [0] * len(limits)
        self._begin_us: int | None = None

    def begin(self) -> None:
        """A new start."""
        self._begin_us = None
        self._used = [0] * len(self._used)

    def opens_at(self, now_us: int) -> int:
        """The first instant from ``now_us`` on at which a call may start."""
        if self._begin_us is None or now_us >= self._begin_us + self._length_us:
            return now_us
        opens = now_us
        for used, rate in zip(self._used, self._rates, strict=True):
            if rate is not None and used > rate * self._brought(now_us - self._begin_us):
                opens = max(opens, self._begin_us + self._reached(used / rate))
        return opens

    def most_running(self, now_us: int, most: int) -> int:
        """How many may run at once, where no rate is known."""
        if any(rate is not None for rate in self._rates) or self._begin_us is None:
            return most
        share = (now_us - self._begin_us) / self._length_us
        return most if share >= 1 else max(1, int(most * share))

    def take(self, costs: Costs, now_us: int) -> None:
        """A call starts."""
        if self._begin_us is None:
            self._begin_us = now_us
        self._used = [used + cost for used, cost in zip(self._used, costs, strict=True)]

    def give_back(self, costs: Costs) -> None:
        """One did not start after all."""
        self._used = [used - cost for used, cost in zip(self._used, costs, strict=True)]

    def _brought(self, x_us: int) -> float:
        """The integral of the share of the rate, in µs of the full rate."""
        return FIRST_SHARE * x_us + (1 - FIRST_SHARE) * x_us * x_us / (2 * self._length_us)

    def _reached(self, brought: float) -> int:
        """When so much has been brought; at most the end of the ramp."""
        slope = (1 - FIRST_SHARE) / self._length_us
        root = (FIRST_SHARE**2 + 2 * slope * brought) ** 0.5
        return min(int((root - FIRST_SHARE) / slope) + 1, self._length_us)
