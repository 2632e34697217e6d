"""The store in this process: which clock it goes by, and whose state is whose."""

from __future__ import annotations

import json
import time

import pytest

from headgate import ConfigurationError
from headgate.core.decide import State
from headgate.core.model import ANSWERED, Granted, Refused, Report, Wait
from headgate.core.plan import Plan
from headgate.core.text import parse_limits
from headgate.stores.base import open_store
from headgate.stores.memory import MemoryStore, process_clock
from headgate.testing import FakeClock
from tests.waiting import InThread


def plan_of(*limits: str) -> Plan:
    return Plan(parse_limits(limits))


def test_is_opened_by_its_url() -> None:
    assert isinstance(open_store("memory://"), MemoryStore)
    assert open_store("memory://") is not open_store("memory://"), "each is empty"
    assert isinstance(open_store(None), MemoryStore)
    store = MemoryStore()
    assert open_store(store) is store


@pytest.mark.parametrize("url", ["cassandra://host", "", "memory.sub://", "../memory", "base://"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="expected the URL of a store"):
        open_store(url)


def test_says_what_it_is() -> None:
    store = MemoryStore()
    assert (store.batch, store.shared) == (1, False)


def test_its_clock_runs_forward_and_knows_the_date() -> None:
    before, now = process_clock(), process_clock()
    assert now.elapsed_us >= before.elapsed_us
    assert abs(now.wall_us - time.time() * 1e6) < 5e6


def test_answers_a_batch_in_its_order(fake_clock: FakeClock) -> None:
    store, plan = MemoryStore(fake_clock), plan_of("tokens=10/s:burst=10:start=full")
    answers = store.acquire("k", plan, [(4,), (11,), (4,), (4,), (1,), (11,)])
    assert [type(answer) for answer in answers] == [Granted, Refused, Granted, Wait, Wait, Refused]
    assert answers[3] == answers[4], "nobody overtakes the first that waits"
    assert store.used("k", plan) == (8,)


def test_keys_are_separate(fake_clock: FakeClock) -> None:
    store, plan = MemoryStore(fake_clock), plan_of("concurrency=1")
    [one] = store.acquire("one", plan, [(1,)])
    [two] = store.acquire("two", plan, [(1,)])
    assert type(one) is type(two) is Granted
    store.settle("one", plan, [Report(one, ANSWERED)])
    assert (store.used("one", plan), store.used("two", plan)) == ((0,), (1,))


def test_a_state_can_be_kept_as_json_and_put_back(fake_clock: FakeClock) -> None:
    plan = plan_of("tokens=10/s:burst=10:start=full", "requests=5/s:kind=sliding:start=full", "concurrency=2")
    store, other = MemoryStore(fake_clock), MemoryStore(fake_clock)
    store.acquire("k", plan, [(4, 1, 1), (3, 1, 1)])
    other.load("k", plan, State.load(json.loads(json.dumps(store.dump("k", plan)))))
    assert other.used("k", plan) == store.used("k", plan) == (7, 2, 2)
    assert other.acquire("k", plan, [(1, 1, 1)]) == store.acquire("k", plan, [(1, 1, 1)])


def test_equal_limits_are_one_plan(fake_clock: FakeClock) -> None:
    store = MemoryStore(fake_clock)
    store.acquire("k", plan_of("concurrency=2"), [(1,)])
    assert store.used("k", plan_of("concurrency=2")) == (1,)


def test_changed_limits_keep_what_is_the_same(fake_clock: FakeClock) -> None:
    store = MemoryStore(fake_clock)
    store.acquire("k", plan_of("concurrency=2", "tokens=10/s:burst=10:start=full"), [(1, 4)])
    changed = plan_of("tokens=10/s:burst=10:start=full", "requests=5/s:burst=5:start=full", "concurrency=2")
    assert store.used("k", changed) == (4, 0, 1)


def test_threads_share_it() -> None:
    store, plan = MemoryStore(), plan_of("concurrency=1000")

    def work() -> None:
        for _ in range(500):
            [answer] = store.acquire("k", plan, [(1,)])
            assert type(answer) is Granted
            store.settle("k", plan, [Report(answer, ANSWERED)])

    for thread in [InThread(work) for _ in range(4)]:
        thread.result()
    assert store.used("k", plan) == (0,)
