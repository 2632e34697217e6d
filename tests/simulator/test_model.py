import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.simulator.model import ServerModel
from headgate.simulator.spec import SpecError

SECOND = 1_000_000


def test_charges_all_limits_or_none() -> None:
    model = ServerModel(["requests=2/s", "tokens=100/s"])
    assert model.arrive(0, {"tokens": 60}).accepted
    refused = model.arrive(0, {"tokens": 60})
    assert (refused.accepted, refused.refused_by, refused.retry_after_us) == (False, "tokens=100/s", 200_000)
    assert [reading.remaining for reading in refused.readings] == [1, 40]
    assert model.arrive(0, {"tokens": 40}).accepted


def test_names_the_limit_that_takes_longest() -> None:
    model = ServerModel(["requests=1/s", "requests=1/min:name=minute"])
    model.arrive(0, {})
    refused = model.arrive(0, {})
    assert (refused.refused_by, refused.retry_after_us) == ("minute", 60 * SECOND)
    assert model.tally().refused_by == {"minute": 1}


def test_a_call_that_can_never_fit_gets_no_time() -> None:
    refused = ServerModel(["requests=9/s", "tokens=100/s"]).arrive(0, {"tokens": 101})
    assert refused.never_fits
    assert refused.retry_after_us is None
    assert "retry-after" not in refused.headers


def test_a_missing_slot_gets_no_time_but_may_fit_later() -> None:
    model = ServerModel(["concurrency=1"])
    model.arrive(0, {})
    refused = model.arrive(0, {})
    assert (refused.retry_after_us, refused.never_fits) == (None, False)


def test_a_limit_that_the_call_costs_nothing_is_not_asked() -> None:
    model = ServerModel(["tokens=10/s"], count_refused=True)
    model.arrive(0, {"tokens": 10})
    assert model.arrive(0, {}).accepted
    assert model.arrive(0, {"images": 5}).accepted


def test_slots_are_held_until_completion() -> None:
    model = ServerModel(["concurrency=2"])
    first, second = model.arrive(0, {}), model.arrive(0, {})
    assert not model.arrive(9 * SECOND, {}).accepted
    model.complete(9 * SECOND, first)
    model.complete(9 * SECOND, first)  # frees no second slot
    assert model.in_flight == 1
    assert model.arrive(9 * SECOND, {}).accepted
    assert not model.arrive(9 * SECOND, {}).accepted
    model.complete(9 * SECOND, second)
    assert model.tally().peak_in_flight == 2


@pytest.mark.parametrize(
    ("options", "after_arrival", "after_completion"),
    [
        ("", 40, 40),
        (":when=completion", 100, 40),
        (":charge=usage", 40, 90),
        (":charge=usage:refund=no", 40, 40),
        (":charge=usage:when=completion", 100, 90),
    ],
)
def test_charges_estimate_or_usage_at_arrival_or_completion(
    options: str, after_arrival: int, after_completion: int
) -> None:
    model = ServerModel(["tokens=100/h:kind=sliding" + options])
    verdict = model.arrive(0, {"tokens": 60})
    assert [reading.remaining for reading in verdict.readings] == [after_arrival]
    model.complete(SECOND, verdict, {"tokens": 10})
    (left,) = model.arrive(SECOND, {}).readings
    assert left.remaining == after_completion
    assert model.tally().limits[0].accepted_units == 100 - after_completion


def test_usage_above_the_estimate_becomes_debt() -> None:
    model = ServerModel(["tokens=100/s:charge=usage"])
    model.complete(0, model.arrive(0, {"tokens": 60}), {"tokens": 150})
    refused = model.arrive(0, {"tokens": 1})
    assert (refused.accepted, refused.retry_after_us) == (False, 510_000)


def test_a_failed_call_keeps_its_estimate() -> None:
    model = ServerModel(["tokens=100/h:charge=usage"])
    model.complete(0, model.arrive(0, {"tokens": 60}))
    assert model.tally().limits[0].accepted_units == 60


def test_a_limit_charged_at_completion_admits_while_a_unit_is_left() -> None:
    model = ServerModel(["tokens=100/h:charge=usage:when=completion"])
    first = model.arrive(0, {"tokens": 90})
    assert model.arrive(0, {"tokens": 90}).accepted  # nothing is charged yet
    model.complete(0, first, {"tokens": 100})
    assert not model.arrive(0, {"tokens": 1}).accepted


@pytest.mark.parametrize(
    ("count_refused", "waits_us"), [(False, [100_000, 100_000]), (True, [200_000, 300_000])]
)
def test_refused_calls_are_free_unless_they_count(count_refused: bool, waits_us: list[int]) -> None:
    model = ServerModel(["requests=10/s:burst=2"], count_refused=count_refused)
    verdicts = [model.arrive(0, {}) for _ in range(4)]
    assert [verdict.accepted for verdict in verdicts] == [True, True, False, False]
    assert [verdict.retry_after_us for verdict in verdicts[2:]] == waits_us


def test_debt_by_refused_calls_stops_at_the_capacity() -> None:
    model = ServerModel(["requests=10/s:burst=2"], count_refused=True)
    for _ in range(100):
        last = model.arrive(0, {})
    assert last.retry_after_us == 300_000  # from -2 to 1
    assert [reading.remaining for reading in last.readings] == [0]


def test_a_refused_call_never_lessens_a_debt() -> None:
    model = ServerModel(["tokens=10/s:charge=usage"], count_refused=True)
    model.complete(0, model.arrive(0, {"tokens": 1}), {"tokens": 50})
    assert model.arrive(0, {"tokens": 1}).retry_after_us == 4_100_000


def test_refused_calls_count_on_every_limit() -> None:
    model = ServerModel(["requests=2/h", "tokens=100/h", "concurrency=9"], count_refused=True)
    model.arrive(0, {"tokens": 90})
    assert not model.arrive(0, {"tokens": 90}).accepted
    refused = model.arrive(0, {"tokens": 1})
    assert [reading.remaining for reading in refused.readings] == [0, 0, 8]


def test_the_told_time_covers_limits_that_only_this_refusal_exhausted() -> None:
    model = ServerModel(["tokens=10/s", "requests=2/min"], count_refused=True)
    model.arrive(0, {"tokens": 10})
    refused = model.arrive(0, {"tokens": 1})
    assert (refused.refused_by, refused.retry_after_us) == ("tokens=10/s", 30 * SECOND)


@given(
    st.lists(st.tuples(st.integers(0, 400_000), st.integers(1, 40)), max_size=30),
    st.booleans(),
    st.integers(1, 40),
)
def test_a_refused_call_is_accepted_at_the_told_instant(
    steps: list[tuple[int, int]], count_refused: bool, cost: int
) -> None:
    limits = ["requests=5/s:burst=2", "tokens=50/s:kind=sliding", "tokens=60/s:kind=counter"]
    model = ServerModel(limits, count_refused=count_refused)
    now = 0
    for gap, tokens in steps:
        now += gap
        model.arrive(now, {"tokens": tokens})
    told = model.arrive(now, {"tokens": cost})
    if not told.accepted:
        assert told.retry_after_us is not None
        assert model.arrive(now + told.retry_after_us, {"tokens": cost}).accepted


def test_a_clock_that_goes_back_mints_nothing() -> None:
    model = ServerModel(["requests=1/s"])
    model.arrive(10 * SECOND, {})
    assert not model.arrive(0, {}).accepted
    assert model.arrive(0, {}).retry_after_us == SECOND
    assert model.arrive(11 * SECOND, {}).accepted


def test_tallies_against_the_ideal_from_the_first_arrival_to_the_last() -> None:
    model = ServerModel(["requests=10/s:burst=2", "concurrency=5"])
    start = 1_000 * SECOND
    for now in [0, 0, 0, 500_000, SECOND]:
        model.arrive(start + now, {})
    tally = model.tally()
    assert (tally.accepted, tally.refused) == (4, 1)
    assert (tally.first_arrival_us, tally.last_arrival_us) == (start, start + SECOND)
    requests, slots = tally.limits
    assert (requests.accepted_units, requests.ideal_units, requests.utilisation) == (4, 12, 4 / 12)
    assert requests.worst_window_units == 3
    assert (slots.ideal_units, slots.utilisation, slots.worst_window_units) == (None, None, None)


def test_an_unused_server_has_nothing_to_tell() -> None:
    tally = ServerModel(["requests=10/s"]).tally()
    assert (tally.accepted, tally.first_arrival_us, tally.last_arrival_us) == (0, None, None)
    assert tally.limits[0].accepted_units == 0


def test_a_reset_of_the_tally_leaves_the_limits_as_they_are() -> None:
    model = ServerModel(["requests=1/h"])
    model.arrive(0, {})
    model.reset_tally()
    assert model.tally().accepted == 0
    assert not model.arrive(1, {}).accepted
    model.refresh()
    assert model.arrive(2, {}).accepted


def test_a_call_open_at_a_refresh_gives_nothing_back() -> None:
    model = ServerModel(["concurrency=1", "tokens=10/h:charge=usage"])
    verdict = model.arrive(0, {"tokens": 10})
    model.refresh()
    model.arrive(0, {"tokens": 10})
    model.complete(0, verdict, {"tokens": 0})
    assert [limit.accepted_units for limit in model.tally().limits] == [1, 10]
    assert not model.arrive(0, {}).accepted


def test_limits_need_different_names() -> None:
    with pytest.raises(ValueError, match="name="):
        ServerModel(["requests=1/s", "requests=1/s:burst=3"])
    with pytest.raises(SpecError):
        ServerModel(["requests"])
