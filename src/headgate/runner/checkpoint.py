"""What finished calls came to, on disk, so that a later process does not repeat them.

One SQLite file. A result that was reported as kept survives ``kill -9`` at any moment; a power failure may
cost the last second or so. Facts that a running call records are on the disk itself before
:meth:`Checkpoint.record` returns: they guard money. Nothing is held in memory but a cache of a fixed size,
so ten million results weigh no more than ten.

A result is known by the digest of its call's arguments and by its occurrence: the same arguments may be
scheduled several times on purpose, and are told apart by their order. This module does not know how digests
are made, when a call counts as finished, or what the states mean that it keeps for others.

Only one process can have the file open; SQLite locks it for as long as the process lives. As with any SQLite
file, that process must not open it by other means than SQLite meanwhile (to copy it, say): to close it then
would end the lock.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias
from weakref import WeakSet

from headgate.errors import ConfigurationError

if TYPE_CHECKING:
    import sqlite3

Data: TypeAlias = str | bytes
Codec: TypeAlias = Literal["pickle"] | tuple[Callable[[Any], Data], Callable[[Any], Any]] | None

APPLICATION = 0x68656164
"""Stands in the head of each file: "head" in ASCII."""
VERSION = 1
SYNC_SECONDS = 1.0
"""How much of a run a power failure may cost."""
LOCK_SECONDS = 0.25
"""How long to wait for a process that is just ending to let go of the file."""
_TABLES = (
    "CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    # Nothing is ever taken out, so the last id is the count. The value stands last: it may be long.
    """CREATE TABLE results (
        id INTEGER PRIMARY KEY, digest BLOB NOT NULL, occurrence INTEGER NOT NULL, attempts INTEGER NOT NULL,
        queued_at REAL NOT NULL, started_at REAL NOT NULL, finished_at REAL NOT NULL, value NOT NULL,
        UNIQUE (digest, occurrence))""",
    """CREATE TABLE facts (
        digest BLOB NOT NULL, occurrence INTEGER NOT NULL, name BLOB NOT NULL, value NOT NULL,
        PRIMARY KEY (digest, occurrence, name)) WITHOUT ROWID""",
    "CREATE TABLE states (name BLOB PRIMARY KEY, value NOT NULL) WITHOUT ROWID",
)
_SETTINGS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=NORMAL",
    "PRAGMA wal_autocheckpoint=4000",  # pages: rarer, so that a disk with slow syncs is waited for less often
    "PRAGMA cache_size=-16000",  # KB: the upper part of the index of ten million results
)


class Kept(NamedTuple):
    """What a finished call came to. Instants are Unix seconds."""

    value: Any
    attempts: int
    queued_at: float
    started_at: float
    finished_at: float


class Checkpoint:
    """A file of finished calls. Its methods may be called from any thread.

    Args:
        path: the file; it is made if there is none.
        function: the qualified name of the function whose results are kept.
        codec: how values are kept. None: as JSON, so a tuple comes back as a list. "pickle": anything that
            pickles; whoever can write such a file can run code in the process that reads it. Or a pair of
            functions: one that makes bytes or str of a value, and its inverse.

    Raises:
        ConfigurationError: the file is no checkpoint, one of another function or codec, made by a later
            version, open elsewhere, or its directory is missing.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike[str], *, function: str, codec: Codec = None) -> None:
        self.path = Path(path)
        self.function = function
        self._codec = _codec(codec)
        self._lock = threading.Lock()
        self._sync_at = time.monotonic() + SYNC_SECONDS
        self._connection: sqlite3.Connection | None = None
        self._refuse_others()
        self._connection = self._open()
        _OPEN.add(self)

    # Results

    def find(self, digest: str, occurrence: int) -> Kept | None:
        """The result that was kept first for these arguments at this occurrence, counted from 0.

        Raises:
            ConfigurationError: the codec cannot read the value.
            OSError: the file cannot be read.
        """
        rows = self._read(
            "SELECT value, attempts, queued_at, started_at, finished_at FROM results"
            " WHERE digest = ? AND occurrence = ?",
            (_key(digest), occurrence),
        )
        if not rows:
            return None
        data, *rest = rows[0]
        try:
            value = self._codec.decode(data)
        except Exception as error:  # a codec may raise anything
            raise ConfigurationError(
                f"the value that {self.path} holds for the digest {digest} cannot be read as "
                f"{self._codec.name} ({type(error).__name__}: {error}); another file name starts over"
            ) from error
        return Kept(value, *rest)

    def keep(
        self,
        digest: str,
        occurrence: int,
        value: Any,
        *,
        attempts: int,
        queued_at: float,
        started_at: float,
        finished_at: float,
    ) -> None:
        """Keep the result of a call; when this returns, no end of the process can lose it.

        Where one is kept already, that one stands.

        Args:
            digest: of the call's arguments.
            occurrence: how many calls with this digest were scheduled before.
            value: what the call returned.
            attempts: how many it took.
            queued_at, started_at, finished_at: Unix seconds.

        Raises:
            ConfigurationError: the codec cannot hold the value.
            OSError: the file cannot be written. What was kept stands, and this may be tried again.
        """
        data = self._codec.encode(value)
        self._write(
            "INSERT INTO results (digest, occurrence, attempts, queued_at, started_at, finished_at, value)"
            " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (digest, occurrence) DO NOTHING",
            (_key(digest), occurrence, attempts, queued_at, started_at, finished_at, data),
        )

    def count(self) -> int:
        """How many results are kept."""
        (last,) = self._read("SELECT max(id) FROM results")
        return last[0] or 0

    # Facts and states

    def record(self, digest: str, occurrence: int, name: str, value: Any) -> None:
        """Keep a fact about a call that is still running; it is on the disk itself when this returns.

        A later one of the same name takes its place. Facts stay when the call's result is kept.

        Raises:
            ConfigurationError: JSON cannot hold the value.
            OSError: the file cannot be written.
        """
        data = _to_json(value, "record numbers, texts, lists and dicts")
        self._write(
            "INSERT INTO facts (digest, occurrence, name, value) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (digest, occurrence, name) DO UPDATE SET value = excluded.value",
            (_key(digest), occurrence, _key(name), data),
            at_once=True,
        )

    def recorded(self, digest: str, occurrence: int) -> dict[str, Any]:
        """The facts recorded about a call, by name; empty if there are none."""
        rows = self._read(
            "SELECT name, value FROM facts WHERE digest = ? AND occurrence = ?", (_key(digest), occurrence)
        )
        return {_text(name): _from_json(data) for name, data in rows}

    def save_state(self, name: str, value: Any, *, at_once: bool = False) -> None:
        """Keep a small document in place of the one of that name.

        Args:
            name: any text.
            value: what JSON can hold.
            at_once: it must be on the disk itself before anything else happens.

        Raises:
            ConfigurationError: JSON cannot hold it.
            OSError: the file cannot be written.
        """
        data = _to_json(value, "save numbers, texts, lists and dicts")
        self._write(
            "INSERT INTO states (name, value) VALUES (?, ?)"
            " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (_key(name), data),
            at_once=at_once,
        )

    def load_state(self, name: str) -> Any | None:
        """The document of that name, or None if there is none."""
        rows = self._read("SELECT value FROM states WHERE name = ?", (_key(name),))
        return _from_json(rows[0][0]) if rows else None

    # Open and closed

    def sync(self) -> None:
        """Bring all that is kept to the disk itself: worth it before a long silence.

        Raises:
            OSError: that failed; what was kept still survives the end of the process.
        """
        with self._lock:
            self._run("PRAGMA wal_checkpoint(TRUNCATE)")
            self._sync_at = time.monotonic() + SYNC_SECONDS

    def close(self) -> None:
        """Bring all to the disk and let go of the file; again is harmless.

        Raises:
            OSError: the disk did not take it; the file is let go of all the same, and nothing kept is
                lost by that.
        """
        with self._lock:
            if self._connection is None:
                return
            try:
                self._run("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                _OPEN.discard(self)
                self._connection.close()
                self._connection = None

    def __del__(self) -> None:
        connection = getattr(self, "_connection", None)  # there is none if it could not be opened
        if connection is not None:
            connection.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._connection is None else f"{self.count():,} results"
        return f"<Checkpoint {str(self.path)!r} of {self.function}, {self._codec.name}, {state}>"

    def _refuse_others(self) -> None:
        """Look at the head of a file that is there, without a lock and without a change to it."""
        import sqlite3

        if not self.path.parent.is_dir():
            raise ConfigurationError(
                f"expected a path in a directory that exists; there is no {self.path.parent}"
            )
        if not self.path.exists():
            return
        if not self.path.is_file():
            raise ConfigurationError(f"expected the path of a file; {self.path} is none")
        try:
            with closing(sqlite3.connect(self._uri("mode=ro&immutable=1"), uri=True)) as looking:
                self._check_head(looking)
        except sqlite3.Error as error:
            # As a process leaves it that ends while the log is copied into the file: whole with the log only.
            if _code(error) != sqlite3.SQLITE_CORRUPT:
                raise self._told(error) from error

    def _check_head(self, connection: sqlite3.Connection) -> bool:
        """Whether anything stands in the file yet; raises if it is not ours."""
        if self.path.stat().st_size == 0:  # as a kill leaves it that comes while it is made
            return False
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION:
            raise self._foreign("it is some other SQLite database")
        if version != VERSION:
            raise ConfigurationError(
                f"{self.path} is a checkpoint of format {version}; this headgate knows format {VERSION}. "
                "Give another file name, or use the headgate that made it"
            )
        return True

    def _open(self) -> sqlite3.Connection:
        import sqlite3

        connection = None
        try:
            connection = sqlite3.connect(
                self._uri("mode=rwc"),
                uri=True,
                timeout=LOCK_SECONDS,
                isolation_level=None,  # each statement is a transaction
                check_same_thread=False,
            )
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            connection.execute("BEGIN EXCLUSIVE")  # the lock is held from here to the end of the process
            if self._check_head(connection):
                self._check_about(connection)
            else:
                self._create(connection)
            connection.execute("COMMIT")
            for setting in _SETTINGS:
                connection.execute(setting)
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, sqlite3.Error):
                raise self._told(error) from error
            raise
        return connection

    def _create(self, connection: sqlite3.Connection) -> None:
        for table in _TABLES:
            connection.execute(table)
        about = (("function", self.function), ("codec", self._codec.name))
        connection.executemany("INSERT INTO about VALUES (?, ?)", about)
        connection.execute(f"PRAGMA application_id={APPLICATION}")
        connection.execute(f"PRAGMA user_version={VERSION}")

    def _check_about(self, connection: sqlite3.Connection) -> None:
        about = dict(connection.execute("SELECT name, value FROM about"))
        for name, wanted in (("function", self.function), ("codec", self._codec.name)):
            if about.get(name) != wanted:
                raise ConfigurationError(
                    f"expected a checkpoint of the {name} {wanted!r}; {self.path} is of {about.get(name)!r}. "
                    "Give another file name"
                )

    def _uri(self, options: str) -> str:
        return f"{self.path.absolute().as_uri()}?{options}"

    # Statements

    def _read(self, statement: str, parameters: tuple[Any, ...] = ()) -> list[Any]:
        with self._lock:
            return self._run(statement, parameters)

    def _write(self, statement: str, parameters: tuple[Any, ...], *, at_once: bool = False) -> None:
        """Write and commit; about once a second, or ``at_once``, the disk is waited for.

        Such a commit brings all the earlier ones to the disk with it.
        """
        with self._lock:
            if not (at_once or time.monotonic() >= self._sync_at):
                self._run(statement, parameters)
                return
            self._run("PRAGMA synchronous=FULL")
            try:
                self._run(statement, parameters)
                self._sync_at = time.monotonic() + SYNC_SECONDS
            finally:
                self._run("PRAGMA synchronous=NORMAL")

    def _run(self, statement: str, parameters: tuple[Any, ...] = ()) -> list[Any]:
        """Carry out one statement. The lock is held."""
        import sqlite3

        if self._connection is None:
            raise ValueError(f"the checkpoint {self.path} is closed, or belongs to the process that forked")
        try:
            return self._connection.execute(statement, parameters).fetchall()
        except sqlite3.Error as error:
            raise self._told(error) from error

    def _told(self, error: sqlite3.Error) -> Exception:
        """What an error of SQLite means here."""
        import sqlite3

        code = _code(error)
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return ConfigurationError(
                f"{self.path} is open in another process or by another Checkpoint here; "
                "one run at a time can keep its results there"
            )
        if code == sqlite3.SQLITE_TOOBIG:
            return ConfigurationError("expected a value of less than a gigabyte")
        if self._connection is None and code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return self._foreign(str(error))
        return OSError(_ERRNO.get(code, errno.EIO), str(error), str(self.path))

    def _foreign(self, why: str) -> ConfigurationError:
        return ConfigurationError(
            f"expected a checkpoint or no file yet; {self.path} is none ({why}). Give another file name"
        )


_ERRNO = {13: errno.ENOSPC, 8: errno.EROFS, 14: errno.EACCES, 3: errno.EPERM, 23: errno.EACCES}
"""SQLite's FULL, READONLY, CANTOPEN, PERM and AUTH; all else is EIO."""


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF  # above stands what it was doing


_OPEN: WeakSet[Checkpoint] = WeakSet()


def _abandon() -> None:
    """In a process that forked off: leave the file to the parent.

    The child has none of the locks but would think so: to close the connection, even at its end, would take
    the parent's log away. So it is never closed: one reference is left that nobody can drop.
    """
    abandoned = list(_OPEN)
    if abandoned:
        import ctypes

    for checkpoint in abandoned:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(checkpoint._connection))
        checkpoint._connection = None
        checkpoint._lock = threading.Lock()  # some thread of the parent may have held it
    _OPEN.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon)


# Codecs


class _Codec(NamedTuple):
    """How values are kept; the name stands in the file."""

    name: str
    encode: Callable[[Any], Data]
    decode: Callable[[Any], Any]


def _codec(codec: object) -> _Codec:
    if codec is None:
        return _Codec("JSON", lambda value: _to_json(value, _OTHER_CODECS), _from_json)
    if codec == "pickle":
        import pickle

        return _Codec("pickle", _to_pickle, pickle.loads)
    if isinstance(codec, tuple | list) and len(codec) == 2 and all(map(callable, codec)):
        encode, decode = codec
        name = f"({', '.join(getattr(part, '__qualname__', type(part).__name__) for part in codec)})"
        return _Codec(name, lambda value: _checked(encode(value)), decode)
    raise ConfigurationError(f"expected None, 'pickle' or a pair (encode, decode) as codec; got {codec!r}")


def _checked(data: Any) -> Data:
    if not isinstance(data, str | bytes):
        raise ConfigurationError(f"expected str or bytes from the codec's encode; got {type(data).__name__}")
    if isinstance(data, str) and _text_or_bytes(data) is not data:
        raise ConfigurationError("expected text that UTF-8 can hold from the codec's encode; or bytes")
    return data


def _to_pickle(value: Any) -> bytes:
    import pickle

    try:
        return pickle.dumps(value, protocol=5)
    except Exception as error:  # what does not pickle says so in many ways
        raise ConfigurationError(
            f"expected a value that can be pickled; got {type(value).__name__} ({error}); "
            "give the Runner codec=(encode, decode)"
        ) from error


_OTHER_CODECS = 'give the Runner codec="pickle" or codec=(encode, decode)'
_encode_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _to_json(value: Any, way_out: str) -> Data:
    """JSON text, as bytes where it has half characters, which come back as they were only without escapes."""
    reason = "it has keys that are not str"
    try:
        text = _encode_json(value)
        if _has_text_keys(value):
            return _text_or_bytes(text)
    except (TypeError, ValueError, RecursionError) as error:
        reason = str(error)
    what = _culprit(value) or f"value cannot be written ({reason})"
    raise ConfigurationError(f"expected a value that JSON can hold; {what}; {way_out}")


def _from_json(data: Data) -> Any:
    return json.loads(data if isinstance(data, str) else data.decode("utf-8", "surrogatepass"))


def _has_text_keys(value: Any) -> bool:
    """Whether all keys are str, as those come back; JSON takes some others and makes str of them."""
    found = [value]
    for item in found:
        if isinstance(item, dict):
            if not all(isinstance(key, str) for key in item):
                return False
            found.extend(item.values())
        elif isinstance(item, list | tuple):
            found.extend(item)
    return True


def _culprit(value: Any, where: str = "value", depth: int = 0) -> str | None:
    """What of a value JSON cannot hold, and where it is; None if it is not a matter of types."""
    if value is None or isinstance(value, str | int | float) or depth > 100:
        return None
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                told = f"{key!r} of type {type(key).__name__}"
                return f"{where} has the key {told}, which would not come back as it is"
        parts = [(f'["{key}"]', item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(f"[{index}]", item) for index, item in enumerate(value)]
    else:
        kind = type(value)
        return f"{where} is of type {kind.__module__}.{kind.__qualname__}".replace("type builtins.", "type ")
    return next(filter(None, (_culprit(item, where + step, depth + 1) for step, item in parts)), None)


def _text_or_bytes(text: str) -> Data:
    """Text as it is if UTF-8 can hold it, as SQLite needs; else bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def _key(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(key: bytes) -> str:
    return key.decode("utf-8", "surrogatepass")
