"""The articles of `make run`, collected from the Python that runs the tests."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from examples.articles import collect
from examples.articles.collect import MIN_CHARS, split

MAX_CHARS = 2400


@pytest.fixture(scope="module")
def articles() -> dict[str, str]:
    return collect.collect(1000, MAX_CHARS)


def test_finds_a_thousand_articles(articles: dict[str, str]) -> None:
    assert len(articles) == 1000


def test_finds_every_kind(articles: dict[str, str]) -> None:
    assert {name.partition(":")[0] for name in articles} == {"topic", "module", "class", "function"}
    assert {"topic:assert", "module:argparse", "class:argparse.ArgumentParser"} <= articles.keys()


def test_articles_are_neither_short_nor_long(articles: dict[str, str]) -> None:
    lengths = [len(text) for text in articles.values()]
    assert min(lengths) >= MIN_CHARS
    assert max(lengths) <= MAX_CHARS


def test_no_two_articles_are_equal(articles: dict[str, str]) -> None:
    assert len(set(articles.values())) == len(articles)


def test_same_python_gives_same_articles_in_same_order(articles: dict[str, str]) -> None:
    assert list(collect.collect(300, MAX_CHARS).items()) == list(articles.items())[:300]


def test_imports_no_module_with_effects(articles: dict[str, str]) -> None:
    assert not {"antigravity", "this", "tkinter", "idlelib"} & sys.modules.keys()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("short", ["short"]),
        ("one two\n\nthree four", ["one two", "three four"]),
        ("one two\nthree four", ["one two", "three four"]),
        ("one two three four", ["one two", "three four"]),
        ("abcdefghijklmnop", ["abcdefghijkl", "mnop"]),
    ],
    ids=["fits", "paragraph", "line", "word", "nowhere"],
)
def test_splits_at_the_best_place(text: str, parts: list[str]) -> None:
    assert list(split(text, 12)) == parts


def test_file_is_an_openai_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "requests.jsonl"
    monkeypatch.setattr(sys, "argv", ["collect", str(path), "--count", "3"])
    collect.main()
    requests = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [request["custom_id"] for request in requests] == list(collect.collect(3, MAX_CHARS))
    for request in requests:
        assert (request["method"], request["url"]) == ("POST", "/v1/chat/completions")
        body = request["body"]
        assert body["model"] == "extractive-1"
        assert body["max_tokens"] > 0
        assert [message["role"] for message in body["messages"]] == ["system", "user"]
        assert len(body["messages"][1]["content"]) >= MIN_CHARS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-chars", "100"], "--max-chars: expected 1600 or more, got 100"),
        (["--count", "99999"], r"expected 99999 articles of 800 characters or more, found \d+ in"),
    ],
)
def test_says_what_is_wrong(options: list[str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    command = [sys.executable, "-m", "examples.articles.collect", str(path), *options]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert re.search(message, run.stderr)
    assert not path.exists()
