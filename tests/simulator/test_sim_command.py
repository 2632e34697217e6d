import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from click.testing import CliRunner

from headgate.cli.sim import sim

RUN = [sys.executable, "-c", "from headgate.cli.sim import sim; sim()"]


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, "the server never listened"
        time.sleep(0.01)
    return path.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serves_until_a_signal_and_ends_with_the_statistics(tmp_path: Path, number: int) -> None:
    port_file, stats_file = tmp_path / "port", tmp_path / "stats.json"
    options = ["--limit", "requests=2/h", "--port-file", str(port_file), "--stats-file", str(stats_file)]
    with subprocess.Popen([*RUN, *options], stdout=subprocess.PIPE, text=True, env=environment()) as process:
        url = f"http://127.0.0.1:{wait_for(port_file).strip()}"
        for _ in range(2):
            urlopen(url + "/echo").close()
        with pytest.raises(HTTPError, match="429"):
            urlopen(url + "/echo")
        process.send_signal(number)
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert output == (
        f"listening on {url}\n"
        "  requests=2/h\n"
        "\n"
        "accepted 2, refused 1\n"
        "limit         accepted units  ideal  utilisation\n"
        "requests=2/h  2               2      100.0%\n"
    )
    assert json.loads(stats_file.read_text())["accepted"] == 2


def test_prints_the_url_alone_if_asked(tmp_path: Path) -> None:
    port_file = tmp_path / "port"
    command = [*RUN, "--print-url", "--port-file", str(port_file)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        port = wait_for(port_file).strip()
        process.terminate()
        output, errors = process.communicate(timeout=20)
    assert output == f"http://127.0.0.1:{port}\n"
    assert errors == "  no limits\n\naccepted 0, refused 0\n"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--limit", "requests=60/week"], "  requests=60/week\n              ^"),
        (["--latency", "soon"], "expected a length of time"),
        (["--faults", "500"], "expected a fault"),
        (["--host", "192.0.2.1"], "192.0.2.1"),
    ],
)
def test_tells_what_is_wrong(options: list[str], told: str) -> None:
    result = CliRunner().invoke(sim, options)
    assert result.exit_code != 0
    assert told in result.output


def test_help_teaches_with_an_example() -> None:
    output = CliRunner().invoke(sim, ["--help"], terminal_width=110).output
    assert "headgate sim --port 8080 --limit requests=20/s:burst=5" in output
    assert "kind=sliding" in output


def environment() -> dict[str, str]:
    source = Path(__file__).parents[2] / "src"
    return os.environ | {"PYTHONPATH": str(source)}
