"""What a server saw, counted against the best that was possible.

Utilisation is accepted units over the rule's ideal (see `rules`) for the span from the first arrival to
the last. It takes the rule to be fresh at the first arrival.
"""

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitReport:
    """How one limit was used. Units are as charged by accepted calls, refunds taken off.

    `worst_window_units` is the most that was charged in any span of the limit's period, refunds not taken
    off. None where a limit has no ideal or no period of fixed length.
    """

    name: str
    meter: str
    accepted_units: int
    ideal_units: int | None
    utilisation: float | None
    worst_window_units: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What a server saw so far. Instants are microseconds since 1970, None before the first call.

    `refused_by` counts refused calls by the name of the limit that refused them the longest.
    """

    accepted: int
    refused: int
    refused_by: dict[str, int]
    limits: tuple[LimitReport, ...]
    in_flight: int
    peak_in_flight: int
    first_arrival_us: int | None
    last_arrival_us: int | None


class LimitTally:
    """The running count behind a LimitReport.

    Memory: one entry per instant with a charge within the last period, so at most about as many as the
    limit admits in one.
    """

    def __init__(self, period_us: int) -> None:
        """Take the span to look for the worst window in; 0 means not to look."""
        self.accepted_units = 0
        self.worst_units = 0
        self._period_us = period_us
        self._recent: deque[tuple[int, int]] = deque()
        self._recent_units = 0

    def charged(self, now_us: int, units: int) -> None:
        """Count units charged to an accepted call."""
        self.accepted_units += units
        if not self._period_us:
            return
        self._recent.append((now_us, units))
        self._recent_units += units
        while self._recent[0][0] + self._period_us <= now_us:
            self._recent_units -= self._recent.popleft()[1]
        self.worst_units = max(self.worst_units, self._recent_units)

    def refunded(self, units: int) -> None:
        """Count units given back."""
        self.accepted_units -= units

    def report(self, name: str, meter: str, ideal_units: int | None) -> LimitReport:
        """Return the count as a fact."""
        return LimitReport(
            name=name,
            meter=meter,
            accepted_units=self.accepted_units,
            ideal_units=ideal_units,
            utilisation=self.accepted_units / ideal_units if ideal_units else None,
            worst_window_units=self.worst_units if self._period_us else None,
        )
