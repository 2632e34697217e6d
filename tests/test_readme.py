"""What the README shows is run, as it stands there."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from headgate import Limiter
from headgate.testing.simulator import StartServer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
HEADGATE = [sys.executable, "-m", "headgate"]


def commands() -> list[str]:
    return [
        line.removeprefix("$ ")
        for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
        for line in block.splitlines()
        if line.startswith("$ ")
    ]


def headgate(line: str, server: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = shlex.split(line.replace("https://api.openai.com", server))
    assert words[0] == "headgate"
    environment = {**os.environ, "OPENAI_API_KEY": "sk-a-key-of-the-readme"}
    return subprocess.run(
        HEADGATE + words[1:],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_readme_has_the_commands_that_are_tested_here() -> None:
    firsts = [" ".join(line.split()[:2]) for line in commands()]
    assert firsts == ["make run", "make test", "headgate run", "headgate run", "headgate sim"]


def test_an_example_stands_in_the_first_lines_and_works() -> None:
    block = re.search(r"```python\n(.*?)```", "\n".join(README.splitlines()[:40]), re.DOTALL)
    assert block
    names: dict[str, object] = {}
    exec(block[1], names)

    class Client:
        tokens = 150

        def complete(self, text: str, max_tokens: int) -> Client:
            return self

    ask = names["ask"]
    assert callable(ask)
    reply = ask(Client(), "What is a headgate?")
    assert reply.tokens == 150
    limiter = names["limiter"]
    assert limiter.used()["requests/min"] >= 1  # type: ignore[attr-defined]  # made by the README


def test_the_task_works() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    [block] = [block for block in blocks if "@app.task" in block]
    with Celery("readme", set_as_current=False) as app:
        names: dict[str, Any] = {"app": app, "limiter": Limiter("requests=500/min:burst=50:start=full")}
        exec(block, names)
        assert names["ask"].apply(("What is a headgate?",)).successful()
        assert names["limiter"].used()["requests/min"] == 1


def test_the_example_with_a_runner_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    block = re.search(r"```python\n(from headgate import Runner\n.*?)```", README, re.DOTALL)
    assert block
    calls: list[str] = []

    def tag_image(url: str) -> list[str]:
        calls.append(url)
        return [url.upper()]

    for _ in range(2):  # the second time, everything is known
        frame: dict[str, list[object]] = {"url": ["a", "b"]}
        exec(block[1], {"tag_image": tag_image, "frame": frame})
        assert frame["tags"] == [["A"], ["B"]]
    assert sorted(calls) == ["a", "b"]


def test_make_run_and_make_test_are_what_the_makefile_knows() -> None:
    for target, does in (("run", "examples.articles.demo"), ("test", "pytest")):
        assert f"make {target}" in commands()
        shown = subprocess.run(
            ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert does in shown.stdout


@pytest.mark.scenarios
def test_a_file_of_requests(tmp_path: Path, sim: StartServer) -> None:
    server = sim("requests=500/min:burst=50", "tokens=200k/min:burst=20k", latency="20ms")
    lines = [
        {
            "custom_id": f"review-{i}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": "m",
                "max_tokens": 20,
                "messages": [{"role": "user", "content": f"Review {i}. Fine."}],
            },
        }
        for i in range(20)
    ]
    (tmp_path / "requests.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = headgate(commands()[2], server.url, tmp_path)
    assert done.returncode == 0, done.stderr
    results = (tmp_path / "requests.results.jsonl").read_text().splitlines()
    assert {json.loads(line)["custom_id"] for line in results} == {line["custom_id"] for line in lines}
    assert server.stats()["refused"] == 0


@pytest.mark.scenarios
def test_rows_and_a_template(tmp_path: Path, sim: StartServer) -> None:
    server = sim("requests=20/s:burst=5", latency="20ms")
    rows = [{"id": i, "text": f"I liked number {i} very much."} for i in range(15)]
    (tmp_path / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = headgate(commands()[3], server.url, tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["succeeded"] == 15
    assert summary["refused"] == server.stats()["refused"] == 0


def test_the_simulator_starts_and_stops(tmp_path: Path) -> None:
    words = shlex.split(commands()[4].replace("8000", "0"))
    port = tmp_path / "port"
    process = subprocess.Popen(
        [*HEADGATE, *words[1:], f"--port-file={port}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        until = time.monotonic() + 30
        while not port.exists() and time.monotonic() < until and process.poll() is None:
            time.sleep(0.05)
        assert port.read_text().strip().isdigit()
    finally:
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "requests=20/s" in said


def test_the_fixture_as_shown(sim: StartServer) -> None:
    block = next(
        b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "def test_my_client" in b
    )
    seen: list[str] = []
    names: dict[str, object] = {"my_client": seen.append}
    exec(block, names)
    test = names["test_my_client"]
    assert callable(test)
    test(sim)
    assert seen[0].startswith("http://127.0.0.1:")
