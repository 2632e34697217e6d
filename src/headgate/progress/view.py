"""What people see of long work: a live view in a terminal or a notebook, plain lines elsewhere.

It draws a ``Status`` and knows nothing of what does the work. A view may be fed and closed in any thread.
"""

from __future__ import annotations

import atexit
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Protocol

from headgate.core.durations import seconds_text
from headgate.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

KINDS = ("auto", "rich", "notebook", "log", "none")

_HARMFUL = dict.fromkeys(
    [*range(9), *range(11, 32), *range(127, 160), *range(0xD800, 0xE000)], "\N{REPLACEMENT CHARACTER}"
)
"""Control characters, for a server's words must not steer a terminal, and what UTF-8 has no place for."""
_EARLY_SECONDS = 0.25
"""A timer may ring so much early and still be on time."""


@dataclass(frozen=True, slots=True)
class LimitStatus:
    """One limit as it stands: ``rate`` and ``allowed`` in units per second, or slots if ``slots``."""

    name: str
    rate: float
    allowed: float
    binds: bool
    slots: bool = False

    @property
    def share(self) -> float:
        """Of what is allowed; may be above 1 for a moment."""
        return self.rate / self.allowed if self.allowed else 0.0

    @property
    def amounts(self) -> str:
        """``9.8/s of 10/s``, ``3 of 8`` for slots."""
        if self.slots:
            return f"{self.rate:,.0f} of {self.allowed:,.0f}"
        return f"{_units(self.rate)} of {_units(self.allowed)}"


@dataclass(frozen=True, slots=True)
class Status:
    """Work at one moment. ``total`` is None while nobody knows; rates are per second, times in seconds."""

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

    @property
    def share(self) -> float | None:
        """Of the total that is done, 0 to 1; None while nobody knows the total."""
        if self.total is None:
            return None
        return min(self.done / self.total, 1.0) if self.total else 1.0

    @property
    def counted(self) -> str:
        """``33 of 1,000``."""
        return f"{self.done:,}" if self.total is None else f"{self.done:,} of {self.total:,}"

    @property
    def left(self) -> str:
        """``40 s left``, ``draining``, or nothing."""
        if self.draining:
            return "draining"
        return _left(self.eta_seconds)


def printable(text: str) -> str:
    """The same text, without what could harm a terminal; ends of lines and tabs stay."""
    return text.translate(_HARMFUL)


def line(status: Status) -> str:
    """All that matters in one line of text."""
    parts = [f"{status.counted} done", f"{status.rate:.1f}/s"]
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
    parts.append(_left(status.eta_seconds))
    return "headgate: " + ", ".join(filter(None, parts))


def facts(status: Status) -> list[tuple[str, str]]:
    """(name, value) of what stands beside the bars; times only once there are some."""
    found = [
        ("in flight", f"{status.in_flight:,}"),
        ("waiting", f"{status.waiting:,}"),
        ("refused", f"{status.refused:,}"),
        ("retries", f"{status.retries:,}"),
        ("failed", f"{status.failed:,}"),
    ]
    times = (("p50", status.p50), ("p95", status.p95))
    return found + [(name, _ms(seconds)) for name, seconds in times if seconds is not None]


class View(Protocol):
    """Where work is shown. Every method may be called from any thread."""

    every_seconds: float
    """How often to ``show``; more often does no harm."""

    def show(self, status: Status) -> None: ...
    def note(self, text: str) -> None:
        """A line that stays."""

    def close(self) -> None:
        """The last status stays; closing again does nothing."""


class NoView:
    """Notes only."""

    every_seconds = 3600.0

    def show(self, status: Status) -> None:
        """Nothing to see."""

    def note(self, text: str) -> None:
        if sys.stderr is not None:  # as in a program without a console
            # The end of the line in the same write, or other threads' lines come between.
            print(f"{printable(text)}\n", end="", file=sys.stderr, flush=True)  # noqa: T201  # the command's voice

    def close(self) -> None:
        """Nothing was opened."""


class LogView(NoView):
    """A line every five seconds, the first after five; work that ends before that is not worth one.

    Closing prints how it ended, if a line was printed before; ``last_line=True``: in any case.
    """

    every_seconds = 5.0

    def __init__(self, *, last_line: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due = clock() + self.every_seconds - _EARLY_SECONDS
        self._closing_line = last_line
        self._untold: Status | None = None
        self._closed = False
        self._lock = threading.RLock()  # again in the same thread: from a signal's handler

    def show(self, status: Status) -> None:
        with self._lock:
            if self._closed:
                return
            self._untold = status
            if self._clock() >= self._due:
                self._closing_line = True
                self._tell()

    def close(self) -> None:
        with self._lock:
            if not self._closed and self._closing_line:
                self._tell()
            self._closed = True

    def _tell(self) -> None:
        if self._untold is not None:
            self._due = self._clock() + self.every_seconds - _EARLY_SECONDS
            told, self._untold = self._untold, None
            self.note(line(told))


_terminal = threading.Lock()
"""Held by the live view of this process: two of them would draw over each other."""


class RichView:
    """A live table in the terminal.

    The cursor stays visible all the time, so nothing is left to repair whatever ends the process.
    """

    every_seconds = 0.2

    def __init__(self, file: IO[str] | None = None) -> None:
        from rich.console import Console
        from rich.live import Live

        # In a notebook, rich would want widgets.
        self._console: Console = Console(file=file or sys.stderr, force_jupyter=False)
        # What the work prints goes above the table, unless it goes to a file: there it has to arrive.
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            redirect_stdout=_is_terminal(sys.stdout),
            redirect_stderr=_is_terminal(sys.stderr),
        )
        self._lock = threading.RLock()
        self._closed = False
        self._holds_terminal = _terminal.acquire(blocking=False)
        self._live.start()
        self._console.show_cursor(True)
        atexit.register(self.close)  # so that the shell's prompt comes below the table

    def show(self, status: Status) -> None:
        with self._lock:
            if not self._closed:
                self._live.update(self._render(status), refresh=True)

    def note(self, text: str) -> None:
        self._console.print(printable(text), markup=False, highlight=False)

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            atexit.unregister(self.close)
            try:
                self._live.stop()
            finally:
                if self._holds_terminal:
                    _terminal.release()

    def _render(self, status: Status) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        width = self._console.width
        parts: list[Any] = [*_head(status, width), _limits(status.limits, width), *_facts(status, width)]
        if status.blocked:
            parts.append(Text(printable(status.blocked), "yellow"))
        return Group(*parts)


def _head(status: Status, width: int) -> list[RenderableType]:
    """How much is done: one line, or two where the terminal is narrow."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    texts = [Text(status.counted, "bold"), Text(f"{status.rate:,.1f}/s"), Text(status.left, "cyan")]
    room = width - sum(text.cell_len + 2 for text in texts)
    bar = ProgressBar(
        total=1.0,
        completed=status.share or 0.0,
        width=min(32, room if room >= 12 else width),
        pulse=status.share is None,
    )
    head = Table.grid(padding=(0, 2))
    if room < 12:
        head.add_row(*texts)
        below = Table.grid()
        below.add_row(bar)
        return [head, below]
    head.add_row(texts[0], bar, *texts[1:])
    return [head]


def _limits(limits: Sequence[LimitStatus], width: int) -> Table:
    """A row for each; what a narrow terminal has no room for is left out, the bar first."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    names = [Text(printable(limit.name), no_wrap=True, overflow="ellipsis") for limit in limits]
    amounts = [Text(limit.amounts, no_wrap=True) for limit in limits]
    shares = [Text(f"{limit.share:.0%}", "bold" if limit.binds else "dim", no_wrap=True) for limit in limits]
    columns = [[text.cell_len for text in texts] for texts in (names, amounts, shares)]
    room = width - sum(2 + max(lengths, default=0) for lengths in columns)
    mark = "◀ binds" if room >= 7 else "◀"
    bar = min(20, room - 9)
    table = Table.grid(padding=(0, 2))
    for column in range(5 if bar >= 6 else 4 if room >= 1 else 3):
        table.add_column(no_wrap=column > 0)
    for limit, name, amount, share in zip(limits, names, amounts, shares, strict=True):
        cells: list[RenderableType] = [name, amount]
        if bar >= 6:
            cells.insert(1, ProgressBar(total=1.0, completed=min(limit.share, 1.0), width=bar))
        if room >= 1:
            cells.append(share)
        table.add_row(*cells, Text(mark if limit.binds else "", "yellow", no_wrap=True))
    return table


def _facts(status: Status, width: int) -> list[Text]:
    """As many lines as it takes; no fact is broken in two."""
    from rich.text import Text

    found = [Text()]
    for name, value in facts(status):
        alarming = name in ("refused", "failed") and value != "0"
        pair = [(value, "bold red" if alarming else "bold"), (name, "dim")]
        if name in ("p50", "p95"):
            pair.reverse()
        fact = Text.assemble(pair[0], " ", pair[1])
        if found[-1] and found[-1].cell_len + 2 + fact.cell_len > width:
            found.append(Text())
        found[-1].append("  " if found[-1] else "").append_text(fact)
    return found


def _left(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return ""
    return f"{seconds_text(seconds)} left"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms" if seconds < 10 else f"{seconds:,.0f} s"


def _units(rate: float) -> str:
    """Per second if there is at least one, else per minute or hour."""
    if rate >= 10 or rate == 0:
        return f"{rate:,.0f}/s"
    if rate >= 1:
        return f"{rate:,.1f}/s"
    return f"{rate * 60:,.1f}/min" if rate * 60 >= 1 else f"{rate * 3600:,.1f}/h"


def _is_terminal(stream: IO[str] | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # it is closed
        return False


def _in_kernel() -> bool:
    """Whether this process serves a notebook; IPython is loaded then, so it need not be imported to ask."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return get_ipython is not None and getattr(get_ipython(), "kernel", None) is not None


def make_view(kind: str) -> View:
    """The view of a kind.

    Args:
        kind: ``auto``: live in a notebook or a terminal, else plain lines, and none for short work.
            ``notebook``: the same, for outside a notebook there is nothing to draw on.
            ``rich``: the live table, wherever standard error goes; plain lines while another is open.
            ``log``: plain lines, at least the last one. ``none``: only notes.

    A view in a notebook belongs to the cell that runs, so make it there and not in a thread later on.

    Raises:
        ConfigurationError: no such kind.
    """
    if kind not in KINDS:
        raise ConfigurationError(f"expected progress to be one of {', '.join(KINDS)}; got {kind!r}")
    if kind in ("auto", "notebook") and _in_kernel():
        from headgate.progress.notebook import NotebookView

        return NotebookView()
    live = _is_terminal(sys.stderr) and os.environ.get("TERM") not in ("dumb", "unknown")
    if (kind == "rich" or (kind in ("auto", "notebook") and live)) and not _terminal.locked():
        return RichView()
    return NoView() if kind == "none" else LogView(last_line=kind == "log")
