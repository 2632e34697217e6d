"""Where every call stands: waiting, running, asleep between attempts, done; and what may start next.

All state of a runner that threads share is here, behind one lock. It knows no event loop and calls no
function of the user's but listeners and those who wait, and these only when the lock is free.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any, Literal

from headgate.core.model import LOST, NEVER, SECOND, UNSENT, Now, Signal
from headgate.core.retry import SPENDS_NO_ATTEMPT, Done, ErrorClass, GiveUp, RetryAt, RetryPolicy, after
from headgate.errors import CallCancelled, DuplicateCall, Throttled
from headgate.limiter import Limiter, Permit
from headgate.providers.outcome import Outcome, log
from headgate.runner.call import (
    ASLEEP,
    DONE,
    RUNNING,
    WAITING,
    Attempt,
    Call,
    close,
)
from headgate.runner.events import Event, Kind, Listener
from headgate.runner.interval import Spacing
from headgate.runner.ramp import Ramp
from headgate.runner.spending import Spending
from headgate.runner.statistics import Figures
from headgate.runner.waiting import STALE, Waiting

charges = logging.getLogger("headgate.charges")
"""Tells of every reservation and settlement, at the level DEBUG."""

DEADLINE, INTERRUPTED = "the deadline is over", "interrupted"
"""Why those who wait for a run may stop it."""
KEYS_REFUSED = 5
"""Refusals of the key in a row that mean that it has been revoked."""
FIRST_QUIET_US, LONGEST_QUIET_US = SECOND // 4, 60 * SECOND
"""Without sending after a refusal, where no limit of ours answers for it."""

Dedup = Literal["share", "skip", "error"] | None
_Wait = tuple[Callable[[], bool], Callable[[], object], bool]
"""A condition, what to do when it holds, and whether it can only hold at rest."""


class Board:
    """The calls of one runner.

    Attributes:
        running: attempts whose work goes on, also those whose outcome nobody waits for any more.
        live: how many of them somebody waits for.
        stopped: why nothing more is to start; None while all is well.
        broken: what made going on impossible.
        wake: told when something may be able to start.
    """

    def __init__(
        self,
        limiter: Limiter,
        policy: RetryPolicy,
        *,
        max_concurrent: int,
        spacing: Spacing | None,
        ramp: Ramp | None,
        spending: Spending,
        dedup: Dedup,
    ) -> None:
        self.lock = threading.RLock()
        self.limiter = limiter
        self.policy = policy
        self.max_concurrent = max_concurrent
        self.spending = spending
        self.figures = Figures()
        self.used = [0] * len(limiter.limits)
        self.waiting = Waiting()
        self.asleep: list[tuple[int, int, Call[Any]]] = []
        self.sleeping = 0
        self.running: dict[Attempt, None] = {}
        self.live = 0
        self.paused = False
        self.limited = False
        self.stopped: str | None = None
        self.broken: BaseException | None = None
        self.wake: Callable[[], None] = _nothing
        self.halt: Callable[[Attempt], None] = _ignore
        self.on_start: Callable[[Call[Any]], None] | None = None
        self.on_close: Callable[[Call[Any]], None] | None = None
        self._now = limiter.store.now
        self._spacing = spacing
        self._ramp = ramp
        self.dedup = dedup
        self._known: dict[str, Call[Any]] = {}
        self._rated = any(limit.kind != "concurrency" for limit in limiter.limits)
        self._quiet_until_us, self._strikes = 0, 0
        self._keys_refused = 0
        self._idle = True
        self._listeners: tuple[tuple[Listener, frozenset[str] | None], ...] = ()
        self._facts: list[Event] = []
        self._telling = False
        self._callbacks: list[Callable[[], object]] = []
        self._waits: list[_Wait] = []
        self._size_waits = 0  # of them, for something else than rest

    # Calls come and go

    def now(self) -> Now:
        """The clocks of the store."""
        return self._now()

    def add(self, call: Call[Any], recall: Callable[[Call[Any]], bool] | None) -> None:
        """A new call. Afterwards, with the lock free: ``tell`` and ``wake``.

        Args:
            recall: fills in its result if that is known from before, and says so. Asked under the lock: a
                twin that ends meanwhile has either left its result there, or is still known here.

        Raises:
            DuplicateCall: the same waits or runs, and that is an error here.
        """
        with self.lock:
            twin = self._known.get(call.digest) if self.dedup else None
            if twin is not None and self.dedup == "error":
                raise DuplicateCall(f"a call with the digest {call.digest} is {twin.state} already")
            recalled = twin is None and recall is not None and recall(call)
            self.figures.added += 1
            self._fact("added", call)
            if recalled:
                self.figures.succeeded += 1
                self.figures.restored += 1
                call.restored = True
                call.state = DONE
                self._fact("completed", call)
            elif twin is None:
                if self.dedup:
                    self._known[call.digest] = call
                self._idle = False
                self.waiting.push(call)
            elif self.dedup == "skip":
                call.skipped = True
                self.figures.skipped += 1
                self._close(call)
            else:
                call.shares = True
                if twin.twins is None:
                    twin.twins = []
                twin.twins.append(call)

    def knows(self, call: Call[Any]) -> bool:
        """Whether a call that was to be added is here; if not, nothing of it is."""
        with self.lock:
            if call.entry is not None or call.state is not WAITING or call.shares:
                return True
            if self.dedup and self._known.get(call.digest) is call:
                del self._known[call.digest]
            return False

    def refuse(self, call: Call[Any], error: BaseException) -> None:
        """A call that can never be sent."""
        with self.lock:
            self.figures.added += 1
            self._fact("added", call)
            call.note(error)
            self._fail(call, error)
        self.tell()

    def pick(self, now_us: int) -> tuple[Call[Any] | None, int]:
        """The call that is to start next if it may now; else None and the instant at which to look again.

        The lock is held.
        """
        until = self._rouse(now_us)
        call = self.waiting.peek()
        if call is None:
            self._set_limited(False)
            return None, until
        if self.paused or self.stopped is not None or self.broken is not None:
            return None, until
        opens = self._opens_at(now_us)
        most = self.max_concurrent
        if self._ramp is not None:
            most = self._ramp.most_running(now_us, most)
            if most < self.max_concurrent:
                until = min(until, now_us + SECOND // 20)
        if opens > now_us:
            self._set_limited(True)
            return None, min(until, opens)
        if len(self.running) >= most:
            self._set_limited(False)
            return None, until
        if not self.spending.fits(call.price):
            if not self.live:
                self._stop(f"the spend cap of {self.spending.cap:g} is reached")
                self._look()
            return None, until
        return call, until

    def _opens_at(self, now_us: int) -> int:
        opens = max(self._quiet_until_us, now_us)
        if self._spacing is not None:
            opens = max(opens, self._spacing.opens_at(now_us, len(self.running)))
        if self._ramp is not None:
            opens = max(opens, self._ramp.opens_at(now_us))
        return opens

    def _rouse(self, now_us: int) -> int:
        """Let those whose pause is over stand in line again; when the next one's is."""
        asleep = self.asleep
        while asleep and (asleep[0][2].state is not ASLEEP or asleep[0][0] <= now_us):
            call = heappop(asleep)[2]
            if call.state is ASLEEP:
                call.state = WAITING
                self.sleeping -= 1
                self.waiting.restore(call)
        return asleep[0][0] if asleep else NEVER

    def begin(self, asked: Call[Any], permit: Permit) -> Attempt | None:
        """Start the next call on a permit that was got for ``asked``; None if it does not fit any more."""
        with self.lock:
            now = self._now()
            call = self._still(asked, now.elapsed_us)
            if call is None:
                return None
            if self._spacing is not None:
                self._spacing.take(now.elapsed_us)
            if self.on_start is not None:
                try:
                    self.on_start(call)
                except BaseException:
                    if self._spacing is not None:
                        self._spacing.give_back(now.elapsed_us)
                    raise
            self.waiting.remove(call)
            call.state = RUNNING
            call.attempts += 1
            call.started = now.wall_us / SECOND
            attempt = call.attempt = Attempt(call, permit, now.elapsed_us)
            self.running[attempt] = None
            self.live += 1
            if self._ramp is not None:
                self._ramp.take(call.costs, now.elapsed_us)
            if self.spending.counts:
                self.spending.reserve(attempt.price)
            figures = self.figures
            figures.started += 1
            if figures.first_sent_at is None:
                figures.first_sent_at = now.elapsed_us / SECOND
            for rule, cost in enumerate(call.costs):
                self.used[rule] += cost
            if charges.isEnabledFor(logging.DEBUG):
                charges.debug("call %s, attempt %d: reserved %s", call.id, call.attempts, permit.units)
            if self._listeners:
                self._fact("started", call, call.attempts)
            if not self.waiting.size:
                self._set_limited(False)
                if not self.sleeping:
                    self._fact("empty")
            if self._size_waits:
                self._see_waits()
        self.tell()
        return attempt

    def _still(self, asked: Call[Any], now_us: int) -> Call[Any] | None:
        """The call that may start on a permit for ``asked``: itself, as a rule."""
        plain = self._spacing is None and self._ramp is None and self.spending.cap is None
        plain = plain and not self.asleep and now_us >= self._quiet_until_us
        if plain and self.waiting.peek() is asked and len(self.running) < self.max_concurrent:
            return None if self.paused or self.stopped is not None or self.broken is not None else asked
        call, _ = self.pick(now_us)
        return call if call is asked or (call is not None and call.costs == asked.costs) else None

    def unsent(self, attempt: Attempt) -> None:
        """The function was not called after all: everything is given back."""
        with self.lock:
            if attempt not in self.running:
                return
        self._settle(attempt, UNSENT)
        with self.lock:
            call = attempt.call
            self._leave(attempt)
            call.attempts -= 1
            self.figures.started -= 1
            self.figures.given_back += 1
            for rule, cost in enumerate(call.costs):
                self.used[rule] -= cost
            if self._spacing is not None:
                self._spacing.give_back(attempt.sent_us)
            if self._ramp is not None:
                self._ramp.give_back(call.costs)
            if self.spending.counts:
                self.spending.settle(attempt.price, None, charged=False)
            if call.state is RUNNING and call.attempt is attempt:
                self._return(call)
            self._look()
        self.tell()
        self.wake()

    def _leave(self, attempt: Attempt) -> None:
        del self.running[attempt]
        attempt.handed = None
        attempt.task = None  # its context knows the attempt: a circle that would keep arguments and results
        self._give_up(attempt)

    def _give_up(self, attempt: Attempt) -> None:
        """Nobody waits for its outcome any more."""
        if not attempt.over:
            attempt.over = True
            if not attempt.detached:
                self.live -= 1

    def _return(self, call: Call[Any]) -> None:
        """Back in line, as if it had not begun; unless nobody waits for it any more."""
        if call.dropped:
            self._hand_on(call)
            self._fail(call, CallCancelled(f"call {call.id}: nobody waits for it any more"))
        else:
            self._stand_again(call)

    def _stand_again(self, call: Call[Any]) -> None:
        call.state = WAITING
        self.waiting.restore(call)

    # What became of attempts

    def ended(self, attempt: Attempt, outcome: Outcome, now: Now) -> None:
        """The work of an attempt has really ended."""
        if attempt not in self.running:  # its loop was closed under it, and it was reclaimed
            return
        self._settle(attempt, outcome.signal)
        if charges.isEnabledFor(logging.DEBUG):
            _log_charge(attempt, outcome)
        with self.lock:
            call = attempt.call
            late = attempt.over
            self._leave(attempt)
            if self.spending.counts:
                charged = outcome.signal is not UNSENT and outcome.kind not in SPENDS_NO_ATTEMPT
                used = None if outcome.usage is None else {**call.units, **outcome.usage}
                self.spending.settle(attempt.price, used, charged=charged)
            other: Attempt | None = None
            if not late:
                self._conclude(attempt, outcome, now)
            elif outcome.kind is ErrorClass.OK and call.state is not DONE:
                # It was given up for another attempt, and has come all the same.
                other = self._take_back(call)
                self._conclude(attempt, outcome, now)
            elif outcome.kind in SPENDS_NO_ATTEMPT and not self._rated:
                self._hush(attempt.sent_us, outcome.retry_after_us, now.elapsed_us)
            self._look()
        if other is not None:
            self.halt(other)
        self.tell()
        self.wake()

    def interrupted(self, attempt: Attempt) -> None:
        """The work of an attempt was cut off by the end of its event loop: its call stands in line again."""
        self._settle(attempt, LOST)
        with self.lock:
            stays = not attempt.over
            self._leave(attempt)
            if self.spending.counts:
                self.spending.settle(attempt.price, None, charged=True)
            if stays:
                self._return(attempt.call)
            self._look()
        self.tell()

    def reclaim(self) -> None:
        """Find attempts whose event loop was taken down under them, and those whose task never began."""
        for attempt in list(self.running):
            task = attempt.task
            if attempt.handed is not None and attempt.handed[0].is_closed() and not attempt.stepped:
                close(attempt.handed[1])
                self.interrupted(attempt)
            elif task is not None and (task.done() or task.get_loop().is_closed()):
                if attempt.stepped:
                    self.interrupted(attempt)
                else:
                    self.unsent(attempt)
        self.wake()

    def forked(self) -> None:
        """This is a child process: what ran, runs in the parent."""
        self.lock = threading.RLock()
        self._telling = False
        for attempt in list(self.running):
            self.interrupted(attempt)

    def _settle(self, attempt: Attempt, signal: Signal) -> None:
        """A store or a listener that fails here must not keep the call from ending."""
        try:
            attempt.permit.signal(signal)
        except BaseException as error:
            log.exception("a permit could not be settled")
            self.broken = self.broken or error

    def _take_back(self, call: Call[Any]) -> Attempt | None:
        """Out of the line, or from the attempt that runs, which is returned."""
        if call.state is not RUNNING:
            self._withdraw(call)
            return None
        other = call.attempt
        if other is not None:
            self._give_up(other)
        return other

    def expire(self, attempt: Attempt, seconds: float) -> None:
        """An attempt takes too long: its call goes on without it, its work keeps its place until it ends."""
        with self.lock:
            if attempt.over:
                return
            self._give_up(attempt)
            self.figures.timed_out += 1
            error = TimeoutError(f"no result within {seconds:g} s")
            outcome = Outcome(ErrorClass.TRANSPORT, error, None, UNSENT, None, None)
            self._conclude(attempt, outcome, self._now())
            self._look()
        self.halt(attempt)
        self.tell()
        self.wake()

    def _conclude(self, attempt: Attempt, outcome: Outcome, now: Now) -> None:
        """The call goes on, or ends; whatever goes wrong here, it does not stay between the two."""
        call = attempt.call
        try:
            self._decide(attempt, outcome, now)
        except Exception as error:
            log.exception("call %s could not be carried on", call.id)
            if call.state is RUNNING:
                self._fail(call, outcome.error or error, now)

    def _decide(self, attempt: Attempt, outcome: Outcome, now: Now) -> None:
        call, figures = attempt.call, self.figures
        call.elapsed_us = now.elapsed_us - attempt.sent_us
        if outcome.kind is ErrorClass.OK:
            self._keys_refused = self._strikes = 0
            figures.succeeded += 1
            figures.latency.add(call.elapsed_us / SECOND)
            call.value = outcome.value
            self._close(call, now)
            return
        error = outcome.error
        if error is None:
            raise AssertionError("a failure has its error")
        call.note(error)
        figures.errors[outcome.kind.value] += 1
        if outcome.kind in SPENDS_NO_ATTEMPT:
            figures.refused += 1
            if call.first_throttled_us is None:
                call.first_throttled_us = now.elapsed_us
            if not self._rated:
                self._hush(attempt.sent_us, outcome.retry_after_us, now.elapsed_us)
            wish = None if outcome.retry_after_us is None else outcome.retry_after_us / SECOND
            self._fact("throttled", call, attempt.number, error, wish)
        else:
            call.failures += 1
        verdict = after(
            self.policy,
            outcome.kind,
            attempt=max(call.failures, 1),
            first_throttled_us=call.first_throttled_us,
            retry_after_us=outcome.retry_after_us,
            now_us=now.elapsed_us,
            random=random.random() if outcome.pauses else 0.0,
        )
        match verdict:
            case RetryAt(at_us, _):
                figures.retried += 1
                pause = at_us - now.elapsed_us
                self._fact("retried", call, attempt.number, error, pause / SECOND)
                if pause > 0:
                    call.state = ASLEEP
                    self.sleeping += 1
                    heappush(self.asleep, (at_us, id(call), call))
                    if len(self.asleep) > 2 * self.sleeping + STALE:  # of calls that were given up meanwhile
                        self.asleep = [entry for entry in self.asleep if entry[2].state is ASLEEP]
                        heapify(self.asleep)
                else:
                    self._stand_again(call)
            case GiveUp(reason):
                if outcome.kind in SPENDS_NO_ATTEMPT:
                    seconds = (now.elapsed_us - (call.first_throttled_us or 0)) / SECOND
                    error = Throttled(reason, throttled_seconds=seconds)
                    error.__cause__ = outcome.error
                self._fail(call, error, now)
                self._react(outcome)
            case Done():
                raise AssertionError("only success is done")

    def _hush(self, sent_us: int, retry_after_us: int | None, now_us: int) -> None:
        """Nobody sends for a while: a refusal that shut no limit, for want of one."""
        if sent_us >= self._quiet_until_us:  # else it went before the server asked for quiet
            self._strikes += 1
        if retry_after_us is None:
            retry_after_us = min(FIRST_QUIET_US << min(max(self._strikes - 1, 0), 10), LONGEST_QUIET_US)
        self._quiet_until_us = max(self._quiet_until_us, now_us + retry_after_us)

    def _react(self, outcome: Outcome) -> None:
        """Stop where no other call can fare better."""
        if outcome.kind is ErrorClass.MONEY_GONE:
            self._stop(f"the account has no credit left: {outcome.error}")
        elif outcome.kind is ErrorClass.KEY:
            self._keys_refused += 1
            if not self.figures.latency.count or self._keys_refused >= KEYS_REFUSED:
                self._stop(f"the API key was refused: {outcome.error}")

    def _fail(self, call: Call[Any], error: BaseException, now: Now | None = None) -> None:
        call.error = error
        self.figures.failed += 1
        self._close(call, now)

    def _close(self, call: Call[Any], now: Now | None = None) -> None:
        """A call is done, and so are its twins."""
        now = now or self._now()
        call.state = DONE
        call.finished = now.wall_us / SECOND
        call.attempt = None
        call.context = None
        if self.dedup and self._known.get(call.digest) is call:
            del self._known[call.digest]
        if call.attempts:
            self.figures.last_done_at = now.elapsed_us / SECOND
        if self._listeners:
            self._fact("failed" if call.error is not None else "completed", call, call.attempts, call.error)
        self._callbacks += call.take_callbacks()
        if self.on_close is not None:
            self.on_close(call)
        twins, call.twins = call.twins or (), None
        for twin in twins:
            twin.value, twin.error, twin.shares = call.value, call.error, False
            twin.started, twin.elapsed_us = call.started, call.elapsed_us
            if call.error is None:
                self.figures.succeeded += 1
            else:
                self.figures.failed += 1
            self._close(twin, now)

    # The owner's wishes

    def cancel(self, call: Call[Any], reason: BaseException | None) -> bool:
        """See :meth:`Call.cancel`."""
        halted: Attempt | None = None
        emptied = False
        with self.lock:
            if call.state is DONE:
                return False
            call.cancelled = True
            if call.state is RUNNING and call.attempt is not None:
                halted = call.attempt
                self._give_up(halted)
            elif not call.shares:
                self._withdraw(call)
                emptied = not self.size()
            self._hand_on(call)
            error = reason if reason is not None else CallCancelled(f"call {call.id} was cancelled")
            self._fail(call, error)
            if emptied and not self.size():
                self._set_limited(False)
                self._fact("empty")
            self._look()
        if halted is not None:
            self.halt(halted)
        self.tell()
        self.wake()
        return True

    def _hand_on(self, call: Call[Any]) -> None:
        """A call that is given up leaves its work to the next of its twins."""
        if call.shares:
            first = self._known.get(call.digest)
            if first is not None and first.twins:
                first.twins = [twin for twin in first.twins if twin is not call]
            return
        twins, call.twins = call.twins or [], None
        if twins:
            heir, *rest = twins
            heir.shares, heir.twins = False, rest
            self._known[heir.digest] = heir
            self.waiting.push(heir)

    def _withdraw(self, call: Call[Any]) -> None:
        if call.state is ASLEEP:
            self.sleeping -= 1
            call.state = WAITING
        else:
            self.waiting.remove(call)

    def clear(self) -> list[Call[Any]]:
        """Give up all that waits."""
        with self.lock:
            calls = self.waiting.drain()
            sleepers = [entry[2] for entry in self.asleep if entry[2].state is ASLEEP]
            self.asleep.clear()
            self.sleeping = 0
            for call in (*calls, *sleepers):
                if call.state is DONE:
                    continue
                call.cancelled = True
                call.state = WAITING
                self._fail(call, CallCancelled(f"call {call.id} was cleared before it was done"))
            self._set_limited(False)
            self._fact("empty")
            self._idle = False
            self._look()
        self.tell()
        self.wake()
        return [*calls, *sleepers]

    def pause(self) -> None:
        """Start nothing more; what runs goes on."""
        with self.lock:
            self.paused = True
            self._set_limited(False)
        self.tell()
        self.wake()

    def resume(self) -> None:
        """Start again."""
        with self.lock:
            self.paused = False
        self.wake()

    def set_most(self, most: int) -> None:
        """How many may run at once."""
        with self.lock:
            self.max_concurrent = most
        self.wake()

    def set_priority(self, call: Call[Any], priority: float) -> bool:
        """Move a call that waits; whether it does."""
        with self.lock:
            if call.state is ASLEEP:
                call._priority = priority
                self.waiting.number(call)
                return True
            if call.entry is None:
                return False
            self.waiting.move(call, priority)
        self.wake()
        return True

    def find(self, name: str) -> Call[Any] | None:
        """The first that waits under that id."""
        with self.lock:
            found = self.waiting.find(name)
            if found is None:
                sleepers = (
                    entry for entry in self.asleep if entry[2].state is ASLEEP and entry[2].id == name
                )
                found = min(sleepers, default=(0, 0, None))[2]
            return found

    def go(self) -> None:
        """Forget why it was stopped."""
        with self.lock:
            self.stopped = self.broken = None
            for attempt in self.running:
                if attempt.detached and not attempt.over:
                    attempt.detached = False
                    self.live += 1
            if self._ramp is not None and not self.running:
                self._ramp.begin()
        self.wake()

    def stop(self, why: str) -> None:
        """Start nothing more until told to go."""
        with self.lock:
            self._stop(why)
            self._look()
        self.tell()
        self.wake()

    def _stop(self, why: str) -> None:
        if self.stopped is None:
            self.stopped = why
            self._set_limited(False)

    def fail(self, error: BaseException) -> None:
        """Going on is impossible."""
        with self.lock:
            self.broken = self.broken or error
            self._look()
        self.tell()
        self.wake()

    def cut(self) -> None:
        """Wait for nothing that runs.

        What can be cancelled is, and stands in line again. A function in a thread goes on, and its result
        counts in the next run.
        """
        with self.lock:
            alive = [attempt for attempt in self.running if not attempt.over]
            halted = [attempt for attempt in alive if attempt.task is not None]
            for attempt in halted:
                self._give_up(attempt)
                self._return(attempt.call)
            for attempt in alive:
                if not attempt.over and not attempt.detached:
                    attempt.detached = True
                    self.live -= 1
            self._look()
        for attempt in halted:
            self.halt(attempt)
        self.tell()

    # Watching

    def size(self) -> int:
        """How many wait, between attempts or before the first."""
        return self.waiting.size + self.sleeping

    def is_idle(self) -> bool:
        """Nothing waits and nothing runs."""
        return not (self.waiting.size or self.sleeping or self.live)

    def is_settled(self) -> bool:
        """Nothing runs, nothing will without another word, and all has been told."""
        if self._facts or self._telling:
            return False
        halted = self.stopped is not None or self.broken is not None
        return not self.live and (halted or not (self.waiting.size or self.sleeping))

    def when(
        self, condition: Callable[[], bool], act: Callable[[], object], *, at_rest: bool = False
    ) -> Callable[[], None]:
        """Call ``act`` once ``condition`` holds, in the thread where that happens; returns how to stop it.

        Args:
            at_rest: it cannot hold while a call is alive, so nobody need look before.
        """
        entry = (condition, act, at_rest)
        with self.lock:
            holds = condition()
            if not holds:
                self._set_waits([*self._waits, entry])
        if holds:
            act()

        def forget() -> None:
            with self.lock:
                self._set_waits([wait for wait in self._waits if wait is not entry])

        return forget

    def _set_waits(self, waits: list[_Wait]) -> None:
        self._waits = waits
        self._size_waits = sum(not at_rest for _, _, at_rest in waits)

    def _look(self) -> None:
        """See who has waited for this; the lock is held."""
        if self.live and not self._size_waits:
            return
        if not self._idle and self.is_idle():
            self._idle = True
            self._fact("idle")
        if self._waits:
            self._see_waits()

    def _see_waits(self) -> None:
        left = []
        for entry in self._waits:
            if entry[0]():
                self._callbacks.append(entry[1])
            else:
                left.append(entry)
        if len(left) < len(self._waits):
            self._set_waits(left)

    def listen(self, listener: Listener, kinds: frozenset[str] | None) -> Callable[[], None]:
        """Tell ``listener`` of facts; returns how to stop that."""
        entry = (listener, kinds)
        with self.lock:
            self._listeners = (*self._listeners, entry)

        def forget() -> None:
            with self.lock:
                self._listeners = tuple(other for other in self._listeners if other is not entry)

        return forget

    def set_limited(self, limited: bool) -> None:
        """Whether work waits for a limit."""
        if limited is not self.limited:
            with self.lock:
                self._set_limited(limited and self.waiting.size > 0)
            self.tell()

    def _set_limited(self, limited: bool) -> None:
        if limited is not self.limited:
            self.limited = limited
            self._fact("limited" if limited else "unlimited")

    def _fact(
        self,
        kind: Kind,
        call: Call[Any] | None = None,
        attempt: int = 0,
        error: BaseException | None = None,
        seconds: float | None = None,
    ) -> None:
        if self._listeners:
            self._facts.append(Event(kind, call, attempt, error, seconds))

    def tell(self) -> None:
        """Pass on what has happened; the lock is free.

        Listeners are told by one thread at a time, in the order of the facts: a fact that comes up
        meanwhile, in a listener even, is told after those before it. Those who wait are told by whoever
        comes first.
        """
        while self._facts or self._callbacks:
            if self._facts and not self._tell_listeners() and not self._callbacks:
                return
            with self.lock:
                callbacks, self._callbacks = self._callbacks, []
            for callback in callbacks:
                _guarded(callback)

    def _tell_listeners(self) -> bool:
        """Whether it was on us to do it."""
        with self.lock:
            if self._telling:
                return False
            self._telling = True
        try:
            while self._facts:
                with self.lock:
                    facts, self._facts = self._facts, []
                    listeners = self._listeners
                for fact in facts:
                    for listener, kinds in listeners:
                        if kinds is None or fact.kind in kinds:
                            _guarded(listener, fact)
        finally:
            with self.lock:
                self._telling = False
                if self._waits:
                    self._see_waits()
        return True


def _log_charge(attempt: Attempt, outcome: Outcome) -> None:
    used = "unknown" if outcome.usage is None else dict(outcome.usage)
    charges.debug(
        "call %s, attempt %d: %s, used %s", attempt.call.id, attempt.number, outcome.kind.value, used
    )


def _guarded(act: Callable[..., object], *args: Any) -> None:
    """What a listener raises is told, and breaks nobody's work."""
    try:
        act(*args)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise  # it is not the listener's
        log.exception("a listener failed: %r", act)


def _nothing() -> None:
    pass


def _ignore(attempt: Attempt) -> None:
    pass
