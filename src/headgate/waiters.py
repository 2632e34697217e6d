"""Who waits for a key in this process, in order, and who wakes them.

All threads and event loops of a process stand in one line for a key. Only the head is ever told when to
look again; it alone holds a timer. Whoever settles, asks or leaves looks for the others on the way. Should
the head's loop or thread be busy elsewhere, the other loops and threads look for themselves now and then.

This is for a store of this process alone, which is asked at no cost; see ``sharing`` for the others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast
from weakref import WeakSet

from headgate.access import Access, access_to
from headgate.core.crowd import NORMAL
from headgate.core.model import ANSWERED, NEVER, SECOND, UNSENT, Costs, Granted, Refused, Report, Wait
from headgate.core.plan import Plan
from headgate.events import Listener
from headgate.order import Order, refusal, timeout
from headgate.sharing.failure import WAIT, Policy
from headgate.stores.base import SharedStore, Store
from headgate.stores.memory import MemoryStore

if TYPE_CHECKING:
    import asyncio

    from headgate.sharing.line import SharedLine

LOOK_SECONDS = 0.25
"""How often those who are not the head see whether the head has missed its instant."""

WAITING, GRANTED, FAILED, GONE = range(4)


class Waiter:
    """One call in line. Any thread may call ``wake`` and ``nudge``, with no lock held.

    ``lost`` says that its event loop has been closed under it.
    """

    __slots__ = (
        "asked_us",
        "called",
        "costs",
        "error",
        "grant",
        "lost",
        "nudge",
        "number",
        "place",
        "priority",
        "state",
        "wake",
    )

    def __init__(self, costs: Costs, priority: float, asked_us: int) -> None:
        self.costs = costs
        self.priority = priority
        self.asked_us = asked_us
        self.number = 0
        self.state = GONE
        self.lost = False
        self.called = False
        self.grant: Granted | None = None
        self.error: Exception | None = None
        self.place: asyncio.AbstractEventLoop | None = None  # its event loop, if it has one
        self.wake: Callable[[], None] = _nothing
        self.nudge: Callable[[], None] = _nothing


def _nothing() -> None:
    pass


def _outcome(waiter: Waiter) -> Granted:
    if waiter.error is not None:
        raise waiter.error
    if waiter.grant is None:
        raise AssertionError("woken without a reason")
    return waiter.grant


_registry = threading.Lock()


def line_of(
    store: Store, key: str, plan: Plan, kind: int = NORMAL, policy: Policy = WAIT
) -> Line | SharedLine:
    """The one line of this process for a class of a key of a store.

    Args:
        policy: what to do when a shared store fails.

    Raises:
        ConfigurationError: others use the key under different limits.
    """
    if store.shared:
        from headgate.sharing.courier import shared_line  # only those who need it pay for asyncio

        return shared_line(cast(SharedStore, store), key, plan, kind, policy)
    access = access_to(cast(MemoryStore, store), key, plan)
    with _registry:
        known = access.lines.get(kind)
        if isinstance(known, Line):
            return known
        line = access.lines[kind] = Line(access, kind)
        access.use_class(kind)
        return line


class Line:
    """The line for one class of a key of a store.

    Attributes:
        waiting: how many stand in it.
        until_us: when the head may go (the store's elapsed clock; NEVER if an answer must come first).
        blocking: index of the limit that is in the head's way.
    """

    asks_at_once = True

    def __init__(self, access: Access, kind: int = NORMAL) -> None:
        self.access = access
        self.kind = kind
        self.store = access.store
        self.plan = access.plan
        self.waiting = 0
        self.until_us = 0
        self.blocking = -1
        self._watchers: tuple[Callable[[Wait], None], ...] = ()
        self._told: tuple[Waiter | None, Wait] | None = None
        self._looking: WeakSet[asyncio.AbstractEventLoop] = WeakSet()
        self._lock = threading.Lock()
        self._order: Order[Waiter] = Order()
        self._head: Waiter | None = None
        self._firm = False  # what the head was told stays, whatever calls are answered as reserved
        self._stands = False  # the store believes that somebody waits
        self._called = 0  # coroutines that have been granted a permit and have not resumed yet

    # Asking

    def ask(self, costs: Costs) -> Granted | Wait | Refused | None:
        """One question, without waiting; None if others are first in line."""
        with self._lock:
            if self.waiting:
                return None
            return self.access.acquire(self.kind, 0, (costs,))[0]

    def used(self) -> tuple[int, ...]:
        """Units that stand against each limit now."""
        return self.store.used(self.access.key, self.plan)

    def settle(self, reports: Sequence[Report]) -> None:
        """Book what became of calls, and let in whoever fits now."""
        if not self.access.together:
            self.access.settle(reports)
            if self.waiting and not self._stays(reports):
                self.serve()
        elif self.access.settle(reports):
            self.access.serve()

    def _stays(self, reports: Sequence[Report]) -> bool:
        """Whether these settlements leave the head where it is, asleep until the told instant.

        Most do: a call that is answered as it was reserved only moves from the holds to the level.
        """
        for _, signal in reports:
            if signal is not ANSWERED:
                return False
        with self._lock:  # so that what it was told just now has been booked
            head = self._head
            return (
                self._firm
                and head is not None
                and head.state is WAITING
                and (head.place is None or not head.place.is_closed())
                and self.store.now().elapsed_us < self.until_us
            )

    def acquire(self, costs: Costs, priority: float, max_wait: float | None) -> tuple[Granted, int]:
        """A permit, blocking this thread, and the instant at which it was asked for.

        Raises:
            CostExceedsLimit, AcquireTimeout
        """
        answer = self.ask(costs)
        if type(answer) is Granted:
            return answer, answer.at_us
        asked_us = self.store.now().elapsed_us
        self._see(answer, costs, asked_us, max_wait)
        grant = waiter = None
        while grant is None or self.store.now().elapsed_us > grant.use_before_us:
            waiter = waiter or Waiter(costs, priority, asked_us)
            grant = self._block(waiter, grant, max_wait)
        return grant, asked_us

    def _block(self, waiter: Waiter, late: Granted | None, max_wait: float | None) -> Granted:
        bell = threading.Event()
        waiter.wake = waiter.nudge = bell.set
        try:
            self._join(waiter, late)
            while waiter.state is WAITING:
                now = self.store.now().elapsed_us
                pause = None
                if max_wait is not None:
                    pause = min(waiter.asked_us / SECOND + max_wait - now / SECOND, threading.TIMEOUT_MAX)
                    if pause <= 0:
                        self._expire(waiter, max_wait)
                        continue
                due = (self.until_us - now) / SECOND
                if self._head is not waiter:
                    due += LOOK_SECONDS
                if due <= 0:
                    self.serve()
                    continue
                pause = min(
                    due, LOOK_SECONDS if self._head is not waiter else threading.TIMEOUT_MAX, pause or due
                )
                bell.wait(pause)
                bell.clear()
            return _outcome(waiter)
        except BaseException:
            self._abandon(waiter)
            raise

    async def acquire_async(
        self, costs: Costs, priority: float, max_wait: float | None
    ) -> tuple[Granted, int]:
        """A permit, suspending this task, and the instant at which it was asked for.

        Raises:
            CostExceedsLimit, AcquireTimeout
        """
        if self._called:
            # A coroutine that never suspends would go on taking permits while theirs grow old.
            import asyncio

            await asyncio.sleep(0)
        answer = self.ask(costs)
        if type(answer) is Granted:
            return answer, answer.at_us
        asked_us = self.store.now().elapsed_us
        self._see(answer, costs, asked_us, max_wait)
        grant = waiter = None
        while grant is None or self.store.now().elapsed_us > grant.use_before_us:
            waiter = waiter or Waiter(costs, priority, asked_us)
            grant = await self._suspend(waiter, grant, max_wait)
        return grant, asked_us

    async def _suspend(self, waiter: Waiter, late: Granted | None, max_wait: float | None) -> Granted:
        import asyncio  # only those who run a loop pay for it

        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        alarm: asyncio.TimerHandle | None = None
        alarm_us = 0

        def ring() -> None:
            if not done.done():
                done.set_result(None)

        def rearm() -> None:
            nonlocal alarm, alarm_us
            if alarm is not None:
                if alarm_us == self.until_us and self._head is waiter:
                    return
                alarm.cancel()
                alarm = None
            if self._head is not waiter:
                self._look_now_and_then(loop)
            elif waiter.state is WAITING and self.until_us < NEVER:
                alarm_us = self.until_us
                due = (alarm_us - self.store.now().elapsed_us) / SECOND
                alarm = loop.call_later(max(due, 0), alarmed)

        def alarmed() -> None:
            nonlocal alarm
            alarm = None
            self.serve()

        def in_loop(act: Callable[[], None]) -> Callable[[], None]:
            def do() -> None:
                try:
                    if asyncio._get_running_loop() is loop:
                        act()
                    else:
                        loop.call_soon_threadsafe(act)
                except RuntimeError:
                    if not loop.is_closed():
                        raise
                    waiter.lost = True

            return do

        waiter.wake, waiter.nudge, waiter.place = in_loop(ring), in_loop(rearm), loop
        deadline = None
        if max_wait is not None:
            left = waiter.asked_us / SECOND + max_wait - self.store.now().elapsed_us / SECOND
            deadline = loop.call_later(max(left, 0), self._expire, waiter, max_wait)
        try:
            self._join(waiter, late)
            self._look_now_and_then(loop)
            if waiter.state is WAITING:  # else at once: a loop whose turns are slow would be late for ever
                await done
        except BaseException:
            self._abandon(waiter)
            raise
        finally:
            self._answer_call(waiter)
            if alarm is not None:
                alarm.cancel()
            if deadline is not None:
                deadline.cancel()
            waiter.wake = waiter.nudge = _nothing  # or it would be held by itself
            self._look_now_and_then(loop)  # for those of this loop that are left
        return _outcome(waiter)

    def _answer_call(self, waiter: Waiter) -> None:
        with self._lock:
            if waiter.called:
                waiter.called = False
                self._called -= 1

    def _look_now_and_then(self, loop: asyncio.AbstractEventLoop) -> None:
        """See from this loop that nobody waits beyond the told instant, while the head waits elsewhere."""
        if self._head_is_not_in(loop) and loop not in self._looking:
            self._looking.add(loop)
            loop.call_later(LOOK_SECONDS, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._head_is_not_in(loop):
            self._looking.discard(loop)
            return
        if self.until_us < self.store.now().elapsed_us - LOOK_SECONDS * SECOND / 2:
            self.serve()
        loop.call_later(LOOK_SECONDS, self._look, loop)

    def _head_is_not_in(self, loop: asyncio.AbstractEventLoop) -> bool:
        head = self._head
        return self.waiting > 0 and (head is None or head.place is not loop) and not loop.is_closed()

    def _see(
        self, answer: Wait | Refused | Granted | None, costs: Costs, asked_us: int, max_wait: float | None
    ) -> None:
        """Raise if a permit will never come, or only after ``max_wait``."""
        if type(answer) is Refused:
            raise refusal(self.plan, costs, answer)
        if max_wait is not None and type(answer) is Wait and answer.until_us < NEVER:
            seconds = (answer.until_us - asked_us) / SECOND
            if seconds > max_wait:
                raise timeout(self.plan, max_wait, answer.rule, seconds)

    # The line itself

    def _join(self, waiter: Waiter, late: Granted | None) -> None:
        """Stand in line. Whoever comes back with a grant that lay too long stands where it stood."""
        if late is not None:
            waiter.grant = None
            self.access.settle((Report(late, UNSENT),))  # those behind are served below
        with self._lock:
            waiter.state = WAITING
            if late is None:
                self._order.join(waiter)
            else:
                self._order.rejoin(waiter)
            self.waiting += 1
            head = self._head
            ahead = head is None or head.state is not WAITING or waiter.priority > head.priority
        if ahead or late is not None:
            self.serve()

    def serve(self) -> None:
        """Ask the store for those in front, wake the ones that may go, and tell the next one when."""
        wait: Wait | None = None
        lost = True
        while lost:
            called: list[Waiter] = []
            try:
                with self._lock:
                    before = self._head
                    wait = self._ask_for_all(called)
                    head = self._head
            finally:
                for waiter in called:
                    waiter.wake()
            if head is not None:
                head.nudge()
                called.append(head)
                if before is not None and before is not head and before.state is WAITING:
                    before.nudge()  # overtaken: its alarm is now another's
                    called.append(before)
            elif self._stands:
                self._stand_down()
            # Those whose loop has been closed under them are not coming back.
            lost = [self._bury(waiter) for waiter in called if waiter.lost] != []
        if wait is not None and (head, wait) != self._told:
            self._told = head, wait
            for watcher in self._watchers:
                watcher(wait)

    def _stand_down(self) -> None:
        """Nobody waits any more."""
        with self._lock:
            stands, self._stands = self._stands and not self.waiting, False
        if stands:
            self.access.stand_down(self.kind)

    def watch(self, watcher: Callable[[Wait], None]) -> None:
        """Call ``watcher`` whenever the head, or what it waits for, is another."""
        with self._lock:
            self._watchers = (*self._watchers, watcher)

    def watch_store(self, listener: Listener) -> None:
        """A store of this process does not fail."""

    unwatch_store = watch_store

    def unwatch(self, watcher: Callable[[Wait], None]) -> None:
        """Call it no longer."""
        with self._lock:
            self._watchers = tuple(other for other in self._watchers if other != watcher)

    def _ask_for_all(self, woken: list[Waiter]) -> Wait | None:
        """Ask, from the front, until one has to wait, who is the new head; collect those who need not."""
        self._firm = False
        most = self.store.batch + 1  # whoever is behind those that may go has to be told when
        order = self._order
        while order:
            asked: list[Waiter] = []
            wait: Wait | None = None
            left: list[Waiter] = asked
            try:
                while len(asked) < most and order:
                    order.pop(asked)
                answers = self.access.acquire(self.kind, self.waiting, [waiter.costs for waiter in asked])
                left = []
                for index, waiter in enumerate(asked):
                    answer = answers[index]
                    if type(answer) is Wait:
                        left.append(waiter)
                        wait = wait or answer
                        self._stands = True
                        continue
                    if type(answer) is Granted:
                        waiter.grant, waiter.state = answer, GRANTED
                        if waiter.place is not None:
                            waiter.called = True
                            self._called += 1
                    elif type(answer) is Refused:
                        waiter.error, waiter.state = refusal(self.plan, waiter.costs, answer), FAILED
                    # Only now: a settlement looks at it without the lock, to see whether anybody waits.
                    self.waiting -= 1
                    woken.append(waiter)
            finally:
                put = order.restore if wait is None else order.push_back
                for waiter in reversed(left):  # all of them if the store has failed
                    put(waiter)
            if wait is not None:
                self.until_us, self.blocking, self._firm = wait.until_us, wait.rule, wait.firm
                self._head = left[0]
                return wait
        self._head = None
        return None

    def _remove(self, waiter: Waiter) -> bool:
        """Take it out of the line, under the lock; whether it was the head."""
        if self._order.remove(waiter):
            self.waiting -= 1
        if self._head is not waiter:
            return False
        self._head = None
        return True

    def _expire(self, waiter: Waiter, max_wait: float) -> None:
        """Its time is over; too late if it has been served."""
        with self._lock:
            if waiter.state is not WAITING:
                return
            was_head = self._remove(waiter)
            rule, seconds = -1, None
            if was_head:
                rule = self.blocking
                if self.until_us < NEVER:
                    seconds = max(self.until_us - self.store.now().elapsed_us, 0) / SECOND
            waiter.error, waiter.state = timeout(self.plan, max_wait, rule, seconds), FAILED
        waiter.wake()
        if was_head:
            self.serve()

    def _abandon(self, waiter: Waiter) -> None:
        """The caller has gone: leave the line, or give back what was handed over meanwhile."""
        if self._bury(waiter):
            self.serve()

    def _bury(self, waiter: Waiter) -> bool:
        """The same without serving those behind; whether that may let one of them go."""
        self._answer_call(waiter)
        with self._lock:
            grant, waiter.grant = waiter.grant, None
            was_head = waiter.state is WAITING and self._remove(waiter)
            waiter.state = GONE
        if grant is not None:
            self.access.settle((Report(grant, UNSENT),))
        return was_head or grant is not None
