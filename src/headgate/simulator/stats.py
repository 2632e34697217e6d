"""What the HTTP server reports of itself beyond the limiter's tally."""

import asyncio
from collections import Counter
from typing import Any

from headgate.simulator.durations import SECOND_US
from headgate.simulator.tally import Tally

_TICK_SECONDS = 0.01


class StallMeter:
    """Measures how long the event loop stalled: a tick every 10 ms, and how late the latest was."""

    def __init__(self) -> None:
        self.longest_seconds = 0.0
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to tick in the running loop."""
        loop = asyncio.get_running_loop()

        def tick(due_at: float) -> None:
            now = loop.time()
            self.longest_seconds = max(self.longest_seconds, now - due_at)
            schedule(now + _TICK_SECONDS)

        def schedule(due_at: float) -> None:
            self._handle = loop.call_at(due_at, tick, due_at)

        schedule(loop.time() + _TICK_SECONDS)

    def stop(self) -> None:
        """Tick no more."""
        if self._handle is not None:
            self._handle.cancel()


class CallCounts:
    """Counts what the limiter does not see. Memory: two integers per idempotency key."""

    def __init__(self) -> None:
        self.faults: Counter[str] = Counter()
        self.bad_requests = 0
        # Hashes, not the keys: 64 bits tell ten million keys apart with odds of a million to one.
        self._seen: set[int] = set()
        self._accepted: set[int] = set()
        self._repeated: set[int] = set()
        self._accepted_again: set[int] = set()

    def saw(self, idempotency_key: str, accepted: bool) -> None:
        """Count a judged call that carried a key."""
        key = hash(idempotency_key)
        if key in self._seen:
            self._repeated.add(key)
        self._seen.add(key)
        if accepted:
            if key in self._accepted:
                self._accepted_again.add(key)
            self._accepted.add(key)

    def idempotency(self) -> dict[str, int]:
        """Return how many keys came, how many more than once, and how many were accepted more than once."""
        return {
            "keys": len(self._seen),
            "repeated": len(self._repeated),
            "accepted_repeatedly": len(self._accepted_again),
        }


def stats_json(tally: Tally, counts: CallCounts, longest_stall_seconds: float) -> dict[str, Any]:
    """Return everything a server saw, ready for JSON; instants are float seconds since 1970."""
    return {
        "accepted": tally.accepted,
        "refused": tally.refused,
        "refused_by": tally.refused_by,
        "limits": [
            {
                "name": limit.name,
                "meter": limit.meter,
                "accepted_units": limit.accepted_units,
                "ideal_units": limit.ideal_units,
                "utilisation": limit.utilisation,
                "worst_window_units": limit.worst_window_units,
            }
            for limit in tally.limits
        ],
        "in_flight": tally.in_flight,
        "peak_in_flight": tally.peak_in_flight,
        "first_arrival_at": _seconds(tally.first_arrival_us),
        "last_arrival_at": _seconds(tally.last_arrival_us),
        "bad_requests": counts.bad_requests,
        "faults": dict(counts.faults),
        "idempotency": counts.idempotency(),
        "longest_stall_seconds": longest_stall_seconds,
    }


def _seconds(instant_us: int | None) -> float | None:
    return None if instant_us is None else instant_us / SECOND_US
