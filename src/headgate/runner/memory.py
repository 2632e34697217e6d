"""What is remembered of calls beyond their end: results and facts, in the checkpoint if there is one."""

from __future__ import annotations

import secrets
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from headgate.core.model import SECOND
from headgate.errors import ConfigurationError
from headgate.runner.call import Call

if TYPE_CHECKING:
    import sqlite3

    from headgate.runner.checkpoint import Checkpoint


MOST_IN_MEMORY = 50_000
_COUNT = "INSERT INTO seen VALUES (?, 1) ON CONFLICT DO UPDATE SET times = times + 1 RETURNING times"


class Remembered:
    """Results by digest, facts by call, and keys that tell a server that two requests are one."""

    def __init__(self, checkpoint: Checkpoint | None) -> None:
        self.checkpoint = checkpoint
        self._facts: dict[int, dict[str, Any]] = {}
        self._salt = secrets.token_hex(16)
        if checkpoint is not None:
            kept = checkpoint.load_state("salt")
            if kept is None:
                checkpoint.save_state("salt", self._salt, at_once=True)
            else:
                self._salt = kept

    def close(self) -> None:
        """Give up the file."""
        if self.checkpoint is not None:
            self.checkpoint.close()

    def find(self, call: Call[Any]) -> bool:
        """Fill in the result of an earlier process; whether there is one."""
        if self.checkpoint is None:
            return False
        kept = self.checkpoint.find(call.digest, call.occurrence)
        if kept is None:
            return False
        call.value = kept.value
        call.attempts = kept.attempts
        call.started, call.finished = kept.started_at, kept.finished_at
        call.elapsed_us = round((kept.finished_at - kept.started_at) * SECOND)
        return True

    def keep(self, call: Call[Any], value: Any, finished: float) -> None:
        """Keep a result, before anybody is told of it."""
        if self.checkpoint is not None:
            self.checkpoint.keep(
                call.digest,
                call.occurrence,
                value,
                attempts=call.attempts,
                queued_at=call.queued,
                started_at=call.started,
                finished_at=finished,
            )

    def idempotency_key(self, call: Call[Any]) -> str:
        """See :attr:`CurrentCall.idempotency_key`."""
        try:
            known = f"{call.digest}:{call.occurrence}" if self.checkpoint else f"{id(self)}:{call.position}"
        except ConfigurationError:
            known = f"{call.position}:{call.id}"
        named = blake2b(f"{self._salt}\0{known}".encode(), digest_size=16)
        return f"headgate-{named.hexdigest()}"

    def record(self, call: Call[Any], name: str, value: Any) -> None:
        """See :meth:`CurrentCall.record`."""
        if self.checkpoint is not None:
            self.checkpoint.record(call.digest, call.occurrence, name, value)
        else:
            self._facts.setdefault(call.position, {})[name] = value

    def recorded(self, call: Call[Any]) -> dict[str, Any]:
        """See :attr:`CurrentCall.recorded`."""
        if self.checkpoint is not None:
            return self.checkpoint.recorded(call.digest, call.occurrence)
        return dict(self._facts.get(call.position, ()))

    def forget(self, call: Call[Any]) -> None:
        """It is done: what was noted in memory only is of no more use."""
        self._facts.pop(call.position, None)


class Occurrences:
    """Counts how often a digest has come; in a temporary file once there are many, so memory stays flat."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._file: sqlite3.Connection | None = None

    def next(self, digest: str) -> int:
        """How often it has come before. The caller has a lock."""
        if self._file is None:
            count = self._counts.get(digest, 0)
            self._counts[digest] = count + 1
            if len(self._counts) >= MOST_IN_MEMORY:
                self._move()
            return count
        return int(self._file.execute(_COUNT, (digest,)).fetchone()[0]) - 1

    def _move(self) -> None:
        import sqlite3

        # An empty name is a database of its own that lives in a temporary file and goes with its connection.
        self._file = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._file.execute("CREATE TABLE seen (digest PRIMARY KEY, times INTEGER) WITHOUT ROWID")
        self._file.execute("BEGIN")
        self._file.executemany("INSERT INTO seen VALUES (?, ?)", self._counts.items())
        self._counts.clear()

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()
