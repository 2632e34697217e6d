"""``kill -9`` of processes that call a server: nothing is lost, and what was reported is not sent again."""

from __future__ import annotations

import json
import os
import random
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.run.servers import Entry, Ledger, ledger_server
from tests.runner.children import Child

CALLS = 300
SLOTS = 8
KILLS = 8
"""For each way of working; there are four."""
LATENCIES = 0.02, 0.05

POST = f"""
import http.client

port, kind, way, checkpoint = sys.argv[1:]

def content(name, x):
    after = {LATENCIES[0]} + {LATENCIES[1] - LATENCIES[0]} * (x * 37 % 100) / 100
    return json.dumps({{"n": name, "do": [{{"after": after}}]}}).encode()

def headers():
    return {{"Idempotency-Key": current_call().idempotency_key}}

def post(name, x):
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=20)
    try:
        connection.request("POST", "/", content(name, x), headers())
        answer = connection.getresponse()
        if answer.status != 200 or not json.loads(answer.read())["ok"]:
            raise AssertionError(answer.status)
    finally:
        connection.close()

async def post_async(name, x):
    reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
    try:
        body = content(name, x)
        fields = {{"Content-Length": len(body), **headers()}}
        head = "".join(f"{{field}}: {{value}}\\r\\n" for field, value in fields.items())
        writer.write(f"POST / HTTP/1.1\\r\\n{{head}}\\r\\n".encode() + body)
        status = await reader.readline()
        await reader.readuntil(b"\\r\\n\\r\\n")
        if status.split()[1] != b"200" or b'"ok"' not in await reader.read(1000):
            raise AssertionError(status)
    finally:
        writer.close()
"""

WORK = f"""
def work(x):
    post(f"id-{{x}}", x)
    return {{"double": 2 * x}}

async def work_async(x):
    await post_async(f"id-{{x}}", x)
    return {{"double": 2 * x}}

def report(call):
    if not call.restored:
        say("reported", f"id-{{call.args[0]}}")

function = {{"thread": work, "coroutine": work_async}}[kind]
runner = Runner(function, max_concurrent={SLOTS}, checkpoint=checkpoint, progress=False)
if way == "as_completed":
    found = {{}}
    for call in runner.as_completed(range({CALLS})):
        report(call)
        found[call.position] = call.result()
    results = [found[position] for position in sorted(found)]
else:
    runner.subscribe(lambda event: report(event.call), "completed")
    if way == "map":
        results = list(runner.map(range({CALLS})))
    else:
        for x in range({CALLS}):
            runner.schedule(x)
        results, _ = runner.run()
say("results", json.dumps(results))
"""


class Life(NamedTuple):
    """What a process did until it was killed or had ended."""

    received: list[str]
    reported: set[str]

    @property
    def in_flight(self) -> set[str]:
        return set(self.received) - self.reported


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    with ledger_server(tmp_path_factory.mktemp("server")) as ledger:
        yield ledger


def port(server: Ledger) -> str:
    return server.url.rpartition(":")[2]


def new_requests(server: Ledger, seen: int) -> list[Entry]:
    """Those after the first so many; from a process that is dead, none is on its way any more."""
    for _ in range(2):  # whoever came before the first of them has been read before the second
        with urllib.request.urlopen(server.url, b'{"n":"now"}', timeout=20) as answer:
            assert answer.status == 200
    return [entry for entry in server.received() if entry.name != "now"][seen:]


def survive(child: Child, kill: int, chance: random.Random) -> None:
    """Let it live for a while."""
    if kill % 4 == 0:  # some while it is still getting ready
        time.sleep(chance.uniform(0.0, 0.4))
    else:
        child.wait_for("reported", chance.randrange(25))
        time.sleep(chance.uniform(0.0, 0.04))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "way"),
    [("coroutine", "schedule"), ("thread", "schedule"), ("coroutine", "map"), ("thread", "as_completed")],
)
def test_kills_lose_nothing_and_repeat_only_what_was_in_flight(
    server: Ledger, tmp_path: Path, kind: str, way: str
) -> None:
    chance = random.Random(f"kills of {kind} {way} {os.environ.get('SEED')}")
    server = server.from_here()
    lives: list[Life] = []
    for kill in range(KILLS + 1):
        with Child(POST + WORK, port(server), kind, way, tmp_path / "kept") as child:
            if kill < KILLS:
                survive(child, kill, chance)
                child.kill()
                assert not child.said("results"), "it was done before it could be killed"
            else:
                assert child.end() == 0, child.heard[-20:]
            requests = new_requests(server, sum(len(life.received) for life in lives))
            life = Life([entry.name for entry in requests], set(child.said("reported")))
        before = {name for former in lives for name in former.reported}
        assert before.isdisjoint(life.received), "what had been reported was sent again"
        assert before.isdisjoint(life.reported)
        assert len(set(life.received)) == len(life.received)
        assert len(life.in_flight) <= SLOTS
        lives.append(life)

    (results,) = child.said("results")
    assert json.loads(results) == [{"double": 2 * x} for x in range(CALLS)]
    received = Counter(name for life in lives for name in life.received)
    assert set(received) == {f"id-{x}" for x in range(CALLS)}
    in_flight = Counter(name for life in lives[:-1] for name in life.in_flight)
    repeated = received - Counter(set(received))
    assert repeated <= in_flight
    assert not lives[-1].in_flight
    print(
        f"\n{kind}, {way}: {KILLS} kills, {sum(bool(life.in_flight) for life in lives)} with calls in flight "
        f"({in_flight.total()} in all); {repeated.total()} calls repeated"
    )
    assert in_flight.total() > SLOTS

    keys: dict[str, set[str]] = {}
    for entry in new_requests(server, 0):
        keys.setdefault(entry.name, set()).add(entry.key)
    assert {len(of_one) for of_one in keys.values()} == {1}
    assert len({key for of_one in keys.values() for key in of_one}) == CALLS


OPERATE = f"""
def name_of(x):
    return f"op-{{x}}-{{os.getpid()}}"

def operate(x):
    call = current_call()
    operation = call.recorded.get("operation")
    if operation is None:
        post(f"start-{{x}}", x)
        call.record("operation", operation := name_of(x))
        say("recorded", x, operation)
    else:
        say("known", x, operation)
    gate.wait()
    post(f"poll-{{operation}}", x)
    return operation

async def operate_async(x):
    call = current_call()
    operation = call.recorded.get("operation")
    if operation is None:
        await post_async(f"start-{{x}}", x)
        call.record("operation", operation := name_of(x))
        say("recorded", x, operation)
    else:
        say("known", x, operation)
    await gate.wait_async()
    await post_async(f"poll-{{operation}}", x)
    return operation

function = {{"thread": operate, "coroutine": operate_async}}[kind]
runner = Runner(function, max_concurrent={SLOTS}, checkpoint=checkpoint, progress=False)
for x in range({2 * SLOTS}):
    runner.schedule(x)
say("results", json.dumps(runner.run().results))
"""


@pytest.mark.parametrize("kind", ["coroutine", "thread"])
def test_what_a_call_has_recorded_survives_so_nothing_is_paid_twice(
    server: Ledger, tmp_path: Path, kind: str
) -> None:
    server = server.from_here()
    arguments = (port(server), kind, "schedule", tmp_path / "kept")
    with Child(POST + OPERATE, *arguments) as first:
        first.wait_for("recorded", SLOTS)
        first.kill()
    for _ in range(2):
        with Child(POST + OPERATE, *arguments) as next_one:
            next_one.wait_for("known", SLOTS)
            next_one.kill()
            assert sorted(next_one.said("known")) == sorted(first.said("recorded"))
            assert not next_one.said("recorded")
    with Child(POST + OPERATE, *arguments) as last:
        last.tell("open")
        assert last.end() == 0
    recorded = first.said("recorded") + last.said("recorded")
    operations = [operation for _, operation in sorted((int(x), op) for x, op in map(str.split, recorded))]
    assert len(operations) == 2 * SLOTS
    assert json.loads(last.said("results")[0]) == operations
    assert Counter(entry.name for entry in new_requests(server, 0)) == Counter(
        [f"start-{x}" for x in range(2 * SLOTS)] + [f"poll-{operation}" for operation in operations]
    )
