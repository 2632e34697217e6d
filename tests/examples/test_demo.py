"""`make run`, on fewer articles."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.scenarios
def test_summarises_every_article_without_a_refusal(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "examples.articles.demo", "--count=40"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "accepted 40, refused 0" in run.stdout
    directory = tmp_path / "build/articles"
    assert read_ids(directory / "summaries.jsonl") == read_ids(directory / "requests.jsonl")


def read_ids(path: Path) -> list[str]:
    """Return the `custom_id` of every line, sorted."""
    return sorted(json.loads(line)["custom_id"] for line in path.read_text(encoding="utf-8").splitlines())
