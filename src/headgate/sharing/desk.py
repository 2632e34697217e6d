"""What this process holds of a key of a shared store, has yet to settle, and wants.

Everything in here that changes is guarded by the courier's lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from math import inf
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from headgate import events
from headgate.core.model import SECOND, UNSENT, Granted, Report
from headgate.core.plan import Plan
from headgate.core.together import Line as Wishes
from headgate.core.together import Trade, Traded
from headgate.errors import ConfigurationError, HeadgateError, StoreUnavailable
from headgate.sharing.failure import LOCAL, Policy, Share
from headgate.sharing.line import SharedLine, Waiter
from headgate.stores.base import LEASE_US, SharedStore

if TYPE_CHECKING:
    from headgate.sharing.courier import Courier

BEAT_SECONDS = LEASE_US / SECOND / 3
"""How often to say that we are alive, while anything is held or waited for."""
LINGER_SECONDS = 0.001
"""A settlement that frees nothing by itself is carried along with the next question, or after that."""
MOST_REPORTS = 500
"""Settlements in one trade."""
STAND_DOWN_SECONDS = 0.02
"""When to say that nobody waits any more, if nothing else is to be said."""

_sequences = count(1)
"""Of settlements. They go on where a desk begins again: the store knows this process by the same name."""


@dataclass(slots=True)
class Errand:
    """A trade that is being made, and for whom.

    ``told``: [(line, how many it was told wait)].
    """

    desk: Desk
    trade: Trade
    told: list[tuple[SharedLine, int]]


class Desk:
    """This process's dealings with one key.

    Attributes:
        flying, pinned: calls whose end the store has not been told, and what they hold on each limit. It
            counts that where only a settlement gives it back; which limits those are may be changed there.
        believed: how many the store believes to wait in each line; it has to be told otherwise, though nobody
            should have the line any more.
        unsure: the settlement that is being told, with its number: told again until an answer comes.
        away_since: since when the store has not answered (``time.monotonic``), until it has been told.
        owes: a trade failed: it may have been made, and the store believes that we hold what we do not.
        policy: what to do when the store fails.
    """

    def __init__(self, courier: Courier, key: str, plan: Plan, policy: Policy) -> None:
        self.courier = courier
        self.key = key
        self.plan = plan
        self.policy = policy
        self.lines: WeakValueDictionary[int, SharedLine] = WeakValueDictionary()
        self._lingers = 0.0 if any(rule.pins for rule in plan.rules) else LINGER_SECONDS
        self._listeners: tuple[events.Listener, ...] = ()
        self.begin_anew()

    def begin_anew(self) -> None:
        """At first, and in a fork."""
        self.lock = self.courier.lock
        self.reports: list[Report] = []
        self.unsure: tuple[int, list[Report]] | None = None
        self._held: dict[int, Granted] = {}  # the grants that have not been settled here, by their id()
        self._unknown: set[int] = set()  # those of them that the store has not been told of
        self.owes = False
        self.away_since: float | None = None
        self.flying = 0
        self.pinned = [0] * len(self.plan.rules)
        self.believed: dict[SharedLine, int] = {}
        self.spoke_at = 0.0
        self.settle_at = inf
        self.idle_since = inf
        self.share: Share | None = None
        self.used: tuple[int, ...] | None = None  # as the store said at last
        self._refused = False  # the last trade was
        self._stop_listening: Callable[[], None] | None = None
        for line in self.lines.values():
            line.begin_anew()

    @property
    def store(self) -> SharedStore:
        return self.courier.store

    @property
    def batch(self) -> int:
        return self.courier.store.batch

    def now_us(self) -> int:
        """The present instant, by the store's elapsed clock."""
        return self.courier.store.now().elapsed_us

    def line(self, kind: int) -> SharedLine:
        """The one line for a class."""
        with self.lock:
            line = self.lines.get(kind)
            if line is None:
                line = self.lines[kind] = SharedLine(self, kind)
            return line

    # The callers' side

    def settle(self, reports: Sequence[Report]) -> None:
        """Have it told to the store what became of calls."""
        with self.lock:
            try:
                for report in reports:
                    self._settle(report)
            except BaseException:  # Ctrl-C: what has been done is not done again
                for report in reports:
                    self._settle(report)
                self._recount()
                raise
            finally:
                self.awake()
                self.courier.ring(self.settle_at if self.share is None else self.due_at())

    def _settle(self, report: Report) -> None:
        grant, key = report.grant, id(report.grant)
        if key not in self._held:
            return  # a parent's, from before a fork
        if self.settle_at == inf:
            self.settle_at = time.monotonic() + self._lingers
        if self.share is not None:
            self._look()
            if grant.epoch != LOCAL:
                self.share.ended(grant)
            else:
                self.share.settle(report)
                self._unknown.add(key)
        del self._held[key]
        if key in self._unknown:  # nor need the store ever know of it
            self._unknown.discard(key)
            self._count(grant, -1)
        else:
            self.reports += (report,)

    def awake(self) -> None:
        """There is something to do, under the lock."""
        self.courier.active[self.key] = self

    def watch(self, listener: events.Listener) -> None:
        """Call ``listener`` with what happens to the store."""
        with self.lock:
            self._listeners = (*self._listeners, listener)

    def unwatch(self, listener: events.Listener) -> None:
        """Call it no longer."""
        with self.lock:
            self._listeners = tuple(other for other in self._listeners if other != listener)

    @property
    def listeners(self) -> tuple[events.Listener, ...]:
        return self._listeners

    # The courier's side, under the lock

    @property
    def waits(self) -> bool:
        return any(not line.empty for line in self.lines.values())

    @property
    def is_idle(self) -> bool:
        """Whether nothing is held, wanted or to be told."""
        told = not (self.reports or self.unsure or self.owes or self.share or self.believed)
        return told and not (self.flying or self.waits)

    def due_at(self) -> float:
        """When there is something to tell or to ask (``time.monotonic``); inf if nothing is."""
        due = self.settle_at
        if self.unsure or self.owes or self.share is not None:
            due = 0.0
        asks = inf
        for line in self.lines.values():
            if not line.empty:
                asks = min(asks, line.due)
            elif line.believed:
                due = min(due, self.spoke_at + STAND_DOWN_SECONDS)
        if self.flying or asks < inf:
            due = min(due, self.spoke_at + BEAT_SECONDS)
        if self._stop_listening is not None and asks == inf:
            due = min(due, self.idle_since + STAND_DOWN_SECONDS)
        if self.is_on_its_own:
            return min(asks, self.courier.try_at)
        return max(min(due, asks), self.courier.try_at)

    @property
    def is_on_its_own(self) -> bool:
        """Whether permits come from a share just now."""
        return self.policy.share > 0 and self.courier.failed_at is not None

    def refuse(self, *, once: bool = False) -> None:
        """Raise if the store is down and nobody is to wait for it; ``once``: this one never is.

        Whoever asked when it failed goes on trying, so it is found to be back.
        """
        why = None if self.courier.failed_at is None else self.courier.error
        if why is not None and (self.policy.refuse or (once and not self.policy.share)):
            raise StoreUnavailable(*why.args)

    def prepare(self, now: float, *, asks: bool = True) -> Errand:
        """All that is to be told and asked now."""
        if self.unsure is None and self.reports:
            told, self.reports = self.reports[:MOST_REPORTS], self.reports[MOST_REPORTS:]
            self.unsure = next(_sequences), told
            for grant, _ in told:
                self._held.pop(id(grant), None)
                self._count(grant, -1)
        self.settle_at = now if self.reports else inf
        sequence, reports = self.unsure or (0, [])
        wishes: list[Wishes] = []
        told_lines: list[tuple[SharedLine, int]] = []
        for line in self.lines.values():
            if asks and line.wants(now, reports):
                waiting = line.waiting
                wishes.append(Wishes(line.kind, waiting, line.take()))
                told_lines.append((line, waiting))
            elif line.believed and line.empty:
                wishes.append(Wishes(line.kind, 0, ()))
                told_lines.append((line, 0))
        # What is held is said each time: it sets right whatever the store believes after a failure.
        return Errand(self, Trade(sequence, reports, (self.flying, *self.pinned), wishes), told_lines)

    def _count(self, grant: Granted, sign: int) -> None:
        self.flying += sign
        for index, cost in enumerate(grant.costs):
            self.pinned[index] += sign * cost

    def hold(self, grant: Granted) -> None:
        """Somebody here has been given it."""
        self._held[id(grant)] = grant
        if grant.epoch == LOCAL:
            self._unknown.add(id(grant))
        self._count(grant, +1)

    def give_back(self, grant: Granted) -> None:
        """It was granted to somebody who has gone."""
        report = Report(grant, UNSENT)
        if grant.epoch == LOCAL:
            if self.share is not None:
                self.share.settle(report)
        else:
            self._count(grant, +1)
            self.reports.append(report)

    def finish(self, errand: Errand, traded: Traded, now: float) -> list[Waiter]:
        """Hand out what a trade brought; returns those to be woken."""
        self.unsure, self.owes = None, False
        self._unknown.clear()  # it has been told what is held
        self.spoke_at = now
        self.used = traded.used
        self._refused = False
        woken: list[Waiter] = []
        for (line, told), answers in zip(errand.told, traded.answers, strict=True):
            woken += line.answer(answers, told)
        if self.reports:
            self.settle_at = min(self.settle_at, now)
        if traded.next == self.store.client:
            asked = {line for line, _ in errand.told}
            for line in self.lines.values():
                if line not in asked and not line.empty:
                    line.look()
        return woken

    def put_back(self, error: Exception | None = None) -> list[Waiter]:
        """A trade failed, or was cut short, and is to be made again; returns those to be woken.

        Args:
            error: for those who do not wait for that.
        """
        self.owes = True
        told = None if self.policy.share else error  # they will have it of our share
        woken = [waiter for line in self.lines.values() for waiter in line.put_back(told)]
        for grant, _ in (*self.reports, *(self.unsure or (0, ()))[1]):
            self._held.pop(id(grant), None)
        self._recount()
        return woken

    def _recount(self) -> None:
        self.flying, self.pinned = 0, [0] * len(self.plan.rules)
        for grant in (*self._held.values(), *(report.grant for report in self.reports)):
            self._count(grant, +1)

    def fail(self, errand: Errand, error: Exception, now: float) -> tuple[list[Waiter], bool]:
        """A trade will never be made: these limits are not in force, say.

        Returns those to be woken, and whether that is news.
        """
        self.unsure = self.share = None
        self.owes = False
        self.spoke_at = now
        news, self._refused = not self._refused, True
        woken: list[Waiter] = []
        for line, _ in errand.told:
            line.believed = 0
            woken += line.fail(error)
        return woken, news

    def fail_all(self, error: StoreUnavailable) -> list[Waiter]:
        """The store has failed, and nobody is to wait for it."""
        return [waiter for line in self.lines.values() for waiter in line.fail(error)]

    def wake(self) -> None:
        """A hint came: ask again."""
        with self.lock:
            self._look()
            if self.waits:
                self.courier.ring(0.0)

    def _look(self) -> None:
        for line in self.lines.values():
            line.look()

    def listen(self, now: float) -> Callable[[], None] | None:
        """Listen for hints while anybody waits, and a while after; returns how to stop, if that is now."""
        if self.waits:
            self.idle_since = now
            if self._stop_listening is None:
                with suppress(HeadgateError):  # it looks again without a hint
                    self._stop_listening = self.store.listen(self.key, self.wake)
        elif self._stop_listening is not None and now >= self.idle_since + STAND_DOWN_SECONDS:
            stop, self._stop_listening = self._stop_listening, None
            return stop
        return None

    # Without the store

    def lend(self) -> Share:
        """This process's share of the limits while the store is away."""
        if self.share is None:
            flying, pinned = len(self._held), list(self.pinned)
            for grant, _ in self.reports:
                for index, cost in enumerate(grant.costs):
                    pinned[index] -= cost
            self.share = Share(self.plan, self.policy.share, (flying, *pinned), self.used)
        return self.share

    def serve_locally(self, now: float) -> list[Waiter]:
        """Hand out permits of our share; returns those to be woken."""
        woken: list[Waiter] = []
        for line in self.lines.values():
            if line.wants(now, ()):
                lent = self.lend()
                woken += line.answer(lent.acquire(line.take(), self.store.now()), 0)
        return woken

    def woken(self) -> None:
        """All who have an answer have been woken."""
        for line in self.lines.values():
            line.woken()


def policy_clash(key: str, one: Policy, other: Policy) -> ConfigurationError:
    """Two limiters of a process differ."""
    return ConfigurationError(
        f"the key {key!r} is in use with on_store_failure={one.text!r}, not {other.text!r}: "
        "say the same for all limiters of a key"
    )
