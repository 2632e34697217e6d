"""Runs ``headgate run`` as its users do, in a process of its own, and reads what it wrote."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["headgate.cli.run", "headgate.run.session", "aiohttp", "uvloop"])

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


def run(source: Path | str, url: str, *options: str, stdin: str | None = None, timeout: float = 60) -> Ran:
    """Run to its end, in a process of its own that need not import everything anew.

    Whatever else it says, it never shows a traceback.
    """
    with tempfile.TemporaryDirectory(prefix="headgate-test-") as folder:
        paths = [Path(folder) / name for name in ("in", "out", "err")]
        paths[0].write_text(stdin or "")
        arguments = command(source, url, *options)[len(HEADGATE) + 1 :]
        process = _forks.Process(target=_run_here, args=(arguments, list(map(str, paths))))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise AssertionError(f"not done within {timeout} s: {paths[2].read_text()}")
        ran = Ran(process.exitcode, paths[1].read_text("utf-8"), paths[2].read_text("utf-8"))
    assert "Traceback" not in ran.err, ran.err
    assert "never retrieved" not in ran.err, ran.err
    return ran


def _run_here(arguments: list[str], paths: list[str]) -> None:
    from headgate.cli.run import run as headgate_run

    for number, flags in enumerate((os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT)):
        opened = os.open(paths[number], flags, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = os.fdopen(0, closefd=False)  # multiprocessing has closed the one that was
    os.environ["THE_KEY"] = SECRET
    headgate_run.main(arguments, prog_name="headgate run")


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
