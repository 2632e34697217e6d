"""What becomes of callers and settlements while the store fails in every way that it can."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from headgate import AcquireTimeout, ConfigurationError, Limiter, Permit, StoreUnavailable
from headgate.core.model import SECOND, Now, Wait
from headgate.core.plan import Plan
from headgate.core.text import parse_limit, parse_limits
from headgate.events import Event, StoreBack, StoreFailed
from headgate.sharing import courier, desk
from headgate.sharing.failure import WAIT, Policy, Share, parse_policy, part_of
from tests.sharing.store import FINE, Client, Fault
from tests.sharing.test_line import asking, in_world, seeds
from tests.sharing.world import World, courier_of, desk_of, is_clean, is_left_clean


@dataclass
class Weather:
    """What is wrong with a store just now."""

    world: World
    fault: Callable[[], Fault] = lambda: FINE
    asked: list[float] = field(default_factory=list)

    def __call__(self, verb: str, keys: Sequence[str]) -> Fault:
        self.asked.append(self.world.seconds)
        return self.fault()

    def over(self, store: Client) -> Client:
        store.faults = self
        return store

    def fine(self) -> None:
        self.fault = lambda: FINE

    def down(self, seconds: float = 0.0, why: str = "no route to it") -> None:
        """It says no after so many seconds, and does nothing."""
        self.fault = lambda: Fault(before=StoreUnavailable(why), pause=lambda: self.world.sleep(seconds))

    def deaf(self) -> None:
        """It does all that it is asked to, and no answer comes back."""
        self.fault = lambda: Fault(after=StoreUnavailable("no answer"))

    def hanging(self, seconds: float) -> None:
        self.fault = lambda: Fault(pause=lambda: self.world.sleep(seconds))


def failing(world: World, *limits: str, policy: str = "wait") -> tuple[Limiter, Weather]:
    weather = Weather(world)
    return world.limiter(*limits, store=weather.over(world.process()), on_store_failure=policy), weather


def settled(permit: Permit, tag: int) -> None:
    permit.settle(tag=tag)


class TestTelling:
    """A settlement is booked once, whatever becomes of the questions that tell it."""

    @pytest.mark.parametrize("mode", ["down", "deaf"])
    @seeds
    def test_each_settlement_is_booked_once(self, seed: int, mode: str) -> None:
        tags = range(12)

        def main(world: World) -> None:
            limiter, weather = failing(
                world, "concurrency=12", "tokens=100/s:burst=99:charge=usage:start=full"
            )
            permits = [limiter.acquire(tokens=2) for _ in tags]
            for tag in tags[:4]:
                settled(permits[tag], tag)
            getattr(weather, mode)()
            world.pass_by(0.1)
            for tag in tags[4:8]:
                settled(permits[tag], tag)
            world.pass_by(1)
            weather.fine()
            for tag in tags[8:]:
                settled(permits[tag], tag)
            world.pass_by(10)
            assert is_clean(limiter)

        world = in_world(seed, main)
        assert world.place.booked == dict.fromkeys(tags, 1)
        assert is_left_clean(world)
        assert world.place.used("k")[0] == 0

    @seeds
    def test_what_was_granted_by_an_answer_that_was_lost_is_given_back(self, seed: int) -> None:
        def main(world: World) -> None:
            limiter, weather = failing(world, "concurrency=3")
            first = limiter.acquire()
            weather.deaf()
            waits = [world.spawn(limiter.acquire) for _ in range(2)]
            world.pass_by(0.5)
            assert world.place.used("k") == (3,), "they are taken, for all that the place knows"
            weather.fine()
            world.wait_until(lambda: all(thread.done for thread in waits))
            assert world.place.used("k") == (3,), "not one of them twice"
            for thread in waits:
                thread.result.settle()
            first.settle()
            world.pass_by(10)
            assert is_clean(limiter)

        world = in_world(seed, main)
        assert is_left_clean(world)
        assert world.place.used("k") == (0,)

    def test_many_settlements_are_told_in_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(desk, "MOST_REPORTS", 5)

        def main(world: World) -> None:
            limiter, weather = failing(world, "concurrency=50")
            permits = [limiter.acquire() for _ in range(23)]
            weather.deaf()
            for tag, permit in enumerate(permits):
                settled(permit, tag)
            world.pass_by(1)
            weather.fine()
            world.pass_by(10)
            assert is_clean(limiter)

        world = in_world(0, main)
        assert world.place.booked == dict.fromkeys(range(23), 1)

    @seeds
    def test_a_limiter_that_is_made_again_goes_on_counting(self, seed: int) -> None:
        """The store knows the process by one name: settlement number 1 would be an old one."""

        def main(world: World) -> None:
            store = world.process()
            for tag in range(6):
                limiter = world.limiter("concurrency=1", "tokens=9/s:burst=9:charge=usage", store=store)
                settled(limiter.acquire(tokens=1), tag)
                world.pass_by(0.5)
                del limiter

        assert in_world(seed, main).place.booked == dict.fromkeys(range(6), 1)

    def test_what_is_settled_while_the_state_is_lost_is_counted_again(self) -> None:
        def main(world: World) -> None:
            limiter, _ = failing(world, "concurrency=4")
            other = world.limiter("concurrency=4")
            held = [limiter.acquire() for _ in range(2)]
            theirs = other.acquire()
            world.pass_by(0.1)
            world.place.lose()
            waits = world.spawn(other.acquire)
            held[0].settle()
            world.pass_by(14)
            assert not waits.done, "whoever has slots is given a lease to say so"
            world.pass_by(2)
            assert world.place.used("k") == (3,), "one of each that were held, and one that was waited for"
            waits.result.settle()
            held[1].settle()
            theirs.settle()
            world.pass_by(10)
            assert is_clean(limiter)

        world = in_world(0, main)
        assert is_left_clean(world)


class TestWaiting:
    """``wait``."""

    @pytest.mark.parametrize("seconds", [0.0, 0.3], ids=["quick to say no", "slow to say no"])
    @seeds
    def test_callers_wait_and_go_soon_after_it_is_back(self, seed: int, seconds: float) -> None:
        def main(world: World) -> None:
            limiter, weather = failing(world, "concurrency=9")
            weather.down(seconds)
            threads = [world.spawn(limiter.acquire) for _ in range(3)]
            threads += [world.in_loop(limiter.acquire_async) for _ in range(3)]
            world.pass_by(5)
            assert not any(thread.done for thread in threads)
            weather.fine()
            back = world.seconds
            world.wait_until(lambda: all(thread.done for thread in threads))
            assert world.seconds - back <= courier.LONGEST_PAUSE_SECONDS + seconds + 0.01
            for thread in threads:
                thread.result.settle()
            world.pass_by(10)
            assert is_clean(limiter)

        assert is_left_clean(in_world(seed, main))

    def test_it_is_tried_again_soon_and_then_more_seldom(self) -> None:
        def main(world: World) -> None:
            limiter, weather = failing(world, "concurrency=1")
            weather.down()
            waits = world.spawn(limiter.acquire)
            world.pass_by(10)
            asked = list(weather.asked)
            weather.fine()
            world.wait_until(lambda: waits.done)
            waits.result.settle()
            gaps = [later - sooner for sooner, later in pairwise(asked)]
            assert gaps[0] == 0, "a connection that was cut tells nothing of the store"
            assert gaps[1] <= courier.FIRST_PAUSE_SECONDS
            assert all(gap >= 0.5 * courier.LONGEST_PAUSE_SECONDS for gap in gaps[8:])
            assert all(gap <= courier.LONGEST_PAUSE_SECONDS + 0.001 for gap in gaps)

        in_world(0, main)

    @pytest.mark.parametrize("in_a_loop", [False, True], ids=["thread", "loop"])
    @pytest.mark.parametrize("seconds", [0.0, 0.3, 30.0])
    def test_max_wait_holds(self, seconds: float, in_a_loop: bool) -> None:
        def main(world: World) -> None:
            limiter, weather = failing(world, "concurrency=1")
            weather.down(seconds)
            with pytest.raises(AcquireTimeout):
                asking(world, limiter, in_a_loop, max_wait=2)
            assert 2 <= world.seconds <= 3.01
            assert limiter.waiting == 0
            weather.fine()
            world.pass_by(100)
            assert is_clean(limiter)

        in_world(0, main)

    @pytest.mark.parametrize("seconds", [0.0, 0.3])
    def test_whoever_tries_is_told(self, seconds: float) -> None:
        def main(world: World) -> None:
            limiter, weather = failing(world, "concurrency=1")
            weather.down(seconds)
            for _ in range(20):
                began = world.seconds
                with pytest.raises(StoreUnavailable, match="no route to it"):
                    limiter.try_permit()
                assert world.seconds - began <= 2 * seconds + 0.01
                world.pass_by(0.1)
            weather.fine()
            world.pass_by(0.6)
            permit = limiter.try_permit()
            assert permit is not None
            permit.settle()
            world.pass_by(10)
            assert is_clean(limiter)

        in_world(0, main)

    def test_one_failure_is_no_news(self) -> None:
        """A connection that was cut, say."""
        heard: list[Event] = []

        def main(world: World) -> None:
            limiter, weather = failing(world, "concurrency=1")
            limiter.subscribe(heard.append)
            faults = iter([Fault(before=StoreUnavailable("cut"))])
            weather.fault = lambda: next(faults, FINE)
            limiter.acquire().settle()
            assert world.seconds < 0.01

        in_world(0, main)
        assert not [event for event in heard if isinstance(event, StoreFailed | StoreBack)]

    @seeds
    def test_it_is_told_once_in_the_log_and_to_each_listener(
        self, seed: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        heard: list[Event] = []

        def main(world: World) -> None:
            limiter, weather = failing(world, "concurrency=9")
            limiter.subscribe(heard.append)
            weather.down()
            threads = [world.spawn(limiter.acquire) for _ in range(4)]
            world.pass_by(7)
            weather.fine()
            world.wait_until(lambda: all(thread.done for thread in threads))
            for thread in threads:
                thread.result.settle()

        with caplog.at_level(logging.INFO, "headgate"):
            in_world(seed, main)
        failed, back = [event for event in heard if isinstance(event, StoreFailed | StoreBack)]
        assert failed == StoreFailed("k", "no route to it")
        assert isinstance(back, StoreBack)
        assert back.key == "k"
        assert 6.9 <= back.seconds <= 7.4
        assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
        assert "no route to it" in caplog.records[0].getMessage()
        assert "back after 7." in caplog.records[1].getMessage()

    @seeds
    def test_a_listener_that_is_told_may_ask(self, seed: int) -> None:
        """It is called in the midst of nothing: a question of its own waits for no other."""
        answers: list[str] = []

        def main(world: World) -> None:
            limiter, weather = failing(world, "concurrency=9")

            def ask(event: Event) -> None:
                if not isinstance(event, StoreFailed | StoreBack):
                    return
                try:
                    permit = limiter.try_permit()
                    answers.append("permit" if permit is not None else "none")
                    if permit is not None:
                        permit.give_back()
                except StoreUnavailable:
                    answers.append("unavailable")

            limiter.subscribe(ask)
            weather.down()
            waits = world.spawn(limiter.acquire)
            world.pass_by(1)
            weather.fine()
            world.wait_until(lambda: waits.done)
            waits.result.settle()
            world.pass_by(10)
            assert is_clean(limiter)

        assert is_left_clean(in_world(seed, main))
        assert answers[0] in ("unavailable", "none")
        assert len(answers) == 2

    def test_a_store_that_raises_what_it_may_not_is_tried_again(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        def main(world: World) -> None:
            limiter, weather = failing(world, "concurrency=9")
            weather.fault = lambda: Fault(before=ZeroDivisionError("a bug"))
            waits = world.in_loop(limiter.acquire_async)
            tries = world.spawn(limiter.try_permit)
            world.pass_by(2)
            assert not waits.done
            with pytest.raises((StoreUnavailable, ZeroDivisionError)):
                assert tries.result is None
            weather.fine()
            world.wait_until(lambda: waits.done)
            waits.result.settle()
            world.pass_by(10)
            assert is_clean(limiter)

        assert is_left_clean(in_world(0, main))
        assert "a bug" in caplog.text


class TestRefusing:
    """``refuse``."""

    @pytest.mark.parametrize("in_a_loop", [False, True], ids=["thread", "loop"])
    @pytest.mark.parametrize("seconds", [0.0, 5.0], ids=["quick to say no", "slow to say no"])
    def test_once_it_has_failed_callers_are_told_at_once(self, seconds: float, in_a_loop: bool) -> None:
        def main(world: World) -> None:
            limiter, weather = failing(world, "concurrency=1", policy="refuse")
            weather.down(seconds)
            with pytest.raises(StoreUnavailable, match="no route to it"):
                asking(world, limiter, in_a_loop)
            for _ in range(50):
                began = world.seconds
                with pytest.raises(StoreUnavailable, match="no route to it"):
                    asking(world, limiter, in_a_loop)
                with pytest.raises(StoreUnavailable, match="no route to it"):
                    limiter.try_permit()
                assert world.seconds - began < 0.001
                world.pass_by(0.13)
            weather.fine()
            world.pass_by(courier.LONGEST_PAUSE_SECONDS + seconds)
            asking(world, limiter, in_a_loop).settle()
            world.pass_by(10)
            assert is_clean(limiter)

        assert is_left_clean(in_world(0, main))

    @seeds
    def test_those_who_wait_are_told_when_it_fails(self, seed: int) -> None:
        def main(world: World) -> None:
            limiter, weather = failing(world, "concurrency=1", policy="refuse")
            held = limiter.acquire()
            threads = [world.spawn(limiter.acquire), world.in_loop(limiter.acquire_async)]
            world.wait_until(lambda: limiter.waiting == 2)
            weather.down()
            world.wait_until(lambda: all(thread.done for thread in threads))
            assert world.seconds <= 1.5
            for thread in threads:
                with pytest.raises(StoreUnavailable):
                    _ = thread.result
            weather.fine()
            held.settle()
            world.pass_by(10)
            assert is_clean(limiter)

        assert is_left_clean(in_world(seed, main))

    @seeds
    def test_it_is_found_to_be_back_though_nobody_asks(self, seed: int) -> None:
        heard: list[Event] = []

        def main(world: World) -> None:
            limiter, weather = failing(world, "concurrency=1", policy="refuse")
            limiter.subscribe(heard.append)
            weather.down()
            with pytest.raises(StoreUnavailable):
                limiter.acquire()
            world.pass_by(60)
            weather.fine()
            world.pass_by(1)
            limiter.acquire().settle()
            world.pass_by(10)
            assert is_clean(limiter)

        in_world(seed, main)
        kinds = [type(event) for event in heard if isinstance(event, StoreFailed | StoreBack)]
        assert kinds == [StoreFailed, StoreBack]

    def test_what_has_ended_meanwhile_is_told_when_it_is_back(self) -> None:
        def main(world: World) -> None:
            limiter, weather = failing(world, "concurrency=4", policy="refuse")
            permits = [limiter.acquire() for _ in range(4)]
            weather.down()
            for tag, permit in enumerate(permits):
                settled(permit, tag)
            world.pass_by(20)
            weather.fine()
            world.pass_by(10)
            assert is_clean(limiter)

        world = in_world(0, main)
        assert world.place.booked == dict.fromkeys(range(4), 1)
        assert is_left_clean(world)


def over(instants: Sequence[float], rate: float, burst: int) -> float:
    """By how many units a bucket that was full at first would have run dry."""
    level, last, worst = float(burst), 0.0, float("-inf")
    for instant in sorted(instants):
        level = min(burst, level + (instant - last) * rate) - 1
        last, worst = instant, max(worst, -level)
    return worst


class TestShares:
    """``share:N``."""

    @pytest.mark.parametrize("seconds", [0.0, 5.0], ids=["quick to say no", "slow to say no"])
    @pytest.mark.parametrize("seed", range(2))
    def test_each_goes_on_with_its_part_and_all_come_back_never_over(self, seed: int, seconds: float) -> None:
        went: list[tuple[float, int]] = []

        def main(world: World) -> None:
            both = [failing(world, "requests=100/s:burst=10:start=full", policy="share:2") for _ in range(2)]
            over_at = 30 + 4 * seconds

            def call(number: int) -> None:
                limiter = both[number][0]
                while world.seconds < over_at:
                    permit = limiter.acquire()
                    went.append((world.seconds, number))
                    world.sleep(0.03)
                    permit.settle()

            for number in range(2):
                for _ in range(4):
                    world.spawn(lambda number=number: call(number))  # type: ignore[misc]  # default
            world.pass_by(2)
            for _, weather in both:
                weather.down(seconds)
            world.pass_by(8 + 2 * seconds)
            began, ended = 4 + 2 * seconds, world.seconds
            for number in range(2):
                part = [at for at, who in went if who == number and began <= at < ended]
                assert len(part) / (ended - began) == pytest.approx(50, rel=0.1)
            for _, weather in both:
                weather.fine()
            world.wait_until(lambda: world.seconds >= over_at)
            world.pass_by(20)
            for limiter, _ in both:
                assert is_clean(limiter)

        world = in_world(seed, main, preempt=0)
        assert is_left_clean(world)
        instants = [at for at, _ in went]
        assert over(instants, 100, 10) <= 1e-6
        last = [at for at in instants if at >= 25 + 4 * seconds]
        assert len(last) >= 0.9 * 100 * 5

    def test_calls_that_end_make_room_whoever_granted_them(self) -> None:
        def main(world: World) -> None:
            limiter, weather = failing(world, "concurrency=8", policy="share:2")
            held = [limiter.acquire() for _ in range(6)]
            weather.down()
            waits = world.spawn(limiter.acquire)
            world.pass_by(20)  # in a lease, all others have said what they hold
            assert not waits.done, "it holds more than its share"
            for permit in held[:2]:
                permit.settle()
            world.pass_by(0.01)
            assert not waits.done, "it has its share"
            held[2].settle()
            world.pass_by(0.01)
            permit = waits.result
            again = world.spawn(limiter.acquire)
            world.pass_by(0.1)
            assert not again.done
            permit.settle()
            world.pass_by(0.01)  # at once, not when one looks again
            permit = again.result
            weather.fine()
            world.pass_by(1)
            for each in (*held[3:], permit):
                each.settle()
            world.pass_by(10)
            assert is_clean(limiter)

        world = in_world(0, main)
        assert is_left_clean(world)
        assert world.place.used("k") == (0,)

    def test_a_long_window_goes_on_from_what_was_last_seen(self) -> None:
        def main(world: World) -> None:
            limiter, weather = failing(world, "requests=100/day:kind=sliding:start=full", policy="share:2")
            for _ in range(80):
                limiter.acquire().settle()
            weather.down()
            taken = []
            while (permit := limiter.try_permit()) is not None:
                taken.append(permit)
            assert len(taken) == 10, "half of what was left"
            weather.fine()
            for permit in taken:
                permit.settle()
            world.pass_by(10)
            assert limiter.used() == {"requests/day": 80}, "the others' calls are not known here"

        in_world(0, main)

    def test_whoever_has_used_a_share_says_so_when_the_store_is_back_and_not_hours_later(self) -> None:
        def main(world: World) -> None:
            limiter, weather = failing(world, "requests=100/s:burst=10:start=full", policy="share:2")
            other = world.limiter("requests=100/s:burst=10:start=full")
            weather.down()
            limiter.acquire().settle()
            world.pass_by(5)
            weather.fine()
            world.pass_by(0.3)
            assert world.place.state("k").paused, "all others are given time to come"
            world.pass_by(5)
            assert is_clean(limiter)
            began = world.seconds
            limiter.acquire().settle()
            other.acquire().settle()
            assert world.seconds - began < 0.01, "the key is not emptied again"

        in_world(0, main)

    def test_a_probe_that_hangs_keeps_nobody_busy(self) -> None:
        def main(world: World) -> None:
            limiter, weather = failing(world, "requests=10/s:burst=2:start=full", policy="share:2")
            weather.down()
            limiter.acquire().settle()
            weather.hanging(20.0)
            world.pass_by(1)
            before = world.switches
            permits = [limiter.acquire() for _ in range(25)]  # five seconds
            assert world.switches - before < 3_000
            for permit in permits:
                permit.settle()
            world.pass_by(150)
            assert is_clean(limiter)
            assert courier_of(limiter).failed_at is None

        in_world(0, main, preempt=0)

    def test_a_key_of_which_nothing_is_known_any_more_is_empty_too(self) -> None:
        def main(world: World) -> None:
            limiter, weather = failing(world, "requests=100/s:burst=100:start=full", policy="share:2")
            limiter.acquire().settle()
            weather.down()
            limiter.acquire().settle()
            world.place.rows.clear()
            weather.fine()
            world.pass_by(0.3)
            began = world.seconds
            for _ in range(20):
                limiter.acquire().settle()
            assert world.seconds - began >= 0.2, "they were not had from a full bucket"

        in_world(0, main)

    def test_one_that_is_refused_when_it_comes_back_does_not_go_on_trying(self) -> None:
        def main(world: World) -> None:
            limiter, weather = failing(world, "concurrency=4", policy="share:2")
            other = world.limiter("concurrency=5")
            weather.down()
            waits = world.spawn(lambda: limiter.acquire(max_wait=40))
            world.pass_by(20)
            waits.result.settle()
            held = other.acquire()
            weather.fine()
            world.pass_by(1)
            with pytest.raises(ConfigurationError):
                limiter.acquire()
            asked = len(weather.asked)
            world.pass_by(60)
            assert len(weather.asked) - asked < 20
            held.settle()
            assert is_clean(limiter)

        in_world(0, main)

    def test_several_keys_of_one_store_each_go_their_way(self) -> None:
        def main(world: World) -> None:
            weather = Weather(world)
            store = weather.over(world.process())
            limits = "requests=100/s:burst=10:start=full", "concurrency=5"
            ways = ("wait", "refuse", "share:4")
            waits, refuses, shares = (
                world.limiter(limits[way == "wait"], store=store, key=way, on_store_failure=way)
                for way in ways
            )
            held = waits.acquire()
            weather.down()
            waiting = world.spawn(waits.acquire)
            with pytest.raises(StoreUnavailable):
                refuses.acquire()
            shares.acquire().settle()
            settled(held, 1)
            world.pass_by(5)
            assert not waiting.done
            weather.fine()
            world.wait_until(lambda: waiting.done)
            waiting.result.settle()
            refuses.acquire().settle()
            shares.acquire().settle()
            world.pass_by(10)
            for limiter in (waits, refuses, shares):
                assert is_clean(limiter)

        world = in_world(0, main)
        assert world.place.booked == {1: 1}


class TestRefusedTrades:
    """The limits that are in force are others."""

    def test_callers_are_told_and_it_is_logged_once(self, caplog: pytest.LogCaptureFixture) -> None:
        def main(world: World) -> None:
            limiter, other = world.limiter("concurrency=1"), world.limiter("concurrency=2")
            held = other.acquire()
            for in_a_loop in (False, True, False):
                with pytest.raises(ConfigurationError, match="'k'"):
                    asking(world, limiter, in_a_loop)
            with pytest.raises(ConfigurationError, match="'k'"):
                limiter.try_permit()
            assert limiter.waiting == 0
            held.settle()
            world.pass_by(16)
            limiter.acquire().settle()
            world.pass_by(10)
            assert is_clean(limiter)

        in_world(0, main)
        assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1

    @pytest.mark.parametrize("holding", [False, True], ids=["waits", "holds"])
    def test_whoever_was_away_for_too_long_does_not_insist(
        self, holding: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It stood still for longer than its lease, and others have taken the key with other limits."""

        def main(world: World) -> None:
            limiter = world.limiter("concurrency=1")
            held = limiter.acquire() if holding else None
            blocker = None if holding else world.limiter("concurrency=1").acquire()
            waits = None if holding else world.spawn(lambda: limiter.acquire(max_wait=100))
            world.pass_by(1)
            for thread in world.threads:
                if thread.name == "headgate-courier":
                    thread.stands_until = world.now_us + 40 * SECOND
            if blocker is not None:
                blocker.settle()
            world.pass_by(20)
            other = world.limiter("concurrency=2")
            theirs = other.acquire()
            world.pass_by(30)
            trades = len(world.processes[0].trades), world.processes[0].asked["trade"]
            world.pass_by(60)
            assert world.processes[0].asked["trade"] - trades[1] < 30
            if held is not None:
                held.settle()
            if waits is not None:
                with pytest.raises(ConfigurationError):
                    _ = waits.result
            theirs.settle()
            world.pass_by(20)
            limiter.acquire().settle()
            world.pass_by(10)
            assert is_clean(limiter)

        in_world(0, main, preempt=0)
        refused = 1 if holding else 2  # the blocker's settlement comes too late as well
        assert len([record for record in caplog.records if record.levelname == "ERROR"]) == refused

    def test_one_key_that_is_refused_is_in_no_others_way(self) -> None:
        def main(world: World) -> None:
            store = world.process()
            theirs = world.limiter("concurrency=2", key="theirs")
            held = theirs.acquire()
            mine = world.limiter("concurrency=1", store=store, key="mine")
            refused = world.limiter("concurrency=1", store=store, key="theirs")

            async def both() -> None:
                (await mine.acquire_async()).settle()
                with pytest.raises(ConfigurationError):
                    await refused.acquire_async()
                (await mine.acquire_async()).settle()

            thread = world.in_loop(both)
            world.wait_until(lambda: thread.done)
            _ = thread.result
            held.settle()

        in_world(0, main)

    def test_two_limiters_of_a_process_differ(self) -> None:
        def main(world: World) -> None:
            store = world.process()
            limiter = world.limiter("concurrency=1", store=store)
            with pytest.raises(ConfigurationError, match="with other limits"):
                world.limiter("concurrency=2", store=store)
            with pytest.raises(ConfigurationError, match="on_store_failure='wait', not 'refuse'"):
                world.limiter("concurrency=1", store=store, on_store_failure="refuse")
            limiter.acquire().settle()

        in_world(0, main)


class TestPolicies:
    @pytest.mark.parametrize(
        ("text", "policy"),
        [
            ("wait", WAIT),
            ("refuse", Policy("refuse", refuse=True)),
            ("share:1", Policy("share:1", share=1)),
            ("share:40", Policy("share:40", share=40)),
        ],
    )
    def test_are_read(self, text: str, policy: Policy) -> None:
        assert parse_policy(text) == policy

    @pytest.mark.parametrize(
        "text", ["", "Wait", "share", "share:0", "share:-1", "share:1.5", "share:1000000"]
    )
    def test_others_are_refused(self, text: str) -> None:
        with pytest.raises(ConfigurationError, match="wait, refuse, or share:N"):
            parse_policy(text)

    @pytest.mark.parametrize(
        ("whole", "share", "part"),
        [
            ("requests=100/s:burst=20", 4, ("requests=25/s:burst=5")),
            ("requests=101/s:burst=21", 4, ("requests=25/s:burst=5")),
            ("requests=1/s:burst=8", 4, ("requests=1/4s:burst=2:name=requests/s")),
            ("requests=100/s:burst=3", 4, None),
            ("requests=10/s:kind=sliding", 4, ("requests=2/s:kind=sliding")),
            ("requests=3/s:kind=sliding", 4, None),
            ("requests=10/day:kind=calendar", 4, ("requests=2/day:kind=calendar")),
            ("requests=100/min", 4, ("requests=25/min")),
            ("concurrency=9", 4, ("concurrency=2")),
            ("concurrency=3", 4, None),
        ],
    )
    def test_parts_together_are_no_more_than_the_whole(
        self, whole: str, share: int, part: str | None
    ) -> None:
        assert part_of(parse_limit(whole), share) == (None if part is None else parse_limit(part))

    def test_a_rate_that_is_too_small_to_be_parted_takes_longer(self) -> None:
        part = part_of(parse_limit("requests=3/10s:burst=8"), 4)
        assert part is not None
        assert (part.amount, part.burst, part.name) == (1, 2, "requests/10s")
        assert part.period_us >= 4 * 10 * SECOND / 3

    def test_what_cannot_be_parted_is_waited_for(self) -> None:
        plan = Plan(parse_limits(["requests=100/s:burst=3"]))
        [answer] = Share(plan, 4, (0, 0)).acquire([(1,)], Now(5, 5))
        assert isinstance(answer, Wait)


def test_desks_are_found_again() -> None:
    def main(world: World) -> None:
        store = world.process()
        one, other = (world.limiter("concurrency=1", store=store) for _ in range(2))
        assert desk_of(one) is desk_of(other)

    in_world(0, main)
