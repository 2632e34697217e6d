"""Carries what the lines and desks of this process have to say to a shared store, and brings the answers.

All that is due goes in one round: settlements, questions, heartbeats, of all keys. A round is made by a
thread that is there while there is anything to do, or by a caller's thread that would only wait for it; never
on an event loop. There is one round at a time, so what is told arrives in order.

A store that fails is tried again, sooner at first, until it is back. What was being told then is told again
under the same number, so that it is booked once; of what was granted meanwhile and never arrived here the
store hears with the next trade, which says what we hold.
"""

from __future__ import annotations

import atexit
import logging
import os
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from math import inf
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary, ref

from headgate import events
from headgate.core import decide, together
from headgate.core.model import SECOND, Now, Wait
from headgate.core.plan import Plan
from headgate.core.together import Trade, Traded
from headgate.errors import ConfigurationError, HeadgateError, StoreUnavailable
from headgate.sharing import desk as desks
from headgate.sharing.desk import Desk, Errand, policy_clash
from headgate.sharing.failure import Policy
from headgate.sharing.line import SharedLine, Waiter, ring
from headgate.stores.base import Deal, Keyed, SharedStore

log = logging.getLogger("headgate")

IDLE_SECONDS = 5.0
"""A thread that has had nothing to do for so long ends."""
FIRST_PAUSE_SECONDS = 0.02
LONGEST_PAUSE_SECONDS = 0.25
"""Between two attempts to reach a store that has failed."""
REJOIN_US = round(2 * LONGEST_PAUSE_SECONDS * SECOND)
"""A store that is back grants nothing for so long, until all who used a share meanwhile must have come."""
END_SECONDS = 1.0
"""How long the end of a process waits for what is still to be told."""


News = list[Callable[[], None]]
"""Listeners and watchers, to be called when no lock is held: they may ask for permits themselves."""


class Courier:
    """The one of a store in this process.

    Attributes:
        active: the desks at which there is anything to do.
        retry_at: when to try a store again that has failed (``time.monotonic``); 0 while it works.
        failed_at: since when it is down; None while it is not.
        error: what it said then.
    """

    def __init__(self, store: SharedStore) -> None:
        self.store = store
        self.desks: WeakValueDictionary[str, Desk] = WeakValueDictionary()
        self.begin_anew()

    def begin_anew(self) -> None:
        """At first, and in a fork, which has neither the thread nor the errands of its parent."""
        self.lock = threading.RLock()
        self.active: dict[str, Desk] = {}
        self.retry_at = 0.0
        self.failed_at: float | None = None
        self.error: StoreUnavailable | None = None
        self._failures = 0
        self._probing = False
        self._rounds = threading.Lock()
        self._bell = threading.Event()
        self._wake_at = inf
        self._idle_since = inf
        self._thread: threading.Thread | None = None
        self._buried: deque[Waiter] = deque()
        self._ends_in_order = False
        for desk in list(self.desks.values()):
            desk.begin_anew()

    def desk(self, key: str, plan: Plan, policy: Policy) -> Desk:
        """The one desk for a key.

        Raises:
            ConfigurationError: others use it under different limits, or another policy.
        """
        with self.lock:
            desk = self.desks.get(key)
            if desk is None:
                desk = self.desks[key] = Desk(self, key, plan, policy)
            elif desk.plan.limits != plan.limits:
                known = ", ".join(limit.name for limit in desk.plan.limits)
                raise ConfigurationError(
                    f"the key {key!r} is in use with other limits ({known}); "
                    "give another key=, or the same limits"
                )
            elif desk.policy != policy:
                raise policy_clash(key, desk.policy, policy)
            return desk

    # When

    def ring(self, due: float) -> None:
        """There is something to do at ``due`` (``time.monotonic``)."""
        with self.lock:
            if self._thread is None:
                self._start()
            if due < self._wake_at:
                self._wake_at = due
                self._bell.set()

    def hurry(self, *, here: bool) -> None:
        """There is something to do now: do it on this thread, if it may wait and no other does it already."""
        if here and not self._rounds.locked():
            try:
                with self._rounds:
                    news = self._round()
            finally:
                due = self._next()
                if due < inf:
                    self.ring(due)
            _tell(news)
        else:
            self.ring(0.0)

    def wait(self, bell: threading.Event, seconds: float | None) -> bool:
        """Wait for a bell that a round may ring; whether it did. Without a thread, go round here."""
        until = inf if seconds is None else time.monotonic() + seconds
        while self._thread is None and not bell.is_set():
            now = time.monotonic()
            if now >= until:
                return False
            bell.wait(min(max(min(self._next(), until) - now, 0.0), IDLE_SECONDS))
            self.hurry(here=True)
        return bell.wait(None if seconds is None else max(until - time.monotonic(), 0.0))

    def bury(self, waiter: Waiter) -> None:
        """Nobody will come back for it. It may be any moment, with our own work half done: later, then."""
        self._buried.append(waiter)
        self.ring(0.0)

    def _start(self) -> None:
        thread = threading.Thread(
            target=_serve, args=(ref(self), self._bell), name="headgate-courier", daemon=True
        )
        with suppress(RuntimeError):  # no more threads, at the end of the process: callers do it themselves
            thread.start()
            self._thread = thread

    def step(self, bell: threading.Event) -> float | None:
        """Do what is due; seconds until the next time, or None if this thread is not wanted any more."""
        with self._rounds:
            if bell is not self._bell:
                return None
            news = self._round()
        try:
            _tell(news)
        except Exception:  # it ends nobody's work
            log.warning("a listener failed", exc_info=True)
        with self.lock:
            now = time.monotonic()
            due = self._next()
            if due < inf:
                self._idle_since = inf
                self._wake_at = due
                return max(due - now, 0.0)
            self._idle_since = min(self._idle_since, now)
            self._wake_at = inf
            self.active = {key: desk for key, desk in self.active.items() if not desk.is_idle}
            left = self._idle_since + IDLE_SECONDS - now
            if left <= 0:
                self._thread, self._idle_since = None, inf
                return None
            return left

    def _next(self) -> float:
        with self.lock:
            if self._buried:
                return 0.0
            return min((desk.due_at() for desk in self.active.values()), default=inf)

    # What

    def _round(self) -> News:
        """One trade with each key at which something is due; returns who is to be told of it."""
        if not self._ends_in_order:
            self._ends_in_order = True
            _end_in_order()
        try:
            with self.lock:
                while self._buried:
                    waiter = self._buried.popleft()
                    if waiter.line is not None:
                        waiter.line.abandon(waiter)
            now = time.monotonic()
            if self._is_apart:
                self._serve_locally(now)
                self._probe(now)
                return []
            with self.lock:
                due = [desk for desk in self.active.values() if desk.due_at() <= now]
                stops = [desk.listen(now) for desk in due]
                errands = [desk.prepare(now) for desk in due]
                for desk in due:
                    if desk.is_idle:
                        del self.active[desk.key]
            for stop in stops:
                if stop is not None:
                    stop()
            errands = [errand for errand in errands if _says_something(errand)]
            return self._trade(errands) if errands else []
        except BaseException as error:  # Ctrl-C on a caller's thread: all is as if nothing had been answered
            self._cut_short(error)
            raise

    def _trade(self, errands: Sequence[Errand]) -> News:
        done: Sequence[Traded | HeadgateError]
        try:
            for errand in errands:
                if errand.desk.away_since is not None:
                    self._spare(errand.desk, errand.desk.away_since)
                if errand.desk.share is not None:
                    self._rejoin(errand.desk)
            done = self.store.trade(
                [Deal(errand.desk.key, errand.desk.plan, errand.trade) for errand in errands]
            )
        except HeadgateError as error:
            done = [error] * len(errands)
        now = time.monotonic()
        woken: list[Waiter] = []
        failure: StoreUnavailable | None = None
        refused: list[tuple[str, HeadgateError]] = []
        with self.lock:
            before = [_standing(errand) for errand in errands]
            for errand, result in zip(errands, done, strict=True):
                desk = errand.desk
                if isinstance(result, Traded):
                    desk.away_since = None
                    woken += desk.finish(errand, result, now)
                elif isinstance(result, StoreUnavailable):
                    failure = result
                    woken += desk.put_back(result if self._failures else None)  # it is tried again at once
                else:
                    failed, news = desk.fail(errand, result, now)
                    woken += failed
                    if news:
                        refused.append((desk.key, result))
            told = [] if failure is not None else _news(errands, before)
        self._ring(woken)
        with self.lock:
            for errand in errands:
                errand.desk.woken()
        for key, why in refused:
            log.error("the key %r: %s", key, why)
        return told + (self._works() if failure is None else self._failed(failure))

    def _cut_short(self, error: BaseException) -> None:
        told = None
        if isinstance(error, Exception):
            told = StoreUnavailable(f"the question was cut short: {error!r}")
        with self.lock:
            woken = [waiter for desk in self.active.values() for waiter in desk.put_back(told)]
        self._ring(woken)

    def _ring(self, waiters: Sequence[Waiter]) -> None:
        """Wake them; the permits of those whose event loop was closed under them go back."""
        for waiter in ring(waiters):
            if waiter.line is not None:
                waiter.line.abandon(waiter)

    # Failure

    @property
    def fails(self) -> bool:
        """Whether it did not answer the last time."""
        return self._failures > 0

    @property
    def try_at(self) -> float:
        """When to try it again: 0 while it works, inf while another thread does so."""
        return inf if self._probing else self.retry_at

    @property
    def _is_apart(self) -> bool:
        """Whether it is down, and nobody is to wait until it says so again: another thread tries it."""
        return self.failed_at is not None and any(
            desk.policy.refuse or desk.policy.share for desk in list(self.desks.values())
        )

    def _failed(self, error: StoreUnavailable) -> News:
        now = time.monotonic()
        woken: list[Waiter] = []
        heard: News = []
        with self.lock:
            self._failures += 1
            self.error = error
            if self._failures == 1:  # a connection that was cut tells nothing of the store
                self.retry_at = now
                return []
            pause = min(FIRST_PAUSE_SECONDS * 2 ** min(self._failures - 2, 10), LONGEST_PAUSE_SECONDS)
            self.retry_at = now + pause * random.uniform(0.5, 1.0)
            begins = self.failed_at is None
            if begins:
                self.failed_at = now
                for desk in list(self.desks.values()):
                    desk.away_since = desk.away_since or now
                heard = self._heard(lambda desk: events.StoreFailed(desk.key, str(error)))
            for desk in list(self.desks.values()):
                if desk.policy.refuse:
                    woken += desk.fail_all(error)
        self._ring(woken)
        if begins:
            log.warning("the store cannot be reached, and is tried again: %s", error)
        return heard

    def _works(self) -> News:
        if not self._failures:
            return []
        with self.lock:
            self._failures, self.retry_at, self.error = 0, 0.0, None
            failed_at, self.failed_at = self.failed_at, None
            if failed_at is None:
                return []
            seconds = time.monotonic() - failed_at
            heard = self._heard(lambda desk: events.StoreBack(desk.key, seconds))
        log.warning("the store is back after %.1f s", seconds)
        return heard

    def _heard(self, event_of: Callable[[Desk], events.Event]) -> News:
        return [
            partial(listener, event_of(desk))
            for desk in list(self.desks.values())
            for listener in desk.listeners
        ]

    def _probe(self, now: float) -> None:
        """See on another thread whether the store is back, since it may take its time to say no."""
        with self.lock:
            if self._probing or now < self.retry_at:
                return
            self._probing = True
        thread = threading.Thread(target=self._ask_whether_back, name="headgate-probe", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads, at the end of the process
            self._probing = False
            self.retry_at = now + LONGEST_PAUSE_SECONDS

    def _ask_whether_back(self) -> None:
        news: News = []
        try:
            self.store.ping()
        except HeadgateError as error:
            news = self._failed(StoreUnavailable(*error.args))
        except Exception as error:
            news = self._failed(StoreUnavailable(f"the store failed: {error!r}"))
        else:
            news = self._works()
        finally:
            with self.lock:
                self._probing = False
            self.ring(0.0)
        _tell(news)

    def _serve_locally(self, now: float) -> None:
        with self.lock:
            desks = [desk for desk in self.active.values() if desk.policy.share]
            woken = [waiter for desk in desks for waiter in desk.serve_locally(now)]
        self._ring(woken)
        with self.lock:
            for desk in desks:
                desk.woken()

    def _spare(self, desk: Desk, since: float) -> None:
        """The store may be back: others could not say either that they are alive, and hold what they held."""
        away = time.monotonic() - since
        if away > desks.BEAT_SECONDS:
            with suppress(ConfigurationError):  # the trade will say so
                self.store.edit(desk.key, partial(_spared, round(away * SECOND)))

    def _rejoin(self, desk: Desk) -> None:
        """The store may be back: it has to know that others, and we, have drawn on the key without it."""
        with suppress(ConfigurationError):  # the trade will say so
            if not self.store.edit(desk.key, _after_shares):  # it knows nothing of the key any more
                self.store.trade([Deal(desk.key, desk.plan, Trade())])
                self.store.edit(desk.key, _after_shares)
        with self.lock:
            desk.share = None

    # The end

    def finish(self) -> None:
        """Tell what is left to be told, and leave the keys of which nothing is held."""
        deadline = time.monotonic() + END_SECONDS
        if not self._rounds.acquire(timeout=END_SECONDS):
            return
        try:
            while time.monotonic() < deadline and self.failed_at is None:
                with self.lock:
                    desks = [
                        desk for desk in self.active.values() if desk.reports or desk.unsure or desk.owes
                    ]
                    errands = [desk.prepare(time.monotonic(), asks=False) for desk in desks]
                if not errands:
                    break
                _tell(self._trade(errands))
            if self._failures:
                return
            for desk in list(self.desks.values()):
                if desk.spoke_at and not desk.flying and time.monotonic() < deadline:
                    self.store.leave(desk.key, desk.plan)
        except HeadgateError as error:  # its lease says it
            log.debug("not everything was told at the end: %s", error)
        finally:
            self._rounds.release()


def _tell(news: News) -> None:
    """Call all of them; what the first of them raised is raised then."""
    first: Exception | None = None
    for each in news:
        try:
            each()
        except Exception as error:
            first = first or error
    if first is not None:
        raise first


def _says_something(errand: Errand) -> bool:
    """Whether a trade is worth making: it has something to tell, or is due as a heartbeat."""
    desk, trade = errand.desk, errand.trade
    return bool(trade.reports or trade.lines or desk.flying or desk.owes or desk.share)


def _standing(errand: Errand) -> list[tuple[int, int]]:
    return [(line.until_us, line.blocking) for line, _ in errand.told]


def _news(errands: Sequence[Errand], before: Sequence[Sequence[tuple[int, int]]]) -> News:
    """Who is to be told that the head of a line waits for something else than before."""
    found: News = []
    for errand, stood in zip(errands, before, strict=True):
        for (line, _), was in zip(errand.told, stood, strict=True):
            if not line.empty and line.watchers and (line.until_us, line.blocking) != was:
                wait = Wait(line.until_us, line.blocking)
                found += [partial(watcher, wait) for watcher in line.watchers]
    return found


def _spared(away_us: int, keyed: Keyed, now: Now) -> Keyed:
    grace_us = round(desks.BEAT_SECONDS * SECOND)
    together.spare(keyed.plan, keyed.state, now, away_us + grace_us, grace_us)
    return keyed


def _after_shares(keyed: Keyed, now: Now) -> Keyed:
    keyed.state = decide.rejoin(keyed.plan, keyed.state, now, REJOIN_US)
    return keyed


def _serve(courier: ref[Courier], bell: threading.Event) -> None:
    """The thread. It keeps the courier alive only while there is something to do."""
    while True:
        found = courier()
        try:
            pause = None if found is None else found.step(bell)
        except Exception:  # of a store that is none, say
            log.warning("a round failed", exc_info=True)
            pause = LONGEST_PAUSE_SECONDS
        if pause is None:
            return
        if found is not None and not found.active:
            found = None
        if pause > 0:
            bell.wait(pause)
        bell.clear()
        del found


# One for each store


_couriers: WeakKeyDictionary[SharedStore, ref[Courier]] = WeakKeyDictionary()
_all: WeakSet[Courier] = WeakSet()
_registry = threading.Lock()


def shared_line(store: SharedStore, key: str, plan: Plan, kind: int, policy: Policy) -> SharedLine:
    """The one line of this process for a class of a key of a store.

    Raises:
        ConfigurationError: others use the key under different limits, or another policy.
    """
    with _registry:
        found = _couriers.get(store)
        courier = None if found is None else found()
        if courier is None:
            courier = Courier(store)
            _couriers[store] = ref(courier)
            _all.add(courier)
    return courier.desk(key, plan, policy).line(kind)


_ends = 0
"""The process that ends in order."""


def _end_in_order() -> None:
    """Before stores are closed at the end of the process: what is registered later is done earlier."""
    global _ends  # noqa: PLW0603  # once in a process
    if _ends == os.getpid():
        return
    if not _ends:
        atexit.register(_finish_all)  # a fork has it of its parent
    _ends = os.getpid()
    children = sys.modules.get("multiprocessing.util")
    if children is not None:  # its children end in a way of their own
        children.Finalize(None, _finish_all, exitpriority=0)


def _finish_all() -> None:
    for courier in list(_all):
        courier.finish()


def _after_fork_in_child() -> None:
    global _registry  # noqa: PLW0603  # another thread of the parent may have had it
    _registry = threading.Lock()
    for courier in list(_all):
        courier.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
