"""What answers mean: providers/openai.py."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.core.retry import ErrorClass
from headgate.providers.openai import MONEY_CODES, read_answer, read_usage

WALL_US = 1_750_000_000_000_000
METERS = ("requests", "tokens")


def read(status: int, body: Any = None, **fields: str) -> Any:
    return read_answer(status, {k.replace("_", "-"): v for k, v in fields.items()}, body, WALL_US, METERS)


def error(message: str = "m", code: str | None = None, kind: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "code": code, "type": kind, "param": None}}


TPM = (
    "Rate limit reached for m in organization org-x on tokens per min (TPM): Limit 30,000, Used 29,000, "
    "Requested {}. Please try again in 6.2s. Visit https://example.com"
)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, {}, ErrorClass.OK),
        (204, None, ErrorClass.OK),
        (301, None, ErrorClass.CALLER),
        (400, error(), ErrorClass.CALLER),
        (401, error(code="invalid_api_key"), ErrorClass.KEY),
        (402, error(), ErrorClass.MONEY_GONE),
        (403, "not JSON", ErrorClass.CALLER),
        (404, None, ErrorClass.CALLER),
        (408, None, ErrorClass.TRANSPORT),
        (409, None, ErrorClass.OVERLOADED),
        (413, None, ErrorClass.NEVER_FITS),
        (422, {"detail": [{"msg": "x"}]}, ErrorClass.CALLER),
        (429, None, ErrorClass.THROTTLED),
        (429, error(TPM.format("1,200"), "rate_limit_exceeded", "tokens"), ErrorClass.THROTTLED),
        (429, error(TPM.format("30,001"), "rate_limit_exceeded", "tokens"), ErrorClass.NEVER_FITS),
        (429, error(code="slow_down"), ErrorClass.RAMP),
        (503, error(code="slow_down"), ErrorClass.OVERLOADED),
        (400, error(code="context_length_exceeded"), ErrorClass.NEVER_FITS),
        (500, error(), ErrorClass.OVERLOADED),
        (502, "<html>", ErrorClass.OVERLOADED),
        (504, [], ErrorClass.OVERLOADED),
        (529, {"type": "error", "error": {"type": "overloaded_error"}}, ErrorClass.OVERLOADED),
        *((429, error(code=code), ErrorClass.MONEY_GONE) for code in sorted(MONEY_CODES)),
        (429, error(kind="insufficient_quota"), ErrorClass.MONEY_GONE),
        (403, error(code="billing_not_active"), ErrorClass.MONEY_GONE),
    ],
)
def test_the_class_of_an_answer(status: int, body: Any, expected: ErrorClass) -> None:
    assert read(status, body).error is expected


@pytest.mark.parametrize(
    ("fields", "message", "seconds"),
    [
        ({"retry_after": "2"}, "", 2),
        ({"retry_after": "1.5"}, "", 1.5),
        ({"retry_after": "2", "retry_after_ms": "300"}, "", 0.3),
        ({}, "Please try again in 6m0s.", 360),
        ({}, "Please try again in 20ms. More", 0.02),
        ({"retry_after": "1"}, "Please try again in 20s", 1),
        ({}, "Please try again in a while", None),
        ({"retry_after": "soon"}, "", None),
    ],
)
def test_how_long_to_stay_away(fields: dict[str, str], message: str, seconds: float | None) -> None:
    found = read(429, error(message), **fields).retry_after_us
    assert found == (None if seconds is None else round(seconds * 1e6))


def test_the_meter_that_was_hit() -> None:
    assert read(429, error(kind="tokens")).meter == "tokens"
    assert read(429, error(), x_ratelimit_type="requests").meter == "requests"
    assert read(429).meter is None


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}, (3, 4)),
        ({"input_tokens": 3, "output_tokens": 4}, (3, 4)),
        ({"prompt_tokens": 3, "total_tokens": 3}, (3, 0)),
        ({"prompt_tokens": None, "input_tokens": 5}, (5, 0)),
        ({"prompt_tokens": -1}, None),
        ({"prompt_tokens": True}, None),
        ({"prompt_tokens": 1.0}, None),
        ({"prompt_tokens": 10**30}, None),
        ({"prompt_tokens": 1, "completion_tokens": -1}, (1, 0)),
        ([], None),
        (None, None),
    ],
)
def test_usage_is_whole_numbers_or_none(usage: Any, expected: tuple[int, int] | None) -> None:
    assert read_usage({"usage": usage}) == expected
    assert read_usage(usage) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
field_names = st.sampled_from(
    ["retry-after", "retry-after-ms", "date", "location", "x-ratelimit-type"]
    + [f"x-ratelimit-{what}-{meter}" for what in ("limit", "remaining", "reset") for meter in METERS]
)
messages = st.builds(
    "{} Limit {}, Requested {}. try again in {}".format, st.text(), st.text(), st.integers(), st.text()
)


@given(
    st.integers(100, 999),
    st.dictionaries(
        field_names, st.text() | st.from_regex(r"[0-9.:hmsT +-]{0,400}") | st.integers(0).map(str)
    ),
    json_values
    | st.fixed_dictionaries({"error": json_values | st.fixed_dictionaries({"message": messages})})
    | st.fixed_dictionaries({"usage": st.dictionaries(st.sampled_from(["prompt_tokens"]), json_values)}),
)
def test_no_answer_is_too_odd_to_be_read(status: int, fields: dict[str, str], body: Any) -> None:
    answer = read_answer(status, fields, body, WALL_US, METERS)
    assert answer.retry_after_us is None or 0 <= answer.retry_after_us < 1 << 53
    if answer.usage is not None:
        assert 0 <= answer.usage.input_tokens < 1 << 53
