"""The stores that tests park in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Protocol

from headgate.core.model import Now
from headgate.parking import Lot, lot_of
from headgate.stores.memory import MemoryStore, process_clock
from headgate.stores.redis import RedisStore
from headgate.stores.sqlite import SQLiteStore

START_US = 5_000_000_000


class Clock:
    """One that moves as it is told, also back."""

    def __init__(self) -> None:
        self.us = START_US

    def __call__(self) -> Now:
        return Now(self.us, self.us + 1_790_000_000_000_000)


class Open(Protocol):
    """Opens another client of one place; without a clock it goes by that of the store."""

    def __call__(self, clock: Callable[[], Now] | None = None) -> Lot: ...


@contextmanager
def memory() -> Iterator[Open]:
    stores: dict[object, MemoryStore] = {}

    def open_one(clock: Callable[[], Now] | None = None) -> Lot:
        return lot_of(stores.setdefault(clock, MemoryStore(clock or process_clock)))

    yield open_one


@contextmanager
def sqlite(path: Path) -> Iterator[Open]:
    with ExitStack() as stack:

        def open_one(clock: Callable[[], Now] | None = None) -> Lot:
            return lot_of(stack.enter_context(closing(SQLiteStore(path, clock=clock or process_clock))))

        yield open_one


@contextmanager
def redis(url: str) -> Iterator[Open]:
    with ExitStack() as stack:

        def open_one(clock: Callable[[], Now] | None = None) -> Lot:
            return lot_of(stack.enter_context(closing(RedisStore(url, clock=clock))))

        yield open_one
