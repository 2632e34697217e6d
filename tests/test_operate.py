"""What operators see of a key and do to it, in a store of one process and in one that several share."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any, TypeAlias, cast

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from headgate import ConfigurationError, CostExceedsLimit, Limit, Limiter, NoSuchKey, operate, parse_limit
from headgate.core.limits.base import Holding
from headgate.core.model import (
    ANSWERED,
    DAY,
    HOUR,
    LOST,
    MINUTE,
    SECOND,
    UNSENT,
    Costs,
    Granted,
    Now,
    Report,
    Signal,
    Throttle,
)
from headgate.core.plan import Plan
from headgate.core.text import parse_limits
from headgate.core.together import Line
from headgate.events import Waited
from headgate.operate import Blocked, LimitSnapshot, Snapshot, limit_text, snapshot
from headgate.stores.memory import MemoryStore, process_clock
from headgate.stores.redis import RedisStore
from headgate.stores.sqlite import SQLiteStore
from headgate.testing import FakeClock
from tests.servers.redis import RedisServer
from tests.waiting import InThread, wait_until

NORMAL, BULK = 1, 2
AnyStore: TypeAlias = MemoryStore | SQLiteStore | RedisStore
Shared: TypeAlias = SQLiteStore | RedisStore


def plan_of(*limits: str) -> Plan:
    return Plan(parse_limits(limits))


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with RedisServer() as server:
        yield server.url


def opener(kind: str, request: pytest.FixtureRequest, clock: Callable[[], Now]) -> Callable[[], AnyStore]:
    """Opens clients of an empty place that go by one clock."""
    if kind == "memory":
        return lambda: MemoryStore(clock)
    if kind == "sqlite":
        path = request.getfixturevalue("tmp_path") / "limits.db"
        return lambda: SQLiteStore(path, clock=clock)
    url = request.getfixturevalue("redis_url")
    redis.Redis.from_url(url).flushall()
    return lambda: RedisStore(url, clock=clock)


@pytest.fixture(params=["memory", "sqlite", "redis"])
def store(request: pytest.FixtureRequest, fake_clock: FakeClock) -> Iterator[AnyStore]:
    opened = opener(request.param, request, fake_clock)()
    yield opened
    if not isinstance(opened, MemoryStore):
        opened.close()


@pytest.fixture(params=["sqlite", "redis"])
def shared(request: pytest.FixtureRequest, fake_clock: FakeClock) -> Iterator[Callable[[], Shared]]:
    """Opens one client after the other of a place."""
    open_one = opener(request.param, request, fake_clock)
    opened: list[Any] = []

    def open_and_keep() -> Shared:
        opened.append(open_one())
        return cast(Shared, opened[-1])

    yield open_and_keep
    for each in opened:
        each.close()


def ask(store: AnyStore, plan: Plan, count: int = 1, *, kind: int = NORMAL, **units: int) -> list[Any]:
    """So many calls are wanted at once, and no more."""
    costs: Costs = plan.costs(units)
    return store.acquire_for("k", plan, [Line(kind, count, [costs] * count)])[0]


def take(store: AnyStore, plan: Plan, count: int = 1, **units: int) -> list[Granted]:
    answers = ask(store, plan, count, **units)
    assert all(type(answer) is Granted for answer in answers), answers
    return answers


def settle(store: AnyStore, plan: Plan, grants: list[Granted], signal: Signal = ANSWERED) -> None:
    store.settle_for("k", plan, [Report(grant, signal) for grant in grants])


def limit(store: AnyStore, place: int = 0) -> LimitSnapshot:
    return snapshot(store, "k").limits[place]


# Looking


def test_each_limit_tells_its_units_and_what_it_granted(store: AnyStore, fake_clock: FakeClock) -> None:
    plan = plan_of(
        "requests=10/s:burst=5:start=full",
        "tokens=6k/min:kind=sliding:start=full",
        "images=90/min",
        "concurrency=4",
        "daily=1000/day:kind=calendar:start=full",
    )
    fake_clock.advance(2)  # no call goes at the very edge of a day
    settle(store, plan, take(store, plan, 1, tokens=100, daily=1))
    take(store, plan, 1, tokens=100, daily=1)
    fake_clock.advance(0.11)
    found = snapshot(store, "k")
    said = [
        (each.name, each.kind, each.used, each.capacity, each.granted, each.rate) for each in found.limits
    ]
    assert said == [
        ("requests/s", "bucket", 1, 5, 2, 10.0),
        ("tokens/min", "sliding", 200, 6000, 200, 100.0),
        ("images/min", "unknown", 4, 4, 0, 1.5),
        ("concurrency", "concurrency", 1, 4, None, None),
        ("daily/day", "calendar", 2, 1000, 2, pytest.approx(1000 / 90_000)),
    ]
    assert [each.text for each in found.limits] == list(found.declared)
    assert found.limits[0].text == "requests=10/s:burst=5:start=full"
    assert [each.standing for each in found.limits] == ["open"] * 5
    assert (found.granted, found.settled, found.refused, found.in_flight) == (2, 1, 0, 1)
    assert not found.set_by_operator
    assert not found.paused
    assert found.blocked is None
    assert found.at == fake_clock().wall_us / SECOND


def test_looking_changes_nothing(store: AnyStore, fake_clock: FakeClock) -> None:
    plan = plan_of("requests=10/s:burst=5:start=full", "concurrency=2")
    take(store, plan, 2)
    before = store.look("k")
    assert before is not None
    fake_clock.advance(60)
    snapshot(store, "k")
    after = store.look("k")
    assert after is not None
    assert after[0].state.dump() == before[0].state.dump()


def test_a_snapshot_is_plain_json(store: AnyStore) -> None:
    plan = plan_of("requests=10/s:burst=5:start=full", "concurrency=4")
    take(store, plan, 2)
    text = json.dumps(asdict(snapshot(store, "k")))
    assert json.loads(text)["limits"][1]["used"] == 2


def test_full_tells_when_it_opens_for_whoever_is_next(store: AnyStore, fake_clock: FakeClock) -> None:
    plan = plan_of("requests=10/s:burst=5:start=full", "tokens=10/s:burst=100:start=full")
    settle(store, plan, take(store, plan, 5, tokens=20))
    assert limit(store).standing == "full"
    assert limit(store).opens_seconds == pytest.approx(0.1, rel=0.01)
    found = snapshot(store, "k")
    assert found.blocked == Blocked("requests/s", "full", found.limits[0].opens_seconds), "nobody waits"
    ask(store, plan, 3, tokens=50)
    found = snapshot(store, "k")
    assert found.waiting == 3
    assert [(each.name, each.share, each.waiting) for each in found.classes] == [
        ("interactive", 50, 0),
        ("normal", 35, 3),
        ("bulk", 15, 0),
    ]
    assert found.blocked is not None
    assert found.blocked.limit == "tokens/s"
    assert found.blocked.seconds == pytest.approx(5, rel=0.01)
    assert found.limits[1].opens_seconds == pytest.approx(5, rel=0.01)


def test_slots_open_with_an_answer(store: AnyStore) -> None:
    plan = plan_of("concurrency=1")
    take(store, plan)
    assert (limit(store).standing, limit(store).opens_seconds) == ("full", None)
    assert snapshot(store, "k").blocked == Blocked("concurrency", "full", None)


def test_a_refusal_is_told_until_a_probe_has_been_answered(store: AnyStore, fake_clock: FakeClock) -> None:
    plan = plan_of("requests=10/s:burst=5:start=full", "tokens=100/s:burst=100:start=full")
    settle(store, plan, take(store, plan), Signal(throttle=Throttle("requests", 2 * SECOND)))
    fake_clock.advance(0.5)
    found = snapshot(store, "k")
    assert (found.limits[0].standing, found.limits[0].opens_seconds) == ("refused", 1.5)
    assert found.limits[1].standing == "open"
    assert found.blocked == Blocked("requests/s", "refused", 1.5)
    [refusal] = found.refusals
    assert (refusal.limit, refusal.ago_seconds, refusal.retry_after_seconds) == ("requests/s", 0.5, 2.0)
    assert refusal.at == found.at - 0.5
    fake_clock.advance(1.6)
    found = snapshot(store, "k")
    assert (found.limits[0].standing, found.limits[0].opens_seconds) == ("refused", 0.0), "a probe is due"
    assert found.blocked is None
    probe = take(store, plan)
    found = snapshot(store, "k")
    assert (found.limits[0].standing, found.limits[0].opens_seconds) == ("probing", None)
    assert found.blocked == Blocked("requests/s", "probing", None)
    settle(store, plan, probe)
    assert limit(store).standing == "open"
    assert snapshot(store, "k").refused == 1


def test_clients_tell_what_they_hold_and_want(shared: Callable[[], Shared], fake_clock: FakeClock) -> None:
    one, two = shared(), shared()
    plan = plan_of("tokens=10/s:burst=50:charge=usage:start=full", "concurrency=3")
    take(one, plan, 2, tokens=10)
    fake_clock.advance(5)
    take(two, plan, 1, tokens=5)
    ask(two, plan, 4, kind=BULK)
    clients = {each.name: each for each in snapshot(one, "k").clients}
    assert clients.keys() == {one.client, two.client}
    assert clients[one.client].held == {"tokens/s": 20, "concurrency": 2}
    assert clients[one.client].in_flight == 2
    assert clients[one.client].waiting == {}
    assert clients[one.client].lease_seconds == 10
    assert clients[two.client].waiting == {"bulk": 4}
    assert clients[two.client].lease_seconds == 15
    fake_clock.advance(11)
    found = snapshot(two, "k")
    assert [each.name for each in found.clients] == [two.client], "the other's lease has lapsed"
    assert found.limits[1].used == 1
    assert found.in_flight == 1


def test_a_process_of_its_own_is_no_client_before_it_has_to_be(fake_clock: FakeClock) -> None:
    store = MemoryStore(fake_clock)
    limiter = Limiter("concurrency=2", store=store, key="k")
    limiter.acquire()
    assert snapshot(store, "k").clients == ()
    assert snapshot(store, "k").in_flight == 1


def test_rates_are_told_from_two_looks(store: AnyStore, fake_clock: FakeClock) -> None:
    plan = plan_of("requests=100/s:burst=50:start=full", "tokens=1k/s:burst=1k:start=full", "concurrency=50")
    first = snapshot_after(store, plan, 10, fake_clock, 2.0)
    second = snapshot_after(store, plan, 30, fake_clock, 2.0)
    assert operate.rates(first, second) == {"requests/s": 15.0, "tokens/s": 30.0}
    assert operate.calls_per_second(first, second) == 15.0
    assert operate.rates(second, second) == {}
    assert operate.calls_per_second(second, second) is None
    operate.set_limits(store, "k", ["requests=50/s"])
    fake_clock.advance(1)
    assert operate.rates(second, snapshot(store, "k")) == {"tokens/s": 0.0}, "the other began anew"


def snapshot_after(store: AnyStore, plan: Plan, count: int, clock: FakeClock, seconds: float) -> Snapshot:
    settle(store, plan, take(store, plan, count, tokens=2))
    clock.advance(seconds)
    return snapshot(store, "k")


def test_all_keys_are_told_in_order(store: AnyStore) -> None:
    plan = plan_of("requests=10/s:burst=5:start=full")
    for key in ("b", "a", "c"):
        store.acquire(key, plan, [plan.costs({})])
    assert [each.key for each in operate.overview(store)] == ["a", "b", "c"]


def test_a_key_that_is_not_there_is_told_with_those_called_alike(store: AnyStore) -> None:
    with pytest.raises(NoSuchKey, match="the store has no keys"):
        snapshot(store, "k")
    plan = plan_of("requests=10/s:burst=5:start=full")
    for key in ("openai", "openai-batch", "maps"):
        store.acquire(key, plan, [plan.costs({})])
    acts: list[Callable[[AnyStore, str], Any]] = [
        snapshot,
        operate.pause,
        operate.resume,
        operate.forget,
        operate.reset_limits,
        lambda store, key: operate.set_limits(store, key, ["requests=1/s"]),
        lambda store, key: operate.set_shares(store, key, interactive=50, normal=30, bulk=20),
    ]
    for act in acts:
        with pytest.raises(NoSuchKey, match="there is no key 'opnai'; the nearest: 'openai'") as raised:
            act(store, "opnai")
        assert raised.value.key == "opnai"
        assert raised.value.nearest == ("openai", "openai-batch")
    with pytest.raises(NoSuchKey, match="there are: 'maps', 'openai', 'openai-batch'"):
        snapshot(store, "zzz")
    for number in range(10):
        store.acquire(f"key-{number}", plan, [plan.costs({})])
    with pytest.raises(NoSuchKey, match="there are 13 others"):
        snapshot(store, "zzz")


# Pausing


def test_a_pause_lasts_until_it_is_resumed(store: AnyStore, fake_clock: FakeClock) -> None:
    plan = plan_of("requests=10/s:burst=5:start=full")
    flying = take(store, plan)
    operate.pause(store, "k")
    fake_clock.advance(1_000)
    assert type(ask(store, plan)[0]) is not Granted
    settle(store, plan, flying)  # calls in flight go on
    found = snapshot(store, "k")
    assert found.paused
    assert found.blocked == Blocked("", "paused", None)
    assert operate.resume(store, "k")
    assert not snapshot(store, "k").paused
    assert type(ask(store, plan)[0]) is Granted
    assert not operate.resume(store, "k"), "it was not paused"


def test_a_pause_for_a_time_ends_by_itself(store: AnyStore, fake_clock: FakeClock) -> None:
    plan = plan_of("requests=10/s:burst=5:start=full")
    take(store, plan)
    operate.pause(store, "k", 30)
    fake_clock.advance(10)
    assert snapshot(store, "k").blocked == Blocked("", "paused", 20.0)
    operate.pause(store, "k", 5)  # the later word counts
    fake_clock.advance(4.9)
    assert type(ask(store, plan)[0]) is not Granted
    fake_clock.advance(0.1)
    assert type(ask(store, plan)[0]) is Granted
    assert snapshot(store, "k").blocked is None
    assert not operate.resume(store, "k")


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e9])
def test_a_pause_takes_a_time_that_makes_sense(store: AnyStore, seconds: float) -> None:
    with pytest.raises(ConfigurationError, match="a pause lasts above 0 seconds"):
        operate.pause(store, "k", seconds)


# Setting limits


def test_limits_are_set_by_name_and_the_others_stay(store: AnyStore) -> None:
    plan = plan_of(
        "requests=10/s:burst=5:start=full", "tokens=1k/min:kind=sliding:start=full", "concurrency=3"
    )
    take(store, plan, 2, tokens=30)
    operate.set_limits(store, "k", ["concurrency=1", "requests=4/s:burst=4"])
    found = snapshot(store, "k")
    assert [each.text for each in found.limits] == [
        "requests=4/s:burst=4:start=full",
        "tokens=1k/min:kind=sliding:start=full",
        "concurrency=1",
    ]
    assert [each.used for each in found.limits] == [2, 60, 2]
    assert found.set_by_operator
    assert found.declared == tuple(map(limit_text, plan.limits))
    assert type(ask(store, plan)[0]) is not Granted, "whoever declares others goes by these"
    operate.set_limits(store, "k", ["concurrency=5"])
    found = snapshot(store, "k")
    assert found.declared == tuple(map(limit_text, plan.limits)), "the first word of the programs"
    assert found.limits[0].amount == 4
    assert operate.reset_limits(store, "k")
    found = snapshot(store, "k")
    assert not found.set_by_operator
    assert tuple(each.text for each in found.limits) == found.declared
    assert not operate.reset_limits(store, "k")


def test_limits_that_are_set_as_they_are_declared_are_not_set(store: AnyStore) -> None:
    plan = plan_of("requests=10/s:burst=5:start=full")
    take(store, plan)
    operate.set_limits(store, "k", ["requests=10/s:burst=5"])
    assert not snapshot(store, "k").set_by_operator
    operate.set_limits(store, "k", ["requests=9/s"])
    assert snapshot(store, "k").set_by_operator
    operate.set_limits(store, "k", ["requests=10/s"])
    assert not snapshot(store, "k").set_by_operator


@pytest.mark.parametrize(
    ("declared", "said", "set_to"),
    [
        ("requests=500/min:burst=50:transit=2s", "requests=300/min", "requests=300/min:burst=50:transit=2s"),
        ("requests=500/min:burst=50", "requests=300/min:burst=30", "requests=300/min:burst=30"),
        ("requests=500/min:burst=50", "requests=300/min:kind=sliding", "requests=300/min:kind=sliding"),
        ("tokens=40k/min:burst=4k:charge=usage", "tokens=20k/min", "tokens=20k/min:burst=4k:charge=usage"),
        (
            "tokens=40k/min:burst=4k:charge=usage",
            "tokens=20k/min:refund=no:when=completion",
            "tokens=20k/min:burst=4k:charge=usage:when=completion:refund=no",
        ),
        ("requests=500/min", "requests=300/min", "requests=300/min"),
        ("requests=5/s:kind=fixed:error=50ms", "requests=4/s", "requests=4/s:kind=fixed:error=50ms"),
        (
            "requests=900/day:kind=calendar:zone=Asia/Kolkata",
            "requests=800/day",
            "requests=800/day:kind=calendar:zone=Asia/Kolkata",
        ),
        (
            "requests=900/day:kind=calendar",
            "requests=30/h:name=requests/day",
            "requests=30/h:name=requests/day",
        ),
        ("requests=500/min:name=rpm", "requests=300/min:name=rpm", "requests=300/min:name=rpm"),
        ("requests=500/min", "requests=5/s:name=requests/min", "requests=5/s:name=requests/min"),
        ("concurrency=8", "concurrency=4", "concurrency=4"),
    ],
)
def test_options_that_are_not_said_stay(store: AnyStore, declared: str, said: str, set_to: str) -> None:
    plan = plan_of(declared)
    ask(store, plan)
    operate.set_limits(store, "k", [said])
    assert limit(store).text == set_to


def test_a_limit_object_says_it_all(store: AnyStore) -> None:
    ask(store, plan_of("tokens=40k/min:burst=4k:transit=2s"))
    operate.set_limits(
        store, "k", [Limit(meter="tokens", amount=100, period_us=MINUTE, kind="bucket", burst=5)]
    )
    assert limit(store).text == "tokens=100/min:burst=5"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            ["images=5/min"],
            "is named 'images/min'; its limits are requests/s, concurrency$",
        ),
        (["requests=5/min"], r"to put it in the place of requests/s, add :name=requests/s$"),
        (["requests=5/s", "requests=6/s"], "requests/s is given twice"),
        (["images=5/s:name=requests/s"], "expected limits that count what they counted before"),
        (["requests=5/"], "expected a period"),
        ([], "expected at least one limit"),
    ],
)
def test_limits_that_do_not_match_change_nothing(store: AnyStore, limits: list[str], message: str) -> None:
    ask(store, plan_of("requests=10/s:burst=5:start=full", "concurrency=3"))
    before = snapshot(store, "k")
    with pytest.raises(ConfigurationError, match=message):
        operate.set_limits(store, "k", limits)
    assert snapshot(store, "k") == before


FORMS = (
    "tokens=100/s:burst=50:start=full",
    "tokens=10/s:burst=50:start=full",
    "tokens=10000/s:burst=50:start=full:charge=usage",
    "tokens=10/s:burst=90:charge=usage:start=full",
    "tokens=100/s:kind=sliding:start=full",
    "tokens=60/s:kind=sliding:charge=usage:start=full",
    "tokens=100/s:kind=fixed:start=full",
    "tokens=60/s:kind=fixed:charge=usage:start=full",
    "tokens=900/s:kind=anchored:start=full",
    "tokens=100/s:start=full",
)


@given(
    before=st.sampled_from(FORMS),
    after=st.sampled_from(FORMS),
    calls=st.lists(
        st.tuples(st.integers(1, 5), st.floats(0, 0.4), st.sampled_from([ANSWERED, LOST, UNSENT, None])),
        max_size=12,
    ),
    shared=st.booleans(),
)
@settings(deadline=None, max_examples=200)
def test_calls_that_are_on_their_way_are_settled_under_whatever_is_set(
    before: str, after: str, calls: list[tuple[int, float, Signal | None]], shared: bool
) -> None:
    clock = FakeClock()
    store = MemoryStore(clock)
    limiter = Limiter(before, "concurrency=50", store=store, key="k")
    if shared:
        limiter.of_class("bulk")
    permits = []
    for tokens, seconds, signal in calls:
        permit = limiter.try_permit(tokens=tokens)
        if permit is not None:
            permits.append((permit, signal))
        clock.advance(seconds)
    changed = replace(parse_limit(after), name="tokens/s")
    if changed.held_to_answer != limiter.limits[0].held_to_answer:
        with pytest.raises(ConfigurationError, match="charge, when and refund say"):
            limiter.set_limits(changed)
        return
    limiter.set_limits(changed)
    for permit, signal in permits:
        permit.signal(Signal(usage={"tokens": 2}) if signal is None else signal)
        clock.advance(0.01)
    found = store.look("k")
    assert found is not None
    rule, part = found[0].plan.rules[0], found[0].state.parts[0]
    assert isinstance(rule, Holding)
    assert all(units >= 0 for units in part[rule.calls.base :]), "nothing has been given back twice"
    clock.advance(120)
    assert limiter.used() == {"tokens/s": 0, "concurrency": 0}, "and nothing stays"
    assert limiter.snapshot().in_flight == 0


@pytest.mark.parametrize("kind", ["fixed", "sliding"])
def test_whoever_waits_for_more_than_is_left_holds_up_nobody(
    shared: Callable[[], Shared], fake_clock: FakeClock, kind: str
) -> None:
    one, two = shared(), shared()
    plan = plan_of(f"tokens=100/s:kind={kind}:start=full")
    fake_clock.advance(0.5)
    take(two, plan, 1, tokens=60)
    assert type(ask(one, plan, 1, tokens=90)[0]) is not Granted
    operate.set_limits(two, "k", ["tokens=80/s"])
    fake_clock.advance(1.2)
    assert type(ask(two, plan, 1, tokens=20)[0]) is Granted
    assert type(ask(one, plan, 1, tokens=90)[0]).__name__ == "Refused"


def test_others_go_by_what_was_set_and_give_back_what_they_held(
    shared: Callable[[], Shared], fake_clock: FakeClock
) -> None:
    one, two, operator = shared(), shared(), shared()
    plan = plan_of("concurrency=3")
    held = take(one, plan, 2)
    operate.set_limits(operator, "k", ["concurrency=2"])
    assert type(ask(two, plan)[0]) is not Granted
    settle(one, plan, held[:1])
    assert type(ask(two, plan)[0]) is Granted
    assert limit(operator).used == 2


# Shares


def test_shares_are_set(store: AnyStore) -> None:
    ask(store, plan_of("requests=10/s:burst=5:start=full"))
    operate.set_shares(store, "k", interactive=60, normal=30, bulk=10)
    assert [each.share for each in snapshot(store, "k").classes] == [60, 30, 10]


def test_shares_of_a_key_that_one_class_has_used_alone(fake_clock: FakeClock) -> None:
    limiter = Limiter("concurrency=2", store=MemoryStore(fake_clock), key="k")
    permit = limiter.acquire()
    limiter.set_shares(interactive=60, normal=30, bulk=10)
    permit.settle()
    assert limiter.used() == {"concurrency": 0}
    assert [each.share for each in limiter.snapshot().classes] == [60, 30, 10]


@pytest.mark.parametrize("shares", [(50, 50, 0), (50, 30, 10), (101, -2, 1), (33.4, 33.3, 33.3)])
def test_shares_add_up(store: AnyStore, shares: tuple[Any, Any, Any]) -> None:
    interactive, normal, bulk = shares
    with pytest.raises(ConfigurationError, match="expected shares of 1 or more that add up to 100; got"):
        operate.set_shares(store, "k", interactive=interactive, normal=normal, bulk=bulk)


def test_classes_get_what_was_set(fake_clock: FakeClock) -> None:
    normal = Limiter("requests=100/s:burst=10:start=full", store=MemoryStore(fake_clock))
    normal.set_shares(interactive=10, normal=20, bulk=70)
    served = dict.fromkeys(("normal", "bulk"), 0)

    async def want(limiter: Limiter) -> None:
        while fake_clock.elapsed_seconds < 20:
            async with limiter.permit():
                served[limiter.service_class] += 1

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for limiter in (normal, normal.of_class("bulk")):
                group.create_task(want(limiter))
                group.create_task(want(limiter))

    fake_clock.run(main())
    assert served["bulk"] / served["normal"] == pytest.approx(3.5, rel=0.05)


# Forgetting


def test_a_key_that_nobody_holds_anything_of_is_gone(store: AnyStore, fake_clock: FakeClock) -> None:
    plan = plan_of("requests=10/s:burst=5:start=used-5", "concurrency=2")
    fake_clock.advance(1)
    ask(store, plan)  # it begins with nothing left
    operate.set_limits(store, "k", ["concurrency=1"])
    operate.pause(store, "k")
    assert operate.forget(store, "k")
    assert store.keys() == []
    plan = plan_of("requests=10/s:burst=5:start=full", "concurrency=2")
    take(store, plan, 2)
    assert not snapshot(store, "k").set_by_operator


def test_what_is_held_stays_counted(store: AnyStore, fake_clock: FakeClock) -> None:
    plan = plan_of(
        "requests=10/s:burst=5:start=full", "concurrency=3", "tokens=9/s:burst=90:charge=usage:start=full"
    )
    held = take(store, plan, 2, tokens=10)
    settle(store, plan, take(store, plan, 1), Signal(throttle=Throttle("requests", 9 * SECOND)))
    operate.set_limits(store, "k", ["concurrency=5"])
    operate.set_shares(store, "k", interactive=60, normal=30, bulk=10)
    operate.pause(store, "k")
    fake_clock.advance(5)
    assert not operate.forget(store, "k")
    found = snapshot(store, "k")
    assert (found.granted, found.refused, found.refusals, found.paused) == (0, 0, (), False)
    assert found.limits[1].text == "concurrency=3"
    assert not found.set_by_operator
    assert [each.share for each in found.classes] == [50, 35, 15]
    assert [each.used for each in found.limits] == [0, 2, 20]
    assert found.in_flight == 2
    [client] = found.clients
    assert client.held == {"concurrency": 2, "tokens/s": 20}
    assert len(take(store, plan)) == 1
    settle(store, plan, held, Signal(usage={"tokens": 1}))
    found = snapshot(store, "k")
    assert found.limits[1].used == 1
    assert found.limits[2].used == 2
    assert found.in_flight == 1


def test_what_is_held_falls_free_with_the_lease(shared: Callable[[], Shared], fake_clock: FakeClock) -> None:
    one, two, operator = shared(), shared(), shared()
    plan = plan_of("concurrency=2")
    held = take(one, plan, 2)
    assert not operate.forget(operator, "k")
    assert type(ask(two, plan)[0]) is not Granted
    fake_clock.advance(14)
    assert type(ask(two, plan)[0]) is not Granted
    fake_clock.advance(1.1)
    assert len(take(two, plan, 2)) == 2
    settle(one, plan, held)  # too late: it frees nothing of the other's
    assert limit(operator).used == 2


def test_the_only_process_that_draws_on_a_key_hears_that_it_was_forgotten(
    shared: Callable[[], Shared], fake_clock: FakeClock
) -> None:
    one, operator = shared(), shared()
    plan = plan_of("requests=10/s:burst=50:start=full")
    for _ in range(20):  # so often that it believes itself alone
        settle(one, plan, take(one, plan))
    assert operate.forget(operator, "k")
    operator.acquire("other", plan, [plan.costs({})])
    settle(one, plan, take(one, plan))
    assert snapshot(operator, "k").granted == 1
    assert snapshot(operator, "other").granted == 1


def test_calls_of_one_process_are_settled_though_their_key_was_forgotten(fake_clock: FakeClock) -> None:
    store = MemoryStore(fake_clock)
    limiter = Limiter("requests=10/s:burst=5:start=full", "concurrency=3", store=store, key="k")
    permits = [limiter.acquire() for _ in range(3)]
    assert not operate.forget(store, "k")
    assert limiter.used() == {"requests/s": 0, "concurrency": 3}
    for permit in permits:
        permit.settle()
    assert limiter.used() == {"requests/s": 0, "concurrency": 0}
    assert operate.forget(store, "k")
    assert store.keys() == []


# A limiter's own methods


@pytest.fixture(params=["memory", "sqlite", "redis"])
def limiter(request: pytest.FixtureRequest) -> Iterator[Limiter]:
    """In real time, for threads wait in it."""
    store = opener(request.param, request, process_clock)()
    yield Limiter("requests=1000/s:burst=100:start=full", "concurrency=9", key="k", store=store)
    if not isinstance(store, MemoryStore):
        store.close()


def test_a_key_need_not_have_been_used(limiter: Limiter) -> None:
    assert limiter.snapshot().granted == 0
    limiter.pause()
    assert limiter.snapshot().paused
    assert limiter.try_permit() is None
    assert limiter.resume()
    permit = limiter.try_permit()
    assert permit is not None
    permit.settle()


def test_those_who_wait_go_as_soon_as_it_is_resumed(limiter: Limiter) -> None:
    heard: list[object] = []
    limiter.subscribe(heard.append)
    limiter.pause()
    waiting = InThread(limiter.acquire)
    wait_until(lambda: limiter.snapshot().waiting == 1)
    wait_until(lambda: Waited("k", "paused", None) in heard)
    begun = limiter.store.now().elapsed_us
    limiter.resume()
    permit = waiting.result()
    assert permit.granted_us - begun < 0.4 * SECOND, "it did not wait for its next look, in a second"
    permit.settle()


def test_those_who_wait_go_as_soon_as_there_are_more_slots(limiter: Limiter) -> None:
    limiter.set_limits("concurrency=1")
    first = limiter.acquire()
    waiting = InThread(limiter.acquire)
    wait_until(lambda: limiter.snapshot().waiting == 1)
    limiter.set_limits("concurrency=2")
    second = waiting.result()
    assert limiter.snapshot().set_by_operator
    assert limiter.reset_limits()
    assert limiter.limits[1].amount == 9
    first.settle()
    second.settle()
    wait_until(lambda: limiter.used()["concurrency"] == 0)


def test_whoever_wants_more_than_can_pass_from_now_on_is_told(fake_clock: FakeClock) -> None:
    limiter = Limiter("tokens=100/s:burst=100:start=empty", store=MemoryStore(fake_clock))

    async def main() -> None:
        waiting = asyncio.create_task(limiter.acquire_async(tokens=90))
        await asyncio.sleep(0.1)
        limiter.set_limits("tokens=100/s:burst=50")
        with pytest.raises(CostExceedsLimit, match="at most 50"):
            await waiting

    fake_clock.run(main())
    assert fake_clock.elapsed_seconds == pytest.approx(0.1)


def test_a_faster_limit_lets_the_line_go_earlier(fake_clock: FakeClock) -> None:
    limiter = Limiter("requests=1/min:burst=1:start=empty", store=MemoryStore(fake_clock))

    async def main() -> None:
        waiting = asyncio.create_task(limiter.acquire_async())
        await asyncio.sleep(1)
        limiter.set_limits("requests=60/min")
        (await waiting).settle()

    fake_clock.run(main())
    assert fake_clock.elapsed_seconds < 3


# Limits as text

AMOUNTS = st.one_of(st.integers(1, 10**12), st.sampled_from([1, 500, 1000, 40_000, 2_000_000, 10**9]))
OPTIONS = {
    "charge": st.sampled_from(["estimate", "usage"]),
    "when": st.sampled_from(["arrival", "completion"]),
    "refund": st.sampled_from([None, True, False]),
    "start": st.one_of(st.sampled_from(["auto", "empty", "full"]), st.integers(0, 10**6)),
    "max_transit_us": st.one_of(st.none(), st.integers(1, HOUR)),
    "name": st.sampled_from(["", "rpm", "requests/min", "one and two"]),
}


@st.composite
def any_limit(draw: st.DrawFn) -> Limit:
    facts: dict[str, Any] = {"meter": "requests", "amount": draw(AMOUNTS)}
    facts |= {name: draw(values) for name, values in OPTIONS.items()}
    facts["kind"] = kind = draw(
        st.sampled_from(["bucket", "sliding", "fixed", "anchored", "calendar", "unknown", "concurrency"])
    )
    if kind == "calendar":
        unit = facts["calendar"] = draw(st.sampled_from(["hour", "day", "month"]))
        facts["period_us"] = {"hour": HOUR, "day": 25 * HOUR, "month": 31 * DAY + HOUR}[unit]
        facts["zone"] = draw(st.sampled_from(["UTC", "Asia/Kolkata"]))
    elif kind == "concurrency":
        facts["meter"] = "concurrency"
    else:
        units = st.sampled_from([1000, SECOND, MINUTE, HOUR, DAY])
        facts["period_us"] = draw(
            st.one_of(st.builds(int.__mul__, st.integers(1, 20), units), st.integers(1000, 400 * DAY))
        )
    if kind == "bucket":
        facts["burst"] = draw(AMOUNTS)
    if kind == "fixed":
        facts["clock_error_us"] = draw(st.one_of(st.none(), st.integers(0, facts["period_us"] // 4)))
    return Limit(**facts)


@given(any_limit())
@settings(deadline=None)
def test_a_limit_reads_back_from_its_text(limit: Limit) -> None:
    assert parse_limit(limit_text(limit)) == limit


@pytest.mark.parametrize(
    "text",
    [
        "requests=500/min:burst=50",
        "tokens=40k/min:burst=4k:charge=usage",
        "requests=1500/10s:kind=sliding",
        "requests=1k/day:kind=calendar:zone=America/Los_Angeles",
        "requests=5/250ms:kind=fixed:error=1.500ms",
        "requests=2M/month",
        "tokens=1.2M/min",
        "concurrency=8",
        "images=3/min:start=used-2:transit=2s:name=pictures",
    ],
)
def test_the_text_of_a_limit_is_short(text: str) -> None:
    assert limit_text(parse_limit(text)) == text
