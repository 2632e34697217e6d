"""What starts calls: one dispatcher on an event loop, tasks for coroutines, threads for functions.

The dispatcher stands in line for the one call that is next, so the order of calls can change until the very
last moment; with the permit in hand it starts that call at once. A call that is started later than its permit
allows gives it back and waits again.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from headgate.core.model import NEVER, SECOND, Granted, Refused
from headgate.errors import CostExceedsLimit, ValidationError
from headgate.limiter import Permit
from headgate.order import refusal
from headgate.providers.outcome import Judge, rejection, unreadable
from headgate.runner.board import Board
from headgate.runner.call import Attempt, Call, CurrentCall, Memory, close, current
from headgate.runner.threads import Threads

SAME_TURN_US = 10_000
"""A limit that opens and is full again within that has not been open, for those who watch."""
AT_ONCE = 4
"""Coroutines started before the loop gets to run them: each makes the others a little later."""


_alive: set[Engine] = set()
"""Those whose dispatcher has not ended: a loop holds its tasks weakly."""


class Target:
    """The function, and whether its calls are to be made on the loop.

    ``on_loop`` is known from the beginning for what is plainly a coroutine function. Anything else is called
    in a thread; should it return something to be awaited (a lambda around a coroutine, a decorated method of
    a client), that is awaited on the loop, and so are all calls from then on.
    """

    __slots__ = ("function", "on_loop")

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        is_coroutine = inspect.iscoroutinefunction
        call = getattr(function, "__call__", None)  # noqa: B004  # an object with a method of that name
        self.on_loop = is_coroutine(function) or is_coroutine(call)


class Engine:
    """Runs the calls of a board on an event loop.

    Args:
        keep: keeps a result (call, value, Unix time of its end), before anybody is told of it; None for none.
        price: says anew what a call costs, if that changes as answers teach; None if not.
        loop: where the dispatcher and coroutines run.
        on_end: called if that loop ends under it.
        current: the engine that starts calls now; None if none does.
    """

    def __init__(
        self,
        board: Board,
        target: Target,
        judge: Judge,
        memory: Memory,
        *,
        keep: Callable[[Call[Any], Any, float], None] | None,
        price: Callable[[Call[Any]], None] | None,
        loop: asyncio.AbstractEventLoop,
        threads: Threads,
        on_end: Callable[[], None],
        current: Callable[[], Engine | None],
    ) -> None:
        self.loop = loop
        self._board = board
        self._target = target
        self._judge = judge
        self._memory = memory
        self._keep = keep
        self._price = price
        self._threads = threads
        self._on_end = on_end
        self._current = current
        self._thread: int | None = None
        self._task: asyncio.Task[None] | None = None
        self._bell: asyncio.Future[None] | None = None
        self._asking: Call[Any] | None = None
        self._nudged = False
        self._dirty = False
        self._ringing = False
        self._closed = False
        self.taken_down = False  # its loop has ended under it
        self._waited_until_us = 0

    # Going and stopping

    def start(self) -> None:
        """Begin; from any thread."""
        self._board.wake, self._board.halt = self.wake, self.halt
        if _running_loop() is self.loop:
            self._start()
        else:
            self.loop.call_soon_threadsafe(self._start)

    def _start(self) -> None:
        self._thread = threading.get_ident()
        if not self._closed:
            _alive.add(self)
            self._task = self.loop.create_task(self._dispatch())
            self._task.add_done_callback(self._gone)

    def _gone(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._board.fail(error)
        elif not self._closed:  # its loop is being taken down
            self._closed = self.taken_down = True
            self._on_end()
        _alive.discard(self)

    @property
    def alive(self) -> bool:
        """Whether it goes on starting calls."""
        return not self._closed and not self.loop.is_closed()

    def close(self) -> None:
        """Start nothing more, ever; what runs goes on. From any thread."""
        self._closed = True
        self.wake()

    def wake(self) -> None:
        """Something may be able to start."""
        self._dirty = True
        if (self._bell is not None or self._asking is not None) and not self._ringing:
            self._ringing = True
            if _running_loop() is not self.loop:
                self._call_soon(self._ring)
            elif asyncio.current_task() is self._task:  # a listener, in our own step
                self.loop.call_soon(self._ring)
            else:
                self._ring()

    def halt(self, attempt: Attempt) -> None:
        """Cancel the work of an attempt, if it can be."""
        task = attempt.task
        if task is None or task.get_loop().is_closed():
            return
        if task.get_loop() is _running_loop():
            _cancel(attempt)
        else:
            with suppress(RuntimeError):  # it was closed this very moment
                task.get_loop().call_soon_threadsafe(_cancel, attempt)

    def _call_soon(self, act: Callable[[], object]) -> None:
        try:
            self.loop.call_soon_threadsafe(act)
        except RuntimeError:
            if not self.loop.is_closed():
                raise
            self._closed = True

    def _ring(self) -> None:
        self._ringing = False
        if self._bell is not None:
            if not self._bell.done():
                self._bell.set_result(None)
        elif self._asking is not None and self._task is not None and not self._nudged and self._reconsider():
            self._nudged = True
            self._task.cancel()  # it is suspended in line: this is called by the loop, or by another task

    def _reconsider(self) -> bool:
        """Whether the permit that is being waited for may not be the right one."""
        asking = self._asking
        with self._board.lock:
            head = self._board.waiting.peek()
            if head is None or self._closed or self._board.paused or self._board.stopped is not None:
                return True
            if asking is None or head is asking:
                return False
            return head.costs != asking.costs or head.priority > asking.priority

    # The dispatcher

    async def _dispatch(self) -> None:
        started = 0
        while not self._closed:
            self._dirty = False
            with self._board.lock:
                call, until_us = self._board.pick(self._board.now().elapsed_us)
            self._board.tell()
            if call is None:
                await self._rest(until_us)
                continue
            try:
                if self._price is not None:
                    self._price(call)
                permit = self._ask(call) or await self._wait_in_line(call)
            except CostExceedsLimit as error:
                self._board.cancel(call, error)
                continue
            if permit is None:
                continue
            try:
                attempt = self._board.begin(call, permit)
            except BaseException:
                permit.give_back()
                raise
            if attempt is None:
                permit.give_back()
                continue
            self._launch(attempt)
            started += 1
            if started % AT_ONCE == 0:
                await asyncio.sleep(0)

    async def _rest(self, until_us: int) -> None:
        """Until something changes, or that instant."""
        bell = self._bell = self.loop.create_future()
        timer = None
        if until_us < NEVER:
            left = (until_us - self._board.now().elapsed_us) / SECOND
            timer = self.loop.call_later(max(left, 0), _set, bell)
        try:
            if not self._dirty:
                await bell
        finally:
            self._bell = None
            if timer is not None:
                timer.cancel()
            self._waited_until_us = self._board.now().elapsed_us

    def _ask(self, call: Call[Any]) -> Permit | None:
        """A permit, if one is free and nobody is first in line."""
        limiter = self._board.limiter
        if not limiter._line.asks_at_once:
            return None  # nobody's loop waits for a shared store
        answer = limiter._line.ask(call.costs)
        if type(answer) is Granted:
            if self._board.limited and answer.at_us > self._waited_until_us + SAME_TURN_US:
                self._board.set_limited(False)
            return limiter._granted(answer, answer.at_us)
        if type(answer) is Refused:
            raise refusal(limiter.plan, call.costs, answer)
        return None

    async def _wait_in_line(self, call: Call[Any]) -> Permit | None:
        """A permit in its turn; None if another call has come first meanwhile."""
        line = self._board.limiter._line
        self._board.set_limited(line.asks_at_once or line.until_us > self._board.now().elapsed_us)
        self._asking = call
        try:
            if self._dirty and self._reconsider():
                return None
            return await self._board.limiter._acquire_async(call.costs, call.priority, None)
        except asyncio.CancelledError:
            if not self._nudged or self._task is None or self._task.uncancel() > 0:
                raise
            return None
        finally:
            self._asking, self._nudged = None, False
            self._waited_until_us = self._board.now().elapsed_us

    # Attempts

    def _launch(self, attempt: Attempt) -> None:
        call = attempt.call
        context = contextvars.Context() if call.context is None else call.context.copy()
        context.run(current.set, CurrentCall(attempt, self._memory))
        if call.timeout is not None:
            attempt.timer = self.loop.call_later(call.timeout, self._board.expire, attempt, call.timeout)
        if self._target.on_loop:
            self._make_task(attempt, self._call_on_loop(attempt), context)
            return
        try:
            self._threads.call(lambda: context.run(self._call_in_thread, attempt))
        except RuntimeError:  # the machine gives no more threads: make do with those that run
            running = len(self._board.running) - 1
            self._stop_timer(attempt)
            self._board.unsent(attempt)
            if running < 1:
                raise
            self._board.set_most(running)

    def _make_task(self, attempt: Attempt, work: Any, context: contextvars.Context) -> None:
        attempt.task = self.loop.create_task(work, context=context)  # kept by the board while it runs
        attempt.task.add_done_callback(lambda _: self._bury(attempt))

    def _bury(self, attempt: Attempt) -> None:
        """A task that its loop cancels before the first step never gets to say so itself."""
        if not attempt.stepped and attempt in self._board.running:
            self._stop_timer(attempt)
            if attempt.handed is not None:
                close(attempt.handed[1])
                self._board.interrupted(attempt)
            else:
                self._board.unsent(attempt)

    def _may_go(self, attempt: Attempt) -> bool:
        """Whether the function is still to be called, and in time; otherwise all is given back."""
        if attempt.over or self._board.now().elapsed_us > attempt.permit._grant.use_before_us:
            self._stop_timer(attempt)
            self._board.unsent(attempt)
            return False
        return True

    async def _call_on_loop(self, attempt: Attempt) -> None:
        attempt.stepped = True
        if self._may_go(attempt):
            call = attempt.call
            try:
                value = self._target.function(*call.args, **call.kwargs)
            except BaseException as error:
                self._failed(attempt, error)
            else:
                await self._see_through(attempt, value)

    async def _see_through(self, attempt: Attempt, value: Any) -> None:
        attempt.stepped = True
        failed: ValidationError | None = None
        try:
            if attempt.over:  # it took too long to return what is to be awaited
                close(value)
                raise asyncio.CancelledError
            if hasattr(type(value), "__await__"):
                value = await value
            for validator in self._judge.validators:
                valid = validator(value)
                if hasattr(type(valid), "__await__"):
                    valid = await valid
                if not valid:
                    failed = rejection(validator, value)
                    break
        except BaseException as error:
            self._failed(attempt, error)
        else:
            self._returned(attempt, value, failed)

    def _call_in_thread(self, attempt: Attempt) -> None:
        if not self._may_go(attempt):
            return
        call = attempt.call
        failed: ValidationError | None = None
        try:
            value = self._target.function(*call.args, **call.kwargs)
            if hasattr(type(value), "__await__"):
                self._target.on_loop = True
                self._hand_over(attempt, value)
                return
            for validator in self._judge.validators:
                valid = validator(value)
                if hasattr(type(valid), "__await__"):
                    valid = asyncio.run_coroutine_threadsafe(_awaited(valid), self.loop).result()
                if not valid:
                    failed = rejection(validator, value)
                    break
        except BaseException as error:
            self._failed(attempt, error)
        else:
            self._returned(attempt, value, failed)

    def _hand_over(self, attempt: Attempt, value: Any) -> None:
        """From a thread to the loop of the engine that is alive now, to be awaited there.

        If there is none, the call stands in line again: what has not begun can be had anew.
        """
        engine = self._current() or self
        context = contextvars.copy_context()
        try:
            if engine.taken_down:
                raise RuntimeError("nobody would await it")
            attempt.handed = engine.loop, value
            engine.loop.call_soon_threadsafe(engine._receive, attempt, value, context)
        except RuntimeError:
            close(value)
            self._board.interrupted(attempt)

    def _receive(self, attempt: Attempt, value: Any, context: contextvars.Context) -> None:
        if not self.taken_down:
            self._make_task(attempt, self._see_through(attempt, value), context)
        else:  # this is one of the loop's last turns
            close(value)
            self._board.interrupted(attempt)

    def _returned(self, attempt: Attempt, value: Any, failed: ValidationError | None) -> None:
        self._stop_timer(attempt)
        call = attempt.call
        now = self._board.now()
        try:
            outcome = self._judge.of_value(call.args, call.kwargs, value, failed, now.wall_us)
        except BaseException as error:  # out of the user's usage=, or out of the result itself
            outcome = unreadable(error)
        if outcome.error is None and self._keep is not None:
            try:
                self._keep(call, outcome.value, now.wall_us / SECOND)
            except Exception as error:  # paid for, so it is not thrown away; but nothing more is to be paid
                self._board.fail(error)
        self._board.ended(attempt, outcome, now)

    def _failed(self, attempt: Attempt, error: BaseException) -> None:
        self._stop_timer(attempt)
        task = attempt.task
        cancelled = isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling()
        if cancelled and not attempt.over:  # by nobody here: its loop is being taken down
            self._board.interrupted(attempt)
            return
        now = self._board.now()
        try:
            outcome = self._judge.of_error(error, now.wall_us)
        except BaseException:  # out of the error itself
            outcome = unreadable(error)
        self._board.ended(attempt, outcome, now)

    def _stop_timer(self, attempt: Attempt) -> None:
        if attempt.timer is not None:
            if threading.get_ident() == self._thread:
                attempt.timer.cancel()
            else:
                self._call_soon(attempt.timer.cancel)


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _cancel(attempt: Attempt) -> None:
    # A task that has not taken its first step could never say that it was cancelled: it looks itself.
    if attempt.task is not None and attempt.stepped:
        attempt.task.cancel()


def _set(bell: asyncio.Future[None]) -> None:
    if not bell.done():
        bell.set_result(None)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
