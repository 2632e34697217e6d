"""The strict server judges rightly: by hand, against its own verifier, and over the wire."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strict.rules import (
    SECOND,
    WALL,
    Arrival,
    Config,
    Judge,
    Limit,
    Stamp,
    Usage,
    odd_charge,
    read_usage,
)
from tests.strict.scenarios import ENDPOINT, Server, strict_server
from tests.strict.verify import ideal_seconds, utilisation, verify
from tests.strict.wire import go_duration, read_request

MIDNIGHT = 1_800_000_000 * SECOND  # on the grid of every window used here
ONE = Usage(prompt=1, max_tokens=1, completion=1)


def at(seconds: float) -> Stamp:
    ns = round(seconds * SECOND)
    return ns, MIDNIGHT + ns


def admitted(judge: Judge, times: Sequence[float]) -> list[bool]:
    return [not judge.arrive(at(seconds), ONE).refused_by for seconds in times]


# ---- Rules, by hand


@pytest.mark.parametrize(
    ("limit", "times", "expected"),
    [
        (Limit("requests", "bucket", 10, burst=2), [0, 0, 0, 0.0999, 0.1, 0.1], [1, 1, 0, 0, 1, 0]),
        (
            Limit("requests", "bucket", 10, burst=2, found=1),
            [5, 5, 5.0999, 5.1, 5.4, 5.4],
            [1, 0, 0, 1, 1, 1],
        ),
        (Limit("requests", "sliding", 2), [0, 0.5, 0.9, 0.9999, 1, 1.4999, 1.5], [1, 1, 0, 0, 1, 0, 1]),
        (Limit("requests", "fixed", 2), [0.9, 0.9, 0.9, 0.9999, 1, 1, 1], [1, 1, 0, 0, 1, 1, 0]),
        (Limit("requests", "counter", 4), [0, 0, 0, 0, 1.2499, 1.25, 1.4999, 1.5], [1, 1, 1, 1, 0, 1, 0, 1]),
        (Limit("requests", "anchored", 2), [0.7, 1.6, 1.6, 1.6999, 1.7, 1.7, 1.7], [1, 1, 0, 0, 1, 1, 0]),
        (Limit("requests", "concurrency", 2), [0, 0, 0, 99], [1, 1, 0, 0]),
    ],
    ids=lambda value: value.kind if isinstance(value, Limit) else "",
)
def test_admits_what_the_rule_allows(limit: Limit, times: list[float], expected: list[int]) -> None:
    judge = Judge(Config((limit,)))
    assert admitted(judge, times) == [bool(value) for value in expected]
    assert verify(judge.config, judge.log) == []


def test_a_call_is_charged_on_all_limits_or_on_none() -> None:
    tight, wide = Limit("requests", "bucket", 1, burst=1), Limit("tokens", "bucket", 1, burst=100)
    judge = Judge(Config((tight, wide)))
    assert [judge.arrive(at(0), Usage(10, 20, 5)).refused_by for _ in range(3)] == [(), (0,), (0,)]
    assert judge.rules[1].room(0) == 70 * judge.rules[1].scale


def test_a_refused_call_uses_up_the_limit_where_it_counts() -> None:
    bucket, window = Limit("requests", "bucket", 10, burst=2), Limit("requests", "sliding", 1000)
    judge = Judge(Config((bucket, window), count_refused=True))
    assert admitted(judge, [0] * 9) == [True] * 2 + [False] * 7
    assert judge.rules[0].room(0) == -2 * judge.rules[0].scale, "the debt is bounded by the burst"
    assert judge.rules[1].room(0) == 1000 - 9
    assert admitted(judge, [0.2999, 0.7, 0.7]) == [False, True, True]
    assert verify(judge.config, judge.log) == []


@pytest.mark.parametrize("kind", ["bucket", "sliding", "fixed", "counter", "anchored"])
def test_gives_back_what_was_not_used(kind: str) -> None:
    judge = Judge(Config((Limit("tokens", kind, 100),), refund=True))
    usage = Usage(prompt=20, max_tokens=80, completion=10)
    assert [judge.arrive(at(0), usage).refused_by for _ in range(2)] == [(), (0,)]
    judge.complete(at(0), 0, usage)
    left = Usage(prompt=20, max_tokens=50, completion=50)
    assert [judge.arrive(at(0), left).refused_by for _ in range(2)] == [(), (0,)]
    assert verify(judge.config, judge.log) == []


def test_a_refund_never_lifts_a_bucket_above_its_burst() -> None:
    judge = Judge(Config((Limit("tokens", "bucket", 10, burst=10),), refund=True))
    usage = Usage(prompt=0, max_tokens=10, completion=1)
    judge.arrive(at(0), usage)
    judge.complete(at(0.9), 0, usage)
    assert judge.rules[0].room(at(0.9)[0]) == 10 * judge.rules[0].scale


def test_a_slot_is_free_again_when_its_call_ends() -> None:
    judge = Judge(Config((Limit("requests", "concurrency", 1),)))
    assert admitted(judge, [0, 1]) == [True, False]
    judge.complete(at(2), 0, ONE)
    assert admitted(judge, [2, 2]) == [True, False]


# ---- Laws


class Step(NamedTuple):
    gap_ns: int
    usage: Usage
    completes: bool


def limit_of(kind: str, amount: int, part: int | None, **facts: Any) -> Limit:
    """A limit; of a bucket so many quarters are left at first."""
    found = amount * part // 4 if kind == "bucket" and part is not None else None
    return Limit(kind=kind, amount=amount, found=found, **facts)


usages = st.builds(Usage, prompt=st.integers(0, 12), max_tokens=st.integers(1, 20), completion=st.just(1))
steps = st.builds(
    Step,
    gap_ns=st.sampled_from([0, 1, SECOND // 10, SECOND // 2, SECOND]) | st.integers(0, SECOND // 2),
    usage=usages,
    completes=st.booleans(),
)
limits = st.builds(
    limit_of,
    part=st.none() | st.integers(0, 4),
    meter=st.sampled_from(["requests", "tokens", "input_tokens"]),
    kind=st.sampled_from(["bucket", "sliding", "fixed", "counter", "anchored", "concurrency"]),
    amount=st.integers(1, 40),
    window_seconds=st.sampled_from([0.1, 0.3, 1.0, 2.0]),
)
configs = st.builds(
    Config,
    limits=st.lists(limits, min_size=1, max_size=3).map(tuple),
    count_refused=st.booleans(),
    refund=st.booleans(),
)


def played(config: Config, history: list[Step]) -> Judge:
    judge, now = Judge(config), 0
    pending: dict[int, Usage] = {}
    for step in history:
        now += step.gap_ns
        if step.completes and pending:
            number = next(iter(pending))
            judge.complete((now, MIDNIGHT + now), number, pending.pop(number))
        else:
            arrival = judge.arrive((now, MIDNIGHT + now), step.usage)
            if not arrival.refused_by:
                pending[arrival.number] = step.usage
    return judge


@given(config=configs, history=st.lists(steps, max_size=60))
@settings(max_examples=100, deadline=None)
def test_judge_and_verifier_agree(config: Config, history: list[Step]) -> None:
    assert verify(config, played(config, history).log) == []


@given(config=configs, history=st.lists(steps, max_size=40), usage=usages)
@settings(max_examples=100, deadline=None)
def test_refused_until_the_told_instant_and_admitted_at_it(
    config: Config, history: list[Step], usage: Usage
) -> None:
    judge = played(config, history)
    now = sum(step.gap_ns for step in history)
    for limit, rule in zip(config.limits, judge.rules, strict=True):
        units, start = usage.reserved(limit), now + (MIDNIGHT if rule.clock == WALL else 0)
        wait = rule.wait(start, units)
        if wait is None:
            assert units > limit.capacity or limit.kind in ("concurrency", "sliding")
            continue
        if wait:
            assert rule.room(start + wait - 1) < units * rule.scale
        assert rule.room(start + wait) >= units * rule.scale


@given(config=configs, history=st.lists(steps, min_size=1, max_size=40), data=st.data())
@settings(max_examples=50, deadline=None)
def test_the_verifier_finds_a_wrong_decision(
    config: Config, history: list[Step], data: st.DataObject
) -> None:
    log = played(config, history).log
    place = data.draw(st.sampled_from([i for i, event in enumerate(log) if isinstance(event, Arrival)]))
    event = log[place]
    assert isinstance(event, Arrival)
    log[place] = event._replace(refused_by=() if event.refused_by else (0,))
    assert verify(config, log)


# ---- Utilisation, by hand


def test_a_perfect_pacer_uses_all_of_a_bucket() -> None:
    limit = Limit("requests", "bucket", 10, burst=5)
    judge = Judge(Config((limit,)))
    assert all(admitted(judge, [number / 10 for number in range(101)]))
    assert utilisation(limit, 0, judge.log) == {
        "accepted_units": 101,
        "empty_start": 1.0,
        "full_start": round(101 / 105, 6),
    }
    assert ideal_seconds(judge.config, judge.log, full=False) == 10


def test_only_whole_grid_windows_count_for_the_empty_start() -> None:
    limit = Limit("requests", "fixed", 2)
    judge = Judge(Config((limit,)))
    assert all(admitted(judge, [0.5, 1.1, 1.2, 2.5, 3.1]))
    assert utilisation(limit, 0, judge.log) == {"accepted_units": 5, "empty_start": 0.75, "full_start": 0.625}


def test_full_windows_use_all_of_a_sliding_log() -> None:
    limit = Limit("requests", "sliding", 2)
    judge = Judge(Config((limit,)))
    assert all(admitted(judge, [0, 0, 1, 1, 2, 2]))
    assert utilisation(limit, 0, judge.log)["full_start"] == 1.0


def test_what_was_given_back_was_not_used() -> None:
    limit = Limit("tokens", "bucket", 100, burst=200)
    judge = Judge(Config((limit,), refund=True))
    usage = Usage(prompt=0, max_tokens=100, completion=20)
    for number in range(6):
        judge.arrive(at(number), usage)
        judge.complete(at(number + 0.5), number, usage)
    # Five calls after the first in 5 s; the last had given nothing back when the last call came.
    assert utilisation(limit, 0, judge.log)["empty_start"] == (20 * 4 + 100 - 0) / 500


def test_ideal_time_of_limits_that_bind_in_turn() -> None:
    config = Config((Limit("requests", "bucket", 10, burst=5), Limit("tokens", "bucket", 100, burst=100)))
    judge = Judge(config)
    small, large = Usage(1, 4, 1), Usage(1, 49, 1)
    for number, usage in enumerate([small, small, small, large]):
        judge.arrive(at(number), usage)
    # Requests space the small ones by 0.1 s; the large one waits until 100/s have brought 5 + 5 + 50.
    assert ideal_seconds(config, judge.log, full=False) == pytest.approx(0.6)
    assert ideal_seconds(config, judge.log, full=True) == 0


# ---- The wire


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0169, "17ms"),
        (3.5, "3.5s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (3723.5, "1h2m3.5s"),
        (3600, "1h0m0s"),
    ],
)
def test_durations_read_as_go_prints_them(seconds: float, text: str) -> None:
    assert go_duration(round(seconds * SECOND)) == text


PLAIN = b"POST /a?b HTTP/1.1\r\nContent-Length: 3\r\nX: 1\r\n\r\nabc"
CHUNKED = (
    b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nab\r\n1\r\nc\r\n0\r\nTrailer: 1\r\n\r\n"
)


@pytest.mark.parametrize("raw", [PLAIN, CHUNKED])
def test_a_request_is_taken_once_its_last_byte_is_there(raw: bytes) -> None:
    buffer = bytearray()
    for byte in raw[:-1]:
        buffer.append(byte)
        assert read_request(buffer) is None
    buffer += raw[-1:] + PLAIN
    request = read_request(buffer)
    assert request is not None
    assert (request.method, request.path, request.body) == ("POST", "/a", b"abc")
    assert buffer == PLAIN, "the next request is left alone"


@pytest.mark.parametrize("raw", [b"hello\r\n\r\n", b"POST /a HTTP/1.1\r\nContent-Length: x\r\n\r\n"])
def test_what_is_not_http_raises(raw: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whichever it is, the answer is 400
        read_request(bytearray(raw))


def test_the_hidden_charge() -> None:
    assert odd_charge("two words") == 3 + 2 * 2
    assert odd_charge("in 1850") == 3 + 2 * 2 + 4
    body = {"messages": [{"role": "user", "content": "two words"}], "max_tokens": 1000}
    usages = [read_usage(str(number).encode(), body, "odd") for number in range(300)]
    assert {usage.prompt + usage.max_tokens for usage in usages} == {1007}
    assert sum(usage.completion for usage in usages) / len(usages) == pytest.approx(200, rel=0.1)


# ---- Over the wire


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: dict[str, Any]


class Client:
    """One keep-alive connection that sends what it is told, as fast as it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def call(self, key: str = "", words: int = 2, max_tokens: int = 10, path: str = ENDPOINT) -> Answer:
        body = {
            "messages": [{"role": "user", "content": "word " * words}],
            "max_tokens": max_tokens,
            "custom_id": key,
        }
        raw = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nIdempotency-Key: {key}\r\nContent-Length: {len(raw)}\r\n\r\n"
        )
        return await self.send(head.encode() + raw)

    async def send(self, raw: bytes) -> Answer:
        self.writer.write(raw)
        first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        body = json.loads(await self.reader.readexactly(int(headers["content-length"])))
        return Answer(int(first.split()[1]), headers, body)


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        await writer.wait_closed()


def bucket(meter: str, amount: int, burst: int) -> dict[str, object]:
    return {"meter": meter, "kind": "bucket", "amount": amount, "burst": burst}


@pytest.mark.parametrize("count_refused", [False, True])
async def test_a_greedy_client_is_refused_exactly_as_the_verifier_says(
    tmp_path: Path, count_refused: bool
) -> None:
    limits = [
        bucket("requests", 200, 20),
        {"meter": "tokens", "kind": "sliding", "amount": 500, "window_seconds": 0.2},
    ]
    config = {
        "limits": limits,
        "count_refused": count_refused,
        "jitter_seconds": 0.005,
        "latency_seconds": 0.005,
    }
    with strict_server(config, tmp_path) as server:

        async def greedy(name: int) -> list[Answer]:
            async with connected(server) as client:
                return [await client.call(f"{name}-{number % 20}") for number in range(40)]

        answers = [answer for some in await asyncio.gather(*map(greedy, range(8))) for answer in some]
        report = server.finish()
    refused = [answer for answer in answers if answer.status == 429]
    assert len(refused) == report["refused"] > 0
    assert len(answers) - len(refused) == report["accepted"] == sum(report["ledger"].values()) >= 20
    assert (report["verified_calls"], report["disagreements"]) == (320, 0)
    assert report["idempotency_keys"]["distinct"] == report["idempotency_keys"]["repeated"] == 160
    assert report["peak_in_flight"] <= report["peak_connections"] == 8
    for shown in report["refusals"]:
        assert shown["level"] < shown["units"]
    for answer in refused:
        assert answer.body["error"]["type"] in ("requests", "tokens")
        assert int(answer.headers["retry-after-ms"]) > 0
        assert int(answer.headers["retry-after"]) >= 1


async def test_a_paced_client_is_never_refused(tmp_path: Path) -> None:
    """One call at a time, never closer than the gap: a bucket of two carries it whoever stalls."""
    gap_seconds = 1.001 / 200
    with strict_server({"limits": [bucket("requests", 200, 2)]}, tmp_path) as server:
        async with connected(server) as client:
            for _ in range(100):
                sent_at = time.monotonic()
                assert (await client.call()).status == 200
                await asyncio.sleep(max(0, sent_at + gap_seconds - time.monotonic()))
        report = server.finish()
    assert (report["refused"], report["disagreements"]) == (0, 0)
    used = report["limits"][0]["utilisation"]
    assert 0.1 < used["full_start"] <= 1
    assert 0.1 < used["empty_start"] <= 100 / 99


async def test_answers_tell_the_charge_and_no_more(tmp_path: Path) -> None:
    config = {"limits": [bucket("requests", 1, 100), bucket("tokens", 1, 1000)], "latency_seconds": 0.001}
    with strict_server(config, tmp_path) as server:
        async with connected(server) as client:
            first = await client.call(words=10, max_tokens=500)
            second = await client.call(words=10, max_tokens=500)
            other = await client.call(path="/v1/other", words=1, max_tokens=1)
            chunk = b'{"messages": [], "max_tokens": 7}'
            chunked = await client.send(
                b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
                b"%x\r\n%b\r\n0\r\n\r\n" % (len(chunk), chunk)
            )
            live = await client.send(b"GET /report HTTP/1.1\r\n\r\n")
            broken = await client.send(b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\n[")
            await client.send(b"POST /finish HTTP/1.1\r\n\r\n")
        report = server.finish()
    assert first.body["object"] == "chat.completion"
    assert first.body["usage"]["prompt_tokens"] == 3 + 2 * 10
    assert 50 <= first.body["usage"]["completion_tokens"] <= 150
    assert first.headers["x-ratelimit-limit-tokens"] == "1000"
    assert 1000 - int(first.headers["x-ratelimit-remaining-tokens"]) == 23 + 500
    assert first.headers["x-ratelimit-reset-tokens"] == "8m43s"
    assert first.headers["x-ratelimit-remaining-requests"] == "99"
    assert first.headers["x-ratelimit-reset-requests"] == "1s"
    assert (second.status, second.body["error"]["type"]) == (429, "tokens")
    assert 40_000 < int(second.headers["retry-after-ms"]) <= 46_000
    assert (other.status, other.body["object"]) == (200, "result")
    assert chunked.body["usage"]["prompt_tokens"] == 3
    assert live.body["accepted"] == report["accepted"] == 3
    assert broken.status == 400


async def test_the_log_tells_who_called_and_when(tmp_path: Path) -> None:
    with strict_server({"limits": [bucket("requests", 1, 1)], "latency_seconds": 0.001}, tmp_path) as server:
        async with connected(server) as client:
            before = time.monotonic_ns()
            for name in (b"one", b"two"):
                await client.send(
                    b"POST / HTTP/1.1\r\nx-client: %b\r\nx-granted-ns: 5\r\nx-sent-ns: 7\r\n\r\n" % name
                )
            wrong = await client.send(b"POST / HTTP/1.1\r\nx-sent-ns: now\r\n\r\n")
            after = time.monotonic_ns()
        server.finish()
    first, second = server.log()
    assert wrong.status == 400
    assert (first["client"], first["granted_ns"], first["sent_ns"], first["refused_by"]) == ("one", 5, 7, [])
    assert (second["client"], second["refused_by"], second["ended_ns"]) == ("two", [0], None)
    assert before < first["arrived_ns"] < first["ended_ns"] < second["arrived_ns"] < after


async def test_a_refund_makes_room_for_the_next_call(tmp_path: Path) -> None:
    config = {"limits": [bucket("tokens", 1, 1000)], "refund": True, "headers": False}
    with strict_server(config, tmp_path) as server:
        async with connected(server) as client:
            answers = [await client.call(max_tokens=500) for _ in range(3)]
        report = server.finish()
    assert [answer.status for answer in answers] == [200, 200, 200], "each leaves 800 or more of the rest"
    used = sum(answer.body["usage"]["total_tokens"] for answer in answers[:2])
    assert report["limits"][0]["accepted_units"] == used + 507, (
        "the last call marks the end: nothing came back yet"
    )
    assert not any(name.startswith("x-ratelimit") for answer in answers for name in answer.headers)


async def test_a_deliberate_stop_is_no_stall(tmp_path: Path) -> None:
    with strict_server({"limits": [bucket("requests", 1, 1)]}, tmp_path) as server:
        async with connected(server) as client:
            server.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(0.05)
            server.process.send_signal(signal.SIGCONT)
            await client.call()
        stalls = server.finish()["stalls"]
    assert stalls["deliberate_stops"] == 1
    assert stalls["longest_stop_seconds"] >= 0.04
