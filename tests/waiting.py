"""What tests of waiting threads share: waiting until something is so, and threads that hand on errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from headgate import Limiter
from headgate.waiters import Line

T = TypeVar("T")

PATIENCE_SECONDS = 10.0


def wait_until(what: Callable[[], object]) -> None:
    """Return as soon as ``what`` is true; fail if it never is."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not what():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.000_5)


class InThread(Generic[T]):
    """Run a function in a thread; ``result`` waits for what it returns or raises."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._result: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result.append(self._function())
        except BaseException as error:
            self._error = error

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> T:
        self._thread.join(PATIENCE_SECONDS)
        assert self.done, "the thread still waits"
        if self._error is not None:
            raise self._error
        return self._result[0]


def line_in(limiter: Limiter) -> Line:
    """The line of a limiter whose store is this process's own."""
    assert isinstance(limiter._line, Line)
    return limiter._line
