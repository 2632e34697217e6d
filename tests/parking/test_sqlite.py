"""What is SQLite's own: tables beside those of the store, starts of the machine, files that are locked."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from headgate.core.model import SECOND
from headgate.core.plan import Plan
from headgate.core.text import parse_limits
from headgate.errors import StoreUnavailable
from headgate.parking import Arrival, lot_of
from headgate.stores import sqlite as stores
from headgate.stores.sqlite import SQLiteStore
from tests.parking.places import Clock

PLAN = Plan(parse_limits(["requests=1000/s"]))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    with closing(SQLiteStore(path)) as found:
        yield found


def test_tables_are_made_when_something_is_parked_first(store: SQLiteStore, path: Path) -> None:
    def tables() -> set[str]:
        with closing(sqlite3.connect(path)) as db:
            return {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}

    lot = lot_of(store)
    assert lot.enter("k", "a", 0) is Arrival.GO
    assert lot.keys() == []
    assert lot.peek("k").waiting == 0
    lot.listen("k", lambda: None)()
    assert tables() == {"keys"}
    lot.park("k", "a", 0, b"", ())
    assert tables() == {"keys", "parking_lots", "parking_tasks", "parking_bodies"}
    with closing(SQLiteStore(path)) as other:
        assert lot_of(other).keys() == ["k"]


def test_limits_and_tasks_share_a_file_and_disturb_nothing_of_each_other(store: SQLiteStore) -> None:
    lot = lot_of(store)
    costs = PLAN.costs({})
    for number in range(40):  # long enough for the store to believe itself alone
        store.acquire("k", PLAN, [costs])
        lot.park("k", f"{number}", 0, b"", ())
        lot.take("k", "me", 1, SECOND)
    assert store.used("k", PLAN)[0] > 0
    assert len(lot.peek("k").out) == 40
    assert store.keys() == lot.keys() == ["k"]


def test_another_start_of_the_machine_keeps_order_and_deadlines(path: Path) -> None:
    clock = Clock()
    with closing(SQLiteStore(path, clock=clock)) as store:
        lot = lot_of(store)
        lot.park("k", "a", 0, b"", ())
        lot.park("k", "b", 0, b"", ())
        lot.take("k", "me", 1, 60 * SECOND)
    clock.us = 20 * SECOND
    with closing(SQLiteStore(path, clock=clock)) as store:
        lot = lot_of(store)
        taken = lot.take("k", "me", 1, 60 * SECOND)
        assert [one.id for one in taken.parked] == ["b"]
        clock.us += 60 * SECOND
        assert [one.id for one in lot.take("k", "me", 1, 60 * SECOND).parked] == ["a"]


def test_bodies_go_with_their_tasks_and_what_left_goes_in_time(path: Path) -> None:
    clock = Clock()
    with closing(SQLiteStore(path, clock=clock)) as store, closing(sqlite3.connect(path)) as db:
        lot = lot_of(store)
        for number in range(40):
            lot.park("k", f"{number}", 0, b"body", ())
            lot.drop("k", f"{number}")
        assert db.execute("SELECT count(*) FROM parking_bodies").fetchone() == (0,)
        assert db.execute("SELECT count(*) FROM parking_tasks").fetchone() == (40,)
        clock.us += 3_600 * SECOND
        for _ in range(3):
            lot.leave("k", "other", 0)
        assert db.execute("SELECT count(*) FROM parking_tasks").fetchone() == (1,)


def test_a_file_that_others_keep_locked_is_unavailable_but_can_be_looked_at(
    store: SQLiteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "BUSY_SECONDS", 0.05)
    lot = lot_of(store)
    lot.park("k", "a", 0, b"", ())
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable):
            lot.leave("k", "a", 0)
        assert lot.enter("k", "a", 0) is Arrival.STALE
        db.execute("ROLLBACK")
    assert lot.leave("k", "a", 0)


def test_a_store_that_was_closed_goes_on_when_it_is_used_again(store: SQLiteStore) -> None:
    lot = lot_of(store)
    lot.park("k", "a", 0, b"", ())
    store.close()
    assert lot.enter("k", "a", 0) is Arrival.STALE
