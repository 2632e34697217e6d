from headgate.simulator.headers import Reading, anthropic_headers, openai_headers

READINGS = (Reading("requests", 60, 59, 1_000_000), Reading("input_tokens", 1_000, 0, 360_000_000))


def test_openai_tells_the_time_to_the_full_state_as_a_go_duration() -> None:
    assert openai_headers(READINGS) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-input-tokens": "1000",
        "x-ratelimit-remaining-input-tokens": "0",
        "x-ratelimit-reset-input-tokens": "6m0s",
    }


def test_openai_tells_when_to_come_back_rounded_up() -> None:
    assert openai_headers((), 1_200_001) == {"retry-after": "2", "retry-after-ms": "1201"}


def test_anthropic_tells_the_instant_of_the_full_state() -> None:
    headers = anthropic_headers(READINGS, 1_790_000_000_500_000, 1_200_001)
    assert headers == {
        "anthropic-ratelimit-requests-limit": "60",
        "anthropic-ratelimit-requests-remaining": "59",
        "anthropic-ratelimit-requests-reset": "2026-09-21T14:13:22Z",
        "anthropic-ratelimit-input-tokens-limit": "1000",
        "anthropic-ratelimit-input-tokens-remaining": "0",
        "anthropic-ratelimit-input-tokens-reset": "2026-09-21T14:19:21Z",
        "retry-after": "2",
    }


def test_of_two_limits_on_a_meter_the_tighter_one_is_told() -> None:
    minute, day = Reading("requests", 10, 5, 1), Reading("requests", 1_000, 400, 1)
    for readings in [(minute, day), (day, minute)]:
        assert openai_headers(readings)["x-ratelimit-limit-requests"] == "1000"


def test_slots_are_not_told() -> None:
    assert openai_headers([Reading("concurrency", 4, 2, None)]) == {}
