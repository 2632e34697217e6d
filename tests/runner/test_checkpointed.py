"""A Runner with a checkpoint: what one runner has done, the next one knows."""

import asyncio
import functools
import threading
from pathlib import Path
from typing import Any

import pytest

from headgate import ConfigurationError, Interval, Limiter, Runner, current_call
from headgate.stores.memory import MemoryStore
from headgate.testing import FakeClock

quiet = functools.partial(Runner, progress=False)


class Counting:
    """Doubles, and counts its calls."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def double(self, x: int) -> int:
        self.calls.append(x)
        return 2 * x


def test_finished_calls_are_known_to_the_next_runner(tmp_path: Path) -> None:
    counting = Counting()
    for _ in range(3):
        with_file = quiet(counting.double, checkpoint=tmp_path / "done.db")
        for x in range(5):
            with_file.schedule(x)
        results = with_file.run()
        assert results.results == [0, 2, 4, 6, 8]
        with_file.close()
    assert sorted(counting.calls) == [0, 1, 2, 3, 4]
    assert all(call.restored and call.attempts == 1 for call in results.calls)
    assert all(call.finished_at is not None for call in results.calls)
    assert with_file.statistics().restored == 5


def test_failed_calls_are_tried_again_by_the_next_runner(tmp_path: Path) -> None:
    broken = True

    def shaky(x: int) -> int:
        if broken and x == 1:
            raise ValueError
        return x

    for expected in ([0, None, 2], [0, 1, 2]):
        runner = quiet(shaky, checkpoint=tmp_path / "done.db", max_attempts=1)
        assert list(runner.map(range(3))) == expected
        runner.close()
        broken = False


def test_equal_calls_are_told_apart_by_their_order(tmp_path: Path) -> None:
    draws = iter(range(100))

    def draw(_: str) -> int:
        return next(draws)

    first = quiet(draw, checkpoint=tmp_path / "draws.db", max_concurrent=1)
    values = list(first.map(["dice"] * 4))
    assert values == [0, 1, 2, 3]
    assert list(first.map(["dice"] * 4)) == values  # the same list again, in the same process
    first.close()
    second = quiet(draw, checkpoint=tmp_path / "draws.db", max_concurrent=1)
    assert list(second.map(["dice"] * 6)) == [0, 1, 2, 3, 4, 5]


def test_a_newer_runner_of_the_process_takes_the_file_over(tmp_path: Path) -> None:
    counting = Counting()
    older = quiet(counting.double, checkpoint=tmp_path / "done.db")
    assert list(older.map([1, 2])) == [2, 4]
    newer = quiet(counting.double, checkpoint=tmp_path / "done.db")
    assert list(newer.map([1, 2, 3])) == [2, 4, 6]
    assert sorted(counting.calls) == [1, 2, 3]
    with pytest.raises(RuntimeError, match="taken over"):
        older.schedule(1)


def test_a_runner_that_runs_keeps_its_file(tmp_path: Path) -> None:
    gate = threading.Event()
    busy = quiet(lambda: gate.wait(20), checkpoint=tmp_path / "done.db")
    busy.start()
    call = busy.schedule()
    with pytest.raises(ConfigurationError, match=r"done\.db"):
        quiet(lambda: None, checkpoint=tmp_path / "done.db")
    gate.set()
    assert call.result(20) is True
    busy.close()


def test_a_result_that_cannot_be_kept_stops_the_run_and_is_not_lost(tmp_path: Path) -> None:
    runner = quiet(lambda x: {1, x}, checkpoint=tmp_path / "done.db", max_concurrent=1)
    calls = [runner.schedule(x) for x in (2, 3)]
    with pytest.raises(ConfigurationError, match="set"):
        runner.run()
    assert calls[0].value == {1, 2}
    assert not calls[1].done()
    runner.close()
    pickled = quiet(lambda x: {1, x}, checkpoint=tmp_path / "other.db", codec="pickle")
    assert list(pickled.map([2, 3])) == [{1, 2}, {1, 3}]


def test_facts_are_kept_for_the_next_attempt_and_the_next_process(tmp_path: Path) -> None:
    submitted: list[str] = []
    keys: set[str] = set()
    crash = True

    def paid(video: str) -> str:
        keys.add(current_call().idempotency_key)
        operation = current_call().recorded.get("operation")
        if operation is None:
            operation = f"run of {video}"
            submitted.append(operation)
            current_call().record("operation", operation)
        if crash:
            raise ConnectionError
        return f"result of {operation}"

    for expected in ([None], ["result of run of film"]):
        runner = quiet(paid, checkpoint=tmp_path / "done.db", max_attempts=2, backoff_seconds=0)
        assert list(runner.map(["film"])) == expected
        runner.close()
        crash = False
    assert submitted == ["run of film"]
    assert len(keys) == 1


def test_facts_last_for_a_call_without_a_checkpoint() -> None:
    def twice() -> Any:
        if current_call().attempt == 1:
            current_call().record("seen", 1)
            raise ConnectionError
        return current_call().recorded

    runner = quiet(twice, backoff_seconds=0)
    runner.schedule()
    assert runner.run().results == [{"seen": 1}]


def test_a_duplicate_of_finished_work_is_recalled(tmp_path: Path) -> None:
    counting = Counting()
    runner = quiet(counting.double, checkpoint=tmp_path / "done.db", dedup="skip")
    assert runner.schedule(4).result(20) == 8
    again = runner.schedule(4)
    assert again.result(20) == 8
    assert again.restored
    assert not again.skipped
    assert counting.calls == [4]
    runner.close()


def test_arguments_without_a_digest_are_refused_by_schedule(tmp_path: Path) -> None:
    runner = quiet(lambda client: 1, checkpoint=tmp_path / "done.db")
    with pytest.raises(ConfigurationError, match="digest="):
        runner.schedule(threading.Lock())
    assert runner.run().results == []


def test_a_month_is_remembered_by_the_next_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    clock.advance(3600)  # away from the month's edge
    monkeypatch.setattr("headgate.runner.runner.MemoryStore", lambda: MemoryStore(clock))
    started = 0

    async def start(x: int) -> None:
        nonlocal started
        started += 1
        await asyncio.sleep(0)

    for _ in range(4):
        runner = quiet(
            start,
            "requests=10/month:kind=calendar:start=full",
            checkpoint=tmp_path / "done.db",
            digest=lambda x: f"{x}",
            deadline=0.2,
        )
        for x in range(started, started + 4):
            runner.schedule(x)
        runner.run()
        runner.close()
    assert started == 10


def test_an_interval_is_remembered_by_the_next_process(tmp_path: Path) -> None:
    clock = FakeClock()
    starts: list[float] = []

    async def start(x: int) -> None:
        starts.append(clock.elapsed_seconds)
        await asyncio.sleep(0)

    for process in range(3):
        runner = quiet(
            start,
            Limiter(store=MemoryStore(clock)),
            interval=Interval(120),
            checkpoint=tmp_path / "done.db",
        )
        for x in range(2):
            runner.schedule(10 * process + x)
        clock.run(_run(runner))
        runner.close()
        clock.advance(1)
    assert starts == [0, 120, 240, 360, 480, 600]


async def _run(runner: Runner[Any, Any]) -> None:
    await runner.run_async()
