"""Random histories: the lots in memory, SQLite and Redis say the same at every step."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from headgate.core.model import SECOND
from headgate.parking import KEEP_SECONDS, Lot
from tests.parking import places
from tests.parking.places import Clock
from tests.servers.redis import RedisServer

_numbers = count()

keys = some.sampled_from(("k", "other"))
ids = some.sampled_from(("a", "b", "B", "é"))
releases = some.integers(0, 4)
bodies = some.binary(max_size=4)
costs = some.lists(some.integers(0, 9), max_size=2)
places_ = some.none() | some.integers(0, 6)
owners = some.sampled_from(("me", "you"))
counts = some.integers(0, 3)
leases = some.sampled_from((1, SECOND, 3 * SECOND))
waits = some.sampled_from((0, 1, 200_000, 5 * SECOND))
moves = some.sampled_from(
    (1, 300_000, SECOND, 2 * SECOND, 3 * SECOND, KEEP_SECONDS * SECOND, -1, -SECOND, -5_000 * SECOND)
)
steps = some.lists(
    some.one_of(
        some.tuples(some.just("enter"), keys, ids, releases),
        some.tuples(some.just("park"), keys, ids, releases, bodies, costs, places_),
        some.tuples(some.just("take"), keys, owners, counts, leases),
        some.tuples(some.just("leave"), keys, ids, releases, waits),
        some.tuples(some.just("resign"), keys, owners),
        some.tuples(some.just("overtake"), keys),
        some.tuples(some.just("drop"), keys, ids),
        some.tuples(some.just("move"), moves),
    ),
    min_size=1,
    max_size=25,
)


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def lots(
    clock: Clock, redis_of_all: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Lot]]:
    redis_of_all.flush()
    path: Path = tmp_path_factory.mktemp("agreement") / "store"
    with places.memory() as one, places.sqlite(path) as two, places.redis(redis_of_all.url) as three:
        yield [one(clock), two(clock), three(clock)]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=steps)
def test_all_lots_agree(lots: list[Lot], clock: Clock, history: list[tuple[Any, ...]]) -> None:
    follow(lots, clock, history)


@pytest.mark.parametrize("seed", range(3))
def test_all_lots_agree_for_long(lots: list[Lot], clock: Clock, seed: int) -> None:
    follow(lots, clock, long_history(random.Random(seed)))


def long_history(chance: random.Random) -> Iterator[tuple[Any, ...]]:
    """Few ids and low numbers, so that most verbs meet something."""
    one_of = chance.choice
    for _ in range(3_000):
        id, release = one_of("abBcé"), one_of((0, 0, 1, 1, 2, 2, 3, 4, 6))
        match chance.randrange(40):
            case 0:
                yield "drop", "k", id
            case 1:
                yield "move", 1_800 * SECOND
            case 2:
                yield "move", one_of((-SECOND, -9 * SECOND))
            case draw if draw < 14:
                place = one_of((None, None, 1, 2, 3, 900))
                yield "park", "k", id, release, one_of((b"", b"x")), (release,), place
            case draw if draw < 22:
                yield "take", "k", one_of(("me", "me", "you")), one_of((0, 1, 1, 5)), one_of((1, 3)) * SECOND
            case draw if draw < 28:
                yield "leave", "k", id, release, one_of((0, SECOND // 3))
            case 28 if one_of((True, False)):
                yield "overtake", "k"
            case 28:
                yield "resign", "k", one_of(("me", "you"))
            case draw if draw < 32:
                yield "enter", "k", id, release
            case _:
                yield "move", one_of((1, SECOND // 2, SECOND, 2 * SECOND))


def follow(lots: list[Lot], clock: Clock, history: Iterable[tuple[Any, ...]]) -> None:
    clock.us = places.START_US * 10
    prefix = f"{next(_numbers)}-"
    for verb, where, *facts in history:
        if verb == "move":
            clock.us = max(clock.us + where, 0)
            continue
        key = prefix + where
        agree([getattr(lot, verb)(key, *facts) for lot in lots])
        agree([lot.peek(key, 2, "me") for lot in lots])
    agree([lot.keys() for lot in lots])
    clock.us += 2 * SECOND  # nobody is the releaser
    for key in ("k", "other"):
        agree([lot.peek(prefix + key, 9) for lot in lots])
        agree([lot.take(prefix + key, "me", 9, SECOND) for lot in lots])
        for lot in lots:  # nothing is left of it
            for id in ("a", "b", "B", "é"):
                lot.drop(prefix + key, id)


def agree(answers: list[Any]) -> None:
    assert answers[0] == answers[1] == answers[2]
