"""``headgate top``: what it draws, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from headgate import operate
from headgate.cli.screen import Look, Watch, key_screen, keys_screen
from headgate.core.model import ANSWERED, SECOND, Granted, Report, Signal, Throttle
from headgate.core.plan import Plan
from headgate.core.text import parse_limits
from headgate.core.together import Line
from headgate.operate import Snapshot
from headgate.stores.sqlite import SQLiteStore
from headgate.testing import FakeClock
from tests.cli.commands import command, url_of, use

PLACE = "sqlite:///limits.db"
LIMITS = ("requests=100/s:burst=10:start=full", "tokens=6k/min:kind=sliding:start=full", "concurrency=8")


def drawn(parts: list[Text | Table], width: int) -> list[str]:
    console = Console(width=width, no_color=True, force_terminal=False)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    lines = captured.get().splitlines()
    assert all(len(line) <= width for line in lines)
    return [line.rstrip() for line in lines]


class Fleet:
    """Processes at work on a key, in a time of their own."""

    def __init__(self, path: Path, clock: FakeClock, *limits: str) -> None:
        self.clock = clock
        self.path = path
        self.plan = Plan(parse_limits(limits or LIMITS))
        self.stores: list[SQLiteStore] = []
        self.watch = Watch()

    def join(self) -> SQLiteStore:
        self.stores.append(SQLiteStore(self.path, clock=self.clock))
        return self.stores[-1]

    def call(self, store: SQLiteStore, calls: int, *, kind: int = 1, tokens: int = 10) -> list[Granted]:
        asks = [self.plan.costs({"tokens": tokens} if "tokens" in self.plan.meters else {})] * calls
        [answers] = store.acquire_for("openai", self.plan, [Line(kind, calls, asks)])
        return [answer for answer in answers if type(answer) is Granted]

    def end(self, store: SQLiteStore, grants: list[Granted], signal: Signal = ANSWERED) -> None:
        store.settle_for("openai", self.plan, [Report(grant, signal) for grant in grants])

    def snapshot(self) -> Snapshot:
        return operate.snapshot(self.stores[0], "openai")

    def look(self) -> Look:
        return self.watch.add(self.snapshot())

    def close(self) -> None:
        for store in self.stores:
            store.close()


@pytest.fixture
def fleet(tmp_path: Path, fake_clock: FakeClock) -> Callable[..., Fleet]:
    def start(*limits: str) -> Fleet:
        return Fleet(tmp_path / "limits.db", fake_clock, *limits)

    return start


def busy(fleet: Fleet) -> Look:
    """Two processes, a refusal, and others that wait."""
    one, two = fleet.join(), fleet.join()
    fleet.end(one, fleet.call(one, 3))
    fleet.end(one, fleet.call(one, 1), Signal(throttle=Throttle("requests", SECOND // 2)))
    fleet.look()
    for _ in range(4):
        fleet.clock.advance(0.6)
        fleet.end(one, fleet.call(one, 5))
        fleet.end(two, fleet.call(two, 5))
    fleet.clock.advance(0.6)
    fleet.call(one, 6)
    fleet.call(two, 9)
    fleet.call(two, 4, kind=2)
    return fleet.look()


def test_a_key_is_drawn(fleet: Callable[..., Fleet]) -> None:
    running = fleet()
    look = busy(running)
    one, two = (store.client for store in running.stores)
    lines = drawn(key_screen(look, PLACE, width=110, height=40), 110)
    text = "\n".join(lines)
    assert lines[0].startswith("openai  concurrency is full, opens when a call ends")
    assert lines[0].endswith(PLACE)
    assert re.match(
        r"1\d\.\d calls/s   8 in flight   11 waiting   2 clients   \d+ granted   1 refused$", lines[1]
    )
    assert re.search(r"^requests/s   [━╸─]+  +\d+%  \d+/s of 100/s +\d+ of 10 used", text, re.MULTILINE)
    assert re.search(r"^tokens/min   [━╸─]+  +\d+%  \d+ of 6,000 used +\d+/s of 100/s", text, re.MULTILINE)
    assert re.search(r"^concurrency  ━+  +100%  8 of 8 slots +full$", text, re.MULTILINE)
    assert "interactive 0 waiting, 50 %   normal 7 waiting, 35 %   bulk 4 waiting, 15 %" in lines
    assert re.search(rf"^{one} +6  – +6 concurrency +15 s$", text, re.MULTILINE)
    assert re.search(rf"^{two} +2  7 normal, 4 bulk +2 concurrency +15 s$", text, re.MULTILINE)
    assert re.search(r"^3.0 s ago   requests/s   retry after 0.5 s$", text, re.MULTILINE)
    running.close()


@pytest.mark.parametrize("width", [30, 40, 50, 60, 72, 80, 100, 200])
@pytest.mark.parametrize("height", [5, 10, 14, 24])
def test_it_fits_any_terminal(fleet: Callable[..., Fleet], width: int, height: int) -> None:
    running = fleet()
    look = busy(running)
    lines = drawn(
        key_screen(look, "sqlite:////a/rather/long/path/to/limits.db", width=width, height=height), width
    )
    assert lines[0].startswith("openai  conc")
    for limit in ("requests/s", "tokens/min", "concurrency"):
        assert any(line.startswith(limit) for line in lines)
    if height >= 14 and width >= 60:
        assert len(lines) <= height
    lines = drawn(keys_screen([look], PLACE, width=width, height=height), width)
    assert any(line.startswith("openai") for line in lines)
    running.close()


def test_limits_that_were_set_and_a_pause_are_drawn(fleet: Callable[..., Fleet]) -> None:
    running = fleet()
    busy(running)
    operate.set_limits(running.stores[0], "openai", ["requests=50/s"])
    operate.pause(running.stores[0], "openai", 30)
    running.clock.advance(1)
    lines = drawn(key_screen(running.look(), PLACE, width=110, height=40), 110)
    assert lines[0].startswith("openai  paused, 29 s left")
    assert any(
        line.startswith("set by an operator; programs declare   requests=100/s:burst=10") for line in lines
    )
    running.close()


def test_more_clients_than_there_is_room_for_are_counted(fleet: Callable[..., Fleet]) -> None:
    running = fleet("concurrency=90")
    for number in range(12):
        running.call(running.join(), number + 1)
    lines = drawn(key_screen(running.look(), PLACE, width=100, height=16), 100)
    assert len(lines) <= 16
    assert lines[-1] == "… and 6 more"
    assert lines[-2].split()[1] == "7", "the busiest are shown"
    running.close()


def test_rates_are_those_of_the_last_seconds(fleet: Callable[..., Fleet]) -> None:
    running = fleet("requests=100/s:burst=100:start=full")
    store = running.join()
    for per_look in [10] * 10 + [30] * 11:  # one look every half second
        running.end(store, running.call(store, per_look))
        running.clock.advance(0.5)
        look = running.look()
    assert look.calls == pytest.approx(60)
    assert look.rates["requests/s"] == pytest.approx(60)
    operate.forget(store, "openai")
    running.end(store, running.call(store, 1))
    running.clock.advance(0.5)
    running.look()
    for _ in range(4):
        running.end(store, running.call(store, 2))
        running.clock.advance(0.5)
        look = running.look()
    assert look.calls == pytest.approx(4), "what was before the key began anew does not count"
    running.close()


def test_the_busiest_keys_come_first(fleet: Callable[..., Fleet]) -> None:
    running = fleet()
    look = busy(running)
    idle = running.stores[0]
    for key in ("a", "b", "c"):
        idle.acquire(key, running.plan, [running.plan.costs({})])
    looks = [Watch().add(operate.snapshot(idle, key)) for key in ("a", "b", "c")]
    lines = drawn(keys_screen([*looks, look], PLACE, width=110, height=8), 110)
    assert lines[0] == f"4 keys  {PLACE}"
    assert [line.split()[0] for line in lines[2:]] == ["key", "openai", "a", "b", "…"]
    assert "concurrency 100%  concurrency is full, opens when a call ends" in lines[3]
    assert lines[-1] == "… and 1 more"
    assert drawn(keys_screen([], PLACE, width=80, height=20), 80)[1] == "nobody has drawn on this store yet"
    running.close()


# The command


def test_it_is_shown_once(tmp_path: Path) -> None:
    url = url_of(tmp_path)
    limiter = use(url, calls=3)
    for words in (["openai", "--once"], ["openai"]):  # to no terminal, once is all there is
        ran = command("top", *words, "--every", "0.05", url=url)
        assert ran.exit_code == 0
        assert ran.stdout.startswith("openai  open")
        assert "0.0 calls/s   3 in flight" in ran.stdout
        assert "3 of 8 slots" in ran.stdout
        assert "\x1b" not in ran.stdout
    ran = command("top", "--once", "--every", "0.05", url=url)
    assert ran.stdout.startswith("1 key  sqlite://")
    del limiter


def test_scripts_get_json(tmp_path: Path) -> None:
    url = url_of(tmp_path)
    limiter = use(url, calls=3)
    [line] = command("top", "openai", "--once", "--json", "--every", "0.05", url=url).stdout.splitlines()
    found = json.loads(line)
    assert found["in_flight"] == 3
    assert found["rates"] == {"requests/min": 0.0}
    assert found["calls_per_second"] == 0.0
    [line] = command("top", "--once", "--json", "--every", "0.05", url=url).stdout.splitlines()
    assert [each["key"] for each in json.loads(line)] == ["openai"]
    del limiter


class Live:
    """``headgate top`` in a terminal of its own."""

    def __init__(self, *words: str, url: str) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "headgate", "top", *words, "--every", "0.05"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "HEADGATE_STORE": url, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"},
        )
        os.close(theirs)
        self.said = ""

    def wait_for(self, text: str, count: int = 1) -> None:
        deadline = time.monotonic() + 20
        while self.plain.count(text) < count:
            assert time.monotonic() < deadline, self.said
            self._read()

    @property
    def plain(self) -> str:
        """What it said, without colours and movements of the cursor."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.said)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._ours], [], [], 0.1)
        try:
            chunk = os.read(self._ours, 1 << 16) if ready else b"-"
        except OSError:  # it has ended
            chunk = b""
        self.said += chunk.decode(errors="replace") if ready else ""
        return bool(chunk)

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        while self._read():
            pass
        os.close(self._ours)
        return self.process.wait(20)


@pytest.mark.parametrize("words", [["openai"], []], ids=["a key", "all keys"])
def test_it_lives_until_it_is_interrupted(tmp_path: Path, words: list[str]) -> None:
    url = url_of(tmp_path)
    limiter = use(url, calls=3)
    live = Live(*words, url=url)
    live.wait_for("openai", 3)
    if words:
        limiter.pause()
        live.wait_for("paused")
        operate.forget(limiter.store, "openai")
        live.wait_for("0 granted")
    assert live.interrupt() == 0
    assert "Traceback" not in live.said
    assert live.said.count("\x1b[?25l") == live.said.count("\x1b[?25h"), "the cursor is back"


def test_a_key_that_goes_is_told_and_may_come_back(tmp_path: Path) -> None:
    url = url_of(tmp_path)
    limiter = use(url, calls=0)
    limiter.used()
    live = Live("openai", url=url)
    live.wait_for("openai")
    operate.forget(limiter.store, "openai")
    live.wait_for("there is no key 'openai'")
    limiter.acquire()
    live.wait_for("1 in flight")
    assert live.interrupt() == 0
