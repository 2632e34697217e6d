"""What a run was asked to do."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from headgate.core.model import Limit
from headgate.limiter import ServiceClass

CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Options of ``headgate run``, checked.

    Attributes:
        source: the input file; None for standard input.
        output, errors: where results go; ``output`` None for standard output.
        base_url: scheme, host and perhaps a path, without a trailing slash.
        headers: sent with every request.
        secrets: what must not be shown: the API key, and headers that look like one.
        query: appended to every URL, encoded; empty or ``name=key``.
        timeout_seconds: None to learn it from latencies.
        concurrency: most calls in flight; None to let the limits decide.
        deadline_seconds: None for none.
    """

    source: Path | None
    output: Path | None
    errors: Path
    base_url: str
    limits: tuple[Limit, ...] = ()
    store: str | None = None
    key: str = "default"
    service_class: ServiceClass = "normal"
    on_store_failure: str = "wait"
    headers: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    query: str = ""
    template: str | None = None
    model: str | None = None
    max_tokens: int | None = None
    id_column: str | None = None
    max_attempts: int = 6
    timeout_seconds: float | None = None
    concurrency: int | None = None
    deadline_seconds: float | None = None
    ordered: bool = False
    fresh: bool = False

    def redact(self, text: str) -> str:
        """``text`` without the secret, however it is spelled there."""
        for secret in self.secrets:
            for spelling in _spellings(secret):
                text = text.replace(spelling, "***")
        return text

    def redact_data(self, data: Any) -> Any:
        """Parsed JSON without the secret."""
        match data:
            case str():
                return self.redact(data)
            case list():
                return [self.redact_data(item) for item in data]
            case dict():
                return {self.redact(name): self.redact_data(value) for name, value in data.items()}
            case _:
                return data

    def may_show_key(self, body: bytes) -> bool:
        """Whether the secret may stand in there: its longest part that nobody spells in another way does."""
        return any(_core(secret) in body for secret in self.secrets)


@lru_cache(maxsize=8)
def _spellings(key: str) -> tuple[str, ...]:
    """A key as it is, in URLs and in JSON."""
    percent = (quote(key, safe=""), quote(key), quote_plus(key))
    lower = (re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), text) for text in percent)
    escaped = json.dumps(key)[1:-1]
    found = {key, *percent, *lower, escaped, escaped.replace("/", "\\/")}
    return tuple(sorted(found, key=len, reverse=True))


@lru_cache(maxsize=8)
def _core(key: str) -> bytes:
    return max(re.findall("[A-Za-z0-9]+", key), key=len, default="").encode()
