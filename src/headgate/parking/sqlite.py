"""Tasks parked in the file of a SQLiteStore, in tables of their own, which are made at first use.

Each verb is one transaction on the store's own connection. What is only looked at takes no lock.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple
from typing import Any, TypeVar
from weakref import ref

from headgate.errors import StoreUnavailable
from headgate.parking.listeners import Listeners
from headgate.parking.rules import LEFT, OUT, WAITS, Head, Ruled, Shelf, Task
from headgate.stores import sqlite as stores
from headgate.stores.sqlite import SQLiteStore

T = TypeVar("T")
log = logging.getLogger("headgate")

WATCH_SECONDS = 0.02
"""How often to see whether another process has changed the file, while somebody listens."""

# Bodies stand apart: a task's row is written several times, its body once.
_TABLES = (
    """CREATE TABLE IF NOT EXISTS parking_lots (
        id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, place INTEGER NOT NULL, shift INTEGER NOT NULL,
        seen INTEGER NOT NULL, releaser TEXT NOT NULL, until INTEGER NOT NULL, lease INTEGER NOT NULL,
        lag INTEGER NOT NULL, news INTEGER NOT NULL, waiting INTEGER NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS parking_tasks (
        lot INTEGER NOT NULL, id BLOB NOT NULL, state INTEGER NOT NULL, release INTEGER NOT NULL,
        place INTEGER NOT NULL, since INTEGER NOT NULL, until INTEGER NOT NULL, costs TEXT NOT NULL,
        PRIMARY KEY (lot, id)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS parking_places ON parking_tasks (lot, state, place, id)",
    "CREATE INDEX IF NOT EXISTS parking_instants ON parking_tasks (lot, state, until, id)",
    """CREATE TABLE IF NOT EXISTS parking_bodies (
        lot INTEGER NOT NULL, id BLOB NOT NULL, body BLOB NOT NULL, PRIMARY KEY (lot, id))""",
)
_MADE = "SELECT 1 FROM sqlite_master WHERE name = 'parking_bodies'"
_HEAD = """SELECT id, news, waiting, place, shift, seen, releaser, until, lease, lag
    FROM parking_lots WHERE key = ?"""
_NEW = """INSERT INTO parking_lots (news, waiting, place, shift, seen, releaser, until, lease, lag, key)
    VALUES (0, 0, 0, 0, 0, '', 0, 0, 0, ?)"""
_SAVE = """UPDATE parking_lots
    SET news = ?, waiting = ?, place = ?, shift = ?, seen = ?, releaser = ?, until = ?, lease = ?, lag = ?
    WHERE id = ?"""
_TASK = "SELECT id, state, release, place, since, until, costs FROM parking_tasks WHERE lot = ?"
_PUT = """INSERT OR REPLACE INTO parking_tasks (lot, id, state, release, place, since, until, costs)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)"""
_TRIM = """DELETE FROM parking_tasks WHERE lot = ?1 AND id IN (
    SELECT id FROM parking_tasks WHERE lot = ?1 AND state = ?2 AND until <= ?3 ORDER BY until LIMIT ?4)"""
_ANY = f"SELECT 1 FROM parking_tasks WHERE lot = ? AND state IN ({WAITS}, {OUT}) LIMIT 1"  # noqa: S608
_KEYS = f"""SELECT key FROM parking_lots AS lot WHERE EXISTS (
    SELECT 1 FROM parking_tasks WHERE lot = lot.id AND state IN ({WAITS}, {OUT}))"""  # noqa: S608


class _Shelf:
    """See :class:`~headgate.parking.rules.Shelf`; within a transaction."""

    def __init__(self, db: sqlite3.Connection, name: bytes, *, changes: bool) -> None:
        self._db = db
        self._name = name
        self.has_news = False
        self.head = Head()
        self._number: int | None = None  # none: nothing is known, and there may be no tables
        self._news = 0
        self._waiting = 0  # to count them each time would take the longer the more there are
        row = None
        if db.execute(_MADE).fetchone() is not None:
            row = db.execute(_HEAD, (name,)).fetchone()
        elif changes:
            for statement in _TABLES:
                db.execute(statement)
        if row is not None:
            self._number, self._news, self._waiting, *facts = row
            self.head = Head(*facts)
        self._saved = self._facts()

    def _facts(self) -> tuple[Any, ...]:
        return self._news, self._waiting, *astuple(self.head)

    def _lot(self) -> int:
        if self._number is None:
            self._number = int(self._db.execute(_NEW, (self._name,)).lastrowid or 0)
        return self._number

    def save(self) -> None:
        """Write what has changed of the head."""
        self._news += self.has_news
        if self._facts() != self._saved:
            self._db.execute(_SAVE, (*self._facts(), self._lot()))

    def _all(self, where: str, *values: object) -> list[tuple[bytes, Task]]:
        if self._number is None:
            return []
        rows = self._db.execute(f"{_TASK} {where}", (self._number, *values)).fetchall()
        return [(row[0], _task(*row[1:])) for row in rows]

    def find(self, id: bytes) -> Task | None:
        found = self._all("AND id = ?", id)
        return found[0][1] if found else None

    def put(self, id: bytes, task: Task, body: bytes | None = None) -> None:
        lot = self._lot()
        costs = " ".join(map(str, task.costs))
        before = self._db.execute(
            "SELECT state FROM parking_tasks WHERE lot = ? AND id = ?", (lot, id)
        ).fetchone()
        self._waiting += (task.state == WAITS) - (before == (WAITS,))
        facts = task.state, task.release, task.place, task.since, task.until, costs
        self._db.execute(_PUT, (lot, id, *facts))
        if body is not None:
            self._db.execute(
                "INSERT OR REPLACE INTO parking_bodies (lot, id, body) VALUES (?, ?, ?)", (lot, id, body)
            )
        elif task.state == LEFT:
            self._db.execute("DELETE FROM parking_bodies WHERE lot = ? AND id = ?", (lot, id))

    def body(self, id: bytes) -> bytes:
        row = self._db.execute(
            "SELECT body FROM parking_bodies WHERE lot = ? AND id = ?", (self._number, id)
        ).fetchone()
        return bytes(row[0])

    def waiting(self, most: int) -> list[tuple[bytes, Task]]:
        return self._all("AND state = ? ORDER BY place, id LIMIT ?", WAITS, most)

    def count(self) -> int:
        return self._waiting

    def late(self, at: int) -> list[tuple[bytes, Task]]:
        return self._all("AND state = ? AND until <= ? ORDER BY until, id", OUT, at)

    def out(self, at: int) -> list[Task]:
        return [task for _, task in self._all("AND state = ? AND until > ? ORDER BY until, id", OUT, at)]

    def is_empty(self) -> bool:
        return self._number is None or self._db.execute(_ANY, (self._number,)).fetchone() is None

    def trim(self, at: int, most: int) -> None:
        self._db.execute(_TRIM, (self._lot(), LEFT, at, most))

    def tell(self) -> None:
        self.has_news = True


def _task(state: int, release: int, place: int, since: int, until: int, costs: str) -> Task:
    return Task(state, release, place, since, until, tuple(int(cost) for cost in costs.split()))


class SQLiteLot(Ruled):
    """See :class:`~headgate.parking.base.Lot`."""

    def __init__(self, store: SQLiteStore) -> None:
        self._store = store
        self._after_fork()

    def __repr__(self) -> str:
        return f"<SQLiteLot in {str(self._store.path)!r}>"

    def _after_fork(self) -> None:
        self._lock = threading.Lock()  # for what follows; never held over a transaction
        self._listeners = Listeners()
        self._heard: dict[str, int] = {}  # the last hint that was seen
        self._changes: int | None = None  # of other processes, as SQLite counts them
        self._thread: threading.Thread | None = None

    def keys(self) -> list[str]:
        names = self._transact("BEGIN", lambda db: db.execute(_KEYS).fetchall() if _is_made(db) else [])
        return sorted(name.decode("utf-8", "surrogatepass") for (name,) in names)

    def _run(self, key: str, verb: Callable[[Shelf, int], T], *, changes: bool = True) -> T:
        name = stores._name(key)

        def work(db: sqlite3.Connection) -> tuple[T, bool]:
            shelf = _Shelf(db, name, changes=changes)
            # The clock only now: instants follow one another as transactions do.
            found = verb(shelf, self._store.now().elapsed_us)
            if changes:
                shelf.save()
            return found, shelf.has_news

        found, has_news = self._transact("BEGIN IMMEDIATE" if changes else "BEGIN", work)
        if has_news:  # others see it in the file, but what this process writes is no news to it
            self._listeners.tell(key)
        return found

    def _transact(self, begin: str, work: Callable[[sqlite3.Connection], T]) -> T:
        session = self._store._session

        def attempt() -> T:
            try:
                db = session._connection()
                db.execute(begin)
                found = work(db)
                db.execute("COMMIT")
            except BaseException as error:
                session._undo(error)
                raise
            return found

        return session._patiently(attempt)

    # Hints

    def listen(self, key: str, callback: Callable[[], None]) -> Callable[[], None]:
        heard = -1  # a hint for nothing, if it cannot be seen which was the last
        with suppress(StoreUnavailable):
            [heard] = self._news([key])
        remove = self._listeners.add(key, callback)
        with self._lock:
            self._heard.setdefault(key, heard)
            if self._thread is None:
                thread = threading.Thread(
                    target=_watch, args=(ref(self),), name="headgate-parking", daemon=True
                )
                with suppress(RuntimeError):  # no more threads at the end of the process
                    thread.start()
                    self._thread = thread

        def stop() -> None:
            remove()
            with self._lock:  # whoever can stop it keeps the lot alive
                self._heard = {key: heard for key, heard in self._heard.items() if key in self._keys()}

        return stop

    def _keys(self) -> set[str]:
        return set(self._listeners.keys())

    def _look(self) -> bool:
        """Tell those who listen what others have done; False if nobody does any more."""
        with self._lock:
            keys = self._listeners.keys()
            if not keys or self._thread is not threading.current_thread():
                if self._thread is threading.current_thread():
                    self._thread = None
                return False
        try:
            changes = self._count_of_changes()
            if changes is None or changes == self._changes:
                return True
            self._changes = changes
            found = self._news(keys)
        except Exception as error:  # a hint may be lost; the next verb tells what is wrong
            log.debug("no news of %s: %s", self._store.path, error)
            return True
        for key, news in zip(keys, found, strict=True):
            with self._lock:
                is_new = self._heard.get(key) != news
                self._heard[key] = news
            if is_new:
                self._listeners.tell(key)
        return True

    def _count_of_changes(self) -> int | None:
        session = self._store._session
        with session._lock:
            if session._db is None:
                return None
            (changes,) = session._db.execute("PRAGMA data_version").fetchone()
            return int(changes)

    def _news(self, keys: list[str]) -> list[int]:
        def work(db: sqlite3.Connection) -> list[int]:
            if not _is_made(db):
                return [0] * len(keys)
            rows = [db.execute(_HEAD, (stores._name(key),)).fetchone() for key in keys]
            return [0 if row is None else int(row[1]) for row in rows]

        return self._transact("BEGIN", work)


def _is_made(db: sqlite3.Connection) -> bool:
    return db.execute(_MADE).fetchone() is not None


def _watch(lot: ref[SQLiteLot]) -> None:
    """The thread that sees what others do. It does not keep the lot alive."""
    while True:
        found = lot()
        if found is None or not found._look():
            return
        del found
        time.sleep(WATCH_SECONDS)


def open_lot(store: SQLiteStore) -> SQLiteLot:
    """The lot of such a store."""
    return SQLiteLot(store)
