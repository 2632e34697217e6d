"""One event loop for the process, in a thread of its own, for everything that runs behind blocking calls.

It is the same one for the whole life of the process, so that clients which tie their connections to a loop
can be used by one run after another. Its thread is a daemon: it keeps no process alive.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading

EXIT_SECONDS = 0.5

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
            atexit.unregister(_end)
            atexit.register(_end)
        return _loop


def _live(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()


def _end() -> None:
    """At exit: let nothing be torn in the middle of a step; a thread or a call that is stuck keeps nobody."""
    loop = _loop
    if loop is None or _thread is None or not _thread.is_alive():
        return
    try:
        asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result(EXIT_SECONDS)
    except TimeoutError:
        return


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=EXIT_SECONDS / 2)


def _forget() -> None:
    """After a fork, the thread is in the parent."""
    global _lock, _loop, _thread  # noqa: PLW0603
    _lock = threading.Lock()
    _loop = _thread = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
