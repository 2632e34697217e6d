"""Many calls from an iterable: read no further ahead than needed, and given back as they come or in order.

The iterable is read where its user is: by the thread that asks for the results, or, with ``async for``, by a
task in the same loop. So it may hold what belongs to a thread, such as a database cursor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from itertools import repeat
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from headgate.providers.outcome import log
from headgate.runner.call import ASLEEP, DONE, WAITING, Call

if TYPE_CHECKING:
    import asyncio

    from headgate.runner.runner import Runner
    from headgate.runner.session import Session

T = TypeVar("T")
OnError = Literal["none", "raise"]

AHEAD = 4096
"""Calls that are scheduled and not given back yet, at most: enough to be in flight, little enough to be
flat."""


class Stream(Generic[T]):
    """Results of many calls; iterate over it, with ``for`` or ``async for``, once."""

    def __init__(
        self,
        runner: Runner[Any, Any],
        source: Source,
        *,
        prepare: Callable[[tuple[Any, ...], dict[str, Any]], Call[Any]],
        kwargs: dict[str, Any],
        ordered: bool,
        give: Callable[[Call[Any]], T],
        ahead: int,
        owns: bool = True,
    ) -> None:
        self._runner = runner
        self._source = source
        self._prepare = prepare
        self._kwargs = kwargs
        self._give = give
        self._ordered = ordered
        self._ahead = ahead
        self._owns = owns  # the calls are made for this alone
        self._out: dict[Call[Any], None] = {}  # scheduled and not given back, in order
        self._ready: deque[Call[Any]] = deque()  # in the order of their ends, if that is asked for
        self._exhausted = False
        self._begun = False
        self._failed = 0
        self._first_error: BaseException | None = None

    def __len__(self) -> int:
        """How many there will be.

        Raises:
            TypeError: the iterable does not know.
        """
        size = self._source.size
        if size is None:
            raise TypeError("the length of this iterable is not known")
        return size

    def __length_hint__(self) -> int:
        return self._source.size or 0

    def __repr__(self) -> str:
        return f"<results of {self._runner!r}>"

    # With for

    def __iter__(self) -> Iterator[T]:
        self._begin()
        items = self._source.sync_items(self._runner)
        session = self._runner._session(self._source.size)
        try:
            session.open()
            while True:
                call = self._next()
                if not self._exhausted and len(self._out) < self._ahead:
                    self._pull(items, session.bell.ring)
                elif call is None and not self._out:
                    return
                elif call is None:
                    self._await_one(session)
                if call is not None:
                    yield self._hand_out(call)
                    session.tick()
        finally:
            session.close(self._drop)

    def _begin(self) -> None:
        if self._begun:
            raise RuntimeError("these results have been given out already: call map() again")
        self._begun = True

    def _next(self) -> Call[Any] | None:
        """A call that can be given back now."""
        if not self._ordered:
            return self._ready[0] if self._ready else None
        head = next(iter(self._out), None)
        return head if head is not None and head.state is DONE else None

    def _hand_out(self, call: Call[Any]) -> T:
        del self._out[call]
        if not self._ordered:
            self._ready.popleft()
        if call.error is not None:
            self._failed += 1
            self._first_error = self._first_error or call.error
        return self._give(call)

    def _pull(self, items: Iterator[tuple[Any, ...] | dict[str, Any]], ring: Callable[[], object]) -> None:
        for item in items:
            self._schedule(item, ring)
            return
        self._exhausted = True

    def _schedule(self, item: Any, ring: Callable[[], object]) -> None:
        if isinstance(item, Call):
            call = item
        elif isinstance(item, dict):
            call = self._prepare((), {**self._kwargs, **item})
        else:
            call = self._prepare(item, self._kwargs)
        self._out[call] = None
        if not self._ordered:

            def ended() -> None:
                self._ready.append(call)
                ring()

            call.add_done_callback(ended)

    def _await_one(self, session: Session) -> None:
        """Until a call can be given back, or nothing more will come."""
        if self._ordered:
            next(iter(self._out)).add_done_callback(session.bell.ring)
        if self._next() is None:
            session.wait()
            if self._next() is None:
                session.check()

    def _drop(self) -> None:
        """Nobody asks for the rest: what waits leaves, what runs is seen through (its results are kept)."""
        if self._failed and self._ordered and self._give is not value_or_error:
            log.warning("%d calls failed and gave None; the first: %r", self._failed, self._first_error)
        for call in list(self._out):
            if self._owns:
                call.dropped = True
                if call.state in (WAITING, ASLEEP):
                    call.cancel()
        self._out.clear()

    # With async for

    async def __aiter__(self) -> AsyncIterator[T]:
        import asyncio

        self._begin()
        loop = asyncio.get_running_loop()
        room = asyncio.Event()

        try:
            async with self._runner._session_async(self._source.size) as session:
                bell = session.bell

                def ring() -> None:
                    loop.call_soon_threadsafe(bell.set)

                feeder = asyncio.create_task(self._feed(room, bell, ring))
                try:
                    while True:
                        bell.clear()
                        call = self._next()
                        if call is not None:
                            value = self._hand_out(call)
                            room.set()
                            yield value
                            continue
                        if self._exhausted and not self._out:
                            break
                        if self._ordered and self._out:
                            next(iter(self._out)).add_done_callback(ring)
                        if feeder.done():
                            feeder.result()
                        if self._next() is None:
                            session.check()
                            await session.wait()
                    await feeder
                finally:
                    feeder.cancel()
                    await asyncio.gather(feeder, return_exceptions=True)
        finally:
            self._drop()

    async def _feed(self, room: asyncio.Event, bell: asyncio.Event, ring: Callable[[], object]) -> None:
        import asyncio

        try:
            count = 0
            async for item in self._source.async_items():
                self._schedule(item, ring)
                bell.set()
                count += 1
                if count % 64 == 0:
                    await asyncio.sleep(0)
                while len(self._out) >= self._ahead:
                    room.clear()
                    await room.wait()
        finally:
            self._exhausted = True
            bell.set()


def itself(call: Call[Any]) -> Call[Any]:
    """Give the call."""
    return call


def value_or_none(call: Call[Any]) -> Any:
    """Give what the call returned; None if it failed."""
    return call.value


def value_or_error(call: Call[Any]) -> Any:
    """Give what the call returned, or raise what it failed with."""
    if call.error is not None:
        raise call.error
    return call.value


class Source:
    """One or more iterables, side by side; each may be asynchronous if it is the only one.

    Args:
        star: the items of the one iterable are tuples or dictionaries of arguments.
    """

    def __init__(self, iterables: tuple[Any, ...], *, star: bool = False) -> None:
        if not iterables:
            raise TypeError("give at least one iterable of arguments")
        self._iterables = iterables
        self._star = star
        self._is_async = isinstance(iterables[0], AsyncIterable)
        if self._is_async and len(iterables) > 1:
            raise TypeError("an asynchronous iterable has to be the only one")
        for iterable in iterables:
            if not isinstance(iterable, Iterable | AsyncIterable):
                raise TypeError(f"expected an iterable of arguments; got {type(iterable).__name__}")
        sizes = [len(each) for each in iterables if hasattr(type(each), "__len__")]
        endless = [each for each in iterables if isinstance(each, repeat)]
        self.size = min(sizes) if sizes and len(sizes) + len(endless) == len(iterables) else None

    def sync_items(self, runner: Runner[Any, Any]) -> Iterator[Any]:
        """Arguments, one call after the other."""
        if self._is_async:
            return self._through_loop(runner)
        return iter(self._iterables[0]) if self._star else zip(*self._iterables, strict=False)

    def _through_loop(self, runner: Runner[Any, Any]) -> Iterator[Any]:
        import asyncio

        from headgate.runner.background import background_loop

        items = aiter(self._iterables[0])

        async def following() -> Any:
            return await anext(items, _END)

        while True:
            item = asyncio.run_coroutine_threadsafe(following(), background_loop()).result()
            if item is _END:
                return
            yield item if self._star else (item,)

    async def async_items(self) -> AsyncIterator[Any]:
        """The same for coroutines."""
        if self._is_async:
            async for item in self._iterables[0]:
                yield item if self._star else (item,)
        else:
            for item in iter(self._iterables[0]) if self._star else zip(*self._iterables, strict=False):
                yield item


_END: Any = object()
