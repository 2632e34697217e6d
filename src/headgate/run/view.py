"""What people see of a run: a live view in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Protocol

from headgate.core.durations import seconds_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


@dataclass(frozen=True, slots=True)
class LimitStatus:
    """One limit as it stands: ``rate`` and ``allowed`` in units per second (slots for concurrency)."""

    name: str
    rate: float
    allowed: float
    binds: bool


@dataclass(frozen=True, slots=True)
class Status:
    """A run at one moment. ``total`` is None while nobody knows."""

    done: int
    total: int | None
    failed: int
    in_flight: int
    waiting: int
    refused: int
    retries: int
    rate: float
    p50: float | None
    p95: float | None
    eta_seconds: float | None
    blocked: str
    limits: Sequence[LimitStatus]
    draining: bool


class View(Protocol):
    """Where a run is shown."""

    every_seconds: float

    def show(self, status: Status) -> None: ...
    def note(self, text: str) -> None:
        """A line that stays."""

    def close(self) -> None: ...


class NoView:
    """Notes only."""

    every_seconds = 3600.0

    def show(self, status: Status) -> None:
        """Nothing to see."""

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)  # noqa: T201  # this is the command's voice

    def close(self) -> None:
        """Nothing was opened."""


class LogView(NoView):
    """A line every few seconds."""

    every_seconds = 5.0

    def show(self, status: Status) -> None:
        total = "" if status.total is None else f" of {status.total:,}"
        parts = [f"{status.done:,}{total} done", f"{status.rate:.1f}/s"]
        if status.failed:
            parts.append(f"{status.failed:,} failed")
        parts += [f"{status.in_flight} in flight", f"{status.waiting} waiting"]
        if status.refused or status.retries:
            parts.append(f"{status.refused:,} refused, {status.retries:,} retries")
        binding = [limit.name for limit in status.limits if limit.binds]
        if status.blocked:
            parts.append(status.blocked)
        elif binding:
            parts.append(f"bound by {binding[0]}")
        if status.eta_seconds is not None:
            parts.append(f"{seconds_text(status.eta_seconds)} left")
        self.note("headgate: " + ", ".join(parts))


class RichView:
    """A live table in the terminal."""

    every_seconds = 0.2

    def __init__(self, file: IO[str] | None = None) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console: Console = Console(file=file or sys.stderr)
        self._live = Live(console=self._console, auto_refresh=False, transient=False)
        self._live.start()

    def show(self, status: Status) -> None:
        self._live.update(self._render(status), refresh=True)

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._live.stop()

    def _render(self, status: Status) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        head = Table.grid(padding=(0, 2), expand=False)
        total = "" if status.total is None else f" of {status.total:,}"
        head.add_row(
            Text(f"{status.done:,}{total}", "bold"),
            ProgressBar(
                total=status.total or 1,
                completed=status.done if status.total else 0,
                width=32,
                pulse=status.total is None,
            ),
            Text(f"{status.rate:,.1f}/s"),
            Text("draining" if status.draining else _eta(status.eta_seconds), "cyan"),
        )
        limits = Table.grid(padding=(0, 2))
        for limit in status.limits:
            share = limit.rate / limit.allowed if limit.allowed else 0.0
            limits.add_row(
                Text(limit.name),
                ProgressBar(total=1.0, completed=min(share, 1.0), width=20),
                Text(f"{_units(limit.rate)} of {_units(limit.allowed)}"),
                Text(f"{share:.0%}", "bold" if limit.binds else "dim"),
                Text("◀ binds" if limit.binds else "", "yellow"),
            )
        facts: list[tuple[str, str]] = [
            (f"{status.in_flight}", "in flight"),
            (f"{status.waiting}", "waiting"),
            (f"{status.refused:,}", "refused"),
            (f"{status.retries:,}", "retries"),
            (f"{status.failed:,}", "failed"),
        ]
        line = Text()
        for number, name in facts:
            alarming = name in ("refused", "failed") and number != "0"
            line.append(number, "bold red" if alarming else "bold").append(f" {name}   ", "dim")
        if status.p50 is not None and status.p95 is not None:
            line.append("p50 ", "dim").append(_ms(status.p50), "bold")
            line.append("  p95 ", "dim").append(_ms(status.p95), "bold")
        parts: list[Any] = [head, limits, line]
        if status.blocked:
            parts.append(Text(status.blocked, "yellow"))
        return Group(*parts)


def _eta(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds_text(seconds)} left"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms" if seconds < 10 else f"{seconds:,.0f} s"


def _units(rate: float) -> str:
    """Per second if there is at least one, else per minute or hour."""
    if rate >= 10 or rate == 0:
        return f"{rate:,.0f}/s"
    if rate >= 1:
        return f"{rate:,.1f}/s"
    return f"{rate * 60:,.1f}/min" if rate * 60 >= 1 else f"{rate * 3600:,.1f}/h"


def make_view(kind: str) -> View:
    """``auto`` (live in a terminal, plain lines elsewhere), ``rich``, ``log`` or ``none``."""
    if kind == "auto":
        kind = "rich" if sys.stderr.isatty() else "log"
    if kind == "rich":
        return RichView()
    return LogView() if kind == "log" else NoView()
