"""What `make run` shows: 1,000 articles, summarised through an API with two rate limits, on this machine.

    python -m examples.articles.demo [--count N]

The API is `headgate sim`, a server that enforces its limits and summarises by picking sentences. It shares
no code with what `headgate run` sends by, so what it says at the end is an outsider's verdict.
"""

import argparse
import json
import shlex
import signal
import subprocess
import sys
import sysconfig
import textwrap
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DIRECTORY = Path("build/articles")
REQUESTS = DIRECTORY / "requests.jsonl"
SUMMARIES = DIRECTORY / "summaries.jsonl"
PORT_FILE = DIRECTORY / "port"
SIM_LOG = DIRECTORY / "sim.log"

# A call costs 690 tokens on average, of which 120 are for the answer; the language reference, which comes
# first, costs 830. So the second limit holds that back to 17 a second, and what follows meets now the one,
# now the other: about 50 seconds for 1,000 articles.
LIMITS = ("requests=21/s:burst=21", "tokens=14500/s:burst=14500")

# An API has latency: calls overlap, and arrive up to 30 ms later than others.
BEHAVIOUR = ("--latency=300ms", "--jitter=30ms")

SAMPLES = ("topic:objects", "class:threading.Thread")

START_SECONDS = 20
HEADGATE = str(Path(sysconfig.get_path("scripts")) / "headgate")


def main() -> int:
    """Run the demonstration; return the exit code of `headgate run`."""
    parser = argparse.ArgumentParser(description="Summarise articles through a rate-limited API.")
    parser.add_argument("--count", type=int, default=1000, help="articles (default: %(default)s)")
    count = parser.parse_args().count

    collect = [sys.executable, "-m", "examples.articles.collect", str(REQUESTS), f"--count={count}"]
    say("Collecting articles from this Python's documentation", collect)
    subprocess.run(collect, check=True)
    limits = [f"--limit={limit}" for limit in LIMITS]
    with simulator(limits) as url:
        run = [HEADGATE, "run", str(REQUESTS), f"--base-url={url}", *limits]
        run += [f"--output={SUMMARIES}", "--progress=auto", "--fresh"]
        say("Sending them", run)
        code = run_in_foreground(run)
        with urllib.request.urlopen(f"{url}/stats") as answer:
            show_verdict(json.load(answer))
    show_samples()
    return code


def say(what: str, command: list[str]) -> None:
    """Announce a step and the command that does it."""
    print(f"\n{what}\n  $ {shlex.join(command)}", flush=True)


@contextmanager
def simulator(limits: list[str]) -> Iterator[str]:
    """Start `headgate sim` on a free port, yield its URL, and stop it whatever happens."""
    PORT_FILE.unlink(missing_ok=True)
    command = [HEADGATE, "sim", "--port=0", f"--port-file={PORT_FILE}", *limits, *BEHAVIOUR]
    say("Starting a server that enforces two limits", command)
    # Detached, so that Ctrl-C does not reach it: the run can still finish what it has in flight.
    with (
        SIM_LOG.open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True) as process,
    ):
        try:
            yield f"http://127.0.0.1:{wait_for_port(process)}"
        finally:
            process.terminate()


def wait_for_port(process: subprocess.Popen[bytes]) -> int:
    """Return the port that the simulator wrote to its file."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if PORT_FILE.exists() and (port := PORT_FILE.read_text().strip()):
            return int(port)
        time.sleep(0.05)
    sys.exit(f"headgate sim did not start; it said:\n{SIM_LOG.read_text()}")


def run_in_foreground(command: list[str]) -> int:
    """Run a command on this terminal and return its exit code. Ctrl-C is for the command to answer."""
    with subprocess.Popen(command) as process:
        # Handlers, not SIG_IGN: that one the command would inherit.
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        code = process.wait()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return code if code >= 0 else 128 - code


def show_verdict(stats: Any) -> None:
    """Print what the server saw."""
    print("\nThe server's verdict")
    print(f"  accepted {stats['accepted']:,}, refused {stats['refused']:,}")
    for limit in stats["limits"]:
        if limit["utilisation"] is not None:
            print(f"  {limit['name']}: {limit['utilisation']:.1%} of what it allows was used")
    print("  (each holds the calls back in its turn, so neither can reach 100 %)")


def show_samples() -> None:
    """Print where the summaries are, and two of them."""
    if not SUMMARIES.exists():
        return
    print(f"\nThe summaries: {SUMMARIES}")
    with SUMMARIES.open(encoding="utf-8") as lines:
        for result in map(json.loads, lines):
            if result["custom_id"] in SAMPLES:
                text = result["response"]["body"]["choices"][0]["message"]["content"]
                print(f"\n  {result['custom_id']}\n{textwrap.indent(textwrap.fill(text, 100), '    ')}")


if __name__ == "__main__":
    sys.exit(main())
