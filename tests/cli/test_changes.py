"""``headgate pause``, ``resume``, ``set`` and ``forget``."""

from __future__ import annotations

from pathlib import Path

import click.testing
import pytest

from headgate import operate
from headgate.stores.base import open_store
from tests.cli.commands import LIMITS, command, url_of, use


@pytest.fixture
def url(tmp_path: Path) -> str:
    return url_of(tmp_path)


# pause, resume


def test_a_key_is_paused_until_it_is_resumed(url: str) -> None:
    limiter = use(url, calls=0)
    limiter.used()
    ran = command("pause", "openai", url=url)
    assert (ran.exit_code, ran.output) == (0, "openai: paused until it is resumed\n")
    assert limiter.try_permit() is None
    ran = command("resume", "openai", "--store", url)
    assert (ran.exit_code, ran.output) == (0, "openai: resumed\n")
    assert limiter.try_permit() is not None
    assert command("resume", "openai", url=url).output == "openai: was not paused\n"


@pytest.mark.parametrize(
    ("said", "told", "seconds"),
    [
        ("30s", "30 s", 30),
        ("10min", "10 min 00 s", 600),
        ("1h30m", "1 h 30 min", 5400),
        ("250ms", "0.2 s", 0.25),
    ],
)
def test_a_key_is_paused_for_a_time(url: str, said: str, told: str, seconds: float) -> None:
    limiter = use(url)
    ran = command("pause", "openai", "--for", said, url=url)
    assert (ran.exit_code, ran.output) == (0, f"openai: paused for {told}\n")
    blocked = limiter.snapshot().blocked
    assert seconds < 1 or (blocked is not None and (blocked.seconds or 0) == pytest.approx(seconds, abs=5))


@pytest.mark.parametrize("said", ["30", "soon", "", "-5s", "0s", "9999d"])
def test_a_pause_takes_a_time_that_makes_sense(url: str, said: str) -> None:
    limiter = use(url)
    ran = command("pause", "openai", "--for", said, url=url)
    assert ran.exit_code == 2
    assert "a duration such as 30s" in ran.stderr or "a pause lasts above 0 seconds" in ran.stderr
    assert not limiter.snapshot().paused


# set


def test_limits_are_set_and_told(url: str) -> None:
    limiter = use(url)
    ran = command("set", "openai", "requests=600/min:burst=60", "concurrency=4", url=url)
    assert ran.exit_code == 0
    assert ran.output.splitlines() == [
        "requests=500/min:burst=50:start=full → requests=600/min:burst=60:start=full",
        "concurrency=8 → concurrency=4",
        "programs declare requests=500/min:burst=50:start=full, concurrency=8",
    ]
    assert [limit.capacity for limit in limiter.snapshot().limits] == [60, 4]
    ran = command("set", "openai", "--declared", url=url)
    assert ran.output.splitlines() == [
        "requests=600/min:burst=60:start=full → requests=500/min:burst=50:start=full",
        "concurrency=4 → concurrency=8",
    ]
    assert not limiter.snapshot().set_by_operator
    assert command("set", "openai", "--declared", url=url).output == f"nothing changes: {', '.join(LIMITS)}\n"


def test_a_limit_that_starts_anew_is_told(url: str) -> None:
    limiter = use(url)
    ran = command("set", "openai", "requests=5/s:name=requests/min", url=url)
    assert "of another kind or period: it starts as if all of it had just been used" in ran.output
    del limiter


def test_shares_are_set_and_told(url: str) -> None:
    limiter = use(url)
    ran = command("set", "openai", "--shares", "interactive=60,normal=30,bulk=10", url=url)
    assert (ran.exit_code, ran.output) == (0, "shares: interactive 60 %, normal 30 %, bulk 10 %\n")
    assert [each.share for each in limiter.snapshot().classes] == [60, 30, 10]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "set what?"),
        (["--declared", "concurrency=4"], "give no LIMIT"),
        (["requests=5/"], "expected a period"),
        (["images=5/s"], "no limit of this key is named 'images/s'"),
        (["requests=5/s"], "add :name=requests/min"),
        (["--shares", "interactive=60"], "expected interactive=N,normal=N,bulk=N"),
        (["--shares", "interactive=60,normal=30,bulk=20"], "together 100"),
        (["--shares", "interactive=60,normal=40,bulk=0"], "shares of 1 or more"),
        (["--shares", "interactive=60,normal=30,bulk=10,other=0"], "expected interactive=N,normal=N,bulk=N"),
        (["--shares", "60,30,10"], "expected interactive=N,normal=N,bulk=N"),
    ],
)
def test_what_makes_no_sense_changes_nothing(url: str, words: list[str], message: str) -> None:
    limiter = use(url)
    ran = command("set", "openai", *words, url=url)
    assert ran.exit_code == 2
    assert message in ran.stderr
    assert not limiter.snapshot().set_by_operator
    assert [each.share for each in limiter.snapshot().classes] == [50, 35, 15]


# forget


def test_a_key_that_nobody_uses_is_forgotten_without_a_terminal(url: str) -> None:
    limiter = use(url, calls=0)
    limiter.used()
    ran = command("forget", "openai", url=url)
    assert (ran.exit_code, ran.output) == (0, "openai: forgotten\n")
    assert open_store(url).keys() == []


def test_what_is_held_is_told(url: str) -> None:
    limiter = use(url, calls=3)
    ran = command("forget", "openai", "--yes", url=url)
    assert (ran.exit_code, ran.output) == (0, "openai: starts anew; what 1 client holds stays counted\n")
    assert limiter.used() == {"requests/min": 0, "concurrency": 3}


@pytest.mark.parametrize(
    ("said", "told"), [("n\n", "left as it is"), ("\n", "left as it is"), ("y\n", "starts anew")]
)
def test_a_terminal_is_asked_first(url: str, said: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = use(url, calls=2)
    monkeypatch.setattr(click.testing._NamedTextIOWrapper, "isatty", lambda stream: stream.name == "<stdin>")
    ran = command("forget", "openai", url=url, stdin=said)
    assert ran.exit_code == 0
    assert "Forget openai, with 2 calls granted (2 in flight and 0 waiting; they go on)?" in ran.stderr
    assert told in ran.stdout
    assert operate.snapshot(limiter.store, "openai").granted == (0 if said == "y\n" else 2)
