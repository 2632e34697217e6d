"""``headgate keys``."""

from __future__ import annotations

import json
from pathlib import Path

from headgate.parking import lot_of
from headgate.stores.sqlite import SQLiteStore
from tests.cli.commands import command, url_of, use


def test_each_key_is_a_line(tmp_path: Path) -> None:
    url = url_of(tmp_path)
    limiters = [use(url, "openai", 3), use(url, "maps", 1, "requests=5/s:burst=2")]
    limiters[1].set_limits("requests=4/s")
    limiters[1].pause()
    ran = command("keys", url=url)
    assert ran.exit_code == 0
    lines = ran.stdout.splitlines()
    assert lines == [
        "key     granted  refused  in flight  waiting  clients  now     limits",
        "maps          1        0          1        0        1  paused  "
        "requests=4/s:burst=2 (set by an operator)",
        "openai        3        0          3        0        1  open    "
        "requests=500/min:burst=50:start=full, concurrency=8",
    ]


def test_tasks_of_a_job_system_are_counted(tmp_path: Path) -> None:
    url = url_of(tmp_path)
    limiters = [use(url, "openai"), use(url, "maps")]
    lot = lot_of(limiters[0].store)
    for id in ("a", "b", "c"):
        lot.park("openai", id, 0, b"", (1, 1))
    lot.take("openai", "me", 1, 1_000_000)
    lines = command("keys", url=url).stdout.splitlines()
    assert lines[0].split()[4:8] == ["flight", "waiting", "parked", "clients"]
    assert [line.split()[5] for line in lines[1:]] == ["0", "3"]
    assert "3 parked" in command("top", "openai", "--once", url=url).stdout
    assert "parked" in command("top", "--once", url=url).stdout
    assert "parked" not in command("top", "maps", "--once", url=url).stdout


def test_json_tells_all(tmp_path: Path) -> None:
    url = url_of(tmp_path)
    limiter = use(url)
    [found] = json.loads(command("keys", "--json", url=url).stdout)
    assert found["key"] == "openai"
    assert found["limits"][0]["text"] == "requests=500/min:burst=50:start=full"
    assert found["clients"][0]["held"] == {"concurrency": 1}
    del limiter


def test_a_store_without_keys_is_told(tmp_path: Path) -> None:
    SQLiteStore(tmp_path / "limits.db").close()
    ran = command("keys", url=url_of(tmp_path))
    assert (ran.exit_code, ran.stdout) == (0, "")
    assert "no keys" in ran.stderr
    assert json.loads(command("keys", "--json", url=url_of(tmp_path)).stdout) == []


def test_names_of_keys_steer_no_terminal(tmp_path: Path) -> None:
    url = url_of(tmp_path)
    limiter = use(url, "a\x1b[2Jb")
    assert "\x1b" not in command("keys", url=url).output
    del limiter
