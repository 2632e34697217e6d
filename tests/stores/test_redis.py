"""A store in Redis or Valkey: what every store is held to, and what only this one meets."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pytest
import redis

from headgate.core import decide
from headgate.core.model import ANSWERED, NEVER, SECOND, Granted, Now, Refused, Report, Signal, Wait
from headgate.core.plan import Plan
from headgate.core.together import Line, Trade, Traded
from headgate.errors import ConfigurationError, StoreUnavailable
from headgate.stores.base import LEASE_US, Deal, Keyed, Store, open_store
from headgate.stores.redis import RedisStore, _key_of, _name, _Offset
from headgate.testing import FakeClock
from tests.servers.redis import RedisServer
from tests.stores import conformance
from tests.stores.conformance import Open, ask, granted, line, made, plan_of, reports
from tests.waiting import wait_until


@pytest.fixture
def open_one(empty_redis: RedisServer) -> Iterator[Open]:
    with ExitStack() as stack:

        def opened(clock: Callable[[], Now] | None = None) -> Store:
            return stack.enter_context(closing(RedisStore(empty_redis.url, clock=clock)))

        yield opened


LAWS = (*conformance.ANY, *conformance.SHARED)


@pytest.mark.parametrize("law", LAWS, ids=conformance.name_of)
def test_a_shared_store(open_one: Open, law: Callable[[Open], None]) -> None:
    law(open_one)


# Where it is


def test_it_is_opened_by_any_url_of_the_server(own_redis: RedisServer) -> None:
    plan = plan_of("concurrency=5")
    urls = [own_redis.url, own_redis.tcp_url, own_redis.tcp_url.replace("redis:", "valkey:")]
    stores = [open_store(url) for url in urls]
    for count, store in enumerate(stores, 1):
        store.acquire("k", plan, [(1,)])
        assert store.used("k", plan) == (count,)
    assert open_store(urls[0]) is stores[0]


@pytest.mark.parametrize("url", ["redis://host:port/0", "redis://h/0?socket_timeout=soon", "redis://[/0"])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(ConfigurationError, match="expected the URL"):
        RedisStore(url)


def test_a_password_is_shown_to_nobody() -> None:
    store = RedisStore("rediss://me:secret@example.org:6380/3")
    assert repr(store).startswith("<RedisStore rediss://example.org:6380/3 as ")


@pytest.mark.parametrize(
    "key", ["", "a", "a b", "{a}", "a}b", "%", "%41", "*", "ключ", "a\x00b", "\ud800", "🔑"]
)
def test_any_key_has_a_name_of_its_own(key: str) -> None:
    name = _name(key)
    assert name.isascii()
    assert (name.count("{"), name.count("}")) == (1, 1)
    assert _key_of(name.encode()) == key


# The server


@pytest.fixture
def server(empty_redis: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(empty_redis.url) as client:
        yield client


@pytest.fixture
def store(empty_redis: RedisServer) -> Iterator[RedisStore]:
    with closing(RedisStore(empty_redis.url)) as opened:
        yield opened


BUCKET = "requests=10/s:burst=50:start=full"


def test_the_script_is_loaded_again_where_it_was_flushed(store: RedisStore, server: redis.Redis) -> None:
    plan = plan_of(BUCKET)
    for _ in range(3):
        granted(store, plan)
        server.script_flush()
    deals = [Deal(key, plan, Trade(lines=[line(plan)])) for key in "abc"]
    assert all(isinstance(traded, Traded) for traded in store.trade(deals))


def test_a_key_that_is_none_of_ours(store: RedisStore, server: redis.Redis) -> None:
    plan = plan_of(BUCKET)
    server.set(_name("text"), "no state")
    server.rpush(_name("list"), "no state")
    server.set(_name("later"), b"\x63" + b"\x00" * 30)
    deals = [Deal(key, plan, Trade(lines=[line(plan)])) for key in ("text", "k", "list", "later")]
    text, good, lists, later = store.trade(deals)
    assert isinstance(good, Traded)
    for error in (text, lists, later):
        assert isinstance(error, ConfigurationError)
    with pytest.raises(ConfigurationError, match="'text'"):
        store.look("text")
    assert store.keys() == ["k", "later", "list", "text"]


def test_nothing_is_kept_longer_than_it_counts(store: RedisStore, server: redis.Redis) -> None:
    def lives_ms(key: str) -> int:
        return int(server.pttl(_name(key)))

    plan = plan_of("requests=10/min:burst=50:start=full", "concurrency=9")
    granted(store, plan)
    fill_ms, lease_ms = 5 * 60_000, LEASE_US // 1000
    assert fill_ms + lease_ms < lives_ms("k") < fill_ms + lease_ms + 120_000
    # A debt takes longer to be paid.
    dear = plan_of("tokens=10/min:burst=50:charge=usage:start=full")
    [grant] = granted(store, dear, key="debt", tokens=10)
    before = lives_ms("debt")
    store.settle_for("debt", dear, [Report(grant, Signal(usage={"tokens": 1_050}))])
    assert lives_ms("debt") - before == pytest.approx(100 * 60_000, rel=0.01)
    # While it is paused it is kept, however long that is.
    store.edit("k", conformance.paused)
    assert lives_ms("k") == -1
    granted(store, plan_of("concurrency=1"), key="other")
    store.edit("k", conformance.resumed)
    assert lives_ms("k") > fill_ms
    month = plan_of("requests=100/month:kind=calendar")
    granted(store, month, key="month")
    assert lives_ms("month") > 31 * 86_400_000


def test_what_a_server_refuses_is_told(own_redis: RedisServer) -> None:
    plan = plan_of(BUCKET)
    with closing(RedisStore(own_redis.url)) as store, redis.Redis.from_url(own_redis.url) as server:
        granted(store, plan)
        server.config_set("maxmemory", "1mb")
        with pytest.raises(StoreUnavailable, match="'maxmemory'"):
            granted(store, plan)
        with pytest.raises(StoreUnavailable):
            store.ping()
        server.config_set("maxmemory", "0")
        granted(store, plan)
        server.config_set("min-replicas-to-write", "1")
        with pytest.raises(StoreUnavailable):
            granted(store, plan)
        server.config_set("min-replicas-to-write", "0")
        granted(store, plan)
        server.config_set("requirepass", "secret")
        with closing(RedisStore(own_redis.url)) as other:
            with pytest.raises(ConfigurationError, match="does not let us in"):
                granted(other, plan)
            with pytest.raises(ConfigurationError):
                other.ping()
            with pytest.raises(ConfigurationError):
                other.keys()


def test_a_server_that_is_away_and_comes_back(own_redis: RedisServer) -> None:
    plan = plan_of(BUCKET)
    with closing(RedisStore(own_redis.url)) as store:
        granted(store, plan)
        own_redis.kill()
        deals = [Deal(key, plan, Trade(lines=[line(plan)])) for key in "ab"]
        assert [type(error) for error in store.trade(deals)] == [StoreUnavailable] * 2
        for verb in (store.ping, store.keys, lambda: store.look("k"), lambda: store.used("k", plan)):
            with pytest.raises(StoreUnavailable):
                verb()
        own_redis.restart(empty=True)
        store.ping()
        granted(store, plan, key="another")


def test_a_server_that_does_not_answer(own_redis: RedisServer) -> None:
    plan = plan_of("concurrency=9")
    with closing(RedisStore(f"{own_redis.url}&socket_timeout=0.1")) as store:
        granted(store, plan)
        own_redis.pause()
        with pytest.raises(StoreUnavailable):
            ask(store, plan)
        own_redis.resume()
        # What it did all the same is set right by what is said to be held.
        wait_until(lambda: store.used("k", plan) == (2,))
        assert made(store, plan, Trade(holding=(1, 1))).used == (1,)


def test_it_warns_of_a_server_that_throws_keys_away(caplog: pytest.LogCaptureFixture) -> None:
    with (
        RedisServer(maxmemory="50mb", policy="allkeys-lru") as server,
        closing(RedisStore(server.url)) as store,
        caplog.at_level(logging.WARNING, "headgate"),
    ):
        store.keys()
        for _ in range(3):
            granted(store, plan_of(BUCKET))
    [record] = caplog.records
    assert "allkeys-lru" in record.message


# Loss


PLAN = plan_of("requests=100/s:burst=10:start=full", "tokens=60/min:kind=sliding:start=full", "concurrency=4")


def level(store: Store, key: str = "k") -> tuple[int, ...]:
    return store.used(key, PLAN)


def test_a_first_use_starts_as_declared(store: RedisStore) -> None:
    assert level(store) == (0, 0, 0)


def test_after_a_loss_it_goes_on_as_if_all_were_used(
    open_one: Open, server: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()
    store, other = open_one(clock), open_one(clock)
    assert isinstance(store, RedisStore)
    [grant] = granted(store, PLAN, tokens=5)
    server.flushall()
    traded = made(store, PLAN, Trade(holding=(1, 1, 0, 1)))
    assert traded.used == (10, 60, 5)
    [record] = caplog.records
    assert "has lost" in record.message
    [answer] = other.acquire("k", PLAN, [(0, 0, 1)])
    assert type(answer) is Wait
    # In a lease all say what they hold; then the rest is free.
    clock.advance(LEASE_US / SECOND - 1)
    made(store, PLAN, Trade(holding=(1, 1, 0, 1)))
    clock.advance(1)
    assert made(store, PLAN, Trade(holding=(1, 1, 0, 1))).used[2] == 1
    # Of what was granted before, each slot comes back once.
    assert made(store, PLAN, Trade(1, reports(grant), (0, 0, 0, 0))).used[2] == 0


def test_a_state_that_is_older_than_one_that_was_seen_is_a_loss(
    store: RedisStore, server: redis.Redis
) -> None:
    granted(store, PLAN)
    old = server.get(_name("k"))
    assert old is not None
    granted(store, PLAN)
    server.set(_name("k"), old)
    assert level(store)[2] == 4
    assert level(store)[2] == 4


def test_one_who_knows_of_no_loss_starts_anew_until_one_comes_who_does(
    open_one: Open, server: redis.Redis
) -> None:
    store, other, newcomer = open_one(), open_one(), open_one()
    for each in (store, other):
        each.acquire("k", PLAN, [(1, 1, 1)])
    server.flushall()
    assert level(newcomer) == (0, 0, 0)
    assert level(store) == (10, 60, 4), "this one has known another"
    assert [level(each) for each in (newcomer, other)] == [(10, 60, 4)] * 2, "and then none begins anew"


def test_a_server_that_throws_keys_away_is_not_believed_that_one_has_expired(server: redis.Redis) -> None:
    with (
        RedisServer(maxmemory="50mb", policy="allkeys-lru") as forgetful,
        closing(RedisStore(forgetful.url)) as store,
        closing(RedisStore(forgetful.url)) as newcomer,
        redis.Redis.from_url(forgetful.url) as hand,
    ):
        store.acquire("k", PLAN, [(1, 1, 1)])
        hand.delete(_name("k"))
        assert level(newcomer) == (10, 60, 4)


def test_what_has_expired_starts_full(open_one: Open, server: redis.Redis) -> None:
    plan = plan_of("requests=10/s:burst=10")  # starts with one probe
    one, newcomer = open_one(), open_one()
    one.acquire("k", plan, [(1,)])
    server.delete(_name("k"))  # as after its time to live, though the mark of its having been there stays
    assert newcomer.used("k", plan) == (0,)
    server.flushall()
    assert newcomer.used("k", plan) == (10,), "this one remembers it"


def test_who_remembers_a_state_whose_time_was_over_starts_full(open_one: Open, server: redis.Redis) -> None:
    clock, plan = FakeClock(), plan_of("requests=10/s:burst=10")
    store = open_one(clock)
    store.acquire("k", plan, [(1,)])
    server.flushall()
    clock.advance(3_600)
    assert store.used("k", plan) == (0,)
    for wait in (0, 3_600):
        store.edit("k", conformance.paused)
        server.flushall()
        clock.advance(wait)
        assert store.used("k", plan) == (10,), "while it was paused it had no end"


def test_what_was_forgotten_is_no_loss(open_one: Open) -> None:
    store, other = open_one(), open_one()
    for each in (store, other):
        each.acquire("k", PLAN, [(1, 1, 1)])
    assert other.edit("k", lambda keyed, now: None)
    assert level(store) == (0, 0, 0)
    assert level(other) == (0, 0, 0)


# What happens between a look and a change


def test_an_edit_is_made_again_where_others_were_faster(open_one: Open) -> None:
    store, other, plan = open_one(), open_one(), plan_of("concurrency=9")
    other.acquire("k", plan, [(1,)])
    seen = []

    def change(keyed: Keyed, now: Now) -> Keyed:
        seen.append(keyed.state.parts[0][0])
        if len(seen) < 3:
            other.acquire("k", plan, [(1,)])
        decide.pause(keyed.state, NEVER)
        return keyed

    assert store.edit("k", change)
    assert seen == [1, 2, 3]
    assert store.used("k", plan) == (3,)


def test_many_threads_begin_a_key(open_one: Open) -> None:
    stores, plan, start = [open_one() for _ in range(4)], plan_of("concurrency=100"), threading.Barrier(4)

    def work(store: Store) -> None:
        start.wait()
        for _ in range(10):
            store.acquire("k", plan, [(1,)])

    threads = [threading.Thread(target=work, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stores[0].used("k", plan) == (40,)


def test_limits_change_under_a_store_that_has_seen_the_old_ones(open_one: Open) -> None:
    store, other = open_one(), open_one()
    plan = plan_of("tokens=9/s:burst=9:start=full")
    store.acquire("k", plan, [(4,)])
    for burst in (5, 7):
        assert other.edit("k", conformance.set_to(f"tokens=9/s:burst={burst}:start=full"))
        assert store.acquire("k", plan, [(8,)]) == [Refused(0, burst)]
    assert other.edit("k", conformance.as_declared)
    assert store.acquire("k", plan, [(10,)]) == [Refused(0, 9)]


def test_a_calendar_is_followed_however_far(open_one: Open) -> None:
    clock = FakeClock()
    plan = plan_of("requests=5/hour:kind=calendar:zone=Australia/Lord_Howe:start=full")
    store, other = open_one(clock), open_one(clock)
    for hours in (0, 1, 30, 0, 2_000, 1, 9_000):
        clock.advance(3_600 * hours + 10)  # nothing goes at the edge of a window
        for each in (store, other):
            [answer] = each.acquire("k", plan, [(1,)])
            assert type(answer) is Granted
            each.settle("k", plan, [Report(answer, ANSWERED)])


# Clocks


def test_instants_are_told_by_the_clock_of_this_machine(store: RedisStore) -> None:
    plan = plan_of("requests=1/s:burst=1:start=full")
    before = store.now().elapsed_us
    [grant] = granted(store, plan)
    [wait] = ask(store, plan)
    after = store.now().elapsed_us
    assert before - 1_000 <= grant.at_us <= after + 1_000
    assert grant.use_before_us - grant.at_us == plan.use_before_us
    assert isinstance(wait, Wait)
    assert wait.until_us == pytest.approx(grant.at_us + SECOND, abs=100_000)
    assert grant.steady_us > 1_700_000_000 * SECOND, "the server's own go back to it as they came"


def test_the_distance_of_two_clocks_is_known_to_half_of_the_best_round_trip() -> None:
    offset = _Offset()
    offset.learn(1_000, 3_000, 102_100)
    assert offset.us == 100_100
    offset.learn(5_000, 5_100, 105_040)
    assert offset.us == 99_990, "closer"
    offset.learn(6_000, 8_000, 107_100)
    assert offset.us == 99_990, "vaguer, and does not contradict"
    offset.learn(9_000, 9_400, 9_200)
    assert offset.us == 0, "the clock was set, or it is another server"
    offset.learn(9_000_000_000, 9_000_000_400, 9_000_000_300)
    assert offset.us == 100, "clocks drift apart in time"


# Hints


@contextmanager
def listening(store: RedisStore, key: str = "k") -> Iterator[threading.Event]:
    woken = threading.Event()
    stop = store.listen(key, woken.set)
    try:
        yield woken
    finally:
        stop()


def test_hints_come_again_after_the_connection_was_cut(own_redis: RedisServer) -> None:
    plan = plan_of("concurrency=1")
    with closing(RedisStore(own_redis.url)) as holder, closing(RedisStore(own_redis.url)) as waiter:
        [grant] = granted(holder, plan)
        ask(waiter, plan)
        with listening(waiter) as woken, redis.Redis.from_url(own_redis.url) as server:
            wait_until(woken.is_set)  # it is subscribed
            woken.clear()
            server.client_kill_filter(_type="pubsub")
            wait_until(woken.is_set)  # it is again, and may have missed something
            woken.clear()
            holder.settle_for("k", plan, reports(grant))
            wait_until(woken.is_set)


def test_a_hint_is_for_whoever_may_go_and_no_other(open_one: Open) -> None:
    stores: list[Any] = [open_one() for _ in range(3)]
    holder, waiter, third = stores
    plan = plan_of("concurrency=1")
    [grant] = granted(holder, plan)
    ask(waiter, plan)
    with listening(waiter) as woken, listening(third) as not_woken:
        for event in (woken, not_woken):
            wait_until(event.is_set)
            event.clear()
        ask(waiter, plan)
        holder.settle_for("k", plan, reports(grant))
        wait_until(woken.is_set)
        assert not not_woken.is_set()


def test_its_thread_ends_with_it(own_redis: RedisServer) -> None:
    store = RedisStore(own_redis.url)
    thread = None
    with listening(store):
        [thread] = [each for each in threading.enumerate() if each.name == "headgate-redis"][-1:]
    store.close()
    wait_until(lambda: not thread.is_alive())


# The end, and forks


def test_whoever_closes_it_gives_its_places_back(open_one: Open, empty_redis: RedisServer) -> None:
    here, plan = open_one(), plan_of("requests=1/s:burst=1:start=full")
    store = RedisStore(empty_redis.url)
    granted(store, plan)
    made(store, plan, Trade(holding=(0, 0), lines=[Line(1, 9, [(1,)])]))
    client = store.client
    store.close()
    found = here.look("k")
    assert found is not None
    assert found[0].state.crowd is not None
    assert client not in found[0].state.crowd.members
    assert store.client != client
    made(store, plan, Trade())
    store.close()


def test_closing_it_does_not_wait_for_a_server_that_is_away(own_redis: RedisServer) -> None:
    store = RedisStore(own_redis.url)
    made(store, PLAN, Trade(holding=(0, 0, 0, 0)))
    own_redis.pause()
    before = time.monotonic()
    store.close()
    assert time.monotonic() - before < 2
    own_redis.resume()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_is_a_client_of_its_own(store: RedisStore) -> None:
    plan = plan_of("concurrency=9")
    granted(store, plan)
    child = os.fork()
    if not child:
        try:
            granted(store, plan, 2)
            os._exit(0 if store.used("k", plan) == (3,) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    granted(store, plan)
    found = store.look("k")
    assert found is not None
    assert found[0].state.crowd is not None
    assert [member.pinned for member in found[0].state.crowd.members.values()] == [[2], [2]]


def test_a_plan_of_nothing_but_slots_has_no_use_before(store: RedisStore) -> None:
    [grant] = granted(store, Plan(plan_of("concurrency=1").limits))
    assert grant.use_before_us == NEVER
