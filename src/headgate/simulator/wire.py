"""What passes between the HTTP server and the shapes of its APIs. Knows no HTTP library and no limiter."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request, read whole. Header names are as the server's mapping takes them (any case)."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """A sound answer: a body, or the chunks of an event stream, and what making it used, `{meter: units}`."""

    usage: Mapping[str, int]
    body: bytes = b""
    chunks: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """A request understood: the server's estimate of its costs, and how to answer it once it is admitted.

    `answer(number, created_at)` takes the number of the call and the time in whole seconds since 1970.
    """

    costs: Mapping[str, int]
    answer: Callable[[int, int], Answer]


class BadRequest(Exception):
    """The caller's mistake: an HTTP status, a message, and the parameter and code it is told by."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        self.code = code


def to_json(value: Any) -> bytes:
    """Encode compactly."""
    return json.dumps(value, separators=(",", ":")).encode()
