"""Tasks parked in this process: they are lost at its end."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import replace
from threading import Lock
from typing import TypeVar
from weakref import WeakKeyDictionary

from headgate.parking.listeners import Listeners
from headgate.parking.rules import LEFT, OUT, WAITS, Head, Ruled, Shelf, Task
from headgate.stores.memory import MemoryStore

T = TypeVar("T")


class _Shelf:
    """See :class:`~headgate.parking.rules.Shelf`."""

    def __init__(self) -> None:
        self.head = Head()
        self.has_news = False
        self._tasks: dict[bytes, Task] = {}
        self._bodies: dict[bytes, bytes] = {}
        # By state, in order: (place, id) of those that wait, else (until, id).
        self._order: tuple[list[tuple[int, bytes]], ...] = ([], [], [])

    def find(self, id: bytes) -> Task | None:
        task = self._tasks.get(id)
        return None if task is None else replace(task)

    def put(self, id: bytes, task: Task, body: bytes | None = None) -> None:
        self._forget(id)
        self._tasks[id] = replace(task)
        insort(self._order[task.state], _rank(id, task))
        if body is not None:
            self._bodies[id] = body
        elif task.state == LEFT:
            self._bodies.pop(id, None)

    def _forget(self, id: bytes) -> None:
        task = self._tasks.pop(id, None)
        if task is not None:
            order = self._order[task.state]
            del order[bisect_left(order, _rank(id, task))]

    def body(self, id: bytes) -> bytes:
        return self._bodies[id]

    def waiting(self, most: int) -> list[tuple[bytes, Task]]:
        return [(id, replace(self._tasks[id])) for _, id in self._order[WAITS][:most]]

    def count(self) -> int:
        return len(self._order[WAITS])

    def late(self, at: int) -> list[tuple[bytes, Task]]:
        return [(id, replace(self._tasks[id])) for _, id in self._order[OUT][: self._first_after(at)]]

    def out(self, at: int) -> list[Task]:
        return [self._tasks[id] for _, id in self._order[OUT][self._first_after(at) :]]

    def _first_after(self, at: int) -> int:
        return bisect_left(self._order[OUT], (at + 1, b""))

    def is_empty(self) -> bool:
        return not self._order[WAITS] and not self._order[OUT]

    def trim(self, at: int, most: int) -> None:
        for until, id in self._order[LEFT][:most]:
            if until <= at:
                self._forget(id)

    def tell(self) -> None:
        self.has_news = True


def _rank(id: bytes, task: Task) -> tuple[int, bytes]:
    return task.place if task.state == WAITS else task.until, id


class _Yard:
    """All that is parked in a store."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.shelves: dict[str, _Shelf] = {}
        self.listeners = Listeners()


class MemoryLot(Ruled):
    """See :class:`~headgate.parking.base.Lot`."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._yard = _yards.setdefault(store, _Yard())  # it lasts as long as the store

    def __repr__(self) -> str:
        return f"<MemoryLot of {self._store!r}>"

    def keys(self) -> list[str]:
        with self._yard.lock:
            return sorted(key for key, shelf in self._yard.shelves.items() if not shelf.is_empty())

    def listen(self, key: str, callback: Callable[[], None]) -> Callable[[], None]:
        return self._yard.listeners.add(key, callback)

    def _run(self, key: str, verb: Callable[[Shelf, int], T], *, changes: bool = True) -> T:
        yard = self._yard
        with yard.lock:
            shelf = yard.shelves.get(key) or _Shelf()
            found = verb(shelf, self._store.now().elapsed_us)
            if changes:
                yard.shelves[key] = shelf
            has_news, shelf.has_news = shelf.has_news, False
        if has_news:
            yard.listeners.tell(key)
        return found

    def _after_fork(self) -> None:
        self._yard.lock = Lock()
        self._yard.listeners = Listeners()


_yards: WeakKeyDictionary[MemoryStore, _Yard] = WeakKeyDictionary()


def open_lot(store: MemoryStore) -> MemoryLot:
    """The lot of such a store."""
    return MemoryLot(store)
