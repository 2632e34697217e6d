"""Result lines in the OpenAI batch form, each exactly once, whatever interrupts the run.

A line is written whole, by one call, as soon as its answer has come. After a crash the end of the file may
hold half a line: that is cut off, and its call counts as not done. The number of the input line stands in
``id``, so the file tells by itself what is done.
"""

from __future__ import annotations

import json
import os
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headgate.errors import ConfigurationError

if sys.platform != "win32":
    import fcntl

_ID = re.compile(rb'\{"id": "batch_req_(\d+)"')
_CHUNK = 1 << 20


def result_line(
    number: int, custom_id: str | None, response: bytes | None, error: dict[str, Any] | None
) -> bytes:
    """One line of a result file; ``response`` is encoded JSON."""
    return (
        b'{"id": "batch_req_%012d", "custom_id": ' % number
        + json.dumps(custom_id).encode()
        + b', "response": '
        + (response or b"null")
        + b', "error": '
        + (b"null" if error is None else json.dumps(error).encode())
        + b"}\n"
    )


def response_json(status: int, request_id: str | None, body: bytes) -> bytes:
    """The ``response`` of a result line; ``body`` is encoded JSON without line breaks."""
    return b'{"status_code": %d, "request_id": %s, "body": %s}' % (
        status,
        json.dumps(request_id).encode(),
        body,
    )


def number_of(line: bytes) -> int | None:
    """The input line that a result line belongs to; None if it is not one of ours."""
    found = _ID.match(line)
    return int(found[1]) if found else None


class Appender:
    """A file to which whole lines are added, by one process at a time.

    Attributes:
        size: bytes that stand in it.

    Raises:
        ConfigurationError: another process has it.
        OSError
    """

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            _lock(self._fd, path)
            self.size = 0 if fresh else _whole_lines(self._fd)
            os.ftruncate(self._fd, self.size)
        except BaseException:
            os.close(self._fd)
            raise

    def add(self, line: bytes) -> None:
        """Write a line; on a full disk nothing of it stays.

        Raises:
            OSError
        """
        written = 0
        try:
            while written < len(line):
                written += os.write(self._fd, line[written:] if written else line)
        except OSError as error:
            os.ftruncate(self._fd, self.size)
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        self.size += written

    def clear(self) -> None:
        """Begin anew."""
        os.ftruncate(self._fd, 0)
        self.size = 0

    def lines_from(self, start: int) -> Iterator[bytes]:
        """The lines behind an offset."""
        with self._path.open("rb") as file:
            file.seek(start)
            yield from file

    def sync(self) -> None:
        """Have all lines on the disk itself."""
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


class Stdout:
    """Standard output in the place of a file: nothing to go on from."""

    def __init__(self) -> None:
        self.size = 0

    def add(self, line: bytes) -> None:
        written = 0
        while written < len(line):
            written += os.write(1, line[written:])
        self.size += written

    def lines_from(self, start: int) -> Iterator[bytes]:
        return iter(())

    def sync(self) -> None:
        """A pipe has nothing to sync."""

    def close(self) -> None:
        """It is not ours to close."""


def _lock(fd: int, path: Path) -> None:
    """Keep a file for this process until it ends, however it ends."""
    if sys.platform != "win32":
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(f"another run is writing to {path}") from None
        except OSError:  # a file system that knows no locks
            return


def _whole_lines(fd: int) -> int:
    """The length of a file without the half line at its end."""
    end = os.fstat(fd).st_size
    at = end
    while at > 0:
        begin = max(at - _CHUNK, 0)
        newline = os.pread(fd, at - begin, begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        at = begin
    return 0


class Ordered:
    """Puts results into the order of the input, by way of a spill file and an index on disk.

    Results are kept in ``spill`` as they come; the index has a fixed place for each input line. Whatever is
    next in order goes on to the output at once. Memory stays flat however far the others run ahead. The spill
    is the truth: a run that goes on writes the output anew from it, since a line that failed before may now
    have its result.

    Args:
        output: written from the beginning, so it has to be empty.
        spill: the file of results as they come; the index stands beside it while the run lasts.
    """

    _ENTRY = struct.Struct("<QQ")
    _FAILED = (1 << 64) - 1

    def __init__(self, output: Appender | Stdout, spill: Path, *, fresh: bool) -> None:
        self._output = output
        self._spill = Appender(spill, fresh=fresh)
        index = spill.with_name(spill.name + ".index")
        self._paths = (spill, index)
        self._index = os.open(index, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        self._next = 0
        at = 0
        for line in self._spill.lines_from(0):
            number = number_of(line)
            if number is not None:
                self._enter(number, at + 1, len(line))
            at += len(line)
        self._advance()

    @property
    def size(self) -> int:
        return self._spill.size

    def add(self, line: bytes) -> None:
        number = number_of(line)
        if number is None:
            raise ValueError("not a result line")
        at = self._spill.size
        self._spill.add(line)
        self._enter(number, at + 1, len(line))
        self._advance()

    def skip(self, number: int) -> None:
        """That line will have no result here."""
        self._enter(number, self._FAILED, 0)
        self._advance()

    def lines_from(self, start: int) -> Iterator[bytes]:
        return self._spill.lines_from(start)

    def _enter(self, number: int, at: int, length: int) -> None:
        os.pwrite(self._index, self._ENTRY.pack(at, length), number * self._ENTRY.size)

    def _advance(self) -> None:
        while True:
            entry = os.pread(self._index, self._ENTRY.size, self._next * self._ENTRY.size)
            if len(entry) < self._ENTRY.size:
                return
            at, length = self._ENTRY.unpack(entry)
            if not at:
                return
            if at != self._FAILED:
                self._output.add(self._spill_bytes(at - 1, length))
            self._next += 1

    def _spill_bytes(self, at: int, length: int) -> bytes:
        with self._paths[0].open("rb") as file:
            file.seek(at)
            return file.read(length)

    def sync(self) -> None:
        self._spill.sync()
        self._output.sync()

    def close(self) -> None:
        self._advance()
        os.close(self._index)
        self._paths[1].unlink(missing_ok=True)
        self._spill.close()
        self._output.close()
