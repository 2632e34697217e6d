"""The ring of calls that are on their way, against a plain list of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headgate.core.limits.base import SLOTS, Holds


@given(
    transit=st.sampled_from((1, 2, 31, 32, 33, 100, 1_000, 64_000)),
    steps=st.lists(
        st.tuples(st.sampled_from(("put", "lift", "pass")), st.integers(0, 200), st.integers(1, 5))
    ),
)
def test_a_hold_lapses_once_after_its_transit_and_at_most_a_slot_later(
    transit: int, steps: list[tuple[str, int, int]]
) -> None:
    holds = Holds(transit, 0, lapses=True)
    state = holds.fresh()
    out: list[tuple[int, int, int]] = []  # granted at, cost, slot
    at = 0
    for verb, size, cost in steps:
        if verb == "pass":
            at += size * transit // 50
            lapsed = 0
            while found := holds.next_lapse(state, at, at):
                assert found[0] <= at
                lapsed += found[1]
            must = sum(cost for granted, cost, _ in out if granted + transit + 2 * holds.slot_us <= at)
            may = sum(cost for granted, cost, _ in out if granted + transit <= at)
            assert must <= lapsed <= may
            gone = lapsed
            while gone:
                gone -= out.pop(0)[1]
            assert gone == 0
        elif verb == "put":
            out.append((at, cost, holds.put(state, cost, at)))
        elif out:
            _, held, slot = out.pop(size % len(out))
            assert holds.lift(state, held, slot)
        assert state[0] == sum(cost for _, cost, _ in out)
    assert holds.slot_us <= max(1, transit // SLOTS)


def test_a_hold_that_waits_for_its_answer_lapses_only_when_it_is_lost() -> None:
    holds = Holds(1_000, 0, lapses=False)
    state = holds.fresh()
    first, second = holds.put(state, 3, 0), holds.put(state, 4, 0)
    assert holds.next_lapse(state, 10**9, 10**9) is None
    holds.lose(state, 3, first, 10**9)
    assert holds.next_lapse(state, 10**9 + 999, 10**9 + 999) is None
    found = holds.next_lapse(state, 10**9 + 2_000, 10**9 + 2_000)
    assert found is not None
    assert found[1] == 3
    assert holds.lift(state, 4, second)
    assert state[0] == 0
