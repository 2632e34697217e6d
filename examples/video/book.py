"""The pipeline's own book: which runs it started and when, so that a month's are counted, and the results."""

import json
import sqlite3
import time
from datetime import datetime
from pathlib import Path
from typing import Any

SCHEMA = """
    CREATE TABLE IF NOT EXISTS starts (video TEXT PRIMARY KEY, at REAL NOT NULL);
    CREATE TABLE IF NOT EXISTS results (video TEXT PRIMARY KEY, result TEXT NOT NULL);
"""


class Book:
    """A file; what a method has written is on the disk when it returns."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript(SCHEMA)

    def note_start(self, video: str) -> None:
        """A run of this video is about to be started, or to be started once more with the same key."""
        self._db.execute("REPLACE INTO starts VALUES (?, ?)", (video, time.time()))

    def has_start(self, video: str) -> bool:
        """Whether a run of it may have been started."""
        return self._finds("SELECT 1 FROM starts WHERE video = ?", video)

    def starts_since(self, instant: datetime) -> int:
        """How many videos had a run started since then."""
        found = self._db.execute("SELECT count(*) FROM starts WHERE at >= ?", (instant.timestamp(),))
        return int(found.fetchone()[0])

    def store(self, video: str, result: dict[str, Any]) -> None:
        """Keep a result. Raises sqlite3.IntegrityError if there is one already."""
        self._db.execute("INSERT INTO results VALUES (?, ?)", (video, json.dumps(result)))

    def has_result(self, video: str) -> bool:
        """Whether its result is stored."""
        return self._finds("SELECT 1 FROM results WHERE video = ?", video)

    def results(self) -> dict[str, dict[str, Any]]:
        """All results, by video."""
        return {video: json.loads(text) for video, text in self._db.execute("SELECT * FROM results")}

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _finds(self, query: str, video: str) -> bool:
        return bool(self._db.execute(query, (video,)).fetchall())
