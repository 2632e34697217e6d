"""Waiting in a thread, so that a signal at any instant breaks nothing.

The standard library's Event and Condition are Python code: a Ctrl-C that strikes between two of their lines
leaves their lock taken for ever, and whoever rings then hangs, too. A SimpleQueue does the same in one step.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType


class Bell:
    """Rung by any thread, waited for by one."""

    __slots__ = ("_strokes",)

    def __init__(self) -> None:
        self._strokes: SimpleQueue[None] = SimpleQueue()

    def ring(self) -> None:
        """Let the one who waits, or will wait, go on."""
        if self._strokes.empty():
            self._strokes.put(None)

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it has been rung, now or since the last time, within so many seconds."""
        try:
            self._strokes.get(
                timeout=None if timeout is None else min(max(timeout, 0), threading.TIMEOUT_MAX)
            )
        except Empty:
            return False
        return True


class Interrupts:
    """Counts Ctrl-C in the place of Python's own handler, where that is in force; the second one raises.

    Elsewhere (in another thread, or under somebody else's handler) it does nothing, and KeyboardInterrupt
    comes as ever.

    Attributes:
        bell: rung by the first one.
        count: how many there were.
    """

    def __init__(self, bell: Bell) -> None:
        self.bell = bell
        self.count = 0
        self._depth = 0
        self._raises = False

    def __enter__(self) -> Interrupts:
        in_main = threading.current_thread() is threading.main_thread()
        if self._depth or (in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
            self._depth += 1
            signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._depth:
            self._depth -= 1
            if not self._depth and signal.getsignal(signal.SIGINT) == self._handle:
                signal.signal(signal.SIGINT, signal.default_int_handler)

    @property
    def entered(self) -> int:
        """How many have entered it: they see to what is counted."""
        return self._depth

    @contextmanager
    def raising(self) -> Iterator[None]:
        """While something is waited for that no bell ends, the first one raises, too; also if it has come."""
        self._raises = self._depth > 0
        try:
            if self._raises and self.count:
                raise KeyboardInterrupt
            yield
        finally:
            self._raises = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1 or self._raises:
            raise KeyboardInterrupt
        self.bell.ring()
