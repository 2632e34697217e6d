"""Who listens at which key of a lot, within this process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger("headgate")


class Listeners:
    """Callbacks by key. They are called without the lock, and may do anything."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: dict[str, list[Callable[[], None]]] = {}

    def add(self, key: str, callback: Callable[[], None]) -> Callable[[], None]:
        """Call it whenever ``tell`` is; returns how to stop that."""

        def once_more() -> None:  # an object of its own, however often one function listens
            callback()

        with self._lock:
            self._callbacks.setdefault(key, []).append(once_more)

        def stop() -> None:
            with self._lock:
                callbacks = self._callbacks.get(key, [])
                if once_more in callbacks:
                    callbacks.remove(once_more)
                    if not callbacks:
                        del self._callbacks[key]

        return stop

    def keys(self) -> list[str]:
        """At which somebody listens."""
        with self._lock:
            return list(self._callbacks)

    def tell(self, key: str) -> None:
        """Something has changed there."""
        if not self._callbacks:  # as a rule; whoever comes this moment looks for himself
            return
        with self._lock:
            callbacks = list(self._callbacks.get(key, ()))
        for callback in callbacks:
            try:
                callback()
            except Exception:  # a listener that fails ends nobody's work
                log.warning("a listener failed", exc_info=True)
