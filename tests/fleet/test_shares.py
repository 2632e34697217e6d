"""Three unequal processes on one key: nothing is refused, nothing is left idle, and each gets its part."""

import pytest

from tests.fleet.judging import fast, need, never_over
from tests.fleet.scenarios import share_out
from tests.fleet.stores import KINDS, Kind


@pytest.mark.scenarios
@pytest.mark.parametrize("kind", KINDS)
def test_they_share_fairly_and_leave_nothing(kind: Kind) -> None:
    need(kind)
    row, seconds = share_out(kind)
    never_over(row)
    fast(row, row.outcome.utilisation >= 0.98, f"{row.outcome.utilisation:.1%} was used")
    assert len(seconds) >= 3
    assert len(seconds[0].shares) == 3, "all of them have work at first"
    fast(row, all(second.furthest <= 0.05 for second in seconds), f"{seconds}")
