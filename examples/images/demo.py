"""The same images through the same service, before and after.

    python -m examples.images.demo [--images N] [--rate N] [--latency SECONDS]

It starts the strict server for each of the two clients and prints, beside what the client says of itself,
what the server's log says of the client.
"""

import argparse
import json
import os
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DIRECTORY = Path("build/images")
IMAGES = DIRECTORY / "images.txt"
MODELS = 6


def main() -> int:
    """Run both clients, print how they did; return 0 if both tagged all images, and alike."""
    parser = argparse.ArgumentParser(description="Tag the same images with both clients.")
    parser.add_argument("--images", type=int, default=20, help="how many (default: %(default)s)")
    parser.add_argument("--rate", type=int, default=10, help="requests a second (default: %(default)s)")
    parser.add_argument("--latency", type=float, default=1.16, help="mean seconds (default: %(default)s)")
    options = parser.parse_args()
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    urls = [f"http://images.example/{number:03}.jpg" for number in range(options.images)]
    IMAGES.write_text("\n".join(urls), encoding="utf-8")
    os.environ.setdefault("IMAGES_KEY", secrets.token_urlsafe())

    count = MODELS * options.images
    print(f"{count} requests; the server takes {options.rate} in any second")
    before = run("original", options)
    # Nobody has used the server yet, so its bucket is full; without start= the first second is cautious.
    after = run("tag", options, f"--limit=requests={options.rate}/s:burst={options.rate}:start=full")
    return int(before is None or before != after)


def run(client: str, options: argparse.Namespace, *more: str) -> str | None:
    """Run one client against a server of its own, print how it did; return its output, None if it failed."""
    output, log = DIRECTORY / f"{client}.json", DIRECTORY / f"{client}-server.jsonl"
    output.unlink(missing_ok=True)
    print(f"\nexamples.images.{client}", flush=True)
    with server(options.rate, options.latency, log) as url:
        command = [sys.executable, "-m", f"examples.images.{client}", str(IMAGES), f"--server={url}"]
        code = subprocess.run([*command, f"--output={output}", *more], check=False).returncode
    print(f"  {verdict(log, options.rate)}")
    return output.read_text(encoding="utf-8") if code == 0 else None


@contextmanager
def server(rate: int, latency: float, log: Path) -> Iterator[str]:
    """Start the server, yield its URL, and stop it whatever happens."""
    command = [sys.executable, "-m", "examples.images.server", f"--rate={rate}", f"--latency={latency}"]
    with subprocess.Popen([*command, f"--log={log}"], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip() if process.stdout else ""
        finally:
            process.terminate()


def verdict(log: Path, rate: int) -> str:
    """Say what the server saw: refusals, and how close to its limit the client came after the first burst."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    statuses = Counter(line["status"] for line in lines)
    admitted = [line["at"] for line in lines if line["status"] == 200]
    per_second = (len(admitted) - rate) / (admitted[-1] - admitted[0])
    return f"the server: {statuses[429]} refused, {per_second:.2f} admitted a second; the limit is {rate}"


if __name__ == "__main__":
    sys.exit(main())
