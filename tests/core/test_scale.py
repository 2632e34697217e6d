"""Rates as whole ticks: never too fast, hardly too slow, always exact."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headgate.core.model import DAY, SECOND
from headgate.core.scale import FULL_BITS, LARGEST_BITS, Scale, stretched


@example(period=17_588_355_359_687, amount=7_809_926, burst=160_979_271)
@given(period=st.integers(1_000, 400 * DAY), amount=st.integers(1, 10**12), burst=st.integers(1, 10**9))
def test_a_rate_is_never_too_high_and_a_full_bucket_is_exact(period: int, amount: int, burst: int) -> None:
    try:
        scale = Scale.of(period, amount, burst)
    except (OverflowError, ValueError):
        assert burst * period > amount << FULL_BITS - 1
        return
    assert scale.unit_ticks * amount >= period << scale.shift
    assert scale.unit_ticks * burst < 1 << (FULL_BITS if scale.shift else LARGEST_BITS)


@given(period=st.sampled_from((SECOND, 60 * SECOND, DAY)), burst=st.integers(1, 10**9))
def test_a_rate_is_too_low_by_no_more_than_stated(period: int, burst: int) -> None:
    """One part in 2^43 / burst, or in 2^40 for the smallest."""
    scale = Scale.of(period, burst, burst)
    least = min((1 << FULL_BITS - 1) // burst, 1 << 40)
    assert (scale.unit_ticks * burst - (period << scale.shift)) * least <= period << scale.shift


@pytest.mark.parametrize(("period", "longer"), [(1_000, 1_001), (5_000, 5_001), (SECOND, 1_000_200), (1, 2)])
def test_periods_are_stretched_by_two_in_ten_thousand_rounded_up(period: int, longer: int) -> None:
    assert stretched(period) == longer
