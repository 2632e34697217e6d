"""What a response file says."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from headgate.core.retry import ErrorClass
from headgate.errors import ObjectTooLarge
from headgate.integrations.celery.mediator.outgoing import Reply

if TYPE_CHECKING:
    from headgate.integrations.storage import Storage

KINDS: Mapping[ErrorClass, str] = {
    kind: kind.value.replace(" ", "_") for kind in ErrorClass if kind is not ErrorClass.OK
}
"""What an error is called in a response: ``caller``, ``overloaded``, ``never_fits``…"""
INVALID, NO_REQUEST, TOO_LARGE, INTERNAL = "invalid_request", "no_request", "answer_too_large", "internal"
FACTS_BYTES = 1 << 20
"""A response has no more beside its answer, unless the request brought much metadata."""

_HEADERS = re.compile(
    r"content-type|date|retry-after(-ms)?|location|operation-location|etag"
    r"|(.*-)?request-id|(x-|anthropic-)?ratelimit(-.*)?|openai-(model|processing-ms|version)"
)
"""Those of an answer that are kept: what it is, who made it, and how the limits stand."""
_TEXT = re.compile(r"text/.*|application/(.*\+)?(xml|yaml)|application/(x-)?ndjson|application/jsonl?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What came of a task.

    Attributes:
        service: None if the request belonged to none.
        reply: the last answer, without secrets; None if there is none.
        error: (kind, message), None if all is well.
        attempts: those that were made and not refused for the rate.
        started: Unix time of the last of them.
        seconds: how long it took.
        metadata: the request's.
    """

    task_id: str
    service: str | None = None
    reply: Reply | None = None
    error: tuple[str, str] | None = None
    attempts: int = 0
    started: float | None = None
    seconds: float | None = None
    metadata: Any = field(default=None)

    def data(self) -> bytes:
        """The file."""
        reply, error = self.reply, self.error
        values = {
            "task_id": self.task_id,
            "ok": error is None,
            "service": self.service,
            "status": None if reply is None else reply.status,
            "headers": {} if reply is None else _kept(reply.headers),
            **({"body": None} if reply is None else _body(reply)),
            "error": None if error is None else {"kind": error[0], "message": error[1]},
            "attempts": self.attempts,
            "started": None if self.started is None else _instant(self.started),
            "seconds": None if self.seconds is None else round(self.seconds, 3),
            "metadata": self.metadata,
        }
        return json.dumps(values, allow_nan=False, separators=(",", ":")).encode()


def response_name(task_id: str) -> str:
    """The object in which a response lies."""
    return f"{task_id}.response.json"


def stored_failure(storage: Storage, task_id: str, most_bytes: int) -> str | None:
    """The kind of failure that a stored response tells of.

    Args:
        most_bytes: of its answer. One that is larger is not read.

    Returns:
        None if it tells of none, is too large, or is no response.

    Raises:
        StorageError: ObjectNotFound if there is none.
    """
    try:
        # At the worst, each byte of an answer has become an escape of six characters.
        kind = json.loads(storage.read(response_name(task_id), FACTS_BYTES + 6 * most_bytes))["error"]["kind"]
    except (ObjectTooLarge, ValueError, RecursionError, LookupError, TypeError):
        return None
    return kind if isinstance(kind, str) else None


def is_json(reply: Reply) -> bool:
    """Whether an answer says that its body is JSON."""
    kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if _HEADERS.fullmatch(name)}


def _body(reply: Reply) -> dict[str, Any]:
    """Under ``body`` as JSON, else under ``text``, else under ``base64``."""
    if not reply.body:
        return {"body": None}
    if is_json(reply) and reply.json is not None:
        try:
            json.dumps(reply.json, allow_nan=False)
        except (ValueError, RecursionError):
            pass  # Python reads numbers that JSON has none for
        else:
            return {"body": reply.json}
    kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not kind or is_json(reply) or _TEXT.fullmatch(kind):
        try:
            return {"text": reply.body.decode()}
        except UnicodeDecodeError:
            pass
    return {"base64": b64encode(reply.body).decode()}


def _instant(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
