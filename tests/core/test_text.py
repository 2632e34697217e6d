"""The short form, read as the module's docstring writes it; errors point at the character."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.core.model import DAY, HOUR, MINUTE, SECOND, Limit
from headgate.core.text import parse_limit, parse_limits, start_mode
from headgate.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("requests=500/min", {"amount": 500, "period_us": MINUTE, "kind": "unknown"}),
        ("requests=500/min:burst=20", {"kind": "bucket", "burst": 20}),
        ("requests=500/min:kind=bucket:burst=20", {"kind": "bucket", "burst": 20}),
        ("requests=500/min:kind=unknown", {"kind": "unknown"}),
        ("requests=500/min:kind=sliding", {"kind": "sliding"}),
        ("requests=500/min:kind=fixed", {"kind": "fixed"}),
        ("requests=500/min:kind=anchored", {"kind": "anchored"}),
        ("requests=5/h:kind=calendar", {"calendar": "hour", "period_us": HOUR, "zone": "UTC"}),
        ("requests=5/day:kind=calendar:zone=Asia/Kolkata", {"calendar": "day", "zone": "Asia/Kolkata"}),
        ("requests=5/d:kind=calendar", {"calendar": "day", "period_us": 25 * HOUR}),
        ("requests=5/month:kind=calendar", {"calendar": "month", "period_us": 31 * DAY + HOUR}),
        ("requests=5/month", {"calendar": None, "period_us": 30 * DAY}),
        ("tokens=40k/s", {"meter": "tokens", "amount": 40_000, "period_us": SECOND}),
        ("tokens=40K/s", {"amount": 40_000}),
        ("tokens=2M/s", {"amount": 2_000_000}),
        ("tokens=1g/s", {"amount": 10**9}),
        ("tokens=1_000/s", {"amount": 1_000}),
        ("tokens=1.5k/s", {"amount": 1_500}),
        ("tokens=5/3s", {"period_us": 3 * SECOND}),
        ("tokens=5/10min", {"period_us": 10 * MINUTE}),
        ("tokens=5/100ms", {"period_us": 100_000}),
        ("tokens=5/1.5h", {"period_us": 90 * MINUTE}),
        ("tokens=5/s:charge=usage", {"charge": "usage", "when": "arrival", "refund": None}),
        ("tokens=5/s:charge=estimate:when=completion", {"charge": "estimate", "when": "completion"}),
        ("tokens=5/s:refund=yes", {"refund": True}),
        ("tokens=5/s:refund=no", {"refund": False}),
        ("tokens=5/s:start=auto", {"start": "auto"}),
        ("tokens=5/s:start=empty", {"start": "empty"}),
        ("tokens=5/s:start=full", {"start": "full"}),
        ("tokens=5/s:start=used-3", {"start": 3}),
        ("tokens=5/s:start=used:3", {"start": 3}),
        ("tokens=5/s:start=used:3:name=mine", {"start": 3, "name": "mine"}),
        ("tokens=5/s:transit=50ms:error=1ms:kind=fixed", {"max_transit_us": 50_000, "clock_error_us": 1_000}),
        ("concurrency=7", {"meter": "concurrency", "amount": 7, "kind": "concurrency", "period_us": 0}),
        ("concurrency=2k:name=slots", {"amount": 2_000, "name": "slots"}),
    ],
)
def test_it_reads(text: str, facts: dict[str, Any]) -> None:
    limit = parse_limit(text)
    assert {name: getattr(limit, name) for name in facts} == facts


@pytest.mark.parametrize(
    ("text", "pointer", "message"),
    [
        ("requests", "        ^", "METER=AMOUNT/PERIOD"),
        ("requests=", "         ^", "amount"),
        ("requests=x/s", "         ^", "amount"),
        ("requests=5.5/s", "         ^", "whole"),
        ("requests=5", "          ^", "period"),
        ("requests=5/", "           ^", "period"),
        ("requests=5/year", "           ^", "period"),
        ("requests=5/s:brust=3", "             ^", "expected an option"),
        ("requests=5/s:burst", "                  ^", "burst=VALUE"),
        ("requests=5/s:burst=", "                  ^", "burst=VALUE"),
        ("requests=5/s:burst=x", "                   ^", "amount"),
        ("requests=5/s:burst=3:burst=4", "                     ^", "twice"),
        ("requests=5/s:kind=fixd", "                  ^", "one of"),
        ("requests=5/s:kind=bucket", "                        ^", "burst=N"),
        ("requests=5/3h:kind=calendar", "           ^", "kind=calendar takes"),
        ("requests=5/s:start=used-x", "                        ^", "amount"),
        ("requests=5/s:start=used:x", "                        ^", "amount"),
        ("requests=5/s:start=half", "                   ^", "one of"),
        ("requests=5/s:refund=maybe", "                    ^", "one of"),
        ("requests=5/s:transit=soon", "                     ^", "duration"),
        ("requests=5/s:start=used-3:oops", "                          ^", "expected an option"),
        ("requests=5/s:start=used:3:oops", "                          ^", "expected an option"),
        ("requests=0/s", "^", "1 to 10"),
        ("concurrency=5/s", "             ^", "no period"),
    ],
)
def test_errors_point_at_the_character(text: str, pointer: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_limit(text)
    said, shown, pointed = str(caught.value).rsplit("\n", 2)
    assert message in said
    assert shown == f"  {text}"
    assert pointed == f"  {pointer}"


@given(st.text(alphabet="requestokn=/:.0123456789kMsminhday-_u", max_size=40))
def test_nothing_but_a_configuration_error_comes_of_rubbish(text: str) -> None:
    try:
        limit = parse_limit(text)
    except ConfigurationError:
        return
    assert limit.amount >= 1


def written(limit: Limit) -> str:
    """A limit in the short form."""
    period = f"{limit.period_us // 1000}ms"
    parts = [f"{limit.meter}={limit.amount}/{period}", f"charge={limit.charge}", f"when={limit.when}"]
    parts += [
        f"name={limit.name}",
        f"start={limit.start if isinstance(limit.start, str) else f'used-{limit.start}'}",
    ]
    parts.append(f"burst={limit.burst}" if limit.burst else f"kind={limit.kind}")
    if limit.refund is not None:
        parts.append(f"refund={'yes' if limit.refund else 'no'}")
    if limit.max_transit_us:
        parts.append(f"transit={limit.max_transit_us}us")
    return ":".join(parts)


@given(
    limit=st.builds(
        Limit,
        meter=st.sampled_from(("requests", "tokens", "a-b_c")),
        amount=st.integers(1, 10**12),
        period_us=st.integers(1, 10**7).map(lambda ms: ms * 1000),
        kind=st.sampled_from(("sliding", "fixed", "anchored", "unknown")),
        charge=st.sampled_from(("estimate", "usage")),
        when=st.sampled_from(("arrival", "completion")),
        refund=st.sampled_from((None, True, False)),
        start=st.one_of(st.sampled_from(("auto", "empty", "full")), st.integers(0, 10**9)),
        max_transit_us=st.one_of(st.none(), st.integers(1, HOUR)),
        name=st.sampled_from(("", "mine", "per second")),
    )
)
def test_what_is_written_reads_back(limit: Limit) -> None:
    assert parse_limit(written(limit)) == limit


def test_objects_and_text_mix() -> None:
    limit = parse_limit("requests=5/s")
    assert parse_limits([limit, "concurrency=2"]) == (limit, parse_limit("concurrency=2"))


def test_start_modes() -> None:
    assert [start_mode(text) for text in ("auto", "empty", "full", "used:3", "used-2k")] == [
        "auto",
        "empty",
        "full",
        3,
        2000,
    ]
