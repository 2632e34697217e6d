from collections import Counter
from random import Random

import pytest

from headgate.simulator.faults import draw_fault, parse_faults


def test_reads_faults() -> None:
    assert parse_faults("500=3%, reset=1%,hang=0.5%") == {"500": 0.03, "reset": 0.01, "hang": 0.005}
    assert parse_faults("") == {}


@pytest.mark.parametrize(
    "text", ["500", "500=3", "200=1%", "boom=1%", "500=60%,reset=60%", "500=1%,500=1%", "reset=1%,"]
)
def test_refuses_what_is_no_fault(text: str) -> None:
    with pytest.raises(ValueError, match="fault"):
        parse_faults(text)


def test_draws_each_kind_as_often_as_told() -> None:
    random = Random(1)
    drawn = Counter(draw_fault({"500": 0.1, "reset": 0.2}, random) for _ in range(10_000))
    assert drawn["500"] == pytest.approx(1_000, rel=0.1)
    assert drawn["reset"] == pytest.approx(2_000, rel=0.1)
    assert drawn[None] == pytest.approx(7_000, rel=0.1)


def test_draws_nothing_from_nothing() -> None:
    random = Random(1)
    state = random.getstate()
    assert draw_fault({}, random) is None
    assert random.getstate() == state
