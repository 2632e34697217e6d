"""Classes of service in one process: shares while all want something, and nothing left idle."""

import asyncio

import pytest

from headgate import ConfigurationError, Limiter
from headgate.stores.memory import MemoryStore
from headgate.testing import FakeClock


@pytest.mark.parametrize("slots", [0, 4])
def test_classes_get_their_shares_while_all_wait(fake_clock: FakeClock, slots: int) -> None:
    store = MemoryStore(fake_clock)
    limits = ["requests=100/s:burst=10:start=full"] + ([f"concurrency={slots}"] if slots else [])
    normal = Limiter(*limits, store=store)
    served: dict[str, int] = dict.fromkeys(("interactive", "normal", "bulk"), 0)

    async def want(limiter: Limiter) -> None:
        while fake_clock.elapsed_seconds < 20:
            async with limiter.permit():
                served[limiter.service_class] += 1
                await asyncio.sleep(0.01)

    async def main() -> None:
        limiters = [normal.of_class("interactive"), normal, normal.of_class("bulk")]
        async with asyncio.TaskGroup() as group:
            for limiter in limiters:
                for _ in range(10):
                    group.create_task(want(limiter))

    fake_clock.run(main())
    total = sum(served.values())
    assert total >= 1_950
    assert served["interactive"] / total == pytest.approx(0.50, abs=0.05)
    assert served["normal"] / total == pytest.approx(0.35, abs=0.05)
    assert served["bulk"] / total == pytest.approx(0.15, abs=0.05)


def test_what_one_class_does_not_want_is_the_others(fake_clock: FakeClock) -> None:
    limiter = Limiter(
        "requests=100/s:burst=10:start=full", store=MemoryStore(fake_clock), service_class="bulk"
    )

    async def main() -> None:
        for _ in range(200):
            (await limiter.acquire_async()).settle()

    fake_clock.run(main())
    assert fake_clock.elapsed_seconds < 2.1


def test_an_unknown_class_is_told() -> None:
    with pytest.raises(ConfigurationError, match="interactive, normal, bulk"):
        Limiter("requests=1/s", service_class="urgent")  # type: ignore[arg-type]  # on purpose


def test_what_was_taken_before_another_class_came_finds_its_way_back(fake_clock: FakeClock) -> None:
    limiter = Limiter(
        "concurrency=2", "tokens=100/s:burst=50:charge=usage:start=full", store=MemoryStore(fake_clock)
    )
    first, second = limiter.acquire(tokens=10), limiter.acquire(tokens=10)
    limiter.of_class("bulk")  # from here on the store is told whose each call is
    first.settle(tokens=3)
    second.give_back()
    assert limiter.used() == {"concurrency": 0, "tokens/s": 3}
