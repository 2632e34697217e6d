"""OpenAI's limits, and what calls cost there."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import httpx
import openai
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion, CompletionUsage, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionMessage
from openai.types.create_embedding_response import Usage as EmbeddingUsage
from openai.types.responses import Response, ResponseUsage
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails

from headgate import ConfigurationError, Limit, Limiter, Signal
from headgate.core.model import DAY, MINUTE
from headgate.core.plan import Plan
from headgate.providers.estimate import LEARNED, UNKNOWN_OUTPUT
from headgate.providers.openai import MEDIA_TOKENS, chat_cost, limits, usage
from headgate.providers.preset import Preset, no_units
from headgate.testing.simulator import StartServer

TEXT = "Say what this is about: " + "rivers and canals, " * 50


def messages(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def tokens(*args: Any, **kwargs: Any) -> int:
    return chat_cost(*args, **kwargs)["tokens"]


def chat_completion(given: int, made: int) -> ChatCompletion:
    used = CompletionUsage(prompt_tokens=given, completion_tokens=made, total_tokens=given + made)
    return ChatCompletion(id="x", choices=[], created=0, model="m", object="chat.completion", usage=used)


# Presets


def test_a_preset_is_its_limits() -> None:
    preset = Preset(["requests=5/s:burst=5", Limit(meter="tokens", amount=9, period_us=MINUTE)], name="x")
    assert [limit.name for limit in preset] == ["requests/s", "tokens/min"]
    assert repr(preset) == "<Preset x: requests/s 5, tokens/min 9>"
    assert Limiter(*preset).limits == tuple(preset)
    assert preset.cost("anything", n=1) == preset.usage(None) == preset.learn((), {}, None) == {}


def test_a_preset_does_not_change() -> None:
    preset = limits(rpm=1)
    with pytest.raises(AttributeError, match="does not change"):
        preset.cost = no_units
    with pytest.raises(AttributeError, match="does not change"):
        del preset.usage
    with pytest.raises(TypeError):
        preset[0] = preset[0]  # type: ignore[index]
    assert copy.copy(preset).name == "openai"


def test_a_preset_has_limits() -> None:
    with pytest.raises(ConfigurationError, match="at least one limit"):
        Preset([])


# Limits


def test_the_limits_refill_continuously() -> None:
    preset = limits(rpm=500, tpm=200_000, rpd=10_000, tpd=2_000_000, max_concurrent=8)
    assert tuple(preset) == (
        Limit(meter="requests", amount=500, period_us=MINUTE, kind="bucket", burst=8),
        Limit(meter="tokens", amount=200_000, period_us=MINUTE, kind="bucket", burst=200_000),
        Limit(meter="requests", amount=10_000, period_us=DAY, kind="bucket", burst=10_000, start="full"),
        Limit(meter="tokens", amount=2_000_000, period_us=DAY, kind="bucket", burst=2_000_000, start="full"),
        Limit(meter="concurrency", amount=8, kind="concurrency"),
    )
    assert [limit.charge for limit in limits(tpm=5, tpd=9, rpm=1, charge="usage")] == [
        "estimate", "usage", "usage",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rpm", "burst"), [(1, 1), (2, 2), (3, 2), (60, 2), (179, 2), (180, 3), (500, 8), (30_000, 500)]
)
def test_requests_burst_by_a_second_but_not_by_less_than_two(rpm: int, burst: int) -> None:
    assert limits(rpm=rpm)[0].burst == burst


@pytest.mark.parametrize("rpm", [2, 3, 60, 100, 500, 3_500, 30_000, 1_000_000])
def test_the_burst_reaches_the_whole_rate(rpm: int) -> None:
    (limit,) = limits(rpm=rpm)
    (rule,) = Plan([limit]).rules
    assert limit.burst is not None
    # "100 % while burst >= rate × D + largest cost"; a limit is used 200 ppm below its rate
    assert limit.burst * 1.0002 >= rpm / MINUTE * rule.transit_us + 1


def test_a_day_kept_in_memory_warns() -> None:
    with pytest.warns(UserWarning, match="requests/day is longer than an hour"):
        Limiter(*limits(rpm=3, rpd=200))


def test_the_largest_accounts_can_be_kept() -> None:
    Plan(limits(rpm=30_000, tpm=180_000_000, rpd=10**8, tpd=15 * 10**9))


@pytest.mark.parametrize("wrong", [0, -1, 1.5, 60.0, "60", True, 10**13])
@pytest.mark.parametrize("name", ["rpm", "tpm", "rpd", "tpd", "max_concurrent"])
def test_amounts_are_whole_numbers_above_0(name: str, wrong: Any) -> None:
    with pytest.raises(ConfigurationError):
        limits(**{"rpm": 1, name: wrong})


@pytest.mark.parametrize(
    "wrong", [{}, {"rpd": 5}, {"tpd": 5, "max_concurrent": 2}, {"tpm": 5, "default_max_tokens": 0},
              {"tpm": 5, "charge": "both"}],
)  # fmt: skip
def test_a_limit_for_minutes_is_needed(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="expected"):
        limits(**wrong)


# Costs of arguments


def test_a_chat_costs_its_bytes_and_the_output_it_asks_for() -> None:
    few = tokens(model="m", messages=messages(TEXT), max_tokens=10)
    assert len(TEXT) + 10 < few < len(TEXT) + 100
    assert tokens(model="m", messages=messages(TEXT), max_tokens=300) == few + 290
    assert tokens(model="m", messages=messages(TEXT), max_completion_tokens=300) == few + 290
    assert tokens(model="m", messages=messages(TEXT)) == few - 10 + UNKNOWN_OUTPUT
    assert tokens(model="m", messages=messages(TEXT), max_tokens=10, n=3) == few + 20
    assert tokens(model="m", messages=messages(TEXT), max_tokens=10, tools=[{"name": "f" * 50}]) > few + 50
    assert tokens(model="m", messages=messages(TEXT), max_tokens=10, user="u" * 50, seed=7) == few


def test_text_counts_in_bytes() -> None:
    one = tokens(model="m", messages=messages(""), max_tokens=1)
    assert tokens(model="m", messages=messages("漢字" * 10), max_tokens=1) == one + 60
    assert tokens(model="m", messages=messages("\ud800"), max_tokens=1) == one + 3


def test_a_response_costs_its_input_and_instructions() -> None:
    plain = tokens(model="m", input=TEXT, max_output_tokens=10)
    assert len(TEXT) + 10 < plain < len(TEXT) + 100
    assert tokens(model="m", input=TEXT, instructions="x" * 40, max_output_tokens=10) == plain + 43
    parts = [{"role": "user", "content": [{"type": "input_text", "text": TEXT}]}]
    assert plain < tokens(model="m", input=parts, max_output_tokens=10) < plain + 100


def test_a_completion_costs_each_prompts_outputs() -> None:
    one = tokens(model="m", prompt="x", max_tokens=100)
    assert tokens(model="m", prompt=["x", "y"], max_tokens=100) == one + 4 + 100
    assert tokens(model="m", prompt="x", max_tokens=100, best_of=4, n=2) == one + 300
    assert tokens(model="m", prompt=[1, 2, 3], max_tokens=100) == 16 + 3 + 100


@pytest.mark.parametrize(
    ("arguments", "cost"),
    [
        ({"model": "text-embedding-3-small", "input": "x" * 40}, 43),
        ({"model": "any", "input": "x" * 40, "encoding_format": "float"}, 43),
        ({"model": "any", "input": ["x" * 40, "y" * 40]}, 86),
        ({"model": "any", "input": [1, 2, 3]}, 3),
        ({"model": "any", "input": [[1, 2, 3], [4]]}, 4),
    ],
)
def test_an_embedding_has_no_output(arguments: dict[str, Any], cost: int) -> None:
    assert tokens(**arguments) == cost


def test_a_picture_counts_as_one_however_many_its_bytes() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10**6}}
    parts = [{"type": "text", "text": TEXT}, picture, picture]
    cost = tokens(model="m", messages=[{"role": "user", "content": parts}], max_tokens=10)
    assert 2 * MEDIA_TOKENS + len(TEXT) < cost < 2 * MEDIA_TOKENS + len(TEXT) + 150


def test_messages_may_be_the_sdks_own_objects() -> None:
    message = ChatCompletionMessage(role="assistant", content=TEXT)
    plain = tokens(model="m", messages=[{"role": "assistant", "content": TEXT}], max_tokens=1)
    assert tokens(model="m", messages=[message], max_tokens=1) == plain


def test_what_was_not_given_costs_nothing() -> None:
    plain = tokens(model="m", messages=messages(TEXT))
    assert tokens(model="m", messages=messages(TEXT), max_tokens=openai.omit, tools=openai.NOT_GIVEN) == plain


def test_a_request_may_come_as_one_body() -> None:
    body = {"model": "m", "messages": messages(TEXT), "max_tokens": 7}
    assert tokens(body) == tokens(**body)
    assert tokens(body, max_tokens=9) == tokens(**body) + 2


def test_other_functions_are_counted_by_all_their_texts() -> None:
    assert tokens(TEXT, max_tokens=10) == len(TEXT) + 3 + 16 + 10
    assert tokens(article=TEXT, lang="en", max_tokens=10) == len(TEXT) + 3 + 5 + 16 + 10
    assert tokens() == 16 + UNKNOWN_OUTPUT


def test_a_cost_above_the_limit_stands_only_if_it_is_known() -> None:
    preset = limits(tpm=1_000, tpd=800)
    assert preset.cost(model="m", messages=messages("x" * 5_000), max_tokens=10) == {"tokens": 800}
    assert preset.cost(model="m", messages=messages("x"), max_tokens=900) == {"tokens": 900}
    assert preset.cost(model="m", messages=messages("x")) == {"tokens": 800}


def test_an_output_without_a_bound_is_what_the_user_says() -> None:
    preset = limits(tpm=10**6, default_max_tokens=50)
    assert preset.cost(model="m", messages=messages(TEXT)) == chat_cost(
        model="m", messages=messages(TEXT), max_tokens=50
    )
    assert preset.cost(model="m", messages=messages(TEXT), n=2) == chat_cost(
        model="m", messages=messages(TEXT), max_tokens=50, n=2
    )


def test_without_a_limit_on_tokens_nothing_is_said_of_them() -> None:
    preset = limits(rpm=5)
    assert preset.cost(model="m", messages=messages(TEXT)) == {}
    assert preset.usage(chat_completion(3, 4)) == {}
    assert preset.learn((), {}, chat_completion(3, 4)) == {}


class Endless(list[Any]):
    """A list that holds itself."""


def test_arguments_that_hold_themselves_are_counted_to_a_depth() -> None:
    endless = Endless()
    endless.append(endless)
    assert tokens(model="m", messages=endless, max_tokens=1) == 17


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner),
    max_leaves=10,
)
argument_names = st.sampled_from("model messages input prompt tools n best_of max_tokens type".split())


@given(st.lists(json_values, max_size=2), st.dictionaries(argument_names, json_values), json_values)
def test_no_arguments_and_no_result_are_too_odd(args: list[Any], kwargs: dict[str, Any], result: Any) -> None:
    preset = limits(tpm=1_000)
    found = preset.cost(*args, **kwargs)["tokens"]
    assert type(found) is int
    assert found >= 0
    assert preset.usage(result) == {}
    assert preset.learn(tuple(args), kwargs, chat_completion(3, 4)).keys() <= {"tokens"}


# Usage of results


def response_object() -> Response:
    used = ResponseUsage(
        input_tokens=3, output_tokens=4, total_tokens=7,
        input_tokens_details=InputTokensDetails.model_construct(cached_tokens=0),
        output_tokens_details=OutputTokensDetails(reasoning_tokens=0),
    )  # fmt: skip
    return Response.model_construct(id="r", status="completed", usage=used)


@pytest.mark.parametrize(
    ("result", "used"),
    [
        (chat_completion(3, 4), 7),
        (response_object(), 7),
        (Completion.model_construct(usage=chat_completion(1, 1).usage), 2),
        (CreateEmbeddingResponse(data=[], model="m", object="list",
                                 usage=EmbeddingUsage(prompt_tokens=5, total_tokens=5)), 5),
        ({"usage": {"prompt_tokens": 3, "completion_tokens": 4}}, 7),
        ({"usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 9}}, 9),
        (SimpleNamespace(usage=SimpleNamespace(input_tokens=3, output_tokens=4)), 7),
        (SimpleNamespace(usage={"input_tokens": 3, "output_tokens": 4}), 7),
        (httpx.Response(200, json={"usage": {"prompt_tokens": 3, "total_tokens": 3}}), 3),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_usage_is_read_from_whatever_the_sdks_return(result: object, used: int) -> None:
    assert usage(result) == {"tokens": used}


@pytest.mark.parametrize(
    "result",
    [
        None, "the text alone", 7, {}, [], {"usage": None}, {"usage": "much"},
        {"usage": {"prompt_tokens": -1}}, MagicMock(), pd.DataFrame({"usage": [1]}), object(),
        httpx.Response(200, json=["usage"]),
        ChatCompletion(id="x", choices=[], created=0, model="m", object="chat.completion"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_result_that_does_not_tell_has_no_usage(result: object) -> None:
    assert usage(result) == {}
    assert limits(tpm=5).learn((), {}, result) == {}


# Learning


def test_costs_learn_from_answers() -> None:
    preset = limits(tpm=10**6)
    call = {"model": "m", "messages": messages(TEXT)}
    size = tokens(**call, max_tokens=0)
    before = preset.cost(**call)["tokens"]
    assert before == size + UNKNOWN_OUTPUT
    for _ in range(LEARNED):
        preset.learn((), call, chat_completion(size // 3, 20))
    after = preset.cost(**call)["tokens"]
    assert size // 3 + 20 <= after <= (size // 3 + 20) * 1.04 + 2
    assert preset.cost(**call | {"model": "other"})["tokens"] == before


def test_a_cost_is_never_below_the_guess_by_characters() -> None:
    preset = limits(tpm=10**6)
    call = {"model": "m", "messages": messages(TEXT), "max_tokens": 5}
    size = tokens(**call) - 5
    for _ in range(LEARNED):
        assert preset.learn((), call, chat_completion(size // 8, 5)) == {"tokens": -(-size // 4)}
    assert preset.cost(**call) == {"tokens": -(-size // 4)}


@pytest.mark.parametrize(
    "call",
    [
        {"model": "m", "input": [[1, 2, 3]]},
        {"model": "m", "input": "x", "previous_response_id": "r"},
        {"model": "m", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        {"article": TEXT},
    ],
)
def test_calls_whose_tokens_are_not_in_their_bytes_teach_nothing_of_bytes(call: dict[str, Any]) -> None:
    preset = limits(tpm=10**6)
    for _ in range(LEARNED):
        preset.learn((), call, chat_completion(50_000, 0))
    text = {"model": "m", "messages": messages(TEXT), "max_tokens": 5}
    assert preset.cost(**text) == chat_cost(**text)


def test_what_was_charged_is_told_where_it_can_be_known() -> None:
    call = {"model": "m", "messages": messages("Hello"), "max_tokens": 90, "n": 2}
    result = chat_completion(20, 7)
    assert limits(tpm=10**6).learn((), call, result) == {"tokens": 200}
    assert limits(tpm=10**6).learn((call,), {}, result) == {"tokens": 200}
    assert limits(tpm=10**6, charge="usage").learn((), call, result) == {}
    del call["max_tokens"]
    assert limits(tpm=10**6).learn((), call, result) == {}
    assert limits(tpm=10**6, default_max_tokens=50).learn((), call, result) == {"tokens": 120}


def test_threads_may_cost_and_learn_at_once() -> None:
    preset = limits(tpm=10**6)
    call = {"model": "m", "messages": messages(TEXT), "max_tokens": 5}

    def work(seed: int) -> bool:
        for number in range(300):
            preset.learn((), call, chat_completion((seed * 37 + number * 91) % 400, 5))
            if preset.cost(**call)["tokens"] <= 0:
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


# In use


def test_the_sdk_is_never_refused(sim: StartServer) -> None:
    server = sim("requests=1200/min:burst=20", "tokens=60k/min:burst=60k", latency="10ms")
    preset = limits(rpm=1_200, tpm=60_000)
    limiter = Limiter(*preset)

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as client:

        def ask(number: int) -> None:
            call: dict[str, Any] = {"model": "m", "messages": messages(f"{number} rivers"), "max_tokens": 20}
            with limiter.permit(**preset.cost(**call)) as permit:
                result = client.chat.completions.create(**call)
                charged = preset.learn((), call, result)
                permit.signal(Signal(usage=preset.usage(result), charged=charged))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(30)))
    counts = server.stats()
    assert (counts["accepted"], counts["refused"]) == (30, 0)
