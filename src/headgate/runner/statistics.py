"""What the calls of a runner came to, in figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from headgate.progress.stats import Histogram


@dataclass(slots=True)
class Figures:
    """Running totals. Instants are seconds on the elapsed clock of the store."""

    added: int = 0
    started: int = 0
    succeeded: int = 0
    failed: int = 0
    skipped: int = 0
    restored: int = 0
    refused: int = 0
    retried: int = 0
    timed_out: int = 0
    given_back: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    latency: Histogram = field(default_factory=Histogram)
    used: Counter[str] = field(default_factory=Counter)
    first_sent_at: float | None = None
    last_done_at: float | None = None


@dataclass(frozen=True, slots=True)
class LimitUse:
    """How far a limit was used.

    ``used`` units of ``possible``, the most that it lets through in the time from the first start to the last
    end, from an empty start (slot-seconds for concurrency).
    """

    name: str
    used: float
    possible: float

    @property
    def share(self) -> float | None:
        """Of what was possible."""
        return self.used / self.possible if self.possible > 0 else None


@dataclass(frozen=True, slots=True)
class Statistics:
    """Figures since the runner was made; times in seconds.

    Attributes:
        count: calls that have ended for good, those that came from the checkpoint left out.
        succeeded, failed, skipped: how. ``restored`` are those of ``succeeded`` that came from the
            checkpoint.
        attempts: how often the function was called.
        refused: attempts that the server refused for its rate.
        retries: how often a call was to be sent again.
        timeouts: attempts that took too long.
        seconds: from the first start to the last end.
        throughput: calls that succeeded here, per second of that.
        mean, p50, p95, p99, longest: seconds that successful attempts took; None while there are none.
        spent: money by ``price``.
        limits: the use of each.
        errors: {class of the error: attempts}.
    """

    count: int
    succeeded: int
    failed: int
    skipped: int
    restored: int
    attempts: int
    refused: int
    retries: int
    timeouts: int
    seconds: float
    throughput: float | None
    mean: float | None
    p50: float | None
    p95: float | None
    p99: float | None
    longest: float | None
    spent: float
    limits: tuple[LimitUse, ...]
    errors: Mapping[str, int]

    def __str__(self) -> str:
        parts = [f"{self.succeeded:,} succeeded, {self.failed:,} failed"]
        if self.restored:
            parts[0] += f" ({self.restored:,} from the checkpoint)"
        if self.skipped:
            parts.append(f"{self.skipped:,} skipped")
        parts.append(f"{self.attempts:,} attempts, {self.refused:,} refused, {self.retries:,} retries")
        if self.mean is not None and self.throughput is not None:
            parts.append(
                f"{self.seconds:.1f} s, {self.throughput:.1f} per second, "
                f"mean {self.mean * 1000:.0f} ms, p95 {(self.p95 or 0) * 1000:.0f} ms"
            )
        parts += [f"{use.name} {use.share:.1%}" for use in self.limits if use.share is not None]
        return "; ".join(parts)
