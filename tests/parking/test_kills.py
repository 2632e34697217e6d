"""Workers are killed in the middle: every task leaves once, and none is lost."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headgate.parking import Arrival, Lot, lot_of
from headgate.stores.base import open_store
from tests.servers.redis import RedisServer
from tests.waiting import wait_until

COUNT = 300


@contextmanager
def worker(url: str, done: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-m", "tests.parking.worker", url, str(done)])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_on_sqlite(tmp_path: Path) -> None:
    kills(f"sqlite:///{tmp_path / 'store'}", tmp_path / "done")


def test_on_redis(redis_of_all: RedisServer, tmp_path: Path) -> None:
    redis_of_all.flush()
    kills(redis_of_all.url, tmp_path / "done")


def kills(url: str, done: Path) -> None:
    lot = lot_of(open_store(url))
    done.touch()
    ids = [f"id-{number}" for number in range(COUNT)]
    for id in ids[: COUNT // 2]:
        assert lot.park("k", id, 0, f"body-{id}".encode(), (1,))

    def left() -> list[str]:
        return done.read_text().splitlines()

    with worker(url, done) as one, worker(url, done) as other:
        wait_until(lambda: len(left()) > 20)
        releaser = lot.peek("k").releaser
        first, second = (one, other) if releaser == str(one.pid) else (other, one)
        first.kill()
        for id in ids[COUNT // 2 :]:
            assert lot.enter("k", id, 0) is Arrival.BEHIND
            lot.park("k", id, 0, f"body-{id}".encode(), (1,))
        now = len(left())
        wait_until(lambda: len(left()) > now + 20)
        second.kill()
        with worker(url, done):
            wait_until(lambda: is_empty(lot))
    # A task may have left just before its worker was killed, who did not come to write it down.
    lines = Counter(left())
    assert set(lines.values()) == {1}
    assert set(lines) <= {f"{id} body-{id}" for id in ids}
    assert len(lines) >= COUNT - 2
    assert all(lot.enter("k", id, 0) is Arrival.STALE for id in ids)


def is_empty(lot: Lot) -> bool:
    found = lot.peek("k")
    return not found.waiting and not found.out
