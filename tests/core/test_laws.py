"""The laws that every plan keeps, whatever happens between a grant and its answer."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Literal, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.core.plan import Plan
from tests.core import histories
from tests.core.histories import Pair
from tests.core.world import World

Jumps: TypeAlias = Literal["no", "one", "both"]
READS: tuple[Literal["no", "limit", "remaining"], ...] = ("no", "limit", "remaining")
KINDS = {
    "bucket": histories.buckets(),
    "window": histories.windows(),
    "grid": histories.grids(),
    "calendar": histories.calendars(),
    "unknown": histories.unknowns(),
    "slots": histories.slots(),
}


def play(data: st.DataObject, pairs: Sequence[Pair], *, jumps: Jumps = "no", careful: bool = True) -> World:
    steps = data.draw(histories.histories(pairs, jumps=jumps))
    if jumps:  # one of the two clocks is broken, as often as it likes; with both there is no time to go by
        sound = data.draw(st.sampled_from(("elapsed_jump", "wall_jump")))
        for step in steps:
            setattr(step, sound, 0)
    reads = data.draw(st.sampled_from(READS))
    world = World(
        Plan([pair.limit for pair in pairs]),
        [pair.server for pair in pairs],
        Random(data.draw(st.integers(0, 9))),
        reads=reads,
        careful=careful,
        counts_refusals=data.draw(st.booleans()),
        batch=data.draw(st.sampled_from((1, 3, 8))),
        most_calls=200,
    )
    world.run(steps)
    return world


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_server_that_was_described_never_refuses_and_every_promise_is_kept(
    kind: str, data: st.DataObject
) -> None:
    play(data, [data.draw(KINDS[kind])])


@given(pairs=histories.layers(), data=st.data())
def test_several_limits_at_once_are_kept_like_one(pairs: list[Pair], data: st.DataObject) -> None:
    play(data, pairs)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_clocks_that_jump_mint_nothing(kind: str, data: st.DataObject) -> None:
    # Where edges lie on the wall, no one can tell which clock is right once both have jumped.
    play(
        data, [data.draw(KINDS[kind])], jumps="one" if kind in ("grid", "calendar") else "both", careful=False
    )
