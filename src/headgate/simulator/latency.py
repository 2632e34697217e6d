"""How long things take: seeded samplers of seconds, pure functions of a `random.Random`."""

import math
from collections.abc import Callable
from random import Random

Sampler = Callable[[Random], float]

# Spread of the service time: 98 of 100 calls take 0.48 to 1.92 times the mean.
SERVICE_SIGMA = 0.3


def constant(seconds: float) -> Sampler:
    """Return always the same length."""
    return lambda random: seconds


def uniform(low_seconds: float, high_seconds: float) -> Sampler:
    """Return any length between the two, all alike."""
    return lambda random: random.uniform(low_seconds, high_seconds)


def lognormal(mean_seconds: float, sigma: float = SERVICE_SIGMA) -> Sampler:
    """Return lengths whose logarithm is normal: never zero, sometimes long, `mean_seconds` on average.

    mean = exp(mu + sigma^2 / 2), hence mu = log(mean) - sigma^2 / 2.
    """
    if not mean_seconds:
        return constant(0.0)
    mu = math.log(mean_seconds) - sigma * sigma / 2
    return lambda random: random.lognormvariate(mu, sigma)
