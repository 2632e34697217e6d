"""One event loop for the process, in a thread of its own, for everything that runs behind blocking calls.

It is the same one for the whole life of the process, so that clients which tie their connections to a loop
can be used by one run after another. Its thread is a daemon: it keeps no process alive.
"""

from __future__ import annotations

import asyncio
import os
import threading

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None


def background_loop() -> asyncio.AbstractEventLoop:
    """The loop; started if it does not run yet."""
    global _loop, _thread  # noqa: PLW0603  # one for the process
    with _lock:
        if _loop is None or _thread is None or not _thread.is_alive():
            _loop = asyncio.new_event_loop()
            _thread = threading.Thread(target=_live, args=(_loop,), name="headgate-loop", daemon=True)
            _thread.start()
        return _loop


def _live(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()


def _forget() -> None:
    """After a fork, the thread is in the parent."""
    global _lock, _loop, _thread  # noqa: PLW0603
    _lock = threading.Lock()
    _loop = _thread = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
