"""The courier's own life: its thread, heartbeats, forks, the end of a process."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from pathlib import Path

import pytest

from headgate import AcquireTimeout, StoreUnavailable
from headgate.core.model import ANSWERED, SECOND
from headgate.core.plan import Plan
from headgate.core.text import parse_limits
from headgate.sharing import courier
from headgate.stores.sqlite import SQLiteStore
from tests.runner.children import Child
from tests.sharing.store import FINE, Fault
from tests.sharing.test_failure import failing, settled
from tests.sharing.test_line import in_world, seeds
from tests.sharing.world import World, courier_of, desk_of, is_clean, is_left_clean

PRELUDE = """
import atexit, gc, signal
from headgate import Limiter
from headgate.sharing import desk
from headgate.stores import sqlite
from headgate.stores.sqlite import SQLiteStore

path, *words = sys.argv[1:]
LIMITS = "concurrency=4", "tokens=1/min:burst=100:charge=usage:start=full"

def limiter():
    return Limiter(*LIMITS, store=SQLiteStore(path), key="k")
"""
LIMITS = "concurrency=4", "tokens=1/min:burst=100:charge=usage:start=full"


def members(path: Path) -> list[str]:
    """Who is there, by what the file says."""
    store = SQLiteStore(path)
    found = store.look("k")
    store.close()
    assert found is not None
    crowd = found[0].state.crowd
    return [] if crowd is None else list(crowd.members)


def used(path: Path) -> tuple[int, ...]:
    store = SQLiteStore(path)
    found = store.used("k", Plan(parse_limits(LIMITS)))
    store.close()
    return found


class TestThread:
    @seeds
    def test_there_is_one_while_there_is_anything_to_do(self, seed: int) -> None:
        def main(world: World) -> None:
            store = world.process()
            limiter = world.limiter("concurrency=1", store=store)
            another = world.limiter("concurrency=1", store=store, key="another")
            assert not world.threading.started
            for _ in range(3):
                permits = [limiter.acquire(), another.acquire()]
                world.pass_by(30)
                for permit in permits:
                    permit.settle()
                world.pass_by(courier.IDLE_SECONDS + 1)
                assert is_clean(limiter)
                assert is_clean(another)
            assert world.threading.started == ["headgate-courier"] * 3

        assert is_left_clean(in_world(seed, main))

    def test_it_sleeps_while_there_is_nothing_to_do(self) -> None:
        def main(world: World) -> None:
            store = world.process()
            limiter = world.limiter("concurrency=2", store=store)
            permit = limiter.acquire()
            world.pass_by(60)
            assert store.asked["trade"] <= 1 + 60 // 5 + 1, "heartbeats, and nothing else"
            permit.settle()
            world.pass_by(60)
            assert store.asked["trade"] <= 1 + 60 // 5 + 1 + 1

        in_world(0, main)

    @seeds
    def test_a_thread_that_would_only_wait_makes_the_round_itself(self, seed: int) -> None:
        def main(world: World) -> None:
            limiter = world.limiter("concurrency=1")
            rounds: list[object] = []
            trade = limiter.store.trade  # type: ignore[attr-defined]  # it is a shared one

            def noted(deals: object) -> object:
                rounds.append(world.current)
                return trade(deals)

            limiter.store.trade = noted  # type: ignore[attr-defined]
            limiter.acquire()
            assert rounds == [world.current]

            async def run() -> None:
                assert limiter.waiting == 0
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(limiter.acquire_async(), 1)

            thread = world.in_loop(run)
            world.wait_until(lambda: thread.done)
            _ = thread.result
            assert thread not in rounds, "never on an event loop"
            for grant in list(desk_of(limiter)._held.values()):
                limiter._settle(grant, ANSWERED)

        in_world(seed, main)

    def test_what_nobody_has_any_more_goes(self) -> None:
        def main(world: World) -> None:
            store = world.process()
            limiter = world.limiter("concurrency=1", store=store)
            permit = limiter.acquire()
            gone = weakref.ref(courier_of(limiter)), weakref.ref(desk_of(limiter))
            del limiter
            gc.collect()
            assert gone[0]() is not None, "a permit is held"
            settled(permit, 1)
            del permit
            world.pass_by(0.5)
            gc.collect()
            assert [each() for each in gone] == [None, None]
            assert world.place.booked == {1: 1}, "but what was to be told has been told"
            limiter = world.limiter("concurrency=1", store=store)
            limiter.acquire().settle()

        assert is_left_clean(in_world(0, main))

    def test_without_threads_a_caller_goes_round_by_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """At the end of the interpreter none can be started."""

        def main(world: World) -> None:
            limiter = world.limiter("concurrency=9", "requests=2/s:burst=1:start=full")

            monkeypatch.setattr(world.threading, "Thread", Unstarted)
            for _ in range(3):
                limiter.acquire().settle()
            assert world.seconds >= 0.9
            with pytest.raises(AcquireTimeout):
                limiter.acquire(max_wait=0.1)

        in_world(0, main)


class Unstarted:
    def __init__(self, **_: object) -> None: ...

    def start(self) -> None:
        raise RuntimeError("can't start new thread")


class TestHeartbeats:
    @seeds
    def test_what_is_held_is_kept_for_as_long_as_it_takes(self, seed: int) -> None:
        def main(world: World) -> None:
            here, there = world.limiter("concurrency=1"), world.limiter("concurrency=1")
            permit = here.acquire()
            waits = world.spawn(there.acquire)
            world.pass_by(100)
            assert not waits.done
            permit.settle()
            world.wait_until(lambda: waits.done)
            waits.result.settle()

        assert is_left_clean(in_world(seed, main))

    def test_who_waits_keeps_its_place(self) -> None:
        def main(world: World) -> None:
            here, there = world.limiter("concurrency=1"), world.limiter("concurrency=1")
            permit = there.acquire()
            waits = world.spawn(here.acquire)
            for _ in range(50):
                world.pass_by(1)
                assert world.place.wait_for("k") == {"client 1": [0, 1, 0]}
            permit.settle()
            world.wait_until(lambda: waits.done)
            waits.result.settle()

        assert is_left_clean(in_world(0, main))

    def test_who_stood_still_for_too_long_says_what_it_holds_when_it_goes_on(self) -> None:
        def main(world: World) -> None:
            here, there = world.limiter("concurrency=2"), world.limiter("concurrency=2")
            permits = [here.acquire(), here.acquire()]
            for thread in world.threads:
                if thread.name == "headgate-courier":
                    thread.stands_until = world.now_us + 40 * SECOND
            waits = world.spawn(there.acquire)
            world.pass_by(20)
            theirs = waits.result  # its lease was over
            world.pass_by(21)
            assert world.place.used("k") == (3,), "all three are there, for all that anybody knows"
            assert there.try_permit() is None
            for tag, permit in enumerate(permits):
                settled(permit, tag)
            theirs.settle()
            world.pass_by(10)
            assert world.place.booked == {0: 1, 1: 1}

        world = in_world(0, main, preempt=0)
        assert is_left_clean(world)
        assert world.place.used("k") == (0,)


class TestEnd:
    """The end of a process, as :meth:`Courier.finish` makes it."""

    @seeds
    def test_all_is_told_and_the_key_is_left(self, seed: int) -> None:
        def main(world: World) -> None:
            limiter = world.limiter("concurrency=9", "tokens=9/s:burst=99:charge=usage:start=full")
            permits = [limiter.acquire(tokens=1) for _ in range(9)]
            for tag, permit in enumerate(permits):
                settled(permit, tag)
            courier_of(limiter).finish()
            assert world.place.booked == dict.fromkeys(range(9), 1)
            assert not world.place.crowd("k").members
            courier_of(limiter).finish()

        in_world(seed, main)

    def test_what_is_held_is_left_to_its_lease(self) -> None:
        def main(world: World) -> None:
            limiter = world.limiter("concurrency=9")
            held, ended = limiter.acquire(), limiter.acquire()
            settled(ended, 1)
            courier_of(limiter).finish()
            assert world.place.booked == {1: 1}
            assert world.place.holds("k") == {"client 1": (1, [1])}
            held.settle()

        in_world(0, main)

    def test_nobody_is_asked_for_any_more(self) -> None:
        def main(world: World) -> None:
            limiter = world.limiter("concurrency=2")
            held = [limiter.acquire(), limiter.acquire()]
            waits = world.spawn(limiter.acquire, "daemon")
            world.pass_by(0.1)
            for thread in world.threads:
                if thread.name == "headgate-courier":
                    thread.stands_until = world.now_us + 10 * SECOND
            for tag, permit in enumerate(held):
                settled(permit, tag)
            courier_of(limiter).finish()
            assert not waits.done
            assert world.place.used("k") == (0,)
            assert not world.place.crowd("k").members
            world.wait_until(lambda: waits.done)  # here the process does not end, and it goes on
            waits.result.settle()

        assert is_left_clean(in_world(0, main, preempt=0))

    @pytest.mark.parametrize("times", [1, 2])
    def test_a_connection_that_is_cut_is_tried_again(self, times: int) -> None:
        def main(world: World) -> None:
            limiter, weather = failing(world, "concurrency=2")
            permit = limiter.acquire()
            faults = iter([Fault(after=StoreUnavailable("cut"))] * times)
            weather.fault = lambda: next(faults, FINE)
            settled(permit, 1)
            courier_of(limiter).finish()
            world.pass_by(1)
            assert world.place.booked == {1: 1}

        in_world(0, main)

    @pytest.mark.parametrize("how", ["down", "hanging", "hanging before"])
    def test_it_does_not_wait_for_a_store_that_has_failed(self, how: str) -> None:
        def main(world: World) -> None:
            limiter, weather = failing(world, "concurrency=2")
            permit = limiter.acquire()
            world.pass_by(1)
            weather.hanging(5) if how.startswith("hanging") else weather.down()
            settled(permit, 1)
            if how == "hanging before":
                world.pass_by(0.1)  # the thread is in the midst of a round
            began = world.seconds
            courier_of(limiter).finish()
            assert world.seconds - began <= (5.01 if how == "hanging" else courier.END_SECONDS + 0.01)
            weather.fine()
            world.pass_by(30)

        in_world(0, main)


SETTLES = """
mine = limiter()
permits = [mine.acquire(tokens=10) for _ in range(3)]
waits = threading.Thread(target=lambda: mine.acquire(tokens=100), daemon=True)
waits.start()
time.sleep(0.05)

def settle_all():
    for permit in permits:
        permit.settle(tokens=1)

if "at exit" in words:
    atexit.register(settle_all)
else:
    settle_all()
say("over", time.monotonic_ns())
if "raises" in words:
    raise SystemExit(3)
"""


@pytest.mark.parametrize("how", ["falls off the end", "raises", "at exit"])
def test_a_process_that_ends_tells_all_and_leaves_within_a_second(tmp_path: Path, how: str) -> None:
    path = tmp_path / "store"
    with Child(PRELUDE + SETTLES, path, how) as child:
        assert child.end() == (3 if how == "raises" else 0), child.heard
        seconds = (time.monotonic_ns() - int(child.said("over")[0])) / 1e9
    assert used(path) == (0, 3)
    assert members(path) == []
    assert seconds < 1.5, "a second, and what the interpreter takes"


LOCKED = """
sqlite.BUSY_SECONDS = 1.0
mine = limiter()
permit = mine.acquire(tokens=10)
other = sqlite.sqlite3.connect(path, isolation_level=None)
other.execute("BEGIN IMMEDIATE")
permit.settle(tokens=1)
say("over")
"""


def test_a_process_ends_though_its_store_does_not_answer(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Child(PRELUDE + LOCKED, path) as child:
        child.wait_for("over")
        assert child.end(seconds=10) == 0, child.heard
    assert used(path)[0] == 1, "it is left to its lease"


FORK = """
mine = limiter()
held = mine.acquire(tokens=5)
stopped = threading.Event()

def hammer():
    while not stopped.is_set():
        with mine.permit(tokens=0):
            pass

def child(number):
    try:
        held.settle(tokens=90)  # the parent's own business
        assert mine.waiting == 0, mine.waiting
        permit = mine.try_permit(tokens=1)
        while permit is None:
            permit = mine.try_permit(tokens=1)
        permit.settle(tokens=0)
        with mine.permit(tokens=0):
            pass
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)
    sys.exit(0)

threads = [threading.Thread(target=hammer) for _ in range(3)]
for thread in threads:
    thread.start()
for number in range(8):
    pid = os.fork()
    if not pid:
        child(number)
    say("child", os.waitpid(pid, 0)[1])
stopped.set()
for thread in threads:
    thread.join()
until = time.monotonic() + 5  # what was settled at last is still on its way
while mine.store.used("k", mine.plan)[0] > 1 and time.monotonic() < until:
    time.sleep(0.01)
say("held", *mine.store.used("k", mine.plan))
held.settle(tokens=5)
"""


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_is_another_client_that_works_and_settles_nothing_of_its_parents(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Child(PRELUDE + FORK, path) as child:
        assert child.end() == 0, child.heard
        assert child.said("child") == ["0"] * 8, child.heard
        assert child.said("held") == ["1 5"]
    assert used(path) == (0, 5)
    assert members(path) == []


LOOP_FORK = """
mine = limiter()
held = [mine.acquire(tokens=0) for _ in range(4)]

async def main():
    tasks = [asyncio.create_task(mine.acquire_async(tokens=0)) for _ in range(3)]
    await asyncio.sleep(0.05)
    pid = os.fork()
    if not pid:
        return [task.get_coro() for task in tasks]
    say("child", os.waitpid(pid, 0)[1])
    for permit in held:
        permit.settle()
    for task in tasks:
        (await task).settle()

def child(lost):
    try:
        assert mine.waiting == 0, mine.waiting
        for coroutine in lost:
            coroutine.close()
        del lost, coroutine
        gc.collect()
        time.sleep(0.05)
        assert mine.waiting == 0, mine.waiting
        assert mine.try_permit() is None
        assert mine.used()["concurrency"] == 4
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)
    sys.exit(0)

loop = asyncio.new_event_loop()
lost = loop.run_until_complete(main())
if lost:
    child(lost)
"""


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_those_who_wait_in_a_parents_loop_do_not_wait_in_a_fork(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Child(PRELUDE + LOOP_FORK, path) as child:
        assert child.end() == 0, child.heard
        assert child.said("child") == ["0"], child.heard
    assert used(path) == (0, 0)
    assert members(path) == []


CHILDREN = """
import multiprocessing

def work(path, tokens):
    mine = limiter() if tokens % 2 else parents
    for _ in range(3):
        mine.acquire(tokens=10).settle(tokens=tokens)

context = multiprocessing.get_context("fork")
parents = limiter()
parents.acquire(tokens=0).settle()
for tokens in (1, 2):
    process = context.Process(target=work, args=(path, tokens))
    process.start()
    process.join()
    say("code", process.exitcode)
say("used", *parents.store.used("k", parents.plan))
say("members", *parents.store.look("k")[0].state.crowd.members)
say("me", parents.store.client)
"""


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_children_of_multiprocessing_tell_all_and_leave_as_well(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Child(PRELUDE + CHILDREN, path) as child:
        assert child.end() == 0, child.heard
        assert child.said("code") == ["0", "0"], child.heard
        assert child.said("used") == ["0 9"]
        assert child.said("members") == child.said("me")


INTERRUPTED = """
mine = limiter()
held = [mine.acquire(tokens=0) for _ in range(4)]
caught = 0
while caught < 10:
    try:
        say("waits")
        mine.acquire(tokens=0)
    except KeyboardInterrupt:
        caught += 1
        say("caught", mine.waiting)
for permit in held:
    permit.settle()
with mine.permit(tokens=0):
    say("goes on")
"""


def test_an_interrupt_in_a_blocked_thread_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Child(PRELUDE + INTERRUPTED, path) as child:
        for count in range(1, 11):
            child.wait_for("waits", count)
            child.wait_until_blocked()
            child.interrupt()
            child.wait_for("caught", count)
        assert child.end() == 0, child.heard
        assert child.said("caught") == ["0"] * 10
        assert child.said("goes")
    assert used(path) == (0, 0)
    assert members(path) == []
