"""One call: what was asked for, what became of it, and how to wait for that."""

from __future__ import annotations

import contextvars
import inspect
import threading
from collections.abc import Callable, Generator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from headgate.core.model import SECOND
from headgate.errors import ConfigurationError
from headgate.runner.digests import digest

if TYPE_CHECKING:
    import asyncio

    from headgate.limiter import Permit
    from headgate.runner.waiting import Entry

R = TypeVar("R")

WAITING, RUNNING, ASLEEP, DONE = "waiting", "running", "asleep", "done"
"""States of a call. Asleep: it has failed and pauses before its next attempt."""


class Owner(Protocol):
    """What a call needs of its runner."""

    lock: threading.RLock

    def cancel(self, call: Call[Any], reason: BaseException | None) -> bool: ...
    def set_priority(self, call: Call[Any], priority: float) -> None: ...
    def wait_for(self, call: Call[Any], timeout: float | None) -> None: ...
    async def wait_for_async(self, call: Call[Any]) -> None: ...


class Call(Generic[R]):
    """A call and its record.

    Attributes:
        args, kwargs: what the function is called with.
        id: its name: ``"1"``, ``"2"``, … or what was asked for.
        position: its place in the order of scheduling, from 0.
        state: ``waiting``, ``running``, ``asleep`` (pausing before another attempt) or ``done``.
        value: what the function returned; None before, and after a failure.
        error: what it failed with for good: the last original exception; None otherwise.
        exceptions: what each failed attempt raised, in order.
        attempts: how often it was started; refusals for its rate count here too.
        skipped: it was a duplicate and did not run.
        restored: its result came from the checkpoint.
    """

    __slots__ = (
        "__weakref__",
        "_digest",
        "_done_callbacks",
        "_exceptions",
        "_owner",
        "_priority",
        "args",
        "attempt",
        "attempts",
        "cancelled",
        "context",
        "costs",
        "dropped",
        "elapsed_us",
        "entry",
        "error",
        "failures",
        "finished",
        "first_throttled_us",
        "id",
        "kwargs",
        "number",
        "occurrence",
        "position",
        "price",
        "queued",
        "restored",
        "shares",
        "skipped",
        "started",
        "state",
        "timeout",
        "twins",
        "units",
        "value",
    )

    def __init__(self, owner: Owner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._owner = owner
        self.args = args
        self.kwargs = kwargs
        self.id = ""
        self.position = -1
        self._priority: float = 0
        self.state = WAITING
        self.value: R | None = None
        self.error: BaseException | None = None
        self._exceptions: list[BaseException] | None = None
        self.attempts = 0
        self.failures = 0  # attempts that count against max_attempts
        self.skipped = False
        self.restored = False
        self.shares = False  # it waits for the result of a twin
        self.cancelled = False
        self.dropped = False  # nobody waits for it: it is seen through, but not begun again
        self.queued = self.started = self.finished = 0.0  # Unix seconds
        self.elapsed_us = 0
        self.first_throttled_us: int | None = None
        self.timeout: float | None = None
        self.occurrence = 0
        self._digest: str | None = None
        self.price = 0.0
        self.units: Mapping[str, int] = {}
        self.costs: tuple[int, ...] = ()
        self.context: contextvars.Context | None = None
        self.attempt: Attempt | None = None
        self.twins: list[Call[R]] | None = None
        self._done_callbacks: list[Callable[[], object]] | None = None
        self.number = 0
        self.entry: Entry | None = None

    def __repr__(self) -> str:
        what = self.state
        if self.state == DONE:
            what = "skipped" if self.skipped else "failed" if self.error is not None else "done"
        return f"<Call {self.id} {what}, {self.attempts} attempts>"

    # The record

    @property
    def exceptions(self) -> list[BaseException]:
        return list(self._exceptions or ())

    @property
    def digest(self) -> str:
        """What is the same for equal arguments, 32 hexadecimal digits unless the runner has its own
        ``digest``.

        Raises:
            ConfigurationError: the arguments cannot be digested.
        """
        if self._digest is None:
            self._digest = digest(*self.args, **self.kwargs)
        return self._digest

    @property
    def priority(self) -> float:
        """Larger goes first; may be set as long as it waits."""
        return self._priority

    @priority.setter
    def priority(self, priority: float) -> None:
        self._owner.set_priority(self, priority)

    @property
    def queued_at(self) -> datetime:
        """When it was scheduled."""
        return datetime.fromtimestamp(self.queued, UTC)

    @property
    def started_at(self) -> datetime | None:
        """When its last attempt began."""
        return datetime.fromtimestamp(self.started, UTC) if self.started else None

    @property
    def finished_at(self) -> datetime | None:
        """When it was done."""
        return datetime.fromtimestamp(self.finished, UTC) if self.finished else None

    @property
    def elapsed_seconds(self) -> float | None:
        """How long its last attempt took, by a clock that nobody can set."""
        return self.elapsed_us / SECOND if self.finished and self.started else None

    def as_dict(self) -> dict[str, Any]:
        """The record as a flat dictionary, as for a row of a data frame."""
        try:
            known = self.digest
        except ConfigurationError:
            known = None
        return {
            "position": self.position,
            "id": self.id,
            "digest": known,
            "state": self.state,
            "value": self.value,
            "error": self.error,
            "attempts": self.attempts,
            "skipped": self.skipped,
            "restored": self.restored,
            "queued_at": self.queued_at,
            "started_at": self.started_at,
            "finished_at": self.finished_at,
            "elapsed_seconds": self.elapsed_seconds,
        }

    # Waiting for it

    def done(self) -> bool:
        """Whether its end is known."""
        return self.state is DONE

    def result(self, timeout: float | None = None) -> R:
        """Wait for the value; work begins if nothing runs yet.

        Args:
            timeout: seconds to wait at most.

        Raises:
            TimeoutError: not done by then.
            RunStopped: it will not be done: nothing more is sent.
            BaseException: what the call failed with.
        """
        if self.state is not DONE:
            self._owner.wait_for(self, timeout)
        return self._outcome()

    def __await__(self) -> Generator[Any, None, R]:
        if self.state is not DONE:
            yield from self._owner.wait_for_async(self).__await__()
        return self._outcome()

    def _outcome(self) -> R:
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # what the function returned, or None if skipped

    def add_done_callback(self, act: Callable[[], object]) -> None:
        """Call ``act`` when it is done, in the thread where that happens; at once if it is."""
        with self._owner.lock:
            if self.state is not DONE:
                if self._done_callbacks is None:
                    self._done_callbacks = []
                self._done_callbacks.append(act)
                return
        act()

    def remove_done_callback(self, act: Callable[[], object]) -> None:
        """Forget it."""
        with self._owner.lock:
            if self._done_callbacks is not None and act in self._done_callbacks:
                self._done_callbacks.remove(act)

    def cancel(self, reason: BaseException | None = None) -> bool:
        """Give it up; whether that came in time.

        A call that waits leaves at once. A coroutine that runs is cancelled; a function that runs in a thread
        cannot be stopped, but may look at ``current_call().cancelled``. Either keeps its place among the
        running ones until it has really ended.

        Args:
            reason: what the call is to fail with; :class:`CallCancelled` if None.
        """
        return self._owner.cancel(self, reason)

    # For the runner

    def note(self, error: BaseException) -> None:
        """An attempt has failed."""
        if self._exceptions is None:
            self._exceptions = []
        self._exceptions.append(error)

    def take_callbacks(self) -> list[Callable[[], object]]:
        """Those who wait for it, once."""
        callbacks, self._done_callbacks = self._done_callbacks or [], None
        return callbacks


class Attempt:
    """One attempt at a call, on its way; it stands among the running ones until its work has really ended.

    Attributes:
        over: its outcome is known, or no longer asked for; the work may go on.
        detached: the run that it was part of has ended without it; the next one waits for it again.
    """

    __slots__ = (
        "call",
        "detached",
        "handed",
        "number",
        "over",
        "permit",
        "price",
        "sent_us",
        "stepped",
        "task",
        "timer",
    )

    def __init__(self, call: Call[Any], permit: Permit, sent_us: int) -> None:
        self.call = call
        self.permit = permit
        self.sent_us = sent_us
        self.number = call.attempts
        self.price = call.price
        self.over = False
        self.detached = False
        self.handed: tuple[asyncio.AbstractEventLoop, Any] | None = None  # by a thread, to be awaited there
        self.stepped = False  # its task has begun
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None


def close(value: Any) -> None:
    """Nobody will await it."""
    if inspect.iscoroutine(value):
        value.close()


class CurrentCall:
    """The call that a function carries out, seen from inside."""

    __slots__ = ("_attempt", "_memory")

    def __init__(self, attempt: Attempt, memory: Memory) -> None:
        self._attempt = attempt
        self._memory = memory

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self._attempt.number

    @property
    def digest(self) -> str:
        """See :attr:`Call.digest`."""
        return self._attempt.call.digest

    @property
    def idempotency_key(self) -> str:
        """The same for each attempt at this call, also in a later process with the same checkpoint."""
        return self._memory.idempotency_key(self._attempt.call)

    @property
    def cancelled(self) -> bool:
        """Nobody waits for the result any more: it timed out, or was cancelled."""
        return self._attempt.over

    def record(self, name: str, value: Any) -> None:
        """Keep a fact about this call in the checkpoint, at once and for good.

        An operation id, say: whatever another attempt, here or in a later process, must know so as not to
        pay twice. Without a checkpoint it lasts as long as the runner.

        Args:
            name: of the fact.
            value: anything that JSON can hold.
        """
        self._memory.record(self._attempt.call, name, value)

    @property
    def recorded(self) -> dict[str, Any]:
        """{name: value} of all facts recorded for this call, by this and by earlier processes."""
        return self._memory.recorded(self._attempt.call)


class Memory(Protocol):
    """Where facts about calls are kept."""

    def idempotency_key(self, call: Call[Any]) -> str: ...
    def record(self, call: Call[Any], name: str, value: Any) -> None: ...
    def recorded(self, call: Call[Any]) -> dict[str, Any]: ...


current: contextvars.ContextVar[CurrentCall] = contextvars.ContextVar("headgate_call")


def current_call() -> CurrentCall:
    """The call that is being carried out here.

    Raises:
        LookupError: no runner called this.
    """
    try:
        return current.get()
    except LookupError:
        raise LookupError("current_call() is for functions that a Runner calls") from None
