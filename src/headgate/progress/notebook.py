"""A live view in a notebook: one output that is drawn again in its place.

It stays with its last state. Front ends without HTML get a line of text. It needs no widgets.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from headgate.progress.html import card, lines
from headgate.progress.view import LimitStatus, Status, facts, line, printable

_LEAST_SECONDS = 0.2
"""Between two drawings."""
_NOTES_KEPT = 10


class NotebookView:
    """Belongs to the cell that runs while it is made; it may be fed from any thread.

    Args:
        display: the function of that name of ``IPython.display``, or one like it.
        clock: seconds that only grow.
    """

    every_seconds = 0.25

    def __init__(
        self, *, display: Callable[..., Any] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._status: Status | None = None
        self._notes: deque[str] = deque(maxlen=_NOTES_KEPT)
        self._notes_before = 0
        self._drawn_at = -math.inf
        self._fresh = self._closed = False
        self._lock = threading.RLock()  # again in the same thread: from a signal's handler
        # At once, for later on another cell may run; empty, for nothing is known yet.
        show_first = display or _display_of_ipython()
        self._handle = show_first({"text/html": "", "text/plain": ""}, raw=True, display_id=True)

    def show(self, status: Status) -> None:
        with self._lock:
            if not self._closed:
                self._status = status
                self._draw_soon()

    def note(self, text: str) -> None:
        """A line that stays; of many, the last ten."""
        with self._lock:
            self._notes_before += len(self._notes) == self._notes.maxlen
            self._notes.append(text)
            self._draw_soon()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._fresh:
                self._draw()

    def _draw_soon(self) -> None:
        """Now, or with what comes next if the last drawing was just now."""
        self._fresh = True
        if self._closed or self._clock() >= self._drawn_at + _LEAST_SECONDS:
            self._draw()

    def _draw(self) -> None:
        self._fresh = False
        self._drawn_at = self._clock()
        self._handle.update({"text/html": self._html(), "text/plain": self._plain()}, raw=True)

    def _html(self) -> str:
        texts = self._all_notes()
        if self._status is None:
            return lines(texts)
        if self._status.blocked:
            texts.insert(0, self._status.blocked)
        return _card(self._status) + (lines(texts) if texts else "")

    def _plain(self) -> str:
        now = [] if self._status is None else [line(self._status)]
        return printable("\n".join(now + self._all_notes()))

    def _all_notes(self) -> list[str]:
        more = [f"… {self._notes_before:,} notes before"] if self._notes_before else []
        return [*more, *self._notes]


def _display_of_ipython() -> Callable[..., Any]:
    from IPython.display import display

    return display


def _card(status: Status) -> str:
    share = math.nan if status.share is None else status.share
    pace = " · ".join(filter(None, (f"{status.rate:,.1f}/s", status.left)))
    bars = [("all", share, pace), *map(_limit_bar, status.limits)]
    return card(f"{status.counted} done", facts(status), bars)


def _limit_bar(limit: LimitStatus) -> tuple[str, float, str]:
    mark = " ◀ binds" if limit.binds else ""
    return limit.name, limit.share, f"{limit.amounts} ({limit.share:.0%}){mark}"
