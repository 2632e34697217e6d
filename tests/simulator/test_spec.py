import pytest

from headgate.simulator.rules import (
    AnchoredWindow,
    Concurrency,
    FixedWindow,
    SlidingCounter,
    SlidingLog,
    TokenBucket,
)
from headgate.simulator.spec import LimitSpec, SpecError, make_rule, parse_limit

SECOND = 1_000_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("requests=60/min", {"kind": "bucket", "amount": 60, "period_us": 60 * SECOND, "burst": None}),
        ("tokens=40k/min:burst=5", {"kind": "bucket", "amount": 40_000, "burst": 5}),
        ("tokens=2M/3s", {"amount": 2_000_000, "period_us": 3 * SECOND}),
        ("tokens=1.5k/250ms", {"amount": 1_500, "period_us": SECOND // 4}),
        ("requests=5/s:kind=sliding", {"kind": "sliding"}),
        ("requests=5/s:kind=counter:phase=100ms", {"kind": "counter", "phase_us": 100_000}),
        ("requests=5/s:kind=fixed:phase=0", {"kind": "fixed", "phase_us": 0}),
        ("requests=5/s:kind=anchored", {"kind": "anchored"}),
        (
            "requests=5/month:kind=calendar:zone=Europe/Berlin",
            {"kind": "calendar", "unit": "month", "zone": "Europe/Berlin", "period_us": 0},
        ),
        ("requests=9/s:tick=100ms", {"tick_us": 100_000}),
        ("requests=9/s", {"charge": "estimate", "when": "arrival", "refund": False, "name": "requests=9/s"}),
        ("tokens=9/s:charge=usage", {"charge": "usage", "when": "arrival", "refund": True}),
        ("tokens=9/s:charge=usage:refund=no", {"charge": "usage", "refund": False}),
        ("tokens=9/s:charge=usage:when=completion", {"charge": "usage", "when": "completion"}),
        ("tokens=9/s:name=per second", {"name": "per second"}),
        ("tokens=9/s:start=empty:error=2ms:transit=1s", {"kind": "bucket", "name": "tokens=9/s"}),
        ("concurrency=8", {"kind": "concurrency", "amount": 8, "meter": "concurrency"}),
        ("concurrency=8:name=slots", {"kind": "concurrency", "name": "slots"}),
    ],
)
def test_reads_limits(text: str, expected: dict[str, object]) -> None:
    spec = parse_limit(text)
    assert spec.text == text
    assert {name: getattr(spec, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "caret", "reason"),
    [
        ("", "^", "expected a meter"),
        ("60/min", "^", "expected a meter"),
        ("requests", "        ^", "expected =AMOUNT"),
        ("requests=60", "           ^", "expected /PERIOD"),
        ("requests=x/min", "         ^", "whole amount"),
        ("requests=0/min", "         ^", "at least 1"),
        ("requests=0.5/min", "         ^", "whole amount"),
        ("requests=60/week", "            ^", "length of time"),
        ("requests=60/0s", "            ^", "more than no time"),
        ("requests=60/month", "            ^", "kind=calendar"),
        ("requests=60/3s:kind=calendar", "            ^", "h, day or month"),
        ("requests=60/min:", "                ^", "unknown option ''"),
        ("requests=60/min:bust=5", "                ^", "unknown option 'bust'"),
        ("requests=60/min:burst", "                     ^", "expected = after"),
        ("requests=60/min:burst=", "                      ^", "whole amount"),
        ("requests=60/min:burst=5:burst=6", "                        ^", "given twice"),
        ("requests=60/min:kind=slide", "                     ^", "bucket or sliding"),
        (
            "requests=60/min:kind=sliding:burst=5",
            "                             ^",
            "kind=bucket, not with sliding",
        ),
        ("requests=60/min:tick=5", "                     ^", "length of time"),
        ("requests=5/day:kind=calendar:zone=Mars/Base", "                                  ^", "time zone"),
        ("requests=5/day:kind=calendar:zone=../x", "                                  ^", "time zone"),
        ("requests=5/day:zone=UTC", "               ^", "kind=calendar"),
        ("tokens=5/s:refund=yes", "           ^", "charge=usage"),
        ("tokens=5/s:refund=maybe", "                  ^", "yes or no"),
        ("tokens=5/s:name=", "                ^", "expected a name"),
        ("concurrency=8/s", "             ^", "no period"),
        ("concurrency=8:charge=usage", "              ^", "not with concurrency"),
    ],
)
def test_errors_point_at_the_character(text: str, caret: str, reason: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_limit(text)
    told, shown, pointed = str(caught.value).split("\n")
    assert reason in told
    assert (shown, pointed) == ("  " + text, "  " + caret)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("requests=60/min", TokenBucket),
        ("requests=60/min:kind=sliding", SlidingLog),
        ("requests=60/min:kind=counter", SlidingCounter),
        ("requests=60/min:kind=fixed", FixedWindow),
        ("requests=60/day:kind=calendar", FixedWindow),
        ("requests=60/min:kind=anchored", AnchoredWindow),
        ("concurrency=60", Concurrency),
    ],
)
def test_makes_the_rule_that_is_named(text: str, rule: type) -> None:
    made = make_rule(parse_limit(text))
    assert type(made) is rule
    assert made.capacity == 60


def test_a_bucket_of_no_stated_burst_holds_the_amount() -> None:
    assert make_rule(parse_limit("requests=60/min")).capacity == 60
    assert make_rule(parse_limit("requests=60/min:burst=5")).capacity == 5


def test_options_reach_the_rule() -> None:
    ticking = make_rule(parse_limit("requests=10/s:tick=500ms:phase=100ms"))
    ticking.charge(0, 10)
    assert [ticking.remaining(t) for t in (99_999, 100_000, 600_000)] == [0, 5, 10]
    shifted = make_rule(parse_limit("requests=10/s:kind=fixed:phase=250ms"))
    shifted.charge(0, 10)
    assert shifted.retry_after_us(0, 1) == 250_000
    zoned = make_rule(parse_limit("requests=1/day:kind=calendar:zone=Asia/Tokyo"))
    zoned.charge(0, 1)
    assert zoned.retry_after_us(0, 1) == 15 * 3_600 * SECOND  # 1970 began at 9 in the morning there


def test_a_spec_error_pickles() -> None:
    import pickle

    error = SpecError("a=1", 2, "reason")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_spec_is_frozen() -> None:
    spec = parse_limit("requests=1/s")
    with pytest.raises(AttributeError):
        spec.amount = 2  # type: ignore[misc]
    assert isinstance(spec, LimitSpec)
