"""``kill -9`` at random moments, again and again: nothing is lost, nothing stands twice, and next to nothing
is sent twice. ``KILLS=50`` in the environment makes it a longer run than every test of a change can afford.
"""

import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.run.running import Started, ids, plain_lines, results, run
from tests.run.servers import Ledger, ledger_server

KILLS = int(os.environ.get("KILLS") or 10)
LATENCY = 0.04
SLOTS = 12
LINES = 80 * KILLS
OPTIONS = ["--limit", f"concurrency={SLOTS}"]


def wait_for_a_call(server: Ledger, before: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while server.path.stat().st_size <= before and time.monotonic() < deadline:
        time.sleep(0.002)


@pytest.mark.slow
def test_kills_lose_nothing_and_repeat_only_what_was_in_flight(tmp_path: Path) -> None:
    seed = int(os.environ.get("SEED") or random.randrange(10**6))
    chance = random.Random(seed)
    source = plain_lines(tmp_path / "in.jsonl", LINES)
    with ledger_server(tmp_path, latency=LATENCY) as server:
        in_flight = unanswered = busy_kills = seen = 0
        for kill in range(KILLS):
            with Started(source, server.url, *OPTIONS) as going:
                if kill % 10 == 9:  # some while it is still getting ready
                    time.sleep(chance.uniform(0, 0.5))
                else:
                    wait_for_a_call(server, server.path.stat().st_size, 10)
                    time.sleep(chance.uniform(0, 0.2))
                going.kill()
            time.sleep(LATENCY)  # the server notes whom it can no longer answer
            entries = server.entries()
            life, seen = entries[seen:], len(entries)
            received = {entry.name for entry in life if entry.event == "R"}
            lost = received - set(ids_of_whole_lines(results(source)))
            in_flight += len(lost)
            unanswered += len(received - {entry.name for entry in life if entry.event == "A"})
            busy_kills += bool(lost)
            assert len(lost) <= SLOTS
        assert run(source, server.url, *OPTIONS, timeout=100).code == 0
        entries = server.received()
    found = ids(results(source))
    times = Counter(entry.name for entry in entries)
    repeated = sum(count - 1 for count in times.values())
    print(
        f"\nseed {seed}: {KILLS} kills, {busy_kills} with calls in flight ({in_flight} in all, "
        f"{unanswered} not answered by the server); {repeated} calls repeated"
    )
    assert sorted(found) == sorted(f"id-{n}" for n in range(LINES))
    assert set(times) == set(found)
    assert repeated <= in_flight
    assert busy_kills >= 0.8 * KILLS
    keys: dict[str, set[str]] = {}
    for entry in entries:
        keys.setdefault(entry.name, set()).add(entry.key)
    assert all(len(of_one) == 1 for of_one in keys.values())
    assert len({key for of_one in keys.values() for key in of_one}) == LINES


def ids_of_whole_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = path.with_suffix(".whole")
    whole.write_bytes(data[: data.rfind(b"\n") + 1])
    return ids(whole)
