"""Daemon threads that call what they are given: as many as are needed, reused while they are.

A thread that never comes back keeps nobody: it dies with the process. (The standard library's pool joins its
threads at exit, so one stuck call would hang the interpreter.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

IDLE_SECONDS = 5.0
"""A thread without work ends after that."""


class Threads:
    """A pool without an upper bound: its user says how many calls there are at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[SimpleQueue[Callable[[], None]]] = []
        self._started = 0

    def call(self, act: Callable[[], None]) -> None:
        """Have ``act`` called in some thread, at once.

        Raises:
            RuntimeError: the machine starts no more threads.
        """
        with self._lock:
            inbox = self._idle.pop() if self._idle else None
            if inbox is None:
                self._started += 1
                name = f"headgate-{self._started}"
        if inbox is not None:
            inbox.put(act)
            return
        inbox = SimpleQueue()
        inbox.put(act)
        threading.Thread(target=self._live, args=(inbox,), name=name, daemon=True).start()

    def _live(self, inbox: SimpleQueue[Callable[[], None]]) -> None:
        while True:
            try:
                act = inbox.get(timeout=IDLE_SECONDS)
            except Empty:
                with self._lock:
                    if inbox in self._idle:  # else something is being put there
                        self._idle.remove(inbox)
                        return
                continue
            act()
            del act  # what it holds may be large, and this thread may rest for long
            with self._lock:
                self._idle.append(inbox)
