"""Tasks that wait without a slot: real workers, real brokers, a real store, a strict server."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError

from headgate.integrations.celery import PARKED
from headgate.parking import lot_of
from tests.integrations.celery.workers import SECONDS, Place, running, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    broker = request.getfixturevalue("rabbitmq").url if request.param == "rabbitmq" else None
    with running(tmp_path_factory.mktemp(request.param), broker) as found:
        yield found


@contextmanager
def closed(place: Place) -> Iterator[Any]:
    """What goes by ``program.gate`` is parked meanwhile."""
    place.program.gate.pause()
    try:
        yield lot_of(place.program.gate.store)
    finally:
        place.program.gate.resume()


def parked(lot: Any, count: int) -> None:
    wait_until(lambda: lot.peek("gate").waiting == count)


def test_tasks_wait_for_their_limits_and_run_once(place: Place) -> None:
    program = place.program
    done = group(program.call.s(number) for number in range(120)).apply_async()
    assert done.get(timeout=SECONDS) == list(range(120))
    assert Counter(line[1] for line in place.lines("call")) == Counter(map(str, range(120)))
    assert lot_of(program.limiter.store).peek("service").waiting == 0


def test_what_hangs_on_a_task_comes_with_it(place: Place) -> None:
    program = place.program
    with closed(place) as lot:
        options = {
            "headers": {"colour": "red"},
            "priority": 3,
            "soft_time_limit": 20,
            "time_limit": 30,
            "shadow": "short",
            "argsrepr": "no secrets",
        }
        limited = program.app.tasks["limited.tells"].apply_async(
            args=("limited",), link=program.linked.s("limited"), **options
        )
        parked(lot, 1)
    plain = program.app.tasks["plain.tells"].apply_async(args=("limited",), **options)
    assert limited.get(timeout=SECONDS) == plain.get(timeout=SECONDS)
    wait_until(lambda: place.lines("linked", "limited"))
    assert len(place.lines("tells")) == 2


def test_a_message_comes_again_as_it_was_made(place: Place) -> None:
    shown = place.program.shown
    with closed(place) as lot:
        # YAML keeps a number that is a key, JSON does not.
        other = shown.apply_async(({1: "one"},), serializer="yaml")
        small = shown.apply_async(({"x": "y" * 1000},), compression="zlib")
        parked(lot, 2)
    assert other.get(timeout=SECONDS) == "{1: 'one'}"
    assert len(small.get(timeout=SECONDS)) > 1000


def test_one_that_fails_before_its_permit_has_ended(place: Place) -> None:
    with closed(place) as lot:
        result = place.program.costs_what_nobody_knows.delay("one")
        parked(lot, 1)
    with pytest.raises(LookupError, match="one is gone"):
        result.get(timeout=SECONDS)
    assert not lot.peek("gate").out


def test_one_that_has_sent_others_can_be_refused(place: Place) -> None:
    assert place.program.sends_and_is_refused.delay("parent").get(timeout=SECONDS) == "parent"
    wait_until(lambda: len(place.lines("linked", "parent-0")) == 2)


def test_chains_and_chords_go_on_after_tasks_that_were_parked(place: Place) -> None:
    program = place.program
    with closed(place) as lot:
        in_chain = chain(program.behind_it.s("a"), program.behind_it.si("b")).apply_async()
        summed = chord((program.behind_it.s(str(n)) for n in range(20)), program.collect.s()).apply_async()
        parked(lot, 21)
    assert in_chain.get(timeout=SECONDS) == "b"
    assert summed.get(timeout=SECONDS) == 20


def test_one_that_is_replaced_goes_on_under_its_id(place: Place) -> None:
    with closed(place) as lot:
        result = place.program.replaced.delay("other")
        parked(lot, 1)
    assert result.get(timeout=SECONDS) == "other"


def test_an_id_may_be_used_again(place: Place) -> None:
    for _ in range(2):
        with closed(place) as lot:
            result = place.program.behind_it.apply_async(("same",), task_id="same")
            parked(lot, 1)
        wait_until(lambda: lot_of(place.program.gate.store).keys().count("gate") == 0)
        assert result.get(timeout=SECONDS) == "same"
    wait_until(lambda: len(place.lines("behind_it", "same")) == 2)


def test_one_that_is_revoked_or_has_expired_never_runs(place: Place) -> None:
    program = place.program
    with closed(place) as lot:
        kept, revoked = program.behind_it.delay("kept"), program.behind_it.delay("revoked")
        late = program.behind_it.apply_async(("late",), expires=1)
        parked(lot, 3)
        revoked.revoke()
        time.sleep(1.1)  # it expires by the clock of this machine
    assert kept.get(timeout=SECONDS) == "kept"
    for result in (revoked, late):
        with pytest.raises(TaskRevokedError):
            result.get(timeout=SECONDS)
    wait_until(lambda: lot.keys().count("gate") == 0)
    assert not place.lines("behind_it", "revoked")
    assert not place.lines("behind_it", "late")


def test_a_throttle_spends_no_attempt_and_stops_everybody(place: Place) -> None:
    program = place.program
    began = time.monotonic()
    result = program.refused_once.delay("door")
    # As the field says that the program names.
    wait_until(lambda: any(one.retry_after_seconds == 1.5 for one in program.gate.snapshot().refusals))
    other = program.behind_it.delay("other")
    assert program.gate.snapshot().blocked.why in {"refused", "probing"}
    # With autoretry_for=(Exception,) and max_retries=0: to Celery nothing went wrong.
    assert result.get(timeout=SECONDS) == "door"
    assert other.get(timeout=SECONDS) == "other"
    assert time.monotonic() - began >= 1.5
    assert [line[2] for line in place.lines("refused_once", "door")] == ["0", "0"]


def test_one_that_sends_itself_again_is_not_sent_twice(place: Place) -> None:
    result = place.program.refused_and_sent_again.delay("twice")
    assert result.get(timeout=SECONDS) == "twice"
    assert place.program.behind_it.delay("after").get(timeout=SECONDS) == "after"
    assert [line[2] for line in place.lines("refused_and_sent_again", "twice")] == ["0", "1"]


def test_retries_mean_what_they_mean_without_limits(place: Place) -> None:
    program = place.program
    sent = {
        (kind, option): program.app.tasks[f"{kind}.{option}"].delay(f"{kind}-{option}")
        for option in program.RETRIES
        for kind in ("plain", "limited")
    }
    told: dict[tuple[str, str], tuple[str, list[str], list[str]]] = {}
    for what, result in sent.items():
        with pytest.raises(ConnectionRefusedError, match=f"no route to {'-'.join(what)}, try") as found:
            result.get(timeout=SECONDS)
        tries = [line[3] for line in place.lines("fails", "-".join(what))]
        wait_until(lambda id=result.id, tries=tries: len(countdowns(place, id)) == len(tries) - 1)
        told[what] = str(found.value).rpartition(" ")[2], tries, countdowns(place, result.id)
    for option in program.RETRIES:
        plain, limited = told["plain", option], told["limited", option]
        if option == "retry_jitter":
            for each in (plain, limited):
                assert set(each[2]) <= {"0", "1", "2"}
            assert plain[:2] == limited[:2]
        else:
            assert plain == limited, option
    assert told["limited", "retry_backoff"] == ("2", ["0", "1", "2"], ["1", "2"])
    assert told["limited", "retry_backoff_max"][2] == ["1", "1"]
    assert told["limited", "max_retries"][1] == ["0", "1"]
    assert told["limited", "dont_autoretry_for"][1] == ["0"]
    for kind in ("plain", "limited"):
        program.app.tasks[f"{kind}.retry_throw"].delay(kind)
    wait_until(lambda: len(place.lines("goes_on")) == 4)
    assert {line[1]: line[2] for line in place.lines("goes_on")} == {"plain": "1", "limited": "1"}


def countdowns(place: Place, id: str) -> list[str]:
    """Of a task's retries, in seconds, as the workers have logged them by now."""
    log = "".join(worker.told() for worker in place.workers)
    return sorted(re.findall(rf"\[{id}\] retry: Retry in (\d+)s", log))


def test_each_retry_waits_for_its_limits_too(place: Place) -> None:
    program = place.program
    others = group(program.call.s(f"other-{number}") for number in range(60)).apply_async()
    with pytest.raises(ConnectionError, match="no route to there"):
        program.flaky.delay("there").get(timeout=SECONDS)
    assert [line[2] for line in place.lines("flaky")] == ["0", "1", "2"]
    assert len(others.get(timeout=SECONDS)) == 60


def test_monitors_see_a_task_that_comes_again(place: Place) -> None:
    app = place.program.app
    state = app.events.State()
    seen: dict[str, list[str]] = {}
    listens = threading.Event()

    def note(event: dict[str, Any]) -> None:
        listens.set()
        state.event(event)
        if "uuid" in event:
            seen.setdefault(event["uuid"], []).append(state.tasks[event["uuid"]].state)

    with app.connection() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": note})
        # Without an end: each capture has a queue of its own, and misses what is said between two.
        thread = threading.Thread(target=receiver.capture, kwargs={"limit": None, "timeout": None})
        thread.start()
        try:
            assert listens.wait(SECONDS), "workers say something every two seconds"
            with closed(place) as lot:
                result = place.program.behind_it.delay("seen")
                parked(lot, 1)
                assert result.state == PARKED
                wait_until(lambda: "RETRY" in seen.get(result.id, []))
            result.get(timeout=SECONDS)
            wait_until(lambda: seen[result.id][-1] == "SUCCESS")
        finally:
            receiver.should_stop = True
            thread.join()
    assert list(dict.fromkeys(seen[result.id]))[-1] == "SUCCESS"


def test_a_blocked_service_is_in_nobodys_way(place: Place) -> None:
    program = place.program
    waiting = [program.never_today.delay(number) for number in range(400)]
    done = group(program.call.s(f"beside-{number}") for number in range(120)).apply_async()
    wait_until(lambda: lot_of(program.blocked.store).peek("blocked").waiting == 400)
    assert {result.state for result in waiting} == {PARKED}
    if place.broker_is_redis:
        assert place.unacknowledged() <= 8, "no message waits with a task: none comes twice for it"
    assert len(done.get(timeout=SECONDS)) == 120
    assert not place.lines("never_today")
