"""What has been done, beside the output, so that a run goes on where it was stopped.

The output itself is the truth: a call is done when its result line stands there. The checkpoint makes the way
back short: a bitmap of the lines that were done when the output had a certain length; what stands behind that
length is read again. It is written before the first result, then every few seconds, and replaced whole, so a
crash at any moment leaves the one before or the one after.

It also ties the output to its input: the digest of the input as far as it went, and of what makes
requests of it.
"""

from __future__ import annotations

import json
import os
import secrets
import struct
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from headgate.errors import ConfigurationError
from headgate.run.rows import template_file
from headgate.run.settings import Settings

MAGIC = b"headgate checkpoint 1\n"
_LENGTH = struct.Struct("<Q")


def checkpoint_path(output: Path) -> Path:
    """Where the checkpoint of an output stands."""
    return output.with_name(output.name + ".checkpoint")


def recipe(settings: Settings) -> str:
    """The digest of all options that change what is sent for a line."""
    parts = [settings.template, settings.model, settings.max_tokens, settings.id_column]
    file = None if settings.template is None else template_file(settings.template)
    if file is not None:
        parts.append(file.read_text("utf-8"))
    return blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


class Bitmap:
    """A set of line numbers, one bit each."""

    def __init__(self, data: bytes = b"") -> None:
        self._bits = bytearray(data)
        self.count = int.from_bytes(self._bits, "little").bit_count()

    def __contains__(self, number: int) -> bool:
        index = number >> 3
        return index < len(self._bits) and bool(self._bits[index] >> (number & 7) & 1)

    def add(self, number: int) -> None:
        index = number >> 3
        if index >= len(self._bits):
            self._bits.extend(bytes(max(index + 1 - len(self._bits), 4096)))
        bit = 1 << (number & 7)
        if not self._bits[index] & bit:
            self._bits[index] |= bit
            self.count += 1

    def __bytes__(self) -> bytes:
        return bytes(self._bits)


@dataclass(slots=True)
class Checkpoint:
    """State of a run on disk.

    Attributes:
        salt: makes this run's idempotency keys its own; kept over reruns.
        recipe: see :func:`recipe`.
        input_size, input_digest: the input as it was surveyed last.
        output_size: length of the output that ``done`` speaks of.
        limits: states of limits that outlive a process, by key.
        done: numbers of the lines whose results stand in the output.
    """

    salt: str
    recipe: str
    input_size: int = 0
    input_digest: str = ""
    output_size: int = 0
    limits: dict[str, Any] = field(default_factory=dict)
    done: Bitmap = field(default_factory=Bitmap)

    @classmethod
    def new(cls, settings: Settings) -> Checkpoint:
        return cls(salt=secrets.token_hex(8), recipe=recipe(settings))

    @classmethod
    def read(cls, path: Path) -> Checkpoint | None:
        """The checkpoint at ``path``, or None if there is none.

        Raises:
            ConfigurationError: it cannot be read.
        """
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            if not data.startswith(MAGIC):
                raise ValueError("not a checkpoint")
            at = len(MAGIC)
            (length,) = _LENGTH.unpack_from(data, at)
            at += _LENGTH.size
            facts = json.loads(data[at : at + length])
            return cls(**facts, done=Bitmap(data[at + length :]))
        except (ValueError, TypeError, struct.error) as error:
            raise ConfigurationError(
                f"{path} cannot be read as a checkpoint ({error}); --fresh starts over"
            ) from error

    def encode(self) -> bytes:
        """The checkpoint as the bytes of its file."""
        facts = {
            name: getattr(self, name)
            for name in ("salt", "recipe", "input_size", "input_digest", "output_size", "limits")
        }
        head = json.dumps(facts).encode()
        return MAGIC + _LENGTH.pack(len(head)) + head + bytes(self.done)

    def write(self, path: Path) -> None:
        """Replace the checkpoint at ``path`` in one step."""
        self.write_bytes(path, self.encode())

    @staticmethod
    def write_bytes(path: Path, data: bytes) -> None:
        """The same for bytes that :meth:`encode` made earlier."""
        beside = path.with_name(path.name + ".new")
        try:
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(path)) from error
