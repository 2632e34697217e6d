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
        believed: how many the store believes to wait.
    """

    asks_at_once = False

    def __init__(self, desk: Desk, kind: int) -> None:
        self.desk = desk
        self.kind = kind
        self.waiting = 0
        self.until_us = 0
        self.blocking = -1
        self.due = 0.0
        self.believed = 0
        self._order: Order[Waiter] = Order()
        self._asked: list[Waiter] = []  # of whom the courier is asking
        self._firm = False
        self._appetite = desk.batch
        self._watchers: tuple[Callable[[Wait], None], ...] = ()
        self._lock = desk.lock

    def begin_anew(self) -> None:
        """In a fork: those who wait are the parent's."""
        self.waiting, self.believed, self.due = 0, 0, 0.0
        self._order, self._asked = Order(), []
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
        waiter = Waiter(costs, 0, 0, None, once=True)
        waiter.bell = threading.Event()
        self._join(waiter, late=None, hurry=True)
        try:
            waiter.bell.wait()
        except BaseException:
            self._abandon(waiter)
            raise
        if waiter.error is not None:
            raise waiter.error
        return waiter.told

    def used(self) -> tuple[int, ...]:
        """Units that stood against each limit when the store was last heard of."""
        return self.desk.used

    def settle(self, reports: Sequence[Report]) -> None:
        """Book what became of calls, in a moment."""
        self.desk.settle(reports)

    def acquire(self, costs: Costs, priority: float, max_wait: float | None) -> tuple[Granted, int]:
        """A permit, blocking this thread, and the instant at which it was asked for.

        Raises:
            CostExceedsLimit, AcquireTimeout, StoreUnavailable, ConfigurationError
        """
        waiter = Waiter(costs, priority, self.desk.now_us(), max_wait)
        late: Granted | None = None
        while True:
            waiter.bell = threading.Event()
            try:
                self._join(waiter, late, hurry=max_wait is None)
                if max_wait is None:
                    waiter.bell.wait()
                else:
                    left = waiter.asked_us / SECOND + max_wait - self.desk.now_us() / SECOND
                    if not waiter.bell.wait(min(max(left, 0), threading.TIMEOUT_MAX)):
                        self._expire(waiter)
                        waiter.bell.wait()
            except BaseException:
                self._abandon(waiter)
                raise
            late = self._outcome(waiter)
            if self.desk.now_us() <= late.use_before_us:
                return late, waiter.asked_us

    async def acquire_async(
        self, costs: Costs, priority: float, max_wait: float | None
    ) -> tuple[Granted, int]:
        """A permit, suspending this task, and the instant at which it was asked for.

        Raises:
            as :meth:`acquire`
        """
        waiter = Waiter(costs, priority, self.desk.now_us(), max_wait)
        loop = waiter.loop = asyncio.get_running_loop()
        deadline = None
        if max_wait is not None:
            deadline = loop.call_later(max(max_wait, 0), self._expire, waiter)
        late: Granted | None = None
        try:
            while True:
                waiter.future = loop.create_future()
                try:
                    self._join(waiter, late, hurry=False)
                    await waiter.future
                except BaseException:
                    self._abandon(waiter)
                    raise
                late = self._outcome(waiter)
                if self.desk.now_us() <= late.use_before_us:
                    return late, waiter.asked_us
        finally:
            if deadline is not None:
                deadline.cancel()

    def _outcome(self, waiter: Waiter) -> Granted:
        if waiter.error is not None:
            raise waiter.error
        if waiter.grant is None:
            raise AssertionError("woken without a reason")
        return waiter.grant

    def _join(self, waiter: Waiter, late: Granted | None, *, hurry: bool) -> None:
        """Stand in line. Whoever comes back with a grant that lay too long stands where it stood."""
        if late is not None:
            waiter.grant = None
            self.desk.settle((Report(late, UNSENT),))
        with self._lock:
            self.desk.refuse()
            waiter.state, waiter.line = WAITING, self
            first = not self._order or late is not None
            if late is None:
                self._order.join(waiter)
            else:
                self._order.rejoin(waiter)
            self.waiting += 1
            if first or waiter.priority > 0:  # behind others of the same there is nothing to ask
                self.due = 0.0
            self.desk.awake()
        self.desk.courier.hurry(here=hurry)

    def _expire(self, waiter: Waiter) -> None:
        """Its time is over; too late if it has been served."""
        with self._lock:
            if waiter.state not in (WAITING, ASKING):
                return
            rule, seconds = -1, None
            if self.waiting == 1:  # else others are in the way
                rule = self.blocking
                if self.until_us < NEVER:
                    seconds = max(self.until_us - self.desk.now_us(), 0) / SECOND
            self._leave(waiter)
            waiter.error = timeout(self.plan, waiter.max_wait or 0, rule, seconds)
            waiter.state = FAILED
        ring([waiter])

    def _abandon(self, waiter: Waiter) -> None:
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
        self.waiting -= 1
        if waiter.state == WAITING:
            self._order.remove(waiter)
        self.due = 0.0  # what was told may have been for it

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
        asked, order = self._asked, self._order
        while order and len(asked) < self._appetite:
            waiter = order.pop()
            waiter.state = ASKING
            asked.append(waiter)
        return [waiter.costs for waiter in asked]

    def put_back(self, error: Exception | None = None) -> list[Waiter]:
        """No answer came; returns those who do not wait for one."""
        gone = []
        for waiter in reversed(self._asked):
            if waiter.state == ASKING:
                if waiter.once:
                    waiter.error, waiter.state = error, FAILED
                    self.waiting -= 1
                    gone.append(waiter)
                    continue
                waiter.state = WAITING
                self._order.push_back(waiter)
        self._asked = []
        self.due = 0.0
        return gone

    def fail(self, error: Exception) -> list[Waiter]:
        """None of them will get a permit; returns them."""
        failed = self.put_back(error)
        while self._order:
            waiter = self._order.pop()
            waiter.error, waiter.state = error, FAILED
            failed.append(waiter)
        self.waiting = 0
        return failed

    def answer(self, answers: Sequence[Decision], told: int) -> tuple[list[Waiter], list[Report]]:
        """Hand out answers.

        Args:
            answers: one for each that was asked of.
            told: how many the store was told to be waiting.

        Returns:
            Those to be woken, and the grants of those who have gone meanwhile.
        """
        asked, self._asked = self._asked, []
        woken: list[Waiter] = []
        unsent: list[Report] = []
        left: list[Waiter] = []
        wait: Wait | None = None
        granted = 0
        for waiter, answer in zip(asked, answers, strict=True):
            kind = type(answer)
            if kind is Granted:
                granted += 1
                if waiter.state != ASKING:
                    unsent.append(Report(answer, UNSENT))  # type: ignore[arg-type]  # it is one
                    continue
                waiter.grant, waiter.state = answer, GRANTED  # type: ignore[assignment]  # likewise
            elif waiter.state != ASKING:
                wait = wait or (answer if isinstance(answer, Wait) else None)
                continue
            elif isinstance(answer, Wait):
                wait = wait or answer
                if not waiter.once and not self._is_hopeless(waiter, answer):
                    waiter.told = answer
                    left.append(waiter)
                    continue
                waiter.state = FAILED
            elif isinstance(answer, Refused):
                waiter.state = FAILED
                if not waiter.once:
                    waiter.error = refusal(self.plan, waiter.costs, answer)
            waiter.told = answer
            self.waiting -= 1
            woken.append(waiter)
        for waiter in reversed(left):
            waiter.state = WAITING
            self._order.push_back(waiter)
        settled = sum(type(answer) is not Wait for answer in answers)
        self.believed = max(told - settled, 0)
        if wait is None:
            self._appetite = self.desk.batch
            self.due, self._firm = 0.0, False
        else:
            self._appetite = min(2 * granted + 2, self.desk.batch)
            self.until_us, self.blocking, self._firm = wait.until_us, wait.rule, wait.firm
            pause = min(wait.until_us - self.desk.now_us(), LOOK_US)
            self.due = time.monotonic() + max(pause, 0) / SECOND
        return woken, unsent

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
