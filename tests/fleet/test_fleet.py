"""The harness itself: it counts rightly, and it would see what it is there to see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.fleet.client import Job
from tests.fleet.fleet import SECOND, Call, Fault, Fleet, Outcome, run
from tests.fleet.scenarios import BY_SLOTS, fair_seconds, row_of

BUCKET = {"meter": "requests", "kind": "bucket", "amount": 300, "burst": 60}
SLOTS = {"meter": "concurrency", "kind": "concurrency", "amount": 2}


def call(
    at: float, client: str = "one", *, takes: float = 0.1, refused_by: Sequence[int] = (), age: float = 0
) -> Call:
    ended = None if refused_by else round((at + takes) * SECOND)
    sent = round(at * SECOND)
    return Call(client, sent - round(age * SECOND), sent, sent, ended, list(refused_by))


def outcome_of(calls: Sequence[Call], seconds: float, clients: Sequence[str] = ("one",)) -> Outcome:
    return Outcome(
        begin_ns=0,
        end_ns=round(seconds * SECOND),
        report={"config": {"limits": [BUCKET, SLOTS]}},
        log=calls,
        calls=calls,
        summaries={},
        exits=dict.fromkeys(clients, 0),
        complaints={},
        faults=[],
    )


def test_counts_what_was_accepted_by_client_and_instant() -> None:
    outcome = outcome_of([call(0.5), call(1, "two"), call(1.5, refused_by=[0]), call(2, "two")], 3)
    assert outcome.accepted(0.5 * SECOND, 2 * SECOND) == 2
    assert outcome.accepted(0, 3 * SECOND, "two") == 2


def test_work_is_counted_by_its_time() -> None:
    outcome = outcome_of([call(0, takes=1), call(0.5, takes=1), call(0.5, refused_by=[0])], 3)
    assert outcome.work(0, 0.5 * SECOND) == 0.5
    assert outcome.work(0.75 * SECOND, 1.25 * SECOND) == 0.75
    assert outcome.work(0, 3 * SECOND) == 2


def test_tells_how_near_the_bucket_was_to_refusing() -> None:
    calls = [call(0)] * 50 + [call(0.1)] * 40 + [call(9)]
    assert outcome_of(calls, 10).least_left == pytest.approx(60 - 50 + 30 - 40)


def test_counts_calls_at_the_same_time_and_one_that_found_no_slot() -> None:
    calls = [call(0), call(0.05), call(0.1), call(0.19, refused_by=[0])]
    assert outcome_of(calls, 1).most_in_flight == 2
    assert outcome_of([*calls, call(0.12, refused_by=[1])], 1).most_in_flight == 3


@pytest.mark.parametrize(
    ("silent_until", "expected"), [(1.0, 0.0), (1.04, 0.0), (1.5, 0.45), (2.5, 1.45), (3.5, None)]
)
def test_full_speed_is_back_with_the_first_window_that_has_it(
    silent_until: float, expected: float | None
) -> None:
    instants = [number / 100 for number in range(400)]
    calls = [call(at) for at in instants if at < 1 or at >= silent_until]
    found = outcome_of(calls, 4).recovery_seconds(SECOND, full=100)
    assert found == (None if expected is None else pytest.approx(expected, abs=0.06))


def test_seconds_are_compared_while_the_same_clients_have_work() -> None:
    calls = [call(number / 10, "one") for number in range(45)]
    calls += [call(number / 10, "two") for number in range(25)]
    found = fair_seconds(outcome_of(sorted(calls, key=lambda each: each.arrived_ns), 4.4, ["one", "two"]))
    assert [(second.number, sorted(second.shares)) for second in found] == [
        (0, ["one", "two"]),
        (1, ["one", "two"]),
        (3, ["one"]),
    ]
    assert [second.furthest for second in found] == [0, 0, 0]


@pytest.mark.scenarios
def test_clients_that_do_not_share_are_found_out(tmp_path: Path) -> None:
    jobs = [
        Job(name, "", "memory://", ("requests=300/s:burst=60:start=full", "concurrency=20"), 20, 2)
        for name in ("one", "two", "three")
    ]
    stopped: list[str] = []

    def stop(fleet: Fleet) -> None:
        client = fleet.clients["one"]
        client.stop()
        client.go_on()
        fleet.clients["two"].kill()
        stopped.append(fleet.url)

    outcome = run(BY_SLOTS.server(), jobs, tmp_path, faults=[Fault("stop", 1.5, stop)])
    assert stopped
    if outcome.faults[0].began_ns >= outcome.end_ns - SECOND // 4:
        pytest.skip("the machine stood still until the load was over")
    assert outcome.refused > 0
    assert outcome.most_in_flight > BY_SLOTS.slots
    assert outcome.exits == {"one": 0, "two": -9, "three": 0}
    assert set(outcome.summaries) == {"one", "three"}
    assert sum(call.client == "two" for call in outcome.calls) > 0
    row = row_of("none", "memory", BY_SLOTS, 2, outcome)
    assert row.refused == outcome.refused
