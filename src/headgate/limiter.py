"""The front door: limits, a key and a store, and permits to send.

Nothing here knows how limits are kept or where; it turns calls with keyword units into costs, and
answers into signals.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from headgate import events
from headgate.core import model
from headgate.core.crowd import CLASS_NAMES
from headgate.core.headers import openai_readings, retry_after_us
from headgate.core.model import ANSWERED, LOST, SECOND, UNSENT, Limit, Report, Signal, Throttle, new
from headgate.core.plan import Plan
from headgate.core.retry import SPENDS_NO_ATTEMPT, class_of_status
from headgate.core.text import parse_limits
from headgate.decorator import limited
from headgate.errors import ConfigurationError, NoSuchKey
from headgate.order import refusal
from headgate.sharing.failure import parse_policy
from headgate.stores.base import Store, open_store
from headgate.waiters import Line, line_of

if TYPE_CHECKING:
    from headgate.operate import Snapshot
    from headgate.providers.resets import Parser, Provider

P = ParamSpec("P")
R = TypeVar("R")

ServiceClass = Literal["interactive", "normal", "bulk"]

OPTIONS = frozenset({"max_wait", "priority", "cost", "key", "store", "limits", "timeout"})
"""Words that mean something else here, and so cannot name a meter."""


class Permit:
    """The right to one call, reserved on every limit.

    Settle it when the answer has come. A ``with`` block settles it on leaving, as answered, or as lost if the
    block raised.

    Attributes:
        units: {limit name: units reserved}.
        waited_seconds: how long it took to get.
    """

    __slots__ = ("_grant", "_limiter", "settled", "waited_seconds")

    def __init__(self, limiter: Limiter, grant: model.Granted, waited_seconds: float) -> None:
        self._limiter = limiter
        self._grant = grant
        self.waited_seconds = waited_seconds
        self.settled = False

    def __repr__(self) -> str:
        units = ", ".join(f"{name}={units}" for name, units in self.units.items())
        return f"<Permit {units}{' settled' if self.settled else ''}>"

    @property
    def units(self) -> dict[str, int]:
        names = (limit.name for limit in self._limiter.limits)
        return dict(zip(names, self._grant.costs, strict=True))

    @property
    def granted_us(self) -> int:
        """Instant of the grant on the store's elapsed clock."""
        return self._grant.at_us

    def settle(self, **used: int) -> None:
        """The answer came. ``used`` is what the call really used: ``p.settle(tokens=431)``.

        What was reserved too much is given back where the server gives it back (``charge=usage``); what was
        reserved too little is owed. A meter that is not named is booked as reserved. The second settlement
        of a permit, and any later one, does nothing.
        """
        self.signal(Signal(usage=used) if used else ANSWERED)

    def give_back(self) -> None:
        """The call was not sent at all."""
        self.signal(UNSENT)

    def lost(self) -> None:
        """No answer came, and none will: the server may have charged it."""
        self.signal(LOST)

    def throttled(self, retry_after: float | None = None, meter: str | None = None) -> None:
        """The server refused it for its rate.

        Everybody on the key waits for the limits on ``meter`` (all rate limits if None), for
        ``retry_after`` seconds and then behind one probe.
        """
        pause = None if retry_after is None else round(retry_after * SECOND)
        self.signal(Signal(throttle=Throttle(meter, pause)))

    def read(self, status: int, headers: Mapping[str, str], **used: int) -> None:
        """Settle by an HTTP answer: its status, and its rate-limit fields.

        Understands Retry-After and the OpenAI dialect. ``used`` as for :meth:`settle`.
        """
        fields = {name.lower(): value for name, value in headers.items()}
        wall_us = self._limiter.store.now().wall_us
        readings = openai_readings(fields, wall_us, self._limiter.plan.meters)
        throttle = None
        if class_of_status(status) in SPENDS_NO_ATTEMPT:
            throttle = Throttle(None, retry_after_us(fields, wall_us))
        self.signal(Signal(usage=used, readings=readings, throttle=throttle))

    def signal(self, signal: Signal) -> None:
        """Settle by everything that is known; the other methods are short forms of this one.

        Raises:
            ConfigurationError: units that are no whole number >= 0; the permit is not settled by it.
        """
        if signal.usage or signal.charged:
            for meter, units in (*signal.usage.items(), *signal.charged.items()):
                if type(units) is not int or units < 0:
                    raise ConfigurationError(
                        f"{meter}: what was used is a whole number of units, 0 or more; got {units!r}"
                    )
        if not self.settled:
            self.settled = True
            self._limiter._settle(self._grant, signal)

    def _leave(self, error: BaseException | None) -> None:
        self.signal(ANSWERED if error is None else LOST)


class _Asking:
    """A permit to be: ``with limiter.permit(…) as p`` or ``async with limiter.permit(…) as p``."""

    __slots__ = ("_costs", "_limiter", "_max_wait", "_permit", "_priority")

    def __init__(self, limiter: Limiter, costs: model.Costs, priority: float, max_wait: float | None) -> None:
        self._limiter = limiter
        self._costs = costs
        self._priority = priority
        self._max_wait = max_wait
        self._permit: Permit | None = None

    def __enter__(self) -> Permit:
        return self._enter(self._limiter._acquire(self._costs, self._priority, self._max_wait))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        permit, self._permit = self._permit, None
        if permit is not None:
            permit._leave(error)

    async def __aenter__(self) -> Permit:
        return self._enter(await self._limiter._acquire_async(self._costs, self._priority, self._max_wait))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def _enter(self, permit: Permit) -> Permit:
        if self._permit is not None:  # two calls at once: the first permit would never be settled
            permit.give_back()
            raise RuntimeError("one permit() is for one call at a time: ask for another one")
        self._permit = permit
        return permit


class Limiter:
    """Sends as soon as the limits allow, and never sooner.

    ::

        limiter = Limiter("requests=500/min:burst=20", "tokens=40k/min:charge=usage:burst=4k")
        with limiter.permit(tokens=520) as permit:
            reply = client.post(...)
            permit.settle(tokens=reply["usage"]["total_tokens"])

    Use it from any number of threads and event loops at once. All limiters with the same key and store
    draw on one budget.

    Args:
        limits: what the server declares, as :class:`~headgate.Limit` or in the short form.
        key: the name of the budget: one account, one API key.
        store: where the budget is kept: a store, its URL, or None for this process alone.
        service_class: ``interactive``, ``normal`` or ``bulk``: while calls of several classes wait, they get
            50, 35 and 15 % of what the limits let through; what one does not want is the others'. Within a
            class, processes share equally.
        on_store_failure: what callers do while a shared store cannot be reached. ``wait``: as long as it
            takes, or ``max_wait``. ``refuse``: :class:`~headgate.StoreUnavailable` at once. ``share:N``, if
            N processes draw on the key: each goes by an Nth of the limits until the store is back.

    Raises:
        ConfigurationError: limits that cannot be read or make no sense.
    """

    def __init__(
        self,
        *limits: str | Limit,
        key: str = "default",
        store: Store | str | None = None,
        service_class: ServiceClass = "normal",
        on_store_failure: str = "wait",
    ) -> None:
        self.plan = Plan(parse_limits(limits))
        for limit in self.plan.limits:
            if limit.meter in OPTIONS:
                raise ConfigurationError(f"{limit.meter!r} is the name of an option and cannot name a meter")
        self.key = key
        self.store = open_store(store)
        if not self.store.shared and store is None:
            for limit in self.plan.limits:
                if limit.outlives_process:
                    warnings.warn(
                        f"{limit.name} is longer than an hour, but kept in memory: what was used is "
                        "forgotten when this process ends. Say start='used-N' or use a store that lasts.",
                        stacklevel=2,
                    )
        if service_class not in CLASS_NAMES:
            raise ConfigurationError(
                f"service_class is one of {', '.join(CLASS_NAMES)}; got {service_class!r}"
            )
        self.service_class = service_class
        self.on_store_failure = on_store_failure
        policy = parse_policy(on_store_failure)
        self._line = line_of(self.store, key, self.plan, CLASS_NAMES.index(service_class), policy)
        self._listeners: tuple[events.Listener, ...] = ()
        self._listening = threading.Lock()

    def __repr__(self) -> str:
        parts = [
            f"{limit.name} {used}/{limit.burst or limit.amount}"
            for limit, used in zip(self.plan.limits, self._line.used(), strict=True)
        ]
        return f"<Limiter {self.key!r} {', '.join(parts) or 'without limits'}, {self.waiting} waiting>"

    @property
    def limits(self) -> tuple[Limit, ...]:
        return self.plan.limits

    def of_class(self, service_class: ServiceClass) -> Limiter:
        """The same budget for calls of another class: ``limiter.of_class("bulk").permit()``."""
        return Limiter(
            *self.limits,
            key=self.key,
            store=self.store,
            service_class=service_class,
            on_store_failure=self.on_store_failure,
        )

    @property
    def waiting(self) -> int:
        """How many calls of this process wait for a permit."""
        return self._line.waiting

    def used(self) -> dict[str, int]:
        """{limit name: units that stand against it now}."""
        counts = self.store.used(self.key, self.plan)
        return dict(zip((limit.name for limit in self.limits), counts, strict=True))

    def blocked(self) -> tuple[Limit, float | None] | None:
        """The limit that the head of the line waits for, and for how many seconds; None if nobody waits.

        The seconds are None if it takes an answer first.
        """
        line = self._line
        if not line.waiting or line.blocking < 0:
            return None
        limit = self.limits[line.blocking]
        if line.until_us >= model.NEVER:
            return limit, None
        return limit, max(line.until_us - self.store.now().elapsed_us, 0) / SECOND

    # Asking

    def permit(self, *, max_wait: float | None = None, priority: float = 0, **units: int) -> _Asking:
        """A permit for one call that costs ``units``, for ``with`` and ``async with``.

        Args:
            max_wait: seconds to wait at most; None to wait as long as it takes.
            priority: larger goes first; equals go in the order of asking. Every eighth permit goes to
                whoever has waited longest.
            units: meter → units, whole numbers. One request and one slot of concurrency go without saying.

        Raises:
            CostExceedsLimit: on entering: the cost can never fit.
            AcquireTimeout: on entering: no permit within ``max_wait``.
            ConfigurationError: a meter that no limit counts.
        """
        return _Asking(self, self.plan.costs(units), priority, max_wait)

    def acquire(self, *, max_wait: float | None = None, priority: float = 0, **units: int) -> Permit:
        """A permit that you settle yourself. Arguments and errors as for :meth:`permit`."""
        return self._acquire(self.plan.costs(units), priority, max_wait)

    async def acquire_async(
        self, *, max_wait: float | None = None, priority: float = 0, **units: int
    ) -> Permit:
        """The same for coroutines."""
        return await self._acquire_async(self.plan.costs(units), priority, max_wait)

    def try_permit(self, **units: int) -> Permit | None:
        """A permit if there is one now and nobody waits in line; None otherwise, and nothing is charged.

        Raises:
            CostExceedsLimit: the cost can never fit.
        """
        answer = self._ask(self.plan.costs(units))
        return answer if type(answer) is Permit else None

    def _ask(self, costs: model.Costs) -> Permit | model.Wait | None:
        """A permit, or what there is to wait for; None if others are first in line."""
        answer = self._line.ask(costs)
        if isinstance(answer, model.Refused):
            raise refusal(self.plan, costs, answer)
        return self._granted(answer, answer.at_us) if isinstance(answer, model.Granted) else answer

    @overload
    def limited(self, function: Callable[P, R], /) -> Callable[P, R]: ...

    @overload
    def limited(
        self,
        *,
        cost: Callable[..., Mapping[str, int]] | Mapping[str, int] | None = None,
        usage: Callable[[Any], Mapping[str, int]] | None = None,
        headers: Provider | None = None,
        token_header: str | None = None,
        requests_header: str | None = None,
        parser: Parser | None = None,
        max_wait: float | None = None,
        priority: float = 0,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]: ...

    def limited(self, *function: Any, **options: Any) -> Any:
        """A decorator: each call of the function takes a permit first.

        For functions and coroutine functions; the types of the arguments stay what they are.

        An HTTP answer in what the function returns or raises settles its permit: by what it says of the
        limits, and, if it is a throttle (429 and its like), with a pause for everybody on the key. The error
        reaches the caller unchanged. Streams and bodies that were not read are not read here. What carries no
        answer is booked as answered if it was returned, and as lost if it was raised.

        By itself the pause is that of Retry-After. With ``headers``, or names of your own, it is the longest
        of Retry-After and the reset fields of the meters that the answer was refused for;
        :mod:`headgate.providers.resets` has the rule. A pause above 31 days is ignored.

        Args:
            function: if used without parentheses.
            cost: {meter: units} for every call, or a callable that makes it of the call's arguments.
            usage: makes {meter: units really used} of the result. Where it fails, the call is booked as
                reserved, and one error is logged.
            headers: whose reset fields to read: ``anthropic``, ``azure``, ``discord``, ``github``, ``groq``,
                ``mistral``, ``openai``, ``reddit`` or ``x``.
            token_header: the field that tells when there are tokens again, in the place of the provider's.
            requests_header: the same for requests.
            parser: makes of the text of your fields (of the provider's, if you name none) seconds, a
                ``timedelta``, a ``datetime`` (UTC, if it has no zone), or None if it cannot be read. Where it
                fails, the field is ignored, and one warning is logged. By default: RFC 3339 and HTTP dates,
                by the clock of the answer's Date field; Go durations such as ``6m0s``; Unix times in seconds
                or milliseconds; seconds.
            max_wait, priority: as for :meth:`permit`.

        Raises:
            ConfigurationError: no such provider, no such name of a field, or a parser with nothing to read.
        """
        wrap = limited(self, **options)
        return wrap(*function) if function else wrap

    # Watching

    def subscribe(self, listener: events.Listener) -> Callable[[], None]:
        """Call ``listener`` with each event, in the thread where it happens; returns how to stop that.

        A listener has to be quick. What it raises is not kept from the caller.
        """
        with self._listening:
            if not self._listeners:
                self._line.watch(self._told_to_wait)
                self._line.watch_store(self._tell)
            self._listeners = (*self._listeners, listener)

        return lambda: self.unsubscribe(listener)

    def unsubscribe(self, listener: events.Listener) -> None:
        """Call it no longer; nothing happens if it was not called."""
        with self._listening, suppress(ValueError):
            listeners = list(self._listeners)
            listeners.remove(listener)
            self._listeners = tuple(listeners)
            if not listeners:
                self._line.unwatch(self._told_to_wait)
                self._line.unwatch_store(self._tell)

    def _tell(self, event: events.Event) -> None:
        for listener in self._listeners:
            listener(event)

    def _told_to_wait(self, wait: model.Wait) -> None:
        if self._listeners:
            seconds = None
            if wait.until_us < model.NEVER:
                seconds = max(wait.until_us - self.store.now().elapsed_us, 0) / SECOND
            name = self.limits[wait.rule].name if wait.rule >= 0 else "paused"
            self._tell(events.Waited(self.key, name, seconds))

    # Operating: for everybody who draws on the key, in this process or in others

    def snapshot(self) -> Snapshot:
        """The key as it stands: limits, who waits and who holds, and why nothing goes if nothing does.

        Raises:
            StoreUnavailable
        """
        from headgate import operate  # only those who ask pay for it

        try:
            found = operate.snapshot(self.store, self.key)
        except NoSuchKey:
            found = operate.unused(self.key, self.plan, self.store.now())
        if isinstance(self._line, Line):  # the store has not always been told who waits
            waiting = self._line.access.waiting
            classes = (replace(each, waiting=waiting.get(kind, 0)) for kind, each in enumerate(found.classes))
            found = replace(found, classes=tuple(classes))
        return found

    def pause(self, seconds: float | None = None) -> None:
        """Let nothing go for so many seconds, above 0; None for until :meth:`resume`. Calls in flight go on.

        Raises:
            ConfigurationError, StoreUnavailable
        """
        from headgate import operate

        self._operate(lambda: operate.pause(self.store, self.key, seconds))

    def resume(self) -> bool:
        """Let calls go again, at once; returns whether the key was paused.

        Raises:
            StoreUnavailable
        """
        from headgate import operate

        return self._operate(lambda: operate.resume(self.store, self.key))

    def set_limits(self, *limits: str | Limit) -> None:
        """Put other limits in force, at once, until :meth:`reset_limits`; see
        :func:`headgate.operate.set_limits`. ``limits`` stays what this program declares.

        Raises:
            ConfigurationError, StoreUnavailable
        """
        from headgate import operate

        self._operate(lambda: operate.set_limits(self.store, self.key, limits))

    def reset_limits(self) -> bool:
        """Put the declared limits in force again; returns whether others were.

        Raises:
            StoreUnavailable
        """
        from headgate import operate

        return self._operate(lambda: operate.reset_limits(self.store, self.key))

    def set_shares(self, *, interactive: int, normal: int, bulk: int) -> None:
        """Share the limits between classes of service: percents that add up to 100, each at least 1.

        Raises:
            ConfigurationError, StoreUnavailable
        """
        from headgate import operate

        self._operate(
            lambda: operate.set_shares(
                self.store, self.key, interactive=interactive, normal=normal, bulk=bulk
            )
        )

    def _operate(self, act: Callable[[], R]) -> R:
        try:
            done = act()
        except NoSuchKey:
            self.store.used(self.key, self.plan)  # from here on it is known
            done = act()
        if isinstance(self._line, Line):  # a shared store tells those who wait by itself
            self._line.access.serve()
        return done

    # The other side of permits

    def _acquire(self, costs: model.Costs, priority: float, max_wait: float | None) -> Permit:
        grant, asked_us = self._line.acquire(costs, priority, max_wait)
        return self._granted(grant, asked_us)

    async def _acquire_async(self, costs: model.Costs, priority: float, max_wait: float | None) -> Permit:
        grant, asked_us = await self._line.acquire_async(costs, priority, max_wait)
        return self._granted(grant, asked_us)

    def _granted(self, grant: model.Granted, asked_us: int) -> Permit:
        waited_us = grant.at_us - asked_us
        permit = Permit(self, grant, waited_us / SECOND if waited_us > 0 else 0.0)
        if self._listeners:
            try:
                self._tell(events.Granted(self.key, permit.units, permit.waited_seconds))
            except BaseException:  # nobody will have the permit
                permit.give_back()
                raise
        return permit

    def _settle(self, grant: model.Granted, signal: Signal) -> None:
        self._line.settle((new(Report, (grant, signal)),))
        if self._listeners:
            if signal.throttle is not None:
                pause = signal.throttle.retry_after_us
                seconds = None if pause is None else pause / SECOND
                self._tell(events.Throttled(self.key, signal.throttle.meter, seconds))
            self._tell(events.Settled(self.key, signal.outcome, signal.usage))
