"""Rates as integers: how long one unit takes.

A bucket is kept in *ticks*, slices of a microsecond: one microsecond refills ``1 << shift`` ticks, and a
unit costs a fixed number of them. The shift is the largest that keeps a full bucket below 2^44 ticks, so
that every intermediate result, debts included, stays below 2^53 and a double computes the same as an
integer. A unit is rounded up to whole ticks: the rate is never too high, and too low by at most one part
in 2^43 / burst: 0.01 % for buckets of 10^9 units, nothing to speak of for smaller ones.
"""

from __future__ import annotations

from typing import NamedTuple

FULL_BITS = 44
"""So that a debt of 256 full buckets stays below 2^53."""
LARGEST_BITS = 51
"""For buckets that take months to fill; a debt of two of them is remembered."""
MOST_SHIFT = 40

CLOCK_DRIFT = 5_000
"""Clocks may differ in rate by one part in so many (200 ppm): twice what an undisciplined crystal does."""


class Scale(NamedTuple):
    """``unit_ticks`` for each unit; ``1 << shift`` ticks for each microsecond."""

    unit_ticks: int
    shift: int

    @classmethod
    def of(cls, period_us: int, amount: int, burst: int) -> Scale:
        """For ``amount`` units per ``period_us``, with at most ``burst`` of them in the bucket."""
        for shift in range(MOST_SHIFT, -1, -1):
            unit_ticks = -(-(period_us << shift) // amount)
            if unit_ticks * burst < 1 << FULL_BITS:
                return cls(unit_ticks, shift)
        unit_ticks = -(-period_us // amount)
        if unit_ticks * burst < 1 << LARGEST_BITS:
            return cls(unit_ticks, 0)
        raise OverflowError(
            f"{burst} units at {amount} per {period_us} µs need {unit_ticks * burst} ticks; "
            f"at most 2^{LARGEST_BITS} can be kept"
        )


def stretched(period_us: int) -> int:
    """A period lengthened by what the server's clock may run slower than ours."""
    return period_us + -(-period_us // CLOCK_DRIFT)
