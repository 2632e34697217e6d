"""What a run was asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from headgate.core.model import Limit

CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Options of ``headgate run``, checked.

    Attributes:
        source: the input file; None for standard input.
        output, errors: where results go; ``output`` None for standard output.
        base_url: scheme, host and perhaps a path, without a trailing slash.
        headers: sent with every request.
        key: the secret, for redaction; empty if there is none.
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
    headers: Mapping[str, str] = field(default_factory=dict)
    key: str = ""
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
        """``text`` without the secret."""
        return text.replace(self.key, "***") if self.key else text
