"""Limits that contradict themselves are refused where they are declared."""

from __future__ import annotations

from typing import Any

import pytest

from headgate.core.model import DAY, HOUR, MINUTE, SECOND, Limit
from headgate.errors import ConfigurationError

GOOD: dict[str, Any] = {"meter": "requests", "amount": 5, "period_us": SECOND}


@pytest.mark.parametrize(
    "changes",
    [
        {"meter": ""},
        {"meter": "1st"},
        {"meter": "a b"},
        {"meter": "a\n"},
        {"amount": 0},
        {"amount": -1},
        {"amount": 10**12 + 1},
        {"burst": 5},
        {"kind": "bucket"},
        {"kind": "bucket", "burst": 0},
        {"kind": "bucket", "burst": 10**12 + 1},
        {"kind": "sliding", "burst": 5},
        {"kind": "calendar"},
        {"calendar": "day"},
        {"kind": "concurrency"},
        {"period_us": 0},
        {"period_us": 999},
        {"period_us": 400 * DAY + 1},
        {"start": -1},
        {"max_transit_us": 0},
        {"max_transit_us": HOUR + 1},
    ],
    ids=str,
)
def test_a_limit_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Limit(**{**GOOD, **changes})


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "requests/s"),
        ({"period_us": MINUTE}, "requests/min"),
        ({"period_us": 3 * SECOND}, "requests/3s"),
        ({"period_us": 1_500_000}, "requests/1500ms"),
        ({"kind": "calendar", "calendar": "month", "period_us": 31 * DAY}, "requests/month"),
        ({"kind": "concurrency", "period_us": 0, "meter": "concurrency"}, "concurrency"),
        ({"name": "mine"}, "mine"),
    ],
    ids=str,
)
def test_a_limit_has_a_name(changes: dict[str, Any], name: str) -> None:
    assert Limit(**{**GOOD, **changes}).name == name


@pytest.mark.parametrize(
    ("charge", "refund", "when", "settles", "held"),
    [
        ("estimate", None, "arrival", False, False),
        ("usage", None, "arrival", True, True),
        ("usage", False, "arrival", False, False),
        ("estimate", True, "arrival", True, True),
        ("estimate", None, "completion", False, True),
        ("usage", None, "completion", True, True),
    ],
)
def test_what_is_charged_says_how_long_a_cost_is_held(
    charge: Any, refund: bool | None, when: Any, settles: bool, held: bool
) -> None:
    limit = Limit(**GOOD, charge=charge, refund=refund, when=when)
    assert (limit.settles_to_usage, limit.held_to_answer) == (settles, held)


def test_limits_above_an_hour_outlive_the_process() -> None:
    assert not Limit(**{**GOOD, "period_us": HOUR}).outlives_process
    assert Limit(**{**GOOD, "period_us": DAY}).outlives_process
