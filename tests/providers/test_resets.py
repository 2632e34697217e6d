"""How long a refusal closes an API, by its reset fields: the rule, providers, parsers of the user's own."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any, NoReturn, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate import ConfigurationError, Throttle
from headgate.core.retry import SPENDS_NO_ATTEMPT
from headgate.providers.answers import Answer, read_answer
from headgate.providers.outcome import Judge
from headgate.providers.resets import LONGEST_PAUSE_US, PROVIDERS, Provider, Resets, resets_of

WALL = 1_790_000_000  # Mon, 21 Sep 2026 14:13:20 GMT
WALL_US = WALL * 1_000_000
METERS = frozenset({"requests", "tokens", "input_tokens", "images"})
OWN = resets_of(None, "x-my-reset-tokens", "x-my-reset-requests")


def read(
    resets: Resets | None,
    fields: dict[str, str],
    *,
    status: int = 429,
    kind: str = "",
    code: str = "",
    message: str = "",
) -> Answer:
    body = {"error": {"message": message, "type": kind, "code": code}}
    return read_answer(status, fields, body, WALL_US, METERS, resets)


def closed(resets: Resets | None, fields: dict[str, str], **facts: Any) -> tuple[float | None, str | None]:
    """(seconds of pause, meter)."""
    answer = read(resets, fields, **facts)
    pause = answer.retry_after_us
    return None if pause is None else pause / 1e6, answer.meter


def left(requests: str | None = None, tokens: str | None = None, /, **resets: str) -> dict[str, str]:
    """Fields of OpenAI's dialect."""
    fields = {f"x-ratelimit-reset-{meter}": reset for meter, reset in resets.items()}
    if requests is not None:
        fields["x-ratelimit-remaining-requests"] = requests
    if tokens is not None:
        fields["x-ratelimit-remaining-tokens"] = tokens
    return fields


def after(seconds: str, **fields: str) -> dict[str, str]:
    return {"retry-after": seconds, **fields}


TRY_AGAIN = "Please try again in 20s."

# (fields, facts, seconds, meter)
OPENAI: list[tuple[dict[str, str], dict[str, Any], float | None, str | None]] = [
    # a meter that is named, with something left: its bucket is full long after this call fits
    (after("2") | left("59", "300", requests="1s", tokens="45s"), {"kind": "tokens"}, 2, "tokens"),
    (left("59", "300", requests="1s", tokens="45s"), {"kind": "tokens"}, 45, "tokens"),
    (after("2", **{"retry-after-ms": "1500"}) | left("9", "9", tokens="45s"), {}, 1.5, None),
    (left("9", "300", tokens="45s"), {"kind": "tokens", "message": TRY_AGAIN}, 20, "tokens"),
    # a meter of which nothing is left
    (after("1") | left("59", "0", requests="1s", tokens="6s"), {}, 6, "tokens"),
    (after("9") | left("59", "0", requests="1s", tokens="6s"), {}, 9, "tokens"),
    (after("1") | left("0", "300", requests="7s", tokens="45s"), {}, 7, "requests"),
    (left("0", "300", requests="7s", tokens="45s"), {}, 7, "requests"),
    (left("9", "0", tokens="45s"), {"message": TRY_AGAIN}, 45, "tokens"),
    (after("1") | left("0", "0", requests="7s", tokens="45s"), {}, 45, None),
    (after("1") | left("0", "300", requests="7s", tokens="45s"), {"kind": "tokens"}, 7, None),
    (
        after("1") | left("9", "300", tokens="2s")
        | {"x-ratelimit-remaining-project-tokens": "0", "x-ratelimit-reset-project-tokens": "31s"},
        {}, 31, "tokens",
    ),
    # a day's bucket has room again long before it is full
    (after("432") | left("0", "300", requests="24h0m0s"), {}, 432, "requests"),
    (left("0", "300", requests="24h0m0s"), {}, 86_400, "requests"),
    # nothing tells which meter
    (left(requests="1s", tokens="30s"), {}, 30, None),
    (left(requests="40s", tokens="30s"), {}, 40, None),
    (after("2") | left(requests="1s", tokens="30s"), {}, 2, None),
    (left("59", "300", requests="40s", tokens="30s"), {}, 30, None),
    (after("2"), {}, 2, None),
    ({}, {}, None, None),
    # another meter than theirs
    (after("3") | left("59", "300", tokens="45s"), {"kind": "images"}, 3, "images"),
    (left("59", "300", tokens="45s"), {"kind": "images"}, None, "images"),
    (after("3") | left("59", "0", tokens="6s"), {"kind": "rate_limit_error"}, 6, "tokens"),
    # what cannot be read
    (after("soon") | left("59", "0", tokens="soon"), {}, None, "tokens"),
    (after("1") | left("59", "none", tokens="6s"), {}, 1, None),
    (after("1") | left("59", "-20", tokens="6s"), {}, 6, "tokens"),
    (after("-1") | left("59", "0", tokens=""), {}, None, "tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "facts", "seconds", "meter"), OPENAI)
def test_openai(fields: dict[str, str], facts: dict[str, Any], seconds: float, meter: str) -> None:
    assert closed(resets_of("openai"), fields, **facts) == (seconds, meter)


AZURE_PERIODS = {"x-ratelimit-renewalperiod-requests": "10", "x-ratelimit-renewalperiod-tokens": "60"}


@pytest.mark.parametrize(
    ("fields", "seconds", "meter"),
    [
        # recorded: both of these while the window of tokens was shut for most of a minute
        (after("1", **{"retry-after-ms": "0"}) | left("9", "0", tokens="1") | AZURE_PERIODS, 60, "tokens"),
        (after("1") | left("9", "0") | AZURE_PERIODS, 60, "tokens"),
        (after("3") | left("0", "300", requests="7", tokens="41") | AZURE_PERIODS, 10, "requests"),
        (after("1") | left("0", "300", requests="7", tokens="41"), 7, "requests"),
        (after("1") | left("9", "300", tokens="23") | {"x-ratelimit-type": "tokens"}, 23, "tokens"),
        (after("30") | left("9", "300", tokens="23") | {"x-ratelimit-type": "tokens"}, 30, "tokens"),
        (after("1") | left("9", "300") | AZURE_PERIODS | {"x-ratelimit-type": "tokens"}, 60, "tokens"),
        (after("1", **{"retry-after-ms": "0"}), None, None),
    ],
)
def test_azure(fields: dict[str, str], seconds: float, meter: str) -> None:
    assert closed(resets_of("azure"), fields) == (seconds, meter)


def anthropic(**meters: tuple[str, int]) -> dict[str, str]:
    """Of {meter: (remaining, seconds after WALL at which all is there again)}."""
    fields = {}
    for meter, (remaining, seconds) in meters.items():
        start = f"anthropic-ratelimit-{meter.replace('_', '-')}"
        fields[f"{start}-remaining"] = remaining
        fields[f"{start}-reset"] = f"{datetime.fromtimestamp(WALL + seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
    return fields


@pytest.mark.parametrize(
    ("fields", "seconds", "meter"),
    [
        (after("3") | anthropic(requests=("0", 40), input_tokens=("9000", 50)), 40, "requests"),
        (
            after("3") | anthropic(requests=("9", 1), tokens=("0", 31), input_tokens=("0", 31)),
            31, "input_tokens",
        ),
        (after("3") | anthropic(requests=("9", 1), tokens=("0", 31), output_tokens=("0", 31)), 31, None),
        (after("3") | anthropic(requests=("9", 1), tokens=("0", 31)), 31, "tokens"),
        (after("3") | anthropic(requests=("9", 40), input_tokens=("1000", 50)), 3, None),
        (anthropic(requests=("9", 40), input_tokens=("1000", 50)), 50, None),
        (after("3") | anthropic(requests=("0", -5)), 3, "requests"),
        (
            # their clock is an hour ahead of ours
            after("3", date="Mon, 21 Sep 2026 15:13:20 GMT") | anthropic(requests=("0", 3_640)),
            40, "requests",
        ),
    ],
)  # fmt: skip
def test_anthropic(fields: dict[str, str], seconds: float, meter: str) -> None:
    facts = {"kind": "rate_limit_error", "message": "This request would exceed your rate limit"}
    assert closed(resets_of("anthropic"), fields, **facts) == (seconds, meter)


def window(remaining: str, reset: str, start: str = "x-ratelimit") -> dict[str, str]:
    return {f"{start}-remaining": remaining, f"{start}-reset": reset}


@pytest.mark.parametrize(
    ("provider", "fields", "facts", "seconds", "meter"),
    [
        ("groq", after("7.66") | left("14370", "0", requests="2m59.56s", tokens="9.1s"), {}, 9.1, "tokens"),
        ("groq", after("7.66") | left("14370", "5", tokens="9s"), {"kind": "tokens"}, 7.66, "tokens"),
        ("groq", after("86.4") | left("0", "6000", requests="24h0m0s"), {}, 86.4, "requests"),
        ("mistral", window("0", "13", "ratelimitbysize"), {}, 13, "tokens"),
        ("mistral", after("1") | window("0", "13", "ratelimitbysize"), {}, 13, "tokens"),
        ("github", window("0", str(WALL + 1800)), {"status": 403}, 1800, "requests"),
        ("github", window("0", str(WALL + 1800)), {"status": 429}, 1800, "requests"),
        ("github", after("61") | window("4000", str(WALL + 1800)), {"status": 403}, 61, None),
        ("github", window("4000", str(WALL + 1800)), {"status": 403, "message": "rate limit"}, 60, None),
        ("github", window("4000", str(WALL + 1800)), {"status": 429}, None, None),
        ("github", window("0", str(WALL + 40 * 86_400)), {"status": 429}, None, "requests"),
        ("x", window("0", str(WALL + 890), "x-rate-limit"), {}, 890, "requests"),
        (
            "x",
            window("0", str(WALL + 890), "x-rate-limit")
            | window("70", str(WALL + 9_000), "x-app-limit-24hour"),
            {}, 890, "requests",
        ),
        (
            "x",
            window("3", str(WALL + 890), "x-rate-limit")
            | window("0", str(WALL + 9_000), "x-user-limit-24hour"),
            {}, 9_000, "requests",
        ),
        ("discord", after("1", **{"x-ratelimit-remaining": "0", "x-ratelimit-reset-after": "1.35"}), {}, 1.35,
         "requests"),
        ("discord", after("30", **{"x-ratelimit-remaining": "4", "x-ratelimit-reset-after": "99"}), {}, 30,
         None),
        ("reddit", window("0.0", "347"), {}, 347, "requests"),
        ("reddit", after("2") | window("96.0", "347"), {}, 2, None),
    ],
)  # fmt: skip
def test_others(
    provider: Provider, fields: dict[str, str], facts: dict[str, Any], seconds: float, meter: str
) -> None:
    assert closed(resets_of(provider), fields, **facts) == (seconds, meter)


def mine(requests: str | None = None, tokens: str | None = None, /, **left: str) -> dict[str, str]:
    fields = {f"x-my-remaining-{meter}": units for meter, units in left.items()}
    if requests is not None:
        fields["x-my-reset-requests"] = requests
    if tokens is not None:
        fields["x-my-reset-tokens"] = tokens
    return fields


@pytest.mark.parametrize(
    ("fields", "facts", "seconds", "meter"),
    [
        (mine("3s", "6s"), {}, 6, None),
        (after("4") | mine("3s", "6s"), {}, 6, None),
        (after("9") | mine("3s", "6s"), {}, 9, None),
        (mine("3s", "6s"), {"kind": "requests"}, 3, "requests"),
        (after("1") | mine("3s", "6s"), {"kind": "requests"}, 3, "requests"),
        (mine("3s", "6s", requests="0"), {}, 3, "requests"),
        (mine("3s", "6s", requests="0", tokens="8"), {}, 3, "requests"),
        (mine("9s", "6s", requests="4"), {}, 6, None),
        (mine(None, "2026-09-21T14:13:30Z"), {}, 10, None),
        (mine(None, "Mon, 21 Sep 2026 14:13:30 GMT"), {}, 10, None),
        (mine(None, str(WALL + 10)), {}, 10, None),
        (mine(None, f"{WALL + 10}500"), {}, 10.5, None),
        (mine(None, "1h2m3.5s"), {}, 3_723.5, None),
        (mine(None, "7.66"), {}, 7.66, None),
        (mine(None, str(WALL - 10)), {}, None, None),
        (mine(None, "0"), {}, None, None),
        (mine(None, "744h"), {}, 31 * 86_400, None),
        (mine(None, "744h0m1s"), {}, None, None),
        (after("3") | mine(None, "9999-12-31T00:00:00Z"), {}, 3, None),
        (after("40000000") | mine(None, "5s"), {}, 5, None),
        (mine(None, " " * 300 + "5s"), {}, None, None),
    ],
)
def test_fields_of_the_users_own(
    fields: dict[str, str], facts: dict[str, Any], seconds: float, meter: str
) -> None:
    assert closed(OWN, fields, **facts) == (seconds, meter)


def test_fields_of_the_users_own_go_before_the_providers_for_that_meter() -> None:
    resets = resets_of("openai", token_header="X-My-Reset-Tokens")
    fields = left("9", "0", requests="7s", tokens="45s") | mine(None, "20s")
    assert closed(resets, fields) == (20, "tokens")
    assert closed(resets, after("1") | fields) == (20, "tokens")
    assert closed(resets, left("9", "0", requests="7s", tokens="45s")) == (None, "tokens")
    assert closed(resets, left("0", "9", requests="7s", tokens="45s") | mine(None, "20s")) == (7, "requests")
    assert closed(resets_of("github", token_header="x-my-reset-tokens"), mine(None, "8s", tokens="0")) == (
        8,
        "tokens",
    ), "it has none for tokens"


def test_without_them_retry_after_decides_alone() -> None:
    fields = after("1") | left("0", "0", requests="7s", tokens="45s")
    assert closed(None, fields) == (1, None)
    assert closed(None, fields, kind="tokens") == (1, "tokens")


@pytest.mark.parametrize(("status", "code"), [(200, ""), (400, ""), (500, ""), (503, ""), (529, "")])
def test_only_a_throttle_is_closed(status: int, code: str) -> None:
    fields = after("1") | left("0", "0", requests="7s", tokens="45s")
    assert read(resets_of("openai"), fields, status=status).retry_after_us in (None, 1_000_000)


# Parsers


class Nowhere(tzinfo):
    def utcoffset(self, at: datetime | None) -> NoReturn:
        raise RuntimeError("no such zone")

    dst = tzname = utcoffset


AT_10 = datetime(2026, 9, 21, 14, 13, 30)  # noqa: DTZ001


@pytest.mark.parametrize(
    ("found", "seconds"),
    [
        (5, 5),
        (5.25, 5.25),
        (timedelta(minutes=2), 120),
        (AT_10, 10),
        (AT_10.replace(tzinfo=UTC), 10),
        (AT_10.replace(tzinfo=timezone(timedelta(hours=-1))), 3_610),
        (None, None),
        (0, None),
        (-5, None),
        (timedelta(-1), None),
        (datetime(2020, 1, 1, tzinfo=UTC), None),
        (timedelta(31), 31 * 86_400),
        (timedelta(31, 1), None),
        (timedelta.max, None),
        (datetime.max, None),  # noqa: DTZ901
        (1e300, None),
    ],
)
def test_a_parser_returns_a_delay_or_an_instant(
    found: Any, seconds: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []

    def parse(text: str) -> Any:
        asked.append(text)
        return found

    resets = resets_of(None, "x-my-reset-tokens", None, parse)
    assert closed(resets, mine("99s", "tomorrow")) == (seconds, None)
    assert asked == ["tomorrow"]
    assert not caplog.records


def test_an_instant_is_told_by_the_clock_that_set_it() -> None:
    resets = resets_of(None, "x-my-reset-tokens", None, lambda text: AT_10)
    fields = mine(None, "soon") | {"date": "Mon, 21 Sep 2026 14:13:25 GMT"}
    assert closed(resets, fields) == (5, None)


@pytest.mark.parametrize(
    "found",
    [
        True, "5", b"5", [5], float("nan"), float("inf"), 10**400, 5j, AT_10.date(), object(),
        AT_10.replace(tzinfo=Nowhere()), LookupError("x"),
    ],
    ids=lambda found: type(found).__name__,
)  # fmt: skip
def test_a_parser_that_fails_costs_no_answer(found: Any, caplog: pytest.LogCaptureFixture) -> None:
    def parse(text: str) -> Any:
        if isinstance(found, Exception):
            raise found
        return found

    resets = resets_of(None, "x-my-reset-tokens", "x-my-reset-requests", parse)
    for _ in range(3):
        assert closed(resets, after("2") | mine("5s", "6s")) == (2, None)
    assert [(record.name, record.levelno) for record in caplog.records] == [("headgate", logging.WARNING)]
    assert "parser= failed on x-my-reset-" in caplog.records[0].getMessage()


def test_a_parser_reads_what_the_user_named_or_else_the_providers() -> None:
    def seven(text: str) -> float:
        return 7

    own = resets_of("openai", "x-my-reset-tokens", None, seven)
    assert closed(own, left("0", requests="3s") | mine(None, "?")) == (3, "requests")
    assert closed(own, mine(None, "?")) == (7, None)
    assert closed(resets_of("openai", parser=seven), left("0", requests="3s")) == (7, "requests")
    assert closed(resets_of("openai"), left("0", requests="3s")) == (3, "requests"), "and changes no other"


# Options


def test_providers_are_those_that_types_know() -> None:
    assert sorted(PROVIDERS) == list(get_args(Provider))
    for fields in PROVIDERS.values():
        for field in fields:
            for name in (field.reset, field.remaining, field.period):
                assert name == name.lower()


def test_nothing_asked_is_nothing() -> None:
    assert resets_of() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"headers": "opneai"},
            "headers= is one of anthropic, azure, discord, github, groq, mistral, openai, reddit, x; "
            "got 'opneai'",
        ),
        ({"headers": {"authorization": "Bearer sk-1"}}, "headers= is one of .*; got a dict"),
        ({"headers": ""}, "headers= is one of .*; got ''"),
        ({"token_header": "x reset"}, "token_header= is the name of a header field, .*; got 'x reset'"),
        ({"token_header": ""}, "token_header= is the name of a header field, .*; got ''"),
        ({"requests_header": b"x-reset"}, "requests_header= is the name .*; got a bytes"),
        ({"headers": "openai", "parser": "iso"}, "parser= is a callable .*; got 'iso'"),
        ({"parser": float}, "parser= reads what headers=, token_header= or requests_header= name"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{message}"):
        resets_of(**options)


# What the limiter is told


def throttle(resets: Resets | None, fields: dict[str, str], message: str) -> Throttle | None:
    class Refused(Exception):
        status_code = 429
        headers = fields
        body = {"error": {"message": message, "type": "requests"}}  # noqa: RUF012

    judge = Judge(METERS, None, (), None, None, resets)
    return judge.of_error(Refused(), WALL_US).signal.throttle


RPD = "Rate limit reached on requests per day (RPD): Limit 1000, Used 1000, Requested 1."


@pytest.mark.parametrize(
    ("resets", "fields", "told"),
    [
        # nobody says how long: the next edge of the long window
        (None, after("86") | left("0", requests="24h0m0s"), Throttle("requests", 86_000_000, True)),
        (OWN, after("86"), Throttle("requests", 86_000_000, True)),
        # a window whose end is told has no other edge; a bucket has none
        (OWN, mine("5h"), Throttle("requests", 18_000_000_000, False)),
        (OWN, after("18000") | mine("5h"), Throttle("requests", 18_000_000_000, False)),
        (resets_of("groq"), after("86") | left("0", requests="24h0m0s"), Throttle("requests", 86_000_000)),
    ],
)
def test_a_long_window_that_is_used_up(resets: Resets, fields: dict[str, str], told: Throttle) -> None:
    assert throttle(resets, fields, RPD) == told


values = st.text(max_size=40) | st.from_regex(r"[0-9.:hmsTZ +-]{0,40}") | st.integers().map(str)
names = sorted(
    {name for fields in PROVIDERS.values() for f in fields for name in (f.reset, f.remaining, f.period)}
)


@given(
    st.sampled_from(sorted(PROVIDERS)),
    st.dictionaries(st.sampled_from([*names, "retry-after", "retry-after-ms", "date"]), values),
    st.sampled_from([403, 429]),
    st.text(max_size=20),
)
def test_no_field_is_too_odd(provider: str, fields: dict[str, str], status: int, kind: str) -> None:
    answer = read(resets_of(provider), fields, status=status, kind=kind)
    if answer.error in SPENDS_NO_ATTEMPT:
        assert answer.retry_after_us is None or 0 <= answer.retry_after_us <= LONGEST_PAUSE_US
        assert answer.meter is None or answer.meter in METERS
