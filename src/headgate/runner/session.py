"""One stretch of work that somebody waits for: the view, the deadline, Ctrl-C.

It knows how to wait, not what for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType

from headgate.errors import RunStopped
from headgate.progress.view import View
from headgate.providers.outcome import log
from headgate.runner.bell import Interrupts
from headgate.runner.board import DEADLINE, INTERRUPTED, Board
from headgate.runner.status import Watch

GRACE_SECONDS = 5.0
"""What calls on their way get behind a deadline."""


def _nothing() -> None:
    pass


class Session:
    """Waiting in a thread, with something to look at.

    Args:
        total: how many calls there will be; None to count those that are known.
        deadline: seconds; None for none.
        hold, release: ask for the engine, and give it up.
        interrupts: counts Ctrl-C while somebody has entered it.

    Attributes:
        bell: may be rung to end :meth:`wait`.
    """

    def __init__(
        self,
        board: Board,
        view: View,
        *,
        total: int | None,
        counts_known: bool,
        deadline: float | None,
        hold: Callable[[], None],
        release: Callable[[], None],
        interrupts: Interrupts,
    ) -> None:
        self._board = board
        self._view = view
        self._watch = Watch(board, total, counts_known=counts_known)
        self._due = None if deadline is None else time.monotonic() + deadline
        self._cut_at: float | None = None
        self._hold, self._release = hold, release
        self._held = False
        self.bell = interrupts.bell
        self.interrupts = interrupts
        self._shown = time.monotonic()

    def open(self) -> None:
        """Begin, inside the ``try`` whose ``finally`` closes it: a Ctrl-C may strike anywhere."""
        with self.interrupts:
            self._hold()
            self._held = True
        self._see_strikes()

    def close(self, leave: Callable[[], None] = _nothing) -> None:
        """End, if it has begun; ``leave`` is done first."""
        try:
            with self.interrupts:
                struck = self.interrupts.count
                try:
                    leave()
                    self.show()
                finally:
                    self._view.close()
                    self._let_go()
                struck = self.interrupts.count - struck
            if struck and not self.interrupts.entered:
                raise KeyboardInterrupt
        finally:
            self._let_go()  # where a Ctrl-C came before it could be held off

    def _let_go(self) -> None:
        if self._held:
            self._release()
            self._held = False

    def show(self) -> None:
        """The present state, in the view."""
        self._shown = time.monotonic()
        self._watch.show(self._view)

    def tick(self) -> None:
        """A chance to show how it stands, for those who are busy otherwise."""
        if time.monotonic() - self._shown >= self._view.every_seconds:
            self.show()

    def settle(self) -> None:
        """Wait until nothing runs and nothing will. The first Ctrl-C stops, the second one ends at once."""
        try:
            while not self._board.is_settled():
                forget = self._board.when(self._board.is_settled, self.bell.ring, at_rest=True)
                try:
                    self._listen()
                finally:
                    forget()
        except BaseException:
            self.abandon()
            raise

    def wait(self) -> None:
        """Wait for the bell, or for the end of all work.

        Ctrl-C lets the calls on their way come back first.
        """
        with self.interrupts:
            forget = self._board.when(self._board.is_settled, self.bell.ring, at_rest=True)
            try:
                self._listen()
            finally:
                forget()
            if self.interrupts.count:
                self.settle()
        self._see_strikes()

    def _see_strikes(self) -> None:
        """Ctrl-C that was only counted while it could have broken something."""
        if self.interrupts.count and not self.interrupts.entered:
            raise KeyboardInterrupt

    def _listen(self) -> None:
        """Until the bell is rung, or it is time to look again."""
        pause = self._view.every_seconds
        if self._due is not None:
            self._see_deadline()
            pause = min(pause, max((self._cut_at or self._due) - time.monotonic(), 0.01))
        try:
            if not self.bell.wait(pause):
                self.tick()
        except KeyboardInterrupt:
            if self.interrupts.count:
                raise
            self.interrupts.count = 1
        if self.interrupts.count and self._board.stopped is None:
            self._interrupted()

    def _see_deadline(self) -> None:
        now = time.monotonic()
        if self._cut_at is not None:
            if now >= self._cut_at:
                self._board.cut()
        elif self._due is not None and now >= self._due:
            self._board.stop(DEADLINE)
            self._cut_at = now + GRACE_SECONDS

    def _interrupted(self) -> None:
        self._board.stop(INTERRUPTED)
        flying = self._board.live
        if flying:
            self._view.note(
                f"headgate: interrupted; {flying} calls are on their way. Ctrl-C again ends at once."
            )

    def abandon(self) -> None:
        """Wait for nothing."""
        self._board.stop(INTERRUPTED)
        self._board.cut()

    def check(self) -> None:
        """Raise if nothing more will come of itself.

        Raises:
            RunStopped, or what made going on impossible.
        """
        check(self._board)


class AsyncSession:
    """The same in a coroutine."""

    def __init__(
        self,
        board: Board,
        view: View,
        *,
        total: int | None,
        counts_known: bool,
        deadline: float | None,
        hold: Callable[[], None],
        release: Callable[[], None],
        is_last: Callable[[], bool],
    ) -> None:
        self._board = board
        self._view = view
        self._is_last = is_last
        self._watch = Watch(board, total, counts_known=counts_known)
        self._deadline = deadline
        self._hold, self._release = hold, release
        self._timers: list[asyncio.TimerHandle] = []
        self._ticker: asyncio.Task[None] | None = None
        self.bell = asyncio.Event()

    async def __aenter__(self) -> AsyncSession:
        loop = asyncio.get_running_loop()
        try:
            self._hold()
        except BaseException:
            self._view.close()
            raise
        self._ticker = asyncio.create_task(self._show_on())
        if self._deadline is not None:
            self._timers = [
                loop.call_later(self._deadline, self._board.stop, DEADLINE),
                loop.call_later(self._deadline + GRACE_SECONDS, self._board.cut),
            ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for timer in self._timers:
            timer.cancel()
        if self._ticker is not None:
            self._ticker.cancel()
        if isinstance(error, asyncio.CancelledError | KeyboardInterrupt) and self._is_last():
            self._board.stop(INTERRUPTED)
            self._board.cut()
        self._watch.show(self._view)
        self._view.close()
        self._release()

    async def _show_on(self) -> None:
        while True:
            await asyncio.sleep(self._view.every_seconds)
            self._watch.show(self._view)

    async def settle(self) -> None:
        """Wait until nothing runs and nothing will."""
        while not self._board.is_settled():
            self.bell.clear()
            await self.wait()

    async def wait(self) -> None:
        """Wait for the bell, or for the end of all work."""
        loop = asyncio.get_running_loop()
        forget = self._board.when(
            self._board.is_settled, lambda: loop.call_soon_threadsafe(self.bell.set), at_rest=True
        )
        try:
            await self.bell.wait()
        finally:
            forget()

    def check(self) -> None:
        """See :meth:`Session.check`."""
        check(self._board)


def check(board: Board) -> None:
    """Raise if nothing more will come of itself."""
    if board.broken is not None:
        raise board.broken
    if board.stopped is not None and not board.live:
        raise RunStopped(f"stopped: {board.stopped}")


def tell_of_end(board: Board, not_done: int) -> None:
    """A line in the log if a run has ended before its work."""
    if board.stopped is not None:
        log.warning("stopped: %s; %d calls are not done, run() goes on with them", board.stopped, not_done)
