"""Which store the commands take, and what they say when it cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from headgate.cli.operators import safe, shown, standing_text
from headgate.operate import Blocked
from tests.cli.commands import command, url_of, use

COMMANDS = (
    ["keys"],
    ["top", "k"],
    ["pause", "k"],
    ["resume", "k"],
    ["set", "k", "requests=1/s"],
    ["forget", "k"],
)
SECRET = "s3cret/pass+word"
ESCAPED = "s3cret%2Fpass%2Bword"


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
class TestEveryCommand:
    def test_asks_for_a_store(self, words: list[str]) -> None:
        ran = command(*words)
        assert ran.exit_code == 2
        assert ran.stderr == (f"headgate {words[0]}: which store? Give --store URL, or set HEADGATE_STORE\n")

    def test_takes_no_store_that_nobody_else_can_see(self, words: list[str]) -> None:
        ran = command(*words, "--store", "memory://")
        assert ran.exit_code == 2
        assert "memory:// is inside a process and ends with it" in ran.stderr

    def test_makes_no_file(self, words: list[str], tmp_path: Path) -> None:
        ran = command(*words, url=url_of(tmp_path))
        assert ran.exit_code == 2
        assert f"there is no file {tmp_path / 'limits.db'}" in ran.stderr
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "url", ["nowhere://x", "limits.db", "redis://[::1", "http://a:b@c", "sqlite://host/limits.db"]
    )
    def test_tells_what_a_store_is_called(self, words: list[str], url: str) -> None:
        ran = command(*words, url=url)
        assert ran.exit_code == 2
        assert "expected the URL of a" in ran.stderr
        assert "a:b" not in ran.output

    def test_tells_in_a_line_that_a_file_is_no_store(self, words: list[str], tmp_path: Path) -> None:
        (tmp_path / "limits.db").write_text("no store at all" * 100)
        ran = command(*words, url=url_of(tmp_path))
        assert ran.exit_code == 2
        assert "expected a store or no file yet" in ran.stderr
        assert ran.stderr.count("\n") == 1

    def test_tells_in_a_line_that_a_server_cannot_be_reached(self, words: list[str]) -> None:
        ran = command(*words, url=f"redis://:{ESCAPED}@127.0.0.1:1/0")
        assert ran.exit_code in (2, 3), "3, or 2 where the library is not installed"
        assert ran.stderr.count("\n") == 1
        assert "pass" not in ran.output

    def test_teaches(self, words: list[str]) -> None:
        ran = command(words[0], "--help")
        assert ran.exit_code == 0
        assert "Example" in ran.output
        assert "Exit status: 0" in ran.output
        assert "HEADGATE_STORE" in ran.output
        assert "\\b" not in ran.output
        assert f"\n    headgate {words[0]} " in ran.output, "examples stay as they are"


@pytest.mark.parametrize("words", COMMANDS[1:], ids=" ".join)
def test_a_key_that_is_not_there_is_told(words: list[str], tmp_path: Path) -> None:
    url = url_of(tmp_path)
    use(url, "kiwi")
    ran = command(*words, url=url)
    assert ran.exit_code == 1
    assert ran.stderr == f"headgate {words[0]}: there is no key 'k'; there are: 'kiwi'\n"


def test_all_commands_are_listed() -> None:
    listed = command("--help").output
    for words in COMMANDS:
        assert f"\n  {words[0]} " in listed


@pytest.mark.parametrize(
    "text",
    [
        f"cannot reach redis://me:{ESCAPED}@host:1/0: no route",
        f"cannot reach rediss://:{ESCAPED}@host",
        f"wrong password {SECRET!r} for 'me'",
        f"wrong password {ESCAPED}",
    ],
)
def test_nothing_that_is_said_has_a_password_in_it(text: str) -> None:
    said = safe(text, f"redis://me:{ESCAPED}@host:1/0?password={SECRET}")
    assert "pass+" not in said
    assert "pass%" not in said
    assert said[:12] == text[:12]


def test_a_url_is_shown_without_what_is_secret() -> None:
    assert shown(f"redis://me:{ESCAPED}@host:6379/0?password=abc") == "redis://host:6379/0"
    assert shown("sqlite:////var/lib/limits.db") == "sqlite:////var/lib/limits.db"


def test_what_is_said_steers_no_terminal() -> None:
    assert "\x1b" not in safe("a\x1b[2Jb", None)


@pytest.mark.parametrize(
    ("blocked", "text"),
    [
        (None, "open"),
        (Blocked("", "paused", None), "paused"),
        (Blocked("", "paused", 75.0), "paused, 1 min 15 s left"),
        (Blocked("requests/s", "full", 0.02), "requests/s is full, opens in 20 ms"),
        (Blocked("concurrency", "full", None), "concurrency is full, opens when a call ends"),
        (Blocked("requests/s", "refused", 1.5), "requests/s refused, a probe goes in 1.5 s"),
        (Blocked("requests/s", "probing", None), "requests/s refused, a probe is on its way"),
    ],
)
def test_why_whoever_is_next_has_to_wait(blocked: Blocked | None, text: str) -> None:
    assert standing_text(blocked) == text
