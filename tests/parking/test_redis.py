"""What is Redis' own: names, times to live, and servers that lose things or are not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
import redis

from headgate.core.model import SECOND
from headgate.core.plan import Plan
from headgate.core.text import parse_limits
from headgate.errors import ConfigurationError, StoreUnavailable
from headgate.parking import Arrival, Lot, lot_of
from headgate.stores.redis import RedisStore
from tests.parking.places import Clock
from tests.servers.redis import RedisServer


@pytest.fixture
def store(redis_of_all: RedisServer) -> Iterator[RedisStore]:
    redis_of_all.flush()
    with closing(RedisStore(redis_of_all.url)) as found:
        yield found


@pytest.fixture
def lot(store: RedisStore) -> Lot:
    return lot_of(store)


@pytest.fixture
def client(redis_of_all: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_of_all.url) as found:
        yield found


def test_names_stand_under_the_hash_tag_of_the_limiters_key(
    store: RedisStore, lot: Lot, client: redis.Redis
) -> None:
    key = "user {x}"
    store.acquire(key, Plan(parse_limits(["requests=1/s"])), [])
    lot.park(key, "a", 0, b"", ())
    lot.park(key, "b", 0, b"", ())
    lot.take(key, "me", 1, SECOND)
    lot.drop(key, "c")
    tags = {name.split(b"}")[0] for name in client.scan_iter()}
    assert tags == {b"headgate:{user %7Bx%7D"}
    assert store.keys() == lot.keys() == [key]


def test_what_waits_or_is_out_is_kept_for_ever_and_the_rest_for_a_day(lot: Lot, client: redis.Redis) -> None:
    def lives() -> set[int]:
        return {client.ttl(name) for name in client.scan_iter()}

    lot.drop("k", "x")
    assert lives() == {86_400}
    lot.park("k", "a", 0, b"", ())
    assert lives() == {-1}
    lot.take("k", "me", 1, SECOND)
    lot.drop("k", "y")
    assert lives() == {-1}
    lot.leave("k", "a", 1)
    assert lives() == {86_400}


def test_bodies_go_with_their_tasks_and_what_left_goes_in_time(
    redis_of_all: RedisServer, client: redis.Redis
) -> None:
    redis_of_all.flush()
    clock = Clock()
    with closing(RedisStore(redis_of_all.url, clock=clock)) as store:
        lot = lot_of(store)
        for number in range(40):
            lot.park("k", f"{number}", 0, b"body", ())
            lot.drop("k", f"{number}")
        assert not client.exists("headgate:{k}:parking:bodies")
        assert client.hlen("headgate:{k}:parking:tasks") == 40
        clock.us += 3_600 * SECOND
        for _ in range(3):
            lot.leave("k", "other", 0)
        assert client.hlen("headgate:{k}:parking:tasks") == client.zcard("headgate:{k}:parking:left") == 1


def test_after_a_loss_it_begins_anew(lot: Lot, redis_of_all: RedisServer) -> None:
    lot.park("k", "a", 0, b"", ())
    redis_of_all.flush()
    assert lot.enter("k", "a", 0) is Arrival.GO
    assert lot.keys() == []
    assert lot.park("k", "a", 4, b"", (), 9) == 9
    assert lot.park("k", "b", 0, b"", ()) == 10


def test_what_the_server_has_thrown_away_is_passed_over(lot: Lot, client: redis.Redis) -> None:
    lot.park("k", "a", 0, b"a", ())
    lot.park("k", "b", 0, b"b", ())
    client.hdel("headgate:{k}:parking:bodies", "a")
    taken = lot.take("k", "me", 1, SECOND)
    assert (taken.parked, taken.waiting) == ([], 1)
    assert [one.id for one in lot.take("k", "me", 1, SECOND).parked] == ["b"]


def test_what_is_no_lot_is_said_to_be_none(lot: Lot, client: redis.Redis) -> None:
    client.set("headgate:{k}:parking", "text")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        lot.enter("k", "a", 0)


def test_a_server_that_is_not_there_is_unavailable_until_it_is(own_redis: RedisServer) -> None:
    with closing(RedisStore(own_redis.url)) as store:
        lot = lot_of(store)
        lot.park("k", "a", 0, b"", ())
        own_redis.kill()
        with pytest.raises(StoreUnavailable):
            lot.enter("k", "a", 0)
        with pytest.raises(StoreUnavailable):
            lot.keys()
        own_redis.restart(empty=True)
        assert lot.park("k", "a", 0, b"", ()) == 1
