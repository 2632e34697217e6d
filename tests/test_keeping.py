"""Budgets that outlive a process: what a kept copy of a limiter says is never less than what was granted."""

import json
import random
from typing import Any

import pytest

from headgate.core.model import SECOND, Limit
from headgate.core.text import parse_limit
from headgate.keeping import Keeper
from headgate.limiter import Limiter
from headgate.stores.memory import MemoryStore
from headgate.testing import FakeClock

DAY = "requests=1000/day:kind=calendar:zone=America/Los_Angeles"
TOKENS = "tokens=100k/day:kind=sliding:start=full"
RATE = "requests=50/s:burst=50:start=full:name=rate"


def limiter(clock: FakeClock, *limits: str | Limit) -> Limiter:
    return Limiter(*limits, key="run", store=MemoryStore(clock))


def stored(kept: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(kept))
    return found


@pytest.mark.parametrize("seed", range(10))
def test_a_copy_covers_every_grant_until_the_next_one(fake_clock: FakeClock, seed: int) -> None:
    chance = random.Random(seed)
    used = {"requests/day": 0, "tokens/day": 0}
    life = limiter(fake_clock, DAY, TOKENS)
    keeper = Keeper(life)
    assert keeper.needed
    kept = stored(keeper.save(final=False))
    for _ in range(chance.randrange(1, 200)):
        permit = life.try_permit(tokens=chance.choice([0, 1, 10, 500, 3000]))
        if permit is None:
            break
        if keeper.granted(permit.units):
            kept = stored(keeper.save(final=False))
        for name, units in permit.units.items():
            used[name] += units
        if chance.random() < 0.1:
            kept = stored(keeper.save(final=False))
        fake_clock.advance(chance.random() * 5)
    fake_clock.advance(5)
    again = limiter(fake_clock, DAY, TOKENS)
    assert Keeper(again).restore(kept)
    stands = again.used()
    assert all(stands[name] >= units for name, units in used.items())
    assert stands["requests/day"] <= 1000
    assert stands["tokens/day"] <= 100_000


def test_an_orderly_end_keeps_it_exactly(fake_clock: FakeClock) -> None:
    life = limiter(fake_clock, DAY, RATE)
    for _ in range(7):
        life.acquire().settle()
    kept = stored(Keeper(life).save(final=True))
    fake_clock.advance(60)
    again = limiter(fake_clock, DAY, RATE)
    assert Keeper(again).restore(kept)
    assert again.used()["requests/day"] == 7


def test_a_limit_beside_it_may_change_come_or_go(fake_clock: FakeClock) -> None:
    life = limiter(fake_clock, RATE, DAY)
    for _ in range(7):
        life.acquire().settle()
    kept = stored(Keeper(life).save(final=True))
    for limits in ([DAY], [DAY, RATE], [DAY, "requests=9/s:burst=3"], ["concurrency=2", TOKENS, DAY]):
        again = limiter(fake_clock, *limits)
        assert Keeper(again).restore(kept)
        assert again.used()["requests/day"] == 7
    assert not Keeper(limiter(fake_clock, "requests=999/day:kind=calendar")).restore(kept)
    assert not Keeper(limiter(fake_clock, DAY)).restore({})


def test_only_what_would_be_forgotten_is_kept(fake_clock: FakeClock) -> None:
    assert not Keeper(limiter(fake_clock, RATE, "concurrency=5")).needed
    assert parse_limit(DAY).period_us > 3600 * SECOND
