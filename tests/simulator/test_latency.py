from random import Random
from statistics import fmean, quantiles

import pytest

from headgate.simulator.latency import Sampler, constant, lognormal, uniform


def draw(sampler: Sampler, count: int = 20_000) -> list[float]:
    random = Random(1)
    return [sampler(random) for _ in range(count)]


def test_constant_is() -> None:
    assert set(draw(constant(0.2), 10)) == {0.2}


def test_uniform_spreads_between_its_bounds() -> None:
    drawn = draw(uniform(0.01, 0.03))
    assert 0.01 <= min(drawn) < 0.0101
    assert 0.0299 < max(drawn) <= 0.03
    assert fmean(drawn) == pytest.approx(0.02, rel=0.01)


def test_lognormal_has_the_mean_and_the_stated_spread() -> None:
    drawn = draw(lognormal(0.2))
    assert fmean(drawn) == pytest.approx(0.2, rel=0.01)
    percentiles = quantiles(drawn, n=100)
    assert percentiles[0] == pytest.approx(0.48 * 0.2, rel=0.03)
    assert percentiles[98] == pytest.approx(1.92 * 0.2, rel=0.03)


def test_no_latency_at_all() -> None:
    assert set(draw(lognormal(0), 10)) == {0.0}


def test_the_same_seed_gives_the_same_times() -> None:
    assert draw(lognormal(1), 5) == draw(lognormal(1), 5)
