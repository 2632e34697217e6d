"""A machine of threads, locks and event loops of which one runs at a time; a seed says which.

Its threads are real ones that hand each other a baton, at every lock and event and, if asked to, between any
two lines of the code under test. Time is virtual and passes only while nobody can run. So each seed is one
order of things; whatever goes wrong in it goes wrong again. If all wait for ever, it says who waits where.

It takes the place of ``threading``, ``time`` and ``random`` in the modules under test, and gives event loops
that live in it.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import math
import random
import selectors
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import Any, Generic, Self, TypeVar

import pytest

from headgate import order
from headgate.core.model import SECOND, Now
from headgate.sharing import courier, desk, failure, line

T = TypeVar("T")

START_US = 1_000 * SECOND
WALL_US = 1_767_225_600 * SECOND
MOST_SWITCHES = 400_000
LONG = 30.0
"""Real seconds after which a thread that does not hand over the baton is believed lost."""


class Stuck(AssertionError):
    """Everybody waits for ever."""


class Ended(BaseException):
    """The machine is switched off."""


class Thread(Generic[T]):
    """One of the machine's threads; ``result`` is what its function returned or raised."""

    def __init__(self, machine: Machine, function: Callable[[], T], name: str) -> None:
        self.machine = machine
        self.name = name
        self.done = False
        self.baton = threading.Semaphore(0)
        self.ready: Callable[[], bool] | None = None  # None while it can run
        self.until: int | None = None
        self.error: BaseException | None = None
        self.interrupted: type[BaseException] | None = None
        self.stands_until = 0  # it cannot run before this instant, whatever it waits for
        self.seen = False  # somebody has asked for its result
        self.moments = 0  # at which Ctrl-C may come, that it has been through
        self.interrupt_at: int | None = None  # the one at which it does come
        self._function = function
        self._found: list[T] = []
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def _run(self) -> None:
        self.baton.acquire()
        if self.machine.off:
            return
        if self.machine.traces:
            sys.settrace(self._trace)
            sys.setprofile(self._profile)
        try:
            self._found.append(self._function())
        except Ended:
            pass
        except BaseException as error:
            self.error = error
        finally:
            sys.settrace(None)
            sys.setprofile(None)
            self.done = True
            self.machine.pass_on()

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._trace_line if frame.f_code.co_filename in self.machine.watched else None

    def _trace_line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            self.machine.line()
        return self._trace_line

    def _profile(self, frame: FrameType, event: str, arg: Any) -> None:
        """Python looks for signals where a function begins and where a call has come back.

        Not where a ``with`` has entered: none comes between a lock and what it guards. What comes while a
        generator is closed is lost, by Python's own rule.
        """
        asks = frame if event in ("call", "c_return") else frame.f_back
        code = frame.f_code
        if (
            self.interrupt_at is None
            or event == "c_call"
            or asks is None
            or asks.f_code.co_filename not in self.machine.watched
            or (event != "c_return" and code.co_name in self.machine.spared)
            or code.co_flags & inspect.CO_GENERATOR
        ):
            return
        self.moments += 1
        if self.moments == self.interrupt_at:
            self.interrupt_at = None
            raise KeyboardInterrupt

    @property
    def result(self) -> T:
        assert self.done, f"{self} has not ended"
        self.seen = True
        if self.error is not None:
            raise self.error
        return self._found[0]

    def interrupt(self, error: type[BaseException] = KeyboardInterrupt) -> None:
        """Raise an error in it where it waits, as Ctrl-C does in a main thread."""
        self.interrupted = error

    # As of the module ``threading``

    def is_alive(self) -> bool:
        return not self.done


class Machine:
    """Give it threads with :meth:`spawn`, and :meth:`run`.

    Args:
        seed: of the order of things.
        preempt: the probability with which a thread is stopped before a line of the code under test.
        stall: the probability with which it stands still then, for up to ``stall_seconds``.
        modules: the code under test.
        traces: watch it line by line even if nobody is stopped by chance.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        preempt: float = 0.0,
        stall: float = 0.0,
        stall_seconds: float = 0.05,
        modules: Sequence[ModuleType] = (courier, desk, failure, line, order),
        traces: bool = False,
    ) -> None:
        self.chance = random.Random(seed)
        self.preempt = preempt
        self.stall = stall
        self.stall_seconds = stall_seconds
        self.modules = modules
        self.spared = {"__enter__"}  # functions at whose beginning and end no Ctrl-C comes
        self.watched = {module.__file__ for module in modules}
        self.traces = traces or preempt > 0
        self.threads: list[Thread[Any]] = []
        self.current: Thread[Any] | None = None
        self.now_us = START_US
        self.switches = 0
        self.at_switch: dict[int, Callable[[], object]] = {}  # what happens then, beside all threads
        self.lines_left = 0  # of the code under test, until ``at_line`` is called in their midst
        self.at_line: Callable[[], object] = _nothing
        self.off = False
        self.error: BaseException | None = None
        self._main: Thread[Any] | None = None
        self._home = threading.Semaphore(0)
        self.threading: Any = _Threading(self)
        self.time: Any = _Time(self)

    # Time

    def clock(self) -> Now:
        """As the clock of a store."""
        return Now(self.now_us, WALL_US + self.now_us - START_US)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return (self.now_us - START_US) / SECOND

    def after(self, seconds: float | None) -> int | None:
        """The instant so much later, and not sooner; None for never."""
        return None if seconds is None else self.now_us + math.ceil(max(seconds, 0) * SECOND)

    def sleep(self, seconds: float) -> None:
        """Let time pass for the thread that calls."""
        self.block(lambda: False, self.after(seconds))

    # Threads

    def spawn(self, function: Callable[[], T], name: str = "") -> Thread[T]:
        """A new thread, which begins when it is its turn."""
        thread = Thread(self, function, name or f"thread {len(self.threads)}")
        self.threads.append(thread)
        thread.thread.start()
        return thread

    def run(self, *, seconds: float = 3600.0) -> None:
        """Until all threads have ended, those that were started meanwhile included.

        Raises:
            Stuck: everybody waits for ever.
            AssertionError: there is no end to it.
        """
        self._limit_us = self.now_us + round(seconds * SECOND)
        with self._in_place():
            self.pass_on()
            assert self._home.acquire(timeout=120), f"a thread does not hand over: {self.where()}"
            if self.error is not None:
                raise self.error
        for thread in self.threads:
            thread.thread.join(LONG)
            if thread.error is not None and not thread.seen and thread is not self._main:
                raise thread.error

    def main(self, function: Callable[[], T], *, seconds: float = 3600.0) -> T:
        """Run a function as one of its threads, and whatever that starts."""

        def whole() -> T:
            found = function()
            gc.collect()  # what is thrown away is thrown away here, and not in the midst of another test
            return found

        thread = self.spawn(whole, "main")
        self._main = thread
        self.run(seconds=seconds)
        return thread.result

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            ours = {
                "threading": self.threading,
                "time": self.time,
                "random": self.chance,
                "process_clock": self.clock,
                "_registry": self.threading.Lock(),
            }
            for module in self.modules:
                for name in ours.keys() & vars(module).keys():
                    patch.setattr(module, name, ours[name])
            try:
                yield
            finally:
                self.off = True
                for thread in self.threads:
                    if not thread.done:
                        thread.baton.release()

    def where(self) -> str:
        """Where everybody waits."""
        frames = sys._current_frames()
        told = []
        for thread in self.threads:
            if not thread.done and thread.thread.ident in frames:
                stack = traceback.format_stack(frames[thread.thread.ident])
                told.append(f"{thread}:\n{''.join(stack[-8:])}")
        return "\n".join(told)

    # For its threads

    def switch(self) -> None:
        """Somebody else may run."""
        self.block(None)

    def line(self) -> None:
        """Between two lines of the code under test."""
        if self.lines_left:
            self.lines_left -= 1
            if not self.lines_left:
                self.at_line()
        if self.preempt and self.chance.random() < self.preempt:
            if self.stall and self.chance.random() < self.stall:
                self.sleep(self.chance.random() * self.stall_seconds)
            else:
                self.switch()

    def block(self, ready: Callable[[], bool] | None, until: int | None = None) -> None:
        """The thread that calls waits until something is so, or until an instant; None: it may go on."""
        thread = self.current
        if self.off and any(each.thread is threading.current_thread() for each in self.threads):
            raise Ended
        if thread is None or thread.thread is not threading.current_thread():
            # Before the machine runs, or after it: there is nobody to wait for.
            if ready is not None and not ready() and until is None:
                raise Stuck("nobody runs who could end this")
            return
        thread.ready, thread.until = ready, until
        self.pass_on()
        if not thread.baton.acquire(timeout=LONG * 4):
            raise Ended
        if self.off:
            raise Ended
        if thread.interrupted is not None and ready is not None:
            error, thread.interrupted = thread.interrupted, None
            raise error

    def pass_on(self) -> None:
        """Hand the baton to one who can run."""
        try:
            following = None if self.off else self._next()
        except BaseException as error:
            self.error, following = error, None
        self.current = following
        if following is None:
            self._home.release()
        else:
            following.ready = following.until = None
            following.baton.release()

    def _next(self) -> Thread[Any] | None:
        self.switches += 1
        assert self.switches < MOST_SWITCHES, f"there is no end to it:\n{self.where()}"
        act = self.at_switch.pop(self.switches, None)
        if act is not None:
            act()
        while True:
            living = [thread for thread in self.threads if not thread.done]
            failed = self._main is not None and self._main.done and self._main.error is not None
            if not living or failed:
                return None
            able = [thread for thread in living if self._can_run(thread)]
            if able:
                return able[self.chance.randrange(len(able))] if len(able) > 1 else able[0]
            instants = [instant for thread in living if (instant := self._next_instant(thread)) is not None]
            if not instants:
                raise Stuck(f"everybody waits for ever:\n{self.where()}")
            self.now_us = min(instants)
            if self.now_us > self._limit_us:
                raise AssertionError(f"there is no end to it:\n{self.where()}")

    def _next_instant(self, thread: Thread[Any]) -> int | None:
        """When it can run at the latest; None if somebody has to do something for that."""
        if thread.stands_until > self.now_us:
            return thread.stands_until
        return thread.until

    def _can_run(self, thread: Thread[Any]) -> bool:
        if thread.stands_until > self.now_us:
            return False
        if thread.ready is None and thread.until is None:
            return True
        if thread.until is not None and thread.until <= self.now_us:
            return True
        return thread.interrupted is not None or (thread.ready is not None and thread.ready())

    # Event loops

    def loop(self) -> Loop:
        """A new event loop that lives here."""
        return Loop(self)

    def run_loop(self, main: Callable[[], Any]) -> Any:
        """As ``asyncio.run(main())``, on the thread that calls."""
        with asyncio.Runner(loop_factory=self.loop) as runner:
            return runner.run(main())


def _nothing() -> None:
    pass


# What takes the place of ``threading`` and ``time``


class Lock:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.owner: object = None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        machine = self.machine
        machine.switch()
        if self.owner is not None and blocking:
            machine.block(lambda: self.owner is None, machine.after(None if timeout < 0 else timeout))
        if self.owner is not None:
            return False
        self.owner = machine.current or machine
        return True

    def release(self) -> None:
        assert self.owner is not None, "it was not locked"
        self.owner = None
        self.machine.switch()

    def locked(self) -> bool:
        return self.owner is not None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class RLock(Lock):
    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self.depth = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        mine = self.owner is not None and self.owner is (self.machine.current or self.machine)
        if not mine and not super().acquire(blocking, timeout):
            return False
        self.depth += 1
        return True

    def release(self) -> None:
        self.depth -= 1
        if not self.depth:
            super().release()


class Event:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        self.machine.switch()

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        machine = self.machine
        machine.block(lambda: self._set, machine.after(timeout))
        return self._set


class _Threading:
    """In the place of the module ``threading``."""

    TIMEOUT_MAX = 1e9

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.started: list[str] = []

    def Lock(self) -> Lock:  # noqa: N802  # as the module names it
        return Lock(self.machine)

    def RLock(self) -> RLock:  # noqa: N802
        return RLock(self.machine)

    def Event(self) -> Event:  # noqa: N802
        return Event(self.machine)

    def Thread(  # noqa: N802
        self,
        *,
        target: Callable[..., object],
        args: Sequence[object] = (),
        name: str = "",
        daemon: bool | None = None,
    ) -> _Startable:
        return _Startable(self.machine, lambda: target(*args), name)


class _Startable:
    def __init__(self, machine: Machine, function: Callable[[], object], name: str) -> None:
        self._machine, self._function, self.name = machine, function, name
        self._thread: Thread[object] | None = None

    def start(self) -> None:
        self._machine.threading.started.append(self.name)
        self._thread = self._machine.spawn(self._function, self.name)

    def is_alive(self) -> bool:
        return self._thread is not None and not self._thread.done


class _Time:
    """In the place of the module ``time``."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def monotonic(self) -> float:
        return self._machine.now_us / SECOND

    def sleep(self, seconds: float) -> None:
        self._machine.sleep(seconds)


class _Selector(selectors.DefaultSelector):
    """Where the loop would sleep, others run."""

    loop: Loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        machine, loop = self.loop.machine, self.loop
        if timeout is not None and timeout <= 0:
            machine.switch()
        else:
            machine.block(lambda: loop.woken, machine.after(timeout))
        loop.woken = False
        return []


class Loop(asyncio.SelectorEventLoop):
    """An event loop of a machine; threads of the machine may wake it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.woken = False
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)
        self._clock_resolution = 1e-8

    def time(self) -> float:
        return self.machine.now_us / SECOND

    def _write_to_self(self) -> None:
        self.woken = True
