"""The script for Redis decides as the core does: the same answers and the same state, after every step.

Random histories of several clients, for every kind of limit, with clocks that jump. What is compared is all
of it: each answer, each mark, each number of the state.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from typing import Any, Literal

import pytest
import redis

from headgate.core import clock, crowd, decide, model, together
from headgate.core.crowd import Member
from headgate.core.limits import base, sliding_window, token_bucket
from headgate.core.model import (
    ANSWERED,
    DAY,
    LOST,
    NEVER,
    SECOND,
    UNSENT,
    CalendarUnit,
    Costs,
    Decision,
    Granted,
    Kind,
    Limit,
    Now,
    Reading,
    Report,
    Signal,
    Throttle,
)
from headgate.core.plan import Plan
from headgate.core.text import parse_limits
from headgate.core.together import Line, Trade, Traded
from headgate.errors import ConfigurationError
from headgate.stores import redis_script as wire
from tests.servers.redis import RedisServer

LEASE_US = 15 * SECOND
START = Now(1_000_000_000, 1_790_000_000_000_000)


class Twin:
    """A key that is kept twice, by the core and in a server; whatever is done to it is done to both."""

    def __init__(self, server: redis.Redis, plan: Plan, now: Now, key: str = "k") -> None:
        self.server = server
        self.keys = (f"headgate:{{{key}}}:state", f"headgate:{{{key}}}:mark")
        server.delete(*self.keys)
        self.plan = plan
        self.told = wire.Told(plan, LEASE_US, now.wall_us)
        self.state = decide.fresh(plan, now)
        self.version = 0
        self.put(now)

    def put(self, now: Now) -> None:
        """Let the server have the core's state."""
        known = ("g", self.version) if self.version else (False, 0)
        question = wire.question(wire.PUT, known=known, now=now)
        self.version += 1
        new = wire.new_state("g", self.version, "f", "about", self.state, self.told)
        assert self.call(question, new)[0] == wire.DONE
        self.compare()

    def call(self, question: bytes, *more: bytes) -> list[Any]:
        text, sha = wire.script()
        while True:
            arguments: Any = (*self.keys, question, self.told.rules, *more)
            try:
                found: Any = self.server.evalsha(sha, 2, *arguments)
            except redis.exceptions.NoScriptError:
                found = self.server.eval(text, 2, *arguments)
            reply = wire.reply(found)
            if reply[0] != wire.EDGES:
                return reply
            self.told.see(reply[3])

    def compare(self) -> None:
        reply = self.call(wire.question(wire.GET))
        assert reply[0] == wire.DONE
        assert reply[3:7] == ["g", self.version, "f", "about"]
        assert_same(self.state.dump(), reply[7])

    def members(self) -> list[Member]:
        return [] if self.state.crowd is None else list(self.state.crowd.members.values())

    def lose(self, now: Now) -> None:
        """The state is lost, and begun anew by somebody who knew of it."""
        used = decide.used(self.plan, self.state, now)
        self.state = decide.spent(self.plan, now, LEASE_US, used)
        self.put(now)

    def _told(self, verb: int, now: Now, **facts: Any) -> list[Any]:
        known = ("g", self.version)
        question = wire.question(
            verb, self.told, lease_us=LEASE_US, known=known, fingerprint="f", now=now, **facts
        )
        reply = self.call(question)
        assert reply[0] == wire.DONE, reply
        self.version += 1
        assert reply[1:6:2] == [now.elapsed_us, now.elapsed_us + self.state.steady[0], self.version], reply
        return reply[3:4] + reply[7:]

    def alone(self, now: Now, reports: Sequence[Report], asks: Sequence[Costs]) -> list[Decision]:
        """As decide.settle and decide.acquire."""
        decide.settle(self.plan, reports, self.state, now)
        expected = decide.acquire(self.plan, asks, self.state, now)
        used = tuple(rule.used(part) for rule, part in zip(self.plan.rules, self.state.parts, strict=True))
        line = Line(1, 0, asks)
        steady, _, _, *rest = self._told(wire.ALONE, now, reports=reports, lines=[line])
        count = len(self.plan.rules)
        found = wire.decisions(self.told, rest[count], asks, now.elapsed_us, steady, 0)
        assert found == expected[: len(found)]
        assert tuple(rest[:count]) == used
        self.compare()
        return expected

    def trade(self, now: Now, client: str, deal: Trade) -> Traded:
        expected = together.trade(self.plan, client, deal, self.state, now, LEASE_US)
        steady, epoch, next_, *rest = self._told(
            wire.TRADE,
            now,
            client=client,
            sequence=deal.sequence,
            reports=deal.reports,
            holding=deal.holding,
            lines=deal.lines,
        )
        count = len(self.plan.rules)
        answers = [
            wire.decisions(self.told, flat, line.asks, now.elapsed_us, steady, epoch)
            for line, flat in zip(deal.lines, rest[count:], strict=True)
        ]
        for given, all_given in zip(answers, expected.answers, strict=True):
            assert given == all_given[: len(given)]
            assert all(answer is all_given[-1] for answer in all_given[len(given) :])
        assert (next_ or None, epoch, tuple(rest[:count])) == expected[1:]
        self.compare()
        return expected

    def leave(self, now: Now, client: str) -> None:
        together.leave(self.plan, client, self.state, now)
        next_ = together.who_may_go(self.plan, self.state, now)
        reply = self._told(wire.LEAVE, now, client=client)
        assert (reply[2] or None) == next_
        self.compare()


def assert_same(expected: Any, found: Any, path: str = "state") -> None:
    if isinstance(expected, list):
        assert type(found) is list, (path, found)
        assert len(found) == len(expected), (path, expected, found)
        for index, (one, other) in enumerate(zip(expected, found, strict=True)):
            assert_same(one, other, f"{path}[{index}]")
    else:
        assert type(found) is type(expected), (path, expected, found)
        assert found == expected, (path, expected, found)


LIMITS = (
    ("requests=10/s:burst=5:start=full", "concurrency=3"),
    ("requests=20/s:kind=sliding:start=full", "tokens=1000/min:burst=200:charge=usage:start=full"),
    ("requests=30/s:kind=fixed", "requests=5000/day:kind=calendar:zone=Asia/Kolkata:name=daily"),
    ("requests=50/min",),
    ("concurrency=2",),
    ("tokens=500/s:kind=anchored:charge=usage:start=used-40", "requests=2/s", "concurrency=12"),
    ("tokens=400/min", "requests=100/s:burst=20"),
    ("requests=7/s:burst=3:charge=usage:when=completion", "tokens=300/s:kind=fixed:charge=usage"),
    ("requests=40/month:kind=calendar:zone=America/Los_Angeles", "requests=9/hour:kind=calendar:name=hourly"),
    ("requests=60/min:kind=sliding", "tokens=90/min:kind=sliding:charge=usage:when=completion"),
)
GAPS = (0, 0, 400, 30_000, 30_000, 200_000, 10**6, 4 * 10**6, 16 * 10**6, 100 * 10**6)
JUMPS = (-90_000 * 10**6, -3 * 10**6, -400_000, 400_000, 3 * 10**6, 90_000 * 10**6)
SIGNALS = (
    ANSWERED,
    ANSWERED,
    ANSWERED,
    LOST,
    UNSENT,
    Signal(usage={"tokens": 7}),
    Signal(usage={"tokens": 300, "requests": 3}),
    Signal(charged={"requests": 1}, readings=(Reading("requests", 20, 3, 400_000),)),
    Signal(charged={"requests": 0}, usage={"tokens": 0}),
    Signal(readings=(Reading("tokens", 500, 400, None), Reading("requests", 30, 29, None))),
    Signal(readings=(Reading("tokens", None, 5, None), Reading("requests", 10, None, None))),
    Signal("lost", usage={"tokens": 12}),
    Signal(throttle=Throttle("requests", 700_000)),
    Signal(throttle=Throttle()),
    Signal(throttle=Throttle("tokens", None, until_edge=True)),
)


def some_plan(seed: int, chance: random.Random) -> Plan:
    """One of those above, or else any."""
    if seed < len(LIMITS):
        return Plan(parse_limits(LIMITS[seed]))
    limits = [some_limit(chance, f"limit {place}") for place in range(chance.choice((1, 2, 2, 3, 5)))]
    try:
        return Plan(limits)
    except ConfigurationError:  # a bucket that takes years to fill
        return some_plan(seed, chance)


def some_limit(chance: random.Random, name: str) -> Limit:
    kinds: tuple[Kind, ...] = (
        "bucket", "sliding", "fixed", "anchored", "calendar", "concurrency", "unknown"
    )  # fmt: skip
    kind = chance.choice(kinds)
    amount = chance.choice((1, 2, 7, 60, 1_000, 10**6, 10**9 + 7, 10**12))
    if kind == "concurrency":
        return Limit(meter="concurrency", name=name, amount=min(amount, 60), kind=kind)
    calendar = chance.choice(CALENDARS) if kind == "calendar" else None
    period_us = CALENDARS_US[calendar] if calendar else chance.choice(PERIODS)
    charge, when = chance.choice(CHARGES)
    return Limit(
        meter=chance.choice(("requests", "tokens", "tokens")),
        amount=amount,
        period_us=period_us,
        kind=kind,
        burst=chance.choice((1, amount // 30 + 1, amount)) if kind == "bucket" else None,
        calendar=calendar,
        zone=chance.choice(ZONES) if calendar else "UTC",
        charge=charge,
        when=when,
        start=chance.choice(("auto", "auto", "empty", "full", amount // 3)),
        name=name,
        max_transit_us=chance.choice((None, None, 1, 70, 500_000, 20 * SECOND)),
        clock_error_us=chance.choice((None, 0, period_us // 5)) if kind in ("fixed", "calendar") else None,
    )


CALENDARS: tuple[CalendarUnit, ...] = ("hour", "day", "month")
CALENDARS_US = {"hour": 3600 * SECOND, "day": 25 * 3600 * SECOND, "month": 31 * DAY + 3600 * SECOND}
PERIODS = (1_000, SECOND, 7 * SECOND, 60 * SECOND, 3600 * SECOND, DAY, 400 * DAY)
CHARGES: tuple[tuple[Literal["estimate", "usage"], Literal["arrival", "completion"]], ...] = (
    ("estimate", "arrival"), ("estimate", "arrival"), ("usage", "arrival"), ("usage", "completion"),
    ("estimate", "completion"),
)  # fmt: skip
# Lord Howe sets its clocks by half an hour, and Havana at midnight.
ZONES = ("UTC", "Asia/Kolkata", "Europe/Berlin", "Australia/Lord_Howe", "America/Havana")


class History:
    """What happens in a row, at random but always the same for a seed."""

    mistakes = (0,)

    def __init__(self, server: redis.Redis, seed: int, plan: Plan | None = None) -> None:
        self.chance = random.Random(seed)
        self.now = START
        self.plan = plan or some_plan(seed, self.chance)
        self.twin = Twin(server, self.plan, self.now, f"history {seed}")
        self.flying: list[Granted] = []

    def pass_time(self) -> None:
        chance, gap = self.chance, self.chance.choice(GAPS)
        gap = chance.randrange(gap + 1) if chance.random() < 0.5 else gap
        elapsed, wall = self.now.elapsed_us + gap, self.now.wall_us + gap
        if chance.random() < 0.04:
            elapsed = max(elapsed + chance.choice(JUMPS), 0)
        if chance.random() < 0.04:
            wall += chance.choice(JUMPS)
        self.now = Now(elapsed, wall)

    def asks(self, most: int) -> list[Costs]:
        """Costs of all sizes, half of them in the order of the first."""
        found: list[Costs] = []
        for _ in range(self.chance.choice((0, 1, 1, 2, most))):
            units = {meter: self.cost(meter) for meter in sorted(self.plan.meters)}
            found.append(self.plan.costs(units))
        return sorted(found) if self.chance.random() < 0.5 else found

    def cost(self, meter: str) -> int:
        largest = min(rule.largest for rule in self.plan.rules if rule.limit.meter == meter)
        if meter != "tokens":
            return min(self.chance.choice((1, 1, 1, 1, 0, 2)), largest)
        shares = (0, 1, 1, largest // 20, largest // 5, largest * 3 // 4, largest, largest + 1)
        return self.chance.choice(shares)

    def ended(self, flying: list[Granted]) -> list[Report]:
        self.chance.shuffle(flying)
        count = self.chance.randrange(len(flying) + 1)
        ended, flying[:count] = flying[:count], []
        signals: Iterable[Signal] = self.chance.choice(((ANSWERED,), SIGNALS))
        return [Report(grant, self.chance.choice(list(signals))) for grant in ended]

    def alone(self) -> None:
        """Some calls end, and some are asked for, as if there were no other client."""
        reports = self.ended(self.flying)
        answers = self.twin.alone(self.now, reports, self.asks(12))
        self.flying += [answer for answer in answers if type(answer) is Granted]

    def deal(self, flying: list[Granted], sequence: int) -> Trade:
        """Anything that a client may say."""
        chance, plan = self.chance, self.plan
        reports = self.ended(flying) if chance.random() < 0.6 else []
        holding = None
        if chance.random() < 0.5:
            pinned = [sum(costs) for costs in zip(*(grant.costs for grant in flying), strict=True)]
            held = [len(flying), *(pinned or [0] * len(plan.rules))]
            holding = [max(units + chance.choice(self.mistakes), 0) for units in held]
        lines = []
        for kind in chance.sample(range(3), chance.choice((0, 1, 1, 1, 2, 3))):
            more = chance.choice((0, 0, 0, 40))
            asks = self.asks(6)
            lines.append(Line(kind, len(asks) + more * bool(asks), asks))
        sequence = chance.choice((0, sequence, sequence + 1, sequence + 1, sequence + 1))
        return Trade(sequence, reports, holding, lines)


@pytest.fixture(scope="module")
def server(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_server.url) as client:
        yield client


def play_alone(server: redis.Redis, seed: int, steps: int) -> None:
    history = History(server, seed)
    for _ in range(steps):
        history.pass_time()
        history.alone()


CLIENTS = ("31-a", "31-b", "4-c", "ключ")


def play_in_turn(server: redis.Redis, seed: int, steps: int) -> None:
    history = History(server, seed)
    chance, twin = history.chance, history.twin
    flying: dict[str, list[Granted]] = {client: [] for client in CLIENTS}
    sequences = dict.fromkeys(CLIENTS, 0)
    for _ in range(steps):
        history.pass_time()
        client = chance.choice(CLIENTS[: chance.choice((2, 4))])
        match chance.randrange(30):
            case 0:
                twin.leave(history.now, client)
            case 1:
                at = history.now.elapsed_us + twin.state.steady[0]
                decide.pause(twin.state, chance.choice((at + 300_000, at + 5 * SECOND, NEVER)))
                twin.put(history.now)
            case 2 | 3:
                decide.unpause(twin.state)
                twin.put(history.now)
            case 4:
                twin.lose(history.now)
            case 5 if all(member.adopted for member in twin.members()):
                twin.state = decide.retune(twin.plan, twin.plan, twin.state, history.now)
                twin.put(history.now)
            case _:
                deal = history.deal(flying[client], sequences[client])
                sequences[client] = max(deal.sequence, sequences[client])
                answers = twin.trade(history.now, client, deal).answers
                for given in answers if chance.random() < 0.95 else []:  # the others never reach it
                    flying[client] += [answer for answer in given if type(answer) is Granted]


SEEDS = range(3 * len(LIMITS))


@pytest.mark.parametrize("seed", SEEDS)
def test_one_client_alone(server: redis.Redis, seed: int) -> None:
    play_alone(server, seed, steps=60)


@pytest.mark.parametrize("seed", SEEDS)
def test_clients_in_turn(server: redis.Redis, seed: int) -> None:
    play_in_turn(server, seed, steps=90)


@pytest.mark.parametrize(
    "limit",
    [
        Limit(meter="tokens", amount=10**12, period_us=31 * DAY, kind="bucket", burst=10**9),
        Limit(meter="tokens", amount=10**12, period_us=400 * DAY, kind="sliding", charge="usage"),
        Limit(meter="tokens", amount=10**12, period_us=DAY, kind="fixed", start="full"),
        Limit(meter="tokens", amount=10**12, period_us=31 * DAY + 3600 * SECOND, kind="calendar",
              calendar="month", zone="Europe/Berlin"),
        Limit(meter="tokens", amount=10**12, period_us=DAY),
        Limit(meter="tokens", amount=1, period_us=400 * DAY, charge="usage"),
        Limit(meter="tokens", amount=10**12 - 1, period_us=SECOND, kind="bucket", burst=10**12, start="full"),
    ],
    ids=lambda limit: f"{limit.kind} {limit.name}",
)  # fmt: skip
def test_large_numbers_are_exact(server: redis.Redis, limit: Limit) -> None:
    history = History(server, 1, Plan([limit, Limit(meter="concurrency", amount=500, kind="concurrency")]))
    for _ in range(80):
        history.pass_time()
        history.now = history.now._replace(
            elapsed_us=history.now.elapsed_us + history.chance.choice((0, 0, DAY, 70 * DAY)),
            wall_us=history.now.wall_us + history.chance.choice((0, 0, DAY, 70 * DAY)),
        )
        history.alone()


def test_many_clients(server: redis.Redis) -> None:
    plan = Plan(parse_limits(["requests=10/s:burst=5:start=full", "concurrency=700"]))
    twin = Twin(server, plan, START)
    costs = plan.costs({})
    deals = [Trade(0, [], [0, 0, 0], [Line(place % 3, 1 + place % 4, [costs])]) for place in range(700)]
    for place, deal in enumerate(deals):  # more than fit in a row
        together.trade(plan, f"client-{place}", deal, twin.state, START, LEASE_US)
    twin.put(START)
    for place in (0, 350, 699):
        twin.trade(START, f"client-{place}", deals[place])


def test_the_script_knows_the_numbers_of_the_core() -> None:
    text = files("headgate.stores").joinpath("redis.lua").read_text("utf-8")
    told = {name: int(number) for name, number in re.findall(r"^local (\w+) <const> = (-?\d+)", text, re.M)}
    known: dict[str, int] = {}
    for module in (base, clock, crowd, decide, model, together):
        known |= {name: value for name, value in vars(module).items() if isinstance(value, int)}
    assert known["CROWD"] == told.pop("MANY")
    names = """
        NEVER TURN LEAP_US LEARNED PATIENCE LEAST_PATIENCE_US CATCH_UP FIRST_PAUSE_US LONGEST_PAUSE_US
        PROBE_LEASE_US LATE_US SLACK_US LOOK_US AT_LEAST_US
    """.split()
    assert {name: told[name] for name in names} == {name: known[name] for name in names}
    assert told["LAST_REFUSALS"] == 3 * known["LAST_REFUSALS"]
    assert told["RING"] == sliding_window.RING == told["CELL"] * told["CELLS"]
    assert told["DEEPEST"] == token_bucket._DEEPEST
    for name in """
        DONE ABSENT BEHIND OTHER EDGES CHANGED FOREIGN_FORMAT TRADE ALONE LEAVE GET PUT FORGET GRANTED WAITS
        TOO_LARGE PLAIN PLAIN_PROBE LONG FOREIGN BUCKET SLIDING FIXED SLOTS CELL
    """.split():
        assert told[name] == getattr(wire, name), name


def test_every_name_of_a_number_has_got_it() -> None:
    text, _ = wire.script()
    assert set(re.findall(r"\b[A-Z][A-Z_]+\b", re.sub("'[^']*'", "", text))) == {"ARGV", "KEYS"}
