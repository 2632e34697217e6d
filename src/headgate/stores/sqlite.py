"""State in one SQLite file: several processes of one machine share their limits, with nothing to install.

Each verb is one transaction for its whole batch: load the key's row, let the core decide, write the row back.
A row holds what the core says of a key and is bounded; only operators take rows out. Instants are those of
the machine's boot clock, the same for all its processes; after another start of the machine a row is resumed
by wall time, and whoever drew on it is gone.

One connection serves all threads of a process, under a lock: SQLite lets one write at a time anyhow, and who
waits for a lock of ours goes on at once, where who waits for SQLite's has to look again and again.

The file is written ahead to a log (WAL), so the end of a process at any moment harms nothing. A power failure
may lose the last moments, but never the file. It has to lie on a disk of this machine: network file systems
do not share memory. This module knows keys, transactions and a clock; what a row says is the core's.
"""

from __future__ import annotations

import ctypes
import logging
import marshal
import os
import random
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit
from weakref import WeakValueDictionary, finalize, ref

from headgate.core import decide, together
from headgate.core.model import SECOND, Costs, Decision, Granted, Now, Report
from headgate.core.plan import Plan
from headgate.core.together import Line, Trade, Traded
from headgate.errors import ConfigurationError, HeadgateError, StoreUnavailable
from headgate.stores.base import (
    LEASE_US,
    Deal,
    Edit,
    Keyed,
    limits_of,
    same_meters,
    text_of,
    under_ours,
)
from headgate.stores.memory import process_clock

T = TypeVar("T")
log = logging.getLogger("headgate")

BUSY_SECONDS = 5.0
"""How long to wait for the others' transactions; they take a fraction of a millisecond."""
END_SECONDS = 0.25
"""The same for whoever is ending: what it has not said then, its lease says."""
WATCH_SECONDS = 0.01
"""How often to see whether another process has changed the file, while somebody listens."""
CHECK_SECONDS = 0.01
"""How often to see whether the file is still the one that its name stands for."""

APPLICATION = 0x68677374
"""Stands in the head of each file: "hgst" in ASCII."""
VERSION = 2
MOST_STATES = 64
"""Of so many keys the last state is remembered, so that it need not be read where nobody else has written."""
ALONE = 8
"""After so many verbs in a row without another's between, the next is believed to be one of them too."""
FEW = 4
"""More decisions than that are too much to make in vain, should it not be one of them."""
MOST_SEATS = 1_000
"""From so many keys on, those that have been silent for a lease are forgotten."""
ANYONE = ""
"""In the place of a client's name: all who wait may look."""

# ``limits`` are in force; ``declared`` are those that programs declare, if others were set in their place.
_TABLE = """CREATE TABLE keys (
    id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, version INTEGER NOT NULL, told INTEGER NOT NULL,
    who TEXT NOT NULL, boot TEXT NOT NULL, limits TEXT NOT NULL, declared TEXT NOT NULL,
    state BLOB NOT NULL)"""
_SETTINGS = (
    "PRAGMA synchronous=NORMAL",  # with OFF a power failure could leave a file that nobody can read
    "PRAGMA wal_autocheckpoint=4000",  # pages: a disk with slow syncs is waited for every few thousand verbs
)
_LOAD = "SELECT id, version, told, who, boot, limits, declared, state FROM keys WHERE key = ?"
_INSERT = """INSERT INTO keys (version, told, who, boot, limits, declared, state, key)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)"""
_UPDATE = """UPDATE keys
    SET version = ?, told = ?, who = ?, boot = ?, limits = ?, declared = ?, state = ? WHERE id = ?"""
_RENEW = "UPDATE keys SET version = ?, told = ?, who = ?, state = ? WHERE id = ? AND version = ?"
_HINT = "SELECT told, who FROM keys WHERE key = ?"
_FORGET = "DELETE FROM keys WHERE id = ?"
_KEYS = "SELECT key FROM keys ORDER BY key"


def boot_id() -> str:
    """What tells one start of this machine from another; empty where nothing does."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


class SQLiteStore:
    """A store that the processes of one machine share. Its methods may be called from any thread.

    The plain ``acquire`` and ``settle`` take no lease: what a process that is killed was granted by them is
    never given back. A grant is settled by the verb that belongs to the one that gave it.

    Args:
        path: the file; it is made if there is none.
        clock: another clock, for tests; the same for all who share the file.

    Raises:
        ConfigurationError: the file is no store, is of a later version, may not be written or is not on a
            disk of this machine, or its directory is missing. From any verb also: others are using the key
            under other limits.
        StoreUnavailable: the file cannot be used now: others have locked it for five seconds, the disk is
            full or has failed. From any verb also; then nothing was charged or booked, and to repeat it
            is safe.
    """

    batch = 50
    shared = True

    def __init__(self, path: str | os.PathLike[str], *, clock: Callable[[], Now] = process_clock) -> None:
        self.path = Path(path).absolute()
        self.now = clock
        self._begin_anew()
        self._session.open()
        _stores[id(self)] = self

    def _begin_anew(self) -> None:
        """As another client: at first, after a fork, and after ``close``."""
        self._lock = threading.Lock()  # for the fields below; never held over a transaction
        self._session = _Session(self.path, self.now)
        self._seats: dict[str, _Seat] = {}
        self._most_seats = MOST_SEATS
        self._ears: dict[str, _Ear] = {}
        self._attendant: threading.Thread | None = None
        self._bell = threading.Event()
        self._anew = False  # somebody has begun to listen
        self._finish = finalize(self, _finish, self._session, self._seats, self._bell)

    @property
    def client(self) -> str:
        return self._session.client

    def __repr__(self) -> str:
        return f"<SQLiteStore {str(self.path)!r} as {self.client}>"

    # As one client, as if nobody waited

    def acquire(self, key: str, plan: Plan, asks: Sequence[Costs]) -> list[Decision]:
        return self._session.change(
            key, plan, lambda plan, state, now: decide.acquire(plan, asks, state, now), count=len(asks)
        )[0]

    def settle(self, key: str, plan: Plan, reports: Sequence[Report]) -> None:
        self._session.change(
            key, plan, lambda plan, state, now: decide.settle(plan, reports, state, now), count=len(reports)
        )

    def used(self, key: str, plan: Plan) -> tuple[int, ...]:
        return self._session.change(key, plan, decide.used)[0]

    # In turn

    def trade(self, deals: Sequence[Deal]) -> list[Traded | HeadgateError]:
        found: list[Traded | HeadgateError] = []
        for key, plan, trade in deals:
            try:
                found.append(self._trade(key, plan, trade))
            except HeadgateError as error:
                found.append(error)
        return found

    def _trade(self, key: str, plan: Plan, trade: Trade) -> Traded:
        session = self._session
        client = session.client
        traded, told = session.change(
            key,
            plan,
            lambda plan, state, now: together.trade(plan, client, trade, state, now, LEASE_US),
            count=len(trade.reports) + sum(len(line.asks) for line in trade.lines),
            hint=_next_of,
        )
        granted = sum(type(answer) is Granted for answers in traded.answers for answer in answers)
        with self._lock:
            seat = self._speak(key, plan)
            seat.held = max(seat.held + granted - len(trade.reports), 0)
            if trade.lines:
                seat.heard = told  # it has asked: earlier hints are out of date
                if key in self._ears:
                    self._ears[key].heard = told
        return traded

    def acquire_for(self, key: str, plan: Plan, lines: Sequence[Line]) -> list[list[Decision]]:
        return self._trade(key, plan, Trade(lines=lines)).answers

    def settle_for(self, key: str, plan: Plan, reports: Sequence[Report]) -> bool:
        # No sequence: a transaction is booked or it is not, and whoever is told of an error may repeat it.
        return self._trade(key, plan, Trade(reports=reports)).next == self._session.client

    def beat(self, key: str, plan: Plan) -> None:
        self._trade(key, plan, Trade())

    def leave(self, key: str, plan: Plan) -> None:
        self._session.leave(key, plan)
        with self._lock:
            self._seats.pop(key, None)
            wakes = self._wakes(key)
        _call(wakes)

    def ping(self) -> None:
        self._session.ping()

    def _speak(self, key: str, plan: Plan) -> _Seat:
        """Its seat, under the lock: the key has just heard of us."""
        seat = self._seats.get(key)
        if seat is None:
            if len(self._seats) >= self._most_seats:
                self._forget_the_silent()
                self._most_seats = max(MOST_SEATS, 2 * len(self._seats))
            seat = self._seats[key] = _Seat(plan)
        seat.plan = plan
        seat.spoke_at = time.monotonic()
        return seat

    def _forget_the_silent(self) -> None:
        long_ago = time.monotonic() - LEASE_US / SECOND
        for key, seat in list(self._seats.items()):
            if not seat.held and seat.spoke_at < long_ago:
                del self._seats[key]

    # For operators

    def keys(self) -> list[str]:
        return self._session.keys()

    def look(self, key: str) -> tuple[Keyed, Now] | None:
        return self._session.look(key)

    def edit(self, key: str, change: Edit) -> bool:
        found = self._session.edit(key, change)
        with self._lock:
            wakes = self._wakes(key)
        _call(wakes)  # others see it in the file, but what this process writes is no news to it
        return found

    # Hints

    def listen(self, key: str, wake: Callable[[], None]) -> Callable[[], None]:
        def once_more() -> None:  # an object of its own, however often one function listens
            wake()

        with self._lock:
            if key not in self._ears:
                seat = self._seats.get(key)
                self._ears[key] = _Ear(None if seat is None else seat.heard)
            ear = self._ears[key]
            ear.wakes.append(once_more)
            self._anew = True
            if self._attendant is None:
                self._start()
            self._bell.set()  # it may be far from its next look

        def stop() -> None:
            with self._lock:
                if once_more in ear.wakes:
                    ear.wakes.remove(once_more)
                    if not ear.wakes and self._ears.get(key) is ear:
                        del self._ears[key]

        return stop

    def _wakes(self, key: str) -> list[Callable[[], None]]:
        ear = self._ears.get(key)
        return [] if ear is None else list(ear.wakes)

    def close(self) -> None:
        """Leave every key, and let go of the file; what is still held is left to its lease.

        Whoever uses the store again does so as another client.
        """
        self._finish()
        bell = self._bell
        self._begin_anew()
        bell.set()  # the old attendant sees that it is not wanted any more

    # The attendant: news, on a thread that is there while anybody listens

    def _start(self) -> None:
        thread = threading.Thread(
            target=_serve, args=(ref(self), self._bell), name="headgate-sqlite", daemon=True
        )
        with suppress(RuntimeError):  # no more threads at the end of the process: its lease will lapse
            thread.start()
            self._attendant = thread

    def _attend(self, bell: threading.Event) -> float | None:
        """One look; seconds until the next, or None if there is nothing left to do."""
        with self._lock:
            if bell is not self._bell:  # the store has begun anew
                return None
            if not self._ears:
                self._attendant = None
                return None
            listened = [(key, ear.heard) for key, ear in self._ears.items()]
            anew, self._anew = self._anew, False
        wakes: list[Callable[[], None]] = []
        for key, told, who in self._session.news(listened, anew=anew):
            with self._lock:
                if key in self._ears:
                    self._ears[key].heard = told
                if who in (ANYONE, self.client):
                    wakes += self._wakes(key)
        _call(wakes)
        return WATCH_SECONDS


@dataclass(slots=True)
class _Seat:
    """What this process has to do with a key."""

    plan: Plan
    held: int = 0
    spoke_at: float = 0.0  # by ``time.monotonic``
    heard: int | None = None  # the last hint when it asked


@dataclass(slots=True)
class _Ear:
    """Who listens on a key."""

    heard: int | None  # the last hint that was seen
    wakes: list[Callable[[], None]] = field(default_factory=list)


def _serve(store: ref[SQLiteStore], bell: threading.Event) -> None:
    """The attendant's thread. It does not keep the store alive."""
    while True:
        found = store()
        pause = None if found is None else found._attend(bell)
        del found
        if pause is None:
            return
        bell.wait(pause)
        bell.clear()


def _next_of(traded: Traded) -> str | None:
    return traded.next


def _call(wakes: Sequence[Callable[[], None]]) -> None:
    for wake in wakes:
        try:
            wake()
        except Exception:  # a listener that fails ends nobody's work
            log.warning("a listener failed", exc_info=True)


def _finish(session: _Session, seats: dict[str, _Seat], bell: threading.Event) -> None:
    """The store is closed or collected, or the process ends."""
    bell.set()
    recently = time.monotonic() - LEASE_US / SECOND
    for key, seat in list(seats.items()):
        if not seat.held and seat.spoke_at > recently and session.is_open:
            try:
                session.leave(key, seat.plan, patience_seconds=END_SECONDS)
            except HeadgateError as error:  # its lease says it
                log.debug("could not leave %s: %s", key, error)
    session.close()


@dataclass(slots=True)
class _Kept:
    """What is remembered of a key's row."""

    plan: Plan
    limits: str
    forced: Plan | None = None  # other limits that are in force
    force: str = ""  # they, as text
    number: int | None = None
    version: int = -1
    told: int = 0
    who: str = ANYONE
    state: decide.State | None = None
    alone: int = 0  # verbs in a row without another's between


class _Session:
    """One client's hand on the file: transactions, and what their errors mean."""

    def __init__(self, path: Path, clock: Callable[[], Now]) -> None:
        self.path = path
        self.client = f"{os.getpid()}-{os.urandom(4).hex()}"
        self._clock = clock
        self._boot = boot_id()
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None  # which file the name stood for
        self._check_at = 0.0
        self._kept: dict[str, _Kept] = {}
        self._changes: int | None = None  # of other processes, as SQLite counts them
        self._ended = False
        self._still = False

    # Transactions

    def change(
        self,
        key: str,
        plan: Plan,
        step: Callable[[Plan, decide.State, Now], T],
        *,
        count: int = 1,
        hint: Callable[[T], str | None] | None = None,
        patience_seconds: float | None = None,
    ) -> tuple[T, int]:
        """Let ``step`` change the key's state, in one transaction.

        Args:
            key, plan: whose state, and its limits.
            step: anything of the core; it is given the limits that are in force.
            count: how many decisions that takes.
            hint: tells from what it returned which client may go now and is to be told.
            patience_seconds: how long to wait for others; None for as long as usual.

        Returns:
            What ``step`` returned, and the number of the last hint.
        """
        return self._patiently(
            lambda: self._attempt(key, plan, step, count=count, hint=hint), patience_seconds
        )

    def _patiently(self, attempt: Callable[[], T], patience_seconds: float | None = None) -> T:
        """Attempt it again while others have locked the file."""
        deadline = None
        while True:
            with self._lock:
                try:
                    return attempt()
                except (sqlite3.Error, OSError) as error:
                    if deadline is None:
                        patience = BUSY_SECONDS if patience_seconds is None else patience_seconds
                        deadline = time.monotonic() + patience
                        pauses = _pauses()
                    if not _is_busy(error) or time.monotonic() >= deadline:
                        raise self._meaning(error) from error
            time.sleep(next(pauses))  # without the lock, so that every thread has its own patience

    def leave(self, key: str, plan: Plan, *, patience_seconds: float | None = None) -> None:
        """The client goes; the places that it gives back may be anyone's."""
        self.change(
            key,
            plan,
            lambda plan, state, now: together.leave(plan, self.client, state, now),
            hint=lambda _: ANYONE,
            patience_seconds=patience_seconds,
        )

    def _attempt(
        self,
        key: str,
        plan: Plan,
        step: Callable[[Plan, decide.State, Now], T],
        *,
        count: int,
        hint: Callable[[T], str | None] | None,
    ) -> tuple[T, int]:
        """The transaction, under the lock."""
        name = _name(key)
        try:
            db = self._connection()
            kept = self._remembered(key, plan)
            if count <= FEW and kept.alone >= ALONE and kept.state is not None:
                done = self._attempt_alone(db, kept, kept.state, step, hint)
                if done is not None:
                    return done
            db.execute("BEGIN IMMEDIATE")
            row = db.execute(_LOAD, (name,)).fetchone()
            now = self._clock()  # only now: instants follow one another as transactions do
            state, kept.state = kept.state, None  # it stays forgotten unless all goes well
            if row is None:
                # Numbers of rows are given again: nobody may take this row for one that was forgotten.
                number, version, told, who = None, _chance.getrandbits(40), 0, ANYONE
                kept.forced = None
                state = decide.fresh(plan, now)
            else:
                number, version, told, who = row[:4]
                if state is None or version != kept.version:
                    state = self._loaded(key, row[4:], kept, now)
            found = step(kept.forced or kept.plan, state, now)
            hinted = None if hint is None else hint(found)
            if hinted is not None:
                told, who = told + 1, hinted
            limits, declared = (kept.limits, "") if kept.forced is None else (kept.force, kept.limits)
            facts = version + 1, told, who, self._boot, limits, declared, marshal.dumps(state.dump(), 2)
            if number is None:
                number = db.execute(_INSERT, (*facts, name)).lastrowid
            else:
                db.execute(_UPDATE, (*facts, number))
            db.execute("COMMIT")
            kept.alone = kept.alone + 1 if version == kept.version else 0
            kept.number, kept.version, kept.told, kept.who, kept.state = number, version + 1, told, who, state
        except BaseException as error:
            self._undo(error)
            raise
        return found, told

    def _attempt_alone(
        self,
        db: sqlite3.Connection,
        kept: _Kept,
        state: decide.State,
        step: Callable[[Plan, decide.State, Now], T],
        hint: Callable[[T], str | None] | None,
    ) -> tuple[T, int] | None:
        """The same in one statement, at half the price, if nobody else has written; None if somebody has."""
        kept.state = None
        found = step(kept.forced or kept.plan, state, self._clock())
        told, who = kept.told, kept.who
        hinted = None if hint is None else hint(found)
        if hinted is not None:
            told, who = told + 1, hinted
        version = kept.version
        facts = version + 1, told, who, marshal.dumps(state.dump(), 2), kept.number, version
        if not db.execute(_RENEW, facts).rowcount:
            kept.alone = 0
            return None  # nothing was written, and what was decided is forgotten
        kept.version, kept.told, kept.who, kept.state = version + 1, told, who, state
        return found, told

    def _remembered(self, key: str, plan: Plan) -> _Kept:
        kept = self._kept.get(key)
        if kept is None or (kept.plan is not plan and kept.plan.limits != plan.limits):
            if len(self._kept) >= MOST_STATES:
                del self._kept[next(iter(self._kept))]
            kept = self._kept[key] = _Kept(plan, text_of(plan.limits))
        return kept

    def _loaded(self, key: str, row: Sequence[Any], kept: _Kept, now: Now) -> decide.State:
        """The state that a row holds, brought to this start of the machine and to our limits."""
        boot, limits, declared, data = row
        if declared and limits != kept.force:
            forced = self._plan_of(key, limits)
            if same_meters(forced, kept.plan):
                kept.forced, kept.force = forced, limits
        if not declared or limits != kept.force:
            kept.forced = None
        force = kept.forced or kept.plan
        old = force if limits == (kept.limits if kept.forced is None else kept.force) else None
        old = old or self._plan_of(key, limits)
        state = self._state_of(key, data)
        self._resume(state, old, boot, now)
        if old is not force:
            state = under_ours(key, str(self.path), self.client, force, old, state, now)
        return state

    def _resume(self, state: decide.State, plan: Plan, boot: str, now: Now) -> None:
        """Take a state to this start of the machine."""
        # Without a name for the machine's starts, a clock that went back tells of one.
        if boot != self._boot or (not boot and now.elapsed_us < state.steady[1]):
            if state.crowd is not None:
                state.crowd.members.clear()
            decide.resume(plan, state, now.wall_us - state.steady[2], now)

    def _plan_of(self, key: str, limits: str) -> Plan:
        try:
            return Plan(limits_of(limits))
        except (TypeError, ValueError, ConfigurationError) as error:
            raise self._unreadable(key, error) from error

    def _state_of(self, key: str, data: bytes) -> decide.State:
        try:
            # No worse than JSON here: whoever can write this file can lift every limit. Five times as fast.
            return decide.State.load(marshal.loads(data))  # noqa: S302
        except (TypeError, ValueError, EOFError, KeyError) as error:
            raise self._unreadable(key, error) from error

    def _unreadable(self, key: str, error: Exception) -> ConfigurationError:
        return ConfigurationError(
            f"{self.path}: what it holds of the key {key!r} cannot be read ({error}); "
            "another headgate may have written it. Give another file name"
        )

    def ping(self) -> None:
        """See whether the file can be written."""

        def attempt() -> None:
            try:
                db = self._connection()
                db.execute("BEGIN IMMEDIATE")
                db.execute("COMMIT")
            except BaseException as error:
                self._undo(error)
                raise

        self._patiently(attempt)

    # For operators

    def keys(self) -> list[str]:
        """All keys of the file."""
        rows = self._patiently(lambda: self._connection().execute(_KEYS).fetchall())
        return [name.decode("utf-8", "surrogatepass") for (name,) in rows]

    def look(self, key: str) -> tuple[Keyed, Now] | None:
        """What stands in the file of a key."""
        row = self._patiently(lambda: self._connection().execute(_LOAD, (_name(key),)).fetchone())
        if row is None:
            return None
        now = self._clock()
        return self._keyed(key, row[4:], now), now

    def _keyed(self, key: str, row: Sequence[Any], now: Now) -> Keyed:
        boot, limits, declared, data = row
        plan, state = self._plan_of(key, limits), self._state_of(key, data)
        self._resume(state, plan, boot, now)
        return Keyed(plan, state, self._plan_of(key, declared) if declared else None)

    def edit(self, key: str, change: Edit) -> bool:
        """Change what stands there, in one transaction."""
        return self._patiently(lambda: self._attempt_edit(key, change))

    def _attempt_edit(self, key: str, change: Edit) -> bool:
        try:
            db = self._connection()
            db.execute("BEGIN IMMEDIATE")
            row = db.execute(_LOAD, (_name(key),)).fetchone()
            if row is not None:
                number, version, told = row[:3]
                now = self._clock()
                changed = change(self._keyed(key, row[4:], now), now)
                if changed is None:
                    db.execute(_FORGET, (number,))
                else:
                    declared = "" if changed.declared is None else text_of(changed.declared.limits)
                    limits, data = text_of(changed.plan.limits), marshal.dumps(changed.state.dump(), 2)
                    facts = version + 1, told + 1, ANYONE, self._boot, limits, declared, data
                    db.execute(_UPDATE, (*facts, number))
            db.execute("COMMIT")
            self._kept.pop(key, None)
        except BaseException as error:
            self._undo(error)
            raise
        return row is not None

    def _connection(self) -> sqlite3.Connection:
        now = time.monotonic()
        if self._db is not None and now >= self._check_at:
            self._check_at = now + CHECK_SECONDS
            if self._is_replaced():
                self._let_go()
        return self._db or self._open()

    def _is_replaced(self) -> bool:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return True
        return (found.st_dev, found.st_ino) != self._file

    def _undo(self, error: BaseException) -> None:
        """After an error nothing of the transaction is left."""
        if self._db is None:
            return
        if isinstance(error, sqlite3.Error) and not _is_busy(error):
            self._let_go()  # some errors stay with a connection
        elif self._db.in_transaction:
            try:
                self._db.execute("ROLLBACK")
            except sqlite3.Error:
                self._let_go()

    def news(self, keys: Sequence[tuple[str, int | None]], *, anew: bool) -> list[tuple[str, int, str]]:
        """The hints of others that are new to us, as (key, number, client).

        Args:
            keys: where, each with the number of the last hint that was seen.
            anew: look at all, even if nobody else has changed the file since the last time.
        """
        with self._lock:
            if self._db is None:
                return []
            try:
                (changes,) = self._db.execute("PRAGMA data_version").fetchone()
                if changes == self._changes and not anew:
                    return []
                self._changes = changes
                found = []
                for key, seen in keys:
                    row = self._db.execute(_HINT, (_name(key),)).fetchone()
                    if row is not None and row[0] != seen:
                        found.append((key, *row))
            except sqlite3.Error as error:  # a hint may be lost; the next verb tells what is wrong
                log.debug("no news of %s: %s", self.path, error)
                return []
        return found

    # Open and closed

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, and to the file that the name stands for."""
        return self._db is not None and not self._is_replaced()

    def open(self) -> None:
        """Open the file, or make it."""
        deadline = time.monotonic() + BUSY_SECONDS
        pauses = _pauses()
        while True:
            with self._lock:
                try:
                    self._connection()
                    return
                except (sqlite3.Error, OSError) as error:
                    if not _is_busy(error) or time.monotonic() >= deadline:
                        raise self._meaning(error) from error
            time.sleep(next(pauses))

    def close(self) -> None:
        """Let go of the file for good."""
        with self._lock:
            self._ended = True
            self._let_go()

    def stand_still(self) -> None:
        """Before a fork: the child must inherit no connection, or SQLite there would believe in locks that
        only the parent has.
        """
        if self._lock.acquire(timeout=1):  # unless it forks in a signal handler, in mid-write
            self._still = True
            self._let_go()

    def go_on(self) -> None:
        """After it, in the parent."""
        if self._still:
            self._still = False
            self._lock.release()

    def abandon(self) -> None:
        """After it, in the child: should there be a connection all the same, it is left to the parent."""
        self._ended = True
        db, self._db = self._db, None
        if db is not None:
            if self._lock.locked() or db.in_transaction:
                _abandon(db)
            else:
                db.close()  # some servers fork without a word; between transactions that harms nobody

    def _let_go(self) -> None:
        db, self._db = self._db, None
        self._kept.clear()
        if db is not None:
            db.close()  # if it was replaced, SQLite leaves the log to the new file

    def _open(self) -> sqlite3.Connection:
        if self._ended:
            raise StoreUnavailable(f"the store {self.path} was closed, or belongs to the process that forked")
        self._kept.clear()
        self._changes = None
        if not self.path.parent.is_dir():
            raise ConfigurationError(
                f"expected a path in a directory that exists; there is no {self.path.parent}"
            )
        if self.path.exists() and not self.path.is_file():
            raise ConfigurationError(f"expected the path of a file; {self.path} is none")
        db = sqlite3.connect(
            f"{self.path.as_uri()}?mode=rwc",
            uri=True,
            timeout=0,  # who waits does so in _change
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            self._prepare(db)
            found = self.path.stat()
        except BaseException:
            db.close()
            raise
        self._file = found.st_dev, found.st_ino
        self._db = db
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Make sure that it is a store; a process may be killed in between, and several may do so at once."""
        db.execute("BEGIN")  # so that it is one look, whoever makes it just now
        made = not self._is_empty(db)
        db.execute("COMMIT")
        (mode,) = db.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            raise ConfigurationError(
                f"expected a file on a disk of this machine; where {self.path} lies, SQLite cannot share it"
            )
        for setting in _SETTINGS:
            db.execute(setting)
        if made:
            return
        db.execute("BEGIN IMMEDIATE")
        if self._is_empty(db):
            db.execute(_TABLE)
            db.execute(f"PRAGMA application_id={APPLICATION}")
            db.execute(f"PRAGMA user_version={VERSION}")
        db.execute("COMMIT")

    def _is_empty(self, db: sqlite3.Connection) -> bool:
        """Whether nothing stands in the file yet; raises if it is not ours."""
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if not application and not version:
            (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if not tables:
                return True
        if application != APPLICATION:
            raise self._foreign("it is some other SQLite database")
        if version != VERSION:
            raise ConfigurationError(
                f"{self.path} is a store of format {version}; this headgate knows format {VERSION}. "
                "Give another file name, or use the headgate that made it"
            )
        return False

    def _meaning(self, error: sqlite3.Error | OSError) -> HeadgateError:
        """What an error of SQLite or the system means here."""
        code = _code(error)
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return self._foreign(str(error))
        forbidden = code == sqlite3.SQLITE_CANTOPEN and not os.access(self.path.parent, os.W_OK)
        if forbidden or code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
            return ConfigurationError(
                f"expected a file and a directory that may be written; {self.path}: {error}"
            )
        if code == sqlite3.SQLITE_FULL:
            return StoreUnavailable(f"no room for {self.path}: {error}; it goes on when there is")
        if _is_busy(error):
            return StoreUnavailable(
                f"others have kept {self.path} locked for {BUSY_SECONDS:g} s: one may be stopped in mid-write"
            )
        return StoreUnavailable(f"{self.path} cannot be used: {error}")

    def _foreign(self, why: str) -> ConfigurationError:
        return ConfigurationError(
            f"expected a store or no file yet; {self.path} is none, or damaged ({why}). "
            "Give another file name"
        )


_chance = random.Random()  # whoever has seeded the common one wants it undisturbed


def _pauses() -> Iterator[float]:
    """Seconds until the next attempt, for ever; SQLite's own way to wait takes whole milliseconds."""
    pause = 0.000_05
    while True:
        yield pause * _chance.uniform(0.5, 1.5)
        pause = min(2 * pause, 0.002)


def _name(key: str) -> bytes:
    """As it stands in the file: any text."""
    return key.encode("utf-8", "surrogatepass")


def _code(error: sqlite3.Error | OSError) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF  # above stands what it was doing


def _is_busy(error: sqlite3.Error | OSError) -> bool:
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)


# Forks


_stores: WeakValueDictionary[int, SQLiteStore] = WeakValueDictionary()


def _all_stores() -> list[SQLiteStore]:
    return [store for place in _stores.valuerefs() if (store := place()) is not None]


def _abandon(db: sqlite3.Connection) -> None:
    """Never close a connection: one reference is left that nobody can drop."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(db))


def _before_fork() -> None:
    for store in _all_stores():
        store._session.stand_still()


def _after_fork_in_parent() -> None:
    for store in _all_stores():
        store._session.go_on()


def _after_fork_in_child() -> None:
    """Another client, with a connection of its own."""
    for store in _all_stores():
        store._finish.detach()
        store._session.abandon()
        store._begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )


# URLs


_opened: WeakValueDictionary[Path, SQLiteStore] = WeakValueDictionary()


def open_url(url: str) -> SQLiteStore:
    """The store in a file; in one process the same for all who name the file.

    ``sqlite:///var/lib/limits.db`` is the file /var/lib/limits.db; a name alone, ``sqlite:///limits.db``, and
    what begins with a dot, ``sqlite:///./state/limits.db``, are in the working directory.

    Raises:
        ConfigurationError, StoreUnavailable: as for :class:`SQLiteStore`; or the URL names no file.
    """
    path = path_of(url)
    return _opened.get(path) or _opened.setdefault(path, SQLiteStore(path))


def path_of(url: str) -> Path:
    """The file that a URL names; see :func:`open_url`.

    Raises:
        ConfigurationError: it names none.
    """
    parts = urlsplit(url)
    path = unquote(parts.path)
    name = path.removeprefix("/")
    if parts.netloc or parts.query or parts.fragment or not name or name == ":memory:":
        raise ConfigurationError(
            "expected the URL of a file, such as sqlite:///var/lib/limits.db, or sqlite:///limits.db for one "
            f"in the working directory; got {url!r}"
        )
    if "/" not in name or name.startswith(("./", "../")) or re.match("[A-Za-z]:/", name):
        path = name
    return Path(path).resolve()
