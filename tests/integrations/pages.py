"""Programs that documentation shows: their files out of its code blocks, and commands in their folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.servers.processes import Process

ROOT = Path(__file__).parents[2]
SECONDS = 60


def files_of(page: str) -> dict[str, str]:
    """{path: text} of the Python blocks of a page that begin with their path, in a comment.

    Where a page shows one file in several forms, each says which: ``tasks.py, with a limiter``.
    """
    text = (ROOT / "docs" / page).read_text("utf-8")
    found: dict[str, str] = {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        first, _, rest = block.partition("\n")
        if path := re.fullmatch(r"# ([\w/]+\.py(?:, [\w ]+)?)", first):
            assert path[1] not in found, f"{path[1]} is there twice"
            found[path[1]] = rest
    return found


def environment(folder: Path, more: Mapping[str, str]) -> dict[str, str]:
    """Of a program in a folder; this checkout is found by it, too."""
    paths = [str(folder), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, **more, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run(folder: Path, *words: str, env: Mapping[str, str]) -> str:
    """``python WORDS`` in the folder, which has to succeed; what it printed."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment(folder, env),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def started(folder: Path, *words: str, env: Mapping[str, str], ready: str) -> Iterator[Path]:
    """``python WORDS`` until the end of the block; gives the file of its log.

    Args:
        ready: what its log says once it is.
    """
    log = folder / f"{'-'.join(words[:2]).replace('/', '-')}.log"
    before = log.stat().st_size if log.exists() else 0
    process = Process([sys.executable, *words], folder=folder, log=log, env=environment(folder, env))
    try:
        process.wait_until(lambda: ready.encode() in log.read_bytes()[before:], SECONDS)
        yield log
    finally:
        process.stop()
