"""A source of messages, such as a cloud's queue: it delivers again what is not acknowledged in time.

A message that was received is invisible for a while; if nobody has acknowledged it by then, it comes again.
And like every such queue it delivers a message twice now and then, for no reason at all. The standard library
alone; it knows nothing of who receives.
"""

import random
import sqlite3
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

BATCH = 500
SCHEMA = """
    CREATE TABLE IF NOT EXISTS messages
        (id INTEGER PRIMARY KEY, video TEXT NOT NULL, visible_at REAL NOT NULL, deliveries INTEGER NOT NULL);
"""


class Message(NamedTuple):
    """One delivery: the message's number, the video it is about, and how often it has been delivered."""

    id: int
    video: str
    deliveries: int


class Source:
    """A queue in a file, for any number of processes; one object is for one thread.

    `visible_after`: seconds until a message that was not acknowledged comes again.
    `twice`: the share of deliveries that are repeated at once.
    """

    def __init__(self, path: Path, *, visible_after: float = 3600.0, twice: float = 0.0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, timeout=60, isolation_level=None)
        self._db.executescript(SCHEMA)
        self._visible_after = visible_after
        self._twice = twice

    def send(self, videos: Iterable[str]) -> int:
        """Put in a message for each video, however many, a batch at a time; return how many."""
        count, videos = 0, iter(videos)
        while batch := [(video, 0.0, 0) for video in islice(videos, BATCH)]:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(
                "INSERT INTO messages (video, visible_at, deliveries) VALUES (?, ?, ?)", batch
            )
            self._db.execute("COMMIT")
            count += len(batch)
        return count

    def receive(self) -> Message | None:
        """Take the eldest visible message; None if there is none at present."""
        now = time.time()
        hidden_until = now if random.random() < self._twice else now + self._visible_after
        rows = self._db.execute(
            "UPDATE messages SET visible_at = ?, deliveries = deliveries + 1 WHERE id = "
            "(SELECT id FROM messages WHERE visible_at <= ? ORDER BY id LIMIT 1) "
            "RETURNING id, video, deliveries",
            (hidden_until, now),
        ).fetchall()
        return Message(*rows[0]) if rows else None

    def acknowledge(self, message: Message) -> None:
        """It is done with, and will not come again."""
        self._db.execute("DELETE FROM messages WHERE id = ?", (message.id,))

    def __len__(self) -> int:
        """How many messages nobody has acknowledged."""
        count: int = self._db.execute("SELECT count(*) FROM messages").fetchone()[0]
        return count

    def close(self) -> None:
        """Close the file."""
        self._db.close()
