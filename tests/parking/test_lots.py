"""Every lot is held to the same laws, whatever store it lies in."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

import pytest

from headgate.core.model import SECOND
from headgate.errors import ConfigurationError
from headgate.parking import KEEP_SECONDS, Arrival, Lot, Parked, lot_of
from headgate.parking.base import RELEASER_US
from headgate.stores.memory import MemoryStore
from headgate.stores.sqlite import SQLiteStore
from headgate.testing import FakeClock
from tests.parking import places
from tests.parking.places import START_US, Clock, Open
from tests.sharing.store import Place
from tests.waiting import wait_until

GO, STALE, BEHIND = Arrival
LEASE_US = 10 * SECOND


@pytest.fixture(params=["memory", "sqlite", "redis", "valkey"])
def open_one(request: pytest.FixtureRequest) -> Iterator[Open]:
    match request.param:
        case "memory":
            with places.memory() as found:
                yield found
        case "sqlite":
            with places.sqlite(request.getfixturevalue("tmp_path") / "store") as found:
                yield found
        case kind:
            server = request.getfixturevalue(f"{kind}_of_all")
            server.flush()
            with places.redis(server.url) as found:
                yield found


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lot(open_one: Open, clock: Clock) -> Lot:
    return open_one(clock)


def park(lot: Lot, *ids: str, key: str = "k") -> list[int]:
    return [lot.park(key, id, 0, b"body of " + id.encode(), (1, 2)) for id in ids]


def take(lot: Lot, most: int = 1, owner: str = "me") -> list[tuple[str, int]]:
    return [(one.id, one.release) for one in lot.take("k", owner, most, LEASE_US).parked]


def test_where_nobody_waits_all_go(lot: Lot) -> None:
    assert lot.enter("k", "a", 0) is GO
    assert lot.enter("k", "a", 7) is GO
    assert lot.keys() == []
    nothing = lot.peek("k", 10)
    assert (nothing.parked, nothing.waiting, nothing.out, nothing.deadlines_us) == ([], 0, [], [])
    assert (nothing.is_releaser, nothing.releaser, nothing.until_us) == (False, "", None)


def test_who_comes_later_goes_behind_until_those_before_have_left(lot: Lot) -> None:
    assert park(lot, "a", "b") == [1, 2]
    assert lot.enter("k", "new", 0) is BEHIND
    assert lot.enter("other", "new", 0) is GO
    assert take(lot, 2) == [("a", 1), ("b", 1)]
    assert lot.enter("k", "new", 0) is BEHIND  # they are out
    assert lot.leave("k", "a", 1)
    assert lot.enter("k", "new", 0) is BEHIND
    assert lot.leave("k", "b", 1)
    assert lot.enter("k", "new", 0) is GO


def test_what_is_let_out_is_what_was_parked(lot: Lot, clock: Clock) -> None:
    body = bytes(range(256)) * 40
    assert lot.park("k", "é\udc80 {}", 0, body, (0, 3, 1 << 40)) == 1
    clock.us += 5
    taken = lot.take("k", "me", 5, LEASE_US)
    assert taken.parked == [Parked("é\udc80 {}", 1, 1, body, (0, 3, 1 << 40), START_US)]
    assert taken.waiting == 0
    assert taken.out == [(0, 3, 1 << 40)]
    assert taken.deadlines_us == [START_US + 5 + LEASE_US]
    assert (taken.is_releaser, taken.releaser) == (True, "me")
    assert taken.until_us == START_US + 5 + RELEASER_US


def test_a_body_may_be_empty_and_costs_none(lot: Lot) -> None:
    lot.park("k", "a", 0, b"", ())
    [one] = lot.take("k", "me", 1, LEASE_US).parked
    assert (one.body, one.costs) == (b"", ())


def test_copies_of_what_waits_are_stale(lot: Lot) -> None:
    park(lot, "a")
    assert lot.enter("k", "a", 0) is STALE
    assert lot.park("k", "a", 0, b"copy", (9,)) == 1
    assert lot.park("k", "a", 0, b"copy", (9,), 40) == 1
    [one] = lot.take("k", "me", 5, LEASE_US).parked
    assert (one.body, one.costs) == (b"body of a", (1, 2))


def test_older_copies_of_what_is_out_or_has_left_are_stale_and_the_same_goes_again(lot: Lot) -> None:
    park(lot, "a")
    take(lot)
    for _ in range(2):  # out, then left
        assert lot.enter("k", "a", 0) is STALE
        assert lot.park("k", "a", 0, b"", ()) == 1
        assert lot.enter("k", "a", 1) is GO
        assert lot.peek("k").waiting == 0
        assert not lot.leave("k", "a", 0)
        assert lot.leave("k", "a", 1)


def test_who_is_parked_again_stands_where_it_stood(lot: Lot) -> None:
    park(lot, "a", "b", "c")
    assert take(lot, 2) == [("a", 1), ("b", 1)]
    assert lot.park("k", "b", 1, b"anew", (5,), 2) == 2
    assert lot.park("k", "a", 1, b"anew", (5,)) == 4  # at the end
    assert [one.id for one in lot.peek("k", 9).parked] == ["b", "c", "a"]
    assert take(lot, 9) == [("b", 2), ("c", 1), ("a", 2)]


def test_it_is_known_since_when_a_task_is_in_the_lot(lot: Lot, clock: Clock) -> None:
    park(lot, "a")
    clock.us += SECOND
    take(lot)
    lot.park("k", "a", 1, b"", (), 1)
    [one] = lot.take("k", "me", 1, LEASE_US).parked
    assert one.since_us == START_US
    lot.leave("k", "a", 2)
    lot.park("k", "a", 2, b"", (), 1)
    assert [one.since_us for one in lot.peek("k", 1).parked] == [clock.us]


def test_the_end_is_behind_every_place_that_was_given(lot: Lot) -> None:
    assert lot.park("k", "a", 3, b"", (), 500) == 500
    assert park(lot, "b") == [501]


def test_equal_places_stand_in_the_order_of_ids(lot: Lot) -> None:
    for id in ("b", "é", "B", "a"):
        lot.park("k", id, 1, b"", (), 7)
    assert [id for id, _ in take(lot, 9)] == ["B", "a", "b", "é"]


def test_what_is_past_its_deadline_waits_again_at_its_place(lot: Lot, clock: Clock) -> None:
    park(lot, "a", "b")
    assert take(lot) == [("a", 1)]
    clock.us += LEASE_US - 1
    assert lot.peek("k", 9).waiting == 1
    assert take(lot, 0) == []
    clock.us += 1
    assert [one.id for one in lot.peek("k", 1).parked] == ["a"]
    assert lot.peek("k").waiting == 2
    assert lot.enter("k", "a", 1) is GO  # nobody has taken it back yet
    assert take(lot, 0) == []
    assert lot.enter("k", "a", 1) is STALE
    assert take(lot) == [("a", 2)]
    assert lot.enter("k", "a", 1) is STALE
    assert not lot.leave("k", "a", 1)
    assert lot.leave("k", "a", 2)


def test_who_has_left_in_time_is_not_let_out_again(lot: Lot, clock: Clock) -> None:
    park(lot, "a")
    take(lot)
    clock.us += LEASE_US
    assert take(lot, 0) == []
    assert lot.leave("k", "a", 1)  # it waits again, but has not gone on
    assert take(lot) == []
    assert lot.keys() == []


def test_one_alone_may_take_until_its_lease_lapses(lot: Lot, clock: Clock) -> None:
    park(lot, "a", "b", "c")
    assert take(lot) == [("a", 1)]
    clock.us += RELEASER_US - 1
    refused = lot.take("k", "other", 5, LEASE_US)
    assert (refused.parked, refused.waiting, refused.out) == ([], 2, [(1, 2)])
    assert (refused.is_releaser, refused.releaser) == (False, "me")
    assert refused.until_us == START_US + RELEASER_US
    assert take(lot) == [("b", 1)]
    clock.us += RELEASER_US - 1
    assert take(lot, owner="other") == []
    assert lot.peek("k", owner="me").is_releaser
    clock.us += 1
    assert lot.peek("k", owner="me").releaser == ""
    assert take(lot, owner="other") == [("c", 1)]
    assert not lot.take("k", "me", 1, LEASE_US).is_releaser


def test_a_look_changes_nothing(lot: Lot, clock: Clock) -> None:
    park(lot, "a", "b")
    first = lot.peek("k", 1)
    assert first == lot.peek("k", 1)
    assert first.parked == [Parked("a", 1, 0, b"", (1, 2), START_US)]
    assert first.waiting == 2


def test_what_left_is_forgotten_in_time(lot: Lot, clock: Clock) -> None:
    park(lot, "a")
    take(lot)
    lot.leave("k", "a", 1)
    clock.us += KEEP_SECONDS * SECOND - 1
    assert lot.enter("k", "a", 0) is STALE
    clock.us += 1
    assert lot.enter("k", "a", 0) is GO
    park(lot, "b")
    assert lot.enter("k", "a", 0) is BEHIND


def test_every_message_of_what_was_dropped_is_stale(lot: Lot, clock: Clock) -> None:
    park(lot, "waits", "out")
    take(lot, 1)
    assert lot.drop("k", "waits")
    assert lot.drop("k", "out")
    assert not lot.drop("k", "out")
    assert not lot.drop("k", "unknown")
    for id in ("waits", "out", "unknown"):
        assert lot.enter("k", id, 99) is STALE
        lot.park("k", id, 99, b"", ())
        assert not lot.leave("k", id, 99)
    assert lot.park("k", "unknown", 0, b"", ()) == 0
    assert lot.keys() == []


def test_a_task_that_was_never_parked_may_leave(lot: Lot) -> None:
    assert lot.leave("k", "a", 0)
    park(lot, "b")
    assert lot.enter("k", "a", 0) is GO


def test_keys_are_those_with_something_in_them(lot: Lot) -> None:
    for key in ("b", "a", "", "{x}*é", "gone"):
        park(lot, "a", key=key)
    lot.drop("gone", "a")
    lot.take("a", "me", 1, LEASE_US)
    assert lot.keys() == ["", "a", "b", "{x}*é"]


def test_a_clock_that_is_set_back_keeps_nobody(lot: Lot, clock: Clock) -> None:
    park(lot, "a")
    clock.us += 100 * SECOND
    assert take(lot) == [("a", 1)]
    clock.us -= 4_000 * SECOND
    taken = lot.take("k", "me", 1, LEASE_US)
    assert taken.deadlines_us == [clock.us + LEASE_US]
    clock.us += LEASE_US
    assert take(lot, owner="other") == [("a", 2)]


def test_nonsense_is_said_to_be_so(lot: Lot) -> None:
    nonsense: list[Callable[[], object]] = [
        lambda: lot.park("k", "a", 0, b"x" * (1 << 20) + b"x", ()),
        lambda: lot.park("k", "a", 0, "text", ()),  # type: ignore[arg-type]  # it is what is tested
        lambda: lot.park("k", "a", 0, b"", (-1,)),
        lambda: lot.park("k", "a", 0, b"", (1.5,)),  # type: ignore[arg-type]  # likewise
        lambda: lot.park("k", "a", 0, b"", (), -1),
        lambda: lot.enter("k", "", 0),
        lambda: lot.enter("k", "a" * 1025, 0),
        lambda: lot.enter("k", "a", -1),
        lambda: lot.enter("k", "a", 1 << 52),
        lambda: lot.take("k", "", 1, LEASE_US),
        lambda: lot.take("k", "me", -1, LEASE_US),
        lambda: lot.take("k", "me", 1, 0),
    ]
    for one in nonsense:
        with pytest.raises(ConfigurationError):
            one()
    assert lot.keys() == []
    assert lot.park("k", "a", 0, b"x" * (1 << 20), ()) == 1
    lot.largest_body = 10
    with pytest.raises(ConfigurationError, match="at most 10"):
        lot.park("k", "b", 0, b"x" * 11, ())


def test_several_see_one_lot_by_the_stores_own_clock(open_one: Open) -> None:
    one, other = open_one(), open_one()
    park(one, "a", "b")
    assert other.enter("k", "c", 0) is BEHIND
    taken = other.take("k", "other", 1, LEASE_US)
    assert [task.id for task in taken.parked] == ["a"]
    assert not one.take("k", "one", 1, LEASE_US).is_releaser
    assert one.keys() == ["k"]
    # Instants are of this machine's clock, to a second where the server's is told by it.
    here = other._store.now().elapsed_us  # type: ignore[attr-defined]  # each has one
    [deadline_us] = taken.deadlines_us
    assert abs(deadline_us - here - LEASE_US) < SECOND


def test_many_at_once(lot: Lot) -> None:
    ids = [f"{number:05}" for number in range(2_100)]
    for id in ids:
        lot.park("k", id, 0, b"", (1,))
    assert [id for id, _ in take(lot, 2_050)] == ids[:2_050]
    assert len(lot.peek("k", 60).parked) == 50
    assert len(lot.peek("k").out) == 2_050


def test_who_listens_is_told(open_one: Open) -> None:
    one, other = open_one(), open_one()
    told = threading.Event()
    elsewhere: list[int] = []
    stops = [one.listen("k", told.set), one.listen("elsewhere", lambda: elsewhere.append(1))]
    if "Redis" in repr(one):
        assert told.wait(10)  # it hears from now on
        told.clear()
    park(other, "a")
    assert told.wait(10)
    other.take("k", "other", 1, LEASE_US)
    told.clear()
    other.leave("k", "a", 1)
    assert told.wait(10)
    told.clear()
    park(one, "b")
    assert told.wait(10)
    for stop in stops:
        stop()
    told.clear()
    park(one, "c")
    assert not told.wait(0.1)
    assert len(elsewhere) <= 1  # when it began to hear


def test_a_listener_that_fails_ends_nothing(open_one: Open, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    lot = open_one()
    told = threading.Event()
    stops = [lot.listen("k", fail), lot.listen("k", told.set)]
    park(lot, "a")
    assert told.wait(10)
    for stop in stops:
        stop()
    assert "a listener failed" in caplog.text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_goes_on_with_the_same_lot(open_one: Open) -> None:
    lot = open_one()
    stop = lot.listen("k", lambda: None)
    park(lot, "a")
    child = os.fork()
    if not child:
        try:
            done = lot.enter("k", "a", 0) is STALE and park(lot, "b") == [2]
            told = threading.Event()
            lot.listen("k", told.set)
            lot.drop("k", "b")
            os._exit(0 if done and told.wait(5) else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    if "Memory" not in repr(lot):
        assert lot.enter("k", "b", 0) is STALE
    assert take(lot) == [("a", 1)]
    stop()


def test_a_store_has_one_lot() -> None:
    store = MemoryStore()
    lot = lot_of(store)
    assert lot_of(store) is lot
    park(lot, "a")
    del lot
    assert lot_of(store).keys() == ["k"]
    with pytest.raises(ConfigurationError, match="to park tasks in"):
        lot_of(Place(FakeClock()).client())


def test_the_poller_of_a_file_ends_with_those_who_listen(tmp_path: os.PathLike[str]) -> None:
    store = SQLiteStore(os.path.join(tmp_path, "store"))  # noqa: PTH118
    lot = lot_of(store)
    stop = lot.listen("k", lambda: None)
    assert [thread for thread in threading.enumerate() if thread.name == "headgate-parking"]
    stop()
    wait_until(lambda: not [one for one in threading.enumerate() if one.name == "headgate-parking"])
    store.close()


def test_it_learns_how_long_tasks_take_to_a_worker(open_one: Open) -> None:
    clock = Clock()
    lot = open_one(clock)
    assert lag_of(lot, clock, 80_000, waited_us=30_000) == 50_000
    assert lag_of(lot, clock, 90_000) == 90_000, "it grows at once"
    assert lag_of(lot, clock, 10_000) == 80_000, "and shrinks by an eighth"
    lot.park("k", "a", 0, b"", ())
    lot.take("k", "me", 1, SECOND)
    lot.park("k", "a", 1, b"", ())
    lot.leave("k", "a", 1)
    assert lot.peek("k").lag_us == 80_000, "one that waits says nothing of it"
    lot.overtake("k")
    assert lot.peek("k").lag_us == SECOND, "as long as the last lease, at least"


def lag_of(lot: Lot, clock: Clock, passes_us: int, *, waited_us: int = 0) -> int:
    """After one more has left, so long after it was let out."""
    id = str(clock.us)
    lot.park("k", id, 0, b"", ())
    lot.take("k", "me", 1, SECOND)
    clock.us += passes_us
    assert lot.leave("k", id, 1, waited_us)
    return lot.peek("k").lag_us


def test_one_resigns_and_another_may_take(open_one: Open) -> None:
    lot = open_one(Clock())
    lot.park("k", "a", 0, b"", ())
    lot.take("k", "me", 0, SECOND)
    lot.resign("k", "you")
    assert not lot.take("k", "you", 1, SECOND).is_releaser
    lot.resign("k", "me")
    assert lot.peek("k").releaser == ""
    assert [parked.id for parked in lot.take("k", "you", 1, SECOND).parked] == ["a"]
