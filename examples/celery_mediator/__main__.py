"""Requests through object storage, made by Celery's workers, on one machine with all that it takes.

    python -m examples.celery_mediator [--count N]

It starts a Redis, a server that speaks S3, two APIs with different limits (`headgate sim`), somebody to be
called back, and two workers of four slots; submits the requests; waits until all are called back; and tells
what the APIs saw. Everything it starts, it stops.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from headgate.integrations.storage import open_storage
from tests.servers.redis import RedisServer
from tests.servers.s3 import S3Server

HERE = Path(__file__).parent
FOLDER = Path("build/celery_mediator").absolute()
SETTINGS = FOLDER / "headgate-mediator.toml"
REQUESTS = FOLDER / "requests.jsonl"
STORAGE = "s3://calls/demo"
HEADGATE = str(Path(sysconfig.get_path("scripts")) / "headgate")
MODULE = "headgate.integrations.celery.mediator"

# What the APIs enforce is what the settings declare.
APIS = {
    "openai": ("requests=14/s:burst=7", "tokens=9000/s:burst=9000"),
    "anthropic": ("requests=6/s:burst=3", "concurrency=4"),
}
KEYS = {"OPENAI_API_KEY": "sk-openai-of-the-example", "ANTHROPIC_API_KEY": "sk-anthropic-of-the-example"}
LATENCY = "250ms"
START_SECONDS = 30
LONGEST_SECONDS = 300


def main() -> int:
    """Run the example; return an exit status."""
    parser = argparse.ArgumentParser(description="Make requests through a mediator on this machine.")
    parser.add_argument("--count", type=int, default=500, help="requests (default: %(default)s)")
    count = parser.parse_args().count
    FOLDER.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer(tcp=True))
        s3 = stack.enter_context(S3Server())
        s3.create_bucket("calls")
        receiver = stack.enter_context(Receiver())
        apis = {name: stack.enter_context(api(name, limits)) for name, limits in APIS.items()}
        environment = {**os.environ, **s3.environment, **KEYS, "HEADGATE_MEDIATOR_CONFIG": str(SETTINGS)}
        write_settings(
            storage=STORAGE, broker=redis.tcp_url, store=redis.tcp_url, receiver=receiver.url, **apis
        )
        write_requests(count, receiver.url)

        run([HEADGATE, "mediator", "check"], "Is everything there?", environment)
        for name in ("one", "two"):
            stack.enter_context(worker(name, environment))
        run([HEADGATE, "mediator", "submit", "--quiet", str(REQUESTS)], "Submitting", environment)
        seconds = wait_for_callbacks(receiver, count)
        return tell(s3, receiver, apis, count, seconds)


def write_settings(**facts: str) -> None:
    """Fill in ``settings.toml``."""
    text = (HERE / "settings.toml").read_text()
    for name, value in facts.items():
        text = text.replace("{" + name + "}", value)
    SETTINGS.write_text(text)


def write_requests(count: int, receiver: str) -> None:
    """Seven of ten go to the one API, the others to the other."""
    with REQUESTS.open("w") as lines:
        for number in range(count):
            prompt = [{"role": "user", "content": f"Say something kind about the number {number}."}]
            if number % 10 < 7:
                request = {
                    "endpoint": "openai:/chat/completions",
                    "payload": {"model": "sim", "messages": prompt, "max_tokens": 100},
                }
            else:
                request = {
                    "endpoint": "anthropic:/messages",
                    "payload": {"model": "sim", "messages": prompt, "max_tokens": 100},
                }
            request |= {"task_id": f"number-{number}", "callback": f"{receiver}/done"}
            lines.write(json.dumps(request) + "\n")


class Receiver:
    """Somebody who is called back: counts how often for each task."""

    def __init__(self) -> None:
        self.called: Counter[str] = Counter()
        called = self.called

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                called[json.loads(body)["task_id"]] += 1
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing: there are hundreds."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Receiver:
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def api(name: str, limits: tuple[str, ...]) -> Iterator[str]:
    """An API with limits and a key, on a free port; its URL."""
    port_file = FOLDER / f"{name}.port"
    port_file.unlink(missing_ok=True)
    command = [HEADGATE, "sim", f"--port-file={port_file}", f"--latency={LATENCY}"]
    command += [f"--limit={limit}" for limit in limits]
    command += [f"--require-key={KEYS[f'{name.upper()}_API_KEY']}"]
    with started(name, command, dict(os.environ)) as process:
        until = time.monotonic() + START_SECONDS
        while not (port_file.exists() and port_file.read_text().strip()):
            if process.poll() is not None or time.monotonic() > until:
                sys.exit(f"headgate sim did not start; see {FOLDER / name}.log")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port_file.read_text().strip()}"


@contextmanager
def worker(name: str, environment: dict[str, str]) -> Iterator[None]:
    """A worker with four slots, as soon as it is ready."""
    command = [sys.executable, "-m", "celery", "-A", MODULE, "worker", "-c", "4", "-n", f"{name}@%h"]
    say(f"Worker {name}", ["celery", *command[3:]])
    with started(f"worker-{name}", [*command, "-l", "INFO"], environment) as process:
        log, until = FOLDER / f"worker-{name}.log", time.monotonic() + START_SECONDS
        while " ready." not in log.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > until:
                sys.exit(f"the worker did not start; see {log}")
            time.sleep(0.05)
        yield


@contextmanager
def started(name: str, command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A program that writes to a log of its own, and is stopped at the end."""
    with (FOLDER / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def say(what: str, command: list[str]) -> None:
    """Announce a step and the command that does it."""
    print(f"\n{what}\n  $ {shlex.join(command)}", flush=True)


def run(command: list[str], what: str, environment: dict[str, str]) -> None:
    """A step whose output is shown."""
    say(what, [Path(command[0]).name, *command[1:]])
    if subprocess.run(command, env=environment, check=False).returncode:
        sys.exit("that failed, so nothing more is done")


def wait_for_callbacks(receiver: Receiver, count: int) -> float:
    """Until each task was called back; in seconds."""
    began = told = time.monotonic()
    print(flush=True)
    while len(receiver.called) < count:
        time.sleep(0.1)
        now = time.monotonic()
        if now - began > LONGEST_SECONDS:
            sys.exit(f"only {len(receiver.called)} of {count} were called back; the logs are in {FOLDER}")
        if now - told >= 5:
            told = now
            print(f"  {len(receiver.called):,} of {count:,} called back", flush=True)
    return time.monotonic() - began


def tell(s3: S3Server, receiver: Receiver, apis: dict[str, str], count: int, seconds: float) -> int:
    """What came of it; an exit status."""
    print(f"\n{count:,} requests in {seconds:.1f} s; called back {sum(receiver.called.values()):,} times")
    refused = 0
    for name, url in apis.items():
        with urllib.request.urlopen(f"{url}/stats") as answer:
            stats: Any = json.load(answer)
        refused += stats["refused"]
        used = ", ".join(
            f"{limit['name']} {limit['utilisation']:.0%}"
            for limit in stats["limits"]
            if limit["utilisation"] is not None
        )
        print(f"  {name}: accepted {stats['accepted']:,}, refused {stats['refused']:,}; used of {used}")
    os.environ.update(s3.environment)
    stored = json.loads(open_storage(STORAGE).read("number-7.response.json", 1 << 20))
    print(f"\n{STORAGE}/number-7.response.json\n{json.dumps(stored, indent=2)}")
    print(f"\nSettings, requests and the workers' logs are in {FOLDER}")
    return 1 if refused else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted; all that was started has been stopped", file=sys.stderr)
        sys.exit(130)
