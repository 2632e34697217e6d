"""Tasks that wait without a slot: real workers, a real broker, a real store."""

from __future__ import annotations

import importlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group

from headgate.integrations.celery import PARKED
from headgate.parking import lot_of
from tests.integrations.celery.workers import Worker, journal, most_over, two_workers
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer

pytestmark = pytest.mark.slow
SECONDS = 90


class Place:
    """Where a test runs: its program, its workers, and what they wrote down."""

    def __init__(self, folder: Path, program: Any, workers: list[Worker]) -> None:
        self.folder = folder
        self.program = program
        self.workers = workers

    def lines(self, what: str) -> list[list[str]]:
        return [line for line in journal(self.folder) if line[1] == what]


@pytest.fixture(params=["redis", "rabbitmq"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with RedisServer() as server:
        socket = server.url.removeprefix("unix://")
        broker = f"redis+socket://{socket}"
        if request.param == "rabbitmq":
            rabbit: RabbitMQServer = request.getfixturevalue("rabbitmq")
            broker = rabbit.url
        told = {
            "BROKER": broker,
            "BACKEND": f"redis+socket://{socket}",
            "STORE": server.url,
            "JOURNAL": str(tmp_path / "journal"),
        }
        for name, value in told.items():
            monkeypatch.setenv(name, value)
        from tests.integrations.celery import program

        importlib.reload(program)
        with two_workers(tmp_path, dict(os.environ)) as workers:
            yield Place(tmp_path, program, workers)
        program.app.control.purge()
        program.app.close()
        for limiter in (program.limiter, program.blocked):
            limiter.store.close()  # type: ignore[attr-defined]  # it is a shared one


def test_tasks_wait_for_their_limits(place: Place) -> None:
    program = place.program
    whole = group(program.call.s(number) for number in range(160))
    done = whole.apply_async()
    assert done.get(timeout=SECONDS) == list(range(160))
    calls = place.lines("call")
    assert Counter(line[2] for line in calls) == Counter(map(str, range(160))), "once each"
    assert most_over([float(line[0]) for line in calls], 40, 4) <= 1.5, (
        "never over, but for the journal's own lag"
    )
    assert lot_of(program.limiter.store).keys() == []

    # What hangs on a task comes with it, parked or not.
    assert chain(program.call.s("a"), program.call.si("b")).apply_async().get(timeout=SECONDS) == "b"
    summed = chord((program.call.s(number) for number in range(30)), program.collect.s())
    assert summed.apply_async().get(timeout=SECONDS) == 30

    # Retries keep their meaning, and the last error is what the caller sees.
    with pytest.raises(ConnectionError, match="no route to there"):
        program.flaky.delay("there").get(timeout=SECONDS)
    assert [line[3] for line in place.lines("flaky")] == ["0", "1", "2"]

    # A throttle spends no attempt, and stops everybody at once.
    assert program.refused_once.delay("gate").get(timeout=SECONDS) == "gate"
    first, second = place.lines("refused_once")
    assert (first[3], second[3]) == ("0", "0")
    assert float(second[0]) - float(first[0]) >= 1.0, "it was told to wait for a second"


def test_a_blocked_service_is_in_nobodys_way(place: Place) -> None:
    program = place.program
    parked = [program.never_today.delay(number) for number in range(300)]
    wait_until(lambda: lot_of(program.blocked.store).peek("blocked").waiting == 300)
    assert {result.state for result in parked} == {PARKED}
    began = time.monotonic()
    results = group(program.call.s(number) for number in range(80)).apply_async().get(timeout=SECONDS)
    assert len(results) == 80
    assert time.monotonic() - began < 20
    assert not place.lines("never_today")


# Redis as a broker gives messages of a killed worker to others every hundred seconds: too long for a test.
@pytest.mark.parametrize("place", ["rabbitmq"], indirect=True)
def test_a_worker_that_is_killed_loses_nothing(place: Place) -> None:
    program = place.program
    done = [program.call.delay(number, 0.1) for number in range(120)]
    wait_until(lambda: len(place.lines("call")) >= 20)
    place.workers[0].kill()
    assert sorted(result.get(timeout=SECONDS) for result in done) == list(range(120))
    repeated = Counter(line[2] for line in place.lines("call"))
    assert sum(count - 1 for count in repeated.values()) <= 4, "what its four slots did at that moment"


def wait_until(true: Any, seconds: float = SECONDS) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it takes too long"
        time.sleep(0.05)
