"""Several clients on one key: shares, turns, leases, settlements that come twice or late."""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Mapping
from typing import Any

import pytest

from headgate.core import decide, together
from headgate.core.model import ANSWERED, NEVER, SECOND, UNSENT, Costs, Granted, Now, Report, Signal, Wait
from headgate.core.plan import Plan
from headgate.core.text import parse_limits

START = Now(1_000 * SECOND, 1_767_225_600 * SECOND)
LEASE = 15 * SECOND


def at(seconds: float) -> Now:
    passed = round(seconds * SECOND)
    return Now(START.elapsed_us + passed, START.wall_us + passed)


class World:
    """Clients in virtual time that come when they are told to, a little late, and take a while for a call."""

    def __init__(self, *limits: str, seed: int = 1, batch: int = 50) -> None:
        self.plan = Plan(parse_limits(limits))
        self.state = decide.fresh(self.plan, START)
        self.chance = random.Random(seed)
        self.batch = batch
        self.served: dict[str, list[float]] = {}
        self._events: list[tuple[int, int, str, str, Any]] = []
        self._count = 0
        self._alarms: dict[str, int] = {}
        self._sequence: dict[str, int] = {}

    def _at(self, elapsed_us: int, what: str, client: str, grant: Any = None) -> None:
        self._count += 1
        heapq.heappush(self._events, (elapsed_us, self._count, what, client, grant))

    def run(
        self,
        demand: Mapping[str, int],
        seconds: float,
        *,
        kinds: Mapping[str, int] | None = None,
        dies: Mapping[str, float] | None = None,
    ) -> None:
        left = dict(demand)
        self.served = {client: [] for client in demand}
        for client in demand:
            self._at(START.elapsed_us, "ask", client)
        while self._events:
            instant, _, what, client, grant = heapq.heappop(self._events)
            passed = (instant - START.elapsed_us) / SECOND
            if passed > seconds:
                return
            if passed >= (dies or {}).get(client, seconds + 1):
                continue
            now = Now(instant, START.wall_us + instant - START.elapsed_us)
            if what == "ask":
                self._ask(client, left, now, (kinds or {}).get(client, 1))
            else:
                self._sequence[client] = self._sequence.get(client, 0) + 1
                reports = [Report(grant, ANSWERED)]
                wake = together.settle(
                    self.plan, client, self._sequence[client], reports, self.state, now, LEASE
                )
                if wake is not None:
                    self._alarms[wake] = 0
                    self._at(instant + 300, "ask", wake)

    def _ask(self, client: str, left: dict[str, int], now: Now, kind: int) -> None:
        if self._alarms.get(client, 0) > now.elapsed_us or not left[client]:
            return
        asks = [self.plan.costs({})] * min(left[client], self.batch)
        line = together.Line(kind, left[client], asks)
        [answers] = together.acquire(self.plan, client, [line], self.state, now, LEASE)
        for answer in answers:
            if type(answer) is Granted:
                left[client] -= 1
                self.served[client].append((now.elapsed_us - START.elapsed_us) / SECOND)
                self._at(now.elapsed_us + self.chance.randrange(25_000, 50_000), "done", client, answer)
        last = answers[-1]
        if type(last) is Wait:
            until = min(last.until_us, now.elapsed_us + together.LOOK_US)
            due = max(until, now.elapsed_us + 100) + self.chance.randrange(2_000)
            self._alarms[client] = due
            self._at(due, "ask", client)
        elif left[client]:
            self._at(now.elapsed_us + 1, "ask", client)

    def shares(self, second: int) -> dict[str, float]:
        counts = {
            client: sum(second <= instant < second + 1 for instant in instants)
            for client, instants in self.served.items()
        }
        return {client: count / sum(counts.values()) for client, count in counts.items()}

    @property
    def total(self) -> int:
        return sum(map(len, self.served.values()))


UNEQUAL = {"a": 6_000, "b": 2_500, "c": 1_500}


@pytest.mark.parametrize(
    ("limit", "rate"),
    [
        ("requests=1000/s:burst=100:start=full", 1000),
        ("requests=300/s:burst=10:start=full", 300),
        ("requests=200/s:kind=sliding:start=full", 200),
        ("requests=200/s:kind=fixed:start=full", 200),
        ("concurrency=10", 260),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_clients_that_wait_share_equally_and_leave_nothing(limit: str, rate: int, seed: int) -> None:
    world = World(limit, seed=seed)
    world.run(UNEQUAL, 4)
    assert world.total >= 0.97 * 4 * rate
    for second in range(1, 4):
        for share in world.shares(second).values():
            assert abs(share - 1 / 3) <= 0.05


def test_who_wants_less_gets_all_of_it_and_the_others_share_the_rest() -> None:
    world = World("requests=1000/s:burst=100:start=full")
    world.run({"a": 3_600, "b": 1_500, "c": 900}, 6)
    assert world.total == 6_000
    assert world.shares(1)["c"] == pytest.approx(1 / 3, abs=0.05)
    assert world.shares(5) == {"a": 1.0, "b": 0.0, "c": 0.0}


def test_classes_have_their_shares_and_none_starves() -> None:
    world = World("requests=1000/s:burst=100:start=full")
    demand = dict.fromkeys("inb", 60_000)
    world.run(demand, 4, kinds={"i": 0, "n": 1, "b": 2})
    for second in range(1, 4):
        shares = world.shares(second)
        assert shares["i"] == pytest.approx(0.50, abs=0.03)
        assert shares["n"] == pytest.approx(0.35, abs=0.03)
        assert shares["b"] == pytest.approx(0.15, abs=0.03)


def test_a_class_without_work_leaves_its_share_to_the_others() -> None:
    world = World("requests=1000/s:burst=100:start=full")
    world.run(dict.fromkeys("nb", 60_000), 4, kinds={"n": 1, "b": 2})
    assert world.total >= 3_950
    assert world.shares(2)["n"] == pytest.approx(0.7, abs=0.05)


def test_interactive_calls_overtake_a_backlog() -> None:
    plan = Plan(parse_limits(["requests=100/s:burst=5:start=full"]))
    state = decide.fresh(plan, START)
    cost = plan.costs({})
    bulk = [together.Line(2, 1_000, [cost] * 50)]
    together.acquire(plan, "worker", bulk, state, START, LEASE)
    chat = [together.Line(0, 1, [cost])]
    [[answer]] = together.acquire(plan, "chat", chat, state, at(0.01), LEASE)
    assert type(answer) is Wait
    assert answer.until_us <= at(0.06).elapsed_us


def test_the_dead_are_not_waited_for() -> None:
    world = World("requests=1000/s:burst=100:start=full")
    world.run(dict.fromkeys("abc", 60_000), 4, dies={"a": 1.0})
    assert world.total >= 0.98 * 4_000
    assert world.shares(2)["b"] == pytest.approx(0.5, abs=0.05)


def asks(plan: Plan, count: int = 1, **units: int) -> list[together.Line]:
    costs: list[Costs] = [plan.costs(units)] * count
    return [together.Line(1, count, costs)]


def test_slots_of_a_client_that_is_gone_come_back_after_its_lease_and_not_before() -> None:
    plan = Plan(parse_limits(["concurrency=2"]))
    state = decide.fresh(plan, START)
    [granted] = together.acquire(plan, "gone", asks(plan, 2), state, START, LEASE)
    assert [type(answer) for answer in granted] == [Granted, Granted]
    for seconds in (1, 10, 14.999):
        [[answer]] = together.acquire(plan, "here", asks(plan), state, at(seconds), LEASE)
        assert type(answer) is Wait
    [[answer]] = together.acquire(plan, "here", asks(plan), state, at(15), LEASE)
    assert type(answer) is Granted
    # It comes back: its old slots are not given back a second time.
    late = [Report(grant, ANSWERED) for grant in granted if type(grant) is Granted]
    together.settle(plan, "gone", 1, late, state, at(16), LEASE)
    assert decide.used(plan, state, at(16)) == (1,)


def test_a_heartbeat_keeps_what_is_held() -> None:
    plan = Plan(parse_limits(["concurrency=1"]))
    state = decide.fresh(plan, START)
    together.acquire(plan, "slow", asks(plan), state, START, LEASE)
    for seconds in range(5, 60, 5):
        together.beat(plan, "slow", state, at(seconds), LEASE)
    [[answer]] = together.acquire(plan, "here", asks(plan), state, at(60), LEASE)
    assert type(answer) is Wait


def test_who_leaves_in_order_leaves_nothing_behind() -> None:
    plan = Plan(parse_limits(["concurrency=1"]))
    state = decide.fresh(plan, START)
    together.acquire(plan, "a", asks(plan), state, START, LEASE)
    together.leave(plan, "a", state, at(1))
    [[answer]] = together.acquire(plan, "b", asks(plan), state, at(1), LEASE)
    assert type(answer) is Granted


def test_a_settlement_that_comes_twice_is_booked_once() -> None:
    plan = Plan(parse_limits(["tokens=10/s:burst=100:charge=usage:start=full"]))
    state = decide.fresh(plan, START)
    [[grant]] = together.acquire(plan, "a", asks(plan, tokens=50), state, START, LEASE)
    assert type(grant) is Granted
    report = [Report(grant, Signal(usage={"tokens": 10}))]
    for _ in range(3):
        together.settle(plan, "a", 1, report, state, START, LEASE)
    assert decide.used(plan, state, START) == (10,)


def test_a_reservation_of_the_gone_is_charged_and_what_it_used_beyond_is_owed() -> None:
    plan = Plan(parse_limits(["tokens=1/s:burst=100:charge=usage:start=full"]))
    state = decide.fresh(plan, START)
    [[grant]] = together.acquire(plan, "gone", asks(plan, tokens=50), state, START, LEASE)
    together.acquire(plan, "here", asks(plan, tokens=1), state, at(16), LEASE)
    before = decide.used(plan, state, at(20))[0]
    assert before >= 45
    assert type(grant) is Granted
    together.settle(plan, "gone", 1, [Report(grant, Signal(usage={"tokens": 70}))], state, at(20), LEASE)
    assert decide.used(plan, state, at(20))[0] == before + 20


def test_whoever_may_go_now_is_named_to_be_woken() -> None:
    plan = Plan(parse_limits(["concurrency=1"]))
    state = decide.fresh(plan, START)
    [[grant]] = together.acquire(plan, "a", asks(plan), state, START, LEASE)
    together.acquire(plan, "b", asks(plan), state, at(0.1), LEASE)
    assert type(grant) is Granted
    assert together.settle(plan, "a", 1, [Report(grant, ANSWERED)], state, at(0.2), LEASE) == "b"


def test_state_survives_a_store() -> None:
    plan = Plan(parse_limits(["requests=10/s:burst=5:start=full", "concurrency=3"]))
    state = decide.fresh(plan, START)
    kept = decide.fresh(plan, START)
    chance = random.Random(7)
    for step in range(200):
        client = chance.choice("abc")
        now = at(step / 20)
        lines = asks(plan, chance.randrange(1, 4))
        first = together.acquire(plan, client, lines, state, now, LEASE)
        second = together.acquire(plan, client, lines, kept, now, LEASE)
        assert first == second
        for answer in first[0]:
            if type(answer) is Granted:
                reports = [Report(answer, ANSWERED)]
                told = together.settle(plan, client, step + 1, reports, state, now, LEASE)
                assert told == together.settle(plan, client, step + 1, reports, kept, now, LEASE)
        kept = decide.State.load(json.loads(json.dumps(kept.dump())))
    assert NEVER not in decide.used(plan, state, at(100))


def test_after_the_store_was_away_whoever_had_a_lease_may_say_that_it_is_there() -> None:
    plan = Plan(parse_limits(["concurrency=2"]))
    state = decide.fresh(plan, START)
    for client in ("gone before", "holds"):
        asks = together.Line(1, 1, [plan.costs({})])
        moment = at(0 if client == "gone before" else 18)
        [[answer]] = together.acquire(plan, client, [asks], state, moment, LEASE)
        assert isinstance(answer, Granted)
    back = at(50)  # it went away at 20 s
    together.spare(plan, state, back, 30 * SECOND, 5 * SECOND)
    together.beat(plan, "first back", state, back, LEASE)
    assert decide.used(plan, state, back) == (1,), "one of the two was gone before"
    together.beat(plan, "first back", state, at(54), LEASE)
    assert decide.used(plan, state, at(54)) == (1,)
    together.beat(plan, "first back", state, at(55), LEASE)
    assert decide.used(plan, state, at(55)) == (0,), "it had its time"


def test_what_was_granted_before_all_went_by_shares_is_not_given_back_after_it() -> None:
    plan = Plan(parse_limits(["requests=10/s:burst=10:start=full"]))
    state = decide.fresh(plan, START)
    line = together.Line(1, 10, [plan.costs({})] * 10)
    [grants] = together.acquire(plan, "one", [line], state, START, LEASE)
    state = decide.rejoin(plan, state, at(2), SECOND)
    reports = [Report(grant, UNSENT) for grant in grants if isinstance(grant, Granted)]
    together.trade(plan, "one", together.Trade(1, reports, (0, 0)), state, at(2.1), LEASE)
    assert len(reports) == 10
    assert decide.used(plan, state, at(3)) == (10,)
