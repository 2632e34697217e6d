"""Where rows come from: a file, or standard input as it flows."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from hashlib import blake2b
from pathlib import Path

from headgate.errors import ConfigurationError
from headgate.run.checkpoint import Bitmap
from headgate.run.rows import BadLine, Row, RowReader
from headgate.run.survey import read_lines

Report = Callable[[int, BadLine], None]
"""Told the number of a line that makes no request, and why."""


class FileRows(AsyncIterator[Row]):
    """The rows of a file that are not done yet.

    Args:
        skip: told the number of each line that will have no result, blank lines among them.
    """

    def __init__(
        self, source: Path, reader: RowReader, done: Bitmap, bad: Report, skip: Callable[[int], None]
    ) -> None:
        self._lines = read_lines(source)
        self._reader = reader
        self._done = done
        self._bad = bad
        self._skip = skip
        self._next = 0

    async def __anext__(self) -> Row:
        for number, line in self._lines:
            while self._next < number:
                self._skip(self._next)
                self._next += 1
            self._next = number + 1
            if number in self._done:
                continue
            try:
                return self._reader.row(number, line)
            except BadLine as error:
                self._bad(number, error)
        raise StopAsyncIteration


class StreamRows(AsyncIterator[Row]):
    """The rows of standard input, as they come; those whose ids are done already are passed over.

    A thread reads, since nothing else can wait for every kind of standard input; it stays a few blocks ahead
    at most. Ids are kept in a file, so that memory stays flat.
    """

    _AHEAD = 4
    _BLOCK = 1 << 16

    def __init__(self, reader: RowReader, done_ids: Path, bad: Report) -> None:
        self._reader = reader
        self._bad = bad
        self._number = -1
        self.skipped = 0
        self._lines: deque[bytes] = deque()
        self._rest = b""
        self._blocks: asyncio.Queue[bytes] = asyncio.Queue()
        self._room = threading.Semaphore(self._AHEAD)
        self._ended = False
        self._ids = _IdFile(done_ids)
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._pump, args=(loop,), name="stdin", daemon=True).start()

    def _pump(self, loop: asyncio.AbstractEventLoop) -> None:
        block = b"?"
        while block:
            self._room.acquire()
            block = os.read(sys.stdin.fileno(), self._BLOCK)
            try:
                loop.call_soon_threadsafe(self._blocks.put_nowait, block)
            except RuntimeError:  # the run has ended before its input
                return

    async def __anext__(self) -> Row:
        while True:
            while not self._lines:
                if self._ended:
                    raise StopAsyncIteration
                await self._fill()
            line = self._lines.popleft()
            self._number += 1
            if line.isspace() or not line:
                continue
            try:
                row = self._reader.row(self._number, line)
            except BadLine as error:
                self._bad(self._number, error)
                continue
            first = self._ids.see(row.custom_id, self._number)
            if first is None:
                return row
            if first >= 0:
                raise ConfigurationError(
                    f"every id stands on one line; {row.custom_id!r} stands on lines {first + 1} and "
                    f"{self._number + 1} of standard input"
                )
            self.skipped += 1

    async def _fill(self) -> None:
        block = await self._blocks.get()
        self._room.release()
        if not block:
            self._ended = True
            self._blocks.put_nowait(b"")  # for the others who wait
            if self._rest:
                self._lines.append(self._rest)
                self._rest = b""
            return
        *lines, self._rest = (self._rest + block).split(b"\n")
        self._lines.extend(lines)

    def finished(self, custom_id: str) -> None:
        """The id was done in an earlier run."""
        self._ids.finished(custom_id)

    def close(self) -> None:
        self._ids.close()


class _IdFile:
    """Digests of ids and the lines they stood on, in a scratch database."""

    _DONE = -1

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._path = path
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute("CREATE TABLE ids (digest BLOB PRIMARY KEY, line INTEGER) WITHOUT ROWID")

    def see(self, custom_id: str, line: int) -> int | None:
        """None for a new id; the line it stood on; -1 if it was done in an earlier run."""
        digest = _digest(custom_id)
        found = self._db.execute("SELECT line FROM ids WHERE digest = ?", (digest,)).fetchone()
        if found is not None:
            return int(found[0])
        self._db.execute("INSERT INTO ids VALUES (?, ?)", (digest, line))
        return None

    def finished(self, custom_id: str) -> None:
        self._db.execute("INSERT OR IGNORE INTO ids VALUES (?, ?)", (_digest(custom_id), self._DONE))

    def close(self) -> None:
        self._db.close()
        self._path.unlink(missing_ok=True)


def _digest(custom_id: str) -> bytes:
    return blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
