"""The front door of bulk work: any callable, called as fast as its limits allow, with every result kept."""

from __future__ import annotations

import contextvars
import inspect
import os
import warnings
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypedDict, TypeVar, Unpack, overload
from weakref import WeakValueDictionary

from headgate.core.model import SECOND, Limit, Refused
from headgate.core.retry import RetryPolicy
from headgate.errors import ConfigurationError, CostExceedsLimit, RunStopped
from headgate.limiter import Limiter
from headgate.order import refusal
from headgate.progress.view import KINDS as KINDS_OF_VIEW
from headgate.progress.view import make_view
from headgate.providers.outcome import Judge, RetryOn, Validator
from headgate.runner.bell import Bell, Interrupts
from headgate.runner.board import DEADLINE, INTERRUPTED, Board, Dedup
from headgate.runner.call import DONE, Call, current
from headgate.runner.events import KINDS, Kind, Listener
from headgate.runner.interval import Interval, spacing
from headgate.runner.memory import Occurrences, Remembered
from headgate.runner.ramp import Ramp
from headgate.runner.results import Results
from headgate.runner.spending import Spending
from headgate.runner.statistics import Statistics
from headgate.runner.status import Watch, statistics
from headgate.runner.stream import AHEAD, OnError, Source, Stream, itself, value_or_error, value_or_none
from headgate.runner.threads import Threads
from headgate.stores.base import Store
from headgate.stores.memory import MemoryStore

if TYPE_CHECKING:
    import asyncio

    from headgate.runner.checkpoint import Checkpoint, Codec
    from headgate.runner.engine import Engine
    from headgate.runner.lasting import Lasting
    from headgate.runner.session import AsyncSession, Session

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

MOST_COROUTINES, MOST_THREADS, MOST_UNLIMITED = 1000, 256, 64
"""How many calls run at once if nobody says: coroutines or threads under limits, or anything without a
limit."""

CLOSING_SECONDS = 0.5
"""What an event loop that is taken down may need to be closed."""

Units = Mapping[str, int]
Limits = Limiter | Limit | str | Iterable[Limit | str] | None


class Options(TypedDict, total=False):
    """The options of a :class:`Runner`; its docstring tells of each."""

    key: str | None
    store: Store | str | None
    cost: Callable[..., Units] | Units | None
    usage: Callable[[Any], Units] | None
    max_concurrent: int | None
    max_attempts: int
    max_throttled_seconds: float
    backoff_seconds: float
    validation: Validator | Sequence[Validator] | None
    timeout: float | None
    retry_on: RetryOn | None
    interval: Interval | None
    ramp: float | None
    dedup: Dedup
    digest: Callable[..., str] | None
    checkpoint: str | Path | None
    codec: Codec
    deadline: float | None
    price: Mapping[str, float] | Callable[..., float] | None
    spend_cap: float | None
    progress: bool | str
    paused: bool


class CallOptions(TypedDict, total=False):
    """What :meth:`Runner.options` takes."""

    priority: float
    timeout: float | None
    id: str
    digest: str


_holders: WeakValueDictionary[Path, Runner[Any, Any]] = WeakValueDictionary()
"""Who has which checkpoint, in this process."""


class Runner(Generic[P, R]):
    """Calls a function many times, each time as soon as its limits allow, and keeps what becomes of it.

    ::

        runner = Runner(client.chat.completions.create, openai.limits(rpm=500, tpm=200_000))
        for text in texts:
            runner.schedule(model="small", messages=[{"role": "user", "content": text}])
        results, exceptions = runner.run()

    It works the same in a script, in a notebook and in a thread. Functions are called in threads, coroutine
    functions on an event loop. Everything but ``run_async`` and the ``_async`` methods may be called from any
    thread, also while it runs.

    Args:
        function: anything that can be called: a function, method, coroutine function, partial, callable
            object, a lambda around a coroutine.
        limits: what the server declares: a :class:`~headgate.Limiter`, one limit, several, or the preset of a
            provider (which knows ``cost`` and ``usage``). None for no limit but ``max_concurrent``.
        key, store: of the budget, where ``limits`` is no limiter: calls under the same key and store share
            it. By default the budget is this runner's own.
        cost: {meter: units} of each call, or a callable that makes it of the call's arguments. A request and
            a slot go without saying.
        usage: makes {meter: units really used} of a result.
        max_concurrent: calls that run at once, 1 or more. None: 1,000 coroutines or 256 threads, 64 where
            there is no limit at all.
        max_attempts: attempts that may fail before a call is given up, 1 or more. A refusal for its rate
            is no failure: it pauses everybody on the limit, and the call is sent again.
        max_throttled_seconds: how long one call may be refused for its rate, all in all.
        backoff_seconds: ceiling of the first pause after a failure; it doubles each time, up to a minute, and
            the pause is drawn evenly below it. A result that is not valid is asked for again without pause.
        validation: a callable that says whether a result is valid, or a list of them: all have to agree, and
            the first that does not ends it.
        timeout: seconds that an attempt may take, from its start. The work keeps its slot until it has really
            ended.
        retry_on: which errors are worth another attempt: exception types, or a callable that says so. None:
            what errors tell of themselves (a wrong request, a wrong key or a bug in the function is not sent
            again).
        interval: at most so many starts in an interval, beside the limits.
        ramp: seconds in which the rate grows from next to nothing to the full one.
        dedup: what happens to a call whose digest waits or runs already: ``share`` (it gets the same result),
            ``skip`` (it is done at once, with ``skipped`` set), ``error`` (:class:`DuplicateCall`). None: it
            is a call like others.
        digest: makes the digest of a call's arguments; :func:`headgate.digest` if None.
        checkpoint: a file in which finished calls are kept. A runner with the same file, in this process or a
            later one, knows their results by their digests and does not repeat them.
        codec: how results are kept there: None for JSON, ``"pickle"``, or a pair (encode, decode).
        deadline: seconds that a run may last; what is on its way then gets another 5.
        price: {meter: money per unit}, or a callable that makes a call's price of its arguments.
        spend_cap: money that is never exceeded: a call that might is not started.
        progress: ``"auto"`` (a live view in a terminal or notebook, a line now and then elsewhere),
            ``"rich"``, ``"notebook"``, ``"log"``, False.
        paused: begin paused.

    Raises:
        ConfigurationError: options that make no sense, or a checkpoint that belongs to something else.
    """

    @overload
    def __init__(
        self: Runner[P, R],
        function: Callable[P, Coroutine[Any, Any, R]],
        limits: Limits = None,
        **options: Unpack[Options],
    ) -> None: ...

    @overload
    def __init__(
        self: Runner[P, R],
        function: Callable[P, R],
        limits: Limits = None,
        **options: Unpack[Options],
    ) -> None: ...

    def __init__(
        self,
        function: Callable[P, Any],
        limits: Limits = None,
        *,
        key: str | None = None,
        store: Store | str | None = None,
        cost: Callable[..., Units] | Units | None = None,
        usage: Callable[[Any], Units] | None = None,
        max_concurrent: int | None = None,
        max_attempts: int = 6,
        max_throttled_seconds: float = 3600.0,
        backoff_seconds: float = 0.5,
        validation: Validator | Sequence[Validator] | None = None,
        timeout: float | None = None,
        retry_on: RetryOn | None = None,
        interval: Interval | None = None,
        ramp: float | None = None,
        dedup: Dedup = None,
        digest: Callable[..., str] | None = None,
        checkpoint: str | Path | None = None,
        codec: Codec = None,
        deadline: float | None = None,
        price: Mapping[str, float] | Callable[..., float] | None = None,
        spend_cap: float | None = None,
        progress: bool | str = "auto",
        paused: bool = False,
    ) -> None:
        if not callable(function):
            raise ConfigurationError(f"a Runner calls a function; got {type(function).__name__}")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigurationError(
                "a generator function runs nothing when called: give a function around it"
            )
        if dedup not in (None, "share", "skip", "error"):
            raise ConfigurationError(f"dedup is share, skip, error or None; got {dedup!r}")
        self.function = function
        self.limiter = _limiter(limits, key, store)
        if checkpoint is None and not isinstance(limits, Limiter) and key is None and store is None:
            _warn_of_lasting(self.limiter)
        self._cost = cost if cost is not None else getattr(limits, "cost", None)
        self._timeout = _positive(timeout, "timeout")
        self._deadline = _positive(deadline, "deadline")
        self._digest = digest
        self._digests = dedup is not None or checkpoint is not None or digest is not None
        self._progress = _view_kind(progress)
        self._auto_concurrent = max_concurrent is None
        self._spacing = spacing(interval)
        judge = Judge(
            meters=self.limiter.plan.meters,
            usage=usage if usage is not None else getattr(limits, "usage", None),
            validators=_validators(validation),
            retry_on=retry_on,
            learn=None if usage is not None or cost is not None else getattr(limits, "learn", None),
        )
        policy = RetryPolicy(
            max_attempts=_count(max_attempts, "max_attempts"),
            first_backoff_us=round((_positive(backoff_seconds, "backoff_seconds", zero=True) or 0) * SECOND),
            max_throttled_us=round((_positive(max_throttled_seconds, "max_throttled_seconds") or 0) * SECOND),
        )
        self._board = Board(
            self.limiter,
            policy,
            max_concurrent=MOST_UNLIMITED
            if max_concurrent is None
            else _count(max_concurrent, "max_concurrent"),
            spacing=self._spacing,
            ramp=None if ramp is None else Ramp(_positive(ramp, "ramp") or 0, self.limiter.limits),
            spending=Spending(price, spend_cap),
            dedup=dedup,
        )
        self._board.paused = paused
        self._judge = judge
        self._closed = False
        self._memory = Remembered(self._open(checkpoint, codec))
        self._lasting: Lasting | None = None
        if self._memory.checkpoint is None:
            self._board.on_close = self._memory.forget
        else:
            own = not isinstance(limits, Limiter)
            self._keep_what_lasts(self._memory.checkpoint, own=own)
        self._threads = Threads()
        self._engine: Engine | None = None
        self._sessions: list[asyncio.AbstractEventLoop] = []  # those who wait, by the loop they would have
        self._started = False
        self._pid = os.getpid()
        self._positions = 0
        self._calls: list[Call[R]] = []
        self._seen = Occurrences()
        self._undelivered: Sequence[Call[R]] = ()
        self.lock = self._board.lock

    def _open(self, checkpoint: str | Path | None, codec: Codec) -> Checkpoint | None:
        if checkpoint is None:
            if codec is not None:
                raise ConfigurationError("codec says how a checkpoint keeps results: give checkpoint=, too")
            return None
        from headgate.runner.checkpoint import Checkpoint

        path = Path(checkpoint).resolve()
        former = _holders.get(path)
        if former is not None and not former._sessions and not former._started and not former.pending:
            former.close()  # a cell of a notebook has been run again
        opened = Checkpoint(path, function=_name(self.function), codec=codec)
        _holders[path] = self
        return opened

    def close(self) -> None:
        """Give up the checkpoint, for another runner to take. This one is of no more use then.

        A newer runner of this process with the same file does so to one that does not run.
        """
        self.stop("closed")
        self._closed = True
        self._memory.close()

    def _keep_what_lasts(self, checkpoint: Checkpoint, *, own: bool) -> None:
        from headgate.runner.lasting import Lasting

        lasting = Lasting(self.limiter, self._spacing, checkpoint, own=own)
        if lasting.needed:
            self._lasting = lasting
            self._board.on_start = lasting.started

    def __repr__(self) -> str:
        name = getattr(self.function, "__qualname__", None) or type(self.function).__qualname__
        figures = self._board.figures
        parts = [f"{self.size:,} waiting", f"{self.pending:,} running", f"{figures.succeeded:,} done"]
        if figures.failed:
            parts.append(f"{figures.failed:,} failed")
        if self.is_paused:
            parts.append("paused")
        elif self._board.stopped:
            parts.append(f"stopped: {self._board.stopped}")
        return f"<Runner {name}: {', '.join(parts)}>"

    def _repr_html_(self) -> str:
        from headgate.progress.html import card

        status = Watch(self._board, None, counts_known=True).status()
        figures = self.statistics()
        facts = [("waiting", f"{status.waiting:,}"), ("running", f"{status.in_flight:,}")]
        facts += [
            (name, f"{getattr(figures, name):,}") for name in ("succeeded", "failed", "refused", "retries")
        ]
        bars = [(use.name, min(use.share or 0.0, 1.0), f"{use.used:,.0f} used") for use in figures.limits]
        name = getattr(self.function, "__qualname__", None) or type(self.function).__qualname__
        return card(f"Runner of {name}", facts, bars)

    # Scheduling

    def schedule(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """One more call, with the arguments of the function. It starts in :meth:`run`, or at once while that
        runs.

        Raises:
            CostExceedsLimit: no limit would ever let it through (a ValueError).
            DuplicateCall: it waits or runs already, and ``dedup="error"``.
            ConfigurationError: its arguments cannot be digested, and a digest is needed.
        """
        return self._schedule(args, kwargs, {})

    def options(self, **options: Unpack[CallOptions]) -> Prepared[P, R]:
        """The same runner with options for single calls: ``runner.options(priority=1).schedule(…)``.

        Args:
            options: ``priority`` (larger goes first, 0 by default), ``timeout`` (seconds, None for none),
                ``id``, ``digest``.
        """
        unknown = options.keys() - CallOptions.__annotations__.keys()
        if unknown:
            raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
        return Prepared(self, options)

    def map(
        self, *iterables: Any, on_error: OnError = "none", ahead: int = AHEAD, **kwargs: Any
    ) -> Stream[R | None]:
        """What the function returns for each item, in order: ``list(runner.map(texts))``.

        Nothing is read further ahead than needed, so memory stays flat. Use ``for`` or ``async for``.

        Args:
            iterables: of positional arguments; with several, as many as the shortest has. One alone may be
                asynchronous.
            on_error: a call that fails for good gives None (``none``, and one line in the log tells how
                many), or its error is raised at its place (``raise``).
            ahead: how many calls may be scheduled and not given back.
            kwargs: arguments that all calls share.
        """
        return self._stream(Source(iterables), kwargs, ahead, on_error)

    def starmap(
        self,
        iterable: Iterable[tuple[Any, ...] | Mapping[str, Any]],
        *,
        on_error: OnError = "none",
        ahead: int = AHEAD,
    ) -> Stream[R | None]:
        """As :meth:`map`, where each item holds all arguments: a tuple, or a dictionary of keywords."""
        return self._stream(Source((iterable,), star=True), {}, ahead, on_error)

    def as_completed(self, *iterables: Any, ahead: int = AHEAD, **kwargs: Any) -> Stream[Call[R]]:
        """The calls, each when it is done, well or not. Without iterables: those that are scheduled."""
        if iterables:
            source, owns = Source(iterables), True
        else:
            source, owns = Source((list(self._calls),), star=True), False
            ahead = max(ahead, len(self._calls))
        return self._make_stream(source, kwargs, ahead=ahead, give=itself, ordered=False, owns=owns)

    def _stream(
        self, source: Source, kwargs: dict[str, Any], ahead: int, on_error: OnError
    ) -> Stream[R | None]:
        if on_error not in ("none", "raise"):
            raise ConfigurationError(f"on_error is none or raise; got {on_error!r}")
        give = value_or_none if on_error == "none" else value_or_error
        return self._make_stream(source, kwargs, ahead=ahead, give=give, ordered=True)

    def _make_stream(
        self,
        source: Source,
        kwargs: dict[str, Any],
        *,
        ahead: int,
        give: Callable[[Call[Any]], T],
        ordered: bool,
        owns: bool = True,
    ) -> Stream[T]:
        seen = Occurrences()

        def prepare(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call[Any]:
            return self._schedule(args, kwargs, {}, seen=seen)

        return Stream(
            self,
            source,
            prepare=prepare,
            kwargs=kwargs,
            ordered=ordered,
            give=give,
            ahead=_count(ahead, "ahead"),
            owns=owns,
        )

    def _schedule(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: CallOptions,
        *,
        seen: Occurrences | None = None,
    ) -> Call[R]:
        """A call on the board; one of ``schedule`` if ``seen`` is None, else one of a stream's own."""
        self._not_closed()
        board = self._board
        call: Call[R] = Call(self, args, kwargs)
        call.queued = board.now().wall_us / SECOND
        call.timeout = self._timeout
        if options:
            self._apply(call, options)
        if self._digests:
            if call._digest is None and self._digest is not None:
                call._digest = str(self._digest(*args, **kwargs))
            _ = call.digest  # told now, not when it is too late
        try:
            self._price(call)
        except CostExceedsLimit as error:
            if seen is None:
                raise
            self._number(call)
            board.refuse(call, error)
            return call
        call.context = contextvars.copy_context()
        try:
            with self.lock:
                self._enter(call, seen)
                board.add(call, None if self._memory.checkpoint is None else self._memory.find)
            board.tell()
            board.wake()
        except BaseException:  # a duplicate, or Ctrl-C: a call is on the board and in the list, or in neither
            if not board.knows(call):
                with self.lock:
                    _remove(self._calls, call)
            elif seen is not None:
                board.cancel(call, None)
            raise
        return call

    def _enter(self, call: Call[R], seen: Occurrences | None) -> None:
        """Give it its place in the order of scheduling."""
        with self.lock:
            self._number(call)
            if seen is None:
                self._calls.append(call)
            if self._memory.checkpoint is not None and self._board.dedup is None:
                call.occurrence = (self._seen if seen is None else seen).next(call.digest)

    def _number(self, call: Call[R]) -> None:
        with self.lock:
            call.position = self._positions
            self._positions += 1
        call.id = call.id or str(call.position + 1)

    def _apply(self, call: Call[R], options: CallOptions) -> None:
        if "priority" in options:
            call._priority = _finite(options["priority"])
        if "timeout" in options:
            call.timeout = _positive(options["timeout"], "timeout")
        call.id = options.get("id", "")
        call._digest = options.get("digest")
        if not isinstance(call._digest, str | None):
            raise ConfigurationError(f"a digest is a text; got {call._digest!r}")

    def _price(self, call: Call[R]) -> None:
        plan = self.limiter.plan
        cost = self._cost
        if cost is not None:
            call.units = cost(*call.args, **call.kwargs) if callable(cost) else cost
            if not isinstance(call.units, Mapping):
                raise ConfigurationError(f"cost= makes a mapping of meters to units; got {call.units!r}")
        call.costs = plan.costs(call.units)
        for index, (units, rule) in enumerate(zip(call.costs, plan.rules, strict=True)):
            if units > rule.largest:
                raise refusal(self.limiter.plan, call.costs, Refused(index, rule.largest))
        if self._board.spending.counts:
            call.price = self._board.spending.price_of(call.args, call.kwargs, call.units)

    # Running

    def run(self, *, deadline: float | None = None) -> Results[R]:
        """Carry out everything that is scheduled, and all that is added meanwhile.

        Blocks. The same in a script, inside a running event loop (a notebook) and in a thread. The first
        Ctrl-C lets the calls on their way come back and returns what there is; ``run()`` again goes on with
        the rest. The second Ctrl-C raises KeyboardInterrupt at once. After a run in which everything was
        done, the list is empty, and the runner can be used anew.

        Args:
            deadline: seconds for this run, in place of the runner's.

        Returns:
            ``results, exceptions``, in the order of scheduling.

        Raises:
            StoreError, OSError: what made going on impossible. Results are kept; ``run()`` again goes on.
        """
        self._not_from_inside()
        with Interrupts(Bell()) as interrupts:  # from here, the first Ctrl-C only rings
            session = self._session(None, counts_known=True, deadline=deadline, interrupts=interrupts)
            try:
                session.open()
                results = None
                while results is None:  # somebody may have scheduled more in between
                    session.settle()
                    results = self._collect()
            finally:
                session.close()
        self._tell_of_end(results)
        self._undelivered = ()  # right before the end: a Ctrl-C on the way out takes nothing along
        return results

    async def run_async(self, *, deadline: float | None = None) -> Results[R]:
        """The same in a coroutine; coroutine functions run on its loop. Cancelling it keeps what is done."""
        async with self._session_async(None, counts_known=True, deadline=deadline) as session:
            results = None
            while results is None:
                await session.settle()
                results = self._collect()
        self._tell_of_end(results)
        self._undelivered = ()  # right before the end: a Ctrl-C on the way out takes nothing along
        return results

    def start(self) -> None:
        """Begin in the background: calls start as they are scheduled, until :meth:`stop`.

        Coroutine functions run on the background loop of the process; to have them on your own, use
        ``async with runner:``.
        """
        from headgate.runner.background import background_loop

        self._start(background_loop())

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        with self.lock:
            self._hold(loop, is_session=False)
            self._started = True

    def stop(self, why: str = "stopped") -> None:
        """Start nothing more. What runs goes on; what waits stays for the next run."""
        self._board.stop(why)
        with self.lock:
            self._started = False
            self._close_engine()

    def __enter__(self) -> Runner[P, R]:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.wait_idle()
        except BaseException:
            self._board.cut()
            raise
        finally:
            self.stop()
            if isinstance(error, KeyboardInterrupt):
                self._board.cut()

    async def __aenter__(self) -> Runner[P, R]:
        self._start(_here())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                await self.wait_idle_async()
        except BaseException:
            self._board.cut()
            raise
        finally:
            self.stop()
            if error is not None:
                self._board.cut()

    def results(self) -> Results[R]:
        """What there is by now, without waiting."""
        with self.lock:
            return Results(self._in_order(), self._board.stopped)

    def _in_order(self) -> list[Call[R]]:
        """Those of several threads may have been entered out of order."""
        self._calls.sort(key=_position)
        return self._calls

    def _collect(self) -> Results[R] | None:
        """The results, if all is settled; None if it is not any more."""
        board = self._board
        if board.broken is not None:
            raise board.broken
        with self.lock:
            if not board.is_settled():
                return None
            calls = [*self._undelivered, *self._in_order()]
            left = sum(call.state is not DONE for call in calls)
            if not left:
                self._undelivered, self._calls, self._seen = calls, [], Occurrences()
            return Results(calls, board.stopped if left else None)

    def _tell_of_end(self, results: Results[R]) -> None:
        if results.stopped is not None:
            from headgate.runner.session import tell_of_end

            tell_of_end(self._board, sum(call.state is not DONE for call in results.calls))

    def _session(
        self,
        total: int | None,
        *,
        counts_known: bool = False,
        deadline: float | None = None,
        interrupts: Interrupts | None = None,
    ) -> Session:
        self._not_from_inside()
        from headgate.runner.background import background_loop
        from headgate.runner.session import Session

        return Session(
            self._board,
            make_view(self._progress),
            total=total,
            counts_known=counts_known,
            deadline=self._deadline if deadline is None else _positive(deadline, "deadline"),
            hold=lambda: self._hold(background_loop(), blocking=True),
            release=lambda: self._release(background_loop()),
            interrupts=interrupts or Interrupts(Bell()),
        )

    def _session_async(
        self, total: int | None, *, counts_known: bool = False, deadline: float | None = None
    ) -> AsyncSession:
        self._not_from_inside()
        from headgate.runner.session import AsyncSession

        loop = _here()
        return AsyncSession(
            self._board,
            make_view(self._progress),
            total=total,
            counts_known=counts_known,
            deadline=self._deadline if deadline is None else _positive(deadline, "deadline"),
            hold=lambda: self._hold(loop),
            release=lambda: self._release(loop),
            is_last=lambda: len(self._sessions) == 1 and not self._started,
        )

    def _not_closed(self) -> None:
        if self._closed:
            raise RuntimeError("this runner is closed; a newer one may have taken over its checkpoint")

    def _not_from_inside(self) -> None:
        inside = current.get(None)
        if inside is not None and inside._attempt.call._owner is self:
            raise RuntimeError("a call cannot wait for the runner that carries it out: schedule, and return")

    def _hold(
        self, loop: asyncio.AbstractEventLoop, *, is_session: bool = True, blocking: bool = False
    ) -> None:
        """One more who wants calls to start; the first one has the engine made.

        Args:
            is_session: somebody waits, and will release it; whoever comes first begins anew after a stop.
            blocking: this thread will wait, so it must not be that of the engine's loop.
        """
        self._not_closed()
        self._after_fork()
        with self.lock:
            engine = self._engine
            alive = engine is not None and engine.alive
            if blocking and (engine.loop if alive and engine is not None else loop) is _running_loop():
                raise RuntimeError(
                    "waiting here would stop the event loop that has to do the work: use the form with await"
                )
            self._sessions = [other for other in self._sessions if not other.is_closed()]
            if not self._sessions:
                self._board.go()
            if is_session:
                self._sessions.append(loop)
            if not alive:
                self._board.reclaim()
                self._engine = self._make_engine(loop)
                self._engine.start()

    def _release(self, loop: asyncio.AbstractEventLoop) -> None:
        with self.lock:
            if loop in self._sessions:  # else this is a child process, or its loop was taken down
                self._sessions.remove(loop)
            if not self._sessions and self._started and self._board.stopped in (DEADLINE, INTERRUPTED):
                self._board.go()  # that was the session's wish, not that of whoever started it
            self._close_engine()

    def _close_engine(self) -> None:
        if self._sessions or self._started or self._engine is None:
            return
        self._engine.close()
        self._engine = None
        if self._lasting is not None and not self._board.running and not self._closed:
            self._lasting.rest()

    def _after_fork(self) -> None:
        if self._pid != os.getpid():  # threads, loops and calls on their way are in the parent
            self._pid = os.getpid()
            self._sessions, self._started, self._engine = [], False, None
            self._threads = Threads()
            self._board.forked()
            self.lock = self._board.lock

    def _make_engine(self, loop: asyncio.AbstractEventLoop) -> Engine:
        from headgate.runner.engine import Engine, Target

        target = Target(self.function)
        if self._auto_concurrent and self.limiter.limits:
            self._board.set_most(MOST_COROUTINES if target.on_loop else MOST_THREADS)
        return Engine(
            self._board,
            target,
            self._judge,
            self._memory,
            keep=self._memory.keep if self._memory.checkpoint is not None else None,
            price=self._price if self._judge.learn is not None else None,
            loop=loop,
            threads=self._threads,
            on_end=self._engine_ended,
            current=lambda: self._engine,
        )

    def _engine_ended(self) -> None:
        """The event loop of the engine is being taken down: its calls stand in line again."""
        from headgate.runner.background import background_loop

        with self.lock:
            ended, self._engine = self._engine, None
            left = [loop for loop in self._sessions if ended is not None and loop is not ended.loop]
        if not left:
            self._board.stop("its event loop has ended")
        self._board.cut()
        with self.lock:
            if left and self._sessions and self._engine is None:  # others go on, on the loop of the process
                loop = background_loop()
                self._engine = self._make_engine(loop)
                self._engine.start()
                # What the other loop leaves lying is found when it is closed, a moment from now.
                loop.call_soon_threadsafe(loop.call_later, CLOSING_SECONDS, self._board.reclaim)

    def _get_going(self, loop: asyncio.AbstractEventLoop, *, blocking: bool) -> None:
        """Somebody waits: begin if nothing runs, until all is settled."""
        with self.lock:
            busy = self._sessions or self._started
            engine = self._engine
            if busy and engine is not None and engine.alive:
                if blocking and engine.loop is _running_loop():
                    self._hold(loop, is_session=False, blocking=True)  # says why not
                return
            self._hold(loop, blocking=blocking)
        self._board.when(self._board.is_settled, lambda: self._release(loop), at_rest=True)

    def wait_for(self, call: Call[Any], timeout: float | None) -> None:
        """See :meth:`Call.result`."""
        from headgate.runner.background import background_loop

        self._not_from_inside()
        self._get_going(background_loop(), blocking=True)
        bell = Bell()
        call.add_done_callback(bell.ring)
        forget = self._board.when(self._is_over, bell.ring, at_rest=True)
        try:
            if not bell.wait(timeout):
                raise TimeoutError(f"call {call.id} is not done after {timeout:g} s")
        finally:
            call.remove_done_callback(bell.ring)
            forget()
        self._see_to(call)

    async def wait_for_async(self, call: Call[Any]) -> None:
        """See :meth:`Call.result`."""
        import asyncio

        self._not_from_inside()
        loop = asyncio.get_running_loop()
        self._get_going(loop, blocking=False)
        bell = asyncio.Event()

        def ring() -> None:
            loop.call_soon_threadsafe(bell.set)

        call.add_done_callback(ring)
        forget = self._board.when(self._is_over, ring, at_rest=True)
        try:
            await bell.wait()
        finally:
            call.remove_done_callback(ring)
            forget()
        self._see_to(call)

    def _is_over(self) -> bool:
        """Nothing more will be done without another word."""
        board = self._board
        return not board.live and (board.stopped is not None or board.broken is not None)

    def _see_to(self, call: Call[Any]) -> None:
        if call.state is not DONE:
            raise self._board.broken or RunStopped(f"stopped: {self._board.stopped}")

    # Steering

    @property
    def size(self) -> int:
        """How many calls wait for their start."""
        return self._board.size()

    @property
    def pending(self) -> int:
        """How many run; also those that were given up and have not really ended."""
        return len(self._board.running)

    @property
    def running(self) -> list[Call[R]]:
        """The calls that run."""
        with self.lock:
            return [attempt.call for attempt in self._board.running]

    @property
    def waiting(self) -> list[Call[R]]:
        """The calls that wait for their start, in order."""
        with self.lock:
            return list(self._board.waiting)

    @property
    def is_limited(self) -> bool:
        """Whether work waits for a limit or the interval."""
        return self._board.limited

    @property
    def is_paused(self) -> bool:
        return self._board.paused

    @property
    def is_saturated(self) -> bool:
        """Whether work waits for a limit, the interval or a slot."""
        return self._board.limited or (self.size > 0 and self.pending >= self._board.max_concurrent)

    @property
    def max_concurrent(self) -> int:
        """Calls that run at once. More starts waiting calls at once; less interrupts none."""
        return self._board.max_concurrent

    @max_concurrent.setter
    def max_concurrent(self, most: int) -> None:
        self._auto_concurrent = False
        self._board.set_most(_count(most, "max_concurrent"))

    @property
    def spent(self) -> float:
        """Money spent by ``price``, without what is reserved for calls on their way."""
        return self._board.spending.spent

    @property
    def spend_cap(self) -> float | None:
        """May be raised; the next run goes on."""
        return self._board.spending.cap

    @spend_cap.setter
    def spend_cap(self, cap: float | None) -> None:
        self._board.spending.cap = cap
        self._board.wake()

    def pause(self) -> Runner[P, R]:
        """Start nothing more until :meth:`resume`; what runs goes on, and limits open meanwhile."""
        self._board.pause()
        return self

    def resume(self) -> Runner[P, R]:
        """Go on after :meth:`pause`."""
        self._board.resume()
        return self

    def clear(self) -> int:
        """Drop all that waits; whoever waits for it gets :class:`CallCancelled`. Returns how many."""
        return len(self._board.clear())

    def cancel(self, call: Call[Any], reason: BaseException | None = None) -> bool:
        """See :meth:`Call.cancel`."""
        if reason is not None and not isinstance(reason, BaseException):
            raise TypeError(f"a reason is an exception; got {type(reason).__name__}")
        return self._board.cancel(call, reason)

    def set_priority(self, call: Call[Any] | str, priority: float) -> None:
        """Move a waiting call to the tail of another priority.

        Args:
            call: it, or its id (the first that waits with that id).

        Raises:
            LookupError: it does not wait.
            ConfigurationError: the priority is no finite number.
        """
        priority = _finite(priority)
        found = call if isinstance(call, Call) else self._board.find(call)
        if found is None or not self._board.set_priority(found, priority):
            raise LookupError(f"no call {call!r} waits")

    def subscribe(self, listener: Listener, *kinds: Kind) -> Callable[[], None]:
        """Call ``listener`` with each :class:`Event`, or with those of some kinds; returns how to stop that.

        It is called in the thread where it happens and has to be quick. What it raises is logged.
        """
        unknown = set(kinds) - KINDS
        if unknown:
            raise ConfigurationError(
                f"no event is called {', '.join(sorted(unknown))}; there are {sorted(KINDS)}"
            )
        return self._board.listen(listener, frozenset(kinds) or None)

    def statistics(self) -> Statistics:
        """Counts, latency, throughput, refusals, retries and the use of each limit, since the runner was
        made.
        """
        return statistics(self._board)

    # Waiting

    def wait_empty(self, timeout: float | None = None) -> bool:
        """Block until no call waits for its start; whether that came in time."""
        return self._wait(self._is_empty, timeout)

    def wait_idle(self, timeout: float | None = None) -> bool:
        """Block until no call waits or runs; whether that came in time."""
        return self._wait(self._board.is_idle, timeout)

    def wait_below(self, size: int, timeout: float | None = None) -> bool:
        """Block until fewer than ``size`` calls wait; whether that came in time."""
        return self._wait(lambda: self.size < size, timeout)

    async def wait_empty_async(self) -> None:
        """:meth:`wait_empty` for coroutines."""
        await self._wait_async(self._is_empty)

    async def wait_idle_async(self) -> None:
        """:meth:`wait_idle` for coroutines."""
        await self._wait_async(self._board.is_idle)

    async def wait_below_async(self, size: int) -> None:
        """:meth:`wait_below` for coroutines."""
        await self._wait_async(lambda: self.size < size)

    def _is_empty(self) -> bool:
        return not self.size

    def _wait(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        from headgate.runner.background import background_loop

        self._not_from_inside()
        if condition():
            return True
        self._get_going(background_loop(), blocking=True)
        bell = Bell()
        forget = self._board.when(lambda: condition() or self._is_over(), bell.ring)
        try:
            if not bell.wait(timeout):
                return False
        finally:
            forget()
        self._see_reached(condition)
        return True

    async def _wait_async(self, condition: Callable[[], bool]) -> None:
        import asyncio

        self._not_from_inside()
        if condition():
            return
        loop = asyncio.get_running_loop()
        self._get_going(loop, blocking=False)
        bell = asyncio.Event()
        forget = self._board.when(
            lambda: condition() or self._is_over(), lambda: loop.call_soon_threadsafe(bell.set)
        )
        try:
            await bell.wait()
        finally:
            forget()
        self._see_reached(condition)

    def _see_reached(self, condition: Callable[[], bool]) -> None:
        if self._is_over() and not condition():
            raise self._board.broken or RunStopped(f"stopped: {self._board.stopped}")


class Prepared(Generic[P, R]):
    """A runner with options for single calls."""

    def __init__(self, runner: Runner[P, R], options: CallOptions) -> None:
        self._runner = runner
        self._options = options

    def schedule(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """See :meth:`Runner.schedule`."""
        return self._runner._schedule(args, kwargs, self._options)


def _limiter(limits: Limits, key: str | None, store: Store | str | None) -> Limiter:
    if isinstance(limits, Limiter):
        if key is not None or store is not None:
            raise ConfigurationError("key and store belong to the limiter: give them there")
        return limits
    if limits is None:
        several: tuple[Limit | str, ...] = ()
    elif isinstance(limits, Limit | str):
        several = (limits,)
    else:
        several = tuple(limits)
    if key is None and store is None:  # a budget of its own, so that another runner may have other limits
        return Limiter(*several, key="runner", store=MemoryStore())
    return Limiter(*several, key=key or "default", store=store)


def _warn_of_lasting(limiter: Limiter) -> None:
    for limit in limiter.limits:
        if limit.outlives_process:
            warnings.warn(
                f"{limit.name} is longer than an hour, but kept in memory: what was used is forgotten when "
                "this process ends. Give checkpoint=, a store that lasts, or start='used-N'.",
                stacklevel=3,
            )


def _name(function: Any) -> str:
    while hasattr(function, "func"):  # partial
        function = function.func
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}.{kind.__qualname__}"


def _validators(validation: Validator | Sequence[Validator] | None) -> tuple[Validator, ...]:
    if validation is None:
        return ()
    several = tuple(validation) if isinstance(validation, Sequence) else (validation,)
    for validator in several:
        if not callable(validator):
            raise ConfigurationError(f"validation takes callables; got {validator!r}")
    return several


def _view_kind(progress: bool | str) -> str:
    kind = progress if isinstance(progress, str) else "auto" if progress else "none"
    if kind not in KINDS_OF_VIEW:
        raise ConfigurationError(
            f"progress is True, False or one of {', '.join(KINDS_OF_VIEW)}; got {kind!r}"
        )
    return kind


def _count(value: int, name: str) -> int:
    if type(value) is not int or value < 1:
        raise ConfigurationError(f"{name} is a whole number, 1 or more; got {value!r}")
    return value


def _positive(value: object, name: str, *, zero: bool = False) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or not (0 < value < float("inf") or (zero and value == 0)):
        raise ConfigurationError(f"{name} is a number of seconds above 0; got {value!r}")
    return float(value)


def _finite(priority: object) -> float:
    if not isinstance(priority, int | float) or not abs(priority) < float("inf"):
        raise ConfigurationError(f"a priority is a finite number; got {priority!r}")
    return priority


def _remove(calls: list[Call[Any]], call: Call[Any]) -> None:
    """Take out a call that stands near the end, if it is there."""
    for index in range(len(calls) - 1, -1, -1):
        if calls[index] is call:
            del calls[index]
            return
        if calls[index].position < call.position >= 0:
            return


def _position(call: Call[Any]) -> int:
    return call.position


def _here() -> asyncio.AbstractEventLoop:
    import asyncio

    return asyncio.get_running_loop()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    import asyncio

    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
