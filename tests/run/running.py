"""Runs ``headgate run`` as its users do, in a process of its own, and reads what it wrote."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

HEADGATE = [sys.executable, "-m", "headgate"]
SECRET = "sk-Test/5+ecret=Key"
FAST = "requests=100k/s:burst=10k:start=full"


def line(name: str, *do: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """An input line; the server answers it by the script ``do``."""
    body: dict[str, Any] = {"n": name}
    if do:
        body["do"] = list(do)
    return {
        "custom_id": name,
        "method": "POST",
        "url": "/v1/things",
        "body": {**body, **fields.pop("body", {})},
        **fields,
    }


def write_lines(path: Path, lines: Iterable[Any]) -> Path:
    with path.open("w") as file:
        for item in lines:
            file.write((item if isinstance(item, str) else json.dumps(item)) + "\n")
    return path


def plain_lines(path: Path, count: int, start: int = 0) -> Path:
    return write_lines(path, (line(f"id-{number}") for number in range(start, start + count)))


class Ran(NamedTuple):
    """A finished run."""

    code: int
    out: str
    err: str


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONWARNINGS": "default", "THE_KEY": SECRET, **more}


def command(source: Path | str, url: str, *options: str) -> list[str]:
    return [*HEADGATE, "run", str(source), "--base-url", url, "--progress", "none", *options]


def run(
    source: Path | str, url: str, *options: str, stdin: str | bytes | None = None, timeout: float = 60
) -> Ran:
    """Run to its end. Whatever else it says, it never shows a traceback."""
    given = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        command(source, url, *options),
        input=given,
        stdin=subprocess.DEVNULL if given is None else None,
        capture_output=True,
        timeout=timeout,
        env=environment(),
        check=False,
    )
    ran = Ran(done.returncode, done.stdout.decode(), done.stderr.decode())
    assert "Traceback" not in ran.err, ran.err
    assert "never retrieved" not in ran.err, ran.err
    return ran


class Started:
    """A run under way; ends with the test at the latest."""

    def __init__(self, source: Path | str, url: str, *options: str, stdin: int = subprocess.DEVNULL) -> None:
        self.process = subprocess.Popen(
            command(source, url, *options),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self, timeout: float = 30) -> Ran:
        out, err = self.process.communicate(timeout=timeout)
        assert b"Traceback" not in err, err.decode()
        return Ran(self.process.returncode, out.decode(), err.decode())


def wait_until(true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a result file, read as strictly as anybody may."""
    if not path.exists():
        return []
    found = []
    for text in path.read_bytes().decode("utf-8").splitlines():
        item = json.loads(text, parse_constant=_refuse)
        assert item.keys() == {"id", "custom_id", "response", "error"}
        found.append(item)
    return found


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def ids(path: Path) -> list[str]:
    return [item["custom_id"] for item in read(path)]


def results(source: Path) -> Path:
    return source.with_name(f"{source.stem}.results{source.suffix}")


def errors(source: Path) -> Path:
    return source.with_name(f"{source.stem}.results.errors{source.suffix}")


def settled(source: Path, expected: Iterable[str]) -> None:
    """Each id stands in exactly one of the two files, once."""
    found = ids(results(source)) + ids(errors(source))
    assert sorted(found) == sorted(expected)
