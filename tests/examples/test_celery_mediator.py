"""The mediator's example, as its page says to start it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.scenarios]
ROOT = Path(__file__).parents[2]


def test_all_requests_are_answered_and_none_is_refused() -> None:
    command = [sys.executable, "-m", "examples.celery_mediator", "--count", "80"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "80 sent" in done.stderr
    assert re.search(r"80 requests in .* s; called back (8\d) times", done.stdout)
    assert re.findall(r"accepted (\d+), refused 0", done.stdout) == ["56", "24"]
    assert '"ok": true' in done.stdout
    assert "sk-" not in done.stdout + done.stderr
