import asyncio
import threading

import pytest

from headgate import Limiter
from headgate.stores.memory import MemoryStore
from headgate.testing import FakeClock, Stuck


def test_starts_at_a_fixed_instant() -> None:
    assert FakeClock()() == FakeClock()() == (1_000_000_000, 1_767_225_600_000_000)
    assert FakeClock().elapsed_seconds == 0


def test_advances_both_clocks_by_whole_microseconds(fake_clock: FakeClock) -> None:
    before = fake_clock()
    fake_clock.advance(0.1)
    fake_clock.advance(0.000_000_6)
    now = fake_clock()
    assert (now.elapsed_us - before.elapsed_us, now.wall_us - before.wall_us) == (100_001, 100_001)
    assert repr(fake_clock) == "<FakeClock 0.100001 s>"


def test_the_wall_clock_can_be_set_without_time_passing(fake_clock: FakeClock) -> None:
    before = fake_clock()
    fake_clock.jump_wall(-3600)
    assert fake_clock() == (before.elapsed_us, before.wall_us - 3_600_000_000)


def test_does_not_run_backwards(fake_clock: FakeClock) -> None:
    with pytest.raises(ValueError, match="got -1"):
        fake_clock.advance(-1)


def test_keeps_a_store_in_its_time(fake_clock: FakeClock) -> None:
    limiter = Limiter("requests=2/s:burst=1:start=full", store=MemoryStore(fake_clock))
    limiter.acquire().settle()
    assert limiter.try_permit() is None
    fake_clock.advance(0.5)
    assert limiter.try_permit() is None, "the rate is a little below the server's, for clocks that drift"
    fake_clock.advance(0.000_2)
    assert limiter.try_permit() is not None


def test_a_wall_clock_that_is_set_mints_nothing(fake_clock: FakeClock) -> None:
    limiter = Limiter("requests=5/h:kind=fixed:start=full", store=MemoryStore(fake_clock))
    fake_clock.advance(1)
    for _ in range(5):
        limiter.acquire().settle()
    for seconds in (7200, -86_400, 86_400 * 40):
        fake_clock.jump_wall(seconds)
        assert limiter.try_permit() is None
    fake_clock.advance(2 * 3600)
    assert limiter.try_permit() is not None


def test_runs_hours_of_waiting_at_once(fake_clock: FakeClock) -> None:
    limiter = Limiter("requests=1/min:burst=1:start=full", store=MemoryStore(fake_clock))

    async def ten_calls() -> str:
        for _ in range(10):
            async with limiter.permit():
                pass
        return "done"

    assert fake_clock.run(ten_calls()) == "done"
    assert 9 * 60 <= fake_clock.elapsed_seconds < 9 * 60 + 1


def test_timers_fire_at_their_microsecond_and_in_order(fake_clock: FakeClock) -> None:
    fired: list[tuple[int, int]] = []

    async def sleep(us: int) -> None:
        await asyncio.sleep(us / 1_000_000)
        fired.append((us, fake_clock().elapsed_us - 1_000_000_000))

    async def main() -> None:
        await asyncio.gather(*map(sleep, (3, 100_000_001, 1, 1_000_000, 33_333, 2, 90_000_000_000)))

    fake_clock.run(main())
    assert fired == [(us, us) for us in sorted(us for us, _ in fired)]
    assert len(fired) == 7


def test_goes_on_where_the_last_run_ended(fake_clock: FakeClock) -> None:
    fake_clock.run(asyncio.sleep(2))
    fake_clock.run(asyncio.sleep(3))
    assert fake_clock.elapsed_seconds == 5


def test_a_program_that_can_never_go_on_is_told_so(
    fake_clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headgate.testing.virtual_loop.PATIENCE_SECONDS", 0.01)
    limiter = Limiter("concurrency=1", store=MemoryStore(fake_clock))

    async def deadlock() -> None:
        async with limiter.permit(), limiter.permit():
            pass

    def never_stuck() -> None:
        raise TimeoutError("it is still busy after a thousand turns")

    loop = fake_clock.loop()
    loop.at_turn(1000, never_stuck)
    with pytest.raises(Stuck), asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(deadlock())
    assert (limiter.waiting, limiter.used()) == (0, {"concurrency": 0})


def test_threads_work_beside_it(fake_clock: FakeClock) -> None:
    async def main() -> int:
        return await asyncio.to_thread(threading.get_ident)

    assert fake_clock.run(main()) != threading.get_ident()
    assert fake_clock.elapsed_seconds == 0


def test_acts_between_turns(fake_clock: FakeClock) -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        assert loop.time() == fake_clock.elapsed_seconds
        seen: list[int] = []
        for turn in range(2, 5):
            virtual.at_turn(turn, lambda turn=turn: seen.append(turn))  # type: ignore[misc]  # default
        await asyncio.sleep(1)
        await asyncio.sleep(1)
        return seen

    virtual = fake_clock.loop()
    with asyncio.Runner(loop_factory=lambda: virtual) as runner:
        assert runner.run(main()) == [2, 3, 4]
        assert virtual.turns >= 4
    assert fake_clock.elapsed_seconds == 2
