"""The store in a file, among processes: kills, forks, full disks, other starts of the machine.

What it has in common with other stores is in ``test_conformance.py``.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import signal
import sqlite3
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path

import pytest

from headgate import ConfigurationError, Limiter
from headgate.core.model import SECOND, Granted, Now, Wait
from headgate.core.together import Traded
from headgate.errors import HeadgateError, StoreUnavailable
from headgate.runner.checkpoint import Checkpoint
from headgate.sharing import desk
from headgate.stores import sqlite
from headgate.stores.base import Deal, open_store
from headgate.stores.memory import process_clock
from headgate.stores.sqlite import SQLiteStore, open_url
from headgate.testing import FakeClock
from tests.runner.children import Child
from tests.stores import conformance
from tests.stores.conformance import Open, ask, granted, line, plan_of, reports
from tests.waiting import InThread, wait_until

PRELUDE = """
import random, signal, traceback
from contextlib import closing
from headgate.core.model import ANSWERED, Granted, Report
from headgate.core.plan import Plan
from headgate.core.text import parse_limits
from headgate.core.together import Line
from headgate.stores import sqlite
from headgate.stores.sqlite import SQLiteStore

path, *words = sys.argv[1:]

def plan_of(*limits):
    return Plan(parse_limits(limits))

def ask(store, plan, count=1):
    [answers] = store.acquire_for("k", plan, [Line(1, count, [plan.costs({})] * count)])
    return [answer for answer in answers if type(answer) is Granted]

def settle(store, plan, *grants):
    store.settle_for("k", plan, [Report(grant, ANSWERED) for grant in grants])
"""


def _nothing() -> None:
    pass


def attendants() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "headgate-sqlite"]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    wait_until(lambda: not attendants())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def opened() -> Iterator[Callable[..., SQLiteStore]]:
    """Opens stores that are closed after the test."""
    with ExitStack() as stack:

        def open_one(path: Path, clock: Callable[[], Now] = process_clock) -> SQLiteStore:
            return stack.enter_context(closing(SQLiteStore(path, clock=clock)))

        yield open_one


Opened = Callable[..., SQLiteStore]


def is_whole(path: Path) -> bool:
    with closing(sqlite3.connect(path, timeout=10)) as looking:
        return bool(looking.execute("PRAGMA integrity_check").fetchall() == [("ok",)])


def later(seconds: float) -> Callable[[], Now]:
    """The machine's clock, so much later."""

    def clock() -> Now:
        now = process_clock()
        return Now(now.elapsed_us + round(seconds * SECOND), now.wall_us + round(seconds * SECOND))

    return clock


# URLs


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite://{here}/a.db", "{here}/a.db"),
        ("sqlite:///{here}/a.db", "{here}/a.db"),
        ("sqlite:{here}/a.db", "{here}/a.db"),
        ("sqlite:///a.db", "{here}/a.db"),
        ("sqlite:a.db", "{here}/a.db"),
        ("sqlite:///./sub/a.db", "{here}/sub/a.db"),
        ("sqlite:///../{name}/a.db", "{here}/a.db"),
        ("sqlite:///a%20b%3F.db", "{here}/a b?.db"),
    ],
)
def test_is_opened_by_its_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, file: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    store = open_store(url.format(here=tmp_path, name=tmp_path.name))
    assert isinstance(store, SQLiteStore)
    assert str(store.path) == file.format(here=tmp_path)
    assert store.path.is_file()
    store.close()


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite://host/a.db",
        "sqlite:///a.db?mode=ro",
    ],
)
def test_urls_without_a_file_are_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="expected the URL of a file"):
        open_store(url)


def test_whoever_names_the_same_file_in_a_process_gets_the_same_store(path: Path) -> None:
    store = open_url(f"sqlite://{path}")
    assert open_url(f"sqlite://{path.parent}/../{path.parent.name}/{path.name}") is store
    assert open_url(f"sqlite://{path}2") is not store
    first = store.client
    del store
    gc.collect()
    assert open_url(f"sqlite://{path}").client != first


def test_a_limiter_keeps_its_budget_there(path: Path) -> None:
    for _ in range(2):
        limiter = Limiter("requests=2/day:kind=sliding:start=full", store=f"sqlite://{path}")
        limiter.acquire().settle()
        del limiter
        gc.collect()
    assert Limiter("requests=2/day:kind=sliding:start=full", store=f"sqlite://{path}").try_permit() is None


# Files that are none


FOREIGN = {
    "a line": b"hello\n",
    "a page of text": b"x" * 5_000,
    "a head without a body": b"SQLite format 3\x00" + b"\xff" * 5_000,
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_file_of_something_else_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=str(path)):
        SQLiteStore(path)
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_another_database_is_refused_and_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE mine (x)")
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="some other SQLite database"):
        SQLiteStore(path)
    assert path.read_bytes() == before


def test_a_checkpoint_is_refused(path: Path) -> None:
    Checkpoint(path, function="f").close()
    with pytest.raises(ConfigurationError, match="some other SQLite database"):
        SQLiteStore(path)


@pytest.mark.parametrize("version", [sqlite.VERSION - 1, sqlite.VERSION + 1])
def test_another_format_is_refused_and_left_alone(path: Path, version: int) -> None:
    SQLiteStore(path).close()
    with closing(sqlite3.connect(path)) as other:
        other.execute(f"PRAGMA user_version={version}")
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match=f"format {version}; .* knows format {sqlite.VERSION}"):
        SQLiteStore(path)
    assert path.read_bytes() == before


def test_a_missing_directory_and_a_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="a directory that exists"):
        SQLiteStore(tmp_path / "none" / "store")
    with pytest.raises(ConfigurationError, match="the path of a file"):
        SQLiteStore(tmp_path)


def test_an_empty_file_becomes_one(path: Path, opened: Opened) -> None:
    path.touch()
    granted(opened(path), plan_of("concurrency=1"))


@pytest.mark.parametrize(
    "change",
    [
        "state = x'00'",
        "state = x'5b02000000'",
        "limits = '['",
        """limits = '[{"meter": "x", "colour": 1}]'""",
    ],
)
def test_a_row_that_cannot_be_read_is_told(path: Path, opened: Opened, change: str) -> None:
    plan = plan_of("concurrency=1")
    granted(opened(path), plan)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(f"UPDATE keys SET version = version + 1, {change}")
    store = opened(path)
    with pytest.raises(ConfigurationError, match=f"{path}: what it holds of the key 'k'"):
        ask(store, plan)
    granted(store, plan, key="another")


# Processes


RACE = """
store, plan = SQLiteStore(path), plan_of(*words)
chance, held, calls = random.Random(store.client), [], []
say("ready")
gate.wait()
end = time.monotonic() + 1.0
while time.monotonic() < end:
    grants = ask(store, plan, 3)
    held += grants
    ended = [held.pop(chance.randrange(len(held))) for _ in range(chance.randrange(len(held) + 1))]
    over = store.now().elapsed_us
    calls += [(grant.at_us, over) for grant in ended]
    if ended:
        settle(store, plan, *ended)
    elif not grants:
        time.sleep(0.001)
over = store.now().elapsed_us
say("calls", json.dumps(calls + [(grant.at_us, over) for grant in held]))
"""


@pytest.mark.parametrize("count", [2, 8])
def test_processes_together_never_exceed_a_limit(path: Path, count: int) -> None:
    limits = "requests=300/s:kind=sliding:start=full", "concurrency=5"
    with ExitStack() as stack:
        children = [stack.enter_context(Child(PRELUDE + RACE, path, *limits)) for _ in range(count)]
        for child in children:
            child.wait_for("ready")
        for child in children:
            child.tell("open")
        for child in children:
            assert child.end() == 0, child.heard[-20:]
        calls = [call for child in children for text in child.said("calls") for call in json.loads(text)]
    assert len(calls) >= 250, "far fewer than there is room for"
    for instants in (sorted(begin for begin, _ in calls), sorted(end for _, end in calls)):
        assert all(last - first >= SECOND for first, last in zip(instants, instants[300:], strict=False))
    at_once, most = 0, 0
    for _, change in sorted([(begin, 1) for begin, _ in calls] + [(end, -1) for _, end in calls]):
        at_once += change
        most = max(most, at_once)
    assert most <= 5
    assert is_whole(path)


KILLS = """
kills, seed = map(int, words[:2])
sqlite.LEASE_US = 300_000
plan = plan_of(*words[2:])
chance = random.Random(seed)

def work(path, number):
    chance, store, held = random.Random(number), SQLiteStore(path), []
    while True:
        held += ask(store, plan, chance.choice((1, 1, 20)))
        if held and chance.random() < 0.7:
            settle(store, plan, held.pop())

def born(path, number):
    pid = os.fork()
    if not pid:
        try:
            work(path, number)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    return pid

def kill(pid):
    os.kill(pid, signal.SIGKILL)
    if os.waitpid(pid, 0)[1] != signal.SIGKILL:
        say("it had ended before")

workers = [born(path, -1), born(path, -2)]
for number in range(kills):
    time.sleep(chance.uniform(0, 0.015))
    kill(workers.pop(chance.randrange(2)))
    if number % 8 == 0:
        with closing(sqlite.sqlite3.connect(path, timeout=10)) as looking:
            say(*looking.execute("PRAGMA integrity_check").fetchone())
    workers.append(born(path, number))
for pid in workers:
    kill(pid)

for number in range(kills // 2):  # some while the file is made
    new = f"{path}-{number}"
    pid = born(new, number)
    time.sleep(chance.uniform(0, 0.006))
    kill(pid)
    with closing(SQLiteStore(new)) as store:
        store.beat("k", plan)
    with closing(sqlite.sqlite3.connect(new)) as looking:
        say(*looking.execute("PRAGMA integrity_check").fetchone())
say("done")
"""


@pytest.mark.parametrize("seed", range(2))
def test_kills_at_any_moment_harm_nothing_and_slots_come_back(path: Path, opened: Opened, seed: int) -> None:
    kills = 120
    limits = "concurrency=50", "requests=100000/s:kind=sliding:start=full", "tokens=9/s:burst=9:charge=usage"
    with Child(PRELUDE + KILLS, path, kills, seed, *limits) as child:
        assert child.end(seconds=60) == 0, child.heard[-20:]
        assert child.said("done"), child.heard[-20:]
        assert len(child.said("ok")) == len(child.heard) - 1 == kills // 8 + kills // 2, child.heard[-20:]
    granted(opened(path, later(1)), plan_of(*limits), 50)


HOLD = """
from headgate import Limiter
from headgate.sharing import desk
lease = float(words[1])
sqlite.LEASE_US, desk.BEAT_SECONDS = round(lease * 1e6), lease / 3
permit = Limiter(words[0], key="k", store=SQLiteStore(path)).acquire()
say("held", permit)
gate.wait()
"""


def test_a_process_that_works_keeps_its_slots_and_one_that_was_killed_does_not(
    path: Path, opened: Opened
) -> None:
    plan = plan_of("concurrency=1")
    store = opened(path)
    lease = 0.5
    with Child(PRELUDE + HOLD, path, "concurrency=1", lease) as child:
        child.wait_for("held")
        asked = 0
        end = time.monotonic() + 2.5 * lease
        while time.monotonic() < end:
            [answer] = ask(store, plan)
            assert type(answer) is Wait
            asked += 1
        assert asked > 20
        child.kill()
    wait_until(lambda: type(ask(store, plan)[0]) is Granted)


ONE_CALL = """
store, plan = SQLiteStore(path), plan_of("concurrency=2")
settle(store, plan, *ask(store, plan))
if words:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_who_ended_in_order_is_in_nobodys_way_and_who_was_killed_for_its_lease(
    path: Path, opened: Opened
) -> None:
    store, changed = opened(path), plan_of("concurrency=7")
    with Child(PRELUDE + ONE_CALL, path) as child:
        assert child.end() == 0, child.heard
    granted(store, changed, 7)
    store.leave("k", changed)
    with Child(PRELUDE + ONE_CALL, path, "killed") as child:
        assert child.end() == -signal.SIGKILL, child.heard
    with pytest.raises(ConfigurationError, match=r"'k'.*\"amount\":2.*\"amount\":7.*it is free in 1[345] s"):
        ask(store, changed)
    granted(opened(path, later(15)), changed)


WAKE = """
store, plan, held = SQLiteStore(path), plan_of("concurrency=1"), []

def take():
    while not held:
        held.extend(ask(store, plan))
        time.sleep(0.001)
    say("held")

def give():
    at = time.monotonic_ns()
    settle(store, plan, held.pop())
    say("given", at)

ORDERS.update(take=take, give=give)
say("ready")
gate.wait()
"""


def _note(instants: list[int]) -> None:
    instants.append(time.monotonic_ns())


def test_whoever_waits_in_another_process_is_woken_in_a_moment(path: Path, opened: Opened) -> None:
    store, plan = opened(path), plan_of("concurrency=1")
    pauses: list[float] = []
    with Child(PRELUDE + WAKE, path) as child:
        child.wait_for("ready")
        for count in range(1, 16):
            child.tell("take")
            child.wait_for("held", count)
            [answer] = ask(store, plan)
            assert type(answer) is Wait
            wakes: list[int] = []
            stop = store.listen("k", partial(_note, wakes))
            child.tell("give")
            child.wait_for("given", count)
            wait_until(partial(list, wakes))
            stop()
            pauses.append((wakes[0] - int(child.said("given")[-1])) / 1e9)
            store.settle_for("k", plan, reports(*granted(store, plan)))
    assert sorted(pauses)[10] <= 0.03, pauses


def test_a_hint_that_has_been_followed_is_not_given_again(path: Path, opened: Opened) -> None:
    holder, waiter, plan = opened(path), opened(path), plan_of("concurrency=1")
    grants = {key: granted(holder, plan, key=key) for key in ("old", "new")}
    for key in grants:
        ask(waiter, plan, key=key)
    holder.settle_for("old", plan, reports(*grants["old"]))
    granted(waiter, plan, key="old")
    heard: list[str] = []
    stops = [waiter.listen(key, partial(heard.append, key)) for key in grants]
    holder.settle_for("new", plan, reports(*grants["new"]))
    wait_until(partial(list, heard))
    assert heard == ["new"]
    for stop in stops:
        stop()


@pytest.mark.parametrize("alone", [0, 1_000], ids=["in one statement", "in a transaction"])
def test_a_hint_that_was_not_followed_is_given_again(
    path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch, alone: int
) -> None:
    monkeypatch.setattr(sqlite, "ALONE", alone)
    clock, plan = FakeClock(), plan_of("concurrency=2")
    holder, waiter = opened(path, clock), opened(path, clock)
    grants = granted(holder, plan, 2)
    ask(waiter, plan)
    heard: list[int] = []
    stop = waiter.listen("k", partial(_note, heard))
    for count, grant in enumerate(grants, 1):
        assert holder.used("k", plan) == (3 - count,)
        holder.settle_for("k", plan, reports(grant))
        wait_until(lambda count=count: len(heard) >= count)  # type: ignore[misc]  # it is a bool
    stop()


# Threads


def test_there_is_no_thread_of_its_own_whatever_is_held_until_somebody_listens(
    path: Path, opened: Opened
) -> None:
    store, plan = opened(path), plan_of("concurrency=1")
    store.acquire("plain", plan, [(1,)])
    store.used("k", plan)
    store.beat("k", plan)
    [grant] = granted(store, plan)
    ask(store, plan)
    assert not attendants()
    stop = store.listen("k", _nothing)
    assert len(attendants()) == 1
    store.settle_for("k", plan, reports(grant))
    store.acquire_for("k", plan, [line(plan, 0)])  # it waits no longer, but listens
    assert len(attendants()) == 1
    stop()
    wait_until(lambda: not attendants())
    store.listen("k", _nothing)()
    wait_until(lambda: not attendants())


def test_a_limiter_listens_while_it_waits_and_not_for_long_after_that(path: Path) -> None:
    limiter = Limiter("concurrency=1", key="k", store=SQLiteStore(path))
    held = limiter.acquire()
    waits = InThread(limiter.acquire)
    wait_until(lambda: limiter.waiting == 1 and attendants())
    held.settle()
    waits.result().settle()
    wait_until(lambda: not attendants())


def test_who_listens_has_a_thread_for_as_long(path: Path, opened: Opened) -> None:
    store = opened(path)
    stops = [store.listen("k", _nothing), store.listen("other", _nothing)]
    assert len(attendants()) == 1
    for stop in stops:
        stop()
    wait_until(lambda: not attendants())


def test_a_heartbeat_goes_on_while_anything_is_held_and_no_longer(
    path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "LEASE_US", 300_000)
    monkeypatch.setattr(desk, "BEAT_SECONDS", 0.1)
    slow, other, plan = opened(path), opened(path), plan_of("concurrency=1")
    trades: list[int] = []
    trade = slow.trade

    def noted(deals: Sequence[Deal]) -> list[Traded | HeadgateError]:
        _note(trades)
        return trade(deals)

    monkeypatch.setattr(slow, "trade", noted)
    permit = Limiter("concurrency=1", key="k", store=slow).acquire()
    wait_until(lambda: len(trades) >= 8)  # over two leases
    [answer] = ask(other, plan)
    assert type(answer) is Wait
    permit.settle()
    wait_until(lambda: other.used("k", plan) == (0,))
    told = len(trades)
    granted(other, plan)
    time.sleep(0.25)  # nothing else can show that nothing is said
    assert len(trades) == told


def test_a_store_that_nobody_has_any_more_goes_with_its_thread(path: Path) -> None:
    store, plan = SQLiteStore(path), plan_of("concurrency=1")
    granted(store, plan)
    store.listen("k", _nothing)
    assert attendants()
    gone = weakref.ref(store)
    del store
    gc.collect()
    wait_until(lambda: gone() is None and not attendants())


def test_a_listener_that_fails_is_told_and_is_in_nobodys_way(
    path: Path, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    holder, waiter, plan = opened(path), opened(path), plan_of("concurrency=1")
    granted(holder, plan)
    ask(waiter, plan)

    def fail() -> None:
        raise OSError("no such loop")

    woken = threading.Event()
    stops = [waiter.listen("k", fail), waiter.listen("k", woken.set)]
    with caplog.at_level(logging.WARNING, "headgate"):
        holder.leave("k", plan)
        assert woken.wait(10)
    assert "a listener failed" in caplog.text
    for stop in stops:
        stop()


def test_a_closed_store_is_another_client_when_it_is_used_again(path: Path, opened: Opened) -> None:
    store, plan = opened(path), plan_of("concurrency=2")
    granted(store, plan)
    first = store.client
    store.close()
    store.close()
    granted(store, plan)
    assert store.client != first
    assert store.used("k", plan) == (2,), "what was held is left to its lease"


def test_many_keys_take_turns_in_memory(path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "MOST_STATES", 2)
    monkeypatch.setattr(sqlite, "MOST_SEATS", 3)
    monkeypatch.setattr(sqlite, "LEASE_US", 0)
    store, plan = opened(path, FakeClock()), plan_of("tokens=5/s:burst=5:start=full")
    for _ in range(2):
        for number in range(9):
            store.settle_for(str(number), plan, reports(*granted(store, plan, key=str(number), tokens=1)))
    assert [store.used(str(number), plan) for number in range(9)] == [(2,)] * 9
    assert len(store._session._kept) == 2
    assert len(store._seats) <= 3


@pytest.mark.parametrize(
    "law",
    [
        conformance.answers_as_the_core_does,
        conformance.clients_see_what_each_other_did,
        conformance.clients_in_turn_are_answered_as_the_core_does,
    ],
    ids=conformance.name_of,
)
def test_who_believes_to_be_alone_in_vain_answers_the_same(
    path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch, law: Callable[[Open], None]
) -> None:
    monkeypatch.setattr(sqlite, "ALONE", 0)
    monkeypatch.setattr(sqlite, "FEW", 100)

    def open_one(clock: Callable[[], Now] | None = None) -> SQLiteStore:
        return opened(path, clock or process_clock)

    law(open_one)


# Forks


FORK = """
store, plan = SQLiteStore(path), plan_of("concurrency=9")
stopped = threading.Event()

def hammer():
    while not stopped.is_set():
        settle(store, plan, *ask(store, plan, 2))

def child(number, name, ending):
    try:
        assert store.client != name, "the name of the parent"
        grants = ask(store, plan, 2)
        assert len(grants) == 2, "slots are taken"
        settle(store, plan, *grants)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    if ending:
        sys.exit(0)
    os._exit(0)

[mine] = ask(store, plan)
name = store.client
hammering = threading.Thread(target=hammer)
hammering.start()
for number in range(10):
    pid = os.fork()
    if not pid:
        child(number, name, ending=number % 2)
    say("child", os.waitpid(pid, 0)[1])
stopped.set()
hammering.join()
say("same", store.client == name)
settle(store, plan, mine)
say("used", *store.used("k", plan))
"""


def test_a_fork_is_another_client_and_takes_nothing_of_the_parents(path: Path) -> None:
    with Child(PRELUDE + FORK, path) as child:
        assert child.end() == 0, child.heard
        assert child.said("child") == ["0"] * 10, child.heard
        assert child.said("same") == ["True"]
        assert child.said("used") == ["0"]
    assert is_whole(path)


OUTLIVE = """
import ctypes

def fork_by_itself():
    # As a server in C does that embeds Python: nobody is told before.
    pid = ctypes.PyDLL(None).fork()
    if not pid:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    return pid

fork = fork_by_itself if words else os.fork
store, plan = SQLiteStore(path), plan_of("concurrency=9")
ask(store, plan)
there, back = os.pipe(), os.pipe()
pid = fork()
if not pid:
    ask(store, plan)
    os.write(there[1], b"x")
    os.read(back[0], 1)  # meanwhile the parent has closed the file, as its last user for all it knows
    ask(store, plan)
    os._exit(0)
os.read(there[0], 1)
store.close()
os.write(back[1], b"x")
say("child", os.waitpid(pid, 0)[1])
say("used", *store.used("k", plan))
"""


@pytest.mark.parametrize("words", [[], ["by itself"]], ids=["told", "untold"])
def test_what_a_fork_writes_is_there_though_the_parent_has_closed_the_file(
    path: Path, words: list[str]
) -> None:
    with Child(PRELUDE + OUTLIVE, path, *words) as child:
        assert child.end() == 0, child.heard
        assert child.said("child") == ["0"]
        assert child.said("used") == ["3"]
    assert is_whole(path)


# Disks


def test_a_full_disk_is_told_nothing_is_booked_and_it_goes_on_when_there_is_room(
    path: Path, opened: Opened
) -> None:
    store, plan = opened(path), plan_of("requests=9/s:kind=sliding:start=full")
    [answer] = store.acquire("k", plan, [(1,)])
    assert type(answer) is Granted
    assert store._session._db is not None
    [pages] = store._session._db.execute("PRAGMA page_count").fetchone()
    store._session._db.execute(f"PRAGMA max_page_count={pages + 1}")  # of this connection only
    keys = [f"key {number}" for number in range(20)]

    def fill() -> None:
        for key in keys:
            store.acquire(key, plan, [(1,)])

    with pytest.raises(StoreUnavailable, match=f"no room for {path}") as told:
        fill()
    assert isinstance(told.value.__cause__, sqlite3.Error)
    answers = [store.used(key, plan) for key in keys]
    assert (0,) in answers
    store.settle("k", plan, reports(answer))
    assert store.used("k", plan) == (1,)


FULL = """
import resource
store, plan = SQLiteStore(path), plan_of("requests=9/s:burst=9:start=full", "concurrency=9")
one, two = ask(store, plan, 2)
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
for verb in (lambda: settle(store, plan, one), lambda: ask(store, plan), lambda: settle(store, plan, one)):
    try:
        verb()
        say("went")
    except sqlite.StoreUnavailable as error:
        say("unavailable", path in str(error), type(error.__cause__).__name__)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
say("used", *store.used("k", plan))
settle(store, plan, one)
settle(store, plan, two)
say("used", *store.used("k", plan))
"""


def test_a_disk_that_takes_nothing_is_told_and_it_goes_on_later(path: Path) -> None:
    with Child(PRELUDE + FULL, path) as child:
        assert child.end() == 0, child.heard
        assert child.said("unavailable") == ["True OperationalError"] * 3, child.heard
        assert [used.split()[1] for used in child.said("used")] == ["2", "0"]
    assert is_whole(path)


READ_ONLY = """
SQLiteStore(path).close()  # so that nothing has to be imported by who may not
os.chmod(path, 0o444)
os.chmod(os.path.dirname(path), 0o555)
if not os.geteuid():
    os.seteuid(65534)
try:
    SQLiteStore(path).used("k", plan_of("concurrency=1"))
except sqlite.ConfigurationError as error:
    say("refused", error)
"""


def test_a_file_that_may_not_be_written_is_told() -> None:
    directory = tempfile.mkdtemp()  # where every user may look
    try:
        path = Path(directory, "store")
        with Child(PRELUDE + READ_ONLY, path) as child:
            assert child.end() == 0, child.heard
            [refusal] = child.said("refused")
        assert f"may be written; {path}" in refusal
    finally:
        Path(directory).chmod(0o755)
        shutil.rmtree(directory)


def test_a_file_that_others_keep_locked_is_told_in_time(
    path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.05)
    store, plan = opened(path), plan_of("concurrency=1")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match=f"others have kept {path} locked"):
            ask(store, plan)
        other.execute("ROLLBACK")
        granted(store, plan)


def test_a_lock_of_others_is_waited_for(path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    store, plan, tried = opened(path), plan_of("concurrency=1"), threading.Event()
    pauses = sqlite._pauses

    def told() -> Iterator[float]:
        tried.set()
        return pauses()

    monkeypatch.setattr(sqlite, "_pauses", told)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        asking = InThread(lambda: granted(store, plan))
        assert tried.wait(10)
        assert not asking.done
        other.execute("ROLLBACK")
        asking.result()


@pytest.mark.parametrize("alone", [0, 1_000], ids=["in one statement", "in a transaction"])
def test_a_step_that_fails_changes_nothing(
    path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch, alone: int
) -> None:
    monkeypatch.setattr(sqlite, "ALONE", alone)
    store, plan = opened(path, FakeClock()), plan_of("tokens=9/s:burst=9:start=full", "concurrency=3")
    granted(store, plan, tokens=2)
    with pytest.raises(IndexError):
        store.acquire("k", plan, [(1, 1), (1,)])
    assert store.used("k", plan) == (2, 1)
    granted(store, plan, 2, tokens=1)


def test_a_file_that_is_removed_in_use_is_made_anew_and_shared_again(path: Path, opened: Opened) -> None:
    one, other, plan = opened(path), opened(path), plan_of("concurrency=3")
    granted(one, plan, 3)
    for name in path.parent.iterdir():
        name.unlink()
    wait_until(lambda: one.used("k", plan) == (0,))
    wait_until(lambda: other.used("k", plan) == (0,))
    granted(one, plan)
    granted(other, plan)
    one.close()
    granted(other, plan)
    assert opened(path).used("k", plan) == (3,)
    assert is_whole(path)


def test_a_file_that_was_removed_is_not_made_anew_at_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "CHECK_SECONDS", 0)
    store, plan = SQLiteStore(path), plan_of("concurrency=3")
    store.settle_for("k", plan, reports(*granted(store, plan)))
    for name in path.parent.iterdir():
        name.unlink()
    store.close()
    assert not list(path.parent.iterdir())


# Clocks


class TwoClocks:
    """The elapsed clock and the wall's, each set by hand, in seconds."""

    def __init__(self, elapsed: float, wall: float = 1_800_000_000) -> None:
        self.elapsed = elapsed
        self.wall = wall

    def __call__(self) -> Now:
        return Now(round(self.elapsed * SECOND), round(self.wall * SECOND))


STARTS = [("first", "second"), ("", "")]
"""Of the machine; where there is no name for them, the elapsed clock tells that it has begun anew."""


@pytest.mark.parametrize("starts", STARTS, ids=["named", "nameless"])
def test_after_another_start_of_the_machine_time_goes_on_by_the_wall_and_nobody_is_there(
    path: Path, monkeypatch: pytest.MonkeyPatch, opened: Opened, starts: tuple[str, str]
) -> None:
    limits = "concurrency=3", "requests=9/min:kind=sliding:start=full"
    plan, changed = plan_of(*limits), plan_of(*limits, "tokens=9/s:burst=9:start=full")
    monkeypatch.setattr(sqlite, "boot_id", lambda: starts[0])
    granted(opened(path, TwoClocks(50_000)), plan, 3)
    monkeypatch.setattr(sqlite, "boot_id", lambda: starts[1])
    clock = TwoClocks(7, 1_800_000_005)
    store = opened(path, clock)
    assert store.used("k", plan) == (0, 3)
    grants = granted(store, changed, 3)
    store.settle_for("k", changed, reports(*grants))
    assert store.used("k", changed) == (0, 6, 0)
    clock.elapsed, clock.wall = 65, 1_800_000_063  # a minute and a bit after the first three
    assert store.used("k", changed) == (0, 3, 0)


def test_a_wall_clock_that_went_back_over_another_start_frees_nothing_early(
    path: Path, monkeypatch: pytest.MonkeyPatch, opened: Opened
) -> None:
    plan = plan_of("requests=9/min:kind=sliding:start=full")
    granted(opened(path, TwoClocks(50_000)), plan, 9)
    monkeypatch.setattr(sqlite, "boot_id", lambda: "another")
    clock = TwoClocks(7, 1_000_000_000)
    store = opened(path, clock)
    [answer] = ask(store, plan)
    assert type(answer) is Wait
    clock.elapsed, clock.wall = 66, 1_000_000_059
    assert type(ask(store, plan)[0]) is Wait
    clock.elapsed, clock.wall = 69, 1_000_000_062
    granted(store, plan)


@pytest.mark.parametrize("seconds", [-90_000.0, -30.0, 30.0, 90_000.0])
def test_a_wall_clock_that_is_set_moves_nothing(
    path: Path, opened: Opened, fake_clock: FakeClock, seconds: float
) -> None:
    one, other = opened(path, fake_clock), opened(path, fake_clock)
    plan = plan_of("requests=9/min:kind=sliding:start=full", "concurrency=20")
    granted(one, plan, 9)
    fake_clock.advance(5)
    assert other.used("k", plan) == (9, 9)
    fake_clock.jump_wall(seconds)
    assert type(ask(other, plan)[0]) is Wait
    assert other.used("k", plan) == (9, 9)
    fake_clock.advance(57)
    granted(other, plan, 9)


def test_processes_go_by_one_clock(path: Path, opened: Opened) -> None:
    plan, store = plan_of("requests=1/min:kind=sliding:start=full"), opened(path)
    before = store.now().elapsed_us
    script = "[grant] = ask(SQLiteStore(path), plan_of(*words))\nsay('at', grant.at_us)\n"
    with Child(PRELUDE + script, path, "requests=1/min:kind=sliding:start=full") as child:
        assert child.end() == 0, child.heard
        [at] = map(int, child.said("at"))
    assert before < at < store.now().elapsed_us
    [answer] = ask(store, plan)
    assert type(answer) is Wait


def test_the_boots_name_is_the_same_twice() -> None:
    assert sqlite.boot_id() == sqlite.boot_id()
    with suppress(FileNotFoundError):  # only Linux has one
        assert sqlite.boot_id() in Path("/proc/sys/kernel/random/boot_id").read_text()
    assert os.linesep not in sqlite.boot_id()
