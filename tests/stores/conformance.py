"""What every store is held to. Each law takes a function that opens clients of one place, empty at first.

Histories compare a store with the core in memory; the laws of shared stores take several clients. To hold a
new store to them, add it to ``test_conformance.py``.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, cast

import pytest

from headgate.core import decide, together
from headgate.core.model import (
    ANSWERED,
    LOST,
    NEVER,
    SECOND,
    UNSENT,
    Costs,
    Decision,
    Granted,
    Now,
    Reading,
    Refused,
    Report,
    Signal,
    Throttle,
    Wait,
)
from headgate.core.plan import Plan
from headgate.core.text import parse_limits
from headgate.core.together import Line, Trade, Traded
from headgate.errors import ConfigurationError
from headgate.stores.base import Deal, Edit, Keyed, SharedStore, Store
from headgate.testing import FakeClock
from tests.waiting import InThread, wait_until

LEASE_US = 15 * SECOND
HISTORIES = 24
STEPS = 60

LIMITS = (
    ("requests=10/s:burst=5:start=full", "concurrency=3"),
    ("requests=20/s:kind=sliding:start=full", "tokens=1000/min:burst=200:charge=usage:start=full"),
    ("requests=30/s:kind=fixed", "requests=5000/day:kind=calendar:zone=Asia/Kolkata:name=daily"),
    ("requests=50/min",),
    ("concurrency=2",),
    ("tokens=500/s:kind=anchored:charge=usage:start=used-40", "requests=2/s", "concurrency=12"),
)
GAPS = (0.0, 0.0, 0.000_4, 0.03, 0.03, 0.2, 1.0, 4.0, 16.0, 100.0)
SIGNALS = (
    ANSWERED,
    ANSWERED,
    ANSWERED,
    LOST,
    UNSENT,
    Signal(usage={"tokens": 7}),
    Signal(usage={"tokens": 300}),
    Signal(charged={"requests": 1}, readings=(Reading("requests", 20, 3, 400_000),)),
    Signal(throttle=Throttle("requests", 700_000)),
    Signal(throttle=Throttle()),
)


class Open(Protocol):
    """Opens another client of the place; without a clock it goes by that of the machine."""

    def __call__(self, clock: Callable[[], Now] | None = None) -> Store: ...


def plan_of(*limits: str) -> Plan:
    return Plan(parse_limits(limits))


def shared(open_one: Open, clock: Callable[[], Now] | None = None) -> SharedStore:
    return cast(SharedStore, open_one(clock))


def line(plan: Plan, count: int = 1, *, kind: int = 1, waiting: int | None = None, **units: int) -> Line:
    asks = [plan.costs(units)] * count
    return Line(kind, count if waiting is None else waiting, asks)


def ask(store: SharedStore, plan: Plan, count: int = 1, *, key: str = "k", **units: int) -> list[Decision]:
    """What it wants in one class."""
    [answers] = store.acquire_for(key, plan, [line(plan, count, **units)])
    return answers


def granted(store: SharedStore, plan: Plan, count: int = 1, *, key: str = "k", **units: int) -> list[Granted]:
    answers = ask(store, plan, count, key=key, **units)
    assert all(type(answer) is Granted for answer in answers), answers
    return cast(list[Granted], answers)


def reports(*grants: Granted) -> list[Report]:
    return [Report(grant, ANSWERED) for grant in grants]


class History:
    """What happens in a row, at random but always the same for a seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.plan = plan_of(*LIMITS[seed % len(LIMITS)])
        self.clock = FakeClock()
        self.largest = [rule.largest for rule in self.plan.rules]

    def instants(self) -> Iterator[None]:
        for _ in range(STEPS):
            self.clock.advance(self.chance.choice(GAPS))
            if self.chance.random() < 0.03:
                self.clock.jump_wall(self.chance.choice((-90_000.0, -3.0, 0.4, 3.0, 90_000.0)))
            yield

    def costs(self, *, most: int = 10**6) -> Costs:
        tokens = min(self.chance.choice((0, 1, 20, 60, 10**6)), most)
        return self.plan.costs({"tokens": tokens} if "tokens" in self.plan.meters else {})

    def take_some(self, flying: list[Granted]) -> list[Report]:
        """Take out some calls that have ended, in any order."""
        self.chance.shuffle(flying)
        count = self.chance.randrange(len(flying) + 1)
        ended, flying[:count] = flying[:count], []
        return [Report(grant, self.chance.choice(SIGNALS)) for grant in ended]


# Any store


def answers_as_the_core_does(open_one: Open) -> None:
    for seed in range(HISTORIES):
        history = History(seed)
        store, plan, clock, key = open_one(history.clock), history.plan, history.clock, f"history {seed}"
        state = decide.fresh(plan, clock())
        flying: list[Granted] = []
        assert store.used(key, plan) == decide.used(plan, state, clock())
        for _ in history.instants():
            match history.chance.randrange(3):
                case 0:
                    asks = [history.costs() for _ in range(history.chance.choice((1, 2, 9)))]
                    answers = store.acquire(key, plan, asks)
                    assert answers == decide.acquire(plan, asks, state, clock())
                    flying += [answer for answer in answers if type(answer) is Granted]
                case 1:
                    ended = history.take_some(flying)
                    store.settle(key, plan, ended)
                    decide.settle(plan, ended, state, clock())
                case _:
                    assert store.used(key, plan) == decide.used(plan, state, clock())


def classes_are_answered_as_the_core_does(open_one: Open) -> None:
    for seed in range(HISTORIES):
        history = History(seed)
        plan, clock, key = history.plan, history.clock, f"classes {seed}"
        store = shared(open_one, clock)
        client = store.client if store.shared else ""
        state = decide.fresh(plan, clock())
        store.used(key, plan)
        flying: list[Granted] = []
        for _ in history.instants():
            lines = [some_line(history, kind) for kind in range(3) if history.chance.random() < 0.5]
            answers = store.acquire_for(key, plan, lines)
            assert answers == together.acquire(plan, client, lines, state, clock(), LEASE_US)
            flying += [one for given in answers for one in given if type(one) is Granted]
            ended = history.take_some(flying)
            who = together.settle(plan, client, 0, ended, state, clock(), LEASE_US)
            assert store.settle_for(key, plan, ended) == (who is not None)


def clients_see_what_each_other_did(open_one: Open) -> None:
    for seed in range(HISTORIES):
        history = History(seed)
        plan, clock, key = history.plan, history.clock, f"several {seed}"
        stores = [open_one(clock) for _ in range(3)]
        state = decide.fresh(plan, clock())
        stores[0].used(key, plan)
        flying: list[Granted] = []
        for _ in history.instants():
            asks = [history.costs()]
            answers = history.chance.choice(stores).acquire(key, plan, asks)
            assert answers == decide.acquire(plan, asks, state, clock())
            flying += [answer for answer in answers if type(answer) is Granted]
            ended = history.take_some(flying)
            history.chance.choice(stores).settle(key, plan, ended)
            decide.settle(plan, ended, state, clock())


def a_batch_is_answered_in_its_order(open_one: Open) -> None:
    store, plan = open_one(FakeClock()), plan_of("tokens=10/s:burst=10:start=full")
    answers = store.acquire("k", plan, [(4,), (11,), (4,), (4,), (1,), (11,)])
    assert [type(answer) for answer in answers] == [Granted, Refused, Granted, Wait, Wait, Refused]
    assert answers[3] == answers[4], "nobody overtakes the first that waits"
    assert store.used("k", plan) == (8,)


def all_limits_are_charged_or_none(open_one: Open) -> None:
    store = open_one(FakeClock())
    plan = plan_of("requests=10/s:burst=10:start=full", "tokens=10/s:burst=10:start=full")
    [one, other] = store.acquire("k", plan, [(1, 8), (1, 8)])
    assert (type(one), type(other)) == (Granted, Wait)
    assert store.used("k", plan) == (1, 8)


def keys_are_separate(open_one: Open) -> None:
    store, plan = open_one(FakeClock()), plan_of("concurrency=1")
    keys = ["one", "One", "one ", "", "a\x00b", "a", "ключ", "🔑", "x" * 500, "%s {}*'\"\n"]
    for key in keys:
        [answer] = store.acquire(key, plan, [(1,)])
        assert type(answer) is Granted, key
    for key in keys:
        [answer] = store.acquire(key, plan, [(1,)])
        assert type(answer) is Wait, key


def equal_limits_are_the_same(open_one: Open) -> None:
    store = open_one(FakeClock())
    store.acquire("k", plan_of("concurrency=2"), [(1,)])
    assert store.used("k", plan_of("concurrency=2")) == (1,)


def changed_limits_keep_what_is_the_same(open_one: Open) -> None:
    store = open_one(FakeClock())
    store.acquire("k", plan_of("concurrency=2", "tokens=10/s:burst=10:start=full"), [(1, 4)])
    changed = plan_of("tokens=10/s:burst=10:start=full", "requests=5/s:burst=5:start=full", "concurrency=2")
    assert store.used("k", changed) == (4, 0, 1)


def threads_share_it(open_one: Open) -> None:
    store, plan = open_one(), plan_of("concurrency=1000")

    def work() -> None:
        for _ in range(50):
            [answer] = store.acquire("k", plan, [(1,)])
            assert type(answer) is Granted
            store.settle("k", plan, [Report(answer, ANSWERED)])

    for thread in [InThread(work) for _ in range(4)]:
        thread.result()
    assert store.used("k", plan) == (0,)


def its_clock_runs_forward_and_knows_the_date(open_one: Open) -> None:
    store = open_one()
    before, now = store.now(), store.now()
    assert now.elapsed_us >= before.elapsed_us
    assert now.wall_us > 1_700_000_000 * SECOND


# What operators do


def keys_are_listed_in_order(open_one: Open) -> None:
    store, plan = open_one(FakeClock()), plan_of("concurrency=1")
    before = store.keys()
    names = ["b", "a", "B", "", "a b", "ключ", "a\x00", "🔑"]
    for name in names:
        store.used(name, plan)
    assert store.keys() == sorted({*before, *names})


def a_look_shows_what_is_kept_and_changes_nothing(open_one: Open) -> None:
    for seed in range(len(LIMITS)):
        history = History(seed)
        store, plan, clock, key = open_one(history.clock), history.plan, history.clock, f"looked at {seed}"
        assert store.look(key) is None
        flying: list[Granted] = []
        for _ in history.instants():
            flying += [one for one in store.acquire(key, plan, [history.costs()]) if type(one) is Granted]
            store.settle(key, plan, history.take_some(flying))
            found = store.look(key)
            assert found is not None
            keyed, now = found
            assert now == clock()
            assert (keyed.plan.limits, keyed.declared) == (plan.limits, None)
            assert keyed.state.dump() == looked_at(store, key).state.dump()
            assert decide.used(keyed.plan, keyed.state, now) == store.used(key, plan)
            decide.acquire(keyed.plan, [history.costs()] * 5, keyed.state, now)
            keyed.state.parts.clear()
    assert store.keys() == sorted(store.keys())


def looked_at(store: Store, key: str) -> Keyed:
    found = store.look(key)
    assert found is not None
    return found[0]


def paused(keyed: Keyed, now: Now) -> Keyed:
    decide.pause(keyed.state, NEVER)
    return keyed


def resumed(keyed: Keyed, now: Now) -> Keyed:
    decide.unpause(keyed.state)
    return keyed


def set_to(*limits: str) -> Edit:
    """As an operator puts other limits in the place of those that programs declare."""

    def change(keyed: Keyed, now: Now) -> Keyed:
        plan = plan_of(*limits)
        return Keyed(plan, decide.retune(keyed.plan, plan, keyed.state, now), keyed.declared or keyed.plan)

    return change


def as_declared(keyed: Keyed, now: Now) -> Keyed:
    if keyed.declared is None:
        return keyed
    return Keyed(keyed.declared, decide.retune(keyed.plan, keyed.declared, keyed.state, now))


def an_edit_is_seen_by_the_next_question(open_one: Open) -> None:
    store, other = open_one(CLOCK), open_one(CLOCK)
    plan = plan_of("requests=9/s:burst=9:start=full")
    store.acquire("k", plan, [(1,)])
    assert other.edit("k", paused)
    assert store.acquire("k", plan, [(1,)]) == [Wait(NEVER, -1)]
    assert looked_at(store, "k").state.paused == NEVER
    assert other.edit("k", resumed)
    [answer] = store.acquire("k", plan, [(1,)])
    assert type(answer) is Granted
    assert other.used("k", plan) == (2,)


def what_is_not_kept_is_not_edited(open_one: Open) -> None:
    store, plan = open_one(FakeClock()), plan_of("concurrency=1")
    store.used("another", plan)
    assert not store.edit("k", never)
    assert "k" not in list(store.keys())


def never(keyed: Keyed, now: Now) -> Keyed:
    raise AssertionError("there is nothing to change")


def a_key_can_be_forgotten(open_one: Open) -> None:
    store, other, plan = open_one(CLOCK), open_one(CLOCK), plan_of("tokens=9/s:burst=9:start=full")
    store.acquire("forgotten", plan, [(4,)])
    assert other.edit("forgotten", lambda keyed, now: None)
    assert "forgotten" not in list(store.keys())
    assert store.look("forgotten") is None
    assert store.used("forgotten", plan) == (0,)


def an_edit_that_fails_changes_nothing(open_one: Open) -> None:
    store, plan = open_one(FakeClock()), plan_of("tokens=9/s:burst=9:start=full")
    store.acquire("k", plan, [(4,)])
    before = looked_at(store, "k").state.dump()

    def fail(keyed: Keyed, now: Now) -> Keyed:
        decide.pause(keyed.state, NEVER)
        keyed.state.parts[0][0] = 0
        raise LookupError("in the middle")

    with pytest.raises(LookupError, match="in the middle"):
        store.edit("k", fail)
    assert looked_at(store, "k").state.dump() == before
    assert store.used("k", plan) == (4,)


def limits_that_were_set_are_in_force_for_whoever_declares_others(open_one: Open) -> None:
    store, other = open_one(CLOCK), open_one(CLOCK)
    declared = plan_of("tokens=9/s:burst=9:start=full", "concurrency=3")
    store.acquire("k", declared, [(2, 1)])
    assert other.edit("k", set_to("tokens=9/s:burst=5:start=full", "concurrency=2"))
    for each in (store, other):
        assert each.used("k", declared) == (2, 1)
        keyed = looked_at(each, "k")
        assert keyed.plan.limits == plan_of("tokens=9/s:burst=5:start=full", "concurrency=2").limits
        assert keyed.declared is not None
        assert keyed.declared.limits == declared.limits
        [large] = each.acquire("k", declared, [(6, 0)])
        assert large == Refused(0, 5)
    [one, two] = store.acquire("k", declared, [(0, 1), (0, 1)])
    assert (type(one), type(two)) == (Granted, Wait)
    assert other.edit("k", as_declared)
    assert looked_at(store, "k").declared is None
    [answer] = store.acquire("k", declared, [(0, 1)])
    assert type(answer) is Granted


CLOCK = FakeClock()
"""For laws in which no time passes."""


ANY: tuple[Callable[[Open], None], ...] = (
    answers_as_the_core_does,
    classes_are_answered_as_the_core_does,
    clients_see_what_each_other_did,
    a_batch_is_answered_in_its_order,
    all_limits_are_charged_or_none,
    keys_are_separate,
    equal_limits_are_the_same,
    changed_limits_keep_what_is_the_same,
    threads_share_it,
    its_clock_runs_forward_and_knows_the_date,
    keys_are_listed_in_order,
    a_look_shows_what_is_kept_and_changes_nothing,
    an_edit_is_seen_by_the_next_question,
    what_is_not_kept_is_not_edited,
    a_key_can_be_forgotten,
    an_edit_that_fails_changes_nothing,
    limits_that_were_set_are_in_force_for_whoever_declares_others,
)


# Shared stores


def says_that_it_is_shared(open_one: Open) -> None:
    store, other = shared(open_one), shared(open_one)
    assert store.shared
    assert store.batch > 1
    assert store.client == store.client != other.client


def clients_in_turn_are_answered_as_the_core_does(open_one: Open) -> None:
    for seed in range(HISTORIES):
        history = History(seed)
        plan, clock, chance = history.plan, history.clock, history.chance
        key = f"in turn {seed}"
        stores = [shared(open_one, clock) for _ in range(3)]
        state = decide.fresh(plan, clock())
        assert stores[0].used(key, plan) == decide.used(plan, state, clock())
        flying: dict[str, list[Granted]] = {store.client: [] for store in stores}
        for _ in history.instants():
            store = chance.choice(stores)
            client = store.client
            match chance.choice(("ask", "ask", "ask", "settle", "settle", "beat", "leave")):
                case "ask":
                    lines = [
                        some_line(history, kind) for kind in chance.sample(range(3), chance.randrange(1, 4))
                    ]
                    answers = store.acquire_for(key, plan, lines)
                    assert answers == together.acquire(plan, client, lines, state, clock(), LEASE_US)
                    flying[client] += [one for given in answers for one in given if type(one) is Granted]
                case "settle":
                    ended = history.take_some(flying[client])
                    who = together.settle(plan, client, 0, ended, state, clock(), LEASE_US)
                    assert store.settle_for(key, plan, ended) == (who == client)
                case "beat":
                    store.beat(key, plan)
                    together.beat(plan, client, state, clock(), LEASE_US)
                case "leave":
                    store.leave(key, plan)
                    together.leave(plan, client, state, clock())
        assert stores[0].used(key, plan) == decide.used(plan, state, clock())


def some_line(history: History, kind: int) -> Line:
    more = history.chance.choice((0, 0, 40))
    asks = [history.costs(most=200 if more else 10**6) for _ in range(history.chance.choice((0, 1, 1, 3)))]
    return Line(kind, len(asks) + more * bool(asks), asks)


def slots_of_the_gone_come_back_after_their_lease_and_not_before(open_one: Open) -> None:
    clock, plan = FakeClock(), plan_of("concurrency=2")
    gone, here = shared(open_one, clock), shared(open_one, clock)
    late = granted(gone, plan, 2)
    for seconds in (1.0, 13.0, 0.999):
        clock.advance(seconds)
        [answer] = ask(here, plan)
        assert type(answer) is Wait
    clock.advance(0.001)
    granted(here, plan)
    gone.settle_for("k", plan, reports(*late))  # it comes back: nobody else's slot is given away
    assert here.used("k", plan) == (1,)


def a_heartbeat_keeps_what_is_held(open_one: Open) -> None:
    clock, plan = FakeClock(), plan_of("concurrency=1")
    slow, here = shared(open_one, clock), shared(open_one, clock)
    granted(slow, plan)
    for _ in range(10):
        clock.advance(10)
        slow.beat("k", plan)
        [answer] = ask(here, plan)
        assert type(answer) is Wait


def who_leaves_in_order_leaves_nothing_behind(open_one: Open) -> None:
    clock, plan = FakeClock(), plan_of("concurrency=1")
    one, other = shared(open_one, clock), shared(open_one, clock)
    granted(one, plan)
    one.leave("k", plan)
    granted(other, plan)


def a_settlement_is_booked_once(open_one: Open) -> None:
    clock, plan = FakeClock(), plan_of("tokens=10/s:burst=100:charge=usage:start=full", "concurrency=9")
    store, other = shared(open_one, clock), shared(open_one, clock)
    one, two = granted(store, plan, 2, tokens=30)
    granted(other, plan, tokens=30)
    store.settle_for("k", plan, [Report(one, Signal(usage={"tokens": 5}))])
    assert other.used("k", plan) == (65, 2)
    store.settle_for("k", plan, [Report(two, UNSENT)])
    assert other.used("k", plan) == (35, 1)


def an_empty_settlement_and_an_empty_ask_are_nothing(open_one: Open) -> None:
    store, plan = shared(open_one, FakeClock()), plan_of("concurrency=1")
    assert store.acquire_for("k", plan, []) == []
    assert store.acquire_for("k", plan, [Line(1, 0, [])]) == [[]]
    store.settle_for("k", plan, [])
    assert store.used("k", plan) == (0,)


def other_limits_are_refused_while_somebody_goes_by_the_first(open_one: Open) -> None:
    clock, plan, changed = FakeClock(), plan_of("concurrency=2"), plan_of("concurrency=3")
    here, other = shared(open_one, clock), shared(open_one, clock)
    granted(here, plan)
    with pytest.raises(ConfigurationError, match=r"(?s)'k'.*2.*3"):
        other.acquire_for("k", changed, [line(changed)])
    with pytest.raises(ConfigurationError):
        other.used("k", changed)
    assert here.used("k", plan) == (1,), "nothing has changed by that"
    granted(other, changed, key="another")
    here.leave("k", plan)
    granted(other, changed, 3)


def other_limits_are_taken_once_the_lease_of_the_gone_is_over(open_one: Open) -> None:
    clock = FakeClock()
    plan, changed = plan_of("concurrency=2"), plan_of("concurrency=2", "requests=10/s:burst=10:start=full")
    gone, other = shared(open_one, clock), shared(open_one, clock)
    granted(gone, plan, 2)
    clock.advance(15)
    granted(other, changed, 2)
    assert other.used("k", changed) == (2, 2)


def whoever_may_go_is_woken_by_a_settlement(open_one: Open) -> None:
    plan = plan_of("concurrency=1")
    holder, waiter = shared(open_one), shared(open_one)
    [grant] = granted(holder, plan)
    for _ in range(3):
        [answer] = ask(waiter, plan)
        assert type(answer) is Wait
        woken = threading.Event()
        stop = waiter.listen("k", woken.set)
        holder.settle_for("k", plan, reports(grant))
        wait_until(woken.is_set)
        stop()
        stop()
        waiter.settle_for("k", plan, reports(*granted(waiter, plan)))
        [grant] = granted(holder, plan)


def a_hint_that_came_before_one_listened_is_not_missed(open_one: Open) -> None:
    plan = plan_of("concurrency=1")
    holder, waiter = shared(open_one), shared(open_one)
    grants = {key: granted(holder, plan, key=key) for key in ("first", "second")}
    for key in grants:
        [answer] = ask(waiter, plan, key=key)
        assert type(answer) is Wait
    woken = threading.Event(), threading.Event()
    stops = [waiter.listen("second", woken[1].set)]
    for key, held in grants.items():
        holder.settle_for(key, plan, reports(*held))
    wait_until(woken[1].is_set)  # so it has heard of all that the holder did
    stops.append(waiter.listen("first", woken[0].set))
    wait_until(woken[0].is_set)
    for stop in stops:
        stop()


def whoever_waits_is_woken_when_somebody_leaves(open_one: Open) -> None:
    plan = plan_of("concurrency=1")
    holder, waiter = shared(open_one), shared(open_one)
    granted(holder, plan)
    [answer] = ask(waiter, plan)
    assert type(answer) is Wait
    woken = threading.Event()
    stop = waiter.listen("k", woken.set)
    holder.leave("k", plan)
    wait_until(woken.is_set)
    stop()


def a_settlement_says_whether_it_lets_go_ones_own(open_one: Open) -> None:
    clock, plan = FakeClock(), plan_of("concurrency=1")
    one, other = shared(open_one, clock), shared(open_one, clock)
    [grant] = granted(one, plan)
    assert one.settle_for("k", plan, reports(grant)) is False, "nobody waits"
    [grant] = granted(one, plan)
    ask(one, plan)
    assert one.settle_for("k", plan, reports(grant)) is True
    [grant] = granted(one, plan)
    ask(other, plan)
    assert one.settle_for("k", plan, reports(grant)) is False


def threads_in_turn_share_it(open_one: Open) -> None:
    stores, plan = [shared(open_one), shared(open_one)], plan_of("concurrency=1000")

    def work(store: SharedStore) -> None:
        for _ in range(25):
            store.settle_for("k", plan, reports(*granted(store, plan, 2)))

    for thread in [InThread(partial(work, store)) for store in stores * 2]:
        thread.result()
    assert stores[0].used("k", plan) == (0,)


# Trades


def made(store: SharedStore, plan: Plan, trade: Trade, *, key: str = "k") -> Traded:
    """One trade, which has to go well."""
    [result] = store.trade([Deal(key, plan, trade)])
    assert isinstance(result, Traded), result
    return result


def granted_in(traded: Traded) -> list[Granted]:
    return [one for given in traded.answers for one in given if type(one) is Granted]


def trades_are_made_as_the_core_does(open_one: Open) -> None:
    for seed in range(HISTORIES):
        history = History(seed)
        plan, clock, chance, key = history.plan, history.clock, history.chance, f"traded {seed}"
        stores = [shared(open_one, clock) for _ in range(3)]
        state = decide.fresh(plan, clock())
        stores[0].used(key, plan)
        flying: dict[str, list[Granted]] = {store.client: [] for store in stores}
        last: dict[str, Trade] = {}
        sequence = 0
        for _ in history.instants():
            store = chance.choice(stores)
            client = store.client
            if client in last and chance.random() < 0.15:  # its answer did not arrive
                trade = replace(last[client], lines=())
            else:
                sequence += 1
                ended = history.take_some(flying[client])
                lines = [some_line(history, kind) for kind in chance.sample(range(3), chance.randrange(3))]
                trade = Trade(sequence if ended else 0, ended, held_by(plan, flying[client]), lines)
                if chance.random() < 0.1:
                    trade = replace(trade, holding=None)
            last[client] = trade
            traded = made(store, plan, trade, key=key)
            assert traded == together.trade(plan, client, trade, state, clock(), LEASE_US)
            flying[client] += granted_in(traded)
            assert traded.used == stores[0].used(key, plan) == decide.used(plan, state, clock())


def held_by(plan: Plan, flying: Sequence[Granted]) -> list[int]:
    return [len(flying), *(sum(grant.costs[index] for grant in flying) for index in plan.indexes)]


def a_trade_settles_then_counts_then_asks(open_one: Open) -> None:
    clock, plan = FakeClock(), plan_of("concurrency=2")
    store, other = shared(open_one, clock), shared(open_one, clock)
    one, two = granted(store, plan, 2)
    # One has ended, the other was never told of: both slots are free for what it asks for now.
    traded = made(store, plan, Trade(1, reports(one), (0, 0), [line(plan, 3)]))
    assert [type(answer) for answer in traded.answers[0]] == [Granted, Granted, Wait]
    assert traded.used == (2,)
    # It says that it holds two, and then what it still holds of them.
    traded = made(store, plan, Trade(2, reports(*granted_in(traded)[:1]), (1, 1)))
    assert traded.used == other.used("k", plan) == (1,)
    assert two.epoch == traded.epoch


def a_numbered_settlement_is_booked_once(open_one: Open) -> None:
    clock, plan = FakeClock(), plan_of("tokens=1/s:burst=100:charge=usage:start=full", "concurrency=9")
    store = shared(open_one, clock)
    one, two, three = granted(store, plan, 3, tokens=10)
    cheap = [Report(one, Signal(usage={"tokens": 1}))]
    for _ in range(3):
        assert made(store, plan, Trade(1, cheap)).used == (21, 2)
    dear = [Report(two, Signal(usage={"tokens": 30}))]
    for _ in range(3):
        assert made(store, plan, Trade(5, dear, (1, 10, 1))).used == (41, 1)
    assert made(store, plan, Trade(4, reports(three))).used == (41, 1), "an old one comes late"
    assert made(store, plan, Trade(6, reports(three))).used == (41, 0)


def what_is_held_is_set_right(open_one: Open) -> None:
    clock, plan = FakeClock(), plan_of("concurrency=9", "tokens=1/s:burst=100:charge=usage:start=full")
    store, other = shared(open_one, clock), shared(open_one, clock)
    granted(other, plan, tokens=10)
    granted(store, plan, 2, tokens=20)
    assert made(store, plan, Trade(holding=(2, 2, 40))).used == (3, 50)
    assert made(store, plan, Trade(holding=(4, 4, 70))).used == (5, 80), "more than is known"
    for _ in range(2):
        assert made(store, plan, Trade(holding=(1, 1, 20))).used[0] == 2, "less"
    assert made(store, plan, Trade(holding=(0, 0, 0))).used[0] == 1
    store.leave("k", plan)
    assert other.used("k", plan)[0] == 1


def a_trade_that_cannot_be_made_is_told_in_its_place(open_one: Open) -> None:
    clock, plan, changed = FakeClock(), plan_of("concurrency=2"), plan_of("concurrency=3")
    here, other = shared(open_one, clock), shared(open_one, clock)
    granted(here, plan, key="theirs")
    deals = [
        Deal("mine", changed, Trade(lines=[line(changed)])),
        Deal("theirs", changed, Trade(lines=[line(changed)])),
        Deal("another", changed, Trade(lines=[line(changed)])),
    ]
    one, refused, two = other.trade(deals)
    assert isinstance(one, Traded)
    assert isinstance(two, Traded)
    assert isinstance(refused, ConfigurationError)
    assert len(granted_in(one)) == len(granted_in(two)) == 1
    assert here.used("theirs", plan) == (1,)


def no_trade_is_nothing(open_one: Open) -> None:
    store, plan = shared(open_one, FakeClock()), plan_of("concurrency=2")
    assert list(store.trade([])) == []
    traded = made(store, plan, Trade())
    assert (list(traded.answers), traded.next, traded.used) == ([], None, (0,))


def a_trade_says_who_may_go_now(open_one: Open) -> None:
    clock, plan = FakeClock(), plan_of("concurrency=1")
    one, other = shared(open_one, clock), shared(open_one, clock)
    [grant] = granted(one, plan)
    assert made(other, plan, Trade(lines=[line(plan)])).next is None
    traded = made(one, plan, Trade(1, reports(grant)))
    assert traded.next == other.client
    traded = made(other, plan, Trade(lines=[line(plan)]))
    assert len(granted_in(traded)) == 1
    assert traded.next is None


def every_life_of_a_client_has_a_number_of_its_own(open_one: Open) -> None:
    clock, plan = FakeClock(), plan_of("concurrency=3")
    store, other = shared(open_one, clock), shared(open_one, clock)
    epochs = [made(other, plan, Trade()).epoch]
    for _ in range(3):
        traded = made(store, plan, Trade(lines=[line(plan)]))
        [grant] = granted_in(traded)
        assert grant.epoch == traded.epoch == made(store, plan, Trade()).epoch
        epochs.append(traded.epoch)
        store.leave("k", plan)
        clock.advance(0.001)
    store.edit("k", lambda keyed, now: None)
    epochs += [made(one, plan, Trade()).epoch for one in (store, other)]
    assert len(set(epochs)) == len(epochs)


def an_earlier_life_frees_nothing_twice(open_one: Open) -> None:
    clock, plan = FakeClock(), plan_of("concurrency=3")
    store, other = shared(open_one, clock), shared(open_one, clock)
    one, two = granted(store, plan, 2)
    clock.advance(15)
    granted(other, plan, 1)
    assert other.used("k", plan) == (1,), "its lease is over"
    # It comes back with one call that it says to hold, and one that has ended meanwhile.
    assert made(store, plan, Trade(1, reports(one), (1, 1))).used == (2,)
    assert made(store, plan, Trade(2, reports(two), (0, 0))).used == (1,)
    assert made(store, plan, Trade(2, reports(two), (0, 0))).used == (1,)


def an_edit_lets_all_who_wait_look_again(open_one: Open) -> None:
    plan = plan_of("concurrency=1")
    holder, waiter, operator = shared(open_one), shared(open_one), shared(open_one)
    granted(holder, plan)
    ask(waiter, plan)
    woken = threading.Event()
    stop = waiter.listen("k", woken.set)
    assert operator.edit("k", set_to("concurrency=2"))
    wait_until(woken.is_set)
    stop()
    granted(waiter, plan)


def limits_may_be_set_while_calls_are_on_their_way(open_one: Open) -> None:
    clock = FakeClock()
    declared = plan_of("tokens=1/s:burst=100:charge=usage:start=full", "concurrency=4")
    one, other, operator = (shared(open_one, clock) for _ in range(3))
    first, second = granted(one, declared, 2, tokens=10)
    [third] = granted(other, declared, tokens=10)
    assert operator.edit("k", set_to("tokens=1/s:burst=50:charge=usage:start=full", "concurrency=2"))
    for store in (one, other):
        assert store.used("k", declared)[1] == 3
        assert type(ask(store, declared, tokens=1)[0]) is Wait
    report = [Report(first, Signal(usage={"tokens": 30}))]
    for _ in range(2):
        assert made(one, declared, Trade(1, report, (1, 10, 1))).used[1] == 2
    assert type(ask(other, declared, tokens=1)[0]) is Wait
    assert made(other, declared, Trade(1, reports(third), (0, 0, 0))).used[1] == 1
    assert made(one, declared, Trade(2, reports(second), (0, 0, 0))).used[1] == 0
    [one_more, none_more] = ask(other, declared, 2)[:2], ask(other, declared)
    assert [type(answer) for answer in (*one_more, *none_more)] == [Granted, Granted, Wait]
    keyed = looked_at(operator, "k")
    assert keyed.declared is not None
    assert keyed.declared.limits == declared.limits


def limits_that_were_set_do_not_bind_whoever_counts_otherwise(open_one: Open) -> None:
    clock, declared = FakeClock(), plan_of("concurrency=2")
    store, other = shared(open_one, clock), shared(open_one, clock)
    store.used("k", declared)
    store.edit("k", set_to("concurrency=1"))
    granted(store, declared)
    another = plan_of("concurrency=5:name=slots")
    with pytest.raises(ConfigurationError):
        other.acquire_for("k", another, [line(another)])
    store.leave("k", declared)
    granted(other, another, 5)


def one_that_can_be_used_says_so(open_one: Open) -> None:
    store = shared(open_one)
    store.ping()
    assert "k" not in list(store.keys())
    store.ping()


SHARED: tuple[Callable[[Open], None], ...] = (
    says_that_it_is_shared,
    clients_in_turn_are_answered_as_the_core_does,
    slots_of_the_gone_come_back_after_their_lease_and_not_before,
    a_heartbeat_keeps_what_is_held,
    who_leaves_in_order_leaves_nothing_behind,
    a_settlement_is_booked_once,
    an_empty_settlement_and_an_empty_ask_are_nothing,
    other_limits_are_refused_while_somebody_goes_by_the_first,
    other_limits_are_taken_once_the_lease_of_the_gone_is_over,
    whoever_may_go_is_woken_by_a_settlement,
    a_hint_that_came_before_one_listened_is_not_missed,
    whoever_waits_is_woken_when_somebody_leaves,
    a_settlement_says_whether_it_lets_go_ones_own,
    threads_in_turn_share_it,
    trades_are_made_as_the_core_does,
    a_trade_settles_then_counts_then_asks,
    a_numbered_settlement_is_booked_once,
    what_is_held_is_set_right,
    a_trade_that_cannot_be_made_is_told_in_its_place,
    no_trade_is_nothing,
    a_trade_says_who_may_go_now,
    every_life_of_a_client_has_a_number_of_its_own,
    an_earlier_life_frees_nothing_twice,
    an_edit_lets_all_who_wait_look_again,
    limits_may_be_set_while_calls_are_on_their_way,
    limits_that_were_set_do_not_bind_whoever_counts_otherwise,
    one_that_can_be_used_says_so,
)


def name_of(law: Any) -> str:
    return str(law.__name__)
