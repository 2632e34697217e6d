"""The example with the openai SDK runs against a strict server, and is not refused."""

import os
import subprocess
import sys

from headgate.simulator import SimulatedServer


def test_poems_are_written_without_a_refusal() -> None:
    limits = ["requests=3500/min:burst=58", "tokens=90k/min:burst=90k"]
    with SimulatedServer.in_thread(limits=limits, latency="50ms", count_refused=True) as server:
        done = subprocess.run(
            [sys.executable, "-m", "examples.poems.poems"],
            env={**os.environ, "OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": "sk-example"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        stats = server.stats()
    assert done.returncode == 0, done.stderr
    assert "0 attempts failed" in done.stdout
    assert "even" in done.stdout.splitlines()[-1]
    assert "no poem" not in done.stdout
    assert stats["refused"] == 0
    assert stats["accepted"] >= 4
    assert "sk-example" not in done.stdout + done.stderr
