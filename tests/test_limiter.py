"""The front door: what a permit costs, how it is settled, and what is told on the way."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest

from headgate import (
    AcquireTimeout,
    ConfigurationError,
    CostExceedsLimit,
    Limit,
    Limiter,
    Permit,
    Signal,
    parse_limit,
)
from headgate.core.model import MINUTE
from headgate.events import Event, Granted, Settled, Throttled, Waited
from headgate.limiter import OPTIONS
from headgate.stores.memory import MemoryStore
from headgate.testing import FakeClock

BUCKET = "tokens=10/s:burst=100:start=full"
REFUNDING = BUCKET + ":charge=usage"


@pytest.fixture
def store(fake_clock: FakeClock) -> MemoryStore:
    return MemoryStore(fake_clock)


class TestLimits:
    def test_are_read_in_both_forms(self) -> None:
        limiter = Limiter(
            "requests=5/min:burst=2", Limit(meter="tokens", amount=40, period_us=MINUTE, kind="sliding")
        )
        assert limiter.limits == (
            parse_limit("requests=5/min:burst=2"),
            parse_limit("tokens=40/min:kind=sliding"),
        )

    def test_none_is_no_limit(self, fake_clock: FakeClock) -> None:
        limiter = Limiter(store=MemoryStore(fake_clock))
        for _ in range(1000):
            limiter.acquire().settle()
        assert (limiter.used(), fake_clock.elapsed_seconds) == ({}, 0)
        assert repr(limiter) == "<Limiter 'default' without limits, 0 waiting>"

    @pytest.mark.parametrize("option", sorted(OPTIONS))
    def test_options_cannot_name_meters(self, option: str) -> None:
        with pytest.raises(ConfigurationError, match=f"'{option}' is the name of an option"):
            Limiter(f"{option}=5/min")

    def test_no_two_have_one_name(self) -> None:
        with pytest.raises(ConfigurationError, match="two limits are named 'requests/s'"):
            Limiter("requests=5/s", "requests=9/s:burst=4")

    @pytest.mark.parametrize("url", ["nowhere://", "nowhere", "redis-but-wrong://h"])
    def test_an_unknown_store_is_told(self, url: str) -> None:
        with pytest.raises(ConfigurationError, match="expected the URL of a store"):
            Limiter("requests=5/s", store=url)

    def test_long_limits_in_memory_are_warned_of(self, store: MemoryStore) -> None:
        with pytest.warns(
            UserWarning, match=r"requests/day is longer than an hour.*kept in memory"
        ) as warned:
            Limiter("requests=5/min", "requests=500/day:kind=calendar", "concurrency=3")
        assert len(warned) == 1
        assert warned[0].filename == __file__, "it points at the caller"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Limiter("requests=500/h:kind=fixed")
            Limiter("requests=500/day:kind=calendar", store=store)


class TestCosts:
    def test_one_request_and_one_slot_go_without_saying(self, store: MemoryStore) -> None:
        limiter = Limiter("requests=10/s:burst=10:start=full", "concurrency=3", BUCKET, store=store)
        assert limiter.acquire().units == {"requests/s": 1, "concurrency": 1, "tokens/s": 0}
        assert limiter.acquire(tokens=7).units == {"requests/s": 1, "concurrency": 1, "tokens/s": 7}
        assert limiter.acquire(requests=2, tokens=7).units["requests/s"] == 2
        assert limiter.used() == {"requests/s": 4, "concurrency": 3, "tokens/s": 14}

    def test_a_meter_counts_on_all_its_limits(self, store: MemoryStore) -> None:
        limiter = Limiter(BUCKET, "tokens=20/min:kind=sliding:start=full", store=store)
        assert limiter.acquire(tokens=3).units == {"tokens/s": 3, "tokens/min": 3}

    def test_all_limits_are_charged_or_none(self, store: MemoryStore) -> None:
        limiter = Limiter("requests=10/s:burst=10:start=full", BUCKET, "concurrency=1", store=store)
        limiter.acquire()
        used = limiter.used()
        assert limiter.try_permit(tokens=5) is None, "the slot is taken"
        assert limiter.used() == used

    @pytest.mark.parametrize("ask", ["permit", "acquire", "try_permit"])
    def test_unknown_meters_are_refused(self, store: MemoryStore, ask: str) -> None:
        limiter = Limiter(BUCKET, "concurrency=1", store=store)
        with pytest.raises(
            ConfigurationError, match="no limit counts 'tokenz'; the limits count: concurrency, tokens"
        ):
            getattr(limiter, ask)(tokenz=3)

    @pytest.mark.parametrize("cost", [-1, 1.5, "3", True, None])
    def test_costs_are_whole_numbers(self, store: MemoryStore, cost: Any) -> None:
        with pytest.raises(ConfigurationError, match="a cost is a whole number of units, 0 or more"):
            Limiter(BUCKET, store=store).acquire(tokens=cost)

    @pytest.mark.parametrize("ask", ["acquire", "try_permit"])
    def test_what_can_never_fit_is_refused_at_once(self, store: MemoryStore, ask: str) -> None:
        limiter = Limiter(BUCKET, store=store)
        with pytest.raises(
            CostExceedsLimit, match="tokens/s can carry at most 100 tokens in one call"
        ) as told:
            getattr(limiter, ask)(tokens=101)
        assert (told.value.limit, told.value.cost, told.value.largest) == ("tokens/s", 101, 100)
        assert limiter.used() == {"tokens/s": 0}


class TestSettling:
    """``used()`` after 60 of 100 units were reserved and settled at once."""

    @pytest.mark.parametrize(
        ("settle", "estimate", "usage"),
        [
            (lambda p: p.settle(), 60, 60),
            (lambda p: p.settle(tokens=25), 60, 25),
            (lambda p: p.settle(tokens=90), 90, 90),
            (lambda p: p.settle(tokens=0), 60, 0),
            (lambda p: p.settle(requests=1), 60, 60),
            (lambda p: p.give_back(), 0, 0),
            (lambda p: p.lost(), 60, 60),
            (lambda p: p.signal(Signal(charged={"tokens": 40})), 40, 60),
            (lambda p: p.read(200, {}), 60, 60),
            (lambda p: p.read(200, {}, tokens=25), 60, 25),
        ],
    )
    def test_books_what_became_of_it(
        self, store: MemoryStore, settle: Callable[[Permit], None], estimate: int, usage: int
    ) -> None:
        for text, used in ((BUCKET, estimate), (REFUNDING, usage)):
            limiter = Limiter(text, key=text, store=store)
            permit = limiter.acquire(tokens=60)
            assert limiter.used() == {"tokens/s": 60}
            settle(permit)
            assert permit.settled
            assert limiter.used() == {"tokens/s": used}

    def test_only_the_first_settlement_counts(self, store: MemoryStore) -> None:
        limiter = Limiter(REFUNDING, "concurrency=3", store=store)
        other = limiter.acquire()
        permit = limiter.acquire(tokens=60)
        permit.settle(tokens=25)
        permit.settle(tokens=3)
        permit.give_back()
        permit.lost()
        permit.throttled(5)
        permit.read(429, {})
        assert limiter.used() == {"tokens/s": 25, "concurrency": 1}
        other.settle()

    def test_a_block_settles_on_leaving(self, store: MemoryStore) -> None:
        limiter = Limiter(BUCKET, "concurrency=1", store=store)
        outcomes: list[str] = []
        limiter.subscribe(lambda event: outcomes.append(event.outcome) if type(event) is Settled else None)
        with limiter.permit(tokens=5) as permit:
            assert limiter.used()["concurrency"] == 1
        assert permit.settled
        with pytest.raises(ZeroDivisionError), limiter.permit(tokens=5):
            _ = 1 / 0
        with limiter.permit(tokens=5) as permit:
            permit.give_back()
        with pytest.raises(ZeroDivisionError), limiter.permit(tokens=5) as permit:
            _ = [permit.settle(), 1 / 0]  # type: ignore[func-returns-value]  # in one statement
        assert outcomes == ["answered", "lost", "unsent", "answered"]
        assert limiter.used()["concurrency"] == 0

    def test_async_blocks_settle_on_leaving(self, fake_clock: FakeClock, store: MemoryStore) -> None:
        limiter = Limiter("concurrency=1", store=store)
        outcomes: list[str] = []
        limiter.subscribe(lambda event: outcomes.append(event.outcome) if type(event) is Settled else None)

        async def main() -> None:
            async with limiter.permit():
                pass
            with pytest.raises(ZeroDivisionError):
                async with limiter.permit():
                    _ = 1 / 0

        fake_clock.run(main())
        assert outcomes == ["answered", "lost"]
        assert limiter.used() == {"concurrency": 0}

    def test_a_block_that_was_never_entered_settles_nothing(self, store: MemoryStore) -> None:
        limiter = Limiter("concurrency=1", store=store)
        with limiter.permit():
            with pytest.raises(AcquireTimeout), limiter.permit(max_wait=0):
                pytest.fail("there is no slot")
            assert limiter.used() == {"concurrency": 1}

    def test_one_permit_is_for_one_call(self, store: MemoryStore) -> None:
        limiter = Limiter("concurrency=2", store=store)
        asking = limiter.permit()
        with asking:
            with pytest.raises(RuntimeError, match="for one call at a time"), asking:
                pytest.fail("the first permit would be forgotten")
            assert limiter.used() == {"concurrency": 1}
        with asking:  # one after the other is no harm
            assert limiter.used() == {"concurrency": 1}
        assert limiter.used() == {"concurrency": 0}

    @pytest.mark.parametrize("used", [-1000, 1.5, "3", None, True])
    def test_what_was_used_is_a_whole_number(self, store: MemoryStore, used: Any) -> None:
        limiter = Limiter(REFUNDING, "concurrency=1", store=store)
        permit = limiter.acquire(tokens=60)
        for settle in (permit.settle, lambda **units: permit.read(200, {}, **units)):
            with pytest.raises(
                ConfigurationError, match="what was used is a whole number of units, 0 or more"
            ):
                settle(tokens=used)
        assert not permit.settled
        permit.lost()
        assert limiter.used() == {"tokens/s": 60, "concurrency": 0}

    def test_what_was_used_too_much_is_owed(self, fake_clock: FakeClock, store: MemoryStore) -> None:
        limiter = Limiter("tokens=10/s:burst=10:start=full:charge=usage", store=store)
        limiter.acquire(tokens=5).settle(tokens=1000)

        async def next_one() -> None:
            async with limiter.permit(tokens=1):
                pass

        fake_clock.run(next_one())
        assert fake_clock.elapsed_seconds >= 99.1


class TestThrottling:
    def test_everybody_waits_as_long_as_the_server_says(
        self, fake_clock: FakeClock, store: MemoryStore
    ) -> None:
        limiter = Limiter("requests=10/s:burst=10:start=full", "concurrency=5", store=store)
        first, second = limiter.acquire(), limiter.acquire()
        first.throttled(retry_after=3)
        second.settle()
        assert limiter.try_permit() is None
        fake_clock.advance(2.99)
        assert limiter.try_permit() is None
        fake_clock.advance(0.01)
        probe = limiter.try_permit()
        assert probe is not None
        assert limiter.try_permit() is None, "one probe, until it is answered"
        probe.settle()
        fake_clock.advance(1)
        assert limiter.try_permit() is not None
        assert limiter.used()["concurrency"] == 1

    @pytest.mark.parametrize(
        ("status", "headers"),
        [(429, {"Retry-After": "3"}), (429, {"retry-after-ms": "3000"})],
    )
    def test_is_read_from_an_answer(
        self, fake_clock: FakeClock, store: MemoryStore, status: int, headers: dict[str, str]
    ) -> None:
        limiter = Limiter("requests=10/s:burst=10:start=full", store=store)
        told: list[Event] = []
        permit = limiter.acquire()
        limiter.subscribe(told.append)
        permit.read(status, headers)
        assert told == [Throttled("default", None, 3.0), Settled("default", "answered", {})]
        assert limiter.try_permit() is None

    def test_an_error_of_the_server_shuts_nothing(self, store: MemoryStore) -> None:
        limiter = Limiter("requests=10/s:burst=10:start=full", store=store)
        limiter.acquire().read(500, {})
        assert limiter.try_permit() is not None

    def test_hits_the_named_meter_only(self, store: MemoryStore) -> None:
        limiter = Limiter("requests=10/s:burst=10:start=full", BUCKET, store=store)
        limiter.acquire(tokens=5).throttled(retry_after=3, meter="tokens")
        assert limiter.try_permit(tokens=1) is None
        assert limiter.try_permit() is not None


class TestWatching:
    def test_tells_what_happens_in_order(self, fake_clock: FakeClock, store: MemoryStore) -> None:
        limiter = Limiter("requests=2/s:burst=1:start=full", "concurrency=1", key="k", store=store)
        told: list[Event] = []
        limiter.subscribe(told.append)

        async def main() -> None:
            async with limiter.permit() as permit:
                permit.settle(requests=1)
            async with limiter.permit() as permit:
                permit.throttled(1.5, "requests")

        fake_clock.run(main())
        units = {"requests/s": 1, "concurrency": 1}
        expected: list[object] = [
            Granted("k", units, 0),
            Settled("k", "answered", {"requests": 1}),
            Waited("k", "requests/s", 0.5001),  # the rate is 200 millionths below the server's
            Granted("k", units, 0.5001),
            Throttled("k", "requests", 1.5),
            Settled("k", "answered", {}),
        ]
        assert told == expected

    def test_waiting_for_an_answer_has_no_seconds(self, store: MemoryStore) -> None:
        limiter = Limiter("concurrency=1", store=store)
        told: list[Event] = []
        with limiter.permit():
            limiter.subscribe(told.append)
            with pytest.raises(AcquireTimeout):
                limiter.acquire(max_wait=0)
        assert told[0] == Waited("default", "concurrency", None)

    def test_until_it_is_told_to_stop(self, store: MemoryStore) -> None:
        limiter = Limiter("concurrency=9", store=store)
        one: list[Event] = []
        two: list[Event] = []
        stop = limiter.subscribe(one.append)
        limiter.subscribe(two.append)
        limiter.acquire()
        stop()
        stop()  # twice is no harm
        limiter.acquire()
        assert (len(one), len(two)) == (1, 2)

    def test_one_listener_twice_is_two(self, store: MemoryStore) -> None:
        limiter = Limiter("concurrency=9", store=store)
        told: list[Event] = []
        stops = [limiter.subscribe(told.append), limiter.subscribe(told.append)]
        limiter.acquire()
        stops[0]()
        limiter.acquire()
        assert len(told) == 3

    def test_a_listener_may_leave_while_it_is_told(self, store: MemoryStore) -> None:
        limiter = Limiter("concurrency=9", store=store)
        told: list[str] = []

        def once(event: Event) -> None:
            told.append("once")
            stop()

        stop = limiter.subscribe(once)
        limiter.subscribe(lambda event: told.append("always"))
        limiter.acquire()
        limiter.acquire()
        assert told == ["once", "always", "always"]

    def test_limiters_of_one_key_hear_their_own_calls(self, store: MemoryStore) -> None:
        one, two = (Limiter("concurrency=9", store=store) for _ in range(2))
        told: list[Event] = []
        one.subscribe(told.append)
        two.acquire()
        assert told == []
        assert one.used() == {"concurrency": 1}

    def test_a_settlement_is_booked_before_it_is_told(self, store: MemoryStore) -> None:
        limiter = Limiter("concurrency=1", store=store)

        def fail(event: Event) -> None:
            if type(event) is Settled:
                raise LookupError

        limiter.subscribe(fail)
        permit = limiter.acquire()
        with pytest.raises(LookupError):
            permit.settle()
        permit.settle()
        assert limiter.used() == {"concurrency": 0}


class TestLooking:
    def test_says_why_and_until_when(self, fake_clock: FakeClock, store: MemoryStore) -> None:
        limiter = Limiter("requests=2/s:burst=1:start=full", "concurrency=1", store=store)
        seen: list[tuple[str, float | None] | None] = []

        def look(event: Event) -> None:
            if type(event) is Waited:
                assert limiter.waiting == 1
                blocked = limiter.blocked()
                seen.append(blocked and (blocked[0].name, blocked[1]))

        async def main() -> None:
            assert limiter.blocked() is None
            async with limiter.permit():
                with pytest.raises(AcquireTimeout):
                    await limiter.acquire_async(max_wait=0.6)
            async with limiter.permit():
                pass
            async with limiter.permit():
                pass

        limiter.subscribe(look)
        fake_clock.run(main())
        assert seen[0] == ("concurrency", None)
        assert seen[-1] == ("requests/s", 0.5001)
        assert limiter.blocked() is None

    def test_repr_is_a_status_line(self, store: MemoryStore) -> None:
        limiter = Limiter(
            "requests=10/s:burst=10:start=full",
            "tokens=40/min:kind=sliding:start=full",
            key="mine",
            store=store,
        )
        permit = limiter.acquire(tokens=3)
        assert repr(limiter) == "<Limiter 'mine' requests/s 1/10, tokens/min 3/40, 0 waiting>"
        assert repr(permit) == "<Permit requests/s=1, tokens/min=3>"
        permit.settle()
        assert repr(permit) == "<Permit requests/s=1, tokens/min=3 settled>"

    def test_permits_know_when_and_how_long(self, fake_clock: FakeClock, store: MemoryStore) -> None:
        limiter = Limiter("requests=2/s:burst=1:start=full", store=store)

        async def main() -> None:
            async with limiter.permit() as first, limiter.permit() as second:
                assert first.waited_seconds == 0
                assert second.waited_seconds == pytest.approx(0.75, abs=0.26)
                assert second.granted_us - first.granted_us == second.waited_seconds * 1_000_000

        fake_clock.run(main())


def test_limiters_of_one_key_and_store_share_a_budget(store: MemoryStore) -> None:
    one, two = (Limiter("requests=10/s:burst=2:start=full", key="k", store=store) for _ in range(2))
    other = Limiter("requests=10/s:burst=2:start=full", key="other", store=store)
    assert one.try_permit() is not None
    assert two.try_permit() is not None
    assert one.try_permit() is None
    assert one.used() == two.used() == {"requests/s": 2}
    assert other.used() == {"requests/s": 0}


def test_a_key_has_one_set_of_limits(store: MemoryStore) -> None:
    one = Limiter("requests=10/s:burst=2", key="k", store=store)
    with pytest.raises(ConfigurationError, match="the key 'k' is in use with other limits"):
        Limiter("requests=10/s:burst=3", key="k", store=store)
    assert one.limits == Limiter("requests=10/s:burst=2", key="k", store=store).limits


def test_stores_of_their_own_by_default() -> None:
    one, two = Limiter("concurrency=1"), Limiter("concurrency=1")
    one.acquire()
    assert two.try_permit() is not None
