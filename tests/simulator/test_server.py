"""The server over real sockets. Waits here are tens of milliseconds at most."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from io import BytesIO
from typing import Any
from urllib.request import urlopen

import pytest
from aiohttp import ClientConnectionError, ClientResponse, ClientSession

from headgate.simulator import SimulatedServer, SpecError
from headgate.simulator.latency import constant
from headgate.simulator.tokens import count_tokens

TEXT = "The gate lets water through. Rain fell. The gate keeper sleeps. Water is high at the gate."
SUMMARY = "The gate lets water through. Water is high at the gate."


def ask(text: str = TEXT, **fields: Any) -> dict[str, Any]:
    return {"model": "small", "messages": [{"role": "user", "content": text}]} | fields


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until something has happened."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        await asyncio.sleep(0.001)


@pytest.fixture
async def session() -> AsyncIterator[ClientSession]:
    async with ClientSession() as session:
        yield session


async def post(session: ClientSession, sim: SimulatedServer, path: str, **request: Any) -> ClientResponse:
    response = await session.post(sim.url + path, **request)
    await response.read()
    return response


CHAT = "/v1/chat/completions"


async def test_a_chat_is_answered_with_a_summary_and_its_usage(session: ClientSession) -> None:
    async with SimulatedServer() as sim:
        response = await post(session, sim, CHAT, json=ask())
    assert (response.status, response.content_type) == (200, "application/json")
    answer = await response.json()
    assert (answer["object"], answer["model"]) == ("chat.completion", "small")
    assert abs(answer["created"] - time.time()) < 60
    (choice,) = answer["choices"]
    text = choice["message"]["content"]
    assert text == SUMMARY
    assert choice["finish_reason"] == "stop"
    prompt, completion = count_tokens(TEXT), count_tokens(text)
    assert answer["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_an_answer_is_no_longer_than_allowed(session: ClientSession, name: str) -> None:
    async with SimulatedServer() as sim:
        answer = await (await post(session, sim, CHAT, json=ask() | {name: 3})).json()
    assert answer["usage"]["completion_tokens"] == 3
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b"[" * 100_000, None),
        (b"{}", "messages"),
        (b'{"messages": []}', "messages"),
        (b'{"messages": [1]}', "messages[0]"),
        (b'{"messages": [{"role": "user", "content": 5}]}', "messages[0]"),
        (b'{"messages": [{"role": "user"}], "max_tokens": 0}', "max_completion_tokens"),
        (b'{"messages": [{"role": "user"}], "n": 2}', "n"),
    ],
)
async def test_a_callers_mistake_is_told_and_not_charged(
    session: ClientSession, body: bytes, param: str | None
) -> None:
    async with SimulatedServer(["requests=1/h"]) as sim:
        response = await post(session, sim, CHAT, data=body)
        assert sim.stats()["bad_requests"] == 1
        assert sim.stats()["accepted"] == 0
    assert response.status == 400
    error = (await response.json())["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


async def test_content_may_come_in_parts(session: ClientSession) -> None:
    parts = [{"type": "text", "text": "One gate."}, {"type": "image_url", "image_url": {"url": "x"}}]
    async with SimulatedServer(["images=5/h"]) as sim:
        body = {"messages": [{"role": "user", "content": parts}]}
        answer = await (await post(session, sim, CHAT, json=body)).json()
        assert sim.stats()["limits"][0]["accepted_units"] == 1
    assert answer["choices"][0]["message"]["content"] == "One gate."


async def test_a_stream_adds_up_to_the_answer(session: ClientSession) -> None:
    async with SimulatedServer(["tokens=10k/h:charge=usage"], latency=0.01) as sim:
        whole = await (await post(session, sim, CHAT, json=ask())).json()
        sim.reset()
        response = await post(
            session, sim, CHAT, json=ask(stream=True, stream_options={"include_usage": True})
        )
        assert sim.stats()["limits"][0]["accepted_units"] == whole["usage"]["total_tokens"]
    assert response.content_type == "text/event-stream"
    assert response.headers["x-ratelimit-limit-tokens"] == "10000"
    *events, done, rest = (await response.text()).split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    *chunks, usage = [json.loads(event.removeprefix("data: ")) for event in events]
    texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(texts) == whole["choices"][0]["message"]["content"]
    assert len(texts) > 3
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert {chunk["usage"] for chunk in chunks} == {None}
    assert (usage["choices"], usage["usage"]) == ([], whole["usage"])


async def test_a_stream_tells_no_usage_unless_asked(session: ClientSession) -> None:
    async with SimulatedServer() as sim:
        response = await post(session, sim, CHAT, json=ask(stream=True))
    assert "usage" not in await response.text()


async def test_a_message_is_answered_in_anthropics_shape(session: ClientSession) -> None:
    async with SimulatedServer(["input_tokens=10k/h", "output_tokens=10k/h"]) as sim:
        body = ask(max_tokens=50, system="Be brief.")
        response = await post(session, sim, "/v1/messages", json=body)
    answer = await response.json()
    prompt = count_tokens("Be brief.") + count_tokens(TEXT)
    assert answer["content"] == [{"type": "text", "text": SUMMARY}]
    assert (answer["type"], answer["role"], answer["stop_reason"]) == ("message", "assistant", "end_turn")
    assert answer["usage"] == {"input_tokens": prompt, "output_tokens": count_tokens(SUMMARY)}
    assert response.headers["anthropic-ratelimit-input-tokens-remaining"] == str(10_000 - prompt)
    assert response.headers["anthropic-ratelimit-output-tokens-remaining"] == "9950"
    assert response.headers["anthropic-ratelimit-output-tokens-reset"].endswith("Z")


async def test_a_message_stream_adds_up_to_the_answer(session: ClientSession) -> None:
    async with SimulatedServer() as sim:
        response = await post(session, sim, "/v1/messages", json=ask(max_tokens=50, stream=True))
    *events, rest = (await response.text()).split("\n\n")
    assert rest == ""
    names = [event.split("\n")[0].removeprefix("event: ") for event in events]
    told = [json.loads(event.split("\n")[1].removeprefix("data: ")) for event in events]
    assert [event["type"] for event in told] == names
    assert (names[:2], names[-3:]) == (
        ["message_start", "content_block_start"],
        ["content_block_stop", "message_delta", "message_stop"],
    )
    text = "".join(event["delta"]["text"] for event in told if event["type"] == "content_block_delta")
    assert told[-2]["usage"] == {"output_tokens": count_tokens(text)}
    assert told[-2]["delta"]["stop_reason"] == "end_turn"


async def test_anthropic_errors_have_their_own_shape(session: ClientSession) -> None:
    async with SimulatedServer(["requests=1/h"]) as sim:
        mistake = await post(session, sim, "/v1/messages", json=ask())
        await post(session, sim, "/v1/messages", json=ask(max_tokens=5))
        refused = await post(session, sim, "/v1/messages", json=ask(max_tokens=5))
    assert mistake.status == 400
    error = (await mistake.json())["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith("max_tokens: ")
    assert refused.status == 429
    body = await refused.json()
    assert (body["type"], body["error"]["type"]) == ("error", "rate_limit_error")
    assert 3_590 < int(refused.headers["retry-after"]) <= 3_600


async def test_a_refusal_says_which_limit_and_until_when(session: ClientSession) -> None:
    async with SimulatedServer(["requests=60/h:burst=2", "tokens=1M/min"]) as sim:
        first = await post(session, sim, CHAT, json=ask("Hi.", max_tokens=10))
        await post(session, sim, CHAT, json=ask("Hi.", max_tokens=10))
        refused = await post(session, sim, CHAT, json=ask("Hi.", max_tokens=10))
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert first.headers["x-ratelimit-reset-requests"] == "1m0s"
    assert first.headers["x-ratelimit-remaining-tokens"] == str(1_000_000 - 2 - 10)
    assert first.headers["x-ratelimit-reset-tokens"] == "1ms"
    assert "retry-after" not in first.headers
    assert refused.status == 429
    assert 50 < int(refused.headers["retry-after"]) <= 60
    assert 50_000 < int(refused.headers["retry-after-ms"]) <= 60_000
    error = (await refused.json())["error"]
    assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
    assert "Limit 2, Used 2, Requested 1. Please try again in " in error["message"]


async def test_a_call_above_the_capacity_is_refused_for_good(session: ClientSession) -> None:
    async with SimulatedServer(["tokens=100/min"]) as sim:
        refused = await post(session, sim, CHAT, json=ask("Hi.", max_tokens=99))
    assert refused.status == 429
    assert "retry-after" not in refused.headers
    assert "Limit 100, Used 0, Requested 101." in (await refused.json())["error"]["message"]


async def test_echo_tells_what_it_was_sent_but_no_secret(session: ClientSession) -> None:
    async with SimulatedServer() as sim:
        response = await session.put(
            sim.url + "/echo?a=1",
            json={"b": 2},
            headers={"Authorization": "Bearer hush", "X-Api-Key": "hush", "X-Trace": "t"},
        )
        text = await response.text()
    echo = json.loads(text)
    assert (echo["method"], echo["path"], echo["query"]) == ("PUT", "/echo", {"a": "1"})
    assert (echo["json"], echo["body_bytes"], echo["headers"]["x-trace"]) == ({"b": 2}, 8, "t")
    assert "hush" not in text


async def test_a_plain_call_may_state_its_costs(session: ClientSession) -> None:
    async with SimulatedServer(["credits=10/h"]) as sim:
        headers = {"x-cost-credits": "7"}
        assert (await post(session, sim, "/echo", headers=headers)).status == 200
        assert (await post(session, sim, "/echo", headers=headers)).status == 429
        assert (await post(session, sim, "/echo", headers={"x-cost-credits": "-7"})).status == 400


async def test_the_same_image_gets_the_same_tags(session: ClientSession) -> None:
    async with SimulatedServer() as sim:
        first, again, other = [
            await (await post(session, sim, "/image", data=image)).json() for image in (b"a", b"a", b"b")
        ]
        by_url = await session.get(sim.url + "/image", params={"url": "https://example.org/a.jpg"})
        assert len((await by_url.json())["tags"]) == 4
        assert (await session.get(sim.url + "/image")).status == 400
    assert first == again != other
    assert all(0.5 <= tag["confidence"] < 1 for tag in first["tags"])


async def test_unknown_paths_and_methods_are_refused(session: ClientSession) -> None:
    async with SimulatedServer() as sim:
        assert (await session.get(sim.url + "/v2")).status == 404
        assert (await session.get(sim.url + CHAT)).status == 405


async def test_a_key_may_be_required(session: ClientSession) -> None:
    async with SimulatedServer(require_key="k1") as sim:
        statuses = [
            (await post(session, sim, "/echo", headers=headers)).status
            for headers in (
                {},
                {"Authorization": "Bearer no"},
                {"Authorization": "Bearer k1"},
                {"x-api-key": "k1"},
            )
        ]
    assert statuses == [401, 401, 200, 200]


async def test_a_body_of_any_usual_size_is_read_whole(session: ClientSession) -> None:
    async with SimulatedServer() as sim:
        answer = await (await post(session, sim, "/echo", data=BytesIO(b"x" * 3_000_000))).json()
    assert answer["body_bytes"] == 3_000_000


async def test_a_caller_may_expect_to_be_told_to_continue(session: ClientSession) -> None:
    async with SimulatedServer() as sim, asyncio.timeout(5):
        answer = await (await post(session, sim, "/echo", data=b"x", expect100=True)).json()
    assert answer["body_bytes"] == 1


async def test_a_server_stops_at_once_whatever_it_is_doing(session: ClientSession) -> None:
    sim = SimulatedServer(faults="hang=100%")
    await sim.start()
    call = asyncio.create_task(post(session, sim, CHAT, json=ask()))
    await until(lambda: sim.stats()["in_flight"] == 1)
    async with asyncio.timeout(5):
        await sim.stop()
        with pytest.raises(ClientConnectionError):
            await call
    assert sim.stats()["in_flight"] == 0


async def test_a_caller_that_leaves_in_the_middle_of_a_stream_frees_its_slot(session: ClientSession) -> None:
    async with SimulatedServer(["concurrency=1"], latency=constant(2.0)) as sim:
        # The first event comes after half of the latency, so the caller leaves while the stream is due.
        call = asyncio.create_task(post(session, sim, CHAT, json=ask(stream=True)))
        await until(lambda: sim.stats()["in_flight"] == 1)
        call.cancel()
        await until(lambda: sim.stats()["in_flight"] == 0)


async def test_a_slot_is_free_when_the_caller_has_read_the_answer(session: ClientSession) -> None:
    async with SimulatedServer(["concurrency=1"], latency=constant(0.001)) as sim:
        for stream in (False, True) * 10:
            assert (await post(session, sim, CHAT, json=ask(stream=stream))).status == 200


async def test_a_slot_is_held_until_the_caller_hangs_up(session: ClientSession) -> None:
    async with SimulatedServer(["concurrency=1"], faults="hang=100%") as sim:
        call = asyncio.create_task(post(session, sim, CHAT, json=ask()))
        await until(lambda: sim.stats()["in_flight"] == 1)
        assert (await post(session, sim, CHAT, json=ask())).status == 429
        call.cancel()
        await until(lambda: sim.stats()["in_flight"] == 0)
        assert sim.stats()["peak_in_flight"] == 1


async def test_a_call_is_judged_after_the_jitter_and_before_the_latency(session: ClientSession) -> None:
    # Seed 1 draws 5.4 ms of jitter.
    async with SimulatedServer(latency=constant(0.02), jitter="40ms", seed=1) as sim:
        sent_at = time.time()
        await post(session, sim, "/echo")
        answered_at = time.time()
        judged_at = sim.stats()["first_arrival_at"]
    assert judged_at - sent_at >= 0.005
    assert answered_at - judged_at >= 0.019


@pytest.mark.parametrize("status", [500, 503, 529])
async def test_an_injected_error_is_admitted_and_charged_first(session: ClientSession, status: int) -> None:
    async with SimulatedServer(["requests=1/h"], faults=f"{status}=100%") as sim:
        response = await post(session, sim, CHAT, json=ask())
        assert response.status == status
        assert "message" in (await response.json())["error"]
        assert (await post(session, sim, CHAT, json=ask())).status == 429
        assert sim.stats()["faults"] == {str(status): 1}


async def test_an_injected_429_is_not_the_limiters(session: ClientSession) -> None:
    async with SimulatedServer(["requests=9/h"], faults="429=100%") as sim:
        response = await post(session, sim, CHAT, json=ask())
        assert (response.status, response.headers["retry-after"]) == (429, "1")
        assert (await response.json())["error"]["code"] == "slow_down"
        assert (sim.stats()["accepted"], sim.stats()["refused"]) == (1, 0)


async def test_a_malformed_body_is_a_200_that_cannot_be_parsed(session: ClientSession) -> None:
    async with SimulatedServer(faults="malformed=100%", seed=1) as sim:
        bodies = set()
        for _ in range(10):
            response = await post(session, sim, CHAT, json=ask())
            assert response.status == 200
            bodies.add(await response.text())
    assert len(bodies) == 2
    for body in bodies:
        with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
            json.loads(body)


async def test_a_reset_is_a_real_one(session: ClientSession) -> None:
    async with SimulatedServer(["requests=9/h"], faults="reset=100%") as sim:
        with pytest.raises(ClientConnectionError):
            await post(session, sim, CHAT, json=ask())
        await until(lambda: sim.stats()["in_flight"] == 0)
        assert sim.stats()["accepted"] == 1
        with socket.create_connection(("127.0.0.1", sim.port)) as raw:
            raw.sendall(b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: sim.stats()["faults"] == {"reset": 2})
            with pytest.raises(ConnectionResetError):
                await asyncio.to_thread(raw.recv, 1)


async def test_stats_tell_what_the_server_saw(session: ClientSession) -> None:
    async with SimulatedServer(["requests=2/h", "concurrency=5:name=slots"]) as sim:
        for key in ("a", "b", "a"):
            await post(session, sim, "/echo", headers={"Idempotency-Key": key})
        response = await session.get(sim.url + "/stats")
        stats = await response.json()
        assert stats | {"longest_stall_seconds": 0} == sim.stats() | {"longest_stall_seconds": 0}
    assert (stats["accepted"], stats["refused"], stats["refused_by"]) == (2, 1, {"requests=2/h": 1})
    requests, slots = stats["limits"]
    assert (requests["name"], requests["accepted_units"], requests["utilisation"]) == ("requests=2/h", 2, 1.0)
    assert (slots["name"], slots["utilisation"]) == ("slots", None)
    assert (stats["in_flight"], stats["peak_in_flight"], stats["faults"]) == (0, 1, {})
    assert stats["first_arrival_at"] <= stats["last_arrival_at"]
    assert stats["idempotency"] == {"keys": 2, "repeated": 1, "accepted_repeatedly": 0}


async def test_stats_can_be_reset_with_the_limits_or_without(session: ClientSession) -> None:
    async with SimulatedServer(["requests=1/h"]) as sim:
        await post(session, sim, "/echo")
        assert (await (await post(session, sim, "/stats/reset")).json())["accepted"] == 0
        assert (await post(session, sim, "/echo")).status == 429
        await post(session, sim, "/stats/reset?limits=fresh")
        assert (await post(session, sim, "/echo")).status == 200


async def test_a_stall_of_the_server_is_measured() -> None:
    async with SimulatedServer() as sim:
        time.sleep(0.03)  # noqa: ASYNC251 - the stall
        await until(lambda: sim.stats()["longest_stall_seconds"] > 0.015)


async def test_an_idempotency_key_accepted_twice_is_told(session: ClientSession) -> None:
    async with SimulatedServer() as sim:
        for _ in range(2):
            await post(session, sim, "/echo", headers={"Idempotency-Key": "a"})
        assert sim.stats()["idempotency"]["accepted_repeatedly"] == 1


def test_a_server_runs_in_a_thread_for_callers_without_a_loop() -> None:
    with SimulatedServer.in_thread(["requests=5/h"]) as sim:
        with urlopen(sim.url + "/echo") as response:
            assert response.status == 200
        assert sim.stats()["accepted"] == 1
        sim.reset(fresh_limits=True)
        assert sim.stats()["accepted"] == 0
    with pytest.raises(OSError, match="refused"):
        urlopen(sim.url + "/echo")


def test_a_taken_port_is_told_at_the_start() -> None:
    with SimulatedServer.in_thread() as sim, pytest.raises(OSError, match="in use"):
        SimulatedServer.in_thread(port=sim.port).start()


@pytest.mark.parametrize(
    "options",
    [{"latency": "soon"}, {"latency": -1}, {"jitter": float("nan")}, {"faults": "500"}, {"limits": ["x"]}],
)
def test_what_cannot_be_read_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        SimulatedServer(**options)


def test_a_limit_that_cannot_be_read_is_a_spec_error() -> None:
    with pytest.raises(SpecError):
        SimulatedServer(["requests=5"])
