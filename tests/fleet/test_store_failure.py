"""What a limiter does while its store is away: it waits, refuses, or goes on with a part of the rate."""

import pytest

from tests.fleet.judging import fast, judged, need, never_over
from tests.fleet.scenarios import RATE, run_scenario
from tests.fleet.stores import Kind

pytestmark = pytest.mark.scenarios
BOTH = pytest.mark.parametrize("kind", ["sqlite", "redis"])

NOTHING = pytest.approx(0, abs=0.02)
QUARTER = 1 / 4


@BOTH
def test_by_default_calls_wait_and_nobody_is_told(kind: Kind) -> None:
    row = judged("wait", kind)
    assert row.during == [NOTHING]
    assert row.errors == {}


@BOTH
def test_slots_stay_taken_though_the_store_was_away_for_longer_than_a_lease(kind: Kind) -> None:
    need(kind)
    row = run_scenario("long", kind)
    never_over(row)


def test_refusing_it_says_so_at_once() -> None:
    row = judged("refuse", "redis")
    assert row.during == [NOTHING]
    assert set(row.errors) == {"StoreUnavailable"}
    assert all(row.outcome.summaries[name]["errors"] for name in ("one", "two"))
    longest = max(summary["longest_error_seconds"] for summary in row.outcome.summaries.values())
    fast(row, longest < 0.5, f"somebody was told after {longest:.2f} s")


@BOTH
def test_with_a_share_each_goes_on_with_its_part_and_comes_back(kind: Kind) -> None:
    row = judged("share", kind)
    assert row.errors == {}
    [fault] = row.outcome.faults
    seconds = (fault.done_ns - fault.began_ns) / 1e9
    for name in ("one", "two"):
        own = row.outcome.accepted(fault.began_ns + 500_000_000, fault.done_ns, name) / (seconds - 0.5) / RATE
        assert own <= QUARTER * 1.05
        fast(row, own >= QUARTER * 0.9, f"{own:.1%} of the rate instead of a quarter")
