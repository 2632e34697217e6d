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
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import inf
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary, ref

from headgate import events
from headgate.core import decide
from headgate.core.model import SECOND, UNSENT, Now, Report, Wait
from headgate.core.plan import Plan
from headgate.core.together import Traded
from headgate.errors import ConfigurationError, HeadgateError, StoreUnavailable
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


class Courier:
    """The one of a store in this process.

    Attributes:
        active: the desks at which there is anything to do.
        retry_at: when to try a store again that has failed (``time.monotonic``); 0 while it works.
    """

    def __init__(self, store: SharedStore) -> None:
        self.store = store
        self.desks: WeakValueDictionary[str, Desk] = WeakValueDictionary()
        self.begin_anew()
        _end_in_order()

    def begin_anew(self) -> None:
        """At first, and in a fork, which has neither the thread nor the errands of its parent."""
        self.lock = threading.RLock()
        self.active: dict[str, Desk] = {}
        self.retry_at = 0.0
        self.failed_at: float | None = None  # since when it is down
        self.error: StoreUnavailable | None = None  # what it said
        self._failures = 0
        self._probing = False
        self._rounds = threading.Lock()
        self._bell = threading.Event()
        self._wake_at = inf
        self._idle_since = inf
        self._thread: threading.Thread | None = None
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
        if here and self._rounds.acquire(blocking=False):
            try:
                self._round()
            finally:
                self._rounds.release()
            due = self._next()
            if due < inf:
                self.ring(due)
        else:
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
            self._round()
        with self.lock:
            now = time.monotonic()
            due = self._next()
            if due < inf:
                self._idle_since = inf
                self._wake_at = due
                return max(due - now, 0.0)
            self._idle_since = min(self._idle_since, now)
            self._wake_at = inf
            if now - self._idle_since >= IDLE_SECONDS:
                self._thread, self._idle_since = None, inf
                return None
            return IDLE_SECONDS

    def _next(self) -> float:
        with self.lock:
            return min((desk.due_at() for desk in self.active.values()), default=inf)

    # What

    def _round(self) -> None:
        """One trade with each key at which something is due."""
        now = time.monotonic()
        if self.failed_at is not None and any(desk.policy.share for desk in list(self.active.values())):
            self._serve_locally()
            self._probe(now)
            return
        with self.lock:
            due = [desk for desk in self.active.values() if desk.due_at() <= now]
            errands = [desk.prepare(now) for desk in due]
            stops = [desk.listen(now) for desk in due]
            for desk in due:
                if desk.is_idle and desk.share is None:
                    del self.active[desk.key]
        for stop in stops:
            if stop is not None:
                stop()
        errands = [errand for errand in errands if _says_something(errand)]
        if errands:
            self._trade(errands)

    def _trade(self, errands: Sequence[Errand]) -> None:
        done: Sequence[Traded | HeadgateError]
        try:
            self._rejoin(errands)
            done = self.store.trade(
                [Deal(errand.desk.key, errand.desk.plan, errand.trade) for errand in errands]
            )
        except HeadgateError as error:
            done = [error] * len(errands)
        except BaseException as error:  # Ctrl-C on a caller's thread: all is as if the store had not answered
            with self.lock:
                rung = [waiter for errand in errands for waiter in errand.desk.put_back(errand, _cut(error))]
            self._ring(rung)
            raise
        now = time.monotonic()
        woken: list[Waiter] = []
        failure: StoreUnavailable | None = None
        with self.lock:
            before = [_standing(errand) for errand in errands]
            for errand, result in zip(errands, done, strict=True):
                desk = errand.desk
                if isinstance(result, Traded):
                    woken += desk.finish(errand, result, now)
                elif isinstance(result, StoreUnavailable):
                    failure = result
                    woken += desk.put_back(errand, result)
                else:
                    woken += desk.fail(errand, result)
                    log.error("the key %r: %s", desk.key, result)
            told = [] if failure is not None else _news(errands, before)
        self._ring(woken)
        if failure is not None:
            self._failed(failure)
        else:
            self._works()
        for watcher, wait in told:
            watcher(wait)

    def _ring(self, waiters: Sequence[Waiter]) -> None:
        """Wake them; the permits of those whose event loop was closed under them go back."""
        for waiter in ring(waiters):
            grant, waiter.grant = waiter.grant, None
            if grant is not None and waiter.line is not None:
                waiter.line.settle((Report(grant, UNSENT),))

    # Failure

    def _failed(self, error: StoreUnavailable) -> None:
        now = time.monotonic()
        woken: list[Waiter] = []
        heard: list[tuple[events.Listener, events.Event]] = []
        with self.lock:
            self._failures += 1
            self.error = error
            if self._failures == 1:  # a connection that was cut tells nothing of the store
                self.retry_at = now
                return
            pause = min(FIRST_PAUSE_SECONDS * 2 ** min(self._failures - 2, 10), LONGEST_PAUSE_SECONDS)
            self.retry_at = now + pause * random.uniform(0.5, 1.0)
            if self.failed_at is None:
                self.failed_at = now
                log.warning("the store cannot be reached, and is tried again: %s", error)
                heard = self._listeners(lambda desk: events.StoreFailed(desk.key, str(error)))
            for desk in self.active.values():
                if desk.policy.refuse:
                    woken += desk.fail_all(error)
        self._ring(woken)
        for listener, event in heard:
            listener(event)

    def _works(self) -> None:
        if not self._failures:
            return
        heard: list[tuple[events.Listener, events.Event]] = []
        with self.lock:
            self._failures, self.retry_at, self.error = 0, 0.0, None
            failed_at, self.failed_at = self.failed_at, None
            if failed_at is not None:
                seconds = time.monotonic() - failed_at
                log.warning("the store is back after %.1f s", seconds)
                heard = self._listeners(lambda desk: events.StoreBack(desk.key, seconds))
        for listener, event in heard:
            listener(event)

    def _listeners(
        self, event_of: Callable[[Desk], events.Event]
    ) -> list[tuple[events.Listener, events.Event]]:
        return [
            (listener, event_of(desk)) for desk in list(self.desks.values()) for listener in desk.listeners
        ]

    def _probe(self, now: float) -> None:
        """See on another thread whether the store is back, since it may take its time to say no."""
        with self.lock:
            if self._probing or now < self.retry_at:
                return
            self._probing = True
        threading.Thread(target=self._ask_whether_back, name="headgate-probe", daemon=True).start()

    def _ask_whether_back(self) -> None:
        try:
            self.store.ping()
        except HeadgateError as error:
            self._failed(StoreUnavailable(*error.args))
        else:
            self._works()
        finally:
            with self.lock:
                self._probing = False
            self.ring(0.0)

    def _serve_locally(self) -> None:
        now = time.monotonic()
        woken: list[Waiter] = []
        with self.lock:
            for desk in self.active.values():
                if desk.policy.share:
                    woken += desk.serve_locally(desk.policy.share, now)
        self._ring(woken)

    def _rejoin(self, errands: Sequence[Errand]) -> None:
        """The store may be back: it has to know that others, and we, have drawn on the key without it."""
        for errand in errands:
            desk = errand.desk
            if desk.share is not None and self.store.edit(desk.key, _after_shares):
                with self.lock:
                    desk.share = None

    # The end

    def finish(self) -> None:
        """Tell what is left to be told, and leave the keys of which nothing is held."""
        deadline = time.monotonic() + END_SECONDS
        if not self._rounds.acquire(timeout=END_SECONDS):
            return
        try:
            while self.active and time.monotonic() < deadline and not self._failures:
                with self.lock:
                    desks = [desk for desk in self.active.values() if desk.reports or desk.unsure]
                    errands = [desk.prepare(time.monotonic()) for desk in desks]
                if not errands:
                    break
                self._trade(errands)
            if self._failures:
                return
            for desk in list(self.desks.values()):
                if desk.spoke_at and not desk.flying and not desk.waits:
                    self.store.leave(desk.key, desk.plan)
        except HeadgateError as error:  # its lease says it
            log.debug("not everything was told at the end: %s", error)
        finally:
            self._rounds.release()


def _says_something(errand: Errand) -> bool:
    """Whether a trade is worth making: it has something to tell, or is due as a heartbeat."""
    trade = errand.trade
    return bool(trade.reports or trade.lines or (trade.holding and trade.holding[0]))


def _cut(error: BaseException) -> StoreUnavailable:
    return StoreUnavailable(f"the question was cut short: {error!r}")


def _standing(errand: Errand) -> list[tuple[int, int]]:
    return [(line.until_us, line.blocking) for line, _ in errand.told]


def _news(
    errands: Sequence[Errand], before: Sequence[Sequence[tuple[int, int]]]
) -> list[tuple[Callable[[Wait], None], Wait]]:
    """Who is to be told that the head of a line waits for something else than before."""
    found = []
    for errand, stood in zip(errands, before, strict=True):
        for (line, _), was in zip(errand.told, stood, strict=True):
            if not line.empty and line.watchers and (line.until_us, line.blocking) != was:
                wait = Wait(line.until_us, line.blocking)
                found += [(watcher, wait) for watcher in line.watchers]
    return found


def _after_shares(keyed: Keyed, now: Now) -> Keyed:
    keyed.state = decide.rejoin(keyed.plan, keyed.state, now, REJOIN_US)
    return keyed


def _serve(courier: ref[Courier], bell: threading.Event) -> None:
    """The thread. It keeps the courier alive only while there is something to do."""
    while True:
        found = courier()
        try:
            pause = None if found is None else found.step(bell)
        except Exception:  # a listener's, say: it ends nobody's work
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


_ends = False


def _end_in_order() -> None:
    """Before stores are closed at the end of the process: what is registered later is done earlier."""
    global _ends  # noqa: PLW0603  # once in a process
    if not _ends:
        _ends = True
        atexit.register(_finish_all)


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
