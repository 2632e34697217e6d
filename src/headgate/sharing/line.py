"""Where callers wait for a permit from a shared store: in order, in threads and event loops.

A line says who is to be asked for and hands out the answers; when that is done, and by whom, is the courier's
business. Everything in here that changes is guarded by the courier's lock.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from headgate.core.model import (
    ANSWERED,
    NEVER,
    SECOND,
    UNSENT,
    Costs,
    Decision,
    Granted,
    Refused,
    Report,
    Wait,
)
from headgate.core.plan import Plan
from headgate.core.together import LOOK_US
from headgate.events import Listener
from headgate.order import Order, refusal, timeout

if TYPE_CHECKING:
    from headgate.sharing.desk import Desk

ANSWER_SECONDS = 1.0
"""A question that is on its way is waited for so much longer than ``max_wait``: its answer may be a yes."""

WAITING, ASKING, GRANTED, FAILED, GONE = range(5)

Ring = Callable[[], None]


class Waiter:
    """One call in line.

    Attributes:
        once: it wants an answer, whatever it is, and does not wait.
        told: that answer.
    """

    __slots__ = (
        "asked_us",
        "bell",
        "costs",
        "error",
        "future",
        "grant",
        "line",
        "loop",
        "max_wait",
        "number",
        "once",
        "order",
        "priority",
        "state",
        "told",
    )

    def __init__(
        self, costs: Costs, priority: float, asked_us: int, max_wait: float | None, *, once: bool = False
    ) -> None:
        self.costs = costs
        self.priority = priority
        self.asked_us = asked_us
        self.max_wait = max_wait
        self.once = once
        self.number = 0
        self.line: SharedLine | None = None
        self.order: Order[Waiter] | None = None
        self.state = GONE
        self.grant: Granted | None = None
        self.told: Decision | None = None
        self.error: Exception | None = None
        self.bell: threading.Event | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.future: asyncio.Future[None] | None = None


class SharedLine:
    """The line for one class of a key of a shared store.

    Attributes:
        waiting: how many stand in it.
        until_us: when the head may go (the store's elapsed clock; NEVER if an answer must come first).
        blocking: index of the limit that is in the head's way.
        due: when to ask next for those in front (``time.monotonic``).
    """

    asks_at_once = False

    def __init__(self, desk: Desk, kind: int) -> None:
        self.desk = desk
        self.kind = kind
        self.waiting = 0
        self.until_us = 0
        self.blocking = -1
        self.due = 0.0
        self._order: Order[Waiter] = Order()
        self._asked: list[Waiter] = []  # of whom the courier is asking, until all of them have been woken
        self._overdue: list[Waiter] = []  # whose time is over, but for the answer that is on its way
        self._anew = False  # something has come up since they were asked for
        self._firm = False
        self._appetite = desk.batch
        self._watchers: tuple[Callable[[Wait], None], ...] = ()
        self._lock = desk.lock

    def begin_anew(self) -> None:
        """In a fork: those who wait are the parent's."""
        self.waiting, self.due = 0, 0.0
        self._order, self._asked, self._overdue, self._anew = Order(), [], [], False
        self._lock = self.desk.lock

    @property
    def plan(self) -> Plan:
        return self.desk.plan

    # The callers' side

    def ask(self, costs: Costs) -> Granted | Wait | Refused | None:
        """One question, without waiting in line; None if others are first in line.

        Raises:
            StoreUnavailable
        """
        with self._lock:
            if self.waiting:
                return None
            self.desk.refuse(once=True)
        waiter = Waiter(costs, 0, 0, None, once=True)
        waiter.bell = threading.Event()
        try:
            self._join(waiter, None, hurry=True)
            self._block(waiter, waiter.bell)
        except BaseException:
            self.abandon(waiter)
            raise
        if waiter.error is not None:
            raise waiter.error
        return waiter.told

    def settle(self, reports: Sequence[Report]) -> None:
        """Book what became of calls, in a moment."""
        self.desk.settle(reports)

    def acquire(self, costs: Costs, priority: float, max_wait: float | None) -> tuple[Granted, int]:
        """A permit, blocking this thread, and the instant at which it was asked for.

        Raises:
            CostExceedsLimit, AcquireTimeout, StoreUnavailable, ConfigurationError
        """
        waiter = Waiter(costs, priority, self.desk.now_us(), max_wait)
        waiter.bell = threading.Event()
        late: Granted | None = None
        while True:
            try:
                self._join(waiter, late, hurry=max_wait is None)
                self._block(waiter, waiter.bell)
                late = self._outcome(waiter)
                if self.desk.now_us() <= late.use_before_us:
                    return late, waiter.asked_us
            except BaseException:
                self.abandon(waiter)
                raise

    def _block(self, waiter: Waiter, bell: threading.Event) -> None:
        """Until it has an answer. A bell may ring for one that it had before."""
        wait = self.desk.courier.wait
        while waiter.state in (WAITING, ASKING):
            if waiter.max_wait is None:
                wait(bell, None)
            elif not (wait(bell, self._left(waiter)) or self._expire(waiter) or wait(bell, ANSWER_SECONDS)):
                self._expire(waiter, last=True)
            bell.clear()

    async def acquire_async(
        self, costs: Costs, priority: float, max_wait: float | None
    ) -> tuple[Granted, int]:
        """A permit, suspending this task, and the instant at which it was asked for.

        Raises:
            as :meth:`acquire`
        """
        waiter = Waiter(costs, priority, self.desk.now_us(), max_wait)
        loop = waiter.loop = asyncio.get_running_loop()
        late: Granted | None = None
        while True:
            waiter.future = loop.create_future()
            alarm: list[asyncio.TimerHandle] = []
            if max_wait is not None:
                alarm.append(loop.call_later(self._left(waiter), self._alarmed, waiter, alarm))
            try:
                self._join(waiter, late, hurry=False)
                await waiter.future
                while self._still_waits(waiter, loop):
                    await waiter.future
                late = self._outcome(waiter)
                if self.desk.now_us() <= late.use_before_us:
                    return late, waiter.asked_us
            except GeneratorExit:  # it is thrown away, maybe by a collection in the midst of our own work
                self.desk.courier.bury(waiter)
                raise
            except BaseException:
                self.abandon(waiter)
                raise
            finally:
                for timer in alarm:
                    timer.cancel()

    def _still_waits(self, waiter: Waiter, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether it was woken for an answer that it had before."""
        with self._lock:
            waits = waiter.state in (WAITING, ASKING)
            if waits:
                waiter.future = loop.create_future()
        return waits

    def _left(self, waiter: Waiter) -> float:
        """Seconds that it may still wait."""
        left = waiter.asked_us / SECOND + (waiter.max_wait or 0) - self.desk.now_us() / SECOND
        return min(max(left, 0), threading.TIMEOUT_MAX)

    def _alarmed(self, waiter: Waiter, alarm: list[asyncio.TimerHandle]) -> None:
        if not self._expire(waiter) and waiter.loop is not None:
            alarm.append(waiter.loop.call_later(ANSWER_SECONDS, self._expire_at_last, waiter))

    def _outcome(self, waiter: Waiter) -> Granted:
        if waiter.error is not None:
            raise waiter.error
        if waiter.grant is None:
            raise AssertionError("woken without a reason")
        return waiter.grant

    def _join(self, waiter: Waiter, late: Granted | None, *, hurry: bool) -> None:
        """Stand in line. Whoever comes back with a grant that lay too long stands where it stood."""
        if late is not None:
            self.desk.settle((Report(late, UNSENT),))
            waiter.grant = None
        with self._lock:
            self.desk.refuse()
            waiter.line, waiter.order, waiter.state = self, self._order, WAITING
            self.waiting += 1
            if late is None:
                self._order.join(waiter)
            else:
                self._order.rejoin(waiter)
            if self._order.leads(waiter) and not any(
                other.state == ASKING and other.priority >= waiter.priority for other in self._asked
            ):  # behind others there is nothing to ask
                self.look()
            self.desk.awake()
        self.desk.courier.hurry(here=hurry)

    def _expire(self, waiter: Waiter, *, last: bool = False) -> bool:
        """Its time is over; False if it is not, since a first answer is on its way, and may be a yes."""
        with self._lock:
            if waiter.state not in (WAITING, ASKING):
                return True  # it has been served
            if not last and waiter.told is None and self._is_asking(waiter):
                self._overdue.append(waiter)
                return False
            self._give_up(waiter)
            self._leave(waiter)
            waiter.state = FAILED
        ring([waiter])
        return True

    def _expire_at_last(self, waiter: Waiter) -> None:
        self._expire(waiter, last=True)

    def _is_asking(self, waiter: Waiter) -> bool:
        if self.desk.courier.fails:
            return False
        return waiter.state == ASKING or self.due <= time.monotonic()

    def _give_up(self, waiter: Waiter) -> None:
        """Say why no permit came in time."""
        rule, seconds = -1, None
        if self.waiting == 1:  # else others are in the way
            rule = self.blocking
            if self.until_us < NEVER:
                seconds = max(self.until_us - self.desk.now_us(), 0) / SECOND
        waiter.error = timeout(self.plan, waiter.max_wait or 0, rule, seconds)

    def abandon(self, waiter: Waiter) -> None:
        """The caller has gone: leave the line, or give back what was handed over meanwhile."""
        with self._lock:
            grant, waiter.grant = waiter.grant, None
            if waiter.state in (WAITING, ASKING):
                self._leave(waiter)
            waiter.state = GONE
        if grant is not None:
            self.desk.settle((Report(grant, UNSENT),))

    def _leave(self, waiter: Waiter) -> None:
        """Leave the line, under the lock. If it is being asked for, the answer finds it gone."""
        if waiter.order is not self._order:
            return  # it stood in a parent's, before a fork
        if waiter.state == WAITING:
            self._order.remove(waiter)
        if waiter in self._overdue:
            self._overdue.remove(waiter)
        self.waiting -= 1
        self.look()  # what was told may have been for it
        self.desk.courier.ring(self.desk.due_at())

    def used(self) -> tuple[int, ...]:
        """Units that stood against each limit, whoever used them, as the store said at last."""
        return self.desk.used or (0,) * len(self.plan.rules)

    def watch(self, watcher: Callable[[Wait], None]) -> None:
        """Call ``watcher`` whenever what the head waits for is another."""
        with self._lock:
            self._watchers = (*self._watchers, watcher)

    def unwatch(self, watcher: Callable[[Wait], None]) -> None:
        """Call it no longer."""
        with self._lock:
            self._watchers = tuple(other for other in self._watchers if other != watcher)

    def watch_store(self, listener: Listener) -> None:
        """Call ``listener`` when the store fails, and when it is back."""
        self.desk.watch(listener)

    def unwatch_store(self, listener: Listener) -> None:
        """Call it no longer."""
        self.desk.unwatch(listener)

    # The courier's side, under the lock

    def look(self) -> None:
        """Something has changed: ask for those in front, and if they are being asked for just now, again."""
        self.due = 0.0
        self._anew = bool(self._asked)

    def wants(self, now: float, reports: Sequence[Report]) -> bool:
        """Whether to ask for those in front, now that this is settled."""
        if not self._order or self._asked:
            return False
        if self.due <= now:
            return True
        if not reports:
            return False
        return not self._firm or any(signal is not ANSWERED for _, signal in reports)

    def take(self) -> list[Costs]:
        """The costs of those in front, of whom the courier asks from now on."""
        self._anew = False
        asked, order = self._asked, self._order
        while order and len(asked) < self._appetite:
            order.pop(asked).state = ASKING
        return [waiter.costs for waiter in asked]

    def put_back(self, error: Exception | None = None) -> list[Waiter]:
        """No answer came, or it was not handed out to all; returns those to be woken.

        Args:
            error: for those who do not wait for another attempt; None if all do.
        """
        woken = []
        for waiter in reversed(self._asked):
            if waiter.state == ASKING and waiter.grant is not None:  # that was half done
                self.desk.hold(waiter.grant)
                waiter.told, waiter.state = waiter.grant, GRANTED
                self.waiting -= 1
            if waiter.state == ASKING and waiter.once and error is not None:
                waiter.error, waiter.state = error, FAILED
                self.waiting -= 1
            if waiter.state in (WAITING, ASKING):
                waiter.state = WAITING
                self._order.restore(waiter)
            elif waiter.state != GONE:
                woken.append(waiter)
        self._asked = []
        self.due = 0.0
        return woken if error is None else woken + self._end_overdue()

    def fail(self, error: Exception) -> list[Waiter]:
        """None of them will get a permit; returns them."""
        failed = self.put_back(error)
        while self._order:
            waiter = self._order.pop(failed)
            waiter.error, waiter.state = error, FAILED
        self.waiting = 0
        return failed

    def answer(self, answers: Sequence[Decision], told: int) -> list[Waiter]:
        """Hand out answers; returns those to be woken. When they have been, the line is told by ``woken``.

        Args:
            answers: one for each that was asked of.
            told: how many the store was told to be waiting.
        """
        woken: list[Waiter] = []
        left: list[Waiter] = []
        wait: Wait | None = None
        granted = 0
        for waiter, answer in zip(self._asked, answers, strict=True):
            here = waiter.state == ASKING
            state = FAILED
            if isinstance(answer, Granted):
                granted += 1
                if not here:
                    self.desk.give_back(answer)
                    continue
                waiter.grant, state = answer, GRANTED
                self.desk.hold(answer)
            elif isinstance(answer, Wait):
                wait = wait or answer
                if not here:
                    continue
                if not waiter.once and not self._is_hopeless(waiter, answer):
                    waiter.told = answer
                    left.append(waiter)
                    continue
            elif not here:
                continue
            elif not waiter.once:
                waiter.error = refusal(self.plan, waiter.costs, answer)
            waiter.told = answer
            waiter.state = state  # last: whoever sees it has its answer
            self.waiting -= 1
            woken.append(waiter)
        for waiter in reversed(left):
            waiter.state = WAITING
            self._order.push_back(waiter)
        settled = sum(type(answer) is not Wait for answer in answers)
        self.believed = told - settled
        if wait is None:
            self._appetite = self.desk.batch
            self.due, self._firm = 0.0, False
        else:
            self._appetite = min(2 * granted + 2, self.desk.batch)
            self.until_us, self.blocking, self._firm = wait.until_us, wait.rule, wait.firm
            pause = min(wait.until_us - self.desk.now_us(), LOOK_US)
            self.due = 0.0 if self._anew else time.monotonic() + max(pause, 0) / SECOND
            woken += self._end_overdue()
        if self._overdue:
            self._overdue = [waiter for waiter in self._overdue if waiter.state == WAITING]
        return woken

    def woken(self) -> None:
        """All who were asked for have been woken, if they have an answer."""
        self._asked = []

    def _end_overdue(self) -> list[Waiter]:
        """The answer was to wait: whoever's time was over before does not; returns them."""
        overdue, self._overdue = self._overdue, []
        ended = [waiter for waiter in overdue if waiter.state == WAITING]
        for waiter in ended:
            self._give_up(waiter)
            self._order.remove(waiter)
            self.waiting -= 1
            waiter.state = FAILED
        return ended

    def _is_hopeless(self, waiter: Waiter, wait: Wait) -> bool:
        """Whether it would wait in vain: that is told when it is first asked for, by an error."""
        if waiter.max_wait is None or wait.until_us >= NEVER or waiter.told is not None:
            return False
        seconds = (wait.until_us - waiter.asked_us) / SECOND
        if seconds <= waiter.max_wait:
            return False
        waiter.error = timeout(self.plan, waiter.max_wait, wait.rule, seconds)
        return True

    @property
    def believed(self) -> int:
        """How many the store believes to wait."""
        return self.desk.believed.get(self, 0)

    @believed.setter
    def believed(self, count: int) -> None:
        if count > 0:
            self.desk.believed[self] = count
        else:
            self.desk.believed.pop(self, None)

    @property
    def watchers(self) -> tuple[Callable[[Wait], None], ...]:
        return self._watchers

    @property
    def empty(self) -> bool:
        """Whether nobody waits, nor is asked for."""
        return not self._order and not self._asked

    def refusal(self, costs: Costs, answer: Refused) -> Exception:
        """The error of a cost that can never fit."""
        return refusal(self.plan, costs, answer)


def ring(waiters: Sequence[Waiter]) -> list[Waiter]:
    """Wake those who have an answer, with no lock held; returns those whose event loop has been closed."""
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    lost = []
    for waiter in waiters:
        if waiter.bell is not None:
            waiter.bell.set()
        elif waiter.loop is not None and waiter.future is not None:
            loops.setdefault(waiter.loop, []).append(waiter.future)
    for loop, futures in loops.items():
        try:
            loop.call_soon_threadsafe(_ring_all, futures)
        except RuntimeError:
            if not loop.is_closed():
                raise
            lost += [waiter for waiter in waiters if waiter.loop is loop]
    return lost


def _ring_all(futures: Sequence[asyncio.Future[Any]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
