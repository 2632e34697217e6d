"""Workers that come and go, pools of other kinds, and none at all."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pytest
from celery import group

from tests.integrations.celery.workers import SECONDS, Place, running, wait_until
from tests.servers.rabbitmq import RabbitMQServer

pytestmark = pytest.mark.slow


def repeated(place: Place) -> int:
    """Runs of tasks that had run already."""
    runs = Counter(line[1] for line in place.lines("call"))
    return runs.total() - len(runs)


# Redis as a broker gives messages of a killed worker to others every hundred seconds: too long for a test.
def test_a_worker_that_is_killed_loses_nothing(rabbitmq: RabbitMQServer, tmp_path: Path) -> None:
    with running(tmp_path, rabbitmq.url) as place:
        done = [place.program.call.delay(number, 0.1) for number in range(120)]
        wait_until(lambda: len(place.lines("call")) >= 20)
        place.workers[0].kill()
        assert sorted(result.get(timeout=SECONDS) for result in done) == list(range(120))
        assert repeated(place) <= 4, "what its four slots did at that moment"


# A worker of Celery, of any program, that ends while it is busy may not acknowledge what its slots did last,
# and then takes half a minute to end: celery#3802.
def test_a_worker_that_ends_hands_over(tmp_path: Path) -> None:
    with running(tmp_path) as place:
        done = [place.program.call.delay(number) for number in range(100)]
        wait_until(lambda: len(place.lines("call")) >= 20)
        place.workers[0].process.send_signal(signal.SIGTERM)
        assert place.workers[0].process.wait(SECONDS) == 0
        assert sorted(result.get(timeout=SECONDS) for result in done) == list(range(100))
        assert repeated(place) <= 4


@pytest.mark.parametrize("pool", ["threads", "gevent", "solo"])
def test_other_pools_and_beat(tmp_path: Path, pool: str) -> None:
    # With gevent Celery has no beat; and where every prefetched message is in a slot, and is acknowledged
    # late, it looks for more every two seconds alone.
    options = ("-c", "40") if pool == "gevent" else ("-B", "-s", str(tmp_path / "schedule"))
    environment = {} if pool == "gevent" else {"BEAT": "yes"}
    with running(tmp_path, names=("one",), pool=pool, options=options, environment=environment) as place:
        done = group(place.program.call.s(number) for number in range(60)).apply_async()
        assert done.get(timeout=SECONDS) == list(range(60))
        assert len(place.lines("call")) == 60
        if environment:
            wait_until(lambda: len(place.lines("tick")) >= 3)
        place.workers[0].process.send_signal(signal.SIGTERM)
        assert place.workers[0].process.wait(30) == 0, place.workers[0].told()


def test_eager_tasks_wait_where_they_are(tmp_path: Path) -> None:
    with running(tmp_path, names=()) as place:
        place.program.app.conf.task_always_eager = True
        assert place.program.call.delay("eager").get() == "eager"
        assert place.program.behind_it("direct") == "direct"
        assert place.lines("behind_it") == [["behind_it", "direct"]]
