from __future__ import annotations

import pytest

from headgate.core.limits.concurrency import Concurrency
from headgate.core.limits.fixed_window import FixedWindow
from headgate.core.limits.sliding_window import SlidingWindow
from headgate.core.limits.token_bucket import SmallBucket, TokenBucket
from headgate.core.model import NEVER
from headgate.core.plan import Plan
from headgate.core.text import parse_limits
from headgate.errors import ConfigurationError


def plan(*limits: str) -> Plan:
    return Plan(parse_limits(limits))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("requests=5/s:burst=5", TokenBucket),
        ("requests=5/s:kind=sliding", SlidingWindow),
        ("requests=5/s:kind=anchored", SlidingWindow),
        ("requests=5/s:kind=fixed", FixedWindow),
        ("requests=5/day:kind=calendar", FixedWindow),
        ("requests=5/s", SmallBucket),
        ("concurrency=5", Concurrency),
    ],
)
def test_each_kind_has_its_rule(text: str, rule: type) -> None:
    assert type(plan(text).rules[0]) is rule


def test_a_grant_may_lie_for_half_of_the_shortest_transit() -> None:
    assert (
        plan("requests=5/s:kind=sliding:transit=30ms", "tokens=5/s:kind=sliding:transit=50ms").use_before_us
        == 15_000
    )
    assert plan("concurrency=5").use_before_us == NEVER
    assert Plan([]).use_before_us == NEVER


def test_costs_are_one_request_and_one_slot_unless_told() -> None:
    both = plan("requests=5/s", "tokens=5/s", "concurrency=3", "requests=50/min")
    assert both.costs({}) == (1, 0, 1, 1)
    assert both.costs({"tokens": 4}) == (1, 4, 1, 1)
    assert both.costs({"requests": 2}) == (2, 0, 1, 2)
    assert both.costs({"requests": 0, "concurrency": 0}) == (0, 0, 0, 0)
    assert plan("tokens=5/s").costs({"requests": 3}) == (0,)


@pytest.mark.parametrize(
    "units", [{"images": 1}, {"tokens": -1}, {"tokens": 1.5}, {"tokens": True}, {"tokens": "1"}]
)
def test_costs_that_make_no_sense_are_refused(units: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError):
        plan("tokens=5/s").costs(units)


def test_limits_are_told_apart_by_name() -> None:
    with pytest.raises(ConfigurationError, match="name="):
        plan("requests=5/s", "requests=5/s:burst=4")
    assert len(plan("requests=5/s", "requests=5/s:burst=4:name=other").rules) == 2


def test_an_unknown_zone_is_told_at_once() -> None:
    with pytest.raises(ConfigurationError, match="Mars"):
        plan("requests=5/day:kind=calendar:zone=Mars/Olympus")
