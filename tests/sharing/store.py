"""A shared store in memory: several clients of one place, and whatever can go wrong on the way to it.

The rules are the core's, run under a lock on plain data, as in a file or a server. A :class:`Fault` says
what becomes of one question: an error before anything is done, or after it, when the answer is lost; a pause
before or after it.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import count
from typing import TypeVar

from headgate.core import decide, together
from headgate.core.crowd import Crowd
from headgate.core.decide import State
from headgate.core.model import Costs, Decision, Granted, Now, Report
from headgate.core.plan import Plan
from headgate.core.together import Line, Trade, Traded
from headgate.errors import HeadgateError
from headgate.stores.base import LEASE_US, Deal, Edit, Keyed, same_meters, under_ours
from headgate.stores.memory import process_clock

T = TypeVar("T")

ANYONE = ""


@dataclass(frozen=True)
class Fault:
    """What becomes of a question.

    Attributes:
        before: raised, and nothing is done.
        after: raised, though all is done.
        pause: called before anything is done: it takes its time.
        pause_after: called when all is done, before the answer.
    """

    before: BaseException | None = None
    after: BaseException | None = None
    pause: Callable[[], object] | None = None
    pause_after: Callable[[], object] | None = None


FINE = Fault()


@dataclass
class Row:
    """What is kept of a key."""

    plan: Plan
    state: list[object]
    declared: Plan | None = None
    told: int = 0
    who: str = ANYONE


class Place:
    """What a file or a server is to other stores.

    Attributes:
        booked: how often the settlement of each call was booked, by its tag: the ``tag`` of its usage.
        deliver: hands over a hint; on the thread that gave it, unless it is replaced.
    """

    def __init__(
        self,
        clock: Callable[[], Now] = process_clock,
        *,
        lease_us: int = LEASE_US,
        lock: AbstractContextManager[object] | None = None,
    ) -> None:
        self.clock = clock
        self.lease_us = lease_us
        self.rows: dict[str, Row] = {}
        self.booked: Counter[int] = Counter()
        self.deliver: Callable[[Callable[[], None]], None] = _at_once
        self.lock = lock or threading.Lock()
        self.clients: list[Client] = []
        self._lost: set[str] = set()
        self._names = count(1)

    def client(self, name: str | None = None) -> Client:
        """Another process's access to it."""
        client = Client(self, name or f"client {next(self._names)}")
        self.clients.append(client)
        return client

    def lose(self, *keys: str) -> None:
        """Forget keys, as a server that starts again without what it had. Those who drew on them know."""
        with self.lock:
            for key in keys or list(self.rows):
                if self.rows.pop(key, None) is not None:
                    self._lost.add(key)

    def state(self, key: str) -> State:
        """What is kept of a key; a copy."""
        with self.lock:
            return State.load(json.loads(json.dumps(self.rows[key].state)))

    def crowd(self, key: str) -> Crowd:
        """Who draws on a key; a copy."""
        return self.state(key).crowd or Crowd({}, 0, [], [], [])

    def used(self, key: str) -> tuple[int, ...]:
        """Units that stand against each limit in force."""
        return decide.used(self.rows[key].plan, self.state(key), self.clock())

    def holds(self, key: str) -> dict[str, tuple[int, list[int]]]:
        """{client: (calls in flight, units that only their settlement gives back)}, of those who hold any."""
        return {
            name: (member.flying, member.pinned)
            for name, member in self.crowd(key).members.items()
            if member.flying or any(member.pinned)
        }

    def wait_for(self, key: str) -> dict[str, list[int]]:
        """{client: how many of it are believed to wait in each class}, of those who wait."""
        return {
            name: waiting
            for name, member in self.crowd(key).members.items()
            if any(waiting := [ticket[0] for ticket in member.tickets])
        }

    # For its clients, under the lock

    def step(self, key: str, plan: Plan, client: str, do: Callable[[Plan, State, Now], T]) -> T:
        """Let ``do`` change the state of a key under the limits in force; nothing is changed if it fails."""
        now = self.clock()
        row = self.rows.get(key)
        declared: Plan | None = None
        if row is None:
            state = decide.fresh(plan, now)
            if key in self._lost:
                self._lost.discard(key)
                state = decide.spent(plan, now, self.lease_us)
            row = Row(plan, [])
            force = plan
        else:
            state = State.load(json.loads(json.dumps(row.state)))
            force, declared = row.plan, row.declared
            if force.limits != plan.limits:
                if declared is not None and same_meters(force, plan):
                    declared = plan
                else:
                    state = under_ours(key, "this place", client, plan, force, state, now)
                    force, declared = plan, None
        found = do(force, state, now)
        row.plan, row.declared, row.state = force, declared, state.dump()
        self.rows[key] = row
        return found

    def change(self, key: str, edit: Edit) -> bool:
        row = self.rows.get(key)
        if row is None:
            return False
        keyed = Keyed(row.plan, State.load(json.loads(json.dumps(row.state))), row.declared)
        changed = edit(keyed, self.clock())
        if changed is None:
            del self.rows[key]
        else:
            row.plan, row.declared, row.state = changed.plan, changed.declared, changed.state.dump()
        return True

    def hint(self, key: str, who: str) -> list[Callable[[], None]]:
        """Tell a client, or all, that asking again may help; returns whom to call."""
        row = self.rows.get(key)
        if row is not None:
            row.told, row.who = row.told + 1, who
        return [
            wake for client in self.clients if who in (ANYONE, client.client) for wake in client.ears(key)
        ]

    def told(self, key: str) -> int:
        row = self.rows.get(key)
        return 0 if row is None else row.told


def _at_once(wake: Callable[[], None]) -> None:
    wake()


@dataclass(eq=False)
class Client:
    """One client of a place: a :class:`~headgate.stores.base.SharedStore`.

    Attributes:
        faults: says for each question what becomes of it: ``faults(verb, keys)``.
        trades: how many trades it has made with each key.
        asked: how often it was asked anything, by verb.
    """

    place: Place
    client: str
    faults: Callable[[str, Sequence[str]], Fault] = lambda verb, keys: FINE
    batch: int = 50
    trades: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    _ears: dict[str, list[Callable[[], None]]] = field(default_factory=dict)
    _heard: dict[str, int] = field(default_factory=dict)

    shared = True

    def now(self) -> Now:
        return self.place.clock()

    def _ask(self, verb: str, keys: Sequence[str], do: Callable[[], T]) -> T:
        self.asked[verb] += 1
        fault = self.faults(verb, keys)
        if fault.pause is not None:
            fault.pause()
        if fault.before is not None:
            raise fault.before
        with self.place.lock:
            found = do()
        if fault.pause_after is not None:
            fault.pause_after()
        if fault.after is not None:
            raise fault.after
        return found

    def _step(self, verb: str, key: str, plan: Plan, do: Callable[[Plan, State, Now], T]) -> T:
        return self._ask(verb, [key], lambda: self.place.step(key, plan, self.client, do))

    # As one client, as if nobody waited

    def acquire(self, key: str, plan: Plan, asks: Sequence[Costs]) -> list[Decision]:
        return self._step(
            "acquire", key, plan, lambda plan, state, now: decide.acquire(plan, asks, state, now)
        )

    def settle(self, key: str, plan: Plan, reports: Sequence[Report]) -> None:
        self._step("settle", key, plan, lambda plan, state, now: decide.settle(plan, reports, state, now))

    def used(self, key: str, plan: Plan) -> tuple[int, ...]:
        return self._step("used", key, plan, decide.used)

    # In turn

    def trade(self, deals: Sequence[Deal]) -> list[Traded | HeadgateError]:
        wakes: list[Callable[[], None]] = []
        found = self._ask(
            "trade", [deal.key for deal in deals], lambda: [self._made(deal, wakes) for deal in deals]
        )
        for wake in wakes:
            self.place.deliver(wake)
        return found

    def _made(self, deal: Deal, wakes: list[Callable[[], None]]) -> Traded | HeadgateError:
        key, plan, trade = deal
        place = self.place

        def do(plan: Plan, state: State, now: Now) -> Traded:
            self._note(trade, state)
            return together.trade(plan, self.client, trade, state, now, place.lease_us)

        try:
            traded = place.step(key, plan, self.client, do)
        except HeadgateError as error:
            return error
        self.trades[key] += 1
        if traded.next is not None:
            wakes += place.hint(key, traded.next)
        if trade.lines:
            self._heard[key] = place.told(key)
        return traded

    def _note(self, trade: Trade, state: State) -> None:
        member = None if state.crowd is None else state.crowd.members.get(self.client)
        if not trade.sequence or member is None or trade.sequence > member.sequence:
            tags = [signal.usage["tag"] for _, signal in trade.reports if "tag" in signal.usage]
            self.place.booked.update(tags)

    def acquire_for(self, key: str, plan: Plan, lines: Sequence[Line]) -> list[list[Decision]]:
        return self._one(key, plan, Trade(lines=lines)).answers

    def settle_for(self, key: str, plan: Plan, reports: Sequence[Report]) -> bool:
        return self._one(key, plan, Trade(reports=reports)).next == self.client

    def beat(self, key: str, plan: Plan) -> None:
        self._one(key, plan, Trade())

    def _one(self, key: str, plan: Plan, trade: Trade) -> Traded:
        [made] = self.trade([Deal(key, plan, trade)])
        if isinstance(made, HeadgateError):
            raise made
        return made

    def leave(self, key: str, plan: Plan) -> None:
        self._step("leave", key, plan, lambda plan, state, now: together.leave(plan, self.client, state, now))
        self._hint_all(key)

    def _hint_all(self, key: str) -> None:
        with self.place.lock:
            wakes = self.place.hint(key, ANYONE)
        for wake in wakes:
            self.place.deliver(wake)

    def ping(self) -> None:
        self._ask("ping", [], _nothing)

    # For operators

    def keys(self) -> list[str]:
        return self._ask("keys", [], lambda: sorted(self.place.rows))

    def look(self, key: str) -> tuple[Keyed, Now] | None:
        def do() -> tuple[Keyed, Now] | None:
            row = self.place.rows.get(key)
            if row is None:
                return None
            state = State.load(json.loads(json.dumps(row.state)))
            return Keyed(row.plan, state, row.declared), self.place.clock()

        return self._ask("look", [key], do)

    def edit(self, key: str, change: Edit) -> bool:
        done = self._ask("edit", [key], lambda: self.place.change(key, change))
        self._hint_all(key)
        return done

    # Hints

    def ears(self, key: str) -> list[Callable[[], None]]:
        return list(self._ears.get(key, ()))

    @property
    def listens(self) -> list[str]:
        """The keys on which anybody listens here."""
        return sorted(self._ears)

    def listen(self, key: str, wake: Callable[[], None]) -> Callable[[], None]:
        def once_more() -> None:  # an object of its own, however often one function listens
            wake()

        with self.place.lock:
            self._ears.setdefault(key, []).append(once_more)
            row = self.place.rows.get(key)
            missed = row is not None and row.told != self._heard.get(key, 0)
            missed = missed and row is not None and row.who in (ANYONE, self.client)
        if missed:
            self.place.deliver(once_more)

        def stop() -> None:
            with self.place.lock:
                ears = self._ears.get(key, [])
                if once_more in ears:
                    ears.remove(once_more)
                    if not ears:
                        del self._ears[key]

        return stop


def _nothing() -> None:
    pass


def granted_in(answers: Sequence[Sequence[Decision]]) -> list[Granted]:
    return [one for given in answers for one in given if type(one) is Granted]
