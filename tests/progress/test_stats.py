"""Counting in memory that does not grow."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.progress.stats import Histogram, Pace


def test_nothing_has_no_quantile() -> None:
    histogram = Histogram()
    assert histogram.quantile(0.99) is histogram.mean is None


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.95, 0.99, 1.0])
@pytest.mark.parametrize("kind", ["even", "lognormal"])
def test_quantiles_are_within_three_per_cent(share: float, kind: str) -> None:
    chance = random.Random(5)
    values = [
        chance.uniform(0.001, 2) if kind == "even" else chance.lognormvariate(-3, 1) for _ in range(20_000)
    ]
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    exact = sorted(values)[min(int(share * len(values)), len(values) - 1)]
    assert histogram.quantile(share) == pytest.approx(exact, rel=0.03)
    assert histogram.mean == pytest.approx(sum(values) / len(values))


@given(st.lists(st.floats(0, 1e5), min_size=1), st.floats(0.001, 1))
def test_a_quantile_is_never_above_the_largest(values: list[float], share: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    found = histogram.quantile(share)
    assert found is not None
    assert 0 <= found <= max(values)


def test_the_number_of_buckets_is_bounded() -> None:
    histogram = Histogram()
    for power in range(-200, 200):
        histogram.add(1.1**power)
    assert len(histogram._counts) < 2000


def test_a_pace_is_of_the_last_seconds() -> None:
    pace = Pace(5)
    assert pace.per_second() == 0
    for second in range(20):
        pace.mark(second, 10 * min(second, 12))
    assert pace.per_second() == 0
    pace.mark(20, 150)
    assert 3 < pace.per_second() < 7
    assert len(pace._marks) < 10
