"""A fleet under load, and something fails: the limits hold through it, and full speed is soon back.

What that means exactly is in `tests.fleet.scenarios`.
"""

import pytest

from tests.fleet.judging import KILLED, fast, judged
from tests.fleet.scenarios import SCENARIOS
from tests.fleet.stores import Kind

pytestmark = pytest.mark.scenarios


@pytest.mark.parametrize("name", ["lost-rate", "lost-slots", "evicted"])
def test_a_state_that_was_lost_is_made_good(name: str) -> None:
    row = judged(name, "redis")
    assert row.errors == {}
    assert any("has lost" in line for each in row.outcome.summaries.values() for line in each["logged"])


def test_a_server_that_does_not_answer_for_a_while_is_waited_for() -> None:
    row = judged("asleep", "redis")
    assert row.during == [pytest.approx(0, abs=0.02)], "it was asleep"


def test_what_a_server_forgets_without_harm_is_not_felt() -> None:
    assert judged("harmless", "redis").errors == {}


def test_a_client_that_was_stopped_for_longer_than_its_lease_does_no_harm() -> None:
    row = judged("stopped", "redis")
    stopped, went_on = row.outcome.faults
    between = row.outcome.accepted(stopped.done_ns + 500_000_000, went_on.began_ns, "one")
    assert between == 0, "it was stopped"
    assert row.outcome.accepted(went_on.done_ns, row.outcome.end_ns, "one") > 0, "it goes on"


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_slots_of_a_client_that_was_killed_go_to_the_others(kind: Kind) -> None:
    row = judged("killed", kind)
    assert row.exits == {"one": KILLED, "two": 0, "three": 0}


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_a_wall_clock_that_is_an_hour_off_changes_nothing(kind: Kind) -> None:
    row = judged("clock", kind)
    fast(row, row.before >= 0.98, f"{row.before:.1%} was used")
    one, two = (row.outcome.summaries[name]["wall_seconds"] for name in ("one", "two"))
    assert two - one == pytest.approx(SCENARIOS["clock"].clock, abs=60), "its clock is off"
