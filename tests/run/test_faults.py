"""Against a server that fails in every way at once, under limits that forgive nothing."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.run.running import HEADGATE, environment, ids, read, results, run, settled, wait_until, write_lines

FAULTS = "500=3%,reset=1%,hang=0.5%,malformed=5%"
LIMITS = ["requests=150/s:burst=20", "tokens=60k/s:burst=12k"]
LINES = 900


@contextmanager
def simulator(folder: Path, *options: str) -> Iterator[tuple[str, Path]]:
    """The URL of a simulated server, and the file where its statistics will stand."""
    port, stats = folder / "port", folder / "stats.json"
    command = [*HEADGATE, "sim", "--port-file", str(port), "--stats-file", str(stats), *options]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
    )
    try:
        wait_until(port.exists)
        yield f"http://127.0.0.1:{port.read_text().strip()}", stats
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def chats(path: Path, count: int) -> Path:
    return write_lines(
        path,
        (
            {
                "custom_id": f"id-{number}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {
                    "model": "small",
                    "messages": [{"role": "user", "content": f"{number} " + "word " * (number % 60)}],
                    "max_tokens": 40,
                },
            }
            for number in range(count)
        ),
    )


@pytest.mark.scenarios
@pytest.mark.parametrize("more", [[], ["--ordered"]], ids=["plain", "ordered"])
def test_nothing_is_lost_and_nothing_refused_whatever_breaks(tmp_path: Path, more: list[str]) -> None:
    source = chats(tmp_path / "in.jsonl", LINES)
    summary = tmp_path / "summary.json"
    limits = [text for limit in LIMITS for text in ("--limit", limit)]
    with simulator(tmp_path, *limits, "--count-refused", "--latency", "30ms", "--faults", FAULTS) as (
        url,
        stats,
    ):
        started = time.monotonic()
        ran = run(source, url, *limits, "--summary-json", str(summary), *more, timeout=110)
        seconds = time.monotonic() - started
    seen: dict[str, Any] = json.loads(stats.read_text())
    told: dict[str, Any] = json.loads(summary.read_text())
    shares = ", ".join(f"{limit['name']} {limit['utilisation']:.1%}" for limit in seen["limits"])
    print(
        f"\n{seconds:.1f} s; accepted {seen['accepted']}, refused {seen['refused']}, "
        f"faults {seen['faults']}; "
        f"used as the server saw it: {shares}; as the run saw it: "
        + ", ".join(f"{limit['name']} {limit['utilisation']:.1%}" for limit in told["limits"])
    )
    assert ran.code == 0
    settled(source, [f"id-{number}" for number in range(LINES)])
    if more:
        assert ids(results(source)) == [f"id-{number}" for number in range(LINES)]
    for item in read(results(source)):
        assert item["response"]["body"]["choices"][0]["message"]["content"]
    assert seen["refused"] == told["refused"] == 0
    assert sum(seen["faults"].values()) >= told["retries"] > 0
    assert seen["idempotency"]["keys"] == LINES
