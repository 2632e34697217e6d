"""Python processes that carry out a script and tell what they do line by line."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from typing import IO, Self

LONG = 30.0
"""Seconds within which anything at all happens, however busy the machine is."""

PRELUDE = '''
import asyncio, json, os, sys, threading, time
from headgate import Runner, current_call

def say(*words):
    """A line of its own, whichever thread says it, and out of the process when this returns."""
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

class Gate:
    """Threads and coroutines wait here until it is opened."""

    def __init__(self):
        self.opened = threading.Event()
        self.futures = []

    def open(self):
        self.opened.set()
        for future in self.futures:
            try:
                future.get_loop().call_soon_threadsafe(self.let_go, future)
            except RuntimeError:
                say("a loop was closed")

    def let_go(self, future):
        if not future.done():
            future.set_result(None)

    def wait(self):
        self.opened.wait()

    async def wait_async(self):
        future = asyncio.get_running_loop().create_future()
        self.futures.append(future)
        if not self.opened.is_set():
            await future

def say_when_blocked():
    """Say so once the main thread stands still."""
    main, before, same = threading.main_thread().ident, None, 0
    while same < 5:
        time.sleep(0.005)
        frame = sys._current_frames()[main]
        at = id(frame), frame.f_lasti
        before, same = at, same + 1 if at == before else 0
    say("blocked")

def obey():
    heard = b""
    while chunk := os.read(0, 1000):
        *orders, heard = (heard + chunk).split(b"\\n")
        for order in orders:
            ORDERS[order.decode()]()

gate = Gate()
ORDERS = {"open": gate.open, "say when blocked": say_when_blocked}
threading.Thread(target=obey, daemon=True).start()
'''


class Child:
    """A process with the script after ``PRELUDE``; it ends with the test at the latest.

    What it says on standard output and on standard error are lines of ``heard``, as they come.
    """

    def __init__(self, script: str, *args: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + script, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.heard: list[str] = []
        self._news = threading.Condition()
        streams = (self._process.stdout, self._process.stderr)
        self._listeners = [threading.Thread(target=self._listen, args=(stream,)) for stream in streams]
        for listener in self._listeners:
            listener.start()

    def _listen(self, stream: IO[bytes]) -> None:
        for line in stream:
            with self._news:
                self.heard.append(line.decode().rstrip("\n"))
                self._news.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def said(self, word: str) -> list[str]:
        """What came after that word, in each line that began with it."""
        with self._news:
            return [line[len(word) + 1 :] for line in self.heard if line.split(" ", 1)[0] == word]

    def wait_for(self, word: str, count: int = 1, *, seconds: float = LONG) -> None:
        """Until it has said so many lines that begin with that word, or has ended."""
        deadline = time.monotonic() + seconds
        while len(self.said(word)) < count and any(thread.is_alive() for thread in self._listeners):
            with self._news:
                self._news.wait(0.02)
            assert time.monotonic() < deadline, f"no {count} × {word!r} in {self.heard}"

    def tell(self, order: str) -> None:
        """Have it do that beside its main thread."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{order}\n".encode())
        self._process.stdin.flush()

    def wait_until_blocked(self) -> None:
        """Until its main thread waits for something."""
        count = len(self.said("blocked"))
        self.tell("say when blocked")
        self.wait_for("blocked", count + 1)

    def interrupt(self) -> None:
        """As by Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """As by ``kill -9``; all that it has said has been heard then."""
        self._process.kill()
        self.end()

    def end(self, *, seconds: float = LONG) -> int:
        """Wait for its end; its exit code."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not at its end after {seconds} s: {self.heard}") from None
        for listener in self._listeners:
            listener.join()
        return code
