"""One look at the whole input before anything is sent: how much it is, what it is, and no id twice.

Memory stays flat: ids go as 64-bit digests into 256 files by their first byte, and each file is looked
through by itself. Two digests that agree are compared by the ids themselves.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import IO, NamedTuple

from headgate.errors import ConfigurationError
from headgate.run.rows import LONGEST_LINE, BadLine, RowReader

_RECORD = struct.Struct("<8sQ")
_PARTS = 256
_BUFFER = 4096
_FEW = 2048
"""Ids up to this many are looked through in memory."""


class Survey(NamedTuple):
    """``lines`` that are not blank, ``size`` in bytes, and the digest of all of it.

    ``prefix`` is the digest of the first bytes that were asked for; None if there are fewer, empty if
    they end inside a line.
    """

    lines: int
    size: int
    digest: str
    prefix: str | None


def read_lines(source: Path, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, numbered from 0, blank ones counted."""
    with source.open("rb") as file:
        for number, line in enumerate(_lines(file)):
            if number >= start and not line.isspace():
                yield number, line


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise ConfigurationError(f"expected lines of at most {LONGEST_LINE >> 20} MiB; one is longer")
        yield line


def survey(
    source: Path, reader: RowReader, prefix_size: int = 0, tick: Callable[[int], None] | None = None
) -> Survey:
    """Look through a file.

    Args:
        prefix_size: also take the digest of this many bytes from its beginning.
        tick: called with the bytes read so far, now and then.

    Raises:
        ConfigurationError: an id stands on two lines; the message names both.
    """
    digest = blake2b(digest_size=16)
    prefix = None if prefix_size else digest.hexdigest()
    lines = size = 0
    with source.open("rb") as file, _Ids() as ids:
        for number, line in enumerate(_lines(file)):
            if prefix is None and size + len(line) >= prefix_size:
                head = digest.copy()
                head.update(line[: prefix_size - size])
                # Text behind a last line without its end makes another line of it.
                prefix = head.hexdigest() if not line[prefix_size - size :].strip() else ""
            digest.update(line)
            size += len(line)
            if not line.isspace():
                lines += 1
                with suppress(BadLine):  # it is reported when its turn comes
                    ids.add(reader.custom_id(number, line), number)
            if tick is not None and number % 20_000 == 0:
                tick(size)
        for first, second in ids.twins():
            _refuse_if_same(source, reader, first, second)
    return Survey(lines, size, digest.hexdigest(), prefix)


def _refuse_if_same(source: Path, reader: RowReader, first: int, second: int) -> None:
    ids = {}
    for number, line in read_lines(source, first):
        if number in (first, second):
            ids[number] = reader.custom_id(number, line)
        if number >= second:
            break
    if ids[first] == ids[second]:
        raise ConfigurationError(
            f"every id stands on one line; {ids[first]!r} stands on lines {first + 1} and {second + 1} "
            f"of {source}"
        )


class _Ids:
    """Digests of ids with their lines, on disk as soon as they are many."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._parts: list[bytearray] = [bytearray() for _ in range(_PARTS)]
        self._count = 0

    def __enter__(self) -> _Ids:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def add(self, custom_id: str, number: int) -> None:
        digest = blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        part = self._parts[digest[0]]
        part += _RECORD.pack(digest, number)
        self._count += 1
        if self._count > _FEW and len(part) >= _BUFFER:
            self._spill(digest[0])

    def _spill(self, index: int) -> None:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="headgate-")
        with (Path(self._folder.name) / str(index)).open(
            "ab"
        ) as file:  # 256 open at once are too many for some
            file.write(self._parts[index])
        self._parts[index].clear()

    def twins(self) -> Iterator[tuple[int, int]]:
        """Pairs of lines whose ids have the same digest."""
        for index in range(_PARTS):
            data = bytes(self._parts[index])
            if self._folder is not None:
                spilled = Path(self._folder.name) / str(index)
                data = (spilled.read_bytes() if spilled.exists() else b"") + data
            seen: dict[bytes, int] = {}
            for digest, number in _RECORD.iter_unpack(data):
                if digest in seen:
                    yield seen[digest], number
                seen[digest] = number
