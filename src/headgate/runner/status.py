"""A runner at one moment, for views and for people."""

from __future__ import annotations

import time

from headgate.core.model import SECOND
from headgate.core.rates import possible_units
from headgate.progress.stats import Pace
from headgate.progress.view import LimitStatus, Status, View
from headgate.providers.outcome import log
from headgate.runner.board import Board
from headgate.runner.statistics import LimitUse, Statistics


class Watch:
    """Makes a status of a board now and then; rates are those of the last few seconds."""

    def __init__(self, board: Board, total: int | None, *, counts_known: bool) -> None:
        self._board = board
        self._total = total
        self._counts_known = counts_known
        self._blind = False
        self._done = Pace()
        self._used = [Pace() for _ in board.limiter.limits]
        figures = board.figures
        self._base = figures.succeeded + figures.failed + figures.skipped
        self._failed, self._refused, self._retried = figures.failed, figures.refused, figures.retried

    def show(self, view: View) -> None:
        """Show it; a view that cannot be written to any more ends nobody's work."""
        if self._blind:
            return
        try:
            view.show(self.status())
        except Exception:
            self._blind = True
            log.warning("progress is not shown any more", exc_info=True)

    def status(self) -> Status:
        """How it stands.

        The total is what was said at the beginning, or the number of calls that are known by now.
        """
        board = self._board
        total = board.figures.added - self._base if self._counts_known else self._total
        figures = board.figures
        done = figures.succeeded + figures.failed + figures.skipped - self._base
        now = time.monotonic()
        self._done.mark(now, done)
        rate = self._done.per_second()
        limits = []
        blocked = board.limiter.blocked() if board.limited else None
        for index, limit in enumerate(board.limiter.limits):
            slots = limit.kind == "concurrency"
            if slots:
                current, allowed = float(len(board.running)), float(limit.amount)
            else:
                self._used[index].mark(now, board.used[index])
                current = self._used[index].per_second()
                allowed = limit.amount * SECOND / limit.period_us
            binds = blocked is not None and blocked[0] is limit
            limits.append(LimitStatus(limit.name, current, allowed, binds, slots))
        text = ""
        if blocked is not None and blocked[1] is not None and blocked[1] > 2:
            text = f"{blocked[0].name} opens in {blocked[1]:.0f} s"
        elif board.paused:
            text = "paused"
        left = None if total is None or rate <= 0 else max(total - done, 0) / rate
        return Status(
            done=done,
            total=total,
            failed=figures.failed - self._failed,
            in_flight=len(board.running),
            waiting=board.size(),
            refused=figures.refused - self._refused,
            retries=figures.retried - self._retried,
            rate=rate,
            p50=figures.latency.quantile(0.5),
            p95=figures.latency.quantile(0.95),
            eta_seconds=left,
            blocked=text,
            limits=limits,
            draining=board.stopped is not None,
        )


def statistics(board: Board) -> Statistics:
    """All figures of a board."""
    with board.lock:
        figures, latency = board.figures, board.figures.latency
        seconds = 0.0
        if figures.first_sent_at is not None and figures.last_done_at is not None:
            seconds = max(figures.last_done_at - figures.first_sent_at, 0.0)
        here = figures.succeeded - figures.restored
        limits = []
        for limit, used in zip(board.limiter.limits, board.used, strict=True):
            amount: float = latency.total if limit.kind == "concurrency" else used
            limits.append(LimitUse(limit.name, amount, possible_units(limit, seconds)))
        return Statistics(
            count=figures.succeeded + figures.failed - figures.restored,
            succeeded=figures.succeeded,
            failed=figures.failed,
            skipped=figures.skipped,
            restored=figures.restored,
            attempts=figures.started,
            refused=figures.refused,
            retries=figures.retried,
            timeouts=figures.timed_out,
            seconds=seconds,
            throughput=here / seconds if seconds > 0 else None,
            mean=latency.mean,
            p50=latency.quantile(0.5),
            p95=latency.quantile(0.95),
            p99=latency.quantile(0.99),
            longest=latency.largest if latency.count else None,
            spent=board.spending.spent,
            limits=tuple(limits),
            errors=dict(figures.errors),
        )
