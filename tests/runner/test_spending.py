"""Money: reserved before it is spent, and never beyond the cap."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headgate import ConfigurationError, Limiter, Runner
from headgate.runner.spending import Spending
from headgate.stores.memory import MemoryStore
from headgate.testing import FakeClock

DEEP = os.environ.get("HEADGATE_EXAMPLES")
"""Set it to a large number to look for what the usual examples, the same each time, do not show."""

examples = settings(max_examples=int(DEEP or 200), derandomize=DEEP is None, deadline=None)

BY_UNITS: Mapping[str, float] = {"requests": 0.5, "tokens": 0.001}


class TestPrice:
    def test_units_have_prices_and_a_request_goes_without_saying(self) -> None:
        spending = Spending(BY_UNITS, None)
        assert spending.price_of((), {}, {"tokens": 2000}) == 2.5
        assert spending.price_of((), {}, {"tokens": 2000, "requests": 3}) == 3.5
        assert spending.price_of((), {}, {"images": 7}) == 0.5

    def test_a_callable_makes_it_of_the_arguments(self) -> None:
        spending = Spending(lambda text, *, copies: len(text) * copies, None)
        price = spending.price_of(("abc",), {"copies": 2}, {"tokens": 1000})
        assert (price, type(price)) == (6.0, float)

    def test_without_a_price_nothing_costs(self) -> None:
        spending = Spending(None, None)
        assert not spending.counts
        assert spending.price_of((), {}, {"tokens": 5}) == 0.0
        assert Spending({}, None).counts

    @pytest.mark.parametrize("price", [float("nan"), float("inf"), -0.01])
    def test_a_price_is_a_finite_number_of_0_or_more(self, price: float) -> None:
        runner = Runner(lambda: None, price=lambda: price, progress=False)
        with pytest.raises(ConfigurationError, match="price"):
            runner.schedule()
        assert runner.size == 0
        with pytest.raises(ConfigurationError, match="price"):
            Spending({"tokens": price}, None)


class TestCap:
    @pytest.mark.parametrize("cap", [-1, float("nan")])
    def test_it_is_0_or_more(self, cap: float) -> None:
        with pytest.raises(ConfigurationError, match="0 or more"):
            Spending(BY_UNITS, cap)

    def test_it_needs_a_price(self) -> None:
        with pytest.raises(ConfigurationError, match="price"):
            Spending(None, 1)

    def test_without_one_everything_fits(self) -> None:
        assert Spending(BY_UNITS, None).fits(1e300)

    def test_what_reaches_it_exactly_fits(self) -> None:
        spending = Spending(lambda: 0.1, 1.0)
        for _ in range(10):
            assert spending.fits(0.1)
            spending.reserve(0.1)
        assert not spending.fits(0.1)
        assert spending.fits(0.0)

    def test_nothing_that_costs_fits_a_cap_of_0(self) -> None:
        spending = Spending(BY_UNITS, 0)
        assert spending.fits(0)
        assert not spending.fits(1e-9)

    def test_what_is_on_its_way_counts(self) -> None:
        spending = Spending(BY_UNITS, 10)
        spending.reserve(6)
        assert not spending.fits(5)
        spending.settle(6, None, charged=False)
        assert spending.fits(5)

    def test_it_may_be_raised(self) -> None:
        spending = Spending(BY_UNITS, 1)
        spending.reserve(1)
        assert not spending.fits(1)
        spending.cap = 2
        assert spending.fits(1)


class TestSettling:
    def test_what_was_really_used_is_what_is_spent(self) -> None:
        spending = Spending(BY_UNITS, None)
        spending.reserve(2.5)
        assert (spending.spent, spending.reserved) == (0, 2.5)
        spending.settle(2.5, {"tokens": 1000}, charged=True)
        assert (spending.spent, spending.reserved) == (1.5, 0)

    def test_without_a_known_usage_the_reserved_price_is_spent(self) -> None:
        spending = Spending(BY_UNITS, None)
        spending.reserve(2.5)
        spending.settle(2.5, None, charged=True)
        assert (spending.spent, spending.reserved) == (2.5, 0)

    def test_a_price_of_the_arguments_stays_what_it_is(self) -> None:
        spending = Spending(lambda: 7, None)
        spending.reserve(7)
        spending.settle(7, {"tokens": 1}, charged=True)
        assert spending.spent == 7

    def test_what_was_not_charged_costs_nothing(self) -> None:
        spending = Spending(BY_UNITS, None)
        spending.reserve(2.5)
        spending.settle(2.5, {"tokens": 1000}, charged=False)
        assert (spending.spent, spending.reserved) == (0, 0)

    def test_more_than_was_reserved_is_spent_all_the_same(self) -> None:
        spending = Spending(BY_UNITS, 3)
        spending.reserve(2.5)
        spending.settle(2.5, {"tokens": 5000}, charged=True)
        assert spending.spent == 5.5
        assert not spending.fits(0.1)

    def test_a_meter_that_the_usage_does_not_name_is_paid_as_reserved(self, fake_clock: FakeClock) -> None:
        limits = ("tokens=1000/min:burst=1000:start=full", "images=100/min:burst=100:start=full")

        async def function() -> dict[str, int]:
            return {"tokens": 8}

        runner = Runner(
            function,
            Limiter(*limits, store=MemoryStore(fake_clock)),
            cost={"tokens": 10, "images": 1},
            usage=lambda used: used,
            price={"tokens": 1.0, "images": 10.0},
            progress=False,
        )
        runner.schedule()
        fake_clock.run(runner.run_async())
        assert runner.spent == 18


@examples
@given(
    st.integers(0, 1000),
    st.lists(
        st.tuples(
            st.sampled_from(("ask", "ask", "settle", "unknown", "free", "raise")),
            st.integers(0, 300),
            st.floats(0, 1),
        ),
        max_size=80,
    ),
)
def test_the_cap_is_never_exceeded_whatever_the_order_of_starts_and_ends(
    cents: int, steps: list[tuple[str, int, float]]
) -> None:
    cap = cents / 100
    spending = Spending({"units": 0.01, "requests": 0}, cap)
    on_the_way: list[tuple[float, int]] = []
    exact = 0  # cents
    for step, number, share in steps:
        if step == "ask":
            price = spending.price_of((), {}, {"units": number})
            if spending.fits(price):
                spending.reserve(price)
                on_the_way.append((price, number))
            else:  # not refused for nothing
                reserved = sum(units for _, units in on_the_way)
                assert exact + reserved + number >= cents
        elif step == "raise":
            cents = max(cents, number)
            cap = spending.cap = cents / 100
        elif on_the_way:
            price, units = on_the_way.pop(number % len(on_the_way))
            used = int(units * share)
            usage = {"units": used} if step == "settle" else None
            spending.settle(price, usage, charged=step != "free")
            exact += {"settle": used, "unknown": units, "free": 0}[step]
        assert spending.spent + spending.reserved <= cap * (1 + 1e-9)
        assert spending.spent == pytest.approx(exact / 100)
        assert spending.reserved == pytest.approx(sum(price for price, _ in on_the_way), abs=1e-9)
    for price, _ in on_the_way:
        spending.settle(price, None, charged=True)
    assert spending.spent <= cap * (1 + 1e-9)


def test_a_runner_stops_at_its_cap_and_goes_on_when_it_is_raised(fake_clock: FakeClock) -> None:
    async def function() -> None:
        return None

    options: dict[str, Any] = {"price": lambda: 2.0, "spend_cap": 5.0, "progress": False}
    runner = Runner(function, Limiter(store=MemoryStore(fake_clock)), **options)
    calls = [runner.schedule() for _ in range(4)]
    results = fake_clock.run(runner.run_async())
    assert [call.done() for call in calls] == [True, True, False, False]
    assert (runner.spent, results.complete) == (4.0, False)
    assert results.stopped == "the spend cap of 5 is reached"
    runner.spend_cap = 8
    assert fake_clock.run(runner.run_async()).complete
    assert runner.spent == 8


def test_a_call_that_may_fit_when_others_have_ended_waits_for_them(fake_clock: FakeClock) -> None:
    starts: list[float] = []

    async def function() -> None:
        starts.append(fake_clock.elapsed_seconds)
        await asyncio.sleep(1)

    runner = Runner(
        function,
        Limiter("tokens=1000/min:burst=1000:start=full", store=MemoryStore(fake_clock)),
        cost={"tokens": 10},
        usage=lambda _: {"tokens": 5},
        price={"tokens": 1.0},
        spend_cap=30.0,
        progress=False,
    )
    for _ in range(8):
        runner.schedule()
    results = fake_clock.run(runner.run_async())
    # Three reserve all of it; each that ends has spent half, and so on until no whole reserve is left.
    assert starts == [0, 0, 0, 1, 2]
    assert (runner.spent, sum(call.done() for call in results.calls)) == (25.0, 5)
    assert results.stopped == "the spend cap of 30 is reached"
