"""docs/operating.md shows commands that are there, and Python that runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.cli.commands import command, use

TEXT = (Path(__file__).parents[2] / "docs" / "operating.md").read_text("utf-8")


def shown() -> list[list[str]]:
    lines = re.findall(r"^\$ (headgate .*)$", TEXT, re.MULTILINE)
    return [shlex.split(line.partition("|")[0], comments=True)[1:] for line in lines]


@pytest.mark.parametrize("words", shown(), ids=" ".join)
def test_commands_work(words: list[str], tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path / 'limits.db'}"
    kept = [use(url), use(url, "old-key")]
    once = ["--once"] if words[0] == "top" and "--once" not in words else []
    ran = command(*words, *once, url=url)
    assert ran.exit_code == 0, ran.output
    del kept


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    limiter = use("sqlite:///limits.db")
    names: dict[str, object] = {}
    exec(code, names)
    assert not limiter.snapshot().set_by_operator
