from __future__ import annotations

import pytest

from headgate.core.model import ANSWERED, LOST, NEVER, SECOND, UNSENT, Refused, Signal, Throttle
from tests.core.caller import Caller


def test_a_slot_is_taken_until_the_call_is_over() -> None:
    caller = Caller("concurrency=3")
    grants = caller.granted(0)
    assert len(grants) == 3
    assert caller.until(10**12) == NEVER
    for grant, signal in zip(grants, (ANSWERED, LOST, UNSENT), strict=True):
        caller.settle(10**12, grant, signal)
        assert len(caller.granted(10**12)) == 1


def test_a_throttle_that_names_it_gives_its_slot_back_once() -> None:
    caller = Caller("concurrency=3")
    first, *_ = caller.granted(0)
    caller.settle(1, first, Signal(throttle=Throttle("concurrency")))
    assert caller.used(1) == (2,)


@pytest.mark.parametrize(("cost", "answer"), [(4, Refused(0, 3)), (5, Refused(0, 3))])
def test_more_than_all_slots_are_refused(cost: int, answer: Refused) -> None:
    assert Caller("concurrency=3").ask(0, (cost,)) == [answer]


def test_slots_in_use_by_others_at_first() -> None:
    caller = Caller("concurrency=3:start=used-1")
    assert len(caller.granted(SECOND)) == 2
