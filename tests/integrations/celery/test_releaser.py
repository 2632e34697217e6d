"""What the releaser lets out, and when: fed by hand, on a clock that moves when told."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from weakref import WeakSet

import pytest
from celery import Celery

from headgate import Limiter
from headgate.integrations.celery import releaser
from headgate.integrations.celery.releaser import Attended, Releaser, attend, unattend
from headgate.parking import Parked, lot_of
from headgate.stores.memory import MemoryStore
from headgate.testing import FakeClock


class Hand(Releaser):
    """A releaser that sends nothing: what it would send comes back to its lot at once."""

    def __init__(self, limiter: Limiter) -> None:
        super().__init__(SimpleNamespace(app=Celery(set_as_current=False), call_soon=lambda *_: None))
        self.attended = Attended(limiter, threading.Event())
        self.sent: list[Parked] = []

    def _publish(self, key: str, parked: Parked) -> None:
        self.sent.append(parked)

    def released(self) -> int:
        """How many go now; those that went before have come back without a permit."""
        lot = self.attended.lot
        for one in self.sent:
            lot.park(self.attended.limiter.key, one.id, one.release, b"", one.costs, one.place)
        self.sent.clear()
        self._release(self.attended)
        return len(self.sent)


@pytest.fixture
def limiter(fake_clock: FakeClock) -> Limiter:
    return Limiter("concurrency=1", key="slots", store=MemoryStore(fake_clock))


def test_while_nobody_knows_when_one_asks_ever_more_seldom(limiter: Limiter, fake_clock: FakeClock) -> None:
    permit = limiter.acquire()
    lot_of(limiter.store).park("slots", "a", 0, b"", (1,))
    hand = Hand(limiter)
    asked = 0
    for _ in range(1000):
        asked += hand.released()
        fake_clock.advance(0.01)
    assert 10 <= asked <= 20, "in ten seconds"
    permit.settle()
    while hand.released() == 0:  # one that has just been to ask may be out
        fake_clock.advance(0.01)
    assert hand.sent[0].id == "a"


def test_what_is_attended_no_more_is_let_go(limiter: Limiter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releaser, "_attended", WeakSet())
    hand = Hand(limiter)
    attend(limiter)
    hand._round()
    assert [attended.limiter for attended in hand._keys.values()] == [limiter]
    unattend(limiter)
    hand._round()
    assert not hand._keys


def test_while_the_key_is_paused_nothing_goes(limiter: Limiter, fake_clock: FakeClock) -> None:
    limiter.acquire().settle()
    lot_of(limiter.store).park("slots", "a", 0, b"", (1,))
    limiter.pause()
    hand = Hand(limiter)
    for _ in range(100):
        assert hand.released() == 0
        fake_clock.advance(0.1)
    limiter.resume()
    assert hand.released() == 1
