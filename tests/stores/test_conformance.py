"""Every store is held to the same laws. To add one: a function that opens clients of an empty place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from typing import TypeAlias

import pytest

from headgate.core.model import Now
from headgate.stores.base import Store
from headgate.stores.memory import MemoryStore, process_clock
from headgate.stores.sqlite import SQLiteStore
from tests.sharing.store import Place as SharedMemory
from tests.stores import conformance
from tests.stores.conformance import Open


@contextmanager
def memory(request: pytest.FixtureRequest) -> Iterator[Open]:
    """All clients are the one store of the process, for as long as they go by one clock."""
    stores: dict[Callable[[], Now], MemoryStore] = {}

    def open_one(clock: Callable[[], Now] | None = None) -> Store:
        return stores.setdefault(clock or process_clock, MemoryStore(clock or process_clock))

    yield open_one


@contextmanager
def sqlite(request: pytest.FixtureRequest) -> Iterator[Open]:
    path = request.getfixturevalue("tmp_path") / "store"
    with ExitStack() as stack:

        def open_one(clock: Callable[[], Now] | None = None) -> Store:
            return stack.enter_context(closing(SQLiteStore(path, clock=clock or process_clock)))

        yield open_one


@contextmanager
def shared_memory(request: pytest.FixtureRequest) -> Iterator[Open]:
    """The store with which sharing is tested."""
    places: dict[Callable[[], Now], SharedMemory] = {}

    def open_one(clock: Callable[[], Now] | None = None) -> Store:
        clock = clock or process_clock
        return places.setdefault(clock, SharedMemory(clock)).client()

    yield open_one


Place: TypeAlias = Callable[[pytest.FixtureRequest], AbstractContextManager[Open]]
PLACES: tuple[Place, ...] = (memory, sqlite, shared_memory)
SHARED_PLACES: tuple[Place, ...] = (sqlite, shared_memory)


@pytest.mark.parametrize("law", conformance.ANY, ids=conformance.name_of)
@pytest.mark.parametrize("place", PLACES, ids=conformance.name_of)
def test_a_store(place: Place, law: Callable[[Open], None], request: pytest.FixtureRequest) -> None:
    with place(request) as open_one:
        law(open_one)


@pytest.mark.parametrize("law", conformance.SHARED, ids=conformance.name_of)
@pytest.mark.parametrize("place", SHARED_PLACES, ids=conformance.name_of)
def test_a_shared_store(place: Place, law: Callable[[Open], None], request: pytest.FixtureRequest) -> None:
    with place(request) as open_one:
        law(open_one)
